//! The loop beside one partition of the internal topic: what happens goes into the machine, what it wants is done.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use quire_engine::SplitMix64;
use quire_engine::group::coordinator::{Action, Coordinator, Input, Load, Now, RequestId, Serial};
use quire_engine::group::records::{DecodeError, MARK_KEY};
use quire_engine::group::{GroupSettings, Response, Topics};
use quire_protocol::{ErrorCode, LeaderEpoch, TopicPartition, limits};
use tokio::sync::{mpsc, oneshot, watch};

use super::Ask;
use super::log::{self, Appender, Entry, LogError};
use crate::error::RequestError;
use crate::shard::{Clock, PartitionHandle, Partitions, ProduceReply, SystemClock};

/// Pieces of the log that wait to be taken in.
const PIECES_AHEAD: usize = 4;
/// Before the log is read again that could not be read.
const READ_RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// One partition's coordinator.
pub(super) struct Runner {
    id: TopicPartition,
    machine: Coordinator,
    clock: SystemClock,
    random: SplitMix64,
    asks: mpsc::Receiver<Ask>,
    topics: watch::Receiver<Arc<Topics>>,
    answers: HashMap<RequestId, oneshot::Sender<Result<Response, RequestError>>>,
    asked: u64,
    appending: Option<Appending>,
    loading: Option<mpsc::Receiver<Read>>,
}

/// Appends under way, in order.
struct Appending {
    appender: Appender,
    replies: mpsc::Receiver<ProduceReply>,
    serials: VecDeque<Serial>,
}

/// What reading the log gives.
enum Read {
    Piece(Load, Vec<Entry>),
    /// Something is in it that no coordinator of this version wrote.
    Unreadable(Load, DecodeError),
    End(Load),
}

/// What happened.
enum Happened {
    Asked(Ask),
    Topics,
    Standing,
    Replied(Option<ProduceReply>),
    Read(Option<Read>),
    TimePassed,
    Ended,
}

impl Runner {
    pub(super) fn new(
        id: TopicPartition,
        asks: mpsc::Receiver<Ask>,
        topics: watch::Receiver<Arc<Topics>>,
    ) -> Runner {
        Runner {
            id,
            machine: Coordinator::new(GroupSettings::default()),
            clock: SystemClock::new(),
            random: SplitMix64::new(RandomState::new().hash_one(id.partition.0)),
            asks,
            topics,
            answers: HashMap::new(),
            asked: 0,
            appending: None,
            loading: None,
        }
    }

    /// Until the partition is held here no more.
    pub(super) async fn run(mut self, partitions: Partitions) {
        let Some(handle) = self.opened(&partitions).await else {
            // It is looked at again, and not at once.
            return tokio::time::sleep(READ_RETRY_INTERVAL).await;
        };
        let mut changes = handle.changes();
        let topics = self.topics.borrow_and_update().clone();
        self.tell(&handle, Input::Topics(topics)).await;
        self.follow_standing(&handle).await;
        loop {
            let happened = self.next(&mut changes).await;
            match happened {
                Happened::Asked(ask) => {
                    self.asked += 1;
                    let id = RequestId(self.asked);
                    self.answers.insert(id, ask.answer);
                    self.tell(&handle, Input::Asked { id, request: ask.request }).await;
                }
                Happened::Topics => {
                    let topics = self.topics.borrow_and_update().clone();
                    self.tell(&handle, Input::Topics(topics)).await;
                }
                Happened::Standing => {
                    if changes.borrow_and_update().is_closed {
                        break;
                    }
                    self.follow_standing(&handle).await;
                }
                Happened::Replied(reply) => self.replied(&handle, reply).await,
                Happened::Read(Some(Read::Piece(load, records))) => {
                    self.tell(&handle, Input::Loaded { load, records }).await;
                }
                Happened::Read(Some(Read::Unreadable(load, error))) => {
                    self.loading = None;
                    self.tell(&handle, Input::Unreadable { load, error }).await;
                }
                Happened::Read(Some(Read::End(load))) => {
                    self.loading = None;
                    self.tell(&handle, Input::LoadEnd(load)).await;
                }
                // The leadership it was for is over: the standing will say so.
                Happened::Read(None) => self.loading = None,
                Happened::TimePassed => self.tell(&handle, Input::TimePassed).await,
                Happened::Ended => break,
            }
        }
        self.tell(&handle, Input::Follows).await;
    }

