//! What must hold after every step, whatever happened; and what must hold in the end.
//!
//! A frame's chain stands for everything before it. So the history of a partition is known by where its frames end and by the
//! chain there, and each broker's log is held against it frame by frame as it grows.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use quire_broker::simulation::PartitionHandle;
use quire_protocol::batch::{BatchHeader, Records};
use quire_protocol::frame::{Chain, FrameHeader, HEADER_LEN};
use quire_protocol::{BrokerId, LeaderEpoch, Offset, ProducerId, TopicPartition};
use quire_storage::{ReadError, Residency};

/// Bytes read at once; no log here comes near.
const READ_BYTES: usize = 4 * 1024 * 1024;

/// What a record says; every value is sent once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Value(pub u64);

/// Something that must never be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    /// Two histories up to a committed offset.
    TwoHistories { broker: BrokerId, partition: TopicPartition, end: Offset },
    /// Two batches of one leadership at one offset.
    TwoBatches { broker: BrokerId, partition: TopicPartition, offset: Offset, leader_epoch: LeaderEpoch },
    /// A record was acknowledged that is not committed, or at an offset that is not its own.
    FalseAcknowledgement { value: Value, partition: TopicPartition, offset: Offset },
    /// A producer's later record stands before an earlier one.
    Reordered { value: Value, offset: Offset, after: Offset },
    /// Whoever may be elected lacks what was committed.
    Lacks { broker: BrokerId, partition: TopicPartition, end: Offset, exposed: u64 },
    /// A settled leader knows of less than was shown before.
    WentBack { broker: BrokerId, partition: TopicPartition, shown: u64, knows: Offset },
    /// Committed records were cut off on a clean path.
    TookBack { broker: BrokerId, partition: TopicPartition, from: Offset, to: Offset },
    /// A consumer was given something else than what is committed where it was.
    FalseRead { consumer: u32, partition: TopicPartition, from: Offset, end: Offset },
    /// What a consumer has read is not there any more.
    ReadAndLost { partition: TopicPartition, read_to: Offset, ends: Offset },
    /// What was acknowledged is not there in the end.
    Lost { value: Value, partition: TopicPartition, offset: Offset },
    /// A value stands at two offsets.
    Duplicated { value: Value, partition: TopicPartition, offset: Offset, again: Offset },
    /// A value that was never written to any stream, or that nobody sent.
    Phantom { value: Value },
    /// Replicas differ in the end.
    Diverged { partition: TopicPartition, one: BrokerId, other: BrokerId, what: String },
    /// What is intact can not be read, or what was read is no batch.
    Unreadable { broker: BrokerId, partition: TopicPartition, what: String },
    /// Two producers were given the same ids.
    GivenTwice { first: u64, end: u64 },
    /// A group's members or offsets are not as they were told.
    Group { what: String },
    /// A committed entry of the metadata log does not fit, or brokers' metadata differ.
    Metadata { what: String },
    /// The faults are over, and it does not work.
    NotHealed { what: String },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Write {
    /// Not on any stream yet.
    Held,
    /// On a stream, at least once.
    Sent,
    Acknowledged(TopicPartition, Offset),
    /// Given up before it was on any stream.
    Failed,
    /// Given up, and may have been appended.
    Unknown,
}

/// A frame as a broker has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    base: Offset,
    /// The first offset after it.
    pub end: Offset,
    leader_epoch: LeaderEpoch,
    chain: Chain,
}

impl Frame {
    /// What a frame's header says of it.
    pub fn of(header: &FrameHeader) -> Frame {
        Frame {
            base: header.base_offset,
            end: header.next_offset(),
            leader_epoch: header.leader_epoch,
            chain: header.chain,
        }
    }
}

/// A broker's log of a partition, as last looked at.
#[derive(Debug, Default)]
struct Log {
    start: Offset,
    frames: Vec<Frame>,
    high_watermark: Offset,
}

