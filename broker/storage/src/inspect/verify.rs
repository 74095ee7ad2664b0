//! Reading every frame of a log, as recovery would, and changing nothing.

use std::io;
use std::path::Path;

use quire_protocol::frame::{Chain, FrameSeed};
use quire_protocol::ids::{Offset, Timestamp, TopicPartition};

use super::{FileState, InspectError, LogReport, inspect, io_error};
use crate::checkpoint::Checkpoint;
use crate::disk::{Disk, OpenMode};
use crate::index::SegmentIndex;
use crate::manifest::{self, Manifest, SegmentEntry, SegmentFile};
use crate::recovery::Corruption;
use crate::recovery::scan::{self, Cut, Piece, Scan, Totals};
use crate::unwritten;

/// What reading a whole log found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifyReport {
    /// What its small files say.
    pub log: LogReport,
    /// Each segment that was read.
    pub segments: Vec<SegmentCheck>,
    /// Intact frames.
    pub frames: u64,
    /// Records in them.
    pub records: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Frames whose chain was computed and continues that of the frame before. The first frame of a log whose start
    /// was deleted, and the first behind damage, have none before them to continue.
    pub links: u64,
    /// The offset after the last intact frame.
    pub end_offset: Offset,
    /// The chain at the end, if there is any frame.
    pub chain: Option<Chain>,
    /// The first thing wrong, if anything is.
    pub finding: Option<Finding>,
}

impl VerifyReport {
    /// Whether nothing proves that a record is damaged that was once on disk. Of a torn tail nothing does, though it may
    /// be damage: see [`Finding::is_suspicious`].
    pub fn is_intact(&self) -> bool {
        let is_harmless = |kind| [FindingKind::TornTail, FindingKind::BeyondEnd].contains(&kind);
        self.finding.as_ref().is_none_or(|finding| is_harmless(finding.kind))
    }
}

/// One segment that was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SegmentCheck {
    /// Name of the file with its frames.
    pub file_name: String,
    /// The offset of its first record.
    pub base_offset: Offset,
    /// The offset after its last intact record.
    pub end_offset: Offset,
    /// Intact frames.
    pub frames: u64,
    /// Up to where it was read (bytes).
    pub bytes: u64,
}

/// What kind of thing is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FindingKind {
    /// The log can not be opened.
    Unusable,
    /// An end that is not intact and that nothing proves to have been on disk: a write that was interrupted, as far as
    /// can be told.
    TornTail,
    /// Records that were on disk are damaged.
    Corruption,
    /// Something lies behind the end at which the log was closed in order: harmless.
    BeyondEnd,
}

/// The first thing wrong with a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What kind of thing.
    pub kind: FindingKind,
    /// In which file.
    pub file_name: String,
    /// Where in it (bytes).
    pub position: u64,
    /// The first offset affected.
    pub offset: Offset,
    /// The first offset behind damage that is intact again, or the end of all that was on disk.
    pub intact_from: Option<Offset>,
    /// What is there in place of what should be.
    pub what: String,
    /// Whether a torn tail looks rather like damage to what was written whole.
    pub is_suspicious: bool,
    /// What that means, and what happens next: a sentence.
    pub meaning: String,
}

