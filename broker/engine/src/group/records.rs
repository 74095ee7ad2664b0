//! The records of the internal topic, each a key and a value or, where the thing is gone, none.
//!
//! ```text
//! key    | v | kind | group | member             of kinds 2, 3 and 4
//!        | 1 | 1    | text  | text
//!        | v | kind | group                      of kind 1
//!        | v | kind | group | topic | partition  of kind 5
//!        |   |      |       | 16    | u32
//!        | v | kind                              of kind 0, which says nothing
//! value  | v | fields, in the order of the struct
//! ```
//! Little-endian. A text is `u16` bytes of UTF-8, an optional field a byte 0 or 1 before it, a set a `u32` count before
//! its elements, which ascend strictly. Partitions are a set of topics, each with the set of its partitions' numbers.
//! A value's version is 1 but for a member's, which has had its last field, the principal, since version 2.
//! Every key's latest value is all that counts, so that compaction and a second reading change nothing.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quire_protocol::{LeaderEpoch, Offset, PartitionIndex, Timestamp, TopicId, TopicPartition, limits};

use super::assignment::Assignor;
use super::topics::Partitions;

const VERSION: u8 = 1;
/// Of a member that says whose it is.
const MEMBER_VERSION: u8 = 2;

/// A record as it is stored: its key, and its value unless it is a tombstone.
pub type KeyValue = (Bytes, Option<Bytes>);

/// The key of a record that says nothing, and has no value. Whoever gets one committed still leads.
pub const MARK_KEY: &[u8] = &[VERSION, 0];

/// Counts the assignments of a group; a member's epoch is the generation that it has reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Generation(pub i32);

impl Generation {
    /// The epoch of a member that joins.
    pub const JOINS: Generation = Generation(0);
    /// The epoch of a member that leaves.
    pub const LEAVES: Generation = Generation(-1);
    /// The epoch of a static member that leaves and will be back.
    pub const PAUSES: Generation = Generation(-2);

    /// The one after it.
    #[must_use]
    pub fn next(self) -> Generation {
        Generation(self.0.checked_add(1).expect("a group sees fewer than 2^31 changes"))
    }
}

impl std::fmt::Display for Generation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// How a group's members speak. Another number is for another protocol; one group never mixes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// Heartbeats with what a member owns, assignment by the coordinator.
    Native,
}

impl Protocol {
    /// The name that users see.
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Native => "native",
        }
    }
}

/// A group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupRecord {
    /// Its generation.
    pub generation: Generation,
    /// How its members speak.
    pub protocol: Protocol,
    /// How partitions are given to them.
    pub assignor: Assignor,
    /// When it came to be.
    pub created_at: Timestamp,
    /// Since when it has no members, if it has none.
    pub empty_since: Option<Timestamp>,
}

/// A member, as it said of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberRecord {
    /// Names it across restarts.
    pub instance: Option<Arc<str>>,
    /// Its rack.
    pub rack: Option<Arc<str>>,
    /// For people who look at the group.
    pub client: Arc<str>,
    /// Where it is.
    pub host: Arc<str>,
    /// Names of the topics that it subscribes to, existing or not.
    pub topics: BTreeSet<Arc<str>>,
    /// How it would have partitions given.
    pub assignor: Option<Assignor>,
    /// How long it may be silent, in whole milliseconds.
    pub session: Duration,
    /// How long it may take to give up partitions, in whole milliseconds; at least its session.
    pub rebalance: Duration,
    /// Who speaks for it, and nobody else; `None` for one that joined before this was kept.
    pub principal: Option<Arc<str>>,
}

/// What a member has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Current {
    /// The generation that it has reached; [`Generation::PAUSES`] while a static member is away.
    pub epoch: Generation,
    /// The epoch it had before.
    pub previous: Generation,
    /// Counts the changes of what it has.
    pub revision: u32,
    /// What is its own.
    pub assigned: Partitions,
    /// What it is to give up, and has not said it did.
    pub revoking: Partitions,
}

/// Up to where a group has processed a partition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// The next record to be processed.
    pub offset: Offset,
    /// Of the last record processed, if it is known.
    pub leader_epoch: Option<LeaderEpoch>,
    /// Whatever the committer wrote beside it.
    pub metadata: Arc<str>,
    /// When.
    pub committed_at: Timestamp,
}

