//! A broker's registration with the controller: asked for at the start, and again whenever it turns out not to be this
//! process's any more.
//!
//! A request of an earlier process of the same broker may be taken late, after this one's: then the controller knows
//! another registration than this process lives in, and everything that it says is void. It says again who it is, as at
//! the start, with what it can not be trusted with by now.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use quire_engine::controller::{RegisterBroker, Request, Response};
use quire_protocol::TopicPartition;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::heartbeat::HeartbeatHandle;
use super::{ClusterError, Waited};
use crate::controller::{Metadata, ProposeError};

/// How long to wait before the controller is asked again.
const RETRY_INTERVAL: Duration = Duration::from_millis(100);
/// The wait before a registration that is lost again soon is asked for again: another process that takes itself for this
/// broker does the same.
const PAUSE_MIN: Duration = Duration::from_millis(200);
/// It doubles up to this.
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// The way to a registration.
#[derive(Debug, Clone)]
pub(super) struct Registration {
    pub(super) metadata: Arc<dyn Metadata>,
    /// The broker epoch that this process lives in; none before it has one.
    pub(super) epoch: watch::Sender<Option<u64>>,
}

impl Registration {
    /// Registers this process, for as long as that takes, and shows which registration it is.
    pub(super) async fn register(&self, broker: RegisterBroker) -> Result<u64, ClusterError> {
        let mut waited = Waited::new("the broker is not registered yet");
        loop {
            // The same process asks again with the same incarnation, and is answered the same.
            match self.metadata.propose(Request::RegisterBroker(broker.clone())).await {
                Ok(Response::BrokerRegistered { epoch }) => {
                    self.epoch.send_replace(Some(epoch));
                    return Ok(epoch);
                }
                Ok(other) => waited.tell(&format!("answered {other:?}")),
                Err(
                    error @ (ProposeError::Refused(_) | ProposeError::Failed { .. } | ProposeError::Stopped),
                ) => {
                    return Err(ClusterError::Refused(error));
                }
                Err(error) => waited.tell(&error.to_string()),
            }
            sleep(RETRY_INTERVAL).await;
        }
    }

    /// Registers again whenever the registration is lost, until the cluster refuses that. `suspects` are the partitions
    /// whose log may lack records by then.
    pub(super) async fn keep(
        self,
        mut broker: RegisterBroker,
        heartbeat: HeartbeatHandle,
        suspects: impl Fn() -> BoxFuture<'static, Vec<TopicPartition>> + Send,
    ) {
        let (mut pause, mut lost_at) = (PAUSE_MIN, None::<Instant>);
        loop {
            heartbeat.stale(&self.epoch).await;
            tracing::warn!(
                "the controller knows another registration of this broker, or none: it registers again; if that goes on, \
                 another process runs with a copy of its data directory"
            );
            if let Some(before) = lost_at.replace(Instant::now()) {
                pause = if before.elapsed() > 2 * PAUSE_MAX { PAUSE_MIN } else { (2 * pause).min(PAUSE_MAX) };
                sleep(pause).await;
            }
            // As at the start: what may lack records is told with it.
            broker.suspects = suspects().await;
            match self.register(broker.clone()).await {
                Ok(epoch) => tracing::info!(epoch, "the broker is registered again"),
                Err(error) => {
                    tracing::error!(%error, "the broker is one of the cluster no more: it leads and follows nothing");
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use quire_engine::controller::CreateTopic;
    use quire_protocol::PartitionIndex;
    use tokio::time::timeout;

    use super::*;
    use crate::replicas::tests::{SharedMetadata, broker};

    const PATIENCE: Duration = Duration::from_secs(20);

    /// A request of the process before, taken late, left a broker silent for good.
    #[tokio::test]
    async fn a_superseded_registration_is_made_again_with_what_is_suspect_by_then() {
        let metadata = SharedMetadata::new();
        let registration = Registration { metadata: metadata.clone(), epoch: watch::Sender::new(None) };
        let mine = broker(0, 2);
        assert_eq!(registration.register(mine.clone()).await.expect("taken"), 1);
        assert_eq!(registration.register(mine.clone()).await.expect("the same process"), 1);
        metadata.ask(Request::UnfenceBroker { broker: mine.broker, epoch: 1 }).expect("it is heard of");
        metadata.register(broker(1, 1));
        let create = CreateTopic { name: "t".into(), partitions: 1, ..CreateTopic::default() };
        let Ok(Response::Topic(topic)) = metadata.ask(Request::CreateTopic(create)) else {
            panic!("it is created")
        };
        let id = TopicPartition { topic: topic.id, partition: PartitionIndex(0) };

        let heartbeat = HeartbeatHandle::new();
        let suspects = move || async move { vec![id] }.boxed();
        let kept = tokio::spawn(registration.clone().keep(mine.clone(), heartbeat.clone(), suspects));
        let mut epochs = registration.epoch.subscribe();
        for late in [7, 8] {
            metadata.register(broker(0, late));
            let lost = epochs.borrow_and_update().expect("it had one");
            // Late word of an earlier registration is no word of this one.
            heartbeat.is_stale(lost - 1);
            assert!(!epochs.has_changed().expect("the sender lives"));
            heartbeat.is_stale(lost);
            timeout(PATIENCE, epochs.changed()).await.expect("in time").expect("the sender lives");
            let image = Metadata::image(&*metadata);
            let known = image.broker(mine.broker).expect("registered");
            assert_eq!((Some(known.epoch), known.incarnation), (*epochs.borrow(), mine.incarnation));
            let partition = image.partition(id).expect("it exists");
            assert!(!partition.in_sync.contains(&mine.broker) && !partition.eligible.contains(&mine.broker));
        }
        kept.abort();
    }

    #[tokio::test]
    async fn a_broker_that_was_removed_asks_no_more() {
        let metadata = SharedMetadata::new();
        let registration = Registration { metadata: metadata.clone(), epoch: watch::Sender::new(None) };
        let mine = broker(0, 2);
        let epoch = registration.register(mine.clone()).await.expect("taken");
        let heartbeat = HeartbeatHandle::new();
        let kept =
            tokio::spawn(registration.keep(mine.clone(), heartbeat.clone(), || async { vec![] }.boxed()));
        metadata.ask(Request::RemoveBroker { broker: mine.broker }).expect("it holds nothing");
        heartbeat.is_stale(epoch);
        timeout(PATIENCE, kept).await.expect("it ends").expect("in order");
    }
}
