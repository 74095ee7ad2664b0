//! One broker of the simulated cluster: the replication machines of its partition with everything around them that is
//! otherwise threads, streams and files.
//!
//! It is told what happens and says what it wants; the world decides when and whether that comes about.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use quire_engine::Time;
use quire_engine::machine::Reactive;
use quire_engine::mutant::{self, Mutant};
use quire_engine::replication::{
    EpochEnd, Follow, FollowAnswer, Follower, FollowerAction, FollowerInput, FollowerStart, Leader,
    LeaderAction, LeaderInput, LeaderStart, Membership, Progress, Proposal, ProposalOutcome,
};
use quire_protocol::topic_config::TopicConfig;
use quire_protocol::{BrokerId, LeaderEpoch, Offset};

use super::dice::Dice;
use super::model_log::{Crash, ModelLog, Record, Value};
use super::network::StreamId;

/// How long a follower may lack what its leader has.
const REPLICA_LAG: Duration = Duration::from_millis(800);
/// Records in one message.
const FRAME_RECORDS: usize = 5;

/// What travels on a replicate stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wire {
    /// Follower to leader: have me follow. Answers name the request's number.
    Follow {
        request: u64,
        follower: BrokerId,
        broker_epoch: u64,
        leader_epoch: LeaderEpoch,
        last_epoch: Option<LeaderEpoch>,
        end: Offset,
    },
    /// Follower to leader: how far I am.
    Report { follower: BrokerId, broker_epoch: u64, ends: Progress },
    /// Follower to leader: no more.
    Unfollow,
    /// Leader to follower.
    Accepted { request: u64, from: Offset, high_watermark: Offset, log_start: Offset },
    /// Leader to follower.
    Diverging { request: u64, at: EpochEnd },
    /// Leader to follower.
    Refused { request: u64 },
    /// Leader to follower: records from an offset on.
    Frames { request: u64, base: Offset, records: Vec<Record>, high_watermark: Offset, log_start: Offset },
    /// Leader to follower.
    Watermarks { request: u64, high_watermark: Offset, log_start: Offset },
}

/// The partition as the metadata have it, and who leads it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct View {
    pub leader: Option<BrokerId>,
    pub leader_epoch: LeaderEpoch,
    pub membership: Membership,
    /// Replicas that are in sync or eligible to lead.
    pub counted: Vec<BrokerId>,
}

/// What a broker wants done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Open a stream to the leader.
    Connect { to: BrokerId },
    /// Let go of the stream to the leader.
    Disconnect,
    /// Send on the stream to the leader.
    ToLeader(Wire),
    /// Send on a stream that a follower opened.
    ToFollower(StreamId, Wire),
    /// Have everything up to here synced, and tell when it is.
    Sync { end: Offset },
    /// Ask the controller.
    Propose(Proposal),
    /// Have the controller count on this replica no more.
    Distrust,
    /// Answer a produce request.
    Acknowledge { value: Value, offset: Offset },
    /// A produce request was not taken, or nobody knows what becomes of it.
    Fail { value: Value, is_outcome_unknown: bool },
    /// Readers see this much.
    Exposed { high_watermark: Offset },
    /// A leadership is settled: readers are told where the end is.
    Settled { leader_epoch: LeaderEpoch },
    /// A record came into the log.
    Appended { offset: Offset, record: Record },
    /// Records that were committed once are cut off.
    TookBack { from: Offset, to: Offset },
}

/// A broker.
#[derive(Debug)]
pub struct Broker {
    pub id: BrokerId,
    /// Its registration; `None` until the controller answered.
    pub broker_epoch: Option<u64>,
    /// Counts its starts.
    pub incarnation: u64,
    pub log: ModelLog,
    pub view: View,
    pub role: Role,
    config: TopicConfig,
    dice: Dice,
    is_syncing: bool,
    is_broken: bool,
    /// This process's last leadership, of which the next one is to know nothing.
    last_leader: Option<Leader>,
}

/// What it is in the partition.
#[derive(Debug)]
pub enum Role {
    /// Neither: there is no leader, or it is not registered.
    Idle,
    Leads(Box<Leading>),
    Follows(Box<Following>),
}

#[derive(Debug)]
pub struct Leading {
    pub leader: Leader,
    feeds: BTreeMap<StreamId, Feed>,
    waiters: VecDeque<(Value, Offset)>,
    is_settled: bool,
}

/// A stream that a follower opened.
#[derive(Debug)]
struct Feed {
    request: u64,
    next: Option<Offset>,
    told: (Offset, Offset),
}

#[derive(Debug)]
pub struct Following {
    pub follower: Follower,
    pub leader: BrokerId,
    is_linked: bool,
    request: u64,
}

