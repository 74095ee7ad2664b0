//! The controller on a log that does what logs do under failure: takes, refuses, loses, repeats and reorders entries,
//! changes its leader, answers late or never.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use quire_engine::controller::proposals::{
    Action, Entry, Input, Leadership, NotDone, Position, ProposalId, Proposals,
};
use quire_engine::controller::{CreateTopic, Image, Refusal, RegisterBroker, Request, Response};
use quire_engine::{Random, SplitMix64};
use quire_protocol::{BrokerId, Timestamp};

fn register(broker: u32, start: u64) -> Request {
    Request::RegisterBroker(RegisterBroker {
        cluster_id: "c-1".into(),
        broker: BrokerId(broker),
        host: "h".into(),
        port: 9440,
        incarnation: [start as u8; 16],
        is_alone: true,
        ..RegisterBroker::default()
    })
}

fn create(name: &str) -> Request {
    Request::CreateTopic(CreateTopic {
        name: name.into(),
        partitions: 1,
        replicas: Some(1),
        ..Default::default()
    })
}

/// One node, and what it wanted.
struct Single {
    machine: Proposals,
    random: SplitMix64,
    asked: u64,
}

impl Single {
    fn new() -> Single {
        Single { machine: Proposals::new(), random: SplitMix64::new(7), asked: 0 }
    }

    /// A node that decides in leadership 1, with a broker.
    fn active() -> Single {
        let mut single = Single::new();
        single.give(Input::Leads(Leadership(1)));
        single.commit(1, None);
        let entry = single.append(register(1, 1));
        single.commit(1, Some(entry));
        single
    }

    fn give(&mut self, input: Input) -> Vec<Action> {
        let mut actions = Vec::new();
        self.machine.handle(input, &mut self.random, &mut actions).expect("no conflict");
        actions
    }

    fn propose(&mut self, request: Request) -> Vec<Action> {
        self.asked += 1;
        self.give(Input::Propose { proposal: ProposalId(self.asked), now: Timestamp(0), request })
    }

    fn append(&mut self, request: Request) -> Entry {
        match self.propose(request).remove(0) {
            Action::Append(entry) => entry,
            other => panic!("{other:?}"),
        }
    }

    fn commit(&mut self, leadership: u64, entry: Option<Entry>) -> Vec<Action> {
        self.give(Input::Committed { leadership: Leadership(leadership), entry })
    }

    fn names(&self) -> Vec<String> {
        self.machine.image().topics().map(|topic| topic.name.to_string()).collect()
    }
}

fn answers(actions: Vec<Action>) -> Vec<(u64, Result<Response, NotDone>)> {
    let answer = |action| match action {
        Action::Answer { proposal, result } => Some((proposal.0, result)),
        _ => None,
    };
    actions.into_iter().filter_map(answer).collect()
}

fn fails(proposal: u64, why: NotDone) -> Action {
    Action::Answer { proposal: ProposalId(proposal), result: Err(why) }
}

#[test]
fn a_leader_decides_once_an_entry_of_its_own_leadership_is_applied() {
    let mut single = Single::new();
    assert_eq!(single.propose(register(1, 1)), [fails(1, NotDone::NotActive)]);
    assert_eq!(single.give(Input::Leads(Leadership(3))), []);
    assert_eq!(single.propose(register(1, 1)), [fails(2, NotDone::NotActive)]);
    single.commit(2, None);
    assert_eq!(single.propose(register(1, 1)), [fails(3, NotDone::NotActive)]);
    single.commit(3, None);
    assert_eq!(single.machine.deciding(), Some(Leadership(3)));
    let entry = single.append(register(1, 1));
    assert_eq!((entry.leadership, entry.serial, entry.after), (Leadership(3), 1, 0));
    assert_eq!(single.machine.image().brokers().len(), 0, "nothing is applied before it is committed");
    let done =
        Action::Answer { proposal: ProposalId(4), result: Ok(Response::BrokerRegistered { epoch: 1 }) };
    let actions = single.commit(3, Some(entry));
    assert_eq!(actions, [Action::Show(single.machine.image().clone()), done]);
    assert_eq!(single.machine.image().brokers().len(), 1);
}