    /// The partition, once its log is open. Whoever asks meanwhile is told so.
    async fn opened(&mut self, partitions: &Partitions) -> Option<PartitionHandle> {
        let opened = partitions.opened_replica(self.id);
        tokio::pin!(opened);
        loop {
            tokio::select! {
                handle = &mut opened => return handle,
                ask = self.asks.recv() => {
                    let _ = ask?.answer.send(Err(super::beginning()));
                }
            }
        }
    }

    async fn next(&mut self, changes: &mut watch::Receiver<crate::shard::Watermarks>) -> Happened {
        let deadline = self.machine.deadline().map(|deadline| deadline.since(self.clock.now().time));
        tokio::select! {
            ask = self.asks.recv() => ask.map_or(Happened::Ended, Happened::Asked),
            changed = self.topics.changed() => changed.map_or(Happened::Ended, |()| Happened::Topics),
            changed = changes.changed() => changed.map_or(Happened::Ended, |()| Happened::Standing),
            reply = reply_to(&mut self.appending) => Happened::Replied(reply),
            read = read_by(&mut self.loading) => Happened::Read(read),
            () = sleep(deadline) => Happened::TimePassed,
        }
    }

    async fn follow_standing(&mut self, handle: &PartitionHandle) {
        let standing = handle.standing();
        if !standing.is_leading {
            return self.tell(handle, Input::Follows).await;
        }
        self.tell(handle, Input::Leads(standing.leader_epoch)).await;
        self.tell(handle, Input::Replicas { are_enough: standing.has_enough_replicas }).await;
    }

    async fn replied(&mut self, handle: &PartitionHandle, reply: Option<ProduceReply>) {
        let Some(appending) = &mut self.appending else { return };
        let Some(serial) = appending.serials.pop_front() else { return };
        match reply {
            Some(Ok(_)) => self.tell(handle, Input::Committed(serial)).await,
            Some(Err(error)) => {
                tracing::info!(partition = %self.id, %error, "a group's change was not appended, or it is not known");
                let input = match error.code {
                    // These are said before anything is appended.
                    code @ (ErrorCode::NotEnoughReplicas | ErrorCode::DiskFull) => {
                        Input::Refused { serial, code }
                    }
                    _ => Input::Failed(serial),
                };
                self.tell(handle, input).await;
            }
            None => self.tell(handle, Input::Failed(serial)).await,
        }
    }

    async fn tell(&mut self, handle: &PartitionHandle, input: Input) {
        let now = self.clock.now();
        let now = Now { time: now.time, wall: now.timestamp };
        let mut actions = Vec::new();
        let had_failed = self.machine.failure().is_some();
        self.machine.handle(now, input, &mut self.random, &mut actions);
        for action in actions {
            match action {
                Action::Load(load) => self.load(handle, load),
                Action::Append { leader_epoch, serial, records } => {
                    if let Err(error) = self.append(handle, leader_epoch, serial, &records).await {
                        // What it leads to is wanted before whatever else was.
                        let refused = Input::Refused { serial, code: error.code };
                        return Box::pin(self.tell(handle, refused)).await;
                    }
                }
                Action::Confirm { leader_epoch, serial } => {
                    let mark = [(MARK_KEY.into(), None)];
                    if let Err(error) = self.append(handle, leader_epoch, serial, &mark).await {
                        let refused = Input::Refused { serial, code: error.code };
                        return Box::pin(self.tell(handle, refused)).await;
                    }
                }
                Action::Removed { group, member, why } => {
                    tracing::info!(%group, %member, ?why, "a member is taken for gone");
                }
                Action::Answer { id, result } => {
                    if let Some(answer) = self.answers.remove(&id) {
                        let _ = answer.send(result.map_err(RequestError::from));
                    }
                }
            }
        }
        if let Some(failure) = self.machine.failure().filter(|_| !had_failed) {
            tracing::error!(partition = %self.id, %failure, "the groups of this partition can not be read");
        }
    }

