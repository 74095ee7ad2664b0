//! What a replay would be, without playing it: from the offsets and the ends of each partition, or exactly, by reading
//! everything.

use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

use quire_protocol::{Offset, PartitionIndex, Timestamp};

use crate::consumer::{ConsumeError, Consumer};

use super::ReplayBuilder;
use super::tape::{Due, Speed};

/// How far before the end of a partition its last record is looked for. Not every offset holds a record.
const LOOKED_BACK: [u64; 4] = [1, 64, 4096, u64::MAX];

/// What lies in a replay's range, without its filters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// At most so many records: offsets in the range, not every one of which need hold a record.
    pub records_max: u64,
    /// The timestamp of the first record; `None` if there is none.
    pub first: Option<Timestamp>,
    /// The latest timestamp among the last records of all partitions. Where timestamps go back within a partition, there
    /// may be a later one.
    pub last: Option<Timestamp>,
}

/// What a replay hands out, and how long that takes if nothing and nobody is slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rehearsal {
    /// Records handed out, exactly.
    pub records: u64,
    /// The timestamp of the first of them; `None` if there is none.
    pub first: Option<Timestamp>,
    /// The latest of their timestamps.
    pub last: Option<Timestamp>,
    /// From the first record to the last.
    pub takes: Duration,
}

/// Offsets in these ranges.
pub(super) fn records(ranges: &[(PartitionIndex, Range<Offset>)]) -> u64 {
    ranges.iter().map(|(_, range)| range.end.since(range.start)).sum()
}

impl ReplayBuilder {
    /// What there is to replay, of offsets and of time. Reads the first and the last batch of each partition.
    ///
    /// # Errors
    /// As [`ReplayBuilder::build`], and if those records can not be read.
    pub async fn extent(&self) -> Result<Extent, ConsumeError> {
        self.tape()?;
        let mut consumer = self.glancing().build().await?;
        let ranges: BTreeMap<_, _> =
            consumer.ranges().into_iter().filter(|(_, range)| !range.is_empty()).collect();
        let records_max = ranges.values().map(|range| range.end.since(range.start)).sum();
        let first = consumer.next().await.transpose()?.map(|record| record.timestamp);
        let last = match first {
            Some(_) => last_of(&mut consumer, ranges).await?,
            None => None,
        };
        Ok(Extent { records_max, first, last })
    }

    /// Reads everything, as a replay flat out would, and tells what it would hand out, and how long it would take at its
    /// speed and with its longest gap.
    ///
    /// # Errors
    /// As [`ReplayBuilder::build`], and if a partition can not be read to its end.
    pub async fn rehearse(&self) -> Result<Rehearsal, ConsumeError> {
        let mut tape = self.tape()?;
        let mut replay = self.clone().speed(Speed::FlatOut).build().await?;
        let start = Instant::now();
        let mut now = start;
        let mut rehearsal = Rehearsal { records: 0, first: None, last: None, takes: Duration::ZERO };
        while let Some(record) = replay.next().await.transpose()? {
            if let Due::At(at) = tape.due(now, record.timestamp) {
                now = at;
            }
            tape.handed_out(now, record.timestamp);
            rehearsal.records += 1;
            rehearsal.first.get_or_insert(record.timestamp);
            rehearsal.last = rehearsal.last.max(Some(record.timestamp));
        }
        rehearsal.takes = now - start;
        Ok(rehearsal)
    }
}

/// The latest timestamp among the last records of these ranges.
async fn last_of(
    consumer: &mut Consumer,
    mut unseen: BTreeMap<PartitionIndex, Range<Offset>>,
) -> Result<Option<Timestamp>, ConsumeError> {
    let mut last = None;
    for back in LOOKED_BACK {
        for (partition, range) in &unseen {
            let from = Offset(range.end.0.saturating_sub(back)).max(range.start);
            consumer.jump_to(*partition, from);
        }
        while let Some(record) = consumer.next().await.transpose()? {
            unseen.remove(&record.partition);
            last = last.max(Some(record.timestamp));
        }
    }
    Ok(last)
}
