//! Who this broker is: a number in a cluster with a name of its own, drawn at the first start and kept in one small
//! file; and the lock that keeps a second broker out of the same data directory.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use quire_protocol::BrokerId;
use quire_storage::disk::Disk;
use quire_storage::small_file::{self, Format, LoadError};
use rustls::crypto::aws_lc_rs;

const LOCK: &str = "lock";
const IDENTITY: &str = "broker";
const CLUSTER_ID_LEN: usize = 16;
const DIRECTORY_ID_LEN: usize = 16;
const BODY_LEN: usize = 4 + CLUSTER_ID_LEN + DIRECTORY_ID_LEN + 1;
const FORMAT: Format = Format { magic: *b"QBRK", version: 2, body_len_max: BODY_LEN };
/// Before there were clusters: without the directory's id and what the broker belongs to.
const FORMAT_1: Format = Format { version: 1, body_len_max: 4 + CLUSTER_ID_LEN, ..FORMAT };

/// Who a broker is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BrokerIdentity {
    pub(crate) broker: BrokerId,
    /// 32 hexadecimal digits.
    pub(crate) cluster_id: String,
    /// Drawn with the directory: a broker that comes back in another one has lost what it held.
    pub(crate) directory: DirectoryId,
    pub(crate) membership: Membership,
}

/// Tells data directories apart.
pub(crate) type DirectoryId = [u8; DIRECTORY_ID_LEN];

/// What a broker belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Membership {
    /// It is its own controller, and has no peers.
    Alone = 0,
    /// It is one of a cluster's brokers.
    Cluster = 1,
}

/// How long a broker that starts waits for another to let go of the data directory: one that was killed takes a moment to
/// be gone, one that runs does not go.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(3);
/// How often it tries meanwhile.
const LOCK_TRY_INTERVAL: Duration = Duration::from_millis(20);

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

/// A data directory that is this process's own, and may be nobody's yet.
pub(crate) struct LockedDirectory {
    /// `None` at the first start.
    pub(crate) identity: Option<BrokerIdentity>,
    lock: Box<dyn Send + Sync>,
}

impl fmt::Debug for DataDirectory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DataDirectory").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl LockedDirectory {
    /// Makes the directory if there is none, locks it, and reads the broker's identity. Blocking.
    pub(crate) fn open(disk: &dyn Disk, dir: &Path) -> Result<LockedDirectory, DataDirectoryError> {
        let failed = |source| DataDirectoryError::Io { path: dir.to_owned(), source };
        create_durably(disk, dir).map_err(failed)?;
        let path = dir.join(LOCK);
        let waits = || {
            tracing::warn!(
                dir = %dir.display(),
                "the data directory is in use; waiting up to {LOCK_WAIT_MAX:?} for the broker that has it to be gone"
            );
        };
        let lock =
            lock_within(LOCK_WAIT_MAX, || disk.lock(&path), waits).map_err(|error| match error.kind() {
                io::ErrorKind::WouldBlock => DataDirectoryError::InUse { path: dir.to_owned() },
                _ => failed(error),
            })?;
        let identity = match small_file::load(disk, dir, IDENTITY, FORMAT) {
            Ok(body) => BrokerIdentity::decode(&body).map(Some).ok_or("its fields are impossible".to_owned()),
            Err(LoadError::Missing) => Ok(None),
            Err(LoadError::Version { found: 1, .. }) => {
                BrokerIdentity::upgrade(disk, dir).map_err(failed)?.map(Some)
            }
            Err(error) => Err(error.to_string()),
        };
        let identity =
            identity.map_err(|what| DataDirectoryError::Identity { path: dir.join(IDENTITY), what })?;
        Ok(LockedDirectory { identity, lock })
    }

    /// The directory of the broker that it is, or becomes now. Everything that this identity rests on must be durable in
    /// it already. Blocking.
    pub(crate) fn claim(
        self,
        disk: &dyn Disk,
        dir: &Path,
        identity: BrokerIdentity,
    ) -> Result<DataDirectory, DataDirectoryError> {
        if self.identity.as_ref() != Some(&identity) {
            let stored = identity.store(disk, dir);
            stored.map_err(|source| DataDirectoryError::Io { path: dir.to_owned(), source })?;
        }
        Ok(DataDirectory { identity, _lock: self.lock })
    }
}

