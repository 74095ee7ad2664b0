//! Brokers that found a cluster, join it, leave it and come back, in one process.

mod support;

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use quinn::{AsyncUdpSocket, Runtime, TokioRuntime};
use quire_broker::config::{FirstStart, HostPort};
use quire_broker::{Broker, JoinToken, Sockets, StartError};
use quire_protocol::rpc::control::{DescribeClusterRequest, request, response};
use quire_storage::disk::{Disk, DiskFile, OpenMode, OsDisk};

use support::{PATIENCE, RawClient};

const TOKEN_AGE: Duration = Duration::from_secs(3600);

async fn start(dir: &Path, first_start: FirstStart) -> Result<Broker, StartError> {
    Broker::builder().data_dir(dir).shards(1).first_start(first_start).start().await
}

fn join(at: &Broker, token: &JoinToken) -> FirstStart {
    let at = HostPort { host: at.address().ip().to_string(), port: at.address().port() };
    FirstStart::Join { at, token: token.clone() }
}

/// The brokers' numbers, as a client of one of them sees them.
async fn brokers(broker: &Broker) -> Result<Vec<u32>> {
    let client = RawClient::connect(broker).await?;
    match client.rpc(request::Body::DescribeCluster(DescribeClusterRequest {})).await? {
        response::Body::DescribeCluster(cluster) => Ok(cluster.brokers.iter().map(|b| b.id).collect()),
        other => bail!("answered {other:?}"),
    }
}

