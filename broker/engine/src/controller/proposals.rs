//! The controller on a log that others write to as well: who may decide, what an entry of the log is worth, and who is
//! answered with what.
//!
//! The log is a consensus engine's: it says who leads, takes entries from whoever leads, and gives every node the same
//! entries in the same order. What it does not say in time is that a leadership has ended. So
//!
//! - a node decides while it leads, once an entry of its own leadership is applied: everything of older leaderships is
//!   applied then;
//! - what it decided is pending until applied, and forgotten with the leadership;
//! - each entry names the leadership it was decided in and the decision it was decided on. Where it stands in the log
//!   tells whether both still hold; if not, every node ignores it;
//! - an answer waits until its entry is applied, or until it can no longer be. Between the two the outcome is unknown,
//!   and whoever can not wait has to take it as such.
//!
//! ```text
//!             Propose           Append            the log           Committed
//!  request ──────────► decide ─────────► (serial) ───────► (serial) ─────────► apply ──► Show, Answer
//! ```

use std::collections::VecDeque;
use std::sync::Arc;

use quire_protocol::Timestamp;

use super::{Conflict, Controller, Image, Record, Refusal, Request, Response};
use crate::Random;
use crate::machine::Replicated;
use crate::mutant::{self, Mutant};

/// A leadership of the metadata log: its term. At most one node ever leads in it, and never again after it restarted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Leadership(pub u64);

/// Names a request to whoever asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProposalId(pub u64);

/// Up to which decision the log is applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Position {
    /// Of the last entry applied, whatever it was.
    pub leadership: Leadership,
    /// The serial of the last decision applied in that leadership; 0 before the first.
    pub serial: u64,
}

/// One decision, as an entry of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The leadership it was decided in.
    pub leadership: Leadership,
    /// Numbers the decisions of a leadership, from 1 on; never given twice.
    pub serial: u64,
    /// The serial of the decision before it, which it takes for granted; 0 if it is the first of its leadership.
    pub after: u64,
    /// To be applied together. Never empty.
    pub records: Vec<Record>,
}

/// Everything that can happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// The log says that this node leads.
    Leads(Leadership),
    /// The log says that this node does not lead.
    Follows,
    /// Someone asks for a change.
    Propose {
        /// Names it in the answer.
        proposal: ProposalId,
        /// This node's clock.
        now: Timestamp,
        /// What is asked for.
        request: Request,
    },
    /// The log refused an entry before it was taken: it is in no log and never will be.
    NotTaken {
        /// The leadership it was decided in.
        leadership: Leadership,
        /// Its serial.
        serial: u64,
    },
    /// The log can not say what became of an entry; no further one of that leadership may count on it.
    Lost(Leadership),
    /// The next entry of the log is committed.
    Committed {
        /// The leadership in which the log took it.
        leadership: Leadership,
        /// The decision in it; `None` for an entry that is the log's own.
        entry: Option<Entry>,
    },
    /// A snapshot takes the place of all entries up to it.
    Installed {
        /// The position it was taken at.
        position: Position,
        /// The image in it.
        image: Arc<Image>,
    },
}

/// Everything that can be wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Hand this to the log, after everything handed to it before.
    Append(Entry),
    /// The image has changed.
    Show(Arc<Image>),
    /// Answer a request.
    Answer {
        /// Which one.
        proposal: ProposalId,
        /// With what.
        result: Result<Response, NotDone>,
    },
}

/// Why a change was not made, or may not have been.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotDone {
    /// The controller refused it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// This node does not decide (yet): nothing was done, ask who does.
    #[error("this node is not the active controller")]
    NotActive,
    /// It was decided, and certainly never takes effect: ask again.
    #[error("the change was not made: the leadership it was decided in has ended")]
    NotMade,
    /// It was decided, and may have been made: look before asking again.
    #[error("it is not known whether the change was made")]
    Unknown,
}

