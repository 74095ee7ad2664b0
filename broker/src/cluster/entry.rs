//! The first start of a cluster's broker: everything it needs is durable before its identity is.

use std::path::Path;
use std::sync::Arc;

use prost::Message;
use quire_protocol::rpc::join::{Seed, Seeds};
use quire_protocol::{BrokerId, limits};
use quire_storage::disk::Disk;
use quire_storage::small_file::{self, Format, LoadError};

use super::ClusterError;
use crate::config::{Config, FirstStart, HostPort};
use crate::controller::raft::{self, FormatError};
use crate::identity::{BrokerIdentity, DataDirectory, LockedDirectory, Membership, random};
use crate::net::join::ask::{Ask, ask};
use crate::net::membership::{self, Joined};
use crate::running::{StartError, blocking};

/// Where a broker that joined begins to look for the others.
const SEEDS: &str = "seeds";
const SEEDS_FORMAT: Format = Format { magic: *b"QSED", version: 1, body_len_max: limits::JOIN_BYTES_MAX };

/// Takes the directory of the broker that it is, or that it becomes now.
pub(crate) async fn enter(
    config: &Config,
    disk: Arc<dyn Disk>,
    names: Vec<String>,
) -> Result<DataDirectory, StartError> {
    let dir = config.data_dir.clone();
    let locked = {
        let (disk, dir) = (Arc::clone(&disk), dir.clone());
        blocking(move || LockedDirectory::open(&*disk, &dir)).await?
    };
    let identity = match (locked.identity.clone(), &config.first_start) {
        (
            Some(BrokerIdentity { membership: Membership::Alone, .. }),
            FirstStart::Found | FirstStart::Join { .. },
        ) => {
            return Err(ClusterError::Alone { dir }.into());
        }
        (Some(identity), _) => identity,
        (None, FirstStart::Alone) if config.cluster.is_expected => {
            return Err(ClusterError::NoIdentity { dir }.into());
        }
        (None, FirstStart::Alone) => BrokerIdentity::draw(Membership::Alone),
        (None, FirstStart::Found) => {
            let identity = BrokerIdentity::draw(Membership::Cluster);
            let (disk, dir, broker) = (Arc::clone(&disk), dir.clone(), identity.broker);
            blocking(move || found(disk, &dir, broker, &names)).await?;
            identity
        }
        (None, FirstStart::Join { at, token }) => {
            let ask = |keys: membership::JoiningKeys| Ask {
                at: at.clone(),
                token: token.clone(),
                broker_key: keys.broker,
                client_key: keys.client,
                names,
                is_controller: true,
                sockets: config.network.sockets.clone(),
            };
            join(disk.clone(), &dir, ask).await?
        }
    };
    Ok(blocking(move || locked.claim(&*disk, &dir, identity)).await?)
}

fn found(disk: Arc<dyn Disk>, dir: &Path, broker: BrokerId, names: &[String]) -> Result<(), ClusterError> {
    membership::found(&super::tls_dir(dir), broker, names)?;
    format_metadata(disk, dir)
}

async fn join(
    disk: Arc<dyn Disk>,
    dir: &Path,
    asking: impl FnOnce(membership::JoiningKeys) -> Ask,
) -> Result<BrokerIdentity, ClusterError> {
    let tls_dir = super::tls_dir(dir);
    let keys = {
        let tls_dir = tls_dir.clone();
        blocking(move || membership::joining_keys(&tls_dir)).await?
    };
    let admission = ask(asking(keys)).await?;
    let identity = BrokerIdentity {
        broker: BrokerId(admission.broker_id),
        cluster_id: admission.cluster_id.clone(),
        directory: random(),
        membership: Membership::Cluster,
    };
    tracing::info!(cluster = identity.cluster_id, broker = identity.broker.0, "joined the cluster");
    let dir = dir.to_owned();
    blocking(move || {
        let joined = Joined {
            authority_pem: &admission.authority_pem,
            broker_certificate_pem: &admission.broker_certificate_pem,
            client_certificate_pem: &admission.client_certificate_pem,
            seal_key: &admission.seal_key,
        };
        membership::keep_joined(&tls_dir, &joined)?;
        format_metadata(Arc::clone(&disk), &dir)?;
        store_seeds(&*disk, &dir, admission.seeds)
    })
    .await?;
    Ok(identity)
}

/// A directory that was formatted before the identity was stored is this broker's all the same.
fn format_metadata(disk: Arc<dyn Disk>, dir: &Path) -> Result<(), ClusterError> {
    // 0 stands for none.
    let node = u64::from_le_bytes(random()).max(1);
    match raft::format(disk, &dir.join("metadata"), node) {
        Ok(()) | Err(FormatError::Formatted { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn store_seeds(disk: &dyn Disk, dir: &Path, seeds: Vec<Seed>) -> Result<(), ClusterError> {
    let body = Seeds { seeds }.encode_to_vec();
    let stored = small_file::replace(disk, dir, SEEDS, SEEDS_FORMAT, &body);
    stored.map_err(|source| ClusterError::File { path: dir.join(SEEDS), source })
}

/// The brokers to ask for entry to the metadata log; none once this one is in it.
pub(super) fn load_seeds(disk: &dyn Disk, dir: &Path) -> Result<Vec<(BrokerId, HostPort)>, ClusterError> {
    let failed = |source| ClusterError::File { path: dir.join(SEEDS), source };
    let body = match small_file::load(disk, dir, SEEDS, SEEDS_FORMAT) {
        Ok(body) => body,
        Err(LoadError::Missing) => return Ok(Vec::new()),
        Err(error) => return Err(failed(std::io::Error::other(error.to_string()))),
    };
    let seeds = Seeds::decode(&body[..]).map_err(|error| failed(std::io::Error::other(error)))?;
    let reachable = seeds.seeds.into_iter().filter_map(|seed| {
        let port = u16::try_from(seed.port).ok()?;
        Some((BrokerId(seed.broker_id), HostPort { host: seed.host, port }))
    });
    Ok(reachable.collect())
}

pub(super) fn forget_seeds(disk: &dyn Disk, dir: &Path) -> Result<(), ClusterError> {
    let removed = small_file::remove(disk, dir, SEEDS).map(drop);
    removed.map_err(|source| ClusterError::File { path: dir.join(SEEDS), source })
}