impl Broker {
    /// A broker with an empty log, not registered.
    pub fn new(id: BrokerId, config: TopicConfig, dice: Dice) -> Broker {
        Broker {
            id,
            broker_epoch: None,
            incarnation: 0,
            log: ModelLog::default(),
            view: View::default(),
            role: Role::Idle,
            config,
            dice,
            is_syncing: false,
            is_broken: false,
            last_leader: None,
        }
    }

    /// The process ends and starts anew. What it forgets with it is gone; what it has on disk is not.
    pub fn restart(&mut self, crash: Crash) {
        self.log.crash(crash, &mut self.dice);
        self.broker_epoch = None;
        self.incarnation += 1;
        self.view = View::default();
        self.role = Role::Idle;
        self.is_syncing = false;
        self.is_broken = false;
        self.last_leader = None;
    }

    /// Its registration was followed by another: a request of an earlier start came late. It registers anew.
    pub fn lose_registration(&mut self, effects: &mut Vec<Effect>) {
        self.broker_epoch = None;
        self.step_down(effects);
    }

    /// Whether it leads, and believes that it may.
    pub fn leads(&self) -> Option<&Leader> {
        match &self.role {
            Role::Leads(leading) => Some(&leading.leader),
            _ => None,
        }
    }

    /// Whether a sync failed since it started.
    pub fn is_broken(&self) -> bool {
        self.is_broken
    }

    /// When it wants to be told that time has passed.
    pub fn deadline(&self) -> Option<Time> {
        match &self.role {
            Role::Leads(leading) => leading.leader.deadline(),
            Role::Follows(following) => following.follower.deadline(),
            Role::Idle => None,
        }
    }

    /// Its deadline has come.
    pub fn tick(&mut self, now: Time, effects: &mut Vec<Effect>) {
        match &self.role {
            Role::Leads(_) => self.lead(now, LeaderInput::TimePassed, effects),
            Role::Follows(_) => self.follow(now, FollowerInput::TimePassed, effects),
            Role::Idle => {}
        }
    }

    /// The metadata show something new.
    pub fn follow_metadata(&mut self, now: Time, view: View, effects: &mut Vec<Effect>) {
        self.view = view;
        let Some(broker_epoch) = self.broker_epoch else { return };
        let replica = self.view.membership.replicas.get(&self.id);
        // An image from before this start says nothing about this process.
        let is_known = replica.is_some_and(|replica| replica.broker_epoch == broker_epoch);
        let epoch = self.view.leader_epoch;
        match (self.view.leader, &self.role) {
            _ if !is_known => {}
            (Some(leader), Role::Leads(leading))
                if leader == self.id && leading.leader.leader_epoch() == epoch =>
            {
                let input = LeaderInput::Reconfigured {
                    membership: self.view.membership.clone(),
                    sync: self.config.sync,
                    min_insync_replicas: self.config.min_insync_replicas,
                };
                self.lead(now, input, effects);
            }
            (Some(leader), Role::Follows(following))
                if leader == following.leader && following.follower.leader_epoch() == epoch =>
            {
                let input =
                    FollowerInput::Reconfigured { sync: self.config.sync, is_counted: self.is_counted() };
                self.follow(now, input, effects);
            }
            (Some(leader), _) if self.is_broken && leader == self.id => self.step_down(effects),
            (Some(leader), _) if leader == self.id => {
                self.step_down(effects);
                self.begin_to_lead(now, effects);
            }
            (Some(leader), _) => {
                self.step_down(effects);
                self.begin_to_follow(leader, effects);
                effects.push(Effect::Connect { to: leader });
            }
            (None, _) => self.step_down(effects),
        }
    }

    /// A client wants a value appended.
    pub fn produce(&mut self, now: Time, value: Value, effects: &mut Vec<Effect>) {
        let epoch = match &self.role {
            Role::Leads(leading) if !self.is_broken && leading.leader.has_enough_replicas() => {
                leading.leader.leader_epoch()
            }
            _ => {
                effects.push(Effect::Fail { value, is_outcome_unknown: false });
                return;
            }
        };
        let record = Record { epoch, value };
        let offset = self.log.end();
        self.log.append(record);
        effects.push(Effect::Appended { offset, record });
        let end = self.log.end();
        if let Role::Leads(leading) = &mut self.role {
            leading.waiters.push_back((value, end));
        }
        self.lead(now, LeaderInput::Appended { end }, effects);
        self.want_sync(effects);
    }

