//! The task beside a group's consumer: it carries out what the membership wants, prepares partitions that were assigned,
//! and commits, one request at a time, so that no commit overtakes another.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use quire_protocol::rpc::control::{self, GroupHeartbeatRequest, GroupHeartbeatResponse, request, response};
use quire_protocol::{ErrorCode, Offset, PartitionIndex, TopicId, TopicPartition};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{sleep_until, timeout};

use crate::Client;
use crate::connection::broker_error;
use crate::consumer::Addition;
use crate::error::Error;
use crate::offsets::{self, Waiting};
use crate::position::Position;

use super::coordinator::{Coordinator, unexpected};
use super::membership::{self, Action, Input, Life, Membership, Partitions};

/// Most time that leaving may take.
pub(super) const LEAVE_TIME_MAX: Duration = Duration::from_secs(5);

/// Between two attempts to find out where to read from, where the first ended for another reason than that nobody answers.
const PREPARE_INTERVAL: Duration = Duration::from_millis(500);

/// How long the partitions that can be read wait for those that can not yet.
const SPARED_AFTER: Duration = Duration::from_secs(1);

/// The consumer tells the task.
#[derive(Debug)]
pub(super) enum Command {
    /// These are read no longer; up to where they were processed.
    Released(Life, BTreeSet<TopicPartition>, Offsets),
    /// These are read from now on.
    Taken(Life, BTreeSet<TopicPartition>),
    /// Commit these; the answer goes to whoever waits for it.
    Commit(Offsets, Option<oneshot::Sender<Result<(), Error>>>),
    /// Commit these and leave. Also what happens when the consumer is dropped, with what it would have committed.
    Leave(Offsets, oneshot::Sender<Result<(), Error>>),
}

/// The task tells the consumer.
#[derive(Debug)]
pub(super) enum Event {
    /// Read these no longer, and say so.
    Release(Life, BTreeSet<TopicPartition>),
    /// Read these, and say so.
    Take(Life, Vec<Addition>),
    /// These belong to others.
    Lose(BTreeSet<TopicPartition>),
    /// It is no member, and will not be one.
    Fail(Error),
}

/// Up to where partitions were processed: the next record of each.
pub(super) type Offsets = BTreeMap<TopicPartition, Offset>;

/// Since when the consumer's owner has had a record in hand without asking for the next one.
#[derive(Debug)]
pub(super) struct Busy {
    origin: Instant,
    /// Milliseconds since the origin, plus one; 0 while it waits for records.
    since: AtomicU64,
    polled: Notify,
    /// Set while somebody waits to hear of the next poll.
    is_awaited: std::sync::atomic::AtomicBool,
}

impl Busy {
    pub(super) fn new(now: Instant) -> Busy {
        // Nobody asked for a record yet: as good as busy with one.
        let is_awaited = std::sync::atomic::AtomicBool::new(false);
        Busy { origin: now, since: AtomicU64::new(1), polled: Notify::new(), is_awaited }
    }

    /// It asks for the next record.
    pub(super) fn polled(&self) {
        self.since.store(0, Ordering::SeqCst);
        if self.is_awaited.load(Ordering::SeqCst) {
            self.polled.notify_one();
        }
    }

    /// It was given one.
    pub(super) fn given(&self, now: Instant) {
        let since = now.saturating_duration_since(self.origin).as_millis() as u64;
        self.since.store(since + 1, Ordering::Relaxed);
    }

    fn since(&self) -> Option<Instant> {
        match self.since.load(Ordering::SeqCst) {
            0 => None,
            since => Some(self.origin + Duration::from_millis(since - 1)),
        }
    }

    async fn next_poll(&self) {
        self.is_awaited.store(true, Ordering::SeqCst);
        while self.since().is_some() {
            self.polled.notified().await;
        }
        self.is_awaited.store(false, Ordering::SeqCst);
    }
}

/// How the task is to go about it.
#[derive(Debug, Clone)]
pub(super) struct Options {
    /// Where a partition is begun of which nothing is committed.
    pub from: Position,
    pub retry_timeout: Duration,
    /// Most time between two polls.
    pub poll_interval: Duration,
}

