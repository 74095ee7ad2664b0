//! What an operator may set: given (`raw.rs`), then checked ([`Config`]). Nothing later reads raw input.

mod load;
mod raw;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use quire_protocol::limits;

use crate::net::join::token::JoinToken;
use crate::net::sockets::Sockets;
pub use load::ConfigError;

/// A broker's checked configuration. `config/quire.toml` has every option with its default and its cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// Threads that own partitions.
    pub shards: usize,
    /// Where this broker stands, for placing replicas apart; empty if it does not matter.
    pub rack: String,
    /// How long a shutdown waits for clients to take what is on its way to them.
    pub drain: Duration,
    /// How long a deleted topic's files stay.
    pub deletion_grace: Duration,
    /// How the logs are read again to find damage.
    pub scrub: ScrubConfig,
    /// Where clients connect.
    pub network: NetworkConfig,
    /// Who may connect.
    pub tls: TlsConfig,
    /// Where metrics and health are served; `None` if they are not.
    pub admin_listen: Option<SocketAddr>,
    /// How much memory the broker's buffers may take.
    pub memory: MemoryConfig,
    /// How brokers of a cluster are with each other; nothing to a broker alone.
    pub cluster: ClusterConfig,
    /// What a broker becomes whose data directory is new.
    pub first_start: FirstStart,
}

/// How brokers of a cluster are with each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterConfig {
    /// UDP address where other brokers connect; port 0 takes a free one.
    pub peer_listen: SocketAddr,
    /// Where other brokers are told to connect; `None` tells them the address listened on.
    pub peer_advertise: Option<HostPort>,
    /// Whether an operator said where this broker is for others: it is to be one of a cluster's, and does not begin as a
    /// broker by itself.
    pub is_expected: bool,
    /// A broker that is not heard of for so long is fenced.
    pub session: Duration,
    /// A broker says so often that it is there.
    pub heartbeat: Duration,
    /// A follower that is longer behind than this leaves the in-sync replicas.
    pub replica_lag: Duration,
    /// A preferred leader that came back leads again after so long, where it is in sync; `None` leaves that to operators.
    pub leader_return: Option<Duration>,
    /// What the authority's key is sealed under in the metadata, in place of a key that each controller holds.
    pub passphrase: Option<Passphrase>,
}

/// Where brokers of a cluster listen for each other unless told otherwise.
pub(super) const PEER_LISTEN_DEFAULT: &str = "0.0.0.0:9441";

/// How the logs are read again to find damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScrubConfig {
    /// Bytes a second, over all logs; 0 reads none.
    pub bytes_per_second: u64,
    /// A round over all logs begins at most so often.
    pub interval: Duration,
}

/// A secret that an operator knows.
#[derive(Clone, PartialEq, Eq)]
pub struct Passphrase(pub String);

impl fmt::Debug for Passphrase {
    /// Without it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Passphrase")
    }
}

/// What a broker becomes whose data directory is new. Later starts know from the directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum FirstStart {
    /// A broker of its own.
    #[default]
    Alone,
    /// The first broker of a cluster.
    Found,
    /// One of a cluster's brokers.
    Join {
        /// Where clients connect to a broker of the cluster.
        at: HostPort,
        /// What the cluster gave to join with.
        token: JoinToken,
    },
}

/// Where clients connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkConfig {
    /// Where UDP sockets come from; no file can say it.
    #[doc(hidden)]
    pub sockets: Sockets,
    /// UDP address; port 0 takes a free one.
    pub listen: SocketAddr,
    /// What clients are told to connect to; `None` tells them the address listened on.
    pub advertise: Option<HostPort>,
    /// Connections held at once.
    pub connections_max: usize,
}

/// Who may connect.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsConfig {
    /// Host names and addresses in the broker's certificate, beside `localhost`, loopback and the advertised host.
    pub names: Vec<String>,
    /// Whether clients without a certificate are let in.
    pub anonymous: bool,
}

/// How much memory the broker's buffers may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryConfig {
    /// Batches received and not yet acknowledged (bytes).
    pub produce_bytes: usize,
    /// What reads brought from the disk, until the client took it (bytes).
    pub cold_read_bytes: usize,
}

/// A host name or address, and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    /// Without brackets, if it is an IPv6 address.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl Config {
    /// The defaults, with everything kept in `data_dir`.
    pub fn new(data_dir: impl Into<PathBuf>) -> Config {
        let raw = raw::Config {
            broker: raw::Broker { data_dir: data_dir.into(), ..Default::default() },
            ..Default::default()
        };
        raw.check().expect("the defaults are in range")
    }

    /// Reads a file, then environment variables `QUIRE_<SECTION>_<KEY>`, which override it.
    ///
    /// # Errors
    /// If the file cannot be read, or anything in it or in the environment is not an option or out of its range.
    pub fn load(file: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(file)
            .map_err(|source| ConfigError::Read { file: file.to_owned(), source })?;
        let config =
            Config::parse(&text, &file.display().to_string(), load::candidates(std::env::vars_os())?)?;
        Ok(config.with_passphrase())
    }

    /// Reads the environment variables alone, over the defaults.
    ///
    /// # Errors
    /// If a variable of one of our sections is not an option or out of its range.
    pub fn from_env() -> Result<Config, ConfigError> {
        let config = Config::parse("", "the environment", load::candidates(std::env::vars_os())?)?;
        Ok(config.with_passphrase())
    }

    /// A secret belongs into no file: it comes from `QUIRE_CA_PASSPHRASE` alone.
    fn with_passphrase(mut self) -> Config {
        let given = std::env::var("QUIRE_CA_PASSPHRASE").ok().filter(|text| !text.is_empty());
        self.cluster.passphrase = given.map(Passphrase);
        self
    }

    /// Reads `text`, which errors say came from `origin`, and lets variables override it.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(
        text: &str,
        origin: &str,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Config, ConfigError> {
        load::raw(text, origin, variables)?.check()
    }

    /// Whether other machines may connect, but the broker's certificate names nothing that they could connect to.
    pub fn is_nameless(&self) -> bool {
        let NetworkConfig { listen, advertise, .. } = &self.network;
        listen.ip().is_unspecified() && advertise.is_none() && self.tls.names.is_empty()
    }
}

impl Default for MemoryConfig {
    fn default() -> MemoryConfig {
        MemoryConfig {
            produce_bytes: limits::PRODUCE_MEMORY_BYTES_DEFAULT,
            cold_read_bytes: limits::COLD_READ_MEMORY_BYTES_DEFAULT,
        }
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// Not of the form `host:port`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected HOST:PORT, an IPv6 address in brackets")]
pub struct InvalidHostPort;

impl FromStr for HostPort {
    type Err = InvalidHostPort;

    fn from_str(text: &str) -> Result<HostPort, InvalidHostPort> {
        let (host, port) = text.rsplit_once(':').ok_or(InvalidHostPort)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or(InvalidHostPort)?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host = bare.unwrap_or(host);
        if host.is_empty() || (bare.is_none() && host.contains(':')) || host.contains(char::is_whitespace) {
            return Err(InvalidHostPort);
        }
        Ok(HostPort { host: host.to_owned(), port })
    }
}
