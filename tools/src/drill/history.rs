//! A history: what clients asked for, what they were answered and what they read, in the order in which it happened.
//!
//! Every operation is one line of text, so that the history of a failed run can be read, searched and checked again:
//! ```text
//! INDEX MICROSECONDS PROCESS KIND   ACTION
//! 4     120533       2       invoke send 5a…-3 2:17
//! 9     124870       2       ok     send 5a…-3 2:17 at 400 epoch 3
//! 11    130001       5       ok     poll live 5a…-3 400=2:17 401=1:9
//! ```
//! A send is completed by naming its value again, because one process may have many on their way.

use std::fmt;
use std::io::{self, Write};
use std::str::FromStr;
use std::time::Duration;

use quire_protocol::frame::Chain;
use quire_protocol::{BrokerId, LeaderEpoch, Offset, TopicPartition};

/// Whoever does one thing after the other: a producer, a consumer, the one who reads replicas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Process(pub u32);

/// What a record says: no two records that are sent say the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Value {
    /// The producer that made it.
    pub producer: u32,
    /// How many it made before.
    pub counter: u64,
}

impl Value {
    /// Stands for a record that no producer can have made: it says nothing that can be read, or its bytes are not those
    /// of its value. It is the same wherever the same bytes are, which `digest` stands for.
    pub fn unreadable(digest: u64) -> Value {
        Value { producer: u32::MAX, counter: digest }
    }
}

/// Where an operation stands in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It was asked for.
    Invoke,
    /// It certainly happened.
    Ok,
    /// It certainly did not happen.
    Fail,
    /// Nobody knows whether it happened, or it is nothing that a client asked for.
    Info,
}

/// What the reads of a poll count for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// While there is load, and faults.
    Live,
    /// After both, when everything is read once more from its beginning.
    Final,
}

/// One record as it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Read {
    /// Where it stood.
    pub offset: Offset,
    /// What it said.
    pub value: Value,
}

/// What an operation is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// A value is appended to a partition.
    Send {
        /// The partition.
        partition: TopicPartition,
        /// The value.
        value: Value,
        /// Where it came to stand; of an `Ok` alone.
        offset: Option<Offset>,
        /// The leadership that it was appended in, as its acknowledgement says; of an `Ok` alone.
        epoch: Option<LeaderEpoch>,
    },
    /// A process begins to read a partition here, with nothing in hand of what it read before.
    Seek {
        /// The partition.
        partition: TopicPartition,
        /// The next offset it should be given.
        offset: Offset,
    },
    /// Records that a process was given, in order, of one partition that was assigned to it alone. Without a seek before it
    /// the first one of a process may be anywhere.
    Poll {
        /// The partition.
        partition: TopicPartition,
        /// What the read counts for.
        phase: Phase,
        /// The records.
        records: Vec<Read>,
    },
    /// Records below the high watermark that one replica holds, in order; a replica is read in one pass, in as many of these
    /// as it takes.
    Replica {
        /// The partition.
        partition: TopicPartition,
        /// Whose replica.
        broker: BrokerId,
        /// The records.
        records: Vec<Read>,
    },
    /// A frame below the high watermark that one replica holds; its records are told as well.
    Frame {
        /// The partition.
        partition: TopicPartition,
        /// Whose replica.
        broker: BrokerId,
        /// Its first record's.
        offset: Offset,
        /// The leadership that it was appended in.
        epoch: LeaderEpoch,
        /// The chain up to and including it.
        chain: Chain,
    },
    /// A replica was read from `from` to `to`, and all that was found there has been told.
    ReplicaRead {
        /// The partition.
        partition: TopicPartition,
        /// Whose replica.
        broker: BrokerId,
        /// Its log start offset.
        from: Offset,
        /// Its high watermark.
        to: Offset,
    },
    /// Records below this offset are gone for good, whoever asks from now on.
    LogStart {
        /// The partition.
        partition: TopicPartition,
        /// The log start offset.
        offset: Offset,
    },
    /// Something that happened around the clients: a fault and its end.
    Note(String),
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// Its place in the history, from 0.
    pub index: u64,
    /// Since the history began.
    pub time: Duration,
    /// Whose it is.
    pub process: Process,
    /// Where it stands in its life.
    pub kind: Kind,
    /// What it is about.
    pub action: Action,
}

/// Numbers operations, and keeps them where they are wanted: the one place that decides what happened before what.
#[derive(Debug)]
pub struct Recorder<W> {
    next_index: u64,
    writer: W,
}

impl<W: Write> Recorder<W> {
    /// Writes to `writer`, one line an operation.
    pub fn new(writer: W) -> Recorder<W> {
        Recorder { next_index: 0, writer }
    }

    /// Gives the operation its place, and writes it down.
    ///
    /// # Errors
    /// If it can not be written.
    pub fn record(
        &mut self,
        time: Duration,
        process: Process,
        kind: Kind,
        action: Action,
    ) -> io::Result<Operation> {
        let operation = Operation { index: self.next_index, time, process, kind, action };
        self.next_index += 1;
        writeln!(self.writer, "{operation}")?;
        Ok(operation)
    }