/// One change: what a key stands for from here on, `None` if it is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// A group.
    Group {
        /// Its id.
        group: Arc<str>,
        /// It.
        value: Option<GroupRecord>,
    },
    /// A member.
    Member {
        /// Its group.
        group: Arc<str>,
        /// Its id.
        member: Arc<str>,
        /// It.
        value: Option<MemberRecord>,
    },
    /// What a member is to have, as of the group's generation.
    Target {
        /// Its group.
        group: Arc<str>,
        /// Its id.
        member: Arc<str>,
        /// All of it.
        value: Option<Partitions>,
    },
    /// What a member has.
    Current {
        /// Its group.
        group: Arc<str>,
        /// Its id.
        member: Arc<str>,
        /// All of it.
        value: Option<Current>,
    },
    /// A committed offset.
    Offset {
        /// The group.
        group: Arc<str>,
        /// The partition.
        partition: TopicPartition,
        /// It.
        value: Option<Committed>,
    },
}

/// Bytes that are not a record this version understands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Fewer bytes than it says, or more.
    #[error("a group record's {0} has another length than it says")]
    Length(&'static str),
    /// Another version's.
    #[error(
        "a group record's {what} has version {version}, at most {known} is known; a newer broker wrote it"
    )]
    Version {
        /// Key or value.
        what: &'static str,
        /// Its version.
        version: u8,
        /// The last one that is known here.
        known: u8,
    },
    /// A batch that holds no records that can be taken apart.
    #[error("the batch at offset {0} holds no group records that this version can read")]
    Batch(Offset),
    /// A value that none has.
    #[error("a group record has an impossible {0}")]
    Field(&'static str),
}

impl Record {
    /// The group it belongs to.
    pub fn group(&self) -> &Arc<str> {
        match self {
            Record::Group { group, .. }
            | Record::Member { group, .. }
            | Record::Target { group, .. }
            | Record::Current { group, .. }
            | Record::Offset { group, .. } => group,
        }
    }

    /// The record as it is stored.
    pub fn encode(&self) -> KeyValue {
        let mut key = Writer(vec![VERSION]);
        let value = match self {
            Record::Group { group, value } => {
                key.u8(1).text(group);
                value.as_ref().map(encode_group)
            }
            Record::Member { group, member, value } => {
                key.u8(2).text(group).text(member);
                value.as_ref().map(encode_member)
            }
            Record::Target { group, member, value } => {
                key.u8(3).text(group).text(member);
                value.as_ref().map(encode_target)
            }
            Record::Current { group, member, value } => {
                key.u8(4).text(group).text(member);
                value.as_ref().map(encode_current)
            }
            Record::Offset { group, partition, value } => {
                key.u8(5).text(group).bytes(&partition.topic.0).u32(partition.partition.0);
                value.as_ref().map(encode_committed)
            }
        };
        (key.0.into(), value.map(Bytes::from))
    }

    /// Reads a stored record.
    ///
    /// # Errors
    /// If the bytes are none, or one of a newer version. Nothing is allocated that they do not fill.
    pub fn decode(key: &[u8], value: Option<&[u8]>) -> Result<Record, DecodeError> {
        let mut key = Fields { rest: key, what: "key", version: VERSION };
        key.read_version(VERSION)?;
        let kind = key.u8()?;
        let group = key.text(limits::GROUP_ID_BYTES_MAX)?;
        let record = match kind {
            1 => Record::Group { group, value: decode_value(value, VERSION, decode_group)? },
            2 => Record::Member {
                group,
                member: key.member()?,
                value: decode_value(value, MEMBER_VERSION, decode_member)?,
            },
            3 => Record::Target {
                group,
                member: key.member()?,
                value: decode_value(value, VERSION, |fields| fields.partitions())?,
            },
            4 => Record::Current {
                group,
                member: key.member()?,
                value: decode_value(value, VERSION, decode_current)?,
            },
            5 => {
                let topic = TopicId(key.take()?);
                let partition = TopicPartition { topic, partition: PartitionIndex(key.u32()?) };
                Record::Offset { group, partition, value: decode_value(value, VERSION, decode_committed)? }
            }
            _ => return Err(DecodeError::Field("kind")),
        };
        key.end()?;
        Ok(record)
    }
}

fn encode_group(group: &GroupRecord) -> Vec<u8> {
    let mut out = Writer(vec![VERSION]);
    let protocol = match group.protocol {
        Protocol::Native => 1,
    };
    out.u32(group.generation.0 as u32).u8(protocol).u8(assignor_number(group.assignor));
    out.i64(group.created_at.0);
    out.option(group.empty_since, |out, since| out.i64(since.0));
    out.0
}

fn decode_group(fields: &mut Fields<'_>) -> Result<GroupRecord, DecodeError> {
    let generation = fields.generation()?;
    if generation.0 < 0 {
        return Err(DecodeError::Field("generation"));
    }
    let protocol = match fields.u8()? {
        1 => Protocol::Native,
        _ => return Err(DecodeError::Field("protocol")),
    };
    Ok(GroupRecord {
        generation,
        protocol,
        assignor: fields.assignor()?,
        created_at: Timestamp(fields.i64()?),
        empty_since: fields.option(|fields| fields.i64().map(Timestamp))?,
    })
}