/// The task's state.
pub(super) struct Task {
    pub client: Client,
    pub coordinator: Arc<Coordinator>,
    pub membership: Membership,
    pub options: Options,
    pub events: mpsc::UnboundedSender<Event>,
    pub busy: Arc<Busy>,
    heartbeats: FuturesUnordered<BoxFuture<'static, Result<GroupHeartbeatResponse, Error>>>,
    preparing: FuturesUnordered<BoxFuture<'static, Prepared>>,
    /// The pause before the next attempt to find out where to read from.
    prepare_after: Duration,
    commits: Commits,
    /// It has left, for nobody asked for records.
    is_away: bool,
}

/// Assigned partitions, and from where to read them.
struct Prepared {
    life: Life,
    partitions: Partitions,
    found: Result<Vec<Addition>, Error>,
}

/// What is to be committed and what is being committed.
#[derive(Default)]
struct Commits {
    wanted: Offsets,
    awaited: Vec<Awaited>,
    under_way: Option<UnderWay>,
    retry_at: Option<Instant>,
    failures: u32,
}

struct UnderWay {
    offsets: Offsets,
    awaited: Vec<Awaited>,
    answer: BoxFuture<'static, Result<Refused, Error>>,
}

/// Those that were not committed.
type Refused = BTreeMap<TopicPartition, Error>;

/// What follows on a commit.
enum Awaited {
    Reply(oneshot::Sender<Result<(), Error>>),
    /// These are released then, or when the time is up.
    Release {
        life: Life,
        partitions: BTreeSet<TopicPartition>,
        until: Instant,
    },
}

impl Task {
    pub(super) fn new(
        client: Client,
        coordinator: Arc<Coordinator>,
        membership: Membership,
        options: Options,
        events: mpsc::UnboundedSender<Event>,
        busy: Arc<Busy>,
    ) -> Task {
        Task {
            client,
            coordinator,
            membership,
            options,
            events,
            busy,
            heartbeats: FuturesUnordered::new(),
            preparing: FuturesUnordered::new(),
            prepare_after: Duration::ZERO,
            commits: Commits::default(),
            is_away: false,
        }
    }

