//! Carries out what the machine around the controller wants: entries go to the log, answers to those who wait, the image
//! to those who follow it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};

use quire_engine::SplitMix64;
use quire_engine::controller::proposals::{
    Action, Entry, Input, Leadership, NotDone, Position, ProposalId, Proposals,
};
use quire_engine::controller::{Conflict, Image, Request, Response};
use quire_protocol::limits;
use tokio::sync::{mpsc, oneshot, watch};

use super::active::Registrations;
use super::types::{LogId, StoredMembership};
use crate::shard::Clock;

/// The machine and everyone it talks to, shared between the log's engine, which applies, and whoever asks.
pub(super) type SharedDriver = Arc<Mutex<Driver>>;

/// An answer, and how much of the log has to be applied before an image shows it.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) result: Result<Response, NotDone>,
    /// Entries of the log.
    pub(super) applied: u64,
}

#[derive(Debug)]
pub(super) struct Driver {
    proposals: Proposals,
    random: SplitMix64,
    clock: Arc<dyn Clock>,
    answers: BTreeMap<ProposalId, oneshot::Sender<Answer>>,
    asked: u64,
    /// Decisions on their way to the log.
    appends: mpsc::Sender<Entry>,
    image: watch::Sender<Arc<Image>>,
    /// Entries applied.
    applied: watch::Sender<u64>,
    /// The leadership in which this node decides, if it does.
    deciding: watch::Sender<Option<Leadership>>,
    registrations: Registrations,
    last_applied: Option<LogId>,
    membership: StoredMembership,
}

impl Driver {
    pub(super) fn new(seed: u64, clock: Arc<dyn Clock>, appends: mpsc::Sender<Entry>) -> Driver {
        let proposals = Proposals::new();
        Driver {
            image: watch::Sender::new(proposals.image().clone()),
            applied: watch::Sender::new(0),
            proposals,
            random: SplitMix64::new(seed),
            clock,
            answers: BTreeMap::new(),
            asked: 0,
            appends,
            deciding: watch::Sender::new(None),
            registrations: Registrations::default(),
            last_applied: None,
            membership: StoredMembership::default(),
        }
    }

    pub(super) fn image(&self) -> watch::Receiver<Arc<Image>> {
        self.image.subscribe()
    }

    pub(super) fn applied(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    /// Up to where the log is applied, as the engine counts and as the machine does, with the membership there.
    pub(super) fn state(&self) -> (Option<LogId>, StoredMembership, Position, Arc<Image>) {
        let proposals = &self.proposals;
        (self.last_applied, self.membership.clone(), proposals.applied(), proposals.image().clone())
    }

    /// The leadership in which this node decides, if it does.
    pub(super) fn deciding(&self) -> Option<Leadership> {
        self.proposals.deciding()
    }

    /// Follows that.
    pub(super) fn watch_deciding(&self) -> watch::Receiver<Option<Leadership>> {
        self.deciding.subscribe()
    }

    pub(super) fn registrations(&self) -> &Registrations {
        &self.registrations
    }

    /// Asks the controller, if it is this node; `None` if too many wait already.
    pub(super) fn propose(&mut self, request: Request) -> Option<oneshot::Receiver<Answer>> {
        if self.proposals.waiting() >= limits::METADATA_QUEUE_REQUESTS {
            return None;
        }
        self.asked += 1;
        let (answer, is_answered) = oneshot::channel();
        let proposal = ProposalId(self.asked);
        self.answers.insert(proposal, answer);
        let now = self.clock.now().timestamp;
        self.give(Input::Propose { proposal, now, request }).expect("a request changes nothing yet");
        Some(is_answered)
    }

    /// Takes the next entry of the log.
    pub(super) fn commit(
        &mut self,
        id: LogId,
        leadership: Leadership,
        entry: Option<Entry>,
    ) -> Result<(), Conflict> {
        self.last_applied = Some(id);
        let applied = id.index + 1;
        if let Some(entry) = &entry {
            self.registrations.note(&entry.records, applied);
        }
        self.give(Input::Committed { leadership, entry })?;
        self.applied.send_replace(applied);
        Ok(())
    }

    pub(super) fn set_membership(&mut self, membership: StoredMembership) {
        self.membership = membership;
    }

    /// Takes a snapshot in the place of the entries that it covers.
    pub(super) fn install(
        &mut self,
        last: Option<LogId>,
        membership: StoredMembership,
        position: Position,
        image: Arc<Image>,
    ) {
        self.last_applied = last;
        self.membership = membership;
        let applied = last.map_or(0, |last| last.index + 1);
        self.registrations.replace(&image, applied);
        self.give(Input::Installed { position, image }).expect("a snapshot takes the place of everything");
        self.applied.send_replace(applied);
    }

    /// Nothing more comes from the log: nobody is left to wait for it.
    pub(super) fn end(&mut self) {
        self.answers.clear();
    }

    /// # Errors
    /// If a committed entry does not fit: this node must not go on.
    pub(super) fn give(&mut self, input: Input) -> Result<(), Conflict> {
        let mut inputs = VecDeque::from([input]);
        let mut actions = Vec::new();
        while let Some(input) = inputs.pop_front() {
            self.proposals.handle(input, &mut self.random, &mut actions)?;
            for action in actions.drain(..) {
                inputs.extend(self.carry_out(action));
            }
        }
        let deciding = self.proposals.deciding();
        self.deciding.send_if_modified(|known| std::mem::replace(known, deciding) != deciding);
        Ok(())
    }

    /// What follows at once, if anything does.
    fn carry_out(&mut self, action: Action) -> Option<Input> {
        match action {
            Action::Append(entry) => {
                let refused = self.appends.try_send(entry).err()?.into_inner();
                return Some(Input::NotTaken { leadership: refused.leadership, serial: refused.serial });
            }
            Action::Show(image) => drop(self.image.send_replace(image)),
            Action::Answer { proposal, result } => {
                let applied = self.last_applied.map_or(0, |last| last.index + 1);
                if let Some(answer) = self.answers.remove(&proposal) {
                    // Who asked may have gone; the change is made all the same.
                    let _ = answer.send(Answer { result, applied });
                }
            }
        }
        None
    }
}
