//! What shards want of other brokers and of the controller, carried there: the follower's end of replicate streams, and
//! proposals.
//!
//! Each shard leaves what it wants as values ([`Outgoing`]). `uplink` keeps one replicate stream for each shard and
//! leader; `proposals` asks the controller and brings back what became of it.

mod proposals;
#[cfg(test)]
pub(crate) mod tests;
mod uplink;

use std::collections::HashMap;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use quinn::{RecvStream, SendStream};
use quire_protocol::stream::StreamKind;
use quire_protocol::{BrokerId, TopicPartition};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::controller::Metadata;
use crate::net::peers::Peers;
use crate::shard::{Outgoing, Router};

pub use uplink::split;

/// Opens replicate streams.
pub(crate) trait Dial: Send + Sync + 'static {
    /// A stream to `leader` on which its prefix was sent; `spread` says which of the connections to it.
    fn dial(
        &self,
        leader: BrokerId,
        spread: usize,
    ) -> BoxFuture<'static, Result<(SendStream, RecvStream), String>>;
}

impl Dial for Peers {
    fn dial(
        &self,
        leader: BrokerId,
        spread: usize,
    ) -> BoxFuture<'static, Result<(SendStream, RecvStream), String>> {
        let peers = self.clone();
        Box::pin(async move {
            let opened = peers.open_stream(leader, StreamKind::Replicate, spread).await;
            opened.map_err(|error| error.to_string())
        })
    }
}

/// Carries what shards want, until they are gone.
pub(crate) struct Replicas {
    pub(crate) broker: BrokerId,
    pub(crate) metadata: Arc<dyn Metadata>,
    pub(crate) router: Router,
    pub(crate) dial: Arc<dyn Dial>,
}

/// The replicas of which the controller is being told that they can not be trusted, each by one task at a time: a leader
/// that does not know may have one taken in again as fast as it is taken out.
#[derive(Default)]
struct Distrusted {
    /// Whether it is to be told again.
    partitions: HashMap<TopicPartition, bool>,
    told: JoinSet<TopicPartition>,
}

impl Distrusted {
    fn is_wanted_again(&mut self, partition: TopicPartition) -> bool {
        self.partitions.remove(&partition).is_some_and(|is_wanted_again| is_wanted_again)
    }
}

impl Replicas {
    /// Runs until every shard has ended. Dropped, it ends all streams.
    pub(crate) async fn run(self, mut outgoing: mpsc::UnboundedReceiver<(usize, Outgoing)>) {
        let mut under_way = JoinSet::new();
        let mut distrusted = Distrusted::default();
        loop {
            let (shard, wanted) = tokio::select! {
                wanted = outgoing.recv() => match wanted {
                    Some(wanted) => wanted,
                    None => return,
                },
                Some(_) = under_way.join_next(), if !under_way.is_empty() => continue,
                Some(told) = distrusted.told.join_next(), if !distrusted.told.is_empty() => {
                    if let Ok(partition) = told
                        && distrusted.is_wanted_again(partition)
                    {
                        self.distrust(&mut distrusted, partition);
                    }
                    continue;
                }
            };
            let (router, metadata) = (self.router.clone(), Arc::clone(&self.metadata));
            match wanted {
                Outgoing::Connect(uplink) => {
                    under_way.spawn(uplink::keep(uplink, shard, router, Arc::clone(&self.dial)));
                }
                Outgoing::Propose { partition, proposal } => {
                    under_way.spawn(proposals::propose(metadata, router, self.broker, partition, proposal));
                }
                Outgoing::Distrust { partition } => self.distrust(&mut distrusted, partition),
            }
        }
    }

    fn distrust(&self, distrusted: &mut Distrusted, partition: TopicPartition) {
        if let Some(is_wanted_again) = distrusted.partitions.get_mut(&partition) {
            *is_wanted_again = true;
            return;
        }
        distrusted.partitions.insert(partition, false);
        distrusted.told.spawn(proposals::distrust(Arc::clone(&self.metadata), self.broker, partition));
    }
}