/// Everything that was ever seen of a partition.
#[derive(Debug, Default)]
struct Truth {
    /// Whether nothing is acknowledged that is not synced.
    is_synced: bool,
    /// Its records are not clients' values.
    is_internal: bool,
    /// Somebody's log could not be read to its end, so that not all that was ever written is known.
    is_damaged: bool,
    /// Committed frames by where they end, as first exposed.
    committed: BTreeMap<u64, Chain>,
    /// The first offset that nobody ever exposed as committed.
    exposed: u64,
    /// The highest exposed by anybody that knew of this leadership and of no later one.
    exposed_by_epoch: BTreeMap<LeaderEpoch, u64>,
    /// Every frame that was ever in a log.
    written: BTreeMap<(LeaderEpoch, u64), Chain>,
    /// What stood at an offset with this chain before it.
    values: BTreeMap<(u64, LeaderEpoch), Value>,
    logs: BTreeMap<BrokerId, Log>,
}

/// Everything that was ever seen.
#[derive(Debug, Default)]
pub struct Invariants {
    partitions: BTreeMap<TopicPartition, Truth>,
    writes: BTreeMap<Value, Write>,
    /// How often a log was cut at its end.
    truncations: u64,
    /// Blocks of producer ids that brokers were given, by where they begin: where they end.
    blocks: BTreeMap<u64, u64>,
    /// Ids that producers were given.
    producers: BTreeSet<ProducerId>,
    /// The last frame that each consumer has read of each partition.
    consumed: BTreeMap<(u32, TopicPartition), Frame>,
    /// The last offset acknowledged to each producer of each partition, with the number of its send.
    acknowledged: BTreeMap<(u32, TopicPartition), BTreeMap<u64, Offset>>,
}

impl Invariants {
    /// A partition exists from here on.
    pub fn know(&mut self, partition: TopicPartition, is_synced: bool, is_internal: bool) {
        let truth = || Truth { is_synced, is_internal, ..Truth::default() };
        self.partitions.entry(partition).or_insert_with(truth);
    }

    /// The first offset of a partition that nobody ever exposed as committed.
    pub fn exposed(&self, partition: TopicPartition) -> u64 {
        self.partitions.get(&partition).map_or(0, |truth| truth.exposed)
    }

    /// Whether nothing of it is acknowledged that is not synced.
    pub fn is_synced(&self, partition: TopicPartition) -> bool {
        self.partitions.get(&partition).is_some_and(|truth| truth.is_synced)
    }

    /// How often a log was cut at its end.
    pub fn truncations(&self) -> u64 {
        self.truncations
    }

    /// A client took a value to be sent.
    pub fn taken(&mut self, value: Value) {
        self.writes.insert(value, Write::Held);
    }

    /// A batch goes out on a stream. What it says.
    pub fn sent(&mut self, batch: &bytes::Bytes) -> Vec<Value> {
        let values = values(batch).expect("a client's own batch");
        for value in &values {
            if let Some(write @ Write::Held) = self.writes.get_mut(value) {
                *write = Write::Sent;
            }
        }
        values
    }

    /// A client gave a value up.
    pub fn given_up(&mut self, value: Value) {
        if let Some(write) = self.writes.get_mut(&value) {
            *write = if *write == Write::Held { Write::Failed } else { Write::Unknown };
        }
    }

    /// Whether a write waits for its answer.
    pub fn has_open_writes(&self) -> bool {
        let is_open = |write: &Write| matches!(write, Write::Held | Write::Sent);
        self.writes.values().rev().take(100).any(is_open)
    }

    /// A write was acknowledged to a producer whose sends to the partition are numbered by their values.
    pub fn acknowledged(
        &mut self,
        client: u32,
        value: Value,
        partition: TopicPartition,
        offset: Offset,
        leader_epoch: LeaderEpoch,
    ) -> Result<(), Violation> {
        let truth = self.partitions.entry(partition).or_default();
        let is_its_own = truth.values.get(&(offset.0, leader_epoch)) == Some(&value);
        if (!is_its_own && !truth.is_damaged) || offset.0 >= truth.exposed {
            return Err(Violation::FalseAcknowledgement { value, partition, offset });
        }
        let own = self.acknowledged.entry((client, partition)).or_default();
        if truth.is_synced
            && let Some((_, after)) = own.range(..value.0).next_back()
            && *after >= offset
        {
            return Err(Violation::Reordered { value, offset, after: *after });
        }
        if truth.is_synced
            && let Some((later, before)) = own.range(value.0..).next()
            && *before <= offset
        {
            return Err(Violation::Reordered { value: Value(*later), offset: *before, after: offset });
        }
        own.insert(value.0, offset);
        self.writes.insert(value, Write::Acknowledged(partition, offset));
        Ok(())
    }

