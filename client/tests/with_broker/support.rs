//! A broker in a temporary folder, and a client of it.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use quire_broker::{Broker, StartError};
use quire_client::{
    Backoff, Client, ClientConfig, ConsumedRecord, Consumer, NewTopic, PartitionIndex, Profile, Record,
    Timestamp,
};
use tempfile::TempDir;
use tokio::net::UdpSocket;

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
