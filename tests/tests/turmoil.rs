//! Whole brokers, with Raft, replication and the client crate, on a network by turmoil and on simulated disks: datagrams
//! are lost and late, a broker is cut off, and the leader loses power. In the end whatever was acknowledged is read once
//! and in order. (That replicas are the same byte for byte is not looked at here: `tests/chaos.rs` does.)
//!
//! A seed is **not** one run here. Brokers own threads and take the machine's time, which turmoil's clock does not reach;
//! so its steps keep pace with the machine's clock, and its hosts carry datagrams for brokers that live outside of
//! it. What a seed fixes is which datagram, counted in the order they come, is lost and by how much it is late, and what the
//! disk loses. Runs that repeat exactly are the simulator's (`tests/sim.rs`).

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, mpsc};
use std::task::{Context as TaskContext, Poll, Waker};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use quire_broker::Broker;
use quire_broker::config::{FirstStart, HostPort};
use quire_client::{Client, ClientConfig, NewTopic, PartitionIndex, Profile, Record};
use quire_storage::disk::{CrashOptions, SimDisk};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

const TOPIC: &str = "flights";
const BROKERS: u8 = 3;
/// The host that the client runs on; brokers are hosts 1 to 3.
const CLIENT: u8 = 4;
const CLIENT_PORT: u16 = 9440;
const PEER_PORT: u16 = 9441;
const TICK: Duration = Duration::from_millis(1);
const TIME_MAX: Duration = Duration::from_secs(40);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Of the addresses that are kept for documentation: nothing is ever sent there on a real network.
fn ip(host: u8) -> IpAddr {
    Ipv4Addr::new(192, 0, 2, host).into()
}

type Datagrams = VecDeque<(SocketAddr, Vec<u8>)>;

/// A socket of quinn's; a host in the simulation carries what is in it.
struct Port {
    address: SocketAddr,
    outgoing: Mutex<Datagrams>,
    incoming: Mutex<(Datagrams, Option<Waker>)>,
    is_cut: AtomicBool,
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Port({})", self.address)
    }
}

#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncUdpSocket for Port {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let mut outgoing = lock(&self.outgoing);
        // Under the lock: what is cut off sends nothing any more.
        if !self.is_cut.load(Ordering::SeqCst) {
            outgoing.push_back((transmit.destination, transmit.contents.to_vec()));
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        cx: &mut TaskContext<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let (datagrams, waker) = &mut *lock(&self.incoming);
        let mut count = 0;
        for (buffer, meta) in bufs.iter_mut().zip(meta) {
            let Some((from, bytes)) = datagrams.pop_front() else { break };
            let len = bytes.len().min(buffer.len());
            buffer[..len].copy_from_slice(&bytes[..len]);
            *meta = RecvMeta { addr: from, len, stride: len, ecn: None, dst_ip: None };
            count += 1;
        }
        if count == 0 {
            *waker = Some(cx.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

/// The ports of one host.
#[derive(Default)]
struct Ports {
    bound: Mutex<Vec<Weak<Port>>>,
    last: AtomicU16,
}

impl Ports {
    fn bind(&self, host: u8, port: u16) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let port = if port == 0 { 20_000 + self.last.fetch_add(1, Ordering::SeqCst) } else { port };
        let address = SocketAddr::new(ip(host), port);
        let (outgoing, incoming, is_cut) = Default::default();
        let port = Arc::new(Port { address, outgoing, incoming, is_cut });
        lock(&self.bound).push(Arc::downgrade(&port));
        Ok(port)
    }

    /// Nothing leaves the host's sockets from now on, and nothing comes to them.
    fn cut(&self) {
        for port in lock(&self.bound).drain(..).filter_map(|port| port.upgrade()) {
            let mut outgoing = lock(&port.outgoing);
            port.is_cut.store(true, Ordering::SeqCst);
            outgoing.clear();
        }
    }

    /// What runs on the host inside of the simulation.
    async fn carry(self: Arc<Self>) -> turmoil::Result {
        let mut sockets = BTreeMap::<u16, (Weak<Port>, turmoil::net::UdpSocket)>::new();
        let mut buffer = vec![0; 1 << 16];
        loop {
            sockets.retain(|_, (port, _)| port.upgrade().is_some_and(|p| !p.is_cut.load(Ordering::SeqCst)));
            let bound = lock(&self.bound).clone();
            for port in bound.iter().filter_map(Weak::upgrade) {
                let number = port.address.port();
                if let std::collections::btree_map::Entry::Vacant(entry) = sockets.entry(number) {
                    let socket = turmoil::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, number)).await?;
                    entry.insert((Arc::downgrade(&port), socket));
                }
                let socket = &sockets[&number].1;
                // A datagram to a host that does not listen is lost, as any may be.
                for (to, bytes) in lock(&port.outgoing).drain(..) {
                    let _ = socket.try_send_to(&bytes, to);
                }
                let (datagrams, waker) = &mut *lock(&port.incoming);
                while let Ok((len, from)) = socket.try_recv_from(&mut buffer) {
                    datagrams.push_back((from, buffer[..len].to_vec()));
                }
                if let Some(waker) = waker.take_if(|_| !datagrams.is_empty()) {
                    waker.wake();
                }
            }
            sleep(TICK).await;
        }
    }
}

