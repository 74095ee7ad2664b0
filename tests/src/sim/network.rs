//! The network between nodes: messages that are late or lost, streams that keep their order and break, links that are
//! cut one way or both.
//!
//! A *call* is one request or one answer: it arrives once, late, or never. A *stream* is what QUIC gives: whatever
//! arrives does so in order and whole, and what the transport had to send again merely comes later. A link that stays cut
//! ends its streams: each end hears of it at a time of its own, and what was still on its way is gone.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use quire_engine::Time;

use super::dice::Dice;

/// A machine, or a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Node(pub u32);

/// Names a stream; never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct StreamId(pub u64);

/// An end of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// Who opened it.
    Opener,
    /// Who it was opened to.
    Accepter,
}

impl End {
    /// The one at the other side.
    pub fn other(self) -> End {
        match self {
            End::Opener => End::Accepter,
            End::Accepter => End::Opener,
        }
    }
}

/// How messages fare.
#[derive(Debug, Clone, Copy)]
pub struct Weather {
    /// The shortest way (one way).
    pub delay_min: Duration,
    /// The longest way, without loss.
    pub delay_max: Duration,
    /// Calls that are lost, in a thousand; stream messages that are sent again.
    pub loss_per_mille: u64,
    /// What sending again costs a stream.
    pub resend: Duration,
    /// Calls that go astray and arrive when nobody expects them any more, in a thousand.
    pub stray_per_mille: u64,
    /// The longest way of such a call.
    pub stray_delay_max: Duration,
}

impl Default for Weather {
    fn default() -> Weather {
        Weather {
            delay_min: Duration::from_micros(50),
            delay_max: Duration::from_millis(2),
            loss_per_mille: 0,
            resend: Duration::from_millis(40),
            stray_per_mille: 0,
            stray_delay_max: Duration::from_millis(1500),
        }
    }
}

/// The links, and every stream with what is on its way.
#[derive(Debug)]
pub struct Network<M> {
    /// How messages fare at the moment.
    pub weather: Weather,
    dice: Dice,
    cut: BTreeSet<(Node, Node)>,
    streams: BTreeMap<StreamId, Stream<M>>,
    opened: u64,
}

#[derive(Debug)]
struct Stream<M> {
    opener: Node,
    accepter: Node,
    /// By the end that receives.
    to_opener: Way<M>,
    to_accepter: Way<M>,
}

#[derive(Debug)]
struct Way<M> {
    coming: VecDeque<(Time, M)>,
    /// The latest arrival: nothing overtakes it.
    latest: Time,
    is_ended: bool,
}

impl<M> Default for Way<M> {
    fn default() -> Way<M> {
        Way { coming: VecDeque::new(), latest: Time::ZERO, is_ended: false }
    }
}

impl<M> Stream<M> {
    fn way(&mut self, to: End) -> &mut Way<M> {
        match to {
            End::Opener => &mut self.to_opener,
            End::Accepter => &mut self.to_accepter,
        }
    }

    fn node(&self, end: End) -> Node {
        match end {
            End::Opener => self.opener,
            End::Accepter => self.accepter,
        }
    }
}

impl<M> Network<M> {
    /// A network without any stream.
    pub fn new(dice: Dice) -> Network<M> {
        Network {
            weather: Weather::default(),
            dice,
            cut: BTreeSet::new(),
            streams: BTreeMap::new(),
            opened: 0,
        }
    }

    /// Lets nothing through any more from one node to another.
    pub fn cut(&mut self, from: Node, to: Node) {
        self.cut.insert((from, to));
    }

    /// Lets everything through again.
    pub fn heal(&mut self) {
        self.cut.clear();
    }

    /// Whether messages get from one node to another.
    pub fn is_cut(&self, from: Node, to: Node) -> bool {
        from != to && self.cut.contains(&(from, to))
    }

    /// When a call that is sent now arrives; `None`: never.
    pub fn call(&mut self, now: Time, from: Node, to: Node) -> Option<Time> {
        let is_lost = self.dice.happens(self.weather.loss_per_mille);
        let delay = match self.dice.happens(self.weather.stray_per_mille) {
            true => Duration::from_micros(self.dice.below(self.weather.stray_delay_max.as_micros() as u64)),
            false => self.dice.wait(self.weather.delay_min, self.weather.delay_max),
        };
        (!is_lost && !self.is_cut(from, to)).then_some(now + delay)
    }

    /// Opens a stream. Whoever it is opened to learns of it by the first message.
    pub fn open(&mut self, opener: Node, accepter: Node) -> StreamId {
        let id = StreamId(self.opened);
        self.opened += 1;
        let stream = Stream { opener, accepter, to_opener: Way::default(), to_accepter: Way::default() };
        self.streams.insert(id, stream);
        id
    }

    /// Sends a message to one end; when it is to be looked for there with [`Network::arrived`]. `None`: that end is gone.
    pub fn send(&mut self, now: Time, id: StreamId, to: End, message: M) -> Option<Time> {
        let stream = self.streams.get_mut(&id)?;
        let mut delay = self.dice.wait(self.weather.delay_min, self.weather.delay_max);
        if self.dice.happens(self.weather.loss_per_mille) {
            delay += self.weather.resend;
        }
        let way = stream.way(to);
        if way.is_ended {
            return None;
        }
        way.latest = way.latest.max(now + delay);
        way.coming.push_back((way.latest, message));
        Some(way.latest)
    }

