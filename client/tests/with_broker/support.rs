//! A broker in a temporary folder, and a client of it.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use quire_broker::config::{FirstStart, HostPort};
use quire_broker::{Broker, StartError};
use quire_client::{
    Backoff, Client, ClientConfig, ConsumedRecord, Consumer, NewTopic, PartitionIndex, Profile, Record,
    Timestamp,
};
use tempfile::TempDir;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

pub struct Rig {
    pub broker: Broker,
    pub client: Client,
    pub dir: TempDir,
}

impl Rig {
    pub async fn start() -> Rig {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let broker = start_broker(dir.path(), "127.0.0.1:0".parse().expect("an address")).await;
        let client = connect(&broker).await;
        Rig { broker, client, dir }
    }

    /// With a topic `t` of so many partitions.
    pub async fn with_topic(partitions: u32) -> Rig {
        let rig = Rig::start().await;
        rig.client.admin().create_topic(NewTopic::new("t").partitions(partitions)).await.expect("created");
        rig
    }
}

/// How a broker finds the cluster of this one; without one it founds its own.
pub async fn first_start(founder: Option<&Broker>) -> FirstStart {
    let Some(founder) = founder else { return FirstStart::Found };
    let address = founder.address();
    let at = HostPort { host: address.ip().to_string(), port: address.port() };
    let token = founder.join_token(Duration::from_secs(3600)).await.expect("a token");
    FirstStart::Join { at, token }
}

/// A cluster of the brokers 1, 2 and 3, each with its place before its number.
pub struct Trio {
    brokers: Vec<Option<Broker>>,
    addresses: Vec<SocketAddr>,
    credentials: Profile,
    /// Those that were started again.
    started: JoinSet<()>,
    dirs: Vec<TempDir>,
}

impl Trio {
    pub async fn start() -> Trio {
        let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().expect("a temporary folder")).collect();
        let mut brokers: Vec<Option<Broker>> = Vec::new();
        for dir in &dirs {
            let first_start = first_start(brokers.first().and_then(Option::as_ref)).await;
            let builder = Broker::builder().data_dir(dir.path()).shards(1).first_start(first_start);
            brokers.push(Some(builder.start().await.expect("it starts")));
        }
        let addresses = brokers.iter().flatten().map(Broker::address).collect();
        let credentials = profile(brokers[0].as_ref().expect("it runs"));
        Trio { brokers, addresses, credentials, started: JoinSet::new(), dirs }
    }

    /// A profile that names these brokers, in this order.
    pub fn profile_of(&self, places: &[usize]) -> Profile {
        let addresses: Vec<_> = places.iter().map(|place| self.addresses[*place].to_string()).collect();
        self.credentials.clone().at(addresses.join(","))
    }

    pub fn address(&self, place: usize) -> SocketAddr {
        self.addresses[place]
    }

    pub async fn client(&self, places: &[usize]) -> Client {
        Client::connect_configured(self.profile_of(places), quick()).await.expect("one of them is there")
    }

    /// Ends them without a word to the others.
    pub fn kill(&mut self, places: &[usize]) {
        places.iter().for_each(|place| drop(self.brokers[*place].take()));
    }

    /// Starts one again, and waits for nothing: it may need the others for that.
    pub fn start_again(&mut self, place: usize) {
        let (dir, address) = (self.dirs[place].path().to_owned(), self.addresses[place]);
        self.started.spawn(async move {
            let _broker = start_broker(&dir, address).await;
            std::future::pending::<()>().await;
        });
    }
}

/// The task that owns a stopped broker's socket lets go of it a moment after the broker is down.
pub async fn start_broker(dir: &Path, listen: SocketAddr) -> Broker {
    let given_up = Instant::now() + Duration::from_secs(5);
    loop {
        match Broker::builder().data_dir(dir).listen(listen).start().await {
            Err(StartError::Listen { source, .. })
                if source.kind() == ErrorKind::AddrInUse && Instant::now() < given_up =>
            {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            started => return started.expect("the broker starts"),
        }
    }
}

pub fn profile(broker: &Broker) -> Profile {
    let credentials = broker.credentials();
    Profile::new(format!("quire://{}", broker.address()))
        .authority_pem(credentials.authority_pem)
        .identity_pem(credentials.certificate_pem, credentials.key_pem)
}

/// Short pauses, so that tests of failures are quick.
pub fn quick() -> ClientConfig {
    ClientConfig {
        connect_timeout: Duration::from_secs(2),
        backoff: Backoff { first: Duration::from_millis(10), longest: Duration::from_millis(100) },
        ..ClientConfig::default()
    }
}

pub async fn connect(broker: &Broker) -> Client {
    Client::connect_configured(profile(broker), quick()).await.expect("the broker is there")
}

pub fn record(value: impl Into<bytes::Bytes>) -> Record {
    Record { value: Some(value.into()), ..Record::default() }
}

pub fn timed(value: impl Into<bytes::Bytes>, timestamp: i64) -> Record {
    Record { timestamp: Some(Timestamp(timestamp)), ..record(value) }
}

pub fn partition(number: u32) -> PartitionIndex {
    PartitionIndex(number)
}

/// Everything up to the consumer's end.
pub async fn all(mut consumer: Consumer) -> Vec<ConsumedRecord> {
    let mut records = Vec::new();
    while let Some(record) = consumer.next().await {
        records.push(record.expect("a record"));
    }
    records
}

pub fn values(records: &[ConsumedRecord]) -> Vec<String> {
    let value = |record: &ConsumedRecord| {
        String::from_utf8_lossy(record.value.as_deref().unwrap_or_default()).into_owned()
    };
    records.iter().map(value).collect()
}

/// A UDP relay before a broker, for one client, which can be cut.
pub struct Relay {
    pub address: SocketAddr,
    is_cut: Arc<AtomicBool>,
}

impl Relay {
    pub async fn start(broker: SocketAddr) -> Relay {
        let front = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
        let back = UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
        back.connect(broker).await.expect("a local address");
        let address = front.local_addr().expect("bound");
        let is_cut = Arc::new(AtomicBool::new(false));
        tokio::spawn(Relay::pass(front, back, Arc::clone(&is_cut)));
        Relay { address, is_cut }
    }

    /// While it is cut, whatever comes is lost, either way.
    pub fn cut(&self, is_cut: bool) {
        self.is_cut.store(is_cut, Ordering::Relaxed);
    }

    async fn pass(front: UdpSocket, back: UdpSocket, is_cut: Arc<AtomicBool>) {
        let (mut from_client, mut from_broker) = (vec![0; 65_536], vec![0; 65_536]);
        let mut client = None;
        loop {
            tokio::select! {
                Ok((length, sender)) = front.recv_from(&mut from_client) => {
                    // A client's probe for a dead host comes from a socket of its own and is no packet.
                    if length > 1 {
                        client = Some(sender);
                        if !is_cut.load(Ordering::Relaxed) {
                            let _ = back.send(&from_client[..length]).await;
                        }
                    }
                }
                Ok(length) = back.recv(&mut from_broker) => {
                    if let Some(client) = client.filter(|_| !is_cut.load(Ordering::Relaxed)) {
                        let _ = front.send_to(&from_broker[..length], client).await;
                    }
                }
            }
        }
    }
}
