//! What must hold of every history, one property a file, and the checker that holds a history against all of them.
//!
//! Definitions follow Jepsen's `kafka` workload. The checker is pure and takes operations one by one, so that a history need
//! not be in memory; what it remembers grows with the number of values sent, and with nothing else. A history of n values
//! takes n log n steps.
//!
//! ```
//! use quire::drill::checks::{Checker, Property};
//! use quire::drill::history::Operation;
//!
//! let topic = "00000000000000000000000000000007";
//! let history = format!("0 0 1 invoke send {topic}-0 1:1\n1 9 1 ok send {topic}-0 1:1 at 0");
//! let mut checker = Checker::default();
//! for line in history.lines() {
//!     checker.observe(&line.parse::<Operation>()?);
//! }
//! let verdict = checker.verdict();
//! assert_eq!(verdict.acknowledged, 1);
//! // It was acknowledged, and nobody read it.
//! assert_eq!(verdict.violated(), [Property::Unseen]);
//! # Ok::<(), quire::drill::history::InvalidOperation>(())
//! ```

mod aborted_reads;
mod account;
mod deposed_leaders;
mod duplicates;
mod external_order;
mod inconsistent_offsets;
mod lost_writes;
mod non_monotonic_polls;
mod non_monotonic_sends;
mod phantoms;
mod replica_divergence;
mod resurrections;
mod skips;
mod unseen;

#[cfg(test)]
mod generated;

use std::fmt;
use std::time::Duration;

use quire_protocol::frame::Chain;
use quire_protocol::{BrokerId, LeaderEpoch, Offset, TopicPartition};

use super::history::{Action, Kind, Operation, Phase, Process, Read, Value};
use account::Account;

/// Violations of one property that are told in full; further ones are counted.
const EXAMPLES_MAX: usize = 10;

/// What must hold of every history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Property {
    /// One offset of a partition has one value.
    InconsistentOffsets,
    /// One value has one offset.
    Duplicates,
    /// What was acknowledged, or read by anybody, stays.
    LostWrites,
    /// What was acknowledged is read by the end.
    Unseen,
    /// A write that failed is never read.
    AbortedReads,
    /// A reader is given the record behind its last one, not a later one.
    Skips,
    /// A reader is given the record behind its last one, not an earlier one.
    NonMonotonicPolls,
    /// A producer's records stand in the order in which it sent them.
    NonMonotonicSends,
    /// What is sent after an acknowledgement stands behind what was acknowledged.
    ExternalOrder,
    /// What is read was sent.
    Phantoms,
    /// What retention removed does not come back.
    Resurrections,
    /// A leader that was deposed acknowledges nothing.
    DeposedLeaders,
    /// Replicas hold the same below their high watermarks.
    ReplicaDivergence,
}

impl Property {
    /// Every property, in the order of reports.
    pub const ALL: [Property; 13] = [
        Property::InconsistentOffsets,
        Property::Duplicates,
        Property::LostWrites,
        Property::Unseen,
        Property::AbortedReads,
        Property::Skips,
        Property::NonMonotonicPolls,
        Property::NonMonotonicSends,
        Property::ExternalOrder,
        Property::Phantoms,
        Property::Resurrections,
        Property::DeposedLeaders,
        Property::ReplicaDivergence,
    ];

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Property::InconsistentOffsets => "inconsistent offsets",
            Property::Duplicates => "duplicates",
            Property::LostWrites => "lost writes",
            Property::Unseen => "unseen",
            Property::AbortedReads => "aborted reads",
            Property::Skips => "skips",
            Property::NonMonotonicPolls => "non-monotonic polls",
            Property::NonMonotonicSends => "non-monotonic sends",
            Property::ExternalOrder => "external order",
            Property::Phantoms => "phantoms",
            Property::Resurrections => "resurrections",
            Property::DeposedLeaders => "deposed leaders",
            Property::ReplicaDivergence => "replica divergence",
        }
    }
}

