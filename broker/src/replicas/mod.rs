//! What shards want of other brokers and of the controller, carried there: the follower's end of replicate streams, and
//! proposals.
//!
//! Each shard leaves what it wants as values ([`Outgoing`]). `uplink` keeps one replicate stream for each shard and
//! leader; `proposals` asks the controller and brings back what became of it.

mod proposals;
#[cfg(test)]
mod tests;
mod uplink;

use std::sync::Arc;

use futures_util::future::BoxFuture;
use quinn::{RecvStream, SendStream};
use quire_protocol::BrokerId;
use quire_protocol::stream::StreamKind;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::controller::Metadata;
use crate::net::peers::Peers;
use crate::shard::{Outgoing, Router};

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

impl Replicas {
    /// Runs until every shard has ended. Dropped, it ends all streams.
    pub(crate) async fn run(self, mut outgoing: mpsc::UnboundedReceiver<(usize, Outgoing)>) {
        let mut under_way = JoinSet::new();
        loop {
            let (shard, wanted) = tokio::select! {
                wanted = outgoing.recv() => match wanted {
                    Some(wanted) => wanted,
                    None => return,
                },
                Some(_) = under_way.join_next(), if !under_way.is_empty() => continue,
            };
            let (router, metadata) = (self.router.clone(), Arc::clone(&self.metadata));
            match wanted {
                Outgoing::Connect(uplink) => {
                    under_way.spawn(uplink::keep(uplink, shard, router, Arc::clone(&self.dial)));
                }
                Outgoing::Propose { partition, proposal } => {
                    under_way.spawn(proposals::propose(metadata, router, self.broker, partition, proposal));
                }
                Outgoing::Distrust { partition } => {
                    under_way.spawn(proposals::distrust(metadata, self.broker, partition));
                }
            }
        }
    }
}