/// Waits until a client of the broker sees these.
async fn sees(broker: &Broker, expected: &[u32]) -> Result<()> {
    let seen = async {
        while brokers(broker).await? != expected {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    };
    tokio::time::timeout(PATIENCE, seen).await.context("not seen in time")?
}

struct Three {
    dirs: Vec<tempfile::TempDir>,
    brokers: Vec<Broker>,
}

impl Three {
    async fn start() -> Result<Three> {
        let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir()).collect::<Result<_, _>>()?;
        let founder = start(dirs[0].path(), FirstStart::Found).await?;
        let mut brokers = vec![founder];
        for dir in &dirs[1..] {
            let token = brokers[0].join_token(TOKEN_AGE).await?;
            // Whoever is in the cluster can let others in.
            let at = brokers.last().context("there is one")?;
            let joined = start(dir.path(), join(at, &token)).await?;
            brokers.push(joined);
        }
        Ok(Three { dirs, brokers })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_brokers_become_one_cluster_and_each_knows_it() -> Result<()> {
    let Three { dirs, brokers } = Three::start().await?;
    ensure!(brokers.iter().map(Broker::id).map(|id| id.0).eq([1, 2, 3]));
    ensure!(brokers.iter().all(|broker| broker.cluster_id() == brokers[0].cluster_id()));
    for broker in &brokers {
        sees(broker, &[1, 2, 3]).await?;
    }
    // The authority's key is in the metadata by now, sealed, and in no file.
    for dir in &dirs {
        ensure!(!dir.path().join("tls/authority.key").exists());
    }
    for broker in brokers.into_iter().rev() {
        ensure!(broker.shutdown().await.clean, "a clean shutdown");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_comes_back_by_itself_after_all_of_it_stopped() -> Result<()> {
    let Three { dirs, brokers } = Three::start().await?;
    let cluster = brokers[0].cluster_id().to_owned();
    let mut places = Vec::new();
    for broker in brokers {
        let (address, peer_address) =
            (broker.address(), broker.peer_address().context("it is in a cluster")?);
        places.push((address, peer_address));
        broker.shutdown().await;
    }
    let start = |at: usize| {
        let (listen, peer_listen) = places[at];
        let builder = Broker::builder().data_dir(dirs[at].path()).shards(1);
        builder.listen(listen).peer_listen(peer_listen).start()
    };
    // None of them is ready before most of them are there.
    let (first, second, third) = tokio::try_join!(start(0), start(1), start(2))?;
    for broker in [&first, &second, &third] {
        ensure!(broker.cluster_id() == cluster);
        sees(broker, &[1, 2, 3]).await?;
    }
    Ok(())
}

/// A socket that was given out, and where it is bound.
type Bound = (SocketAddr, Weak<dyn AsyncUdpSocket>);

/// The operating system's sockets and files. Once the data directory's lock is let go, it is known who still had a socket.
#[derive(Debug, Clone, Default)]
struct Watched {
    bound: Arc<Mutex<Vec<Bound>>>,
    taken_at_unlock: Arc<Mutex<Option<Vec<SocketAddr>>>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watched {
    fn bind(&self, address: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let socket = UdpSocket::bind(address)?;
        socket.set_nonblocking(true)?;
        let address = socket.local_addr()?;
        let socket = TokioRuntime.wrap_udp_socket(socket)?;
        locked(&self.bound).push((address, Arc::downgrade(&socket)));
        Ok(socket)
    }
}

struct WatchedLock {
    lock: Option<Box<dyn Send + Sync>>,
    watched: Watched,
}

impl Drop for WatchedLock {
    fn drop(&mut self) {
        let bound = locked(&self.watched.bound);
        let taken = bound.iter().filter(|(_, socket)| socket.strong_count() > 0).map(|(address, _)| *address);
        *locked(&self.watched.taken_at_unlock) = Some(taken.collect());
        self.lock.take();
    }
}

impl Disk for Watched {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        OsDisk.create_dir_all(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        OsDisk.list(dir)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        OsDisk.open(path, mode)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        OsDisk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        OsDisk.remove(path)
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        OsDisk.remove_dir(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        OsDisk.sync_dir(dir)
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        OsDisk.free_bytes(dir)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        let lock = Some(OsDisk.lock(path)?);
        Ok(Box::new(WatchedLock { lock, watched: self.clone() }))
    }
}

/// Whoever waits for a broker's data directory takes its addresses next. That for other brokers was held by the broker's own
/// handles until after the lock was gone; a stop waited a second for it in vain.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_stops_lets_go_of_its_addresses_before_its_directory() -> Result<()> {
    let (dir, watched) = (tempfile::tempdir()?, Watched::default());
    let sockets = Sockets::new({
        let watched = watched.clone();
        move |address| watched.bind(address)
    });
    let builder = Broker::builder().data_dir(dir.path()).shards(1).first_start(FirstStart::Found);
    let broker = builder.sockets(sockets).disk(Arc::new(watched.clone())).start().await?;
    sees(&broker, &[1]).await?;
    let addresses = [broker.address(), broker.peer_address().context("it is in a cluster")?];
    ensure!(addresses.iter().all(|address| locked(&watched.bound).iter().any(|(bound, _)| bound == address)));
    ensure!(locked(&watched.taken_at_unlock).is_none(), "it has its directory");
    broker.shutdown().await;
    let taken = locked(&watched.taken_at_unlock).take().context("nobody has the directory any more")?;
    ensure!(addresses.iter().all(|address| !taken.contains(address)), "{taken:?} of {addresses:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_lets_one_broker_in_and_says_so_to_the_next() -> Result<()> {
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir()).collect::<Result<_, _>>()?;
    let founder = start(dirs[0].path(), FirstStart::Found).await?;
    let token = founder.join_token(TOKEN_AGE).await?;
    let _second = start(dirs[1].path(), join(&founder, &token)).await?;
    let error = start(dirs[2].path(), join(&founder, &token)).await.expect_err("it was used");
    ensure!(error.to_string().contains("used by another broker"), "{error}");
    // The directory is nobody's still: a new token is all that is missing.
    let token = founder.join_token(TOKEN_AGE).await?;
    let third = start(dirs[2].path(), join(&founder, &token)).await?;
    sees(&third, &[1, 2, 3]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_expired_token_is_told_from_a_used_one() -> Result<()> {
    let dirs: Vec<_> = (0..2).map(|_| tempfile::tempdir()).collect::<Result<_, _>>()?;
    let founder = start(dirs[0].path(), FirstStart::Found).await?;
    let token = founder.join_token(Duration::from_millis(100)).await?;
    tokio::time::sleep(Duration::from_millis(150)).await;
    let error = start(dirs[1].path(), join(&founder, &token)).await.expect_err("it expired");
    ensure!(error.to_string().contains("has expired; make a new one with 'quire cluster token'"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_broker_of_its_own_does_not_become_one_of_a_cluster() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let alone = start(dir.path(), FirstStart::Alone).await?;
    let refused = alone.join_token(TOKEN_AGE).await.expect_err("it is in no cluster");
    ensure!(refused.to_string().contains("quire broker --init"), "{refused}");
    alone.shutdown().await;
    let error = start(dir.path(), FirstStart::Found).await.expect_err("it holds a broker");
    ensure!(error.to_string().contains("choose a new directory"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_client_without_a_certificate_is_turned_away_where_brokers_can_join() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let founder = start(dir.path(), FirstStart::Found).await?;
    let authority = founder.credentials().authority_pem;
    let refused = match RawClient::connect_as(founder.address(), &authority, None).await {
        Ok(client) => client.connection.closed().await.to_string(),
        Err(error) => error.to_string(),
    };
    ensure!(refused.contains("a client certificate of the cluster's authority is needed"), "{refused}");
    sees(&founder, &[1]).await
}