#[test]
fn requests_see_what_is_pending_and_are_answered_after_it() {
    let mut single = Single::active();
    let flights = single.append(create("flights"));
    assert_eq!(single.propose(create("flights")), [], "the refusal rests on a change that is not made yet");
    let orders = single.append(create("orders"));
    assert_eq!((orders.after, orders.serial), (flights.serial, flights.serial + 1));
    let answered = answers(single.commit(1, Some(flights)));
    let exists = Refusal::TopicExists { name: "flights".into() };
    assert!(matches!(&answered[..], [(2, Ok(_)), (3, Err(NotDone::Refused(refusal)))] if *refusal == exists));
    assert!(matches!(answers(single.commit(1, Some(orders)))[..], [(4, Ok(_))]));
    assert!(matches!(answers(single.propose(create("orders")))[..], [(5, Err(NotDone::Refused(_)))]));
}

#[test]
fn what_was_decided_in_a_leadership_that_ended_is_made_or_certainly_not() {
    let mut single = Single::active();
    let (flights, orders) = (single.append(create("flights")), single.append(create("orders")));
    assert_eq!(single.give(Input::Follows), [], "nobody knows yet");
    assert_eq!(single.propose(create("late")), [fails(4, NotDone::NotActive)]);
    assert!(matches!(answers(single.commit(1, Some(flights)))[..], [(2, Ok(_))]), "the log had it");
    assert_eq!(single.commit(2, None), [fails(3, NotDone::NotMade)], "the log went on without it");
    assert_eq!(single.commit(2, Some(orders)), [], "a late entry is ignored");
    assert_eq!(single.names(), ["flights"]);
}

#[test]
fn a_leadership_is_over_once_another_is_seen_whatever_the_log_says_of_it() {
    let mut single = Single::active();
    single.append(create("flights"));
    single.commit(2, None);
    assert_eq!(single.machine.deciding(), None);
    single.give(Input::Leads(Leadership(1)));
    assert_eq!(single.machine.deciding(), None);
    single.give(Input::Leads(Leadership(2)));
    single.give(Input::Follows);
    single.give(Input::Leads(Leadership(2)));
    assert_eq!(single.machine.deciding(), None, "its serials may be under way");
}

#[test]
fn a_refused_entry_takes_those_behind_it_along_and_none_before_it() {
    let mut single = Single::active();
    let entries: Vec<_> = ["a", "b", "c"].map(|name| single.append(create(name))).into();
    let refused = Input::NotTaken { leadership: Leadership(1), serial: entries[1].serial };
    assert_eq!(single.give(refused), [fails(3, NotDone::NotMade), fails(4, NotDone::NotMade)]);
    assert_eq!(single.propose(create("d")), [fails(5, NotDone::NotActive)], "a is forgotten and may come");
    single.commit(1, Some(entries[0].clone()));
    assert_eq!(single.commit(1, Some(entries[2].clone())), [], "it rests on one that never came");
    let next = single.append(create("b"));
    assert_eq!((next.serial, next.after), (entries[2].serial + 1, entries[0].serial));
    single.commit(1, Some(next.clone()));
    assert_eq!(single.commit(1, Some(next)), [], "what is repeated is ignored");
    assert_eq!(single.names(), ["a", "b"]);
}

/// Two entries in a row were refused. Between the two answers the leader decided anew, and took the second answer for
/// one about that: a change was made that its asker heard was not.
#[test]
fn a_second_refusal_is_about_what_was_forgotten_with_the_first() {
    let mut single = Single::active();
    let (first, second) = (single.append(create("a")), single.append(create("b")));
    let refused = |entry: &Entry| Input::NotTaken { leadership: entry.leadership, serial: entry.serial };
    single.give(refused(&first));
    let third = single.append(create("c"));
    assert_eq!(single.give(refused(&second)), []);
    assert!(matches!(answers(single.commit(1, Some(third)))[..], [(4, Ok(_))]));
}

