//! Answers that must not leave yet, in the order in which they must leave.
//!
//! A stream's answers leave in the order of its batches. All batches of a stream wait for the same thing, so a queue
//! for each such thing keeps every stream's order. A refusal waits in line like an acknowledgement: it tells the
//! client that its oldest unanswered batch was not appended.

use std::collections::VecDeque;

use quire_protocol::Offset;
use quire_protocol::stream::{Ack, Acks};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::event::ProduceReply;
use crate::error::RequestError;

/// Where one batch is answered, and what is returned when it is.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) acks: Acks,
    pub(super) reply: mpsc::Sender<ProduceReply>,
    /// Held for its drop.
    pub(super) _permit: OwnedSemaphorePermit,
}

impl Answer {
    /// Answers. The stream may be gone: then nobody wants to know.
    fn send(self, reply: ProduceReply) {
        if let Err(mpsc::error::TrySendError::Full(_)) = self.reply.try_send(reply) {
            tracing::error!(
                "a produce stream has more batches unanswered than its window; its answer is lost"
            );
        }
    }
}

#[derive(Debug)]
struct Waiter {
    answer: Answer,
    outcome: Outcome,
}

#[derive(Debug)]
enum Outcome {
    /// To be sent once everything before `end` is safe.
    Appended { end: Offset, ack: Ack },
    /// To be sent when its turn has come.
    Refused(RequestError),
}

/// What is safe by now.
#[derive(Debug, Clone, Copy)]
pub(super) struct Safe {
    /// Committed: answers `acks = all`.
    pub(super) high_watermark: Offset,
    /// Safe on the leader: answers `acks = leader`.
    pub(super) leader: Offset,
    /// The log start offset, which every acknowledgement tells.
    pub(super) log_start: Offset,
}

/// One partition's waiting answers.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    all: VecDeque<Waiter>,
    leader: VecDeque<Waiter>,
}

impl Waiters {
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty() && self.leader.is_empty()
    }

    /// The batch is in the log and ends before `end`. With `acks = none` that was all.
    pub(super) fn appended(&mut self, answer: Answer, end: Offset, ack: Ack) {
        if let Some(queue) = self.queue(answer.acks) {
            queue.push_back(Waiter { answer, outcome: Outcome::Appended { end, ack } });
        }
    }

    /// The batch is not in the log. It waits for its turn only behind batches of its own stream: what others wait for may
    /// never come.
    pub(super) fn refused(&mut self, answer: Answer, error: RequestError) {
        match self.queue(answer.acks) {
            Some(queue) if !queue.iter().any(|waiter| waiter.answer.reply.same_channel(&answer.reply)) => {
                answer.send(Err(error));
            }
            Some(queue) => queue.push_back(Waiter { answer, outcome: Outcome::Refused(error) }),
            None => answer.send(Err(error)),
        }
    }

    /// Sends every answer whose turn has come. `replicas_on_disk` tells how many replicas have everything before an
    /// end on disk.
    pub(super) fn complete(&mut self, safe: Safe, replicas_on_disk: impl Fn(Offset) -> u32) {
        complete(&mut self.all, safe.high_watermark, safe.log_start, &replicas_on_disk);
        complete(&mut self.leader, safe.leader, safe.log_start, &replicas_on_disk);
    }

    /// Nothing will be safe any more: every appended batch gets `error`, every refused one its own.
    pub(super) fn fail(&mut self, error: &RequestError) {
        for Waiter { answer, outcome } in self.all.drain(..).chain(self.leader.drain(..)) {
            answer.send(Err(match outcome {
                Outcome::Appended { .. } => error.clone(),
                Outcome::Refused(error) => error,
            }));
        }
    }

    fn queue(&mut self, acks: Acks) -> Option<&mut VecDeque<Waiter>> {
        match acks {
            Acks::All => Some(&mut self.all),
            Acks::Leader => Some(&mut self.leader),
            Acks::None => None,
        }
    }
}

fn complete(
    queue: &mut VecDeque<Waiter>,
    safe_end: Offset,
    log_start: Offset,
    replicas_on_disk: &impl Fn(Offset) -> u32,
) {
    let is_due = |waiter: &mut Waiter| match waiter.outcome {
        Outcome::Appended { end, .. } => end <= safe_end,
        Outcome::Refused(_) => true,
    };
    while let Some(Waiter { answer, outcome }) = queue.pop_front_if(is_due) {
        answer.send(match outcome {
            Outcome::Appended { end, ack } => {
                Ok(Ack { log_start, replicas_on_disk: replicas_on_disk(end), ..ack })
            }
            Outcome::Refused(error) => Err(error),
        });
    }
}
