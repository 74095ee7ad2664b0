//! The two shapes that every machine here has.

use quire_protocol::Timestamp;

use crate::{Random, Time};

/// A machine that answers each input with actions, for its owner to carry out in order.
pub trait Reactive {
    /// Everything that can happen to it.
    type Input;
    /// Everything it can want done.
    type Action;

    /// Takes one input and appends what follows from it to `actions`.
    fn handle(&mut self, now: Time, input: Self::Input, actions: &mut Vec<Self::Action>);

    /// When it wants to be handed the time next, if nothing else happens before.
    fn deadline(&self) -> Option<Time>;
}

/// What a replicated machine decided: nothing has changed until the records are committed and applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision<Record, Response> {
    /// To be committed together, in this order. Empty if nothing has to change.
    pub records: Vec<Record>,
    /// The answer, to be given once the records are applied.
    pub response: Response,
}

/// A machine whose state changes by committed records alone, so that every replica that applies them has the same.
///
/// decide → append → (pending) → commit → apply → answer. It decides on applied *and* pending state, so that two
/// requests decided before the first is committed can not contradict each other; whoever loses the right to decide
/// calls [`Replicated::discard_pending`] before it applies what others decided.
pub trait Replicated {
    /// What it can be asked.
    type Request;
    /// What it answers.
    type Response;
    /// What is committed.
    type Record;
    /// Why it refuses a request.
    type Refusal;
    /// Why a committed record does not fit its state: a defect, or another version's log.
    type Conflict;

    /// Decides a request; its records are pending from here on.
    ///
    /// # Errors
    /// If the request is refused; nothing is pending then.
    fn decide(
        &mut self,
        now: Timestamp,
        random: &mut dyn Random,
        request: Self::Request,
    ) -> Result<Decision<Self::Record, Self::Response>, Self::Refusal>;

    /// Applies a committed record.
    ///
    /// # Errors
    /// If it contradicts the state; the state is unchanged then, and the machine must not go on.
    fn apply(&mut self, record: &Self::Record) -> Result<(), Self::Conflict>;

    /// Forgets what was decided and not yet applied.
    fn discard_pending(&mut self);
}