impl fmt::Display for Property {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One step of a history, as small as a check can use: a poll is a step a record.
#[derive(Debug, Clone, Copy)]
enum Event {
    Invoked { partition: TopicPartition, value: Value },
    Acknowledged { partition: TopicPartition, value: Value, offset: Offset, epoch: Option<LeaderEpoch> },
    Refused { value: Value },
    Unknown { value: Value },
    Sought { partition: TopicPartition, offset: Offset },
    Read { partition: TopicPartition, phase: Phase, read: Read },
    Replica { partition: TopicPartition, broker: BrokerId, read: Read },
    Frame { partition: TopicPartition, broker: BrokerId, offset: Offset, epoch: LeaderEpoch, chain: Chain },
    ReplicaRead { partition: TopicPartition, broker: BrokerId, from: Offset, to: Offset },
    LogStart { partition: TopicPartition, offset: Offset },
}

/// When an event happened, and to whom.
#[derive(Debug, Clone, Copy)]
struct Moment {
    index: u64,
    time: Duration,
    process: Process,
}

/// One property. It keeps what it alone needs; what several need is in the account.
trait Check {
    /// Sees an event, with the account as it was before it.
    fn see(&mut self, moment: &Moment, event: &Event, account: &Account, found: &mut Findings);

    /// Judges what only the end of the history tells.
    fn conclude(&mut self, _account: &Account, _found: &mut Findings) {}
}

/// Violations of one property.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Findings {
    count: u64,
    examples: Vec<String>,
}

impl Findings {
    fn add(&mut self, tell: impl FnOnce() -> String) {
        self.count += 1;
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(tell());
        }
    }
}

/// Holds a history against every property.
pub struct Checker {
    account: Account,
    checks: Vec<(Property, Box<dyn Check + Send>, Findings)>,
}

impl Default for Checker {
    fn default() -> Checker {
        let check = |property| -> Box<dyn Check + Send> {
            match property {
                Property::InconsistentOffsets => Box::new(inconsistent_offsets::InconsistentOffsets),
                Property::Duplicates => Box::new(duplicates::Duplicates),
                Property::LostWrites => Box::new(lost_writes::LostWrites),
                Property::Unseen => Box::new(unseen::Unseen),
                Property::AbortedReads => Box::new(aborted_reads::AbortedReads),
                Property::Skips => Box::new(skips::Skips),
                Property::NonMonotonicPolls => Box::new(non_monotonic_polls::NonMonotonicPolls),
                Property::NonMonotonicSends => Box::new(non_monotonic_sends::NonMonotonicSends),
                Property::ExternalOrder => Box::new(external_order::ExternalOrder),
                Property::Phantoms => Box::new(phantoms::Phantoms),
                Property::Resurrections => Box::new(resurrections::Resurrections::default()),
                Property::DeposedLeaders => Box::new(deposed_leaders::DeposedLeaders::default()),
                Property::ReplicaDivergence => Box::new(replica_divergence::ReplicaDivergence::default()),
            }
        };
        let checks = Property::ALL.map(|property| (property, check(property), Findings::default()));
        Checker { account: Account::default(), checks: checks.into() }
    }
}

impl Checker {
    /// Takes the next operation of the history.
    pub fn observe(&mut self, operation: &Operation) {
        let moment = Moment { index: operation.index, time: operation.time, process: operation.process };
        match &operation.action {
            Action::Send { partition, value, offset, epoch } => {
                let (partition, value, epoch) = (*partition, *value, *epoch);
                let event = match (operation.kind, *offset) {
                    (Kind::Invoke, _) => Event::Invoked { partition, value },
                    (Kind::Ok, Some(offset)) => Event::Acknowledged { partition, value, offset, epoch },
                    (Kind::Fail, _) => Event::Refused { value },
                    (Kind::Info | Kind::Ok, _) => Event::Unknown { value },
                };
                self.see(&moment, &event);
            }
            Action::Seek { partition, offset } => {
                self.see(&moment, &Event::Sought { partition: *partition, offset: *offset });
            }
            Action::Poll { partition, phase, records } => {
                for read in records {
                    self.see(&moment, &Event::Read { partition: *partition, phase: *phase, read: *read });
                }
            }
            Action::Replica { partition, broker, records } => {
                for read in records {
                    let (partition, broker, read) = (*partition, *broker, *read);
                    self.see(&moment, &Event::Replica { partition, broker, read });
                }
            }
            Action::Frame { partition, broker, offset, epoch, chain } => {
                let (partition, broker, offset) = (*partition, *broker, *offset);
                let event = Event::Frame { partition, broker, offset, epoch: *epoch, chain: *chain };
                self.see(&moment, &event);
            }
            Action::ReplicaRead { partition, broker, from, to } => {
                let (partition, broker, from, to) = (*partition, *broker, *from, *to);
                self.see(&moment, &Event::ReplicaRead { partition, broker, from, to });
            }
            Action::LogStart { partition, offset } => {
                self.see(&moment, &Event::LogStart { partition: *partition, offset: *offset });
            }
            Action::Note(_) => {}
        }
    }