    /// A sync succeeded.
    pub fn synced(&mut self, now: Time, end: Offset, effects: &mut Vec<Effect>) {
        self.is_syncing = false;
        if self.is_broken {
            return;
        }
        self.log.synced(end);
        let end = self.log.progress().durable_end;
        match &self.role {
            Role::Leads(_) => self.lead(now, LeaderInput::LocalDurable { end }, effects),
            Role::Follows(following) if !following.follower.is_cutting() => {
                self.follow(now, FollowerInput::LocalDurable { end }, effects);
            }
            _ => {}
        }
        self.want_sync(effects);
    }

    /// A sync failed: nothing may be assumed of what it covered, and nothing more is appended.
    pub fn sync_failed(&mut self, now: Time, effects: &mut Vec<Effect>) {
        self.is_syncing = false;
        self.is_broken = true;
        match &self.role {
            Role::Leads(_) => self.lead(now, LeaderInput::SyncFailed, effects),
            Role::Follows(_) => self.follow(now, FollowerInput::Failed, effects),
            Role::Idle => {}
        }
    }

    /// The controller answered a proposal, or did not.
    pub fn proposed(&mut self, now: Time, number: u64, outcome: ProposalOutcome, effects: &mut Vec<Effect>) {
        if let Role::Leads(_) = &self.role {
            self.lead(now, LeaderInput::ProposalAnswered { number, outcome }, effects);
        }
    }

    /// The stream to the leader is there, or is not any more.
    pub fn linked(&mut self, now: Time, is_linked: bool, effects: &mut Vec<Effect>) {
        let Role::Follows(following) = &mut self.role else { return };
        following.is_linked = is_linked;
        let input = if is_linked { FollowerInput::LinkUp } else { FollowerInput::LinkDown };
        self.follow(now, input, effects);
    }

    /// A follower's stream is gone.
    pub fn unlinked(&mut self, stream: StreamId) {
        if let Role::Leads(leading) = &mut self.role {
            leading.feeds.remove(&stream);
        }
    }

    /// Something came on a stream that a follower opened.
    pub fn take_from_follower(
        &mut self,
        now: Time,
        stream: StreamId,
        message: Wire,
        effects: &mut Vec<Effect>,
    ) {
        match message {
            Wire::Follow { request, follower, broker_epoch, leader_epoch, last_epoch, end } => {
                let Role::Leads(leading) = &mut self.role else {
                    effects.push(Effect::ToFollower(stream, Wire::Refused { request }));
                    return;
                };
                leading
                    .feeds
                    .insert(stream, Feed { request, next: None, told: (Offset::ZERO, Offset::ZERO) });
                let known = last_epoch.and_then(|epoch| self.log.epoch_end(epoch));
                let follow = Follow { follower, broker_epoch, leader_epoch, last_epoch, end, known };
                self.answer_to(now, stream, follow, effects);
            }
            Wire::Report { follower, broker_epoch, ends } => {
                if let Role::Leads(leading) = &self.role
                    && leading.feeds.get(&stream).is_some_and(|feed| feed.next.is_some())
                {
                    self.lead(now, LeaderInput::Progress { follower, broker_epoch, ends }, effects);
                }
            }
            Wire::Unfollow => self.unlinked(stream),
            other => unreachable!("a follower does not send {other:?}"),
        }
    }

    /// Something came on the stream to the leader.
    pub fn take_from_leader(&mut self, now: Time, message: Wire, effects: &mut Vec<Effect>) {
        let Role::Follows(following) = &mut self.role else { return };
        let current = following.request;
        match message {
            Wire::Accepted { request, from, high_watermark, log_start } if request == current => {
                self.follow(now, FollowerInput::Accepted { from, high_watermark, log_start }, effects);
            }
            Wire::Diverging { request, at } if request == current => {
                let own = self.log.epoch_end(at.epoch);
                self.follow(now, FollowerInput::Diverging { leader: at, own }, effects);
            }
            Wire::Refused { request } if request == current => {
                self.follow(now, FollowerInput::Refused, effects);
            }
            Wire::Frames { request, base, records, high_watermark, log_start } if request == current => {
                self.take_frames(now, base, &records, effects);
                self.follow(now, FollowerInput::Watermarks { high_watermark, log_start }, effects);
            }
            Wire::Watermarks { request, high_watermark, log_start } if request == current => {
                self.follow(now, FollowerInput::Watermarks { high_watermark, log_start }, effects);
            }
            _ => {}
        }
    }

    fn is_counted(&self) -> bool {
        self.view.counted.contains(&self.id)
    }

