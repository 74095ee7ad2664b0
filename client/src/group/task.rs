//! The task beside a group's consumer: it carries out what the membership wants, prepares partitions that were assigned,
//! and commits, one request at a time, so that no commit overtakes another.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{BoxStream, FuturesUnordered, SelectAll};
use quire_protocol::rpc::control::{self, GroupHeartbeatRequest, GroupHeartbeatResponse, request, response};
use quire_protocol::{ErrorCode, Offset, TopicPartition};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{sleep_until, timeout_at};

use crate::Client;
use crate::connection::broker_error;
use crate::consumer::Addition;
use crate::error::Error;
use crate::patience::{self, Hindrance};
use crate::position::Position;

use super::busy::Busy;
use super::commits::{Commits, Offsets, Refused, Waiter};
use super::coordinator::{Coordinator, unexpected};
use super::membership::{Action, Input, Life, Membership, Partitions};
use super::preparing::{Preparation, Prepared};

/// Most time that leaving may take.
pub(super) const LEAVE_TIME_MAX: Duration = Duration::from_secs(5);

/// Between two attempts to find out where to read from, where the first ended for another reason than that nobody answers.
const PREPARE_INTERVAL: Duration = Duration::from_millis(500);

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

/// How the task is to go about it.
#[derive(Debug, Clone)]
pub(super) struct Options {
    /// Where a partition is begun of which nothing is committed.
    pub from: Position,
    pub retry_timeout: Duration,
    /// Most time between two polls; whoever waits for a record polls again and again.
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
    preparing: SelectAll<BoxStream<'static, Prepared>>,
    /// The pause before the next attempt to find out where to read from.
    prepare_after: Duration,
    commits: Commits,
    /// The commit under way.
    committing: Option<BoxFuture<'static, Result<Refused, Error>>>,
    /// The last poll before it left, because there was none for too long.
    away_since: Option<Instant>,
    /// Why it has not joined yet, and who says so.
    hindrance: Arc<Hindrance>,
    joining: Option<BoxFuture<'static, Infallible>>,
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
        let commits = Commits::new(coordinator.group());
        Task {
            client,
            coordinator,
            membership,
            options,
            events,
            busy,
            heartbeats: FuturesUnordered::new(),
            preparing: SelectAll::new(),
            prepare_after: Duration::ZERO,
            commits,
            committing: None,
            away_since: None,
            hindrance: Arc::default(),
            joining: None,
        }
    }

    /// Until the consumer leaves, or is gone.
    pub(super) async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        self.tell(Input::TimePassed);
        loop {
            self.begin_commit();
            self.say_while_joining();
            let idle_at = match self.away_since {
                Some(_) => None,
                None => Some(self.busy.polled_at() + self.options.poll_interval),
            };
            let deadline = [self.membership.deadline(), self.commits.deadline(), idle_at];
            let deadline = deadline.into_iter().flatten().min();
            tokio::select! {
                Some(answer) = self.heartbeats.next() => self.heard(answer),
                Some(prepared) = self.preparing.next() => self.prepared(prepared),
                answer = done(&mut self.committing) => self.committed(answer),
                command = commands.recv() => match command {
                    None => return self.leave(Offsets::new(), None).await,
                    Some(Command::Leave(offsets, reply)) => return self.leave(offsets, Some(reply)).await,
                    Some(command) => self.command(command),
                },
                () = polled_after(&self.busy, self.away_since) => {
                    self.away_since = None;
                    self.tell(Input::Returned);
                }
                () = until(deadline) => {
                    self.look_for_polls().await;
                    self.tell(Input::TimePassed);
                }
                never = done(&mut self.joining) => match never {},
            }
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Released(life, partitions, offsets) => {
                let until = Instant::now() + self.options.retry_timeout;
                self.commits.want(offsets, Some(Waiter::Release { life, partitions, until }));
            }
            Command::Taken(life, partitions) => self.tell(Input::Taken(life, partitions)),
            Command::Commit(offsets, reply) => self.commits.want(offsets, reply.map(Waiter::Reply)),
            Command::Leave(..) => unreachable!("ends the task"),
        }
    }

    fn heard(&mut self, answer: Result<GroupHeartbeatResponse, Error>) {
        if let Err(error) = &answer {
            self.hindrance.set(error);
        }
        self.tell(Input::Answered(answer));
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
                    self.commits.lose(&partitions);
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
        let preparation = Preparation {
            client: self.client.clone(),
            coordinator: Arc::clone(&self.coordinator),
            from: self.options.from,
            time_max: self.options.retry_timeout,
        };
        self.preparing.push(preparation.begin(self.prepare_after, life, partitions));
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
        let begun = self.commits.begin(Instant::now(), &self.membership);
        if let Some((epoch, offsets)) = begun.request {
            self.committing = Some(Box::pin(self.commit(epoch, offsets)));
        }
        begun.told.into_iter().for_each(|input| self.tell(input));
    }

    fn committed(&mut self, answer: Result<Refused, Error>) {
        self.committing = None;
        let told = self.commits.answered(Instant::now(), answer, &self.membership);
        told.into_iter().for_each(|input| self.tell(input));
    }

    fn commit(
        &self,
        epoch: i32,
        offsets: Offsets,
    ) -> impl Future<Output = Result<Refused, Error>> + Send + 'static {
        commit(Arc::clone(&self.coordinator), self.membership.member().to_owned(), epoch, offsets)
    }

    /// Who joins in silence looks as if nothing went on.
    fn say_while_joining(&mut self) {
        if !self.membership.is_joining() {
            self.joining = None;
        } else if self.joining.is_none() {
            self.hindrance = Arc::default();
            let what = format!("joining group \"{}\"", self.coordinator.group());
            self.joining = Some(Box::pin(patience::warnings(what, Arc::clone(&self.hindrance))));
        }
    }

    /// Where nobody polls, others shall have the partitions until somebody does.
    async fn look_for_polls(&mut self) {
        let polled_at = self.busy.polled_at();
        if self.away_since.is_some() || polled_at.elapsed() < self.options.poll_interval {
            return;
        }
        tracing::warn!(
            group = self.coordinator.group(), poll_interval = ?self.options.poll_interval,
            "no record was asked for in so long: leaving the group until one is"
        );
        // Whoever does not hear of it waits for the session to end.
        let _ = self.tell_leaving(Instant::now() + LEAVE_TIME_MAX).await;
        self.heartbeats.clear();
        self.tell(Input::Abandoned);
        self.away_since = Some(polled_at);
    }

    async fn leave(mut self, offsets: Offsets, reply: Option<oneshot::Sender<Result<(), Error>>>) {
        let begun = Instant::now();
        let committed = self.commit_last(begun + LEAVE_TIME_MAX / 2, offsets).await;
        let left = self.tell_leaving(begun + LEAVE_TIME_MAX).await;
        if let Some(reply) = reply {
            let _ = reply.send(left.and(committed));
        }
    }

    /// Commits these, and what was to be committed before, if that can be done in time.
    async fn commit_last(&mut self, end: Instant, offsets: Offsets) -> Result<(), Error> {
        self.commits.want(offsets, None);
        let commit = async {
            self.settle().await;
            if let Some(committing) = self.committing.take() {
                let answer = committing.await;
                let _ = self.commits.answered(Instant::now(), answer, &self.membership);
            }
            loop {
                let begun = self.commits.begin(Instant::now(), &self.membership);
                if let Some((epoch, offsets)) = begun.request {
                    let answer = self.commit(epoch, offsets).await;
                    let _ = self.commits.answered(Instant::now(), answer, &self.membership);
                } else if let Some(at) = self.commits.deadline() {
                    sleep_until(at.into()).await;
                } else {
                    return;
                }
            }
        };
        let committed = timeout_at(end.into(), commit).await;
        match committed {
            Err(_) if self.commits.has_more() => Err(late("the last commit before leaving the group")),
            _ => self.commits.refusal(),
        }
    }

    /// Waits for the heartbeat under way: it may be the one that makes it a member.
    async fn settle(&mut self) {
        while let Some(answer) = self.heartbeats.next().await {
            for action in self.membership.handle(Instant::now(), Input::Answered(answer)) {
                match action {
                    Action::Lose(partitions) => self.commits.lose(&partitions),
                    Action::Fail(error) => self.show(Event::Fail(error)),
                    // It is about to have nothing any more.
                    Action::Heartbeat(_) | Action::Release(..) | Action::Take(..) => {}
                }
            }
        }
    }

    /// Tells the coordinator, if that may count it among the members.
    async fn tell_leaving(&mut self, end: Instant) -> Result<(), Error> {
        // One that is not answered is not waited for longer than the half of the time.
        let half = Instant::now() + end.saturating_duration_since(Instant::now()) / 2;
        let _ = timeout_at(half.into(), self.settle()).await;
        let Some(request) = self.membership.leaving() else { return Ok(()) };
        let time = end.saturating_duration_since(Instant::now());
        let body = request::Body::GroupHeartbeat(request);
        let told = self.coordinator.ask_within(time, "leaving the group", body);
        match timeout_at(end.into(), told).await.unwrap_or(Err(late("leaving the group"))) {
            // It is no member already.
            Err(error) if error.code() == Some(ErrorCode::UnknownMember) => Ok(()),
            told => told.map(drop),
        }
    }
}

/// What this comes to, once it does; never if there is nothing under way.
async fn done<T>(under_way: &mut Option<BoxFuture<'static, T>>) -> T {
    match under_way {
        Some(under_way) => under_way.await,
        None => std::future::pending().await,
    }
}

async fn polled_after(busy: &Busy, last: Option<Instant>) {
    match last {
        Some(last) => busy.polled_after(last).await,
        None => std::future::pending().await,
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

fn late(what: &'static str) -> Error {
    Error::TimedOut { address: "the coordinator".into(), what, after: LEAVE_TIME_MAX }
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

pub(crate) fn committed_offset(id: TopicPartition, offset: Offset) -> control::CommittedOffset {
    control::CommittedOffset {
        topic_id: id.topic.as_bytes().to_vec(),
        partition: id.partition.0,
        offset: offset.0,
        ..control::CommittedOffset::default()
    }
}

#[cfg(test)]
mod tests;
