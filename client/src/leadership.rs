//! Notices that a partition has another leader although nobody says so: one that was killed or cut off does not.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use quire_protocol::PartitionIndex;

use crate::Client;
use crate::metadata::TopicMetadata;

/// Without any answer for so long, other brokers are asked who leads.
const UNANSWERED_TIME_MAX: Duration = Duration::from_millis(500);
/// And again so often while the silence lasts: the next leader is found soon after it is elected, and not up to another
/// [`UNANSWERED_TIME_MAX`] later.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(100);
/// So often at first; an election takes no longer. Who answers nothing after that is slow, and the pauses double.
const LOOKS_IN_A_ROW_MAX: u32 = 50;
const LOOK_INTERVAL_MAX: Duration = Duration::from_secs(1);

/// How a stream gets on.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Grows with what comes from the broker.
    pub received: AtomicU64,
    /// Whether an answer is waited for.
    pub is_waiting: AtomicBool,
}

impl Progress {
    /// One that waits from the beginning.
    pub(crate) fn waiting() -> Progress {
        Progress { is_waiting: AtomicBool::new(true), ..Progress::default() }
    }
}

/// Watches for as long as an answer is waited for. Whether there is another leader.
pub(crate) async fn has_moved(
    client: Client,
    mut known: Arc<TopicMetadata>,
    partition: PartitionIndex,
    progress: Arc<Progress>,
) -> bool {
    let led = known.leadership(partition);
    let mut looks = 0;
    loop {
        let before = progress.received.load(Ordering::Relaxed);
        tokio::time::sleep(pause_before(looks)).await;
        if !progress.is_waiting.load(Ordering::Relaxed) {
            return false;
        }
        if progress.received.load(Ordering::Relaxed) != before {
            looks = 0;
            continue;
        }
        looks += 1;
        // Nobody may answer: then there is nowhere else to go.
        let Ok(now) = client.metadata().refresh_from_others(&known, led).await else { continue };
        if now.id != known.id || now.leadership(partition) != led {
            return true;
        }
        known = now;
    }
}

/// Watches one request about several partitions that one broker led; ends when it leads none of them any more. While it does
/// lead some, it is there to say which.
pub(crate) async fn all_have_moved(
    client: Client,
    mut known: Arc<TopicMetadata>,
    partitions: &[PartitionIndex],
) {
    let asked = Arc::clone(&known);
    let Some(led) = partitions.first().map(|first| asked.leadership(*first)) else { return };
    for looks in 0.. {
        tokio::time::sleep(pause_before(looks)).await;
        let Ok(now) = client.metadata().refresh_from_others(&known, led).await else { continue };
        if have_all_moved(&asked, &now, partitions) {
            return;
        }
        known = now;
    }
}

fn have_all_moved(asked: &TopicMetadata, now: &TopicMetadata, partitions: &[PartitionIndex]) -> bool {
    let has_moved = |partition: &PartitionIndex| asked.leadership(*partition) != now.leadership(*partition);
    asked.id != now.id || partitions.iter().all(has_moved)
}

/// How long nothing is done before the look after this many.
fn pause_before(looks: u32) -> Duration {
    match looks {
        0 => UNANSWERED_TIME_MAX,
        1..LOOKS_IN_A_ROW_MAX => LOOK_AGAIN_AFTER,
        _ => (LOOK_AGAIN_AFTER * 2u32.pow((looks - LOOKS_IN_A_ROW_MAX + 1).min(8))).min(LOOK_INTERVAL_MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metadata::tests::led_by;
    use quire_protocol::BrokerId;

    #[test]
    fn a_broker_that_leads_some_of_what_it_was_asked_for_is_waited_for() {
        let partitions = [PartitionIndex(0), PartitionIndex(1)];
        let (one, two) = (Some(BrokerId(1)), Some(BrokerId(2)));
        let asked = led_by(7, &[one, one]);
        for (now, has_moved) in [
            (led_by(7, &[one, one]), false),
            (led_by(7, &[two, one]), false),
            (led_by(7, &[one, None]), false),
            (led_by(7, &[two, None]), true),
            (led_by(8, &[one, one]), true),
        ] {
            assert_eq!(have_all_moved(&asked, &now, &partitions), has_moved, "{now:?}");
        }
    }

    #[test]
    fn a_failover_is_noticed_soon_and_a_slow_broker_costs_others_little() {
        let begun = |looks: u32| (0..=looks).map(pause_before).sum::<Duration>();
        assert_eq!(pause_before(0), UNANSWERED_TIME_MAX);
        assert!(begun(40) <= Duration::from_secs(5));
        assert_eq!(pause_before(60), LOOK_INTERVAL_MAX);
        let looks_in_a_minute = (0..).take_while(|looks| begun(*looks) < Duration::from_secs(60)).count();
        assert!(looks_in_a_minute < 120, "{looks_in_a_minute}");
    }
}