#[test]
fn a_snapshot_leaves_open_what_became_of_what_it_covers() {
    let mut single = Single::active();
    let ahead = Single::active();
    single.append(create("flights"));
    let position = Position { leadership: Leadership(2), serial: 5 };
    let installed = Input::Installed { position, image: ahead.machine.image().clone() };
    let actions = single.give(installed);
    assert_eq!(actions, [Action::Show(ahead.machine.image().clone()), fails(2, NotDone::Unknown)]);
    assert_eq!(single.machine.applied(), position);
    let old = Position { leadership: Leadership(1), serial: 9 };
    assert_eq!(single.give(Input::Installed { position: old, image: Arc::default() }), []);
}

const NODES: u64 = 3;

/// What can go wrong with an entry on its way into the log.
#[derive(Debug)]
enum Answer {
    NotTaken(Entry),
    Lost(Leadership),
}

struct Node {
    machine: Proposals,
    /// Entries of the committed log that it has applied.
    next: usize,
    random: SplitMix64,
    /// What the log has to say to it, and has not said yet. Leaderships are said in order, answers are not.
    news: VecDeque<Input>,
    answers: Vec<Answer>,
}

/// The log as its engine sees it.
struct World {
    random: SplitMix64,
    nodes: Vec<Node>,
    committed: Vec<(Leadership, Option<Entry>)>,
    /// In the log of the node that leads, and committed one by one if it goes on to lead.
    uncommitted: VecDeque<Option<Entry>>,
    leader: usize,
    leadership: Leadership,
    asked: u64,
    /// The decision that a request led to.
    decided: BTreeMap<ProposalId, Position>,
    answered: BTreeMap<ProposalId, Result<Response, NotDone>>,
    /// Decisions that took effect, by the nodes where they did.
    effective: BTreeSet<Position>,
}

