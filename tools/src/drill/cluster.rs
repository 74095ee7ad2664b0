//! Brokers as processes of their own, on this machine, for as long as somebody holds them: started, killed, paused,
//! ended in order, and started again on the same data and ports.
//!
//! Nothing outlives its owner. A broker is killed when its [`Node`] is dropped, also by a panic; it runs in a process group
//! of its own, so that Ctrl-C reaches the owner alone; and its standard input is a pipe from the owner, at whose end it
//! stops: that end comes even if the owner is killed.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use quire_client::{Client, Error, Profile};
use quire_protocol::{BrokerId, limits};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::relay::{Conditions, Direction, UdpRelay};

/// The file in a data directory with what clients of a cluster need.
const CLIENT_PROFILE: &str = "client-profile.toml";
/// How long a broker may take until it serves.
pub const START_TIME_MAX: Duration = Duration::from_secs(60);
/// How long a broker may take to end when it is asked to.
pub const STOP_TIME_MAX: Duration = Duration::from_secs(30);
/// How often another process is looked at: it sends no event to a stranger.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Longest wait for one answer about readiness.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(2);
/// What of a log is told in an error (bytes).
const LOG_TAIL_BYTES: usize = 2000;

/// Why a broker did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The system refused.
    #[error("broker {broker}: {what}: {source}")]
    System {
        /// Which one.
        broker: BrokerId,
        /// What was asked of the system.
        what: &'static str,
        /// Its answer.
        source: io::Error,
    },
    /// It ended by itself.
    #[error("broker {broker} ended with {status}; its log ends:\n{log}")]
    Ended {
        /// Which one.
        broker: BrokerId,
        /// How.
        status: ExitStatus,
        /// The end of its log.
        log: String,
    },
    /// It did not serve, or not end, in time.
    #[error("broker {broker} did not {what} within {after:?}; its log ends:\n{log}")]
    TooLate {
        /// Which one.
        broker: BrokerId,
        /// What was waited for.
        what: &'static str,
        /// How long.
        after: Duration,
        /// The end of its log.
        log: String,
    },
    /// The cluster refused what a new broker needs.
    #[error(transparent)]
    Client(#[from] Error),
    /// It was told something that it is in no state for.
    #[error("broker {0} does not run")]
    NotRunning(BrokerId),
}

/// What a broker is started with.
#[derive(Debug, Clone)]
pub struct NodeSetup {
    /// The `quire` binary.
    pub binary: PathBuf,
    /// Where its data, configuration and log are kept, each under its number.
    pub folder: PathBuf,
    /// Its number.
    pub id: BrokerId,
    /// The seed of a relay between clients and it, if there is to be one.
    pub relay: Option<u64>,
    /// The seed of a relay between other brokers and it, if there is to be one.
    pub peer_relay: Option<u64>,
    /// Where its data is kept, if elsewhere than in the folder; need not exist.
    pub data: Option<PathBuf>,
    /// How it comes into its cluster, at its first start.
    pub first_start: FirstStart,
    /// Command words in front of the binary (`strace …`).
    pub wrapper: Vec<String>,
}

/// How a broker comes into a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FirstStart {
    /// Not at all: it is one by itself.
    Alone,
    /// It founds one.
    Found,
    /// It joins that of the broker that clients reach at this address.
    Join {
        /// The address.
        at: SocketAddr,
        /// What lets it in.
        token: String,
    },
}

/// A broker process with its data and its ports, which it keeps from start to start.
#[derive(Debug)]
pub struct Node {
    setup: NodeSetup,
    listen: SocketAddr,
    peer_listen: SocketAddr,
    admin: SocketAddr,
    /// What clients are told to connect to.
    relay: Option<UdpRelay>,
    /// What other brokers are told to connect to.
    peer_relay: Option<UdpRelay>,
    child: Option<Child>,
    is_paused: bool,
}

