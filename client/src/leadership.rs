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
    let mut pause = UNANSWERED_TIME_MAX;
    loop {
        let before = progress.received.load(Ordering::Relaxed);
        tokio::time::sleep(pause).await;
        if !progress.is_waiting.load(Ordering::Relaxed) {
            return false;
        }
        if progress.received.load(Ordering::Relaxed) != before {
            pause = UNANSWERED_TIME_MAX;
            continue;
        }
        pause = LOOK_AGAIN_AFTER;
        // Nobody may answer: then there is nowhere else to go.
        let Ok(now) = client.metadata().refresh_from_others(&known, led).await else { continue };
        if now.id != known.id || now.leadership(partition) != led {
            return true;
        }
        known = now;
    }
}