enum Order {
    Partition(u8),
    Repair(u8),
}

/// The simulated network, which a thread drives at the pace of the machine's clock.
struct Network {
    hosts: BTreeMap<u8, Arc<Ports>>,
    orders: Option<mpsc::Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

impl Network {
    fn start(seed: u64) -> Network {
        let hosts: BTreeMap<u8, Arc<Ports>> = (1..=CLIENT).map(|host| (host, Arc::default())).collect();
        let (orders, taken) = mpsc::channel();
        let thread = std::thread::spawn({
            let hosts = hosts.clone();
            move || drive(seed, &hosts, &taken)
        });
        Network { hosts, orders: Some(orders), thread: Some(thread) }
    }

    fn order(&self, order: Order) -> Result<()> {
        self.orders.as_ref().context("it runs")?.send(order).context("the simulation ended")
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.orders = None;
        let ended = self.thread.take().map(JoinHandle::join);
        assert!(std::thread::panicking() || matches!(ended, Some(Ok(()))), "the simulation failed");
    }
}

fn drive(seed: u64, hosts: &BTreeMap<u8, Arc<Ports>>, orders: &mpsc::Receiver<Order>) {
    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .tick_duration(TICK)
        .simulation_duration(Duration::from_secs(3600))
        .min_message_latency(Duration::ZERO)
        .max_message_latency(Duration::from_millis(8))
        .fail_rate(0.01)
        .repair_rate(0.5)
        .udp_capacity(1 << 14)
        .build();
    for (host, ports) in hosts {
        let ports = Arc::clone(ports);
        sim.host(ip(*host), move || Arc::clone(&ports).carry());
    }
    let others = |host: u8| (1..=CLIENT).filter(move |other| *other != host).map(ip);
    loop {
        match orders.recv_timeout(TICK) {
            Ok(Order::Partition(host)) => others(host).for_each(|other| sim.partition(ip(host), other)),
            Ok(Order::Repair(host)) => others(host).for_each(|other| sim.repair(ip(host), other)),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        }
        sim.step().expect("hosts only carry datagrams");
    }
}

struct Node {
    host: u8,
    dir: TempDir,
    disk: SimDisk,
    broker: Option<Broker>,
}

impl Node {
    async fn start(&mut self, network: &Network, first_start: FirstStart) -> Result<()> {
        let (host, ports) = (self.host, Arc::clone(&network.hosts[&self.host]));
        let broker = Broker::builder()
            .data_dir(self.dir.path())
            .shards(1)
            .names([ip(host).to_string()])
            .listen((ip(host), CLIENT_PORT).into())
            .peer_listen((ip(host), PEER_PORT).into())
            .disk(Arc::new(self.disk.clone()))
            .sockets(quire_broker::Sockets::new(move |address| ports.bind(host, address.port())))
            .first_start(first_start)
            .start();
        self.broker = Some(tokio::time::timeout(TIME_MAX, broker).await.context("it starts in time")??);
        Ok(())
    }

    /// Loses power: nothing is sent any more, and of the disk remains what a power loss leaves of it. The old process
    /// goes on in the void, on a disk that nobody looks at.
    fn lose_power(&mut self, network: &Network, seed: u64) -> Result<()> {
        network.hosts[&self.host].cut();
        self.disk = self.disk.fork(seed);
        self.disk.crash(&CrashOptions::default());
        drop(self.broker.take().context("it runs")?);
        Ok(())
    }
}

struct Cluster {
    nodes: Vec<Node>,
    client: Client,
    network: Network,
}

impl Cluster {
    async fn start(seed: u64) -> Result<Cluster> {
        let network = Network::start(seed);
        let mut nodes: Vec<Node> = Vec::new();
        for host in 1..=BROKERS {
            let disk = SimDisk::new(seed * 10 + u64::from(host));
            let mut node = Node { host, dir: tempfile::tempdir()?, disk, broker: None };
            let first_start = match nodes.first().and_then(|node| node.broker.as_ref()) {
                None => FirstStart::Found,
                Some(first) => FirstStart::Join {
                    at: HostPort { host: ip(1).to_string(), port: CLIENT_PORT },
                    token: first.join_token(Duration::from_secs(3600)).await?,
                },
            };
            node.start(&network, first_start).await?;
            nodes.push(node);
        }
        let credentials = nodes[0].broker.as_ref().context("it runs")?.credentials();
        let addresses: Vec<_> = (1..=BROKERS).map(|host| format!("{}:{CLIENT_PORT}", ip(host))).collect();
        let profile = Profile::new(format!("quire://{}", addresses.join(",")))
            .authority_pem(credentials.authority_pem)
            .identity_pem(credentials.certificate_pem, credentials.key_pem);
        let ports = Arc::clone(&network.hosts[&CLIENT]);
        let config = ClientConfig {
            sockets: quire_client::Sockets::new(move |address| ports.bind(CLIENT, address.port())),
            idle_timeout: Duration::from_secs(2),
            ..ClientConfig::default()
        };
        let client = Client::connect_configured(profile, config).await?;
        let topic = NewTopic::new(TOPIC).partitions(1).replicas(3).config("min.insync.replicas", "2");
        client.admin().create_topic(topic).await?;
        Ok(Cluster { nodes, client, network })
    }

