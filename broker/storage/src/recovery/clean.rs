//! Opening a log that was closed in order: nothing is scanned, nothing is written.

use std::sync::Arc;

use quire_protocol::ids::Timestamp;

use super::{Opening, Recovered, RecoveryReport, derived};
use crate::checkpoint::Checkpoint;
use crate::error::OpenError;
use crate::index::SegmentIndex;
use crate::log::Active;
use crate::manifest::{Manifest, SegmentFile, SegmentName};
use crate::segment::{Extent, Segment};

pub(super) fn open(
    opening: &Opening<'_>,
    manifest: Manifest,
    clean: Checkpoint,
) -> Result<Recovered, OpenError> {
    let suspicion = opening.noted_suspicion()?;
    let mut report = RecoveryReport { was_clean: true, suspicion, ..RecoveryReport::default() };
    let mut segments = Vec::with_capacity(manifest.segments.len());
    let mut active = None;
    for entry in &manifest.segments {
        let name = entry.name;
        let extent = match entry.sealed {
            Some(sealed) => Extent::of(&sealed),
            None => active_extent(name, &clean),
        };
        if extent.position > 0 {
            report.rebuilt.extend(missing_indexes(opening, name));
        }
        // An empty segment has nothing to load an index from.
        let index = (extent.position == 0).then(|| SegmentIndex::new(name.base_offset));
        let segment = Arc::new(opening.segment(name, extent, index));
        if entry.sealed.is_none() {
            active = Some(Active { segment: Arc::clone(&segment), file: None, writable: 0 });
        }
        segments.push(segment);
    }
    let epochs = derived::load_epochs(opening, &manifest, &clean, &mut report)?;
    Ok(Recovered {
        shared: opening.share(segments, manifest.log_start, &clean),
        manifest,
        active,
        tail: clean,
        epochs,
        checkpoint: clean.next_offset,
        is_marked_clean: true,
        is_cut_unstored: false,
        is_new: false,
        report,
    })
}

fn active_extent(name: SegmentName, clean: &Checkpoint) -> Extent {
    let is_empty = name.serial != clean.segment_serial;
    Extent {
        position: if is_empty { 0 } else { clean.position },
        end: clean.next_offset,
        // Learned when the segment is opened for writing.
        max_timestamp: if is_empty { Timestamp(i64::MIN) } else { Segment::TIMESTAMP_UNKNOWN },
        last_append_time: clean.last_append_time,
    }
}

/// They are rebuilt when a read needs them.
fn missing_indexes(opening: &Opening<'_>, name: SegmentName) -> impl Iterator<Item = String> {
    [SegmentFile::OffsetIndex, SegmentFile::TimeIndex]
        .map(|file| name.file(file))
        .into_iter()
        .filter(|file| !opening.has(file))
}
