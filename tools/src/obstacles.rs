//! What keeps `quire produce` waiting: told once for each cause, and that it goes on.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use quire_client::{Error, ErrorCode, Obstacle, Producer};

use crate::connect;
use crate::output::counted;

/// So long something may stand in the way without a word: a leader is elected in less.
const SILENT_TIME_MAX: Duration = Duration::from_secs(2);
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// Looks a few times a second what stands in the way, and tells.
pub async fn watch(producer: &Producer, tell: impl Fn(&str)) -> Infallible {
    let mut told = Told::default();
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        told.look(&producer.obstacles(), Instant::now()).iter().for_each(|text| tell(text));
    }
}

/// What obstacles have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    Answer(ErrorCode),
    Unreachable,
    Other,
}

impl Cause {
    fn of(error: &Error) -> Cause {
        match error.code() {
            Some(code) => Cause::Answer(code),
            None if error.is_unreachable() => Cause::Unreachable,
            None => Cause::Other,
        }
    }
}

/// What the user knows.
#[derive(Debug, Default)]
struct Told {
    causes: Vec<Cause>,
}

impl Told {
    /// What is to be told now.
    fn look(&mut self, obstacles: &[Obstacle], now: Instant) -> Vec<String> {
        if obstacles.is_empty() && !self.causes.is_empty() {
            self.causes.clear();
            return vec!["it goes on: records are acknowledged, or have failed".to_owned()];
        }
        let mut texts = Vec::new();
        let lasts = |obstacle: &&Obstacle| now.saturating_duration_since(obstacle.since) >= SILENT_TIME_MAX;
        for obstacle in obstacles.iter().filter(lasts) {
            let cause = Cause::of(&obstacle.error);
            if !self.causes.contains(&cause) {
                self.causes.push(cause);
                let partitions = obstacles.iter().filter(|other| Cause::of(&other.error) == cause).count();
                texts.push(waiting(obstacle, partitions as u64));
            }
        }
        texts
    }
}

fn waiting(obstacle: &Obstacle, partitions: u64) -> String {
    let Obstacle { topic, partition, error, .. } = obstacle;
    let which = match partitions {
        1 => format!("partition {partition} of \"{topic}\""),
        many => format!("{} of \"{topic}\"", counted(many, "partition")),
    };
    format!("waiting to write to {which}: {error}\n  {}", connect::hint(&error.advice()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: ErrorCode, partition: u32, since: Instant) -> Obstacle {
        let message = "refused".to_owned();
        obstacle(Error::Broker { code, message, suggestion: None }, partition, since)
    }

    #[test]
    fn each_cause_is_told_once_and_that_it_goes_on() {
        let since = Instant::now();
        let later = since + SILENT_TIME_MAX;
        let mut told = Told::default();
        let full = [refused(ErrorCode::DiskFull, 0, since), refused(ErrorCode::DiskFull, 1, later)];
        assert_eq!(told.look(&full, since), [""; 0], "it may pass");
        let expected = "waiting to write to 2 partitions of \"t\": refused (DISK_FULL, retriable)\n  \
                        free space on the broker's disk, or lower retention; produce resumes by itself";
        assert_eq!(told.look(&full, later), [expected]);
        assert_eq!(told.look(&full, later + SILENT_TIME_MAX), [""; 0], "it was told");
        let lacking = [refused(ErrorCode::NotEnoughReplicas, 0, since)];
        let text = &told.look(&lacking, later)[0];
        assert!(text.contains("partition 0 of \"t\"") && text.contains("min.insync.replicas"), "{text}");
        assert_eq!(told.look(&[], later), ["it goes on: records are acknowledged, or have failed"]);
        assert_eq!(told.look(&[], later), [""; 0]);
        assert_eq!(told.look(&full, later).len(), 1, "it is told anew");
    }

    #[test]
    fn brokers_that_are_gone_in_different_ways_are_one_cause() {
        let since = Instant::now();
        let (address, why) = ("a:1".to_owned(), "gone".to_owned());
        let lost = Error::ConnectionLost { address: address.clone(), why: why.clone() };
        let obstacles = [obstacle(lost, 0, since), obstacle(Error::Unreachable { address, why }, 1, since)];
        assert_eq!(Told::default().look(&obstacles, since + SILENT_TIME_MAX).len(), 1);
    }

    fn obstacle(error: Error, partition: u32, since: Instant) -> Obstacle {
        Obstacle::new("t", quire_client::PartitionIndex(partition), error, since)
    }
}