    async fn until(&self, what: &str, is_so: impl AsyncFn() -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + TIME_MAX;
        while !is_so().await.unwrap_or(false) {
            ensure!(Instant::now() < deadline, "not in time: {what}");
            sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    async fn in_sync(&self, count: usize) -> Result<()> {
        let is_so = async || {
            let topic = self.client.admin().describe_topic(TOPIC).await?;
            Ok(topic.partitions[0].in_sync_replicas.len() == count)
        };
        self.until(&format!("{count} replicas in sync"), is_so).await
    }

    /// The place of the broker that leads.
    async fn leader(&self) -> Result<usize> {
        let topic = self.client.admin().describe_topic(TOPIC).await?;
        let leader = topic.partitions[0].leader.context("there is a leader")?;
        let is_it = |node: &Node| node.broker.as_ref().is_some_and(|broker| broker.id() == leader);
        self.nodes.iter().position(is_it).context("it is one of these")
    }

    /// Everything, as a consumer reads it.
    async fn read(&self) -> Result<Vec<(u64, String)>> {
        let mut consumer = self.client.consumer().topic(TOPIC).build().await?;
        let mut records = Vec::new();
        while let Some(record) = tokio::time::timeout(TIME_MAX, consumer.next()).await? {
            let record = record?;
            records.push((record.offset.0, String::from_utf8(record.value.context("a value")?.to_vec())?));
        }
        Ok(records)
    }
}

/// A producer that goes on until it is told to stop, and what it was told of each record.
struct Load {
    acknowledged: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<Result<Vec<(u64, String)>>>,
}

impl Load {
    fn start(client: &Client) -> Load {
        let producer = client.producer().idempotent(true).build();
        let (acknowledged, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (count, stopped) = (Arc::clone(&acknowledged), Arc::clone(&stop));
        let task = tokio::spawn(async move {
            let mut told = Vec::new();
            let mut waiting = VecDeque::new();
            let mut number = 0_u64;
            loop {
                let is_over = stopped.load(Ordering::SeqCst);
                while !is_over && waiting.len() < 16 {
                    let value = format!("{number}");
                    number += 1;
                    let record = Record { value: Some(value.clone().into()), ..Record::default() };
                    waiting.push_back((value, producer.enqueue_to(TOPIC, PartitionIndex(0), record).await?));
                }
                let Some((value, delivery)) = waiting.pop_front() else { break };
                told.push((delivery.await?.offset.0, value));
                count.fetch_add(1, Ordering::SeqCst);
            }
            producer.close().await?;
            Ok(told)
        });
        Load { acknowledged, stop, task }
    }

    async fn goes_on(&self, cluster: &Cluster) -> Result<()> {
        let goal = self.acknowledged.load(Ordering::SeqCst) + 100;
        cluster.until("writes go on", async || Ok(self.acknowledged.load(Ordering::SeqCst) >= goal)).await
    }
}

async fn run(seed: u64) -> Result<()> {
    let began = Instant::now();
    let mut cluster = Cluster::start(seed).await?;
    cluster.in_sync(3).await?;
    let load = Load::start(&cluster.client);
    load.goes_on(&cluster).await?;

    let cut_off = (cluster.leader().await? as u8 + 1) % BROKERS + 1;
    cluster.network.order(Order::Partition(cut_off))?;
    cluster.in_sync(2).await.context("cut off")?;
    load.goes_on(&cluster).await.context("cut off")?;
    cluster.network.order(Order::Repair(cut_off))?;
    cluster.in_sync(3).await.context("together again")?;

    let leader = cluster.leader().await?;
    cluster.nodes[leader].lose_power(&cluster.network, seed)?;
    load.goes_on(&cluster).await.context("without the leader")?;
    cluster.nodes[leader].start(&cluster.network, FirstStart::Alone).await?;
    cluster.in_sync(3).await.context("after the power loss")?;
    load.goes_on(&cluster).await?;

    load.stop.store(true, Ordering::SeqCst);
    let told = tokio::time::timeout(TIME_MAX, load.task).await???;
    let records = cluster.read().await?;
    ensure!(records == told, "other records are read than were acknowledged");
    println!("seed {seed}: {} records, {:?}", told.len(), began.elapsed());
    cluster.client.close().await;
    for node in &mut cluster.nodes {
        drop(node.broker.take());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_records_survive_a_bad_network_and_a_power_loss() -> Result<()> {
    for seed in [1, 2] {
        run(seed).await.with_context(|| format!("seed {seed}"))?;
    }
    Ok(())
}