    /// Hands over to the system what is still in hand.
    ///
    /// # Errors
    /// If it can not be written.
    pub fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.producer, self.counter)
    }
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Invoke => "invoke",
            Kind::Ok => "ok",
            Kind::Fail => "fail",
            Kind::Info => "info",
        })
    }
}

impl fmt::Display for Read {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.offset, self.value)
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, records: &[Read]| {
            records.iter().try_for_each(|record| write!(f, " {record}"))
        };
        match self {
            Action::Send { partition, value, offset, epoch } => {
                write!(f, "send {partition} {value}")?;
                offset.iter().try_for_each(|offset| write!(f, " at {offset}"))?;
                epoch.iter().try_for_each(|epoch| write!(f, " epoch {epoch}"))
            }
            Action::Seek { partition, offset } => write!(f, "seek {partition} {offset}"),
            Action::Poll { partition, phase, records } => {
                let phase = if *phase == Phase::Live { "live" } else { "final" };
                write!(f, "poll {phase} {partition}")?;
                list(f, records)
            }
            Action::Replica { partition, broker, records } => {
                write!(f, "replica {partition} {broker}")?;
                list(f, records)
            }
            Action::Frame { partition, broker, offset, epoch, chain } => {
                write!(f, "frame {partition} {broker} {offset} {epoch} {chain}")
            }
            Action::ReplicaRead { partition, broker, from, to } => {
                write!(f, "replica-read {partition} {broker} {from} {to}")
            }
            Action::LogStart { partition, offset } => write!(f, "log-start {partition} {offset}"),
            Action::Note(text) => write!(f, "note {}", text.replace('\n', " ")),
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Operation { index, time, process, kind, action } = self;
        write!(f, "{index} {} {process} {kind} {action}", time.as_micros())
    }
}

/// A line that is no operation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a line of a history: {0:?}")]
pub struct InvalidOperation(String);

impl FromStr for Operation {
    type Err = InvalidOperation;

    fn from_str(line: &str) -> Result<Operation, InvalidOperation> {
        parse(line).ok_or_else(|| InvalidOperation(line.chars().take(120).collect()))
    }
}

fn parse(line: &str) -> Option<Operation> {
    let mut words = line.splitn(5, ' ');
    let index = words.next()?.parse().ok()?;
    let time = Duration::from_micros(words.next()?.parse().ok()?);
    let process = Process(words.next()?.parse().ok()?);
    let kind = match words.next()? {
        "invoke" => Kind::Invoke,
        "ok" => Kind::Ok,
        "fail" => Kind::Fail,
        "info" => Kind::Info,
        _ => return None,
    };
    Some(Operation { index, time, process, kind, action: parse_action(words.next()?)? })
}

fn parse_action(text: &str) -> Option<Action> {
    let (name, rest) = text.split_once(' ')?;
    if name == "note" {
        return Some(Action::Note(rest.to_owned()));
    }
    let mut words = rest.split(' ');
    let phase = match name {
        "poll" => Some(if words.next()? == "live" { Phase::Live } else { Phase::Final }),
        _ => None,
    };
    let partition = parse_partition(words.next()?)?;
    let action = match name {
        "send" => {
            let value = parse_value(words.next()?)?;
            let (mut offset, mut epoch) = (None, None);
            while let Some(word) = words.next() {
                match word {
                    "at" if offset.is_none() && epoch.is_none() => {
                        offset = Some(parse_offset(words.next()?)?);
                    }
                    "epoch" if epoch.is_none() => epoch = Some(parse_epoch(words.next()?)?),
                    _ => return None,
                }
            }
            Action::Send { partition, value, offset, epoch }
        }
        "seek" => Action::Seek { partition, offset: parse_offset(words.next()?)? },
        "log-start" => Action::LogStart { partition, offset: parse_offset(words.next()?)? },
        "poll" => {
            let records = words.by_ref().map(parse_read).collect::<Option<_>>()?;
            Action::Poll { partition, phase: phase?, records }
        }
        "replica" => {
            let broker = BrokerId(words.next()?.parse().ok()?);
            let records = words.by_ref().map(parse_read).collect::<Option<_>>()?;
            Action::Replica { partition, broker, records }
        }
        "frame" => {
            let broker = BrokerId(words.next()?.parse().ok()?);
            let (offset, epoch) = (parse_offset(words.next()?)?, parse_epoch(words.next()?)?);
            let chain = parse_chain(words.next()?)?;
            Action::Frame { partition, broker, offset, epoch, chain }
        }
        "replica-read" => {
            let broker = BrokerId(words.next()?.parse().ok()?);
            let (from, to) = (parse_offset(words.next()?)?, parse_offset(words.next()?)?);
            Action::ReplicaRead { partition, broker, from, to }
        }
        _ => return None,
    };
    words.next().is_none().then_some(action)
}