impl Node {
    /// Takes free ports, and writes the configuration; starts nothing yet.
    ///
    /// # Errors
    /// If the folder can not be written, or there is no free port.
    pub async fn new(setup: NodeSetup) -> Result<Node, ClusterError> {
        let id = setup.id;
        let failed = |what| system(id, what);
        let listen = free_udp_address(Ipv4Addr::LOCALHOST).map_err(failed("no free port"))?;
        // A relay between brokers tells them apart by their addresses.
        let peer_host = match setup.peer_relay {
            Some(_) => Ipv4Addr::new(127, 0, 0, u8::try_from(id.0 + 1).unwrap_or(u8::MAX)),
            None => Ipv4Addr::LOCALHOST,
        };
        let peer_listen = free_udp_address(peer_host).map_err(failed("no free port"))?;
        let admin = free_tcp_address().map_err(failed("no free port"))?;
        let (relay, peer_relay) =
            (setup.relay.map(|seed| (listen, seed)), setup.peer_relay.map(|seed| (peer_listen, seed)));
        let mut relays = Vec::new();
        for relay in [relay, peer_relay] {
            relays.push(match relay {
                Some((target, seed)) => {
                    Some(UdpRelay::start(target, seed).await.map_err(failed("no relay"))?)
                }
                None => None,
            });
        }
        let (peer_relay, relay) = (relays.pop().flatten(), relays.pop().flatten());
        let node =
            Node { setup, listen, peer_listen, admin, relay, peer_relay, child: None, is_paused: false };
        fs::create_dir_all(&node.setup.folder).map_err(failed("its folder can not be made"))?;
        fs::write(node.file("toml"), node.config())
            .map_err(failed("its configuration can not be written"))?;
        Ok(node)
    }

    /// Its number.
    pub fn id(&self) -> BrokerId {
        self.setup.id
    }

    /// Where it listens for clients, whatever it advertises.
    pub fn address(&self) -> SocketAddr {
        self.listen
    }

    /// Where its admin server answers.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Its data directory.
    pub fn data(&self) -> PathBuf {
        let in_folder = || self.setup.folder.join(format!("broker-{}", self.setup.id));
        self.setup.data.clone().unwrap_or_else(in_folder)
    }

    /// The relay between clients and it, if there is one.
    pub fn relay(&self) -> Option<&UdpRelay> {
        self.relay.as_ref()
    }

    /// The address that it sends to other brokers from: its own alone if there is a relay between brokers.
    fn peer_host(&self) -> IpAddr {
        self.peer_listen.ip()
    }

    /// Its log, over all of its starts.
    pub fn log(&self) -> PathBuf {
        self.file("log")
    }

    /// The id of its process, while it runs.
    pub fn process(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Whether it is stopped by a signal.
    pub fn is_paused(&self) -> bool {
        self.is_paused
    }

    /// Starts the process, and returns without waiting for it to serve.
    ///
    /// # Errors
    /// If the system gives no process.
    pub fn start(&mut self) -> Result<(), ClusterError> {
        let id = self.setup.id;
        let failed = |what| system(id, what);
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log());
        let log = log.map_err(failed("its log can not be opened"))?;
        let stdout = log.try_clone().map_err(failed("its log can not be opened"))?;
        let binary = self.setup.binary.to_string_lossy().into_owned();
        let mut words = self.setup.wrapper.iter().chain([&binary]);
        let mut command = Command::new(words.next().unwrap_or(&binary));
        command
            .args(words)
            .args(["broker", "--stop-on-eof", "--config"])
            .arg(self.file("toml"))
            .args(self.first_start_flags())
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(stdout)
            .stderr(log);
        self.child = Some(command.spawn().map_err(failed("its process does not start"))?);
        self.is_paused = false;
        Ok(())
    }

    /// Later starts know from the data directory.
    fn first_start_flags(&self) -> Vec<String> {
        let is_first = !self.data().exists();
        match &self.setup.first_start {
            FirstStart::Found if is_first => vec!["--init".to_owned()],
            FirstStart::Join { at, token } if is_first => {
                ["--join", &at.to_string(), "--token", token].map(str::to_owned).into()
            }
            _ => Vec::new(),
        }
    }