    /// Until the consumer leaves, or is gone.
    pub(super) async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        self.tell(Input::TimePassed);
        loop {
            self.begin_commit();
            let idle_at = match self.is_away {
                true => None,
                false => self.busy.since().map(|since| since + self.options.poll_interval),
            };
            let deadline = [self.membership.deadline(), self.commits.retry_at, idle_at];
            let deadline = deadline.into_iter().flatten().min();
            tokio::select! {
                Some(answer) = self.heartbeats.next() => self.tell(Input::Answered(answer)),
                Some(prepared) = self.preparing.next() => self.prepared(prepared),
                answer = answer_of(&mut self.commits.under_way) => self.committed(answer),
                command = commands.recv() => match command {
                    None => return self.leave(Offsets::new(), None).await,
                    Some(Command::Leave(offsets, reply)) => return self.leave(offsets, Some(reply)).await,
                    Some(command) => self.command(command),
                },
                () = self.busy.next_poll(), if self.is_away => {
                    self.is_away = false;
                    self.tell(Input::Returned);
                }
                () = until(deadline) => {
                    if idle_at.is_some_and(|at| at <= Instant::now()) {
                        self.be_away().await;
                    }
                    self.tell(Input::TimePassed);
                }
            }
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Released(life, partitions, offsets) => {
                let until = Instant::now() + self.options.retry_timeout;
                self.commits.wanted.extend(offsets);
                self.commits.awaited.push(Awaited::Release { life, partitions, until });
            }
            Command::Taken(life, partitions) => self.tell(Input::Taken(life, partitions)),
            Command::Commit(offsets, reply) => {
                self.commits.wanted.extend(offsets);
                self.commits.awaited.extend(reply.map(Awaited::Reply));
            }
            Command::Leave(..) => unreachable!("ends the task"),
        }
    }

    fn tell(&mut self, input: Input) {
        for action in self.membership.handle(Instant::now(), input) {
            match action {
                Action::Heartbeat(request) => {
                    self.heartbeats.push(Box::pin(heartbeat(Arc::clone(&self.coordinator), *request)));
                }
                Action::Release(life, partitions) => self.show(Event::Release(life, partitions)),
                Action::Take(life, partitions) => self.prepare(life, partitions),
                Action::Lose(partitions) => {
                    tracing::info!(
                        group = self.coordinator.group(),
                        partitions = partitions.len(),
                        "the member was fenced; its partitions belong to others"
                    );
                    self.commits.wanted.retain(|id, _| !partitions.contains(id));
                    self.preparing.clear();
                    self.show(Event::Lose(partitions));
                }
                Action::Fail(error) => self.show(Event::Fail(error)),
            }
        }
    }

    fn show(&self, event: Event) {
        // A consumer that is gone has closed the other channel as well.
        let _ = self.events.send(event);
    }

    fn prepare(&mut self, life: Life, partitions: Partitions) {
        let after = self.prepare_after;
        let (client, coordinator) = (self.client.clone(), Arc::clone(&self.coordinator));
        let options = self.options.clone();
        self.preparing.push(Box::pin(async move {
            tokio::time::sleep(after).await;
            let found = find(&client, &coordinator, &options, &partitions).await;
            Prepared { life, partitions, found }
        }));
    }

    fn prepared(&mut self, prepared: Prepared) {
        let Prepared { life, partitions, found } = prepared;
        // Fenced meanwhile: others may read them by now.
        if life != self.membership.life() {
            return;
        }
        match found {
            Ok(additions) => {
                let mut missing: BTreeSet<_> = partitions.keys().copied().collect();
                for addition in &additions {
                    missing.remove(&addition.id());
                }
                self.show(Event::Take(life, additions));
                self.prepare_after = if missing.is_empty() { Duration::ZERO } else { PREPARE_INTERVAL };
                if !missing.is_empty() {
                    self.tell(Input::NotTaken(life, missing));
                }
            }
            Err(error) => {
                self.prepare_after = PREPARE_INTERVAL;
                tracing::warn!(
                    group = self.coordinator.group(), %error,
                    "where to read the assigned partitions from is not known; trying again"
                );
                self.tell(Input::NotTaken(life, partitions.keys().copied().collect()));
            }
        }
    }

    /// Commits what is wanted, unless a commit is under way.
    fn begin_commit(&mut self) {
        let is_due = self.commits.retry_at.is_none_or(|at| at <= Instant::now());
        if self.commits.under_way.is_some() || !is_due {
            return;
        }
        if self.commits.wanted.is_empty() {
            let awaited = std::mem::take(&mut self.commits.awaited);
            return self.follow_up(awaited, &Ok(()));
        }
        self.commits.retry_at = None;
        let offsets = std::mem::take(&mut self.commits.wanted);
        let awaited = std::mem::take(&mut self.commits.awaited);
        let Some(epoch) = self.membership.epoch() else {
            let error = not_a_member(self.coordinator.group());
            return self.follow_up(awaited, &Err(error));
        };
        let answer = Box::pin(commit(
            Arc::clone(&self.coordinator),
            self.membership.member().to_owned(),
            epoch,
            offsets.clone(),
        ));
        self.commits.under_way = Some(UnderWay { offsets, awaited, answer });
    }

    fn committed(&mut self, answer: Result<Refused, Error>) {
        let Some(UnderWay { offsets, awaited, .. }) = self.commits.under_way.take() else { return };
        let refused = match answer {
            Ok(refused) => refused,
            Err(error) => offsets.keys().map(|id| (*id, error.clone())).collect(),
        };
        // What others own by now is theirs.
        let again: BTreeSet<_> = (refused.iter())
            .filter(|(id, error)| error.is_retriable() && self.membership.owns(**id))
            .map(|(id, _)| *id)
            .collect();
        let last = refused.iter().find(|(id, _)| !again.contains(id)).map(|(_, error)| error.clone());
        if let Some(error) = &last {
            tracing::warn!(group = self.coordinator.group(), %error, "offsets were not committed");
        }
        if again.is_empty() {
            self.commits.failures = 0;
            return self.follow_up(awaited, &last.map_or(Ok(()), Err));
        }
        self.commits.failures += 1;
        let pause = Duration::from_millis(50) * (1 << self.commits.failures.min(5));
        let now = Instant::now();
        self.commits.retry_at = Some(now + pause);
        for (id, offset) in offsets.into_iter().filter(|(id, _)| again.contains(id)) {
            self.commits.wanted.entry(id).or_insert(offset);
        }
        let is_late = |awaited: &Awaited| matches!(awaited, Awaited::Release { until, .. } if *until <= now);
        let (late, patient): (Vec<_>, Vec<_>) = awaited.into_iter().partition(is_late);
        self.commits.awaited.splice(0..0, patient);
        self.follow_up(late, &Ok(()));
    }

    fn follow_up(&mut self, awaited: Vec<Awaited>, answer: &Result<(), Error>) {
        for awaited in awaited {
            match awaited {
                Awaited::Reply(reply) => drop(reply.send(answer.clone())),
                Awaited::Release { life, partitions, .. } => {
                    self.tell(Input::Released(life, partitions));
                }
            }
        }
    }

    /// Nobody polls: others shall have the partitions until somebody does.
    async fn be_away(&mut self) {
        let group = self.coordinator.group();
        tracing::warn!(
            group, poll_interval = ?self.options.poll_interval,
            "no record was asked for in so long: leaving the group until one is"
        );
        if let Some(request) = self.membership.leaving() {
            let _ = timeout(LEAVE_TIME_MAX, heartbeat(Arc::clone(&self.coordinator), request)).await;
        }
        self.heartbeats.clear();
        self.preparing.clear();
        self.tell(Input::Abandoned);
        self.is_away = true;
    }

    async fn leave(mut self, offsets: Offsets, reply: Option<oneshot::Sender<Result<(), Error>>>) {
        let left = timeout(LEAVE_TIME_MAX, async {
            if let Some(under_way) = self.commits.under_way.take() {
                let answer = all_of(under_way.answer.await);
                for awaited in under_way.awaited {
                    if let Awaited::Reply(reply) = awaited {
                        let _ = reply.send(answer.clone());
                    }
                }
            }
            let mut last = std::mem::take(&mut self.commits.wanted);
            last.extend(offsets);
            let Some(epoch) = self.membership.epoch() else { return Ok(()) };
            let mut committed = Ok(());
            if !last.is_empty() {
                let member = self.membership.member().to_owned();
                committed = all_of(commit(Arc::clone(&self.coordinator), member, epoch, last).await);
            }
            if let Some(request) = self.membership.leaving() {
                heartbeat(Arc::clone(&self.coordinator), request).await?;
            }
            committed
        });
        let left = left.await.unwrap_or_else(|_| {
            Err(Error::TimedOut {
                address: "the coordinator".into(),
                what: "leaving the group",
                after: LEAVE_TIME_MAX,
            })
        });
        if let Some(reply) = reply {
            let _ = reply.send(left);
        }
    }
}

