//! The settings of a group's consumer.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quire_protocol::TopicPartition;
use quire_protocol::group_name::{self, control_character};
use quire_protocol::limits;
use tokio::sync::mpsc;

use crate::Client;
use crate::consumer::{Assigned, ConsumeError, Reading};
use crate::position::Position;
use crate::retry::Jitter;

use super::busy::Busy;
use super::coordinator::Coordinator;
use super::membership::{Membership, Settings};
use super::task::{Options, Task};
use super::{Again, GroupConsumer, GroupPartition};

/// A year: what is to happen less often may as well happen then, and clocks can be added to.
const INTERVAL_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// How a group's partitions are spread over its members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Assignor {
    /// Balanced within one partition, and whoever has one keeps it if it can; near the member's rack where that costs no
    /// balance.
    #[default]
    Sticky,
    /// For each topic by itself, neighbouring partitions to one member: partition n of two topics goes to the same one.
    Range,
    /// One after another, over all topics.
    RoundRobin,
}

impl Assignor {
    /// Every assignor.
    pub const ALL: [Assignor; 3] = [Assignor::Sticky, Assignor::Range, Assignor::RoundRobin];

    /// The name, as the protocol and the command line have it.
    pub fn name(self) -> &'static str {
        match self {
            Assignor::Sticky => "sticky",
            Assignor::Range => "range",
            Assignor::RoundRobin => "round-robin",
        }
    }
}

/// Is told which partitions came or go.
pub(super) type Listener = Arc<dyn Fn(&[GroupPartition]) + Send + Sync>;

/// A group consumer's settings. Made by [`crate::ConsumerBuilder::group`].
#[derive(Clone)]
pub struct GroupConsumerBuilder {
    client: Client,
    settings: Settings,
    options: Options,
    reading: Reading,
    commit_interval: Option<Duration>,
    on_assigned: Option<Listener>,
    on_revoked: Option<Listener>,
}

impl fmt::Debug for GroupConsumerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GroupConsumerBuilder")
            .field("settings", &self.settings)
            .field("options", &self.options)
            .field("reading", &self.reading)
            .field("commit_interval", &self.commit_interval)
            .finish_non_exhaustive()
    }
}

impl GroupConsumerBuilder {
    pub(crate) fn new(client: Client, group: String) -> GroupConsumerBuilder {
        let retry_timeout = Duration::from_secs(60);
        GroupConsumerBuilder {
            client,
            settings: Settings {
                group,
                topics: Vec::new(),
                assignor: Assignor::Sticky.name().to_owned(),
                instance_id: String::new(),
                rack: String::new(),
                client_name: format!("quire-client/{}", env!("CARGO_PKG_VERSION")),
                session_timeout: Duration::from_secs(45),
                rebalance_timeout: Duration::from_secs(60),
            },
            options: Options {
                from: Position::Beginning,
                retry_timeout,
                poll_interval: Duration::from_secs(300),
            },
            reading: Reading {
                memory_bytes: limits::CONSUMER_MEMORY_BYTES_DEFAULT,
                retry_timeout,
                rack: None,
            },
            commit_interval: Some(Duration::from_secs(1)),
            on_assigned: None,
            on_revoked: None,
        }
    }

    /// The topics to consume; at least one. One that does not exist yet is consumed once it does.
    #[must_use]
    pub fn topics<T: Into<String>>(mut self, topics: impl IntoIterator<Item = T>) -> GroupConsumerBuilder {
        self.settings.topics = topics.into_iter().map(Into::into).collect();
        self.settings.topics.sort();
        self.settings.topics.dedup();
        self
    }

    /// Where a partition is begun of which the group has committed nothing. Default [`Position::Beginning`]. One whose log does
    /// not have the offset is begun as near to it as possible, with a warning in the log. Where that is, is looked up again
    /// until the first commit: with [`Position::End`], what comes between a crash before that and the next start is not read.
    #[must_use]
    pub fn from(mut self, position: Position) -> GroupConsumerBuilder {
        self.options.from = position;
        self
    }

    /// How partitions are spread over the members; what the member that joined first says counts. Default sticky.
    #[must_use]
    pub fn assignor(mut self, assignor: Assignor) -> GroupConsumerBuilder {
        self.settings.assignor = assignor.name().to_owned();
        self
    }

    /// Makes this a static member: one that leaves or is restarted under the same instance id within its session gets its
    /// partitions back, and nobody else is disturbed. One that crashed has to wait until its session from before is over, which
    /// is said in the log. Two consumers must not use the same one at a time: the second waits for a session, and then gives
    /// an error.
    #[must_use]
    pub fn instance_id(mut self, instance_id: impl Into<String>) -> GroupConsumerBuilder {
        self.settings.instance_id = instance_id.into();
        self
    }

    /// Reads from replicas in this rack, and is assigned partitions that have one there, where that costs nobody anything.
    #[must_use]
    pub fn rack(mut self, rack: impl Into<String>) -> GroupConsumerBuilder {
        self.settings.rack = rack.into();
        self.reading.rack = Some(self.settings.rack.clone()).filter(|rack| !rack.is_empty());
        self
    }

    /// A name for people who look at the group. Default the client's name and version.
    #[must_use]
    pub fn client_name(mut self, name: impl Into<String>) -> GroupConsumerBuilder {
        self.settings.client_name = name.into();
        self
    }

    /// After how long without a word the member is taken for dead and its partitions are given to others. Default 45 s,
    /// at most half an hour.
    #[must_use]
    pub fn session_timeout(mut self, timeout: Duration) -> GroupConsumerBuilder {
        self.settings.session_timeout = timeout;
        self
    }