/// Reads all of the log in `dir`. With a partition given, the log must be that partition's.
///
/// # Errors
/// If there is no log, or the disk refuses. Damage is part of the report.
pub fn verify(
    disk: &dyn Disk,
    dir: &Path,
    partition: Option<TopicPartition>,
) -> Result<VerifyReport, InspectError> {
    let log = inspect(disk, dir)?;
    let unusable = unusable(&log, partition);
    let manifest = if log.is_unwritten { None } else { Manifest::load(disk, dir).ok() };
    let Some(manifest) = manifest.filter(|_| unusable.is_none()) else {
        return Ok(VerifyReport::without_frames(log, unusable));
    };
    let clean = Checkpoint::peek_clean(disk, dir).map_err(io_error(dir))?;
    let point = clean.or_else(|| Checkpoint::load(disk, dir).ok());
    let mut pieces = Vec::with_capacity(manifest.segments.len());
    for entry in &manifest.segments {
        let path = dir.join(entry.name.file(SegmentFile::Log));
        pieces.push(piece(disk, &path, *entry).map_err(io_error(&path))?);
    }
    let mut scan = whole_log(&manifest, point.as_ref());
    let mut corruption = None;
    let cut = scan::run(&mut scan, &mut pieces, &mut corruption).map_err(io_error(dir))?;
    if corruption.is_none() && cut.is_none() {
        corruption = lost_end(&scan, &manifest, &pieces);
    }
    let finding = match (corruption, cut) {
        (Some(corruption), _) => {
            let is_beyond = clean.is_some_and(|clean| clean.next_offset == corruption.offset);
            Some(Finding::corruption(&corruption, is_beyond))
        }
        (None, Some(cut)) => {
            let is_beyond = clean.is_some_and(|clean| is_end(&scan, &pieces, &cut, &clean));
            let torn = torn_tail(&scan, &pieces, cut).map_err(io_error(dir))?;
            torn.map(|torn| if is_beyond { torn.beyond_end() } else { torn })
        }
        (None, None) => None,
    };
    Ok(VerifyReport::new(log, &scan, &pieces, finding))
}

/// Why the broker would refuse to open the log.
fn unusable(log: &LogReport, partition: Option<TopicPartition>) -> Option<Finding> {
    let what = match (&log.manifest, log.partition, partition) {
        (FileState::Missing, ..) if !log.is_unwritten => "it is missing, but segments exist".to_owned(),
        (FileState::Damaged(what), ..) => what.clone(),
        (_, Some(found), Some(expected)) if found != expected => {
            format!("this is the log of {found}, not of {expected}")
        }
        _ => return None,
    };
    Some(Finding {
        kind: FindingKind::Unusable,
        file_name: match log.partition.filter(|_| log.is_unwritten) {
            Some(found) => unwritten::file_name(found),
            None => manifest::FILE_NAME.to_owned(),
        },
        position: 0,
        offset: Offset::ZERO,
        intact_from: None,
        what,
        is_suspicious: false,
        meaning: "The broker refuses to open this log rather than hide its records: restore the manifest."
            .to_owned(),
    })
}

fn piece<'a>(disk: &'a dyn Disk, path: &Path, entry: SegmentEntry) -> io::Result<Piece<'a>> {
    let (len, is_missing) = match disk.open(path, OpenMode::Read) {
        Ok(file) => (file.len()?, false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => (0, true),
        Err(error) => return Err(error),
    };
    Ok(Piece {
        disk,
        path: path.to_owned(),
        entry,
        is_missing,
        start: 0,
        limit: entry.sealed.map_or(len, |sealed| sealed.len.min(len)),
        position: 0,
        end: entry.name.base_offset,
        frames: 0,
        last_append_time: Timestamp(i64::MIN),
        index: SegmentIndex::new(entry.name.base_offset),
    })
}

fn whole_log(manifest: &Manifest, point: Option<&Checkpoint>) -> Scan {
    let start = manifest.segments.first().map_or(manifest.log_start, |first| first.name.base_offset);
    Scan {
        seed: FrameSeed::new(manifest.partition),
        index_interval: u64::MAX,
        synced_end: point.map_or(start, |point| point.next_offset),
        expected: start,
        chain: (start == Offset::ZERO).then_some(Chain::START),
        last_append_time: Timestamp(i64::MIN),
        leader_epoch: Default::default(),
        floor: Offset::ZERO,
        epoch_starts: Vec::new(),
        totals: Totals::default(),
        is_behind: point.is_some_and(|point| point.is_behind),
        is_rewriting: false,
    }
}