fn encode_member(member: &MemberRecord) -> Vec<u8> {
    let mut out = Writer(vec![if member.principal.is_some() { MEMBER_VERSION } else { VERSION }]);
    out.option(member.instance.as_ref(), |out, text| out.text(text));
    out.option(member.rack.as_ref(), |out, text| out.text(text));
    out.text(&member.client).text(&member.host);
    out.u32(member.topics.len() as u32);
    for topic in &member.topics {
        out.text(topic);
    }
    out.option(member.assignor, |out, assignor| out.u8(assignor_number(assignor)));
    out.u32(member.session.as_millis() as u32).u32(member.rebalance.as_millis() as u32);
    if let Some(principal) = &member.principal {
        out.text(principal);
    }
    out.0
}

fn decode_member(fields: &mut Fields<'_>) -> Result<MemberRecord, DecodeError> {
    let instance = fields.option(|fields| fields.text(limits::GROUP_TEXT_BYTES_MAX))?;
    let rack = fields.option(|fields| fields.text(limits::GROUP_TEXT_BYTES_MAX))?;
    let client = fields.text(limits::GROUP_TEXT_BYTES_MAX)?;
    let host = fields.text(limits::GROUP_TEXT_BYTES_MAX)?;
    let mut topics = BTreeSet::new();
    for _ in 0..fields.u32()? {
        let topic = fields.text(limits::TOPIC_NAME_BYTES_MAX)?;
        if topics.last().is_some_and(|last| *last >= topic) {
            return Err(DecodeError::Field("order of topics"));
        }
        topics.insert(topic);
    }
    let assignor = fields.option(Fields::assignor)?;
    let session = Duration::from_millis(fields.u32()?.into());
    let rebalance = Duration::from_millis(fields.u32()?.into());
    let has_principal = fields.version >= MEMBER_VERSION;
    let principal = has_principal.then(|| fields.text(limits::PRINCIPAL_BYTES_MAX)).transpose()?;
    Ok(MemberRecord { instance, rack, client, host, topics, assignor, session, rebalance, principal })
}

fn encode_target(target: &Partitions) -> Vec<u8> {
    let mut out = Writer(vec![VERSION]);
    out.partitions(target);
    out.0
}

fn encode_current(current: &Current) -> Vec<u8> {
    let mut out = Writer(vec![VERSION]);
    out.u32(current.epoch.0 as u32).u32(current.previous.0 as u32).u32(current.revision);
    out.partitions(&current.assigned).partitions(&current.revoking);
    out.0
}

fn decode_current(fields: &mut Fields<'_>) -> Result<Current, DecodeError> {
    let current = Current {
        epoch: fields.generation()?,
        previous: fields.generation()?,
        revision: fields.u32()?,
        assigned: fields.partitions()?,
        revoking: fields.partitions()?,
    };
    if !current.assigned.is_disjoint(&current.revoking) {
        return Err(DecodeError::Field("partition, kept and given up"));
    }
    Ok(current)
}

fn encode_committed(committed: &Committed) -> Vec<u8> {
    let mut out = Writer(vec![VERSION]);
    out.i64(committed.offset.0 as i64);
    out.option(committed.leader_epoch, |out, epoch| out.u32(epoch.0));
    out.text(&committed.metadata).i64(committed.committed_at.0);
    out.0
}

fn decode_committed(fields: &mut Fields<'_>) -> Result<Committed, DecodeError> {
    let offset = Offset(fields.i64()? as u64);
    if offset > Offset::MAX {
        return Err(DecodeError::Field("offset"));
    }
    Ok(Committed {
        offset,
        leader_epoch: fields.option(|fields| fields.u32().map(LeaderEpoch))?,
        metadata: fields.text(limits::COMMIT_METADATA_BYTES_MAX)?,
        committed_at: Timestamp(fields.i64()?),
    })
}