    /// How long giving up partitions may take, which happens at the next poll; afterwards the member is fenced. Default
    /// 60 s, at most an hour.
    #[must_use]
    pub fn rebalance_timeout(mut self, timeout: Duration) -> GroupConsumerBuilder {
        self.settings.rebalance_timeout = timeout;
        self
    }

    /// How long the owner of the consumer may do without asking for a record, or waiting for one. If nothing is asked for in
    /// this time the member leaves, so that others can go on, and joins again once it is. Default 5 min.
    #[must_use]
    pub fn poll_interval(mut self, interval: Duration) -> GroupConsumerBuilder {
        self.options.poll_interval = interval;
        self
    }

    /// Commits by itself, so often and when partitions are given up, what was processed by then: a record counts as
    /// processed when the next one is asked for. Default every second.
    #[must_use]
    pub fn commit_interval(mut self, interval: Duration) -> GroupConsumerBuilder {
        self.commit_interval = Some(interval);
        self
    }

    /// Commits only what [`GroupConsumer::commit`] and [`GroupConsumer::commit_sync`] are called for.
    #[must_use]
    pub fn commit_manually(mut self) -> GroupConsumerBuilder {
        self.commit_interval = None;
        self
    }

    /// Bytes of records that wait to be polled, over all partitions. Default 32 MiB.
    #[must_use]
    pub fn memory_bytes(mut self, bytes: usize) -> GroupConsumerBuilder {
        self.reading.memory_bytes = bytes;
        self
    }

    /// How long brokers that can not be reached are asked again before it is an error. Default 60 s.
    #[must_use]
    pub fn retry_timeout(mut self, timeout: Duration) -> GroupConsumerBuilder {
        self.options.retry_timeout = timeout;
        self.reading.retry_timeout = timeout;
        self
    }

    /// Called, while the consumer is polled, with the partitions that are read from then on.
    #[must_use]
    pub fn on_assigned(
        mut self,
        listener: impl Fn(&[GroupPartition]) + Send + Sync + 'static,
    ) -> GroupConsumerBuilder {
        self.on_assigned = Some(Arc::new(listener));
        self
    }

    /// Called, while the consumer is polled, with the partitions that are no longer read: before the group hears of it if
    /// they were asked for, and after the fact if the member was fenced. [`GroupPartition::is_lost`] tells which.
    #[must_use]
    pub fn on_revoked(
        mut self,
        listener: impl Fn(&[GroupPartition]) + Send + Sync + 'static,
    ) -> GroupConsumerBuilder {
        self.on_revoked = Some(Arc::new(listener));
        self
    }

    /// Starts to join. Records come once partitions are assigned; a group that does not take this member gives an error
    /// instead of a record.
    ///
    /// # Errors
    /// If no group can have the name, no topic is given, a text breaks lines, or a time is zero.
    ///
    /// # Panics
    /// If it is not called on a tokio runtime.
    pub fn build(self) -> Result<GroupConsumer, ConsumeError> {
        let GroupConsumerBuilder { client, settings, options, reading, commit_interval, .. } = self;
        let invalid = |why: &str| Err(ConsumeError::InvalidSettings(why.to_owned()));
        if let Err(error) = group_name::check(&settings.group) {
            return invalid(&error.to_string());
        }
        for (what, text) in settings.texts() {
            if let Some(control) = control_character(text) {
                let rule = "all characters are allowed but control characters";
                return invalid(&format!("the {what} has {control:?}; {rule}"));
            }
        }
        if settings.topics.is_empty() {
            return invalid("no topic was given for the group to consume");
        }
        let settings = Settings {
            session_timeout: settings.session_timeout.min(limits::GROUP_SESSION_MAX),
            rebalance_timeout: settings.rebalance_timeout.min(limits::GROUP_REBALANCE_MAX),
            ..settings
        };
        let options = Options {
            poll_interval: options.poll_interval.min(INTERVAL_MAX),
            retry_timeout: options.retry_timeout.min(INTERVAL_MAX),
            ..options
        };
        let commit_interval = commit_interval.map(|every| every.min(INTERVAL_MAX));
        let times = [settings.session_timeout, settings.rebalance_timeout, options.poll_interval];
        if times.iter().any(Duration::is_zero) || commit_interval.is_some_and(|every| every.is_zero()) {
            return invalid("a consumer's timeouts and intervals are longer than nothing");
        }
        let poll_again = Again::new((options.poll_interval / 3).max(Duration::from_millis(1)));
        let now = Instant::now();
        let coordinator = Arc::new(Coordinator::new(client.clone(), settings.group.clone()));
        let membership = Membership::new(now, settings, member_id());
        let member: Arc<str> = membership.member().into();
        let busy = Arc::new(Busy::new(now));
        let (events, heard) = mpsc::unbounded_channel();
        let (commands, commanded) = mpsc::unbounded_channel();
        let task = Task::new(
            client.clone(),
            Arc::clone(&coordinator),
            membership,
            options,
            events,
            Arc::clone(&busy),
        );
        tokio::spawn(task.run(commanded));
        Ok(GroupConsumer {
            member,
            coordinator,
            assigned: Assigned::new(client, reading),
            events: heard,
            commands: Some(commands),
            busy,
            poll_again,
            commit_again: commit_interval.map(Again::new),
            processed: Default::default(),
            in_hand: None,
            on_assigned: self.on_assigned,
            on_revoked: self.on_revoked,
            failure: None,
        })
    }
}

/// 16 random bytes, in hexadecimal.
fn member_id() -> String {
    let mut random = Jitter::from_entropy();
    format!("{:016x}{:016x}", random.next_u64(), Jitter::from_entropy().next_u64())
}

/// The partition as its listener sees it.
pub(super) fn listed(id: TopicPartition, topic: &Arc<str>, is_lost: bool) -> GroupPartition {
    GroupPartition { topic: Arc::clone(topic), id, is_lost }
}
