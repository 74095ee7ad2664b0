//! A relay between processes that spoils what passes: delay, jitter, loss, duplication, reordering, corruption and cuts, in
//! each direction by itself, and for one sender by itself.
//!
//! ```text
//! sender ──► [conditions ─► decider (seed)] ─► queue by due time ─► target
//! sender ◄── queue by due time ◄─ [decider (seed) ◄─ conditions] ◄── target
//! ```
//! What happens to the n-th datagram of a direction of a sender follows from the seed and the conditions alone
//! ([`Decider`], pure); when it happens is the machine's. Sockets, senders and what waits are bounded.

mod tcp;
mod udp;

pub use tcp::TcpRelay;
pub use udp::UdpRelay;

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::watch;

use crate::bench::random::hash;

/// Senders that one relay keeps apart; the one that was silent for longest makes room.
pub const SENDERS_MAX: usize = 256;
/// Datagrams that wait for their time in one direction of one sender; further ones are lost, as in a router.
pub const QUEUED_MAX: usize = 2048;

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    /// From whoever sends to the relay, to the process behind it.
    ToTarget,
    /// Back.
    FromTarget,
}

/// What a direction does to what passes. The default does nothing.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Conditions {
    /// Nothing passes.
    pub is_cut: bool,
    /// Everything is late by this much.
    pub delay: Duration,
    /// And by up to this much more, each by itself: what is sent later may arrive sooner.
    pub jitter: Duration,
    /// The share that is lost, from 0 to 1.
    pub loss: f64,
    /// The share that arrives twice.
    pub duplication: f64,
    /// The share that is held back for [`Decider::HELD_BACK`] more, so that others overtake it.
    pub reordering: f64,
    /// The share that arrives with one bit flipped.
    pub corruption: f64,
}

impl Conditions {
    /// Nothing passes.
    pub const CUT: Conditions = Conditions {
        is_cut: true,
        delay: Duration::ZERO,
        jitter: Duration::ZERO,
        loss: 0.0,
        duplication: 0.0,
        reordering: 0.0,
        corruption: 0.0,
    };
}

/// One copy of a datagram, to be delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// After so long.
    pub after: Duration,
    /// With this bit flipped, counted from the datagram's first, modulo its length.
    pub flipped_bit: Option<u64>,
}

/// Decides what becomes of one datagram after the other.
#[derive(Debug, Clone)]
pub struct Decider {
    seed: u64,
    decided: u64,
}

impl Decider {
    /// How much longer a datagram takes that others are to overtake.
    pub const HELD_BACK: Duration = Duration::from_millis(10);

    /// The decisions of this seed.
    pub fn new(seed: u64) -> Decider {
        Decider { seed, decided: 0 }
    }

    /// The copies of the next datagram that arrive: none, one or two.
    pub fn decide(&mut self, conditions: &Conditions) -> impl Iterator<Item = Arrival> + use<> {
        // Each question has a die of its own: a condition that is added changes no other decision.
        let place = hash(self.seed, self.decided);
        self.decided += 1;
        let happens = |question: u64, share: f64| share > 0.0 && fraction(hash(place, question)) < share;
        let copy = |number: u64| {
            let jitter = conditions.jitter.mul_f64(fraction(hash(place, 10 + number)));
            let held_back = happens(20 + number, conditions.reordering).then_some(Decider::HELD_BACK);
            let flipped_bit = happens(30 + number, conditions.corruption).then(|| hash(place, 40 + number));
            Arrival { after: conditions.delay + jitter + held_back.unwrap_or_default(), flipped_bit }
        };
        let passes = !conditions.is_cut && !happens(0, conditions.loss);
        let second = passes && happens(1, conditions.duplication);
        [passes.then(|| copy(0)), second.then(|| copy(1))].into_iter().flatten()
    }
}

/// From 0 up to, but not including, 1.
fn fraction(number: u64) -> f64 {
    (number >> 11) as f64 / (1u64 << 53) as f64
}

/// The conditions of a relay: changed by whoever holds it, asked by what passes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Weather {
    shared: Arc<RwLock<Rules>>,
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct Rules {
    general: BTreeMap<Direction, Conditions>,
    /// Of all senders at one address, in place of the general ones.
    of_hosts: BTreeMap<(IpAddr, Direction), Conditions>,
    /// Of one sender, in place of both.
    particular: BTreeMap<(SocketAddr, Direction), Conditions>,
}

impl Default for Weather {
    fn default() -> Weather {
        Weather { shared: Arc::default(), changed: watch::Sender::new(()) }
    }
}

impl Weather {
    /// For all senders but those that have conditions of their own.
    pub fn set(&self, direction: Direction, conditions: Conditions) {
        self.change(|rules| {
            rules.general.insert(direction, conditions);
        });
    }

    /// For one sender, known by its address: a broker sends from the port that it listens on.
    pub fn set_of(&self, sender: SocketAddr, direction: Direction, conditions: Conditions) {
        self.change(|rules| {
            rules.particular.insert((sender, direction), conditions);
        });
    }

    /// For all senders at one address, from whatever port.
    pub fn set_of_host(&self, host: IpAddr, direction: Direction, conditions: Conditions) {
        self.change(|rules| {
            rules.of_hosts.insert((host, direction), conditions);
        });
    }

    /// Nothing passes any more, either way, whoever sends.
    pub fn cut(&self) {
        self.change(|rules| {
            rules.particular.clear();
            rules.of_hosts.clear();
            for direction in [Direction::ToTarget, Direction::FromTarget] {
                rules.general.insert(direction, Conditions::CUT);
            }
        });
    }