    /// Waits until it serves, and returns how long that took.
    ///
    /// # Errors
    /// If it ends, or takes too long.
    pub async fn ready(&mut self) -> Result<Duration, ClusterError> {
        let started = Instant::now();
        loop {
            self.still_runs()?;
            if is_ready(self.admin).await && self.has_profile() {
                return Ok(started.elapsed());
            }
            if started.elapsed() > START_TIME_MAX {
                return Err(self.too_late("serve", START_TIME_MAX));
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// The value of a metric without labels, as the broker tells it now.
    ///
    /// # Errors
    /// If it does not answer, or knows no such metric.
    pub async fn metric(&self, name: &str) -> io::Result<f64> {
        let ask = get(self.admin, "/metrics");
        let page =
            timeout(ANSWER_TIME_MAX, ask).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
        let values = page.lines().filter_map(|line| line.split_once(' '));
        let value = values.filter(|(found, _)| *found == name).find_map(|(_, value)| value.parse().ok());
        value.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no metric {name}")))
    }

    /// Command words in front of the binary from its next start on.
    pub fn set_wrapper(&mut self, wrapper: Vec<String>) {
        self.setup.wrapper = wrapper;
    }

    /// A broker of a cluster writes it right after it began to serve.
    fn has_profile(&self) -> bool {
        self.setup.first_start == FirstStart::Alone || self.data().join(CLIENT_PROFILE).exists()
    }

    /// Ends it as a crash would: SIGKILL, and reaped.
    ///
    /// # Errors
    /// If it does not run.
    pub fn kill(&mut self) -> Result<(), ClusterError> {
        let mut child = self.child.take().ok_or(ClusterError::NotRunning(self.setup.id))?;
        self.is_paused = false;
        // One that has just ended by itself can not be killed, which makes no difference.
        let _ = child.kill();
        let reaped = child.wait();
        let broker = self.setup.id;
        reaped.map(drop).map_err(|source| ClusterError::System {
            broker,
            what: "it can not be reaped",
            source,
        })
    }

    /// Stops it where it stands: SIGSTOP.
    ///
    /// # Errors
    /// If it does not run.
    pub fn pause(&mut self) -> Result<(), ClusterError> {
        self.signal(Signal::STOP)?;
        self.is_paused = true;
        Ok(())
    }

    /// Lets it go on: SIGCONT.
    ///
    /// # Errors
    /// If it does not run.
    pub fn resume(&mut self) -> Result<(), ClusterError> {
        self.signal(Signal::CONT)?;
        self.is_paused = false;
        Ok(())
    }

    /// Nothing passes between clients and it any more; without a relay nothing changes.
    pub fn cut_off_clients(&self) {
        self.relay.iter().for_each(|relay| relay.weather().cut());
    }

    /// Clients and it reach each other again.
    pub fn reconnect_clients(&self) {
        self.relay.iter().for_each(|relay| relay.weather().clear());
    }

    /// Ends it as an operator would: SIGTERM, and waits for it to drain.
    ///
    /// # Errors
    /// If it does not end well, or not in time.
    pub async fn terminate(&mut self) -> Result<Duration, ClusterError> {
        self.signal(Signal::TERM)?;
        let asked = Instant::now();
        loop {
            if let Some(status) = self.ended()? {
                self.child = None;
                return match status.success() {
                    true => Ok(asked.elapsed()),
                    false => Err(ClusterError::Ended { broker: self.setup.id, status, log: self.log_tail() }),
                };
            }
            if asked.elapsed() > STOP_TIME_MAX {
                return Err(self.too_late("end", STOP_TIME_MAX));
            }
            sleep(LOOK_EVERY).await;
        }
    }

    /// Whether it runs: an error if it ended without being told to.
    ///
    /// # Errors
    /// If it does not run.
    pub fn still_runs(&mut self) -> Result<(), ClusterError> {
        match self.ended()? {
            None => Ok(()),
            Some(status) => Err(ClusterError::Ended { broker: self.setup.id, status, log: self.log_tail() }),
        }
    }

    /// What its first client needs; the broker writes it before it serves.
    ///
    /// # Errors
    /// If it is not there.
    pub fn profile(&self) -> Result<Profile, ClusterError> {
        let address = self.relay.as_ref().map_or(self.listen, UdpRelay::address);
        if self.setup.first_start != FirstStart::Alone {
            let profile = Profile::load_file(&self.data().join(CLIENT_PROFILE)).map_err(Error::from)?;
            return Ok(profile.at(format!("quire://{address}")));
        }
        let tls = self.data().join("tls");
        let broker = self.setup.id;
        let read = |name: &str| {
            fs::read_to_string(tls.join(name)).map_err(system(broker, "its certificates can not be read"))
        };
        Ok(Profile::new(format!("quire://{address}"))
            .authority_pem(read("authority.pem")?)
            .identity_pem(read("client.pem")?, read("client.key")?))
    }

    fn config(&self) -> String {
        let (data, listen, admin) = (self.data(), self.listen, self.admin);
        let mut network = format!("listen = \"{listen}\"\n");
        if let Some(relay) = &self.relay {
            network.push_str(&format!("advertise = \"{}\"\n", relay.address()));
        }
        if self.setup.first_start != FirstStart::Alone {
            network.push_str(&format!("peer_listen = \"{}\"\n", self.peer_listen));
            if let Some(relay) = &self.peer_relay {
                network.push_str(&format!("peer_advertise = \"{}\"\n", relay.address()));
            }
        }
        format!(
            "[broker]\ndata_dir = {data:?}\ndrain_ms = 2000\ndeletion_grace_ms = 0\n[network]\n{network}[admin]\nlisten = \"{admin}\"\n"
        )
    }

    fn file(&self, extension: &str) -> PathBuf {
        // Not with_extension: the folder's name may have a dot.
        self.setup.folder.join(format!("broker-{}.{extension}", self.setup.id))
    }

    fn signal(&self, signal: Signal) -> Result<(), ClusterError> {
        let child = self.child.as_ref().ok_or(ClusterError::NotRunning(self.setup.id))?;
        let signalled = kill_process(Pid::from_child(child), signal).map_err(io::Error::from);
        signalled.map_err(system(self.setup.id, "it can not be signalled"))
    }

    fn ended(&mut self) -> Result<Option<ExitStatus>, ClusterError> {
        let broker = self.setup.id;
        let child = self.child.as_mut().ok_or(ClusterError::NotRunning(broker))?;
        child.try_wait().map_err(|source| ClusterError::System {
            broker,
            what: "it can not be looked at",
            source,
        })
    }

    fn too_late(&self, what: &'static str, after: Duration) -> ClusterError {
        ClusterError::TooLate { broker: self.setup.id, what, after, log: self.log_tail() }
    }

    fn log_tail(&self) -> String {
        let log = fs::read(self.log()).unwrap_or_default();
        String::from_utf8_lossy(&log[log.len().saturating_sub(LOG_TAIL_BYTES)..]).trim_end().to_owned()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.child.is_some() {
            // Nobody is left to tell.
            let _ = self.kill();
        }
    }
}

/// What the brokers of a cluster are started with.
#[derive(Debug, Clone)]
pub struct ClusterSetup {
    /// The `quire` binary.
    pub binary: PathBuf,
    /// Where everything is kept.
    pub folder: PathBuf,
    /// How many brokers; they are numbered from 1 on.
    pub brokers: u32,
    /// The seed of relays between clients and each broker, if there are to be any.
    pub relays: Option<u64>,
    /// The seed of relays between the brokers, if there are to be any.
    pub peer_relays: Option<u64>,
    /// Brokers whose data is kept elsewhere, and where: folders that need not exist.
    pub data: BTreeMap<BrokerId, PathBuf>,
    /// Command words in front of the binary, of brokers that have any.
    pub wrappers: BTreeMap<BrokerId, Vec<String>>,
}

impl ClusterSetup {
    /// So many brokers that reach each other and their clients directly.
    pub fn new(binary: &Path, folder: &Path, brokers: u32) -> ClusterSetup {
        ClusterSetup {
            binary: binary.to_owned(),
            folder: folder.to_owned(),
            brokers,
            relays: None,
            peer_relays: None,
            data: BTreeMap::new(),
            wrappers: BTreeMap::new(),
        }
    }

    fn of(&self, id: BrokerId, first_start: FirstStart) -> NodeSetup {
        let seed = |seed: u64| seed.wrapping_add(u64::from(id.0));
        NodeSetup {
            binary: self.binary.clone(),
            folder: self.folder.clone(),
            id,
            relay: self.relays.map(seed),
            peer_relay: self.peer_relays.map(|peers| seed(!peers)),
            data: self.data.get(&id).cloned(),
            first_start,
            wrapper: self.wrappers.get(&id).cloned().unwrap_or_default(),
        }
    }
}

/// The brokers of one drill.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Node>,
}

impl Cluster {
    /// The brokers of `setup`, which serve: one by itself, or a cluster that the first one founds and the others join.
    ///
    /// # Errors
    /// If one does not come up.
    pub async fn start(setup: ClusterSetup) -> Result<Cluster, ClusterError> {
        let brokers = setup.brokers;
        let setup = |number: u32, first_start| setup.of(BrokerId(number), first_start);
        let first_start = if brokers == 1 { FirstStart::Alone } else { FirstStart::Found };
        let mut cluster = Cluster { nodes: Vec::new() };
        cluster.add(setup(1, first_start)).await?;
        for number in 2..=brokers {
            let founder = &cluster.nodes[0];
            let (at, profile) = (founder.address(), founder.profile()?);
            let client = Client::connect_with(profile).await?;
            let token = client.admin().create_join_token(limits::TOKEN_AGE_DEFAULT).await;
            client.close().await;
            cluster.add(setup(number, FirstStart::Join { at, token: token? })).await?;
        }
        Ok(cluster)
    }

    async fn add(&mut self, setup: NodeSetup) -> Result<(), ClusterError> {
        let mut node = Node::new(setup).await?;
        node.start()?;
        node.ready().await?;
        self.nodes.push(node);
        Ok(())
    }

    /// The brokers, in the order of their numbers.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The brokers, in the order of their numbers.
    pub fn nodes_mut(&mut self) -> &mut [Node] {
        &mut self.nodes
    }

    /// How many there are.
    pub fn brokers(&self) -> u32 {
        self.nodes.len() as u32
    }

    /// The broker of this number.
    pub fn node(&mut self, id: BrokerId) -> Option<&mut Node> {
        self.nodes.iter_mut().find(|node| node.id() == id)
    }

    /// How clients reach it.
    ///
    /// # Errors
    /// If the first broker has not written it.
    pub fn profile(&self) -> Result<Profile, ClusterError> {
        self.nodes[0].profile()
    }

    /// Sets what becomes of everything that one broker sends to another, which takes relays between brokers: from now on,
    /// and until the next [`Cluster::heal`] at most.
    pub fn set_link(&self, from: BrokerId, to: BrokerId, conditions: Conditions) {
        let node = |id: BrokerId| self.nodes.iter().find(|node| node.id() == id);
        let (Some(from), Some(to)) = (node(from), node(to)) else { return };
        // What it sends on connections that it made, and on those that the other one made.
        let made = to.peer_relay.iter().map(|relay| (relay, from, Direction::ToTarget));
        let taken = from.peer_relay.iter().map(|relay| (relay, to, Direction::FromTarget));
        for (relay, caller, direction) in made.chain(taken) {
            relay.weather().set_of_host(caller.peer_host(), direction, conditions);
        }
    }

    /// Everything runs that should, nothing is paused or cut off.
    ///
    /// # Errors
    /// If a broker ended, or does not serve.
    pub async fn heal(&mut self) -> Result<(), ClusterError> {
        for node in &mut self.nodes {
            node.reconnect_clients();
            node.peer_relay.iter().for_each(|relay| relay.weather().clear());
            if node.is_paused() {
                node.resume()?;
            }
            if node.process().is_none() {
                node.start()?;
            }
        }
        for node in &mut self.nodes {
            node.ready().await?;
        }
        Ok(())
    }

    /// Ends all of them in order.
    ///
    /// # Errors
    /// If one does not end well; the others have ended.
    pub async fn terminate(&mut self) -> Result<(), ClusterError> {
        let mut first_failure = Ok(());
        for node in self.nodes.iter_mut().filter(|node| node.process().is_some()) {
            let ended = node.terminate().await.map(drop);
            first_failure = first_failure.and(ended);
        }
        first_failure
    }
}

fn system(broker: BrokerId, what: &'static str) -> impl Fn(io::Error) -> ClusterError {
    move |source| ClusterError::System { broker, what, source }
}

/// A loopback address whose UDP port is free now.
fn free_udp_address(host: Ipv4Addr) -> io::Result<SocketAddr> {
    UdpSocket::bind((host, 0))?.local_addr()
}

/// A loopback address whose TCP port is free now.
fn free_tcp_address() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

/// Asks the broker's admin server.
async fn is_ready(admin: SocketAddr) -> bool {
    let answer = timeout(ANSWER_TIME_MAX, get(admin, "/readyz")).await;
    answer.is_ok_and(|answer| answer.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200")))
}

/// Gets a page of an admin server, with what comes before it.
async fn get(admin: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(admin).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
