//! What was given, as it was given. The names of these fields are the option's names.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use quire_protocol::limits;
use rustls_pki_types::ServerName;
use serde::{Deserialize, Serialize};

use super::load::ConfigError;
use super::{
    ClusterConfig, FirstStart, HostPort, MemoryConfig, NetworkConfig, PEER_LISTEN_DEFAULT, ScrubConfig,
    TlsConfig,
};

/// All options.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Config {
    pub(super) broker: Broker,
    pub(super) network: Network,
    pub(super) tls: Tls,
    pub(super) admin: Admin,
    pub(super) memory: Memory,
    pub(super) cluster: Cluster,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Broker {
    pub(super) data_dir: PathBuf,
    pub(super) shards: usize,
    pub(super) rack: String,
    pub(super) drain_ms: u64,
    pub(super) deletion_grace_ms: u64,
    pub(super) scrub_bytes_per_second: u64,
    pub(super) scrub_interval_ms: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Network {
    pub(super) listen: String,
    pub(super) advertise: String,
    pub(super) peer_listen: String,
    pub(super) peer_advertise: String,
    pub(super) connections_max: usize,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Tls {
    pub(super) names: Vec<String>,
    pub(super) anonymous: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Admin {
    pub(super) enabled: bool,
    pub(super) listen: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Memory {
    pub(super) produce_bytes: usize,
    pub(super) cold_read_bytes: usize,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Cluster {
    pub(super) session_ms: u64,
    pub(super) heartbeat_ms: u64,
    pub(super) replica_lag_ms: u64,
    pub(super) leader_return_ms: u64,
}

impl Default for Cluster {
    fn default() -> Cluster {
        Cluster {
            session_ms: limits::BROKER_SESSION_DEFAULT.as_millis() as u64,
            heartbeat_ms: limits::BROKER_HEARTBEAT_INTERVAL.as_millis() as u64,
            replica_lag_ms: limits::REPLICA_LAG_DEFAULT.as_millis() as u64,
            leader_return_ms: limits::LEADER_RETURN_DEFAULT.as_millis() as u64,
        }
    }
}

impl Default for Broker {
    fn default() -> Broker {
        Broker {
            data_dir: "/var/lib/quire".into(),
            shards: 0,
            rack: String::new(),
            drain_ms: 10_000,
            deletion_grace_ms: 60_000,
            scrub_bytes_per_second: 4 * 1024 * 1024,
            scrub_interval_ms: 3_600_000,
        }
    }
}

impl Default for Network {
    fn default() -> Network {
        Network {
            listen: "0.0.0.0:9440".into(),
            advertise: String::new(),
            peer_listen: PEER_LISTEN_DEFAULT.into(),
            peer_advertise: String::new(),
            connections_max: limits::CONNECTIONS_MAX_DEFAULT,
        }
    }
}

impl Default for Admin {
    fn default() -> Admin {
        Admin { enabled: true, listen: "127.0.0.1:9644".into() }
    }
}

impl Default for Memory {
    fn default() -> Memory {
        let MemoryConfig { produce_bytes, cold_read_bytes } = MemoryConfig::default();
        Memory { produce_bytes, cold_read_bytes }
    }
}

const SHARDS_MAX: usize = 256;
const CONNECTIONS_MAX: usize = 1_000_000;
const MEMORY_BYTES_MAX: usize = 1 << 40;
const SESSION_MS_MIN: u64 = 300;
const SESSION_MS_MAX: u64 = 600_000;
const HEARTBEAT_MS_MIN: u64 = 10;
const LEADER_RETURN_MS_MAX: u64 = 24 * 3_600_000;
const DRAIN_MS_MAX: u64 = 3_600_000;
const DELETION_GRACE_MS_MAX: u64 = 30 * 24 * 3_600_000;
const SCRUB_BYTES_PER_SECOND_MAX: u64 = 1 << 40;
const SCRUB_INTERVAL_MS_MIN: u64 = 100;
const SCRUB_INTERVAL_MS_MAX: u64 = 365 * 24 * 3_600_000;
const REPLICA_LAG_MS_MIN: u64 = 100;
const REPLICA_LAG_MS_MAX: u64 = 3_600_000;

impl Config {
    /// Checks every value against its range.
    pub(super) fn check(self) -> Result<super::Config, ConfigError> {
        let Config { broker, network, tls, admin, memory, cluster } = self;
        if broker.data_dir.as_os_str().is_empty() {
            return Err(refused("broker.data_dir", "", "a directory"));
        }
        let session_ms = in_range("cluster.session_ms", cluster.session_ms, SESSION_MS_MIN, SESSION_MS_MAX)?;
        // Two may be lost before a broker counts as gone.
        let heartbeat_ms =
            in_range("cluster.heartbeat_ms", cluster.heartbeat_ms, HEARTBEAT_MS_MIN, session_ms / 3)?;
        let leader_return_ms =
            in_range("cluster.leader_return_ms", cluster.leader_return_ms, 0, LEADER_RETURN_MS_MAX)?;
        let admin_listen = address("admin.listen", &admin.listen)?;
        Ok(super::Config {
            data_dir: broker.data_dir,
            shards: match in_range("broker.shards", broker.shards, 0, SHARDS_MAX)? {
                0 => std::thread::available_parallelism().map_or(1, |cores| cores.get().min(SHARDS_MAX)),
                shards => shards,
            },
            rack: broker.rack,
            drain: Duration::from_millis(in_range("broker.drain_ms", broker.drain_ms, 0, DRAIN_MS_MAX)?),
            deletion_grace: Duration::from_millis(in_range(
                "broker.deletion_grace_ms",
                broker.deletion_grace_ms,
                0,
                DELETION_GRACE_MS_MAX,
            )?),
            scrub: ScrubConfig {
                bytes_per_second: in_range(
                    "broker.scrub_bytes_per_second",
                    broker.scrub_bytes_per_second,
                    0,
                    SCRUB_BYTES_PER_SECOND_MAX,
                )?,
                interval: Duration::from_millis(in_range(
                    "broker.scrub_interval_ms",
                    broker.scrub_interval_ms,
                    SCRUB_INTERVAL_MS_MIN,
                    SCRUB_INTERVAL_MS_MAX,
                )?),
            },
            network: NetworkConfig {
                sockets: Default::default(),
                listen: address("network.listen", &network.listen)?,
                advertise: advertised("network.advertise", &network.advertise)?,
                connections_max: in_range(
                    "network.connections_max",
                    network.connections_max,
                    1,
                    CONNECTIONS_MAX,
                )?,
            },
            tls: TlsConfig { names: names(tls.names)?, anonymous: tls.anonymous },
            admin_listen: admin.enabled.then_some(admin_listen),
            memory: MemoryConfig {
                produce_bytes: memory_bytes("memory.produce_bytes", memory.produce_bytes)?,
                cold_read_bytes: memory_bytes("memory.cold_read_bytes", memory.cold_read_bytes)?,
            },
            cluster: ClusterConfig {
                is_expected: network.peer_listen != PEER_LISTEN_DEFAULT || !network.peer_advertise.is_empty(),
                peer_listen: address("network.peer_listen", &network.peer_listen)?,
                peer_advertise: advertised("network.peer_advertise", &network.peer_advertise)?,
                session: Duration::from_millis(session_ms),
                heartbeat: Duration::from_millis(heartbeat_ms),
                replica_lag: Duration::from_millis(in_range(
                    "cluster.replica_lag_ms",
                    cluster.replica_lag_ms,
                    REPLICA_LAG_MS_MIN,
                    REPLICA_LAG_MS_MAX,
                )?),
                leader_return: Some(Duration::from_millis(leader_return_ms)).filter(|rest| !rest.is_zero()),
                passphrase: None,
            },
            first_start: FirstStart::Alone,
        })
    }
}

fn address(option: &'static str, value: &str) -> Result<SocketAddr, ConfigError> {
    value.parse().map_err(|_| refused(option, value, "ADDRESS:PORT, an IPv6 address in brackets"))
}

fn advertised(option: &'static str, value: &str) -> Result<Option<HostPort>, ConfigError> {
    if value.is_empty() {
        return Ok(None);
    }
    let refuse = |expected: String| refused(option, value, expected);
    let parsed: HostPort =
        value.parse().map_err(|error: super::InvalidHostPort| refuse(error.to_string()))?;
    match ServerName::try_from(parsed.host.as_str()) {
        Ok(_) => Ok(Some(parsed)),
        Err(_) => Err(refuse("a host name or an address before the port".to_owned())),
    }
}

fn names(names: Vec<String>) -> Result<Vec<String>, ConfigError> {
    match names.iter().find(|name| !is_certifiable(name)) {
        Some(name) => {
            Err(refused("tls.names", name, "host names, with or without \"*.\" before them, and addresses"))
        }
        None => Ok(names),
    }
}

/// Whether a certificate can be made for a name, and a client connect to it.
fn is_certifiable(name: &str) -> bool {
    ServerName::try_from(name.strip_prefix("*.").unwrap_or(name)).is_ok()
}

/// Room for the largest batch, or it could never be received or read.
fn memory_bytes(option: &'static str, value: usize) -> Result<usize, ConfigError> {
    in_range(option, value, 2 * limits::BATCH_BYTES_MAX, MEMORY_BYTES_MAX)
}

fn in_range<T: PartialOrd + std::fmt::Display>(
    option: &'static str,
    value: T,
    min: T,
    max: T,
) -> Result<T, ConfigError> {
    if value < min || value > max {
        return Err(refused(option, &value.to_string(), format!("{min} to {max}")));
    }
    Ok(value)
}

fn refused(option: &'static str, value: &str, expected: impl Into<String>) -> ConfigError {
    ConfigError::Value { option, value: value.chars().take(64).collect(), expected: expected.into() }
}
