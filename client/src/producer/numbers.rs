//! Who numbers a partition's batches, and what the next one's number is.
//!
//! A number is given when a batch is sealed and stays with it over every retry, so that the broker tells a batch that it has
//! already from a new one. Where one was given up whose outcome nobody knows, those behind it keep their numbers too, and the
//! broker is the judge: it takes them if the lost one was appended, and refuses them as out of order if it was not. Then, and
//! only then, those are numbered anew that no other stream ever carried, in a later epoch, which also shuts out whatever of the
//! lost one is still on its way; of the others another leader may know better, and nobody knows what becomes of them.

use std::collections::VecDeque;

use bytes::Bytes;
use quire_protocol::batch::{self, ProducerIdentity};
use quire_protocol::{ProducerEpoch, ProducerId, Sequence, TopicId};

/// Deleted topics that are remembered: nobody is behind by more.
const LEFT_TOPICS_MAX: usize = 16;

/// A batch's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Numbered {
    pub base: Sequence,
    pub count: u32,
}

/// Under what a stream is to be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Claim {
    /// The id in use, if there is one.
    pub id: Option<ProducerId>,
    /// One that can be used no more.
    pub used_up: Option<ProducerId>,
    pub epoch: ProducerEpoch,
}

/// One partition's numbers.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    id: Option<ProducerId>,
    used_up: Option<ProducerId>,
    epoch: ProducerEpoch,
    next: Sequence,
    /// The topic that was written to; one that was made again under the same name knows nothing of earlier numbers.
    topic: Option<TopicId>,
    /// Topics of the same name that were written to before, the latest last.
    left: VecDeque<TopicId>,
    /// A batch was given up that may not have been appended, and none behind it was answered since.
    has_gap: bool,
    /// What waits is to be numbered anew before it is sent.
    is_new: bool,
}

impl Numbers {
    pub(super) fn claim(&self) -> Claim {
        Claim { id: self.id, used_up: self.used_up, epoch: self.epoch }
    }

    /// What the next batch is to be built with.
    pub(super) fn next(&self) -> Option<(ProducerIdentity, Sequence)> {
        Some((ProducerIdentity { id: self.id?, epoch: self.epoch }, self.next))
    }

    /// Gives the next numbers to a batch of so many records.
    pub(super) fn give(&mut self, count: u32) -> Numbered {
        let base = self.next;
        self.next = base.plus(count);
        Numbered { base, count }
    }

    /// Whether a topic was made again under its name since it was written to: who still knows it is behind. There the numbers
    /// of the one after it would stand for other batches.
    pub(super) fn has_left(&self, topic: TopicId) -> bool {
        self.left.contains(&topic)
    }

    /// A stream is open under this id; whether what waits is to be numbered anew.
    pub(super) fn opened(&mut self, id: ProducerId, topic: TopicId) -> bool {
        let is_other = self.topic.is_some_and(|known| known != topic);
        self.id = Some(id);
        if let Some(earlier) = self.topic.replace(topic).filter(|_| is_other) {
            self.left.push_back(earlier);
            if self.left.len() > LEFT_TOPICS_MAX {
                self.left.pop_front();
            }
        }
        let is_new = std::mem::take(&mut self.is_new) || is_other;
        if is_new {
            self.next = Sequence::ZERO;
            self.has_gap = false;
        }
        is_new
    }

    /// Numbers a finished batch anew.
    pub(super) fn renumber(&mut self, bytes: &mut Bytes, numbered: &mut Numbered) {
        let Some((producer, base)) = self.next() else { return };
        *numbered = self.give(numbered.count);
        let mut copy = bytes.to_vec();
        batch::number(&mut copy, producer, base);
        *bytes = copy.into();
    }

    /// The broker has a batch: so it has every one before it.
    pub(super) fn answered(&mut self) {
        self.has_gap = false;
    }

    /// A batch was given up. `is_last`: nothing waits behind it.
    pub(super) fn gave_up(&mut self, is_last: bool) {
        match is_last {
            true => self.begin_anew(),
            false => self.has_gap = true,
        }
    }

    /// Whether batches may be missing that were given up, so that one out of order is no wonder.
    pub(super) fn has_gap(&self) -> bool {
        self.has_gap
    }

    /// What comes next is numbered from 0, in the next epoch.
    pub(super) fn begin_anew(&mut self) {
        match self.epoch.next() {
            Some(epoch) => self.epoch = epoch,
            None => self.leave_id(),
        }
        self.next = Sequence::ZERO;
        self.has_gap = false;
        self.is_new = true;
    }

    /// As [`Numbers::begin_anew`], under another id.
    pub(super) fn begin_under_another_id(&mut self) {
        self.begin_anew();
        self.leave_id();
    }

    fn leave_id(&mut self) {
        self.used_up = self.id.take();
        self.epoch = ProducerEpoch::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_whose_epochs_are_used_up_is_left() {
        let mut numbers = Numbers { epoch: ProducerEpoch::MAX, ..Numbers::default() };
        numbers.opened(ProducerId(7), TopicId([1; 16]));
        assert_eq!(numbers.give(3), Numbered { base: Sequence(0), count: 3 });
        numbers.begin_anew();
        let claim = Claim { id: None, used_up: Some(ProducerId(7)), epoch: ProducerEpoch(0) };
        assert_eq!(numbers.claim(), claim);
        assert_eq!(numbers.next(), None);
        assert!(numbers.opened(ProducerId(8), TopicId([1; 16])));
        let producer = ProducerIdentity { id: ProducerId(8), epoch: ProducerEpoch(0) };
        assert_eq!(numbers.next(), Some((producer, Sequence(0))));
    }

    #[test]
    fn a_topic_made_again_knows_nothing_of_earlier_numbers() {
        let mut numbers = Numbers::default();
        assert!(!numbers.opened(ProducerId(7), TopicId([1; 16])));
        numbers.give(3);
        assert!(!numbers.opened(ProducerId(7), TopicId([1; 16])));
        assert_eq!(numbers.next().map(|(_, next)| next), Some(Sequence(3)));
        assert!(numbers.opened(ProducerId(7), TopicId([2; 16])));
        assert_eq!(numbers.next().map(|(_, next)| next), Some(Sequence(0)));
    }
}
