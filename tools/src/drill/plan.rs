//! What is done to the cluster and when: it follows from the seed alone, so that the same seed does the same again.

use std::time::Duration;

use crate::bench::random::hash;

/// Time between two faults, at most and at least.
const INTERVAL_MAX: Duration = Duration::from_secs(10);
const INTERVAL_MIN: Duration = Duration::from_secs(3);

/// A kind of trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    /// Leaders die.
    KillLeader,
    /// Leaders stop for a while, and come back believing that they lead.
    PauseLeader,
    /// Everything dies at once.
    KillAll,
    /// Clients do not reach a leader, nor it them.
    Partition,
    /// Every broker is stopped in order and started again.
    RollingRestart,
}

impl Scenario {
    /// The option that asks for it.
    pub fn option(self) -> &'static str {
        match self {
            Scenario::KillLeader => "--kill-leader",
            Scenario::PauseLeader => "--pause-leader",
            Scenario::KillAll => "--kill-all",
            Scenario::Partition => "--partition",
            Scenario::RollingRestart => "--rolling-restart",
        }
    }
}

/// One thing done to the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL to the leader of this partition, which comes back after a while.
    KillLeader {
        /// The partition.
        partition: u32,
        /// How long it stays away.
        away: Duration,
    },
    /// SIGSTOP to the leader of this partition.
    PauseLeader {
        /// The partition.
        partition: u32,
        /// How long it stands still.
        away: Duration,
    },
    /// Nothing passes between clients and the leader of this partition.
    Partition {
        /// The partition.
        partition: u32,
        /// How long.
        away: Duration,
    },
    /// SIGKILL to every broker.
    KillAll {
        /// How long all stay away.
        away: Duration,
    },
    /// SIGTERM and a new start, one broker after the other.
    RollingRestart,
}

/// A fault at its time after the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// When.
    pub at: Duration,
    /// What.
    pub fault: Fault,
}

/// The faults of a drill that takes so long, in order. The last one has time to be over before the end.
pub fn plan(scenario: Scenario, duration: Duration, partitions: u32, seed: u64) -> Vec<Step> {
    let interval = (duration / 4).clamp(INTERVAL_MIN, INTERVAL_MAX);
    let mut drawn = 0;
    let mut draw = |below: u64| {
        drawn += 1;
        hash(seed, drawn) % below.max(1)
    };
    let mut steps = Vec::new();
    let mut next = interval / 2;
    while next + interval / 2 <= duration {
        let jitter = Duration::from_millis(draw((interval / 5).as_millis() as u64));
        let partition = draw(u64::from(partitions)) as u32;
        let away = Duration::from_millis(200 + draw(interval.as_millis() as u64 / 4));
        let fault = match scenario {
            Scenario::KillLeader => Fault::KillLeader { partition, away },
            // Long enough for the others to take it for dead.
            Scenario::PauseLeader => Fault::PauseLeader { partition, away: away + interval / 4 },
            Scenario::Partition => Fault::Partition { partition, away: away + interval / 4 },
            Scenario::KillAll => Fault::KillAll { away },
            Scenario::RollingRestart => Fault::RollingRestart,
        };
        steps.push(Step { at: next + jitter, fault });
        next += interval;
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCENARIOS: [Scenario; 5] = [
        Scenario::KillLeader,
        Scenario::PauseLeader,
        Scenario::Partition,
        Scenario::KillAll,
        Scenario::RollingRestart,
    ];

    #[test]
    fn the_same_seed_does_the_same_again() {
        for scenario in SCENARIOS {
            let plan = |seed| super::plan(scenario, Duration::from_secs(45), 8, seed);
            assert_eq!(plan(7), plan(7));
            assert_ne!(plan(7), plan(8), "{scenario:?}");
        }
    }

    #[test]
    fn every_drill_has_a_fault_that_has_time_to_end() {
        for seconds in [4, 10, 45, 600] {
            let duration = Duration::from_secs(seconds);
            for scenario in SCENARIOS {
                let steps = plan(scenario, duration, 8, 1);
                assert!(!steps.is_empty(), "{seconds} s");
                assert!(
                    steps.is_sorted_by_key(|step| step.at) && steps.iter().all(|step| step.at < duration)
                );
            }
        }
        assert_eq!(plan(Scenario::KillLeader, Duration::from_secs(45), 8, 1).len(), 4);
    }
}
