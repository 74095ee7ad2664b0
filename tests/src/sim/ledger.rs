//! What the internal topic's log says of groups, as it is committed: what members were told is held against it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use quire_broker::simulation::PartitionHandle;
use quire_engine::group::records::{Current, DecodeError, KeyValue, MARK_KEY};
use quire_engine::group::{Generation, GroupSettings, Groups, Partitions, Record, Topics};
use quire_engine::machine::Replicated;
use quire_protocol::batch::{BatchHeader, RecordView, Records};
use quire_protocol::frame::{FrameHeader, HEADER_LEN};
use quire_protocol::{Offset, PartitionIndex, TopicPartition};
use quire_storage::{ReadError, Residency};

use super::invariants::Violation;

/// Bytes read at once.
const READ_BYTES: usize = 1024 * 1024;

/// Offsets of a group.
pub type Offsets = BTreeMap<TopicPartition, u64>;

/// Everything that was ever committed about groups.
#[derive(Debug, Default)]
pub struct Ledger {
    /// Up to where each log is known, and to where it was seen to be committed.
    read: BTreeMap<TopicPartition, (Offset, Offset)>,
    groups: BTreeMap<Arc<str>, Book>,
}

/// A group.
#[derive(Debug, Default)]
struct Book {
    /// The partition of the internal topic that it is kept in.
    kept_in: Option<TopicPartition>,
    members: BTreeMap<Arc<str>, Current>,
    offsets: Offsets,
    /// What somebody was told is committed.
    told: Offsets,
}

impl Ledger {
    /// Looks at what a replica of the internal topic shows as committed.
    pub fn look(&mut self, handle: &PartitionHandle) -> Result<(), Violation> {
        let (read, shown) = self.read.entry(handle.id()).or_default();
        let high = handle.reader().high_watermark();
        *shown = high.max(*shown);
        if *read >= high {
            return Ok(());
        }
        // What is damaged here, another replica shows.
        let Ok(batches) = records(handle, *read, high) else { return Ok(()) };
        *read = high;
        for batch in batches {
            self.add(handle.id(), batch).map_err(|what| Violation::Group { what })?;
        }
        Ok(())
    }

    /// Adds a batch, and says what is wrong with what follows from it.
    fn add(&mut self, id: TopicPartition, batch: Vec<KeyValue>) -> Result<(), String> {
        for (key, value) in batch.iter().filter(|(key, _)| key != MARK_KEY) {
            let record = Record::decode(key, value.as_deref()).map_err(|error| error.to_string())?;
            let book = self.groups.entry(record.group().clone()).or_default();
            if *book.kept_in.get_or_insert(id) != id {
                return Err(format!("{} is kept in {id} too", record.group()));
            }
            match record {
                Record::Current { member, value: Some(current), .. } => {
                    book.members.insert(member, current);
                }
                Record::Current { member, value: None, .. } => drop(book.members.remove(&member)),
                Record::Offset { partition, value: Some(committed), .. } => {
                    let before = book.offsets.insert(partition, committed.offset.0);
                    if before.is_some_and(|before| before > committed.offset.0) {
                        return Err(format!("the offset of {partition} goes back in the log"));
                    }
                }
                // Its topic is deleted.
                Record::Offset { partition, value: None, .. } => {
                    book.offsets.remove(&partition);
                    book.told.remove(&partition);
                }
                _ => {}
            }
        }
        for (group, book) in &self.groups {
            let mut held = Partitions::new();
            let mut owned = book.members.values().flat_map(|has| has.assigned.iter().chain(&has.revoking));
            if let Some(twice) = owned.find(|partition| !held.insert(**partition)) {
                return Err(format!("{twice} has two owners in the log of {group}"));
            }
        }
        Ok(())
    }

    /// In which epoch a member of a group is.
    pub fn epoch(&self, group: &str, member: &str) -> Option<Generation> {
        Some(self.groups.get(group)?.members.get(member)?.epoch)
    }

    /// What the members of a group have, by their ids.
    pub fn members(&self, group: &str) -> BTreeMap<Arc<str>, Current> {
        self.groups.get(group).map(|book| book.members.clone()).unwrap_or_default()
    }

    /// What somebody was told is committed in a group.
    pub fn told(&self, group: &str) -> Offsets {
        self.groups.get(group).map(|book| book.told.clone()).unwrap_or_default()
    }

    /// Somebody is told that an offset is committed: then it is, or a later one.
    pub fn tell(
        &mut self,
        group: &Arc<str>,
        partition: TopicPartition,
        offset: u64,
    ) -> Result<(), Violation> {
        let book = self.groups.entry(group.clone()).or_default();
        let is_known = book.kept_in.is_some_and(|id| {
            let (read, shown) = self.read[&id];
            read >= shown
        });
        if is_known && book.offsets.get(&partition).is_none_or(|committed| *committed < offset) {
            let what = format!("{group} was told that {offset} of {partition} is committed, and it is not");
            return Err(Violation::Group { what });
        }
        let told = book.told.entry(partition).or_default();
        *told = offset.max(*told);
        Ok(())
    }
}

/// The number of the partition of the internal topic that a group is kept in.
pub fn partition_of(group: &str, partitions: usize) -> PartitionIndex {
    PartitionIndex((group.len() % partitions.max(1)) as u32)
}

/// The groups that records stand for.
///
/// # Errors
/// If they are something else.
pub fn rebuilt(
    batches: &[Vec<KeyValue>],
    settings: GroupSettings,
    topics: Arc<Topics>,
) -> Result<Groups, DecodeError> {
    let mut groups = Groups::new(settings, topics);
    for (key, value) in batches.iter().flatten().filter(|(key, _)| key != MARK_KEY) {
        let Ok(()) = groups.apply(&Record::decode(key, value.as_deref())?);
    }
    Ok(groups)
}

/// What a log says between two offsets, batch by batch.
///
/// # Errors
/// If it can not be read.
pub fn records(
    handle: &PartitionHandle,
    from: Offset,
    below: Offset,
) -> Result<Vec<Vec<KeyValue>>, ReadError> {
    let (mut next, mut batches) = (from, Vec::new());
    while next < below {
        let slice = handle.reader().read(next, READ_BYTES, below, Residency::Any)?;
        let mut bytes: Bytes = slice.frames.concat().into();
        while !bytes.is_empty() {
            let frame = FrameHeader::parse(&bytes).expect("a reader serves frames that it has checked");
            let batch = bytes.split_to(frame.frame_len()).split_off(HEADER_LEN);
            let header = BatchHeader::parse(&batch).expect("it was checked when it was appended");
            let records = Records::open(&header, &batch).expect("a coordinator's own batch");
            let record = |record: Result<RecordView, _>| {
                let record = record.expect("a coordinator's own record");
                (record.key.unwrap_or_default(), record.value)
            };
            batches.push(records.map(record).collect());
        }
        next = slice.next_offset;
    }
    Ok(batches)
}