impl World {
    fn new(seed: u64) -> World {
        let node = |number| Node {
            machine: Proposals::new(),
            next: 0,
            random: SplitMix64::new(seed ^ number << 32),
            news: VecDeque::new(),
            answers: Vec::new(),
        };
        let mut world = World {
            random: SplitMix64::new(seed),
            nodes: (1..=NODES).map(node).collect(),
            committed: Vec::new(),
            uncommitted: VecDeque::new(),
            leader: 0,
            leadership: Leadership(0),
            asked: 0,
            decided: BTreeMap::new(),
            answered: BTreeMap::new(),
            effective: BTreeSet::new(),
        };
        world.elect(0);
        world
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.random.next_u64() % limit
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    fn any_node(&mut self) -> usize {
        self.below(NODES) as usize
    }

    /// What the old leader had not committed is in the new one's log up to some point, and lost from there on.
    fn elect(&mut self, node: usize) {
        let kept = self.below(self.uncommitted.len() as u64 + 1) as usize;
        let kept: Vec<_> = self.uncommitted.drain(..).take(kept).collect();
        self.committed.extend(kept.into_iter().map(|entry| (self.leadership, entry)));
        self.nodes[self.leader].news.push_back(Input::Follows);
        self.leadership.0 += 1 + self.below(2);
        self.leader = node;
        self.uncommitted.push_back(None);
        self.nodes[node].news.push_back(Input::Leads(self.leadership));
    }

    /// An entry reaches the log, which takes, refuses, repeats or loses it.
    fn append(&mut self, node: usize, entry: Entry) {
        let is_leader = self.leader == node;
        let (fate, leadership) = (self.below(20), entry.leadership);
        match fate {
            0 => self.nodes[node].answers.push(Answer::NotTaken(entry)),
            1 => self.nodes[node].answers.push(Answer::Lost(leadership)),
            // The engine does not look at the leadership that an entry names.
            _ if is_leader => {
                self.uncommitted.push_back(Some(entry.clone()));
                let len = self.uncommitted.len();
                if fate == 2 {
                    self.uncommitted.push_back(Some(entry));
                } else if fate == 3 && len > 2 {
                    self.uncommitted.swap(len - 1, len - 2);
                }
            }
            _ => self.nodes[node].answers.push(Answer::NotTaken(entry)),
        }
    }

    fn give(&mut self, node: usize, input: Input) -> Result<(), String> {
        let asked = match &input {
            Input::Propose { proposal, .. } => Some(*proposal),
            _ => None,
        };
        let mut actions = Vec::new();
        let Node { machine, random, .. } = &mut self.nodes[node];
        machine.handle(input, random, &mut actions).map_err(|conflict| conflict.to_string())?;
        for action in actions {
            match action {
                Action::Append(entry) => {
                    let proposal = asked.ok_or("an append that nobody asked for")?;
                    let decision = Position { leadership: entry.leadership, serial: entry.serial };
                    self.decided.insert(proposal, decision);
                    self.append(node, entry);
                }
                Action::Show(_) => {}
                Action::Answer { proposal, result } => {
                    if self.answered.insert(proposal, result).is_some() {
                        return Err(format!("{proposal:?} is answered twice"));
                    }
                }
            }
        }
        Ok(())
    }

    fn apply_next(&mut self, node: usize) -> Result<bool, String> {
        let Some((leadership, entry)) = self.committed.get(self.nodes[node].next).cloned() else {
            return Ok(false);
        };
        self.nodes[node].next += 1;
        let before = self.nodes[node].machine.applied();
        self.give(node, Input::Committed { leadership, entry })?;
        let after = self.nodes[node].machine.applied();
        if after.serial > 0 && after != before {
            self.effective.insert(after);
        }
        Ok(true)
    }

    fn tell(&mut self, node: usize) -> Result<bool, String> {
        if self.nodes[node].answers.is_empty() || self.chance(50) {
            let Some(news) = self.nodes[node].news.pop_front() else { return Ok(false) };
            return self.give(node, news).map(|()| true);
        }
        let which = self.below(self.nodes[node].answers.len() as u64) as usize;
        let input = match self.nodes[node].answers.swap_remove(which) {
            Answer::NotTaken(entry) => Input::NotTaken { leadership: entry.leadership, serial: entry.serial },
            Answer::Lost(leadership) => Input::Lost(leadership),
        };
        self.give(node, input).map(|()| true)
    }

    fn propose(&mut self, node: usize) -> Result<(), String> {
        self.asked += 1;
        let request = match self.below(3) {
            0 => register(self.below(3) as u32 + 1, self.asked),
            _ => create(&format!("t-{}", self.below(12))),
        };
        self.give(node, Input::Propose { proposal: ProposalId(self.asked), now: Timestamp(0), request })
    }

    /// A node that is behind gets another's state for the entries it lacks.
    fn install(&mut self, node: usize) -> Result<(), String> {
        let from = self.any_node();
        let next = self.nodes[from].next;
        if next <= self.nodes[node].next {
            return Ok(());
        }
        let source = &self.nodes[from].machine;
        let installed = Input::Installed { position: source.applied(), image: source.image().clone() };
        self.nodes[node].next = next;
        self.give(node, installed)
    }

    /// What it waited for and what it was to be told is gone; it applies the log anew.
    fn restart(&mut self, node: usize) {
        let fresh = &mut self.nodes[node];
        (fresh.machine, fresh.next) = (Proposals::new(), 0);
        fresh.news.clear();
        fresh.answers.clear();
        if self.leader == node {
            let other = (node + 1) % NODES as usize;
            self.elect(other);
            self.nodes[node].news.clear();
        }
    }

    fn step(&mut self) -> Result<(), String> {
        let node = self.any_node();
        match self.below(100) {
            0..30 => self.propose(self.leader),
            30..40 => self.propose(node),
            40..60 => {
                if let Some(entry) = self.uncommitted.pop_front() {
                    self.committed.push((self.leadership, entry));
                }
                Ok(())
            }
            60..85 => self.apply_next(node).map(drop),
            85..95 => self.tell(node).map(drop),
            95..98 => {
                self.elect(node);
                Ok(())
            }
            98 => self.install(node),
            _ => {
                self.restart(node);
                Ok(())
            }
        }
    }

    /// The faults stop: everything is committed, said and applied, and one more change is made.
    fn settle(&mut self) -> Result<(), String> {
        self.elect(0);
        self.committed.extend(self.uncommitted.drain(..).map(|entry| (self.leadership, entry)));
        for node in 0..NODES as usize {
            while self.tell(node)? || self.apply_next(node)? || !self.nodes[node].news.is_empty() {}
        }
        let deciding: Vec<_> = self.nodes.iter().map(|node| node.machine.deciding()).collect();
        if deciding != [Some(self.leadership), None, None] {
            return Err(format!("{deciding:?} decide"));
        }
        match self.nodes.iter().map(|node| node.machine.waiting()).sum::<usize>() {
            0 => Ok(()),
            waiting => Err(format!("{waiting} requests are never answered")),
        }
    }

    /// The answers are true, and there is one history.
    fn check(&self) -> Result<Image, String> {
        let image = self.nodes[0].machine.image();
        if self.nodes.iter().any(|node| node.machine.image() != image) {
            return Err("images differ".into());
        }
        let mut epochs = BTreeSet::new();
        for (proposal, result) in &self.answered {
            let decision = self.decided.get(proposal);
            let is_effective = decision.is_some_and(|decision| self.effective.contains(decision));
            match result {
                Ok(_) if decision.is_some() && !is_effective => {
                    return Err(format!("{proposal:?} was answered and is not there"));
                }
                Err(NotDone::NotMade | NotDone::NotActive) if is_effective => {
                    return Err(format!("{proposal:?} is there and was answered {result:?}"));
                }
                Ok(Response::Topic(topic)) if image.topic(topic.id).is_none() => {
                    return Err(format!("topic {} was created and is not there", topic.name));
                }
                Ok(Response::BrokerRegistered { .. }) if decision.is_some() => {
                    epochs.insert(*decision.expect("just seen"));
                }
                _ => {}
            }
        }
        Ok(Image::clone(image))
    }
}

fn run(seed: u64) -> Result<World, String> {
    let mut world = World::new(seed);
    for _ in 0..400 {
        world.step()?;
    }
    world.settle()?;
    world.check()?;
    Ok(world)
}

#[test]
fn answers_are_true_and_every_node_has_the_same_history_whatever_the_log_does() {
    let (mut made, mut lost, mut unknown, mut refused) = (0, 0, 0, 0);
    for seed in 0..300 {
        let world = run(seed).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        for result in world.answered.values() {
            match result {
                Ok(_) => made += 1,
                Err(NotDone::NotMade) => lost += 1,
                Err(NotDone::Unknown) => unknown += 1,
                Err(NotDone::Refused(_)) => refused += 1,
                Err(NotDone::NotActive) => {}
            }
        }
    }
    assert!(
        made > 1000 && lost > 1000 && unknown > 10 && refused > 1000,
        "{made} {lost} {unknown} {refused}"
    );
}

#[test]
fn a_seed_replays_its_run() {
    let trace = |seed| {
        let world = run(seed).expect("clean");
        (world.committed, world.answered)
    };
    assert_eq!(trace(11), trace(11));
}

#[cfg(feature = "mutants")]
#[test]
fn rules_left_out_are_noticed() {
    use quire_engine::mutant::{self, Mutant};
    for rule in [Mutant::DecideOnPending, Mutant::DecideAfterOwnTerm] {
        mutant::set(Some(rule));
        let caught = (0..500).find(|seed| std::panic::catch_unwind(|| run(*seed).is_err()).unwrap_or(true));
        mutant::set(None);
        println!("{rule:?}: seed {caught:?}");
        assert!(caught.is_some(), "{rule:?} left out goes unnoticed");
    }
}