/// The controller on a shared log.
#[derive(Debug, Default)]
pub struct Proposals {
    controller: Controller,
    applied: Position,
    active: Option<Active>,
    /// The last leadership that was this node's: what it decided in it may still be under way, so that no serial of it
    /// is given again.
    led: Leadership,
    /// In the order of the decisions they wait for.
    waiting: VecDeque<Waiting>,
}

/// This node's leadership.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Active {
    leadership: Leadership,
    /// The serial last given.
    given: u64,
    /// The decision that the next one is made on.
    latest: u64,
    /// No decision before this one is applied: what was pending is forgotten, and some of it may yet come.
    decide_from: u64,
}

#[derive(Debug)]
struct Waiting {
    proposal: ProposalId,
    /// The decision that has to be applied first.
    decision: Position,
    answer: Result<Response, Refusal>,
}

impl Proposals {
    /// Nothing applied yet.
    pub fn new() -> Proposals {
        Proposals::default()
    }

    /// The image as of the last applied entry.
    pub fn image(&self) -> &Arc<Image> {
        self.controller.image()
    }

    /// Up to where the log is applied; with the image all there is to a snapshot.
    pub fn applied(&self) -> Position {
        self.applied
    }

    /// The leadership in which this node decides, if it does.
    pub fn deciding(&self) -> Option<Leadership> {
        let active = self.active?;
        let is_own_term_applied =
            self.applied.leadership == active.leadership || mutant::is_on(Mutant::DecideAfterOwnTerm);
        (is_own_term_applied && self.serial_applied(active.leadership) >= active.decide_from)
            .then_some(active.leadership)
    }

    /// Requests that wait for their decision.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Takes one input and appends what follows from it to `actions`.
    ///
    /// # Errors
    /// If a committed entry does not fit the image: a defect, or another version's log. The node must not go on.
    pub fn handle(
        &mut self,
        input: Input,
        random: &mut dyn Random,
        actions: &mut Vec<Action>,
    ) -> Result<(), Conflict> {
        match input {
            Input::Leads(leadership) => self.lead(leadership),
            Input::Follows => self.follow(),
            Input::Propose { proposal, now, request } => {
                actions.extend(self.propose(proposal, now, random, request));
            }
            Input::NotTaken { leadership, serial } => self.not_taken(leadership, serial, actions),
            Input::Lost(leadership) => {
                if self.active.is_some_and(|active| active.leadership == leadership) {
                    self.follow();
                }
            }
            Input::Committed { leadership, entry } => self.committed(leadership, entry, actions)?,
            Input::Installed { position, image } => self.install(position, image, actions),
        }
        Ok(())
    }

    /// The log may say so again and again, and late: an older leadership than one that was applied is over.
    fn lead(&mut self, leadership: Leadership) {
        if leadership < self.applied.leadership || leadership <= self.led {
            return;
        }
        self.follow();
        self.led = leadership;
        self.active = Some(Active { leadership, given: 0, latest: 0, decide_from: 0 });
    }

    fn follow(&mut self) {
        self.active = None;
        self.controller.discard_pending();
    }

    fn propose(
        &mut self,
        proposal: ProposalId,
        now: Timestamp,
        random: &mut dyn Random,
        request: Request,
    ) -> Vec<Action> {
        let Some(leadership) = self.deciding() else {
            return vec![Action::Answer { proposal, result: Err(NotDone::NotActive) }];
        };
        let (records, answer) = match self.controller.decide(now, random, request) {
            Ok(decision) => (decision.records, Ok(decision.response)),
            Err(refusal) => (Vec::new(), Err(refusal)),
        };
        if mutant::is_on(Mutant::DecideOnPending) {
            self.controller.discard_pending();
        }
        let active = self.active.as_mut().expect("it decides");
        if records.is_empty() && self.applied.serial == active.latest {
            // It rests on nothing that is not applied.
            return vec![Action::Answer { proposal, result: answer.map_err(NotDone::Refused) }];
        }
        let mut actions = Vec::new();
        if !records.is_empty() {
            active.given += 1;
            let entry = Entry { leadership, serial: active.given, after: active.latest, records };
            active.latest = active.given;
            actions.push(Action::Append(entry));
        }
        let decision = Position { leadership, serial: active.latest };
        self.waiting.push_back(Waiting { proposal, decision, answer });
        actions
    }