    /// The messages that have arrived at an end by now, in order. None while the link is cut.
    pub fn arrived(&mut self, now: Time, id: StreamId, at: End) -> Vec<M> {
        let Some(stream) = self.streams.get_mut(&id) else { return Vec::new() };
        let (from, to) = (stream.node(at.other()), stream.node(at));
        if self.cut.contains(&(from, to)) {
            return Vec::new();
        }
        let way = stream.way(at);
        let mut arrived = Vec::new();
        while let Some((_, message)) = way.coming.pop_front_if(|(due, _)| *due <= now) {
            arrived.push(message);
        }
        arrived
    }

    /// Both nodes of a stream that is not gone: opener, accepter.
    pub fn nodes(&self, id: StreamId) -> Option<(Node, Node)> {
        self.streams.get(&id).map(|stream| (stream.opener, stream.accepter))
    }

    /// One end lets go of a stream, or hears that it is lost: nothing arrives there any more. What it had sent still
    /// does. Gone when both ends have.
    pub fn end(&mut self, id: StreamId, at: End) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let way = stream.way(at);
        way.is_ended = true;
        way.coming.clear();
        if stream.to_opener.is_ended && stream.to_accepter.is_ended {
            self.streams.remove(&id);
        }
    }

    /// A machine stopped: of what it had sent only some arrives, and nothing arrives at it. The other ends of its
    /// streams, which will hear of it.
    pub fn stop(&mut self, node: Node) -> Vec<(StreamId, End)> {
        let mut left = Vec::new();
        let mine = |stream: &Stream<M>| stream.opener == node || stream.accepter == node;
        let ids: Vec<_> = self.streams.iter().filter(|(_, s)| mine(s)).map(|(id, _)| *id).collect();
        for id in ids {
            let stream = self.streams.get_mut(&id).expect("just listed");
            let here = if stream.opener == node { End::Opener } else { End::Accepter };
            let away = stream.way(here.other());
            let kept = self.dice.below(away.coming.len() as u64 + 1) as usize;
            away.coming.truncate(kept);
            let is_heard = !away.is_ended;
            self.end(id, here);
            if is_heard {
                left.push((id, here.other()));
            }
        }
        left
    }

    /// Every stream between two nodes.
    pub fn between(&self, one: Node, other: Node) -> Vec<StreamId> {
        let is_between = |stream: &Stream<M>| {
            (stream.opener, stream.accepter) == (one, other)
                || (stream.opener, stream.accepter) == (other, one)
        };
        self.streams.iter().filter(|(_, stream)| is_between(stream)).map(|(id, _)| *id).collect()
    }

    /// Every stream, with the next arrival at each end.
    pub fn pending(&self) -> Vec<(StreamId, End, Time)> {
        let next = |id: StreamId, end, way: &Way<M>| way.coming.front().map(|(due, _)| (id, end, *due));
        let ends = |(id, stream): (&StreamId, &Stream<M>)| {
            [next(*id, End::Opener, &stream.to_opener), next(*id, End::Accepter, &stream.to_accepter)]
        };
        self.streams.iter().flat_map(ends).flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Node = Node(1);
    const B: Node = Node(2);

    fn later() -> Time {
        Time::ZERO + Duration::from_secs(60)
    }

    fn network() -> Network<u32> {
        Network::new(Dice::new(7))
    }

    #[test]
    fn a_stream_keeps_its_order_whatever_is_sent_again() {
        let mut network = network();
        network.weather.loss_per_mille = 300;
        let id = network.open(A, B);
        for message in 0..200 {
            network.send(Time::ZERO, id, End::Accepter, message);
        }
        assert_eq!(network.arrived(later(), id, End::Accepter), (0..200).collect::<Vec<_>>());
    }

    #[test]
    fn a_cut_link_holds_back_one_way_and_lets_go_when_it_heals() {
        let mut network = network();
        let id = network.open(A, B);
        network.cut(A, B);
        network.send(Time::ZERO, id, End::Accepter, 1);
        network.send(Time::ZERO, id, End::Opener, 2);
        assert_eq!(network.call(Time::ZERO, A, B), None);
        assert!(network.arrived(later(), id, End::Accepter).is_empty());
        assert_eq!(network.arrived(later(), id, End::Opener), [2]);
        network.heal();
        assert_eq!(network.arrived(later(), id, End::Accepter), [1]);
    }

    #[test]
    fn of_what_a_stopped_machine_had_sent_a_beginning_arrives() {
        let mut network = network();
        let id = network.open(A, B);
        for message in 0..50 {
            network.send(Time::ZERO, id, End::Accepter, message);
            network.send(Time::ZERO, id, End::Opener, message);
        }
        assert_eq!(network.stop(A), [(id, End::Accepter)]);
        assert!(network.arrived(later(), id, End::Opener).is_empty(), "nothing arrives where nothing runs");
        let arrived = network.arrived(later(), id, End::Accepter);
        assert!(arrived.len() < 50);
        assert_eq!(arrived, (0..arrived.len() as u32).collect::<Vec<_>>());
        network.end(id, End::Accepter);
        assert_eq!(network.nodes(id), None);
    }
}