/// The answer of a commit under way; never if there is none.
async fn answer_of(under_way: &mut Option<UnderWay>) -> Result<Refused, Error> {
    match under_way {
        Some(under_way) => (&mut under_way.answer).await,
        None => std::future::pending().await,
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

fn not_a_member(group: &str) -> Error {
    Error::Broker {
        code: ErrorCode::UnknownMember,
        message: format!("this consumer is no member of group \"{group}\" at the moment"),
        suggestion: None,
    }
}

async fn heartbeat(
    coordinator: Arc<Coordinator>,
    request: GroupHeartbeatRequest,
) -> Result<GroupHeartbeatResponse, Error> {
    match coordinator.ask("group heartbeat", request::Body::GroupHeartbeat(request)).await? {
        response::Body::GroupHeartbeat(answer) => Ok(answer),
        _ => Err(unexpected("group heartbeat")),
    }
}

/// Commits; what is lower than what is committed has no effect and is no error.
async fn commit(
    coordinator: Arc<Coordinator>,
    member: String,
    member_epoch: i32,
    offsets: Offsets,
) -> Result<Refused, Error> {
    let group = coordinator.group().to_owned();
    let told = offsets.iter().map(|(id, offset)| committed_offset(*id, *offset)).collect();
    let body = control::CommitOffsetsRequest { group, member, member_epoch, offsets: told };
    let answer = coordinator.ask("commit offsets", request::Body::CommitOffsets(body)).await?;
    let response::Body::CommitOffsets(answer) = answer else { return Err(unexpected("commit offsets")) };
    let is_refusal =
        |error: &control::Error| error.code != 0 && error.error_code() != ErrorCode::OffsetGoesBack;
    let errors = offsets.into_keys().zip(&answer.errors).filter(|(_, error)| is_refusal(error));
    Ok(errors.map(|(id, error)| (id, broker_error(error, ""))).collect())
}

/// One error for all.
fn all_of(answer: Result<Refused, Error>) -> Result<(), Error> {
    answer?.into_values().next().map_or(Ok(()), Err)
}

pub(crate) fn committed_offset(id: TopicPartition, offset: Offset) -> control::CommittedOffset {
    control::CommittedOffset {
        topic_id: id.topic.as_bytes().to_vec(),
        partition: id.partition.0,
        offset: offset.0,
        ..control::CommittedOffset::default()
    }
}

/// Where the group has committed, or else where it is to begin.
async fn find(
    client: &Client,
    coordinator: &Coordinator,
    options: &Options,
    partitions: &Partitions,
) -> Result<Vec<Addition>, Error> {
    let body = control::FetchOffsetsRequest {
        group: coordinator.group().to_owned(),
        partitions: membership::write(partitions.keys().copied()),
    };
    let time = options.retry_timeout;
    let answer = coordinator.ask_within(time, "fetch offsets", request::Body::FetchOffsets(body)).await?;
    let response::Body::FetchOffsets(answer) = answer else { return Err(unexpected("fetch offsets")) };
    let committed: BTreeMap<_, _> = answer.offsets.iter().filter_map(id_and_offset).collect();

    let mut by_topic: BTreeMap<(TopicId, Arc<str>), Vec<PartitionIndex>> = BTreeMap::new();
    for (id, name) in partitions {
        by_topic.entry((id.topic, Arc::clone(name))).or_default().push(id.partition);
    }
    let mut additions = Vec::with_capacity(partitions.len());
    for ((topic, name), indexes) in by_topic {
        let position = |index: &PartitionIndex| {
            let id = TopicPartition { topic, partition: *index };
            (*index, if committed.contains_key(&id) { Position::Beginning } else { options.from })
        };
        let asked: Vec<_> = indexes.iter().map(position).collect();
        // One partition without a leader holds up no other.
        let waiting = Waiting { time_max: time, spared_after: Some(SPARED_AFTER) };
        let (known, answers) = offsets::list_within(waiting, client, &name, &asked).await?;
        if known.id != topic {
            return Err(Error::Broker {
                code: ErrorCode::UnknownTopic,
                message: format!("\"{name}\" was deleted and created again; the group will hear of it"),
                suggestion: None,
            });
        }
        for answer in answers {
            let answer = match answer {
                Ok(answer) => answer,
                Err(refused) => {
                    let error = refused.into_error(&known);
                    tracing::info!(group = coordinator.group(), %error, "a partition is taken up later");
                    continue;
                }
            };
            let id = TopicPartition { topic, partition: answer.partition };
            additions.push(Addition {
                topic: Arc::clone(&known),
                partition: answer.partition,
                offset: committed.get(&id).copied().unwrap_or(answer.offset),
                high_watermark: answer.high_watermark,
            });
        }
    }
    Ok(additions)
}

fn id_and_offset(committed: &control::CommittedOffset) -> Option<(TopicPartition, Offset)> {
    let topic = TopicId::from_slice(&committed.topic_id)?;
    let partition = PartitionIndex(committed.partition);
    Some((TopicPartition { topic, partition }, Offset(committed.offset)))
}

#[cfg(test)]
mod tests;