    /// What was decided after the refused entry was decided on it, and is ignored wherever it turns up. What was decided
    /// before may yet be applied, and until it is there is nothing to decide on.
    fn not_taken(&mut self, leadership: Leadership, serial: u64, actions: &mut Vec<Action>) {
        let at = Position { leadership, serial };
        let first = self.waiting.partition_point(|waiting| waiting.decision < at);
        if self.waiting.get(first).is_none_or(|waiting| waiting.decision != at) {
            // Forgotten with one before it; what waits now was decided later, and not on it.
            return;
        }
        let behind = self.waiting.split_off(first);
        let (never, others): (VecDeque<_>, VecDeque<_>) =
            behind.into_iter().partition(|waiting| waiting.decision.leadership == leadership);
        actions.extend(never.into_iter().map(|waiting| waiting.fails(NotDone::NotMade)));
        self.waiting.extend(others);
        let Some(active) = self.active.as_mut().filter(|active| active.leadership == leadership) else {
            return;
        };
        let last = self.waiting.back().filter(|waiting| waiting.decision.leadership == leadership);
        let applied = if self.applied.leadership == leadership { self.applied.serial } else { 0 };
        active.latest = last.map_or(applied, |waiting| waiting.decision.serial);
        active.decide_from = active.latest;
        self.controller.discard_pending();
    }

    fn committed(
        &mut self,
        leadership: Leadership,
        entry: Option<Entry>,
        actions: &mut Vec<Action>,
    ) -> Result<(), Conflict> {
        self.reach(leadership, actions);
        let Some(entry) = entry else { return Ok(()) };
        if entry.leadership != leadership || entry.after != self.applied.serial {
            return Ok(());
        }
        if self.active.is_none_or(|active| active.leadership != leadership) {
            self.controller.discard_pending();
        }
        for record in &entry.records {
            self.controller.apply(record)?;
        }
        self.applied.serial = entry.serial;
        actions.push(Action::Show(self.controller.image().clone()));
        while let Some(waiting) = self.waiting.pop_front_if(|waiting| waiting.decision <= self.applied) {
            actions.push(waiting.answered());
        }
        Ok(())
    }

    /// The log has come to entries of this leadership. Those of older ones are all applied: what still waits for one
    /// never takes effect.
    fn reach(&mut self, leadership: Leadership, actions: &mut Vec<Action>) {
        if leadership <= self.applied.leadership {
            assert!(leadership == self.applied.leadership, "leaderships do not decrease along the log");
            return;
        }
        self.applied = Position { leadership, serial: 0 };
        if self.active.is_some_and(|active| active.leadership < leadership) {
            self.follow();
        }
        while let Some(waiting) = self.waiting.pop_front_if(|w| w.decision.leadership < leadership) {
            actions.push(waiting.fails(NotDone::NotMade));
        }
    }

    /// A node that gets a snapshot had fallen behind: what it waits for may be in there or not.
    fn install(&mut self, position: Position, image: Arc<Image>, actions: &mut Vec<Action>) {
        if position < self.applied {
            return;
        }
        self.follow();
        self.controller = Controller::with_image(image);
        self.applied = position;
        actions.push(Action::Show(self.controller.image().clone()));
        while let Some(waiting) = self.waiting.pop_front_if(|waiting| waiting.decision <= position) {
            actions.push(waiting.fails(NotDone::Unknown));
        }
    }

    fn serial_applied(&self, leadership: Leadership) -> u64 {
        if self.applied.leadership == leadership { self.applied.serial } else { 0 }
    }
}

impl Waiting {
    fn answered(self) -> Action {
        Action::Answer { proposal: self.proposal, result: self.answer.map_err(NotDone::Refused) }
    }

    fn fails(self, why: NotDone) -> Action {
        Action::Answer { proposal: self.proposal, result: Err(why) }
    }
}