    /// Ends a leadership or a following. What waits is not known to be kept.
    fn step_down(&mut self, effects: &mut Vec<Effect>) {
        match std::mem::replace(&mut self.role, Role::Idle) {
            Role::Leads(leading) => {
                let fail = |(value, _)| Effect::Fail { value, is_outcome_unknown: true };
                effects.extend(leading.waiters.into_iter().map(fail));
                self.last_leader = Some(leading.leader);
            }
            Role::Follows(_) => effects.push(Effect::Disconnect),
            Role::Idle => {}
        }
    }

    fn begin_to_lead(&mut self, now: Time, effects: &mut Vec<Effect>) {
        let leader_epoch = self.view.leader_epoch;
        self.log.enter_epoch(leader_epoch);
        let mut actions = Vec::new();
        let start = LeaderStart {
            broker: self.id,
            leader_epoch,
            membership: self.view.membership.clone(),
            config: &self.config,
            replica_lag: REPLICA_LAG,
            log_start: self.log.start(),
            high_watermark: self.log.high_watermark(),
            local: self.log.progress(),
        };
        let mut leader = Leader::start(now, start, &mut actions);
        let keeps_progress = mutant::is_on(Mutant::ProgressReset) || mutant::is_on(Mutant::FollowedInEpoch);
        if let Some(earlier) = self.last_leader.take().filter(|_| keeps_progress) {
            leader.keep_progress_of(&earlier);
        }
        self.role = Role::Leads(Box::new(Leading {
            leader,
            feeds: BTreeMap::new(),
            waiters: VecDeque::new(),
            is_settled: false,
        }));
        self.do_as_leader(now, actions, effects);
        self.want_sync(effects);
    }

    fn begin_to_follow(&mut self, leader: BrokerId, effects: &mut Vec<Effect>) {
        let mut actions = Vec::new();
        let start = FollowerStart {
            leader_epoch: self.view.leader_epoch,
            last_epoch: self.log.last_epoch(),
            sync: self.config.sync,
            log_start: self.log.start(),
            high_watermark: self.log.high_watermark(),
            ends: self.log.progress(),
            is_counted: self.is_counted(),
            is_damaged: false,
        };
        let follower = Follower::start(start, &mut actions);
        self.role = Role::Follows(Box::new(Following { follower, leader, is_linked: false, request: 0 }));
        assert!(actions.is_empty(), "an undamaged follower waits for its link: {actions:?}");
        if self.is_broken {
            self.follow(Time::ZERO, FollowerInput::Failed, effects);
        }
    }

    fn lead(&mut self, now: Time, input: LeaderInput, effects: &mut Vec<Effect>) {
        let Role::Leads(leading) = &mut self.role else { return };
        let mut actions = Vec::new();
        leading.leader.handle(now, input, &mut actions);
        self.do_as_leader(now, actions, effects);
    }

    fn do_as_leader(&mut self, _now: Time, actions: Vec<LeaderAction>, effects: &mut Vec<Effect>) {
        for action in actions {
            match action {
                LeaderAction::AdvanceHighWatermark { to } => {
                    self.log.set_high_watermark(to, &mut self.dice);
                    effects.push(Effect::Exposed { high_watermark: to });
                }
                LeaderAction::Propose(proposal) => effects.push(Effect::Propose(proposal)),
                LeaderAction::Resign { .. } => effects.push(Effect::Distrust),
                LeaderAction::Answer(_) => unreachable!("answers are taken where they are asked for"),
            }
        }
        let Role::Leads(leading) = &mut self.role else { return };
        if !leading.is_settled && leading.leader.is_settled() {
            leading.is_settled = true;
            effects.push(Effect::Settled { leader_epoch: leading.leader.leader_epoch() });
        }
        while let Some((value, end)) =
            leading.waiters.pop_front_if(|(_, end)| *end <= leading.leader.high_watermark())
        {
            effects.push(Effect::Acknowledge { value, offset: Offset(end.0 - 1) });
        }
        self.feed(effects);
    }

    fn answer_to(&mut self, now: Time, stream: StreamId, follow: Follow, effects: &mut Vec<Effect>) {
        let Role::Leads(leading) = &mut self.role else { return };
        let mut actions = Vec::new();
        leading.leader.handle(now, LeaderInput::Follow(follow), &mut actions);
        let (high_watermark, log_start) = (leading.leader.high_watermark(), self.log.start());
        let feed = leading.feeds.get_mut(&stream).expect("just put there");
        let request = feed.request;
        let mut rest = Vec::new();
        for action in actions {
            let LeaderAction::Answer(answer) = action else {
                rest.push(action);
                continue;
            };
            let message = match answer {
                FollowAnswer::Accepted { from } => {
                    feed.next = Some(from);
                    feed.told = (high_watermark, log_start);
                    Wire::Accepted { request, from, high_watermark, log_start }
                }
                FollowAnswer::Diverging(at) => Wire::Diverging { request, at },
                FollowAnswer::Refused(_) => Wire::Refused { request },
            };
            effects.push(Effect::ToFollower(stream, message));
        }
        self.do_as_leader(now, rest, effects);
    }

