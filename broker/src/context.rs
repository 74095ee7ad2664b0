//! What every connection shares.

use std::sync::Arc;

use quire_protocol::limits;
use tokio::sync::{Semaphore, watch};

use crate::config::Config;
use crate::controller::Metadata;
use crate::coordinator::Coordinators;
use crate::identity::BrokerIdentity;
use crate::metrics::Metrics;
use crate::net::join::admit::Gate;
use crate::net::peers::tls::Revoked;
use crate::producer_ids::ProducerIds;
use crate::shard::Partitions;
use crate::shutdown::{Stopping, Underway};

/// What every connection shares.
pub(crate) struct Context {
    pub(crate) config: Config,
    pub(crate) identity: BrokerIdentity,
    pub(crate) metadata: Arc<dyn Metadata>,
    pub(crate) partitions: Partitions,
    pub(crate) producer_ids: ProducerIds,
    pub(crate) coordinators: Coordinators,
    pub(crate) metrics: Metrics,
    pub(crate) memory: Memory,
    /// Streams being served.
    pub(crate) streams: Underway,
    /// Connections being served.
    pub(crate) connections: Underway,
    pub(crate) stopping: Stopping,
    /// Where brokers join the cluster; `None` for a broker alone.
    pub(crate) gate: Option<Arc<Gate>>,
    /// Whether the controller heard this broker within a session; `None` for a broker alone.
    pub(crate) is_heard: Option<watch::Receiver<bool>>,
    /// The certificates that are void; none for a broker alone.
    pub(crate) revoked: Arc<Revoked>,
}

/// The broker's memory budgets, counted in bytes.
pub(crate) struct Memory {
    /// Batches received and not yet answered.
    pub(crate) produce: Arc<Semaphore>,
    /// What reads brought from the disk and no client has taken yet: pages of the page cache, which must stay until it is
    /// sent, or heap where files are not mapped.
    pub(crate) cold_read: Arc<Semaphore>,
    /// One permit for each call that asks the disk ahead of a consumer.
    pub(crate) read_aheads: Arc<Semaphore>,
    /// One permit for each lookup of a time. Apart from reads, which wait for clients: a lookup waits only for the disk.
    pub(crate) time_lookups: Arc<Semaphore>,
    /// Control requests being read, and answers being written.
    pub(crate) rpc: Semaphore,
}

impl Memory {
    pub(crate) fn new(config: &Config) -> Memory {
        Memory {
            produce: Arc::new(Semaphore::new(config.memory.produce_bytes)),
            cold_read: Arc::new(Semaphore::new(config.memory.cold_read_bytes)),
            read_aheads: Arc::new(Semaphore::new(limits::READ_AHEADS)),
            time_lookups: Arc::new(Semaphore::new(limits::TIME_LOOKUPS_MAX)),
            rpc: Semaphore::new(limits::RPC_MEMORY_BYTES),
        }
    }
}
