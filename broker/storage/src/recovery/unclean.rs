//! Opening a log that was not closed in order.

use std::io;
use std::path::Path;
use std::sync::Arc;

use quire_protocol::frame::{Chain, FrameSeed};
use quire_protocol::ids::{LeaderEpoch, Offset, Timestamp};

use super::derived::{self, Covered};
use super::scan::{self, Cut, Piece, Scan, Totals};
use super::{Corruption, FileBytes, Opening, Recovered, RecoveryReport, log_file, sync_directories};
use crate::checkpoint::{self, Checkpoint};
use crate::disk::{Disk, OpenMode};
use crate::epochs::EpochCache;
use crate::error::OpenError;
use crate::index::SegmentIndex;
use crate::log::Active;
use crate::manifest::{Manifest, SegmentEntry, SegmentFile, SegmentName};
use crate::segment::{Extent, Segment};
use crate::small_file::{self, LoadError};

/// Where the scan begins.
struct Start {
    /// Which of the manifest's segments.
    segment: usize,
    /// The point that it continues from; its position is in that segment, or it is at the segment's front.
    point: Checkpoint,
    position: u64,
    /// `None` if the frame before is not known.
    chain: Option<Chain>,
}

pub(super) fn open(opening: &Opening<'_>, manifest: Manifest) -> Result<Recovered, OpenError> {
    let (disk, dir) = (&*opening.disk, opening.dir.as_path());
    Checkpoint::take_clean(disk, dir)
        .map_err(OpenError::io("removing", dir.join(checkpoint::CLEAN_FILE_NAME)))?;
    let noted = opening.noted_suspicion()?;
    let mut report = RecoveryReport { suspicion: noted, ..RecoveryReport::default() };
    let loaded = load_checkpoint(opening, &mut report)?;
    report.suspicion.is_unclean |= !(opening.options.is_synced && loaded.is_none_or(|point| point.is_synced));
    let start = loaded.and_then(|point| start_at(&manifest, point));
    let start = start.unwrap_or_else(|| start_of_log(&manifest, opening.options.is_synced));
    report.corruption = missing_segment(opening, &manifest.segments[..start.segment]);
    let mut pieces = pieces(opening, &manifest, &start, &mut report)?;
    if report.suspicion != noted {
        // Before anything is changed: the next open may find nothing that tells of it.
        report.suspicion.add_if_possible(disk, dir);
    }
    let mut scan = start.scan(opening);
    let failed = |error| OpenError::io("scanning", dir)(error);
    let cut = scan::run(&mut scan, &mut pieces, &mut report.corruption).map_err(failed)?;
    report.frames_scanned = scan.totals.frames;
    report.bytes_scanned = scan.totals.bytes;
    let ending = Ending { opening, manifest, start, pieces, scan, report };
    if ending.report.corruption.is_some() { ending.keep() } else { ending.settle(cut) }
}

/// Removes a segment's files; they are garbage, so that a failure only costs space.
pub(crate) fn remove_segment(disk: &dyn Disk, dir: &Path, name: SegmentName) {
    for file in SegmentFile::ALL {
        remove_garbage(disk, dir, &name.file(file));
    }
}

/// Removes a segment's derived files, as [`remove_segment`].
pub(crate) fn remove_indexes(disk: &dyn Disk, dir: &Path, name: SegmentName) {
    for file in [SegmentFile::OffsetIndex, SegmentFile::TimeIndex] {
        remove_garbage(disk, dir, &name.file(file));
    }
}

pub(super) fn remove_garbage(disk: &dyn Disk, dir: &Path, name: &str) -> bool {
    match disk.remove(&dir.join(name)) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::NotFound => false,
        Err(error) => {
            tracing::warn!(file = %dir.join(name).display(), %error, "can not remove a file no longer needed");
            false
        }
    }
}

fn load_checkpoint(
    opening: &Opening<'_>,
    report: &mut RecoveryReport,
) -> Result<Option<Checkpoint>, OpenError> {
    match Checkpoint::load(&*opening.disk, &opening.dir) {
        Ok(point) => Ok(Some(point)),
        // None was due yet.
        Err(LoadError::Missing) => Ok(None),
        Err(LoadError::Io(error)) => {
            Err(OpenError::io("reading", opening.dir.join(checkpoint::FILE_NAME))(error))
        }
        Err(LoadError::Damaged(_) | LoadError::Version { .. }) => {
            report.rebuilt.push(checkpoint::FILE_NAME.to_owned());
            Ok(None)
        }
    }
}