    async fn append(
        &mut self,
        handle: &PartitionHandle,
        leader_epoch: LeaderEpoch,
        serial: Serial,
        records: &[Entry],
    ) -> Result<(), RequestError> {
        let appending = self.appending.get_or_insert_with(|| {
            let (appender, replies) = Appender::new(handle.clone(), leader_epoch, limits::GROUP_APPENDS_MAX);
            Appending { appender, replies, serials: VecDeque::new() }
        });
        let appended = appending.appender.append(self.clock.now().timestamp, records).await;
        match &appended {
            Ok(()) => appending.serials.push_back(serial),
            Err(error) => {
                tracing::error!(partition = %self.id, %error, "a group's change can not be appended");
            }
        }
        appended
    }

    /// Reads the log beside this loop, once nothing of what was handed out before can enter it any more.
    fn load(&mut self, handle: &PartitionHandle, load: Load) {
        let (pieces, read) = mpsc::channel(PIECES_AHEAD);
        self.loading = Some(read);
        let earlier = self.appending.take();
        tokio::spawn(read_log(handle.clone(), load, earlier, pieces));
    }
}

async fn reply_to(appending: &mut Option<Appending>) -> Option<ProduceReply> {
    match appending {
        Some(appending) => appending.replies.recv().await,
        None => std::future::pending().await,
    }
}

async fn read_by(loading: &mut Option<mpsc::Receiver<Read>>) -> Option<Read> {
    match loading {
        Some(loading) => loading.recv().await,
        None => std::future::pending().await,
    }
}

async fn sleep(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
    }
}

/// Everything that the log holds now, once it is committed. Ends without an end if the leadership is over first.
async fn read_log(
    handle: PartitionHandle,
    load: Load,
    earlier: Option<Appending>,
    pieces: mpsc::Sender<Read>,
) {
    if let Some(Appending { appender, mut replies, .. }) = earlier {
        // Each batch holds its sender until it is answered, or dropped behind one that was refused.
        drop(appender);
        while replies.recv().await.is_some() {}
    }
    let mut changes = handle.changes();
    let end = handle.reader().end_offset();
    loop {
        let standing = handle.standing();
        if !standing.is_leading || standing.leader_epoch != load.leader_epoch || changes.borrow().is_closed {
            return;
        }
        if standing.is_settled && handle.reader().high_watermark() >= end {
            break;
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
    loop {
        let (raw, mut taken) = mpsc::channel(1);
        let reading = {
            let handle = handle.clone();
            tokio::task::spawn_blocking(move || log::read_all(&handle, end, &raw))
        };
        let mut is_wanted = true;
        while let Some(entries) = taken.recv().await {
            is_wanted = pieces.send(Read::Piece(load, entries)).await.is_ok();
            if !is_wanted {
                break;
            }
        }
        drop(taken);
        match reading.await {
            Ok(Ok(())) if is_wanted => {
                let _ = pieces.send(Read::End(load)).await;
                return;
            }
            Ok(Err(LogError::Records(error))) if is_wanted => {
                let _ = pieces.send(Read::Unreadable(load, error)).await;
                return;
            }
            Ok(Err(LogError::Disk(error))) if is_wanted => {
                // Where it is damaged another replica leads soon; what is read twice means the same twice.
                let error = handle.read_failed(error).await;
                tracing::warn!(partition = %handle.id(), %error, "the groups' log can not be read; trying again");
                tokio::time::sleep(READ_RETRY_INTERVAL).await;
            }
            _ => return,
        }
        let standing = handle.standing();
        if !standing.is_leading || standing.leader_epoch != load.leader_epoch {
            return;
        }
    }
}
