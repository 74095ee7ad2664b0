//! Whether a cluster is whole again once nothing is done to it any more: the liveness that a history does not show.

use std::time::{Duration, Instant};

use quire_client::{BrokerState, Client, ClusterStatus};
use tokio::time::{sleep, timeout};

/// How long a cluster may take until it is whole again.
pub const HEAL_TIME_MAX: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Longest wait for one answer.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(5);

/// Waits until every broker serves and every partition has its leader and all of its replicas in sync; returns how long that
/// took.
///
/// # Errors
/// What is missing after [`HEAL_TIME_MAX`], in words.
pub async fn healthy(client: &Client) -> Result<Duration, String> {
    let started = Instant::now();
    loop {
        let admin = client.admin();
        let missing = match timeout(ANSWER_TIME_MAX, admin.cluster_status()).await {
            Ok(Ok(status)) => missing(&status),
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("nobody said how it is within {ANSWER_TIME_MAX:?}")),
        };
        match missing {
            None => return Ok(started.elapsed()),
            Some(missing) if started.elapsed() > HEAL_TIME_MAX => {
                return Err(format!("the cluster is not whole {HEAL_TIME_MAX:?} after the load: {missing}"));
            }
            Some(_) => sleep(LOOK_EVERY).await,
        }
    }
}

/// What is not as it should be.
fn missing(status: &ClusterStatus) -> Option<String> {
    let fenced = status.brokers.iter().filter(|broker| broker.state != BrokerState::Unfenced).count();
    let counts = [
        (fenced as u64, "brokers that do not serve"),
        (u64::from(status.offline), "partitions without a leader"),
        (u64::from(status.under_replicated), "partitions with a replica that is not in sync"),
        (u64::from(status.recovering), "partitions whose leader may lack records"),
    ];
    let missing: Vec<String> = counts
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    (!missing.is_empty()).then(|| missing.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_that_lacks_nothing_is_whole() {
        let mut status = ClusterStatus { partitions: 8, unbalanced: 3, ..ClusterStatus::default() };
        assert_eq!(missing(&status), None);
        status.offline = 2;
        status.under_replicated = 1;
        assert_eq!(
            missing(&status).as_deref(),
            Some("2 partitions without a leader, 1 partitions with a replica that is not in sync")
        );
    }
}