/// Tries for so long to get a lock that another has: a process that was killed holds its locks until all of it is gone,
/// which takes a moment after whoever killed it was told that it is dead. `waits` is called once, before waiting. Blocking.
fn lock_within<L>(
    time: Duration,
    mut lock: impl FnMut() -> io::Result<L>,
    waits: impl FnOnce(),
) -> io::Result<L> {
    let end = Instant::now() + time;
    let mut waits = Some(waits);
    loop {
        match lock() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < end => {}
            locked => return locked,
        }
        if let Some(waits) = waits.take() {
            waits();
        }
        std::thread::sleep(LOCK_TRY_INTERVAL);
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
    /// The number of a broker that founds its cluster.
    pub(crate) const FOUNDER: BrokerId = BrokerId(1);

    /// The founder of a cluster of its own.
    pub(crate) fn draw(membership: Membership) -> BrokerIdentity {
        let cluster_id = hex(&random::<CLUSTER_ID_LEN>());
        BrokerIdentity { broker: BrokerIdentity::FOUNDER, cluster_id, directory: random(), membership }
    }

    fn store(&self, disk: &dyn Disk, dir: &Path) -> io::Result<()> {
        small_file::replace(disk, dir, IDENTITY, FORMAT, &self.encode()?)
    }

    fn encode(&self) -> io::Result<Vec<u8>> {
        let cluster: [u8; CLUSTER_ID_LEN] = unhex(&self.cluster_id)
            .ok_or_else(|| io::Error::other(format!("\"{}\" is no cluster's id", self.cluster_id)))?;
        let mut body = self.broker.0.to_le_bytes().to_vec();
        body.extend_from_slice(&cluster);
        body.extend_from_slice(&self.directory);
        body.push(self.membership as u8);
        Ok(body)
    }

    fn decode(body: &[u8]) -> Option<BrokerIdentity> {
        let (broker, rest) = body.split_first_chunk::<4>()?;
        let (cluster, rest) = rest.split_first_chunk::<CLUSTER_ID_LEN>()?;
        let (directory, rest) = rest.split_first_chunk::<DIRECTORY_ID_LEN>()?;
        let membership = match rest {
            [0] => Membership::Alone,
            [1] => Membership::Cluster,
            _ => return None,
        };
        let broker = BrokerId(u32::from_le_bytes(*broker));
        Some(BrokerIdentity { broker, cluster_id: hex(cluster), directory: *directory, membership })
    }

    /// Reads the first version's file, and writes this one's in its place; says what is wrong with it, if something is.
    fn upgrade(disk: &dyn Disk, dir: &Path) -> io::Result<Result<BrokerIdentity, String>> {
        let body = match small_file::load(disk, dir, IDENTITY, FORMAT_1) {
            Ok(body) => body,
            Err(error) => return Ok(Err(error.to_string())),
        };
        let mut widened = body;
        widened.extend_from_slice(&random::<DIRECTORY_ID_LEN>());
        widened.push(Membership::Alone as u8);
        let Some(identity) = BrokerIdentity::decode(&widened) else {
            return Ok(Err("its fields are impossible".to_owned()));
        };
        identity.store(disk, dir)?;
        Ok(Ok(identity))
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

/// The bytes that hexadecimal digits stand for, if they stand for so many.
pub(crate) fn unhex<const N: usize>(digits: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let digits = digits.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |at: usize| char::from(pair[at]).to_digit(16);
        *byte = (digit(0)? * 16 + digit(1)?) as u8;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use quire_storage::disk::{CrashOptions, Event, Operation, OsDisk, SimDisk, Survival};

    use super::*;

    /// Opens the directory of a broker alone.
    fn open(disk: &dyn Disk, dir: &Path) -> Result<DataDirectory, DataDirectoryError> {
        let locked = LockedDirectory::open(disk, dir)?;
        let identity = locked.identity.clone().unwrap_or_else(|| BrokerIdentity::draw(Membership::Alone));
        locked.claim(disk, dir, identity)
    }

    #[test]
    fn an_identity_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let identity = BrokerIdentity {
            broker: BrokerId(7),
            membership: Membership::Cluster,
            ..BrokerIdentity::draw(Membership::Alone)
        };
        let locked = LockedDirectory::open(&OsDisk, dir.path()).expect("new");
        drop(locked.claim(&OsDisk, dir.path(), identity.clone()).expect("stored"));
        let again = LockedDirectory::open(&OsDisk, dir.path()).expect("there");
        assert_eq!(again.identity, Some(identity));
        assert_eq!(unhex::<2>("0aFf"), Some([10, 255]));
        assert!(unhex::<2>("0aF").is_none() && unhex::<2>("0aFg").is_none());
    }

    /// A broker that was killed and started again at once found its directory in use, and gave up.
    #[test]
    fn a_lock_whose_holder_is_going_is_waited_for() {
        let (mut attempts, mut said) = (0, 0);
        let lock = || {
            attempts += 1;
            if attempts < 4 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
        };
        lock_within(Duration::from_secs(60), lock, || said += 1).expect("the fourth attempt succeeds");
        assert_eq!((attempts, said), (4, 1));
    }

    #[test]
    fn a_directory_whose_broker_is_going_is_waited_for() {
        let (disk, dir) = (SimDisk::new(1), Path::new("/srv/quire"));
        let going = open(&disk, dir).expect("new");
        disk.take_trace();
        let starting = std::thread::spawn({
            let disk = disk.clone();
            move || open(&disk, dir).map(|directory| directory.identity)
        });
        let is_lock =
            |event: &Event| matches!(&event.operation, Operation::Lock(path) if path.ends_with(LOCK));
        let began = Instant::now();
        while !disk.take_trace().iter().any(is_lock) {
            assert!(began.elapsed() < Duration::from_secs(20), "it tries at once");
            std::thread::yield_now();
        }
        let identity = going.identity.clone();
        drop(going);
        assert_eq!(starting.join().expect("no panic").expect("it waited"), identity);
    }

    #[test]
    fn a_lock_is_not_waited_for_where_that_can_not_help() {
        for (time, kind) in
            [(Duration::ZERO, io::ErrorKind::WouldBlock), (LOCK_WAIT_MAX, io::ErrorKind::PermissionDenied)]
        {
            let mut attempts = 0;
            let lock = || -> io::Result<()> {
                attempts += 1;
                Err(kind.into())
            };
            let failed =
                lock_within(time, lock, || unreachable!("it does not wait")).expect_err("never free");
            assert_eq!((failed.kind(), attempts), (kind, 1));
        }
    }

    #[test]
    fn an_identity_from_before_clusters_is_kept_and_gets_a_directory() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let mut body = 1u32.to_le_bytes().to_vec();
        body.extend_from_slice(&[0xab; CLUSTER_ID_LEN]);
        small_file::replace(&OsDisk, dir.path(), IDENTITY, FORMAT_1, &body).expect("written");
        let first = open(&OsDisk, dir.path()).expect("it is read").identity;
        assert_eq!((first.broker, first.membership), (BrokerIdentity::FOUNDER, Membership::Alone));
        assert_eq!(first.cluster_id, "ab".repeat(CLUSTER_ID_LEN));
        assert_eq!(open(&OsDisk, dir.path()).expect("again").identity, first, "the directory's id stays");
    }

    #[test]
    fn an_identity_is_drawn_once_and_a_second_broker_kept_out() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let disk = OsDisk;
        let first = open(&disk, dir.path()).expect("new");
        assert!(matches!(open(&disk, dir.path()), Err(DataDirectoryError::InUse { .. })));
        let identity = first.identity.clone();
        drop(first);
        let second = open(&disk, dir.path()).expect("free again");
        assert_eq!(second.identity, identity);
    }

    #[test]
    fn a_new_directory_survives_a_power_loss_with_all_its_parents() {
        let disk = SimDisk::new(1);
        let dir = Path::new("/srv/logs/quire");
        let drawn = open(&disk, dir).expect("new").identity;
        disk.crash(&CrashOptions { data: Survival::Nothing, names: Survival::Nothing });
        assert_eq!(open(&disk, dir).expect("it is there").identity, drawn);
    }

    #[test]
    fn a_damaged_identity_is_an_error_and_not_a_new_broker() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let disk = OsDisk;
        drop(open(&disk, dir.path()).expect("new"));
        std::fs::write(dir.path().join(IDENTITY), b"not what was written").expect("overwritten");
        assert!(matches!(open(&disk, dir.path()), Err(DataDirectoryError::Identity { .. })));
    }
}