/// The checkpoint's place in the manifest; `None` if it has none.
fn start_at(manifest: &Manifest, point: Checkpoint) -> Option<Start> {
    let segments = &manifest.segments;
    let reaches = |entry: &SegmentEntry| entry.sealed.is_none_or(|sealed| sealed.len > point.position);
    let start = |segment, position, chain| Some(Start { segment, point, position, chain });
    if let Some(at) = segments.iter().position(|entry| entry.name.serial == point.segment_serial)
        && reaches(&segments[at])
    {
        return start(at, point.position, point.known_chain());
    }
    // It was the end of a segment: go on with the next, which is there unless none was needed yet.
    let next = segments.partition_point(|entry| entry.name.base_offset < point.next_offset);
    let end = match segments.get(next) {
        Some(entry) => entry.name.base_offset,
        None => match segments.last() {
            Some(last) => last.sealed?.end_offset,
            None => manifest.log_start,
        },
    };
    if end == point.next_offset { start(next, 0, point.known_chain()) } else { None }
}

fn start_of_log(manifest: &Manifest, is_synced: bool) -> Start {
    let offset = manifest.segments.first().map_or(manifest.log_start, |first| first.name.base_offset);
    let point = Checkpoint {
        segment_serial: manifest.segments.first().map_or(0, |first| first.name.serial),
        position: 0,
        next_offset: offset,
        chain: Chain::START,
        last_append_time: Timestamp(i64::MIN),
        leader_epoch: LeaderEpoch(0),
        high_watermark: manifest.log_start,
        is_synced,
        is_behind: false,
    };
    let chain = (offset == Offset::ZERO).then_some(Chain::START);
    Start { segment: 0, point, position: 0, chain }
}

impl Start {
    fn scan(&self, opening: &Opening<'_>) -> Scan {
        Scan {
            seed: FrameSeed::new(opening.partition),
            index_interval: opening.options.index_interval_bytes,
            synced_end: self.point.next_offset,
            expected: self.point.next_offset,
            chain: self.chain,
            last_append_time: self.point.last_append_time,
            leader_epoch: self.point.leader_epoch,
            floor: self.point.high_watermark,
            epoch_starts: Vec::new(),
            totals: Totals::default(),
            is_behind: self.point.is_behind,
            is_rewriting: true,
        }
    }
}

/// Segments before the recovery point are not read, but they have to be there.
fn missing_segment(opening: &Opening<'_>, segments: &[SegmentEntry]) -> Option<Corruption> {
    let missing = segments.iter().find(|entry| !opening.has(&log_file(entry.name)))?;
    Some(Corruption {
        offset: missing.name.base_offset,
        intact_from: missing.sealed?.end_offset,
        segment: log_file(missing.name),
        position: 0,
        why: "the file is missing".to_owned(),
    })
}

fn pieces<'a>(
    opening: &'a Opening<'_>,
    manifest: &Manifest,
    start: &Start,
    report: &mut RecoveryReport,
) -> Result<Vec<Piece<'a>>, OpenError> {
    let mut pieces = Vec::new();
    for (at, entry) in manifest.segments.iter().enumerate().skip(start.segment) {
        let position = if at == start.segment { start.position } else { 0 };
        let path = opening.dir.join(log_file(entry.name));
        let piece = piece(opening, &path, *entry, position, start, report);
        pieces.push(piece.map_err(OpenError::io("opening", path))?);
    }
    Ok(pieces)
}