    /// The verdict over everything observed.
    pub fn verdict(mut self) -> Verdict {
        for (_, check, found) in &mut self.checks {
            check.conclude(&self.account, found);
        }
        let tally = self.account.tally();
        Verdict {
            sent: tally.sent,
            acknowledged: tally.acknowledged,
            refused: tally.refused,
            unknown: tally.unknown,
            read_back: tally.read_back,
            lag_max: tally.lag_max,
            findings: self.checks.into_iter().map(|(property, _, found)| (property, found)).collect(),
        }
    }

    fn see(&mut self, moment: &Moment, event: &Event) {
        for (_, check, found) in &mut self.checks {
            check.see(moment, event, &self.account, found);
        }
        self.account.apply(moment, event);
    }
}

impl fmt::Debug for Checker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Checker").field("tally", &self.account.tally()).finish_non_exhaustive()
    }
}

/// Checks a whole history.
pub fn check<'a>(history: impl IntoIterator<Item = &'a Operation>) -> Verdict {
    let mut checker = Checker::default();
    history.into_iter().for_each(|operation| checker.observe(operation));
    checker.verdict()
}

/// What a history adds up to, and every way in which it is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Values sent.
    pub sent: u64,
    /// Values acknowledged.
    pub acknowledged: u64,
    /// Values whose write failed for certain.
    pub refused: u64,
    /// Values of which nobody was told whether they were written.
    pub unknown: u64,
    /// Acknowledged values that somebody read, each counted once.
    pub read_back: u64,
    /// The longest time between an acknowledgement and the first read of its value, while there was load.
    pub lag_max: Duration,
    findings: Vec<(Property, Findings)>,
}

impl Verdict {
    /// Whether every property holds.
    pub fn is_clean(&self) -> bool {
        self.findings.iter().all(|(_, found)| found.count == 0)
    }

    /// How often a property was violated.
    pub fn count(&self, property: Property) -> u64 {
        self.findings.iter().find(|(found, _)| *found == property).map_or(0, |(_, found)| found.count)
    }

    /// The first violations of a property, each in a sentence.
    pub fn examples(&self, property: Property) -> &[String] {
        let found = self.findings.iter().find(|(found, _)| *found == property);
        found.map_or(&[], |(_, found)| &found.examples)
    }

    /// The properties that were violated.
    pub fn violated(&self) -> Vec<Property> {
        self.findings.iter().filter(|(_, found)| found.count > 0).map(|(property, _)| *property).collect()
    }

    /// Records that are not where an acknowledgement, or a read, said they are.
    pub fn lost(&self) -> u64 {
        self.count(Property::LostWrites) + self.count(Property::Unseen)
    }

    /// Records that stand twice.
    pub fn duplicated(&self) -> u64 {
        self.count(Property::Duplicates)
    }

    /// Records that were written or read out of order.
    pub fn reordered(&self) -> u64 {
        [Property::Skips, Property::NonMonotonicPolls, Property::NonMonotonicSends, Property::ExternalOrder]
            .map(|property| self.count(property))
            .iter()
            .sum()
    }
}

/// One line a violation that is told in full.
impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Verdict { sent, acknowledged, refused, unknown, read_back, .. } = self;
        write!(
            f,
            "{sent} sent, {acknowledged} acknowledged, {refused} refused, {unknown} unknown, {read_back} read back"
        )?;
        for (property, found) in self.findings.iter().filter(|(_, found)| found.count > 0) {
            write!(f, "\n{property}: {}", found.count)?;
            found.examples.iter().try_for_each(|example| write!(f, "\n  {example}"))?;
        }
        Ok(())
    }
}