fn parse_partition(word: &str) -> Option<TopicPartition> {
    let (topic, partition) = word.split_once('-')?;
    let partition = quire_protocol::PartitionIndex(partition.parse().ok()?);
    Some(TopicPartition { topic: topic.parse().ok()?, partition })
}

fn parse_value(word: &str) -> Option<Value> {
    let (producer, counter) = word.split_once(':')?;
    Some(Value { producer: producer.parse().ok()?, counter: counter.parse().ok()? })
}

fn parse_offset(word: &str) -> Option<Offset> {
    word.parse().ok().map(Offset)
}

fn parse_epoch(word: &str) -> Option<LeaderEpoch> {
    word.parse().ok().map(LeaderEpoch)
}

fn parse_chain(word: &str) -> Option<Chain> {
    let mut chain = Chain::START;
    let digits = word.as_bytes().chunks_exact(2).map(|pair| std::str::from_utf8(pair).ok());
    for (byte, digits) in chain.0.iter_mut().zip(digits) {
        *byte = u8::from_str_radix(digits?, 16).ok()?;
    }
    // Neither shorter nor longer, and as it is written.
    (chain.to_string() == word).then_some(chain)
}

fn parse_read(word: &str) -> Option<Read> {
    let (offset, value) = word.split_once('=')?;
    Some(Read { offset: parse_offset(offset)?, value: parse_value(value)? })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use quire_protocol::{PartitionIndex, TopicId};

    use super::*;

    fn partition() -> impl Strategy<Value = TopicPartition> {
        (any::<[u8; 16]>(), any::<u32>()).prop_map(|(topic, partition)| TopicPartition {
            topic: TopicId(topic),
            partition: PartitionIndex(partition),
        })
    }

    fn value() -> impl Strategy<Value = Value> {
        (any::<u32>(), any::<u64>()).prop_map(|(producer, counter)| Value { producer, counter })
    }

    fn reads() -> impl Strategy<Value = Vec<Read>> {
        let read =
            (any::<u64>().prop_map(Offset), value()).prop_map(|(offset, value)| Read { offset, value });
        proptest::collection::vec(read, 0..4)
    }

    fn action() -> impl Strategy<Value = Action> {
        let offset = || any::<u64>().prop_map(Offset);
        let broker = || any::<u32>().prop_map(BrokerId);
        let epoch = || any::<u32>().prop_map(LeaderEpoch);
        let phase = prop_oneof![Just(Phase::Live), Just(Phase::Final)];
        prop_oneof![
            (partition(), value(), proptest::option::of(offset()), proptest::option::of(epoch())).prop_map(
                |(partition, value, offset, epoch)| Action::Send { partition, value, offset, epoch }
            ),
            (partition(), offset()).prop_map(|(partition, offset)| Action::Seek { partition, offset }),
            (partition(), phase, reads()).prop_map(|(partition, phase, records)| Action::Poll {
                partition,
                phase,
                records
            }),
            (partition(), broker(), reads()).prop_map(|(partition, broker, records)| Action::Replica {
                partition,
                broker,
                records
            }),
            (partition(), broker(), offset(), epoch(), any::<[u8; 32]>()).prop_map(
                |(partition, broker, offset, epoch, chain)| Action::Frame {
                    partition,
                    broker,
                    offset,
                    epoch,
                    chain: Chain(chain)
                }
            ),
            (partition(), broker(), offset(), offset()).prop_map(|(partition, broker, from, to)| {
                Action::ReplicaRead { partition, broker, from, to }
            }),
            (partition(), offset()).prop_map(|(partition, offset)| Action::LogStart { partition, offset }),
            "[a-z0-9 ]{0,20}".prop_map(Action::Note),
        ]
    }

    proptest! {
        #[test]
        fn an_operation_survives_its_line(index: u64, micros in 0u64..1 << 50, process: u32, action in action(), kind in 0..4) {
            let kind = [Kind::Invoke, Kind::Ok, Kind::Fail, Kind::Info][kind as usize];
            let time = Duration::from_micros(micros);
            let operation = Operation { index, time, process: Process(process), kind, action };
            prop_assert_eq!(operation.to_string().parse::<Operation>(), Ok(operation));
        }

        #[test]
        fn no_line_panics(line in ".{0,60}") {
            let _ = line.parse::<Operation>();
        }
    }

    #[test]
    fn operations_are_numbered_as_they_come() {
        let mut recorder = Recorder::new(Vec::new());
        for text in ["one", "two"] {
            let note = Action::Note(text.to_owned());
            recorder.record(Duration::from_millis(1), Process(7), Kind::Info, note).expect("memory");
        }
        assert_eq!(
            String::from_utf8_lossy(&recorder.writer),
            "0 1000 7 info note one\n1 1000 7 info note two\n"
        );
    }
}
