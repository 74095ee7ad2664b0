//! The coordinator beside one replica of the internal topic, without its task: what it decides is real, and so are the log
//! that it reads and the appends that it is answered by. See `coordinator::run` of the broker.

use std::collections::VecDeque;
use std::sync::Arc;

use quire_broker::simulation::{Now, PartitionHandle, ProduceReply, ProduceRequest, Standing};
use quire_engine::group::coordinator::{self, Action, Coordinator, Input, Load, RequestId, Serial};
use quire_engine::group::records::{KeyValue, MARK_KEY};
use quire_engine::group::{GroupRefusal, GroupSettings, Request, Response, Topics};
use quire_engine::{Random, SplitMix64, Time};
use quire_protocol::batch::{BatchBuilder, BatchHeader, Compression, Record};
use quire_protocol::stream::Acks;
use quire_protocol::{ErrorCode, LeaderEpoch, Offset, limits};
use tokio::sync::{Semaphore, mpsc};

use super::ledger::{rebuilt, records};

/// What a member is answered.
pub type GroupAnswer = Result<Response, GroupRefusal>;

/// What a coordinator wants done.
#[derive(Debug)]
pub enum Want {
    Append(ProduceRequest),
    Answer(RequestId, GroupAnswer),
    /// Its log is damaged.
    Damaged(String),
    /// A member is taken for gone.
    Removed,
    /// It decides from here on.
    Loaded(LeaderEpoch),
    /// It begins with something else than what its log says.
    Differs,
}

/// One partition's coordinator.
#[derive(Debug)]
pub struct Desk {
    settings: GroupSettings,
    machine: Coordinator,
    random: SplitMix64,
    asks: Vec<(RequestId, Request)>,
    appending: Option<Appending>,
    loading: Option<Loading>,
    standing: Option<Standing>,
    wants: Vec<Want>,
}

/// Appends under way, in order.
#[derive(Debug)]
struct Appending {
    leader_epoch: LeaderEpoch,
    reply: mpsc::Sender<ProduceReply>,
    replies: mpsc::Receiver<ProduceReply>,
    serials: VecDeque<Serial>,
}

/// The log is being read, once nothing handed out before can enter it any more, and all that it holds is committed.
#[derive(Debug)]
struct Loading {
    load: Load,
    earlier: Option<mpsc::Receiver<ProduceReply>>,
    end: Option<Offset>,
}

impl Desk {
    /// Of a replica that does not lead.
    pub fn new(settings: GroupSettings, seed: u64) -> Desk {
        Desk {
            machine: Coordinator::new(settings.clone()),
            settings,
            random: SplitMix64::new(seed),
            asks: Vec::new(),
            appending: None,
            loading: None,
            standing: None,
            wants: Vec::new(),
        }
    }

    /// Somebody asks.
    pub fn ask(&mut self, id: RequestId, request: Request) {
        self.asks.push((id, request));
    }

    /// Whether something happened that it is to be told.
    pub fn is_stirred(&self, standing: Standing) -> bool {
        let has_replies = self.appending.as_ref().is_some_and(|appending| !appending.replies.is_empty());
        has_replies || !self.asks.is_empty() || self.loading.is_some() || self.standing != Some(standing)
    }

    /// When it is to be told that time has passed; at once while it reads.
    pub fn deadline(&self, now: Time) -> Option<Time> {
        if self.loading.is_some() { Some(now) } else { self.machine.deadline() }
    }

    /// Takes in whatever happened, as it finds it: what it is asked may be taken before the news, or after.
    pub fn run(&mut self, now: Now, handle: &PartitionHandle, topics: &Arc<Topics>) -> Vec<Want> {
        self.tell(now, Input::Topics(Arc::clone(topics)));
        let hears_late = self.random.next_u64().is_multiple_of(2);
        if !hears_late {
            self.follow_standing(now, handle);
        }
        for (id, request) in std::mem::take(&mut self.asks) {
            self.tell(now, Input::Asked { id, request });
        }
        while let Some(appending) = &mut self.appending
            && let Ok(reply) = appending.replies.try_recv()
        {
            let Some(serial) = appending.serials.pop_front() else { continue };
            self.tell(now, replied(serial, reply));
        }
        if hears_late {
            self.follow_standing(now, handle);
        }
        self.read(now, handle, topics);
        self.tell(now, Input::TimePassed);
        std::mem::take(&mut self.wants)
    }

    /// The partition is held here no more: whoever waits is told so.
    pub fn end(&mut self, now: Now) -> Vec<Want> {
        self.tell(now, Input::Follows);
        std::mem::take(&mut self.wants)
    }