    /// Everything passes as it is.
    pub fn clear(&self) {
        self.change(|rules| *rules = Rules::default());
    }

    /// What holds for a sender now.
    pub fn of(&self, sender: SocketAddr, direction: Direction) -> Conditions {
        let rules = self.shared.read().unwrap_or_else(PoisonError::into_inner);
        let of_host = || rules.of_hosts.get(&(sender.ip(), direction));
        let found = rules.particular.get(&(sender, direction)).or_else(of_host);
        found.or_else(|| rules.general.get(&direction)).copied().unwrap_or_default()
    }

    /// Waits until a direction is not cut.
    async fn open(&self, sender: SocketAddr, direction: Direction) -> Conditions {
        let mut changed = self.changed.subscribe();
        loop {
            let conditions = self.of(sender, direction);
            if !conditions.is_cut {
                return conditions;
            }
            // The sender lives in self: it does not end while this waits.
            let _ = changed.changed().await;
        }
    }

    fn change(&self, change: impl FnOnce(&mut Rules)) {
        change(&mut self.shared.write().unwrap_or_else(PoisonError::into_inner));
        self.changed.send_replace(());
    }
}

/// Flips a bit, wherever it lies in so many bytes.
fn flip(bytes: &mut [u8], bit: u64) {
    let bits = bytes.len() as u64 * 8;
    if let Some(bit) = bit.checked_rem(bits) {
        bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUGH: Conditions = Conditions {
        is_cut: false,
        delay: Duration::from_millis(5),
        jitter: Duration::from_millis(3),
        loss: 0.1,
        duplication: 0.2,
        reordering: 0.3,
        corruption: 0.4,
    };

    fn decisions(seed: u64, conditions: &Conditions) -> Vec<Vec<Arrival>> {
        let mut decider = Decider::new(seed);
        (0..10_000).map(|_| decider.decide(conditions).collect()).collect()
    }

    #[test]
    fn the_same_seed_decides_the_same() {
        assert_eq!(decisions(7, &ROUGH), decisions(7, &ROUGH));
        assert_ne!(decisions(7, &ROUGH), decisions(8, &ROUGH));
    }

    #[test]
    fn shares_are_those_asked_for() {
        let decided = decisions(7, &ROUGH);
        let share = |is_one: &dyn Fn(&Vec<Arrival>) -> bool| {
            decided.iter().filter(|copies| is_one(copies)).count() as f64 / decided.len() as f64
        };
        let is_near = |found: f64, expected: f64| (found - expected).abs() < 0.02;
        assert!(is_near(share(&|copies| copies.is_empty()), 0.1));
        assert!(is_near(share(&|copies| copies.len() == 2), 0.9 * 0.2));
        assert!(is_near(
            share(&|copies| copies.first().is_some_and(|copy| copy.flipped_bit.is_some())),
            0.9 * 0.4
        ));
        let late = ROUGH.delay + ROUGH.jitter;
        assert!(is_near(share(&|copies| copies.first().is_some_and(|copy| copy.after > late)), 0.9 * 0.3));
        let all = decided.iter().flatten();
        assert!(all.into_iter().all(|copy| (ROUGH.delay..late + Decider::HELD_BACK).contains(&copy.after)));
    }

    #[test]
    fn a_condition_that_is_added_changes_no_other_decision() {
        let more = Conditions { corruption: 0.0, duplication: 0.0, ..ROUGH };
        let lost = |conditions| -> Vec<bool> { decisions(7, conditions).iter().map(Vec::is_empty).collect() };
        assert_eq!(lost(&ROUGH), lost(&more));
    }

    #[test]
    fn nothing_passes_a_cut_and_everything_good_weather() {
        assert!(decisions(7, &Conditions::CUT).iter().all(Vec::is_empty));
        let untouched = Arrival { after: Duration::ZERO, flipped_bit: None };
        assert!(decisions(7, &Conditions::default()).iter().all(|copies| *copies == [untouched]));
    }

    #[test]
    fn a_senders_own_conditions_stand_in_place_of_the_general_ones() {
        let (one, other) = (SocketAddr::from(([127, 0, 0, 1], 1)), SocketAddr::from(([127, 0, 0, 1], 2)));
        let weather = Weather::default();
        weather.set(Direction::ToTarget, ROUGH);
        weather.set_of(one, Direction::ToTarget, Conditions::CUT);
        assert_eq!(weather.of(one, Direction::ToTarget), Conditions::CUT);
        assert_eq!(weather.of(other, Direction::ToTarget), ROUGH);
        assert_eq!(weather.of(one, Direction::FromTarget), Conditions::default());
        weather.set_of_host(one.ip(), Direction::FromTarget, Conditions::CUT);
        assert_eq!(weather.of(other, Direction::FromTarget), Conditions::CUT);
        let elsewhere = SocketAddr::from(([127, 0, 0, 2], 1));
        assert_eq!(weather.of(elsewhere, Direction::FromTarget), Conditions::default());
        weather.clear();
        assert_eq!(weather.of(one, Direction::ToTarget), Conditions::default());
    }

    #[test]
    fn one_bit_is_flipped_wherever_it_lies() {
        let mut bytes = [0; 3];
        flip(&mut bytes, 24 + 9);
        assert_eq!(bytes, [0, 2, 0]);
        flip(&mut [], 5);
    }
}