/// What is missing from the end although the clean marker or the checkpoint says that it was synced.
fn lost_end(scan: &Scan, manifest: &Manifest, pieces: &[Piece<'_>]) -> Option<Corruption> {
    let end = scan.synced_end;
    if end <= scan.expected.max(manifest.log_start) {
        return None;
    }
    let last = pieces.last();
    Some(Corruption {
        offset: scan.expected,
        intact_from: end,
        segment: last.map_or(manifest::FILE_NAME.to_owned(), |last| last.entry.name.file(SegmentFile::Log)),
        position: last.map_or(0, |last| last.position),
        why: format!("the log ends here, and it was synced up to offset {end}"),
    })
}

/// Whether the log was closed in order where the scan stopped.
fn is_end(scan: &Scan, pieces: &[Piece<'_>], cut: &Cut, clean: &Checkpoint) -> bool {
    let piece = &pieces[cut.piece];
    let is_marked = clean.segment_serial == piece.entry.name.serial;
    let position = if is_marked { clean.position } else { 0 };
    let is_last = cut.piece + 1 == pieces.len();
    is_last && scan.expected == clean.next_offset && piece.position == position
}

fn torn_tail(scan: &Scan, pieces: &[Piece<'_>], cut: Cut) -> io::Result<Option<Finding>> {
    let Some(torn) = scan.torn_tail(pieces, &cut)? else {
        return Ok(None);
    };
    let (offset, synced_end) = (torn.offset, torn.synced_end);
    let suspicion = torn.suspicion.map_or(String::new(), |what| {
        format!(" An interrupted write seldom leaves this: {what}. Suspect the disk.")
    });
    Ok(Some(Finding {
        kind: FindingKind::TornTail,
        file_name: torn.segment,
        position: torn.position,
        offset,
        intact_from: None,
        what: torn.why,
        is_suspicious: torn.suspicion.is_some(),
        meaning: format!(
            "A write that was interrupted leaves such an end, and then nothing at or after offset {offset} was \
             acknowledged as being on disk. Damage after the write looks the same: all below offset {synced_end} is known \
             to have been synced, and what follows may have been acknowledged.{suspicion} The next start of the broker \
             cuts the log at offset {offset}."
        ),
    }))
}

impl Finding {
    /// Of what lies behind the end at which the log was closed in order.
    fn beyond_end(self) -> Finding {
        let meaning = format!(
            "The log was closed in order at offset {}, before this byte: no record of it is there. It is harmless: the \
             broker does not read it, and writes over it.",
            self.offset
        );
        Finding { kind: FindingKind::BeyondEnd, is_suspicious: false, meaning, ..self }
    }

    /// Of damage; whether it begins where the log was closed in order.
    fn corruption(corruption: &Corruption, is_beyond: bool) -> Finding {
        let (first, end) = (corruption.offset.0, corruption.intact_from.0);
        let affected = match end.saturating_sub(first) {
            0 if is_beyond => {
                format!(
                    "The log was closed in order at offset {first}: no record was there, and none is damaged"
                )
            }
            0 => format!(
                "No record at or after offset {first} is known to have been there, but some may have been"
            ),
            1 => format!("The record at offset {first} was on disk and is damaged"),
            _ => format!("The records at offsets {first} to {} were on disk and are damaged", end - 1),
        };
        Finding {
            kind: FindingKind::Corruption,
            file_name: corruption.segment.clone(),
            position: corruption.position,
            offset: corruption.offset,
            intact_from: Some(corruption.intact_from),
            what: corruption.why.clone(),
            is_suspicious: false,
            meaning: format!(
                "{affected}. The broker serves what is intact and takes no more records for this partition: restore it \
                 from a replica or a backup."
            ),
        }
    }
}

impl VerifyReport {
    fn new(log: LogReport, scan: &Scan, pieces: &[Piece<'_>], finding: Option<Finding>) -> VerifyReport {
        let segments = pieces.iter().map(|piece| SegmentCheck {
            file_name: piece.entry.name.file(SegmentFile::Log),
            base_offset: piece.entry.name.base_offset,
            end_offset: piece.end,
            frames: piece.frames,
            bytes: piece.position,
        });
        let Totals { frames, records, bytes, links } = scan.totals;
        VerifyReport {
            log,
            segments: segments.collect(),
            frames,
            records,
            bytes,
            links,
            end_offset: scan.expected,
            chain: scan.chain.filter(|_| frames > 0),
            finding,
        }
    }

    fn without_frames(log: LogReport, finding: Option<Finding>) -> VerifyReport {
        let end_offset = log.log_start;
        VerifyReport {
            log,
            segments: Vec::new(),
            frames: 0,
            records: 0,
            bytes: 0,
            links: 0,
            end_offset,
            chain: None,
            finding,
        }
    }
}