    /// A broker was given a block of producer ids, which nobody else is ever given.
    pub fn given(&mut self, first: u64, count: u64) -> Result<(), Violation> {
        let end = first + count;
        let before = self.blocks.range(..end).next_back();
        if first == 0 || before.is_some_and(|(_, before)| *before > first) {
            return Err(Violation::GivenTwice { first, end });
        }
        self.blocks.insert(first, end);
        Ok(())
    }

    /// A producer was given an id, which no other ever is.
    pub fn numbered(&mut self, producer: ProducerId) -> Result<(), Violation> {
        match self.producers.insert(producer) {
            true => Ok(()),
            false => Err(Violation::GivenTwice { first: producer.0, end: producer.0 + 1 }),
        }
    }

    /// A broker's process is gone; what its log is from here on it will tell.
    pub fn forget(&mut self, broker: BrokerId) {
        for truth in self.partitions.values_mut() {
            truth.logs.remove(&broker);
        }
    }

    /// Looks at what changed in a broker's log; whether anything did.
    pub fn look(&mut self, broker: BrokerId, handle: &PartitionHandle) -> Result<bool, Violation> {
        let partition = handle.id();
        let truth = self.partitions.entry(partition).or_default();
        let reader = handle.reader();
        let (start, end, high_watermark) = (reader.log_start(), reader.end_offset(), reader.high_watermark());
        let log = truth.logs.entry(broker).or_insert_with(|| Log { start, ..Log::default() });
        let known_end = log.frames.last().map_or(log.start, |frame| frame.end);
        if (log.start, known_end, log.high_watermark) == (start, end, high_watermark) {
            return Ok(false);
        }
        // Where it was cut, and what came instead.
        let is_kept = |frames: &[Frame]| {
            let last = frames.last().expect("not empty");
            last.end <= end && (last.end <= start || agrees(handle, frames))
        };
        let mut kept = log.frames.len();
        while kept > 0 && !is_kept(&log.frames[..kept]) {
            kept -= 1;
        }
        let cut_at = log.frames[..kept].last().map_or(log.start, |frame| frame.end);
        let begins_anew = start == end || start > cut_at;
        if kept < log.frames.len() && truth.is_synced && !begins_anew && cut_at < log.high_watermark {
            return Err(Violation::TookBack { broker, partition, from: cut_at, to: log.high_watermark });
        }
        self.truncations += u64::from(kept < log.frames.len());
        log.frames.truncate(kept);
        log.frames.retain(|frame| frame.end > start);
        log.start = start;
        let from = log.frames.last().map_or(start, |frame| frame.end);
        let read = frames(broker, handle, from, end, truth.is_internal)?;
        truth.is_damaged |= read.last().map_or(from, |(frame, _)| frame.end) < end;
        for (frame, found) in read {
            let key = (frame.leader_epoch, frame.base.0);
            if *truth.written.entry(key).or_insert(frame.chain) != frame.chain {
                let (offset, leader_epoch) = (frame.base, frame.leader_epoch);
                return Err(Violation::TwoBatches { broker, partition, offset, leader_epoch });
            }
            for (at, value) in found.into_iter().enumerate() {
                truth.values.insert((frame.base.0 + at as u64, frame.leader_epoch), value);
            }
            log.frames.push(frame);
        }
        log.high_watermark = high_watermark;
        truth.expose(broker, partition, handle.leader_epoch())?;
        Ok(true)
    }

    /// A consumer was given what comes next: that is what is committed, and nothing between is missing.
    pub fn consumed(
        &mut self,
        consumer: u32,
        partition: TopicPartition,
        from: Offset,
        frames: &[Frame],
    ) -> Result<(), Violation> {
        let Some(truth) = self.partitions.get(&partition) else { return Ok(()) };
        let mut next = from;
        for frame in frames {
            let known = truth.committed.get(&frame.end.0);
            // Of what is not synced other records may have taken the place.
            let is_it = match known {
                Some(chain) => *chain == frame.chain || !truth.is_synced,
                None => truth.is_damaged,
            };
            if !is_it || frame.base > next || frame.end <= next || (next > from && frame.base != next) {
                return Err(Violation::FalseRead { consumer, partition, from: next, end: frame.end });
            }
            next = frame.end;
        }
        if let Some(last) = frames.last() {
            self.consumed.insert((consumer, partition), *last);
        }
        Ok(())
    }