    /// Sends every follower what it has not been sent.
    fn feed(&mut self, effects: &mut Vec<Effect>) {
        let Role::Leads(leading) = &mut self.role else { return };
        let (high_watermark, log_start) = (leading.leader.high_watermark(), self.log.start());
        for (stream, feed) in &mut leading.feeds {
            let Some(next) = &mut feed.next else { continue };
            let request = feed.request;
            while *next < self.log.end() {
                let records = self.log.records_from(next.0, FRAME_RECORDS).to_vec();
                let base = *next;
                next.0 += records.len() as u64;
                feed.told = (high_watermark, log_start);
                let frames = Wire::Frames { request, base, records, high_watermark, log_start };
                effects.push(Effect::ToFollower(*stream, frames));
            }
            if feed.told != (high_watermark, log_start) {
                feed.told = (high_watermark, log_start);
                let watermarks = Wire::Watermarks { request, high_watermark, log_start };
                effects.push(Effect::ToFollower(*stream, watermarks));
            }
        }
    }

    fn follow(&mut self, now: Time, input: FollowerInput, effects: &mut Vec<Effect>) {
        let Role::Follows(following) = &mut self.role else { return };
        let mut actions = Vec::new();
        following.follower.handle(now, input, &mut actions);
        for action in actions {
            self.do_as_follower(now, action, effects);
        }
    }

    fn do_as_follower(&mut self, now: Time, action: FollowerAction, effects: &mut Vec<Effect>) {
        let Role::Follows(following) = &mut self.role else { return };
        let broker_epoch = self.broker_epoch.unwrap_or_default();
        match action {
            FollowerAction::Follow { leader_epoch, last_epoch, end } => {
                following.request += 1;
                effects.push(Effect::ToLeader(Wire::Follow {
                    request: following.request,
                    follower: self.id,
                    broker_epoch,
                    leader_epoch,
                    last_epoch,
                    end,
                }));
            }
            FollowerAction::Truncate { to, is_committed } => {
                if is_committed {
                    effects.push(Effect::TookBack { from: to, to: self.log.high_watermark() });
                }
                self.log.truncate(to);
                let (ends, last_epoch) = (self.log.progress(), self.log.last_epoch());
                self.follow(now, FollowerInput::Truncated { ends, last_epoch }, effects);
            }
            FollowerAction::Restart { at, is_committed } => {
                if is_committed && !self.is_broken {
                    effects.push(Effect::TookBack { from: at, to: self.log.high_watermark() });
                }
                self.log.restart_at(at);
                self.follow(now, FollowerInput::Restarted { at }, effects);
            }
            FollowerAction::AdvanceHighWatermark { to } => {
                self.log.set_high_watermark(to, &mut self.dice);
                effects.push(Effect::Exposed { high_watermark: to });
            }
            FollowerAction::AdvanceLogStart { .. } => {}
            FollowerAction::Report(ends) => {
                effects.push(Effect::ToLeader(Wire::Report { follower: self.id, broker_epoch, ends }));
            }
            FollowerAction::Distrust => effects.push(Effect::Distrust),
            FollowerAction::Unfollow => effects.push(Effect::ToLeader(Wire::Unfollow)),
        }
    }

    fn take_frames(&mut self, now: Time, base: Offset, records: &[Record], effects: &mut Vec<Effect>) {
        let Role::Follows(following) = &self.role else { return };
        if !following.follower.is_fetching() || self.is_broken {
            return;
        }
        let is_fit = base == self.log.end()
            && records.iter().all(|record| self.log.last_epoch().is_none_or(|last| record.epoch >= last));
        if !is_fit {
            self.follow(now, FollowerInput::Unfitting, effects);
            return;
        }
        for record in records {
            effects.push(Effect::Appended { offset: self.log.end(), record: *record });
            self.log.append(*record);
        }
        let last_epoch = self.log.last_epoch().expect("records were appended");
        self.follow(now, FollowerInput::Appended { end: self.log.end(), last_epoch }, effects);
        self.want_sync(effects);
    }

    fn want_sync(&mut self, effects: &mut Vec<Effect>) {
        let progress = self.log.progress();
        if !self.is_syncing && !self.is_broken && progress.durable_end < progress.log_end {
            self.is_syncing = true;
            effects.push(Effect::Sync { end: progress.log_end });
        }
    }
}