    fn follow_standing(&mut self, now: Now, handle: &PartitionHandle) {
        let standing = handle.standing();
        if self.standing.replace(standing) == Some(standing) {
            return;
        }
        if !standing.is_leading {
            return self.tell(now, Input::Follows);
        }
        self.tell(now, Input::Leads(standing.leader_epoch));
        self.tell(now, Input::Replicas { are_enough: standing.has_enough_replicas });
    }

    fn tell(&mut self, now: Now, input: Input) {
        let mut actions = Vec::new();
        let present = coordinator::Now { time: now.time, wall: now.timestamp };
        let deciding = self.machine.deciding();
        self.machine.handle(present, input, &mut self.random, &mut actions);
        for action in actions {
            match action {
                Action::Load(load) => {
                    let earlier = self.appending.take().map(|appending| appending.replies);
                    self.loading = Some(Loading { load, earlier, end: None });
                }
                Action::Append { leader_epoch, serial, records } => {
                    self.append(now, leader_epoch, serial, &records);
                }
                Action::Confirm { leader_epoch, serial } => {
                    self.append(now, leader_epoch, serial, &[(MARK_KEY.into(), None)]);
                }
                Action::Removed { .. } => self.wants.push(Want::Removed),
                Action::Answer { id, result } => self.wants.push(Want::Answer(id, result)),
            }
        }
        if let Some(leader_epoch) = self.machine.deciding().filter(|epoch| Some(*epoch) != deciding) {
            self.wants.push(Want::Loaded(leader_epoch));
        }
    }

    fn append(&mut self, now: Now, leader_epoch: LeaderEpoch, serial: Serial, records: &[KeyValue]) {
        let appending = self.appending.get_or_insert_with(|| {
            let (reply, replies) = mpsc::channel(limits::GROUP_APPENDS_MAX + 1);
            Appending { leader_epoch, reply, replies, serials: VecDeque::new() }
        });
        let mut builder = BatchBuilder::new(Compression::None);
        for (key, value) in records {
            let record = Record { key: Some(key.clone()), value: value.clone(), ..Record::default() };
            builder.push(&record, now.timestamp).expect("groups are small here");
        }
        let batch = Vec::from(builder.finish().expect("nothing to compress"));
        appending.serials.push_back(serial);
        let memory = Arc::new(Semaphore::new(1));
        self.wants.push(Want::Append(ProduceRequest {
            header: BatchHeader::check(&batch).expect("just built"),
            batch,
            leader_epoch: appending.leader_epoch,
            acks: Acks::All,
            permit: memory.try_acquire_owned().expect("it is free"),
            reply: appending.reply.clone(),
        }));
    }

    /// Reads the log if that is wanted, and can be done by now.
    fn read(&mut self, now: Now, handle: &PartitionHandle, topics: &Arc<Topics>) {
        let Some(loading) = &mut self.loading else { return };
        while let Some(earlier) = &mut loading.earlier {
            match earlier.try_recv() {
                Ok(_) => {}
                Err(mpsc::error::TryRecvError::Empty) => return,
                Err(mpsc::error::TryRecvError::Disconnected) => loading.earlier = None,
            }
        }
        let (standing, load) = (handle.standing(), loading.load);
        if !standing.is_leading || standing.leader_epoch != load.leader_epoch {
            self.loading = None;
            return;
        }
        let end = *loading.end.get_or_insert(handle.reader().end_offset());
        let is_committed = standing.is_settled && handle.reader().high_watermark() >= end;
        // Reading takes its time.
        if !is_committed || self.random.next_u64().is_multiple_of(2) {
            return;
        }
        match records(handle, handle.reader().log_start(), end) {
            Ok(batches) => {
                self.loading = None;
                let expected = rebuilt(&batches, self.settings.clone(), Arc::clone(topics));
                for records in batches {
                    self.tell(now, Input::Loaded { load, records });
                }
                self.tell(now, Input::LoadEnd(load));
                // Unless it had to bring something in line at once.
                let has_decided = self.wants.iter().any(|want| matches!(want, Want::Append(_)));
                let is_told = self.machine.deciding().is_some() && standing.has_enough_replicas;
                if is_told && !has_decided && expected.as_ref() != Ok(self.machine.groups()) {
                    self.wants.push(Want::Differs);
                }
            }
            Err(error) => self.wants.push(Want::Damaged(error.to_string())),
        }
    }
}

fn replied(serial: Serial, reply: ProduceReply) -> Input {
    match reply {
        Ok(_) => Input::Committed(serial),
        // These are said before anything is appended.
        Err(error) => match error.code {
            code @ (ErrorCode::NotEnoughReplicas | ErrorCode::DiskFull) => Input::Refused { serial, code },
            _ => Input::Failed(serial),
        },
    }
}