    /// A leader that knows how far the log is committed told a consumer that it has read beyond that. Whether that may be:
    /// what is not synced may be lost. One that does not know that another leads by now may know of less too, which is no
    /// reason to go back.
    pub fn ends_before(
        &self,
        partition: TopicPartition,
        read_to: Offset,
        ends: Offset,
        leader_epoch: LeaderEpoch,
    ) -> Result<bool, Violation> {
        let Some(truth) = self.partitions.get(&partition).filter(|truth| truth.is_synced) else {
            return Ok(true);
        };
        let shown = truth.exposed_by_epoch.range(..=leader_epoch).map(|(_, shown)| *shown).max();
        match shown.is_some_and(|shown| read_to.0 <= shown) {
            true => Err(Violation::ReadAndLost { partition, read_to, ends }),
            false => Ok(false),
        }
    }

    /// A leader tells readers where the end is.
    pub fn settled(
        &self,
        broker: BrokerId,
        partition: TopicPartition,
        leader_epoch: LeaderEpoch,
        knows: Offset,
    ) -> Result<(), Violation> {
        let Some(truth) = self.partitions.get(&partition) else { return Ok(()) };
        let shown = truth.exposed_by_epoch.range(..leader_epoch).map(|(_, shown)| *shown).max().unwrap_or(0);
        // Without syncs a loss of power takes what was shown.
        match knows.0 < shown && truth.is_synced {
            true => Err(Violation::WentBack { broker, partition, shown, knows }),
            false => Ok(()),
        }
    }

    /// In the end everything acknowledged is there, once, and nothing that was never sent. `logs` are all logs of all
    /// partitions that still exist and have a leader.
    pub fn check_final(&self, logs: &[PartitionHandle]) -> Result<u64, Violation> {
        let mut seen = BTreeMap::new();
        let mut there = BTreeMap::new();
        for handle in logs {
            let reader = handle.reader();
            let is_internal = self.partitions.get(&handle.id()).is_some_and(|truth| truth.is_internal);
            let read = frames(BrokerId(0), handle, reader.log_start(), reader.end_offset(), is_internal)?;
            if read.last().is_some_and(|(frame, _)| frame.end < reader.end_offset()) {
                let what = format!("after {:?}", read.last().map(|(frame, _)| frame.end));
                return Err(Violation::Unreadable { broker: BrokerId(0), partition: handle.id(), what });
            }
            for (frame, found) in read {
                for (at, value) in found.into_iter().enumerate() {
                    let again = Offset(frame.base.0 + at as u64);
                    if let Some(offset) = seen.insert(value, again) {
                        let partition = handle.id();
                        return Err(Violation::Duplicated { value, partition, offset, again });
                    }
                    if matches!(self.writes.get(&value), None | Some(Write::Failed | Write::Held)) {
                        return Err(Violation::Phantom { value });
                    }
                    there.insert((handle.id(), Offset(frame.base.0 + at as u64)), value);
                }
            }
        }
        let starts: BTreeMap<_, _> =
            logs.iter().map(|handle| (handle.id(), handle.reader().log_start())).collect();
        for handle in logs.iter().filter(|handle| self.is_synced(handle.id())) {
            let (partition, reader) = (handle.id(), handle.reader());
            for (_, read) in self.consumed.iter().filter(|((_, read), _)| *read == partition) {
                let is_kept = read.end > reader.log_start();
                if is_kept && (read.end > reader.end_offset() || !agrees(handle, &[*read])) {
                    let (read_to, ends) = (read.end, reader.end_offset());
                    return Err(Violation::ReadAndLost { partition, read_to, ends });
                }
            }
        }
        for (value, write) in &self.writes {
            match write {
                Write::Acknowledged(partition, offset) => {
                    // Deleted with its topic, or by retention.
                    let is_kept = starts.get(partition).is_some_and(|start| offset >= start);
                    let is_to_last = is_kept && self.partitions[partition].is_synced;
                    if is_to_last && there.get(&(*partition, *offset)) != Some(value) {
                        return Err(Violation::Lost {
                            value: *value,
                            partition: *partition,
                            offset: *offset,
                        });
                    }
                }
                Write::Held | Write::Sent => {
                    return Err(Violation::NotHealed { what: format!("value {} has no answer", value.0) });
                }
                Write::Failed | Write::Unknown => {}
            }
        }
        Ok(seen.len() as u64)
    }
}

