//! Who this broker is: a number in a cluster with a name of its own, drawn at the first start and kept in one small
//! file; and the lock that keeps a second broker out of the same data directory.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use quire_protocol::BrokerId;
use quire_storage::disk::Disk;
use quire_storage::small_file::{self, Format, LoadError};
use rustls::crypto::aws_lc_rs;

const LOCK: &str = "lock";
const IDENTITY: &str = "broker";
const CLUSTER_ID_LEN: usize = 16;
const BODY_LEN: usize = 4 + CLUSTER_ID_LEN;
const FORMAT: Format = Format { magic: *b"QBRK", version: 1, body_len_max: BODY_LEN };

/// The number of a broker that founds its cluster.
const FOUNDER: BrokerId = BrokerId(1);

/// Who a broker is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BrokerIdentity {
    pub(crate) broker: BrokerId,
    /// 32 hexadecimal digits.
    pub(crate) cluster_id: String,
}

/// The data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirectoryError {
    /// Another broker has it.
    #[error("the data directory {} is in use by another broker; stop it, or choose another directory", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// It could not be made or locked.
    #[error("cannot use the data directory {}: {source}", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file that says who the broker is cannot be used.
    #[error("{} cannot be used ({what}); restore it from a backup: without it the broker is not the one its data belongs to", path.display())]
    Identity {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
}

/// A data directory that is this process's own until it is dropped.
pub(crate) struct DataDirectory {
    pub(crate) identity: BrokerIdentity,
    _lock: Box<dyn Send + Sync>,
}

impl fmt::Debug for DataDirectory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataDirectory").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl DataDirectory {
    /// Makes the directory if there is none, locks it, and reads or draws the broker's identity. Blocking.
    pub(crate) fn open(disk: &dyn Disk, dir: &Path) -> Result<DataDirectory, DataDirectoryError> {
        let failed = |source| DataDirectoryError::Io { path: dir.to_owned(), source };
        create_durably(disk, dir).map_err(failed)?;
        let lock = disk.lock(&dir.join(LOCK)).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => DataDirectoryError::InUse { path: dir.to_owned() },
            _ => failed(error),
        })?;
        let identity = match small_file::load(disk, dir, IDENTITY, FORMAT) {
            Ok(body) => BrokerIdentity::decode(&body).ok_or_else(|| "its fields are impossible".to_owned()),
            Err(LoadError::Missing) => BrokerIdentity::draw(disk, dir).map(Ok).map_err(failed)?,
            Err(error) => Err(error.to_string()),
        };
        let identity =
            identity.map_err(|what| DataDirectoryError::Identity { path: dir.join(IDENTITY), what })?;
        Ok(DataDirectory { identity, _lock: lock })
    }
}

/// Makes the directory with its missing parents, all of them durable: what is synced in a directory that is lost is lost.
fn create_durably(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    let is_missing = |dir: &Path| match disk.list(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
        Ok(_) => Ok(false),
    };
    let mut changed = Vec::new();
    let mut at = dir;
    while is_missing(at)? {
        let Some(parent) = at.parent() else { break };
        // A relative path's first component lies in the working directory.
        at = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        changed.push(at);
    }
    disk.create_dir_all(dir)?;
    changed.into_iter().try_for_each(|dir| disk.sync_dir(dir))
}

impl BrokerIdentity {
    fn draw(disk: &dyn Disk, dir: &Path) -> io::Result<BrokerIdentity> {
        let cluster = random::<CLUSTER_ID_LEN>();
        let mut body = FOUNDER.0.to_le_bytes().to_vec();
        body.extend_from_slice(&cluster);
        small_file::replace(disk, dir, IDENTITY, FORMAT, &body)?;
        Ok(BrokerIdentity { broker: FOUNDER, cluster_id: hex(&cluster) })
    }

    fn decode(body: &[u8]) -> Option<BrokerIdentity> {
        let (broker, cluster) = body.split_first_chunk::<4>()?;
        let cluster: &[u8; CLUSTER_ID_LEN] = cluster.try_into().ok()?;
        Some(BrokerIdentity { broker: BrokerId(u32::from_le_bytes(*broker)), cluster_id: hex(cluster) })
    }
}

/// `N` random bytes from a generator fit for keys.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    let filled = aws_lc_rs::default_provider().secure_random.fill(&mut bytes);
    filled.expect("the operating system has randomness");
    bytes
}

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use quire_storage::disk::{CrashOptions, OsDisk, SimDisk, Survival};

    use super::*;

    #[test]
    fn an_identity_is_drawn_once_and_a_second_broker_kept_out() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let disk = OsDisk;
        let first = DataDirectory::open(&disk, dir.path()).expect("new");
        assert!(matches!(DataDirectory::open(&disk, dir.path()), Err(DataDirectoryError::InUse { .. })));
        let identity = first.identity.clone();
        drop(first);
        let second = DataDirectory::open(&disk, dir.path()).expect("free again");
        assert_eq!(second.identity, identity);
    }

    #[test]
    fn a_new_directory_survives_a_power_loss_with_all_its_parents() {
        let disk = SimDisk::new(1);
        let dir = Path::new("/srv/logs/quire");
        let drawn = DataDirectory::open(&disk, dir).expect("new").identity;
        disk.crash(&CrashOptions { data: Survival::Nothing, names: Survival::Nothing });
        assert_eq!(DataDirectory::open(&disk, dir).expect("it is there").identity, drawn);
    }

    #[test]
    fn a_damaged_identity_is_an_error_and_not_a_new_broker() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let disk = OsDisk;
        drop(DataDirectory::open(&disk, dir.path()).expect("new"));
        std::fs::write(dir.path().join(IDENTITY), b"not what was written").expect("overwritten");
        assert!(matches!(DataDirectory::open(&disk, dir.path()), Err(DataDirectoryError::Identity { .. })));
    }
}