fn decode_value<T>(
    value: Option<&[u8]>,
    known: u8,
    decode: impl Fn(&mut Fields<'_>) -> Result<T, DecodeError>,
) -> Result<Option<T>, DecodeError> {
    let Some(value) = value else { return Ok(None) };
    let mut fields = Fields { rest: value, what: "value", version: VERSION };
    fields.read_version(known)?;
    let decoded = decode(&mut fields)?;
    fields.end()?;
    Ok(Some(decoded))
}

fn assignor_number(assignor: Assignor) -> u8 {
    match assignor {
        Assignor::Range => 1,
        Assignor::RoundRobin => 2,
        Assignor::Sticky => 3,
    }
}

/// Puts fields one behind the other.
struct Writer(Vec<u8>);

impl Writer {
    fn bytes(&mut self, bytes: &[u8]) -> &mut Writer {
        self.0.extend_from_slice(bytes);
        self
    }

    fn u8(&mut self, value: u8) -> &mut Writer {
        self.bytes(&[value])
    }

    fn u32(&mut self, value: u32) -> &mut Writer {
        self.bytes(&value.to_le_bytes())
    }

    fn i64(&mut self, value: i64) -> &mut Writer {
        self.bytes(&value.to_le_bytes())
    }

    /// Whatever is stored was held against its limit, which fits 16 bits.
    fn text(&mut self, text: &str) -> &mut Writer {
        let length = u16::try_from(text.len()).expect("a text that is stored is within its limit");
        self.bytes(&length.to_le_bytes()).bytes(text.as_bytes())
    }

    fn option<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Writer, T) -> &mut Writer) {
        self.u8(value.is_some().into());
        if let Some(value) = value {
            write(self, value);
        }
    }

    fn partitions(&mut self, partitions: &Partitions) -> &mut Writer {
        let topics: BTreeSet<TopicId> = partitions.iter().map(|partition| partition.topic).collect();
        self.u32(topics.len() as u32);
        let mut rest = partitions.iter().peekable();
        for topic in topics {
            self.bytes(&topic.0);
            let count_at = self.0.len();
            self.u32(0);
            let mut count = 0u32;
            while let Some(partition) = rest.next_if(|partition| partition.topic == topic) {
                self.u32(partition.partition.0);
                count += 1;
            }
            self.0[count_at..count_at + 4].copy_from_slice(&count.to_le_bytes());
        }
        self
    }
}

/// Takes fields off the front.
struct Fields<'a> {
    rest: &'a [u8],
    what: &'static str,
    version: u8,
}

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (field, rest) = self.rest.split_first_chunk::<N>().ok_or(DecodeError::Length(self.what))?;
        self.rest = rest;
        Ok(*field)
    }

    fn u8(&mut self) -> Result<u8, DecodeError> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        self.take().map(u32::from_le_bytes)
    }

    fn i64(&mut self) -> Result<i64, DecodeError> {
        self.take().map(i64::from_le_bytes)
    }

    fn read_version(&mut self, known: u8) -> Result<(), DecodeError> {
        self.version = self.u8()?;
        if !(VERSION..=known).contains(&self.version) {
            return Err(DecodeError::Version { what: self.what, version: self.version, known });
        }
        Ok(())
    }

    fn end(&self) -> Result<(), DecodeError> {
        if self.rest.is_empty() { Ok(()) } else { Err(DecodeError::Length(self.what)) }
    }

    fn text(&mut self, length_max: usize) -> Result<Arc<str>, DecodeError> {
        let length = usize::from(u16::from_le_bytes(self.take()?));
        if length > length_max {
            return Err(DecodeError::Field("length of a text"));
        }
        let (text, rest) = self.rest.split_at_checked(length).ok_or(DecodeError::Length(self.what))?;
        self.rest = rest;
        std::str::from_utf8(text).map(Arc::from).map_err(|_| DecodeError::Field("text"))
    }

    fn member(&mut self) -> Result<Arc<str>, DecodeError> {
        self.text(limits::GROUP_MEMBER_ID_BYTES_MAX)
    }

    fn generation(&mut self) -> Result<Generation, DecodeError> {
        let generation = Generation(self.u32()? as i32);
        if generation < Generation::PAUSES {
            return Err(DecodeError::Field("epoch"));
        }
        Ok(generation)
    }

    fn assignor(&mut self) -> Result<Assignor, DecodeError> {
        let number = self.u8()?;
        let known = Assignor::ALL.into_iter().find(|assignor| assignor_number(*assignor) == number);
        known.ok_or(DecodeError::Field("assignor"))
    }

    fn option<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Option<T>, DecodeError> {
        match self.u8()? {
            0 => Ok(None),
            1 => read(self).map(Some),
            _ => Err(DecodeError::Field("mark of an optional field")),
        }
    }

    fn partitions(&mut self) -> Result<Partitions, DecodeError> {
        let mut partitions = Partitions::new();
        let mut last = None;
        for _ in 0..self.u32()? {
            let topic = TopicId(self.take()?);
            let count = self.u32()?;
            if count == 0 || last.is_some_and(|last| topic <= last) {
                return Err(DecodeError::Field("set of topics"));
            }
            last = Some(topic);
            for _ in 0..count {
                let partition = TopicPartition { topic, partition: PartitionIndex(self.u32()?) };
                if partitions.last().is_some_and(|last| *last >= partition) {
                    return Err(DecodeError::Field("order of partitions"));
                }
                partitions.insert(partition);
            }
        }
        Ok(partitions)
    }
}
