//! The controllers' log, as hostile as Raft allows it to be.
//!
//! Raft itself is trusted, and run by a library whose own tests stand for it. What it promises is modelled: a committed
//! entry stays where it is, and everybody sees the same ones in the same order. What it leaves open is drawn: how long a
//! commit takes, which uncommitted entries a new leader finds, how long a deposed leader believes in itself, and that
//! whoever proposed something at the wrong time never learns from the proposal what became of it.

use std::collections::BTreeMap;

use quire_engine::controller::proposals::{self, Input, Leadership};

use super::dice::Dice;
use super::network::Node;

/// Counts leaderships of the log.
pub type Term = u64;
/// The place of an entry in the log, from 0.
pub type Index = usize;

/// One place in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<T> {
    /// The leadership it was proposed in.
    pub term: Term,
    /// What was proposed; nothing in a leader's first entry.
    pub payload: Option<T>,
}

impl Entry<proposals::Entry> {
    /// The entry, as whoever applies it is told.
    pub fn committed(&self) -> Input {
        Input::Committed { leadership: Leadership(self.term), entry: self.payload.clone() }
    }
}

/// The log, and who believes to lead it.
#[derive(Debug)]
pub struct Quorum<T> {
    dice: Dice,
    entries: Vec<Entry<T>>,
    committed: usize,
    term: Term,
    leader: Option<Node>,
    /// Who believes to lead, and in which term: the leader, and those that have not heard of a later one.
    believers: BTreeMap<Node, Term>,
}

/// What a proposal came to at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proposed {
    /// It stands there, and may still go.
    At(Index),
    /// Who proposed it leads no more and does not know: it is written nowhere that counts, and gets no answer.
    Nowhere,
}

impl<T: Clone> Quorum<T> {
    /// An empty log without a leader.
    pub fn new(dice: Dice) -> Quorum<T> {
        Quorum { dice, entries: Vec::new(), committed: 0, term: 0, leader: None, believers: BTreeMap::new() }
    }

    /// Who leads, if anybody does.
    pub fn leader(&self) -> Option<Node> {
        self.leader
    }

    /// In which term a node believes to lead.
    pub fn belief(&self, node: Node) -> Option<Term> {
        self.believers.get(&node).copied()
    }

    /// How many entries are committed.
    pub fn committed(&self) -> usize {
        self.committed
    }

    /// The committed entries from an index on.
    pub fn committed_from(&self, index: Index) -> &[Entry<T>] {
        &self.entries[index.min(self.committed)..self.committed]
    }

    /// Makes a node the leader of a new term. Of the entries that were not committed it finds a beginning, and what it
    /// finds is committed with its own first entry. Returns the term.
    pub fn elect(&mut self, node: Node) -> Term {
        let uncommitted = self.entries.len() - self.committed;
        let found = self.dice.below(uncommitted as u64 + 1) as usize;
        self.entries.truncate(self.committed + found);
        self.term += 1;
        self.entries.push(Entry { term: self.term, payload: None });
        self.leader = Some(node);
        self.believers.insert(node, self.term);
        self.term
    }

    /// A leader that is cut off or stopped leads no more; whether it knows is another matter.
    pub fn orphan(&mut self) {
        self.leader = None;
    }

    /// A node hears that it does not lead, or stopped.
    pub fn disabuse(&mut self, node: Node) {
        self.believers.remove(&node);
        if self.leader == Some(node) {
            self.leader = None;
        }
    }

    /// Writes an entry for a node that believes to lead.
    ///
    /// # Panics
    /// If it does not.
    pub fn propose(&mut self, node: Node, payload: T) -> Proposed {
        let term = self.belief(node).expect("only who believes to lead proposes");
        if self.leader != Some(node) || term != self.term {
            return Proposed::Nowhere;
        }
        self.entries.push(Entry { term, payload: Some(payload) });
        Proposed::At(self.entries.len() - 1)
    }

    /// Commits some of what waits: at least one entry, if there is one and a leader to commit it. Whether it did.
    pub fn commit(&mut self) -> bool {
        let waiting = self.entries.len() - self.committed;
        if waiting == 0 || self.leader.is_none() {
            return false;
        }
        self.committed += self.dice.between(1, waiting as u64) as usize;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Node = Node(1);
    const B: Node = Node(2);

    #[test]
    fn what_is_committed_stays_and_what_is_not_may_go() {
        let (mut kept, mut lost) = (0, 0);
        for seed in 0..50 {
            let mut quorum = Quorum::new(Dice::new(seed));
            quorum.elect(A);
            quorum.propose(A, 1);
            while quorum.commit() {}
            let before = quorum.committed_from(0).to_vec();
            quorum.propose(A, 2);
            quorum.elect(B);
            assert_eq!(quorum.propose(A, 3), Proposed::Nowhere, "it leads no more, and does not know");
            while quorum.commit() {}
            let after = quorum.committed_from(0);
            assert!(after.starts_with(&before));
            match after.iter().any(|entry| entry.payload == Some(2)) {
                true => kept += 1,
                false => lost += 1,
            }
            assert!(after.iter().all(|entry| entry.payload != Some(3)));
        }
        assert!(kept > 0 && lost > 0);
    }

    #[test]
    fn nothing_is_committed_without_a_leader() {
        let mut quorum = Quorum::new(Dice::new(1));
        quorum.elect(A);
        quorum.propose(A, ());
        quorum.orphan();
        assert!(!quorum.commit());
        assert_eq!(quorum.belief(A), Some(1), "it has not heard of it");
    }
}