fn piece<'a>(
    opening: &'a Opening<'_>,
    path: &Path,
    entry: SegmentEntry,
    position: u64,
    start: &Start,
    report: &mut RecoveryReport,
) -> io::Result<Piece<'a>> {
    let file = match opening.disk.open(path, OpenMode::ReadWrite) {
        Ok(file) => Some(FileBytes(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    let len = file.as_ref().map_or(Ok(0), |file| file.0.len())?;
    if let Some(Err(error)) = file.as_ref().map(|file| file.0.sync_data()) {
        // A write of the last process was lost unseen, and the first to sync is told. What can be read now is checked,
        // and what is good is written again and synced again.
        tracing::warn!(segment = %path.display(), %error, "a write of the last process was lost");
        report.suspicion.has_lost_writes = true;
    }
    let limit = entry.sealed.map_or(len, |sealed| sealed.len.min(len));
    let mut index = SegmentIndex::new(entry.name.base_offset);
    if let Some(bytes) = file.as_ref().filter(|_| position > 0 && position <= limit) {
        let interval = opening.options.index_interval_bytes;
        let covered = Covered { name: entry.name, end: start.point.next_offset, len: position, interval };
        let seed = FrameSeed::new(opening.partition);
        let is_good;
        (index, is_good) = derived::load_or_rebuild(&*opening.disk, &opening.dir, seed, bytes, covered)?;
        if !is_good {
            report.rebuilt.push(entry.name.file(SegmentFile::OffsetIndex));
        }
    }
    Ok(Piece {
        disk: &*opening.disk,
        path: path.to_owned(),
        entry,
        is_missing: file.is_none(),
        start: position,
        limit,
        position,
        end: if position > 0 { start.point.next_offset } else { entry.name.base_offset },
        frames: 0,
        last_append_time: start.point.last_append_time,
        index,
    })
}

/// A log that was scanned to its end.
struct Ending<'a> {
    opening: &'a Opening<'a>,
    manifest: Manifest,
    start: Start,
    pieces: Vec<Piece<'a>>,
    scan: Scan,
    report: RecoveryReport,
}

impl Ending<'_> {
    /// Leaves a corrupt log exactly as it is, so that the next open finds the same.
    fn keep(mut self) -> Result<Recovered, OpenError> {
        let tail = self.tail();
        let epochs = self.epochs(&tail)?;
        let segments = self.segments(false);
        Ok(Recovered {
            shared: self.opening.share(segments, self.manifest.log_start, &tail),
            manifest: self.manifest,
            active: None,
            tail,
            epochs,
            checkpoint: self.start.point.next_offset,
            is_marked_clean: false,
            is_cut_unstored: false,
            is_new: false,
            report: self.report,
        })
    }

    /// Makes what was found good durable, and forgets what was not.
    fn settle(mut self, cut: Option<Cut>) -> Result<Recovered, OpenError> {
        let (disk, dir) = (&*self.opening.disk, self.opening.dir.as_path());
        let on_disk = match cut {
            Some(cut) => self.cut(cut)?,
            None => None,
        };
        // What the last process changed may not have been made durable.
        sync_directories(disk, dir)?;
        self.report.removed = self.remove_unlisted(on_disk.as_ref().unwrap_or(&self.manifest));
        let tail = self.tail();
        self.opening.end_producers_at(tail.next_offset)?;
        let epochs = self.epochs(&tail)?;
        let is_stored = self.store_derived(&tail, &epochs)?;
        let segments = self.segments(is_stored);
        let last = self.manifest.segments.last().filter(|last| last.sealed.is_none());
        let active = last.and(segments.last()).map(|segment| Active {
            segment: Arc::clone(segment),
            file: None,
            writable: 0,
        });
        Ok(Recovered {
            shared: self.opening.share(segments, self.manifest.log_start, &tail),
            manifest: self.manifest,
            active,
            tail,
            epochs,
            checkpoint: if is_stored { tail.next_offset } else { self.start.point.next_offset },
            is_marked_clean: false,
            is_cut_unstored: on_disk.is_some(),
            is_new: false,
            report: self.report,
        })
    }

    /// Ends the log at a bad frame, unless there was never more than that. Returns the manifest that is still on disk
    /// if there is no room for the new one.
    fn cut(&mut self, cut: Cut) -> Result<Option<Manifest>, OpenError> {
        let (disk, dir) = (&*self.opening.disk, self.opening.dir.as_path());
        let torn = self.scan.torn_tail(&self.pieces, &cut).map_err(OpenError::io("reading", dir))?;
        if torn.is_none() {
            return Ok(None);
        }
        self.report.torn_tail = torn;
        if cut.is_loss_possible {
            // A write interrupted before the replica had caught up, or damage after: others have what is missing here.
            self.report.suspicion.is_unclean = true;
            self.report.suspicion.add_if_possible(disk, dir);
        }
        let on_disk = self.manifest.clone();
        let at = cut.piece;
        let entries = &mut self.manifest.segments;
        entries.truncate(self.start.segment + at);
        self.pieces.truncate(at + 1);
        let piece = &mut self.pieces[at];
        if piece.position > 0 {
            piece.entry.sealed = Some(piece.sealed());
            entries.push(piece.entry);
        } else {
            self.pieces.truncate(at);
        }
        match self.manifest.store(disk, dir) {
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                tracing::warn!(log = %dir.display(), %error, "no room to note where the log was cut");
                Ok(Some(on_disk))
            }
            stored => stored.map(|()| None).map_err(OpenError::io("replacing the manifest in", dir)),
        }
    }

    fn tail(&self) -> Checkpoint {
        let point = self.start.point;
        let last = self.pieces.last().filter(|piece| piece.position > 0).or_else(|| {
            // An empty segment at the end: the log ends with the one before.
            self.pieces.iter().rev().nth(1)
        });
        let (segment_serial, position) = last.map_or((point.segment_serial, point.position), |piece| {
            (piece.entry.name.serial, piece.position)
        });
        Checkpoint {
            segment_serial,
            position,
            next_offset: self.scan.expected,
            chain: self.scan.chain.unwrap_or(point.chain),
            last_append_time: self.scan.last_append_time,
            leader_epoch: self.scan.leader_epoch,
            high_watermark: self.scan.floor.min(self.scan.expected),
            is_synced: self.opening.options.is_synced,
            is_behind: false,
        }
    }

    /// The leadership starts: those before the scan, those it saw, and one that had not written yet.
    fn epochs(&mut self, tail: &Checkpoint) -> Result<EpochCache, OpenError> {
        let loaded = derived::load_epochs(self.opening, &self.manifest, tail, &mut self.report)?;
        let mut cache = loaded.clone();
        cache.recover(self.start.point.next_offset);
        let seen =
            self.scan.epoch_starts.iter().all(|start| cache.assign(start.epoch, start.start_offset).is_ok());
        if !seen {
            self.report.rebuilt.push(crate::epochs::FILE_NAME.to_owned());
            return derived::rebuild_epochs(self.opening, &self.manifest, tail);
        }
        for start in loaded.entries() {
            // Those already entered are refused as older.
            let _ = cache.assign(start.epoch, start.start_offset);
        }
        Ok(cache)
    }

    /// Removes garbage; returns its names.
    fn remove_unlisted(&self, manifest: &Manifest) -> Vec<String> {
        self.opening.remove_garbage(|name| {
            small_file::is_temporary(name)
                || SegmentName::parse(name).is_some_and(|(segment, _)| !manifest.lists(segment))
        })
    }

    /// So that the next recovery need not do this again. Without room it has to. Whether there was.
    fn store_derived(&self, tail: &Checkpoint, epochs: &EpochCache) -> Result<bool, OpenError> {
        let (disk, dir) = (&*self.opening.disk, self.opening.dir.as_path());
        let stored = self
            .pieces
            .iter()
            .filter(|piece| piece.position > 0)
            .try_for_each(|piece| piece.index.store(disk, dir, piece.entry.name, &piece.sealed()));
        match stored.and_then(|()| epochs.store(disk, dir)).and_then(|()| tail.store(disk, dir)) {
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                tracing::warn!(log = %dir.display(), %error, "no room for a checkpoint");
                Ok(false)
            }
            stored => stored.map(|()| true).map_err(OpenError::io("writing the checkpoint of", dir)),
        }
    }

    /// Indexes that are in their files are loaded again when a read needs them.
    fn segments(&mut self, is_stored: bool) -> Vec<Arc<Segment>> {
        let mut segments = Vec::with_capacity(self.manifest.segments.len());
        let before = &self.manifest.segments[..self.start.segment.min(self.manifest.segments.len())];
        for entry in before {
            if let Some(sealed) = &entry.sealed {
                segments.push(Arc::new(self.opening.segment(entry.name, Extent::of(sealed), None)));
            }
        }
        for piece in self.pieces.drain(..) {
            let extent = Extent::of(&piece.sealed());
            let is_to_be_loaded = is_stored && piece.entry.sealed.is_some() && piece.position > 0;
            let index = (!is_to_be_loaded).then_some(piece.index);
            segments.push(Arc::new(self.opening.segment(piece.entry.name, extent, index)));
        }
        segments
    }
}