impl Truth {
    /// A broker shows readers everything before its high watermark.
    fn expose(
        &mut self,
        broker: BrokerId,
        partition: TopicPartition,
        leader_epoch: LeaderEpoch,
    ) -> Result<(), Violation> {
        let log = &self.logs[&broker];
        let to = log.high_watermark;
        let first = log.frames.partition_point(|frame| frame.end.0 + 200 <= self.exposed.min(to.0));
        for frame in log.frames[first..].iter().take_while(|frame| frame.end <= to) {
            let known = *self.committed.entry(frame.end.0).or_insert(frame.chain);
            if known != frame.chain && self.is_synced {
                return Err(Violation::TwoHistories { broker, partition, end: frame.end });
            }
            // What is not synced may be lost, and other records take its place.
            self.committed.insert(frame.end.0, frame.chain);
        }
        self.exposed = self.exposed.max(to.0);
        let shown = self.exposed_by_epoch.entry(leader_epoch).or_default();
        *shown = to.0.max(*shown);
        Ok(())
    }
}

/// Whether a log still has the last of these frames.
fn agrees(handle: &PartitionHandle, frames: &[Frame]) -> bool {
    let Some(last) = frames.last() else { return true };
    match handle.reader().chain_at(last.end, Residency::Any) {
        Ok(found) => found == Some((last.end, last.chain)),
        // Damaged: whether it is the same can not be told.
        Err(ReadError::Corrupt { .. } | ReadError::Io { .. }) => true,
        Err(_) => false,
    }
}

/// The frames of a log in a range, with their values, as far as they can be read.
fn frames(
    broker: BrokerId,
    handle: &PartitionHandle,
    from: Offset,
    end: Offset,
    is_internal: bool,
) -> Result<Vec<(Frame, Vec<Value>)>, Violation> {
    let partition = handle.id();
    let mut found = Vec::new();
    let mut next = from;
    while next < end {
        let slice = match handle.reader().read(next, READ_BYTES, end, Residency::Any) {
            Ok(slice) => slice,
            // Damage is found, told and repaired elsewhere.
            Err(ReadError::Corrupt { .. } | ReadError::Io { .. }) => break,
            Err(error) => {
                return Err(Violation::Unreadable { broker, partition, what: error.to_string() });
            }
        };
        if slice.bytes == 0 {
            break;
        }
        let mut bytes: bytes::Bytes = slice.frames.concat().into();
        while !bytes.is_empty() {
            let header = FrameHeader::parse(&bytes).expect("a reader serves frames that it has checked");
            let frame = bytes.split_to(header.frame_len());
            let unreadable = |what| Violation::Unreadable { broker, partition, what };
            let values = match is_internal {
                true => Vec::new(),
                false => values(&frame.slice(HEADER_LEN..)).map_err(unreadable)?,
            };
            if header.next_offset() > next {
                found.push((Frame::of(&header), values));
            }
        }
        next = slice.next_offset;
    }
    Ok(found)
}

/// What a batch's records say.
fn values(batch: &bytes::Bytes) -> Result<Vec<Value>, String> {
    let header = BatchHeader::check_stored(batch).map_err(|error| error.to_string())?;
    let records = Records::open(&header, batch).map_err(|error| error.to_string())?;
    let value = |record: Result<quire_protocol::batch::RecordView, _>| match record {
        Ok(record) => match record.value.as_deref().and_then(|value| value.get(..8)) {
            Some(bytes) => Ok(Value(u64::from_le_bytes(bytes.try_into().expect("8 bytes")))),
            None => Err("a record without a value".to_owned()),
        },
        Err(error) => Err(format!("{error:?}")),
    };
    records.map(value).collect()
}
