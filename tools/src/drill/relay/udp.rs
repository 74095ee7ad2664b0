//! The relay for datagrams: each sender gets a socket of its own towards the target, as behind a translated address.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

use super::{Conditions, Decider, Direction, QUEUED_MAX, SENDERS_MAX, Weather, flip};
use crate::bench::random::hash;

/// The largest datagram there is (bytes).
const DATAGRAM_BYTES_MAX: usize = 65_536;
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(1);

/// Where a datagram leaves.
type Onwards = Arc<dyn Fn(&[u8]) + Send + Sync>;

/// A relay in front of one UDP address. Ends when dropped.
#[derive(Debug)]
pub struct UdpRelay {
    address: SocketAddr,
    weather: Weather,
    running: JoinHandle<()>,
}

impl UdpRelay {
    /// Starts a relay to `target`, on a free port of loopback.
    ///
    /// # Errors
    /// If the system gives no socket.
    pub async fn start(target: SocketAddr, seed: u64) -> io::Result<UdpRelay> {
        let socket = Arc::new(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?);
        let address = socket.local_addr()?;
        // Sending without waiting works from the first readiness on.
        socket.writable().await?;
        let weather = Weather::default();
        let relaying =
            Relaying { socket, target, seed, weather: weather.clone(), senders: BTreeMap::new(), known: 0 };
        Ok(UdpRelay { address, weather, running: tokio::spawn(relaying.run()) })
    }

    /// Where to send to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What passes, and how.
    pub fn weather(&self) -> &Weather {
        &self.weather
    }
}

impl Drop for UdpRelay {
    fn drop(&mut self) {
        self.running.abort();
    }
}

struct Relaying {
    socket: Arc<UdpSocket>,
    target: SocketAddr,
    seed: u64,
    weather: Weather,
    senders: BTreeMap<SocketAddr, Sender>,
    /// Senders so far: the seed of the next one's decisions.
    known: u64,
}

/// One sender's way there; its way back runs by itself.
struct Sender {
    to_target: Lane,
    last_heard: Instant,
    /// Dropped with it.
    _tasks: JoinSet<()>,
}

impl Relaying {
    async fn run(mut self) {
        let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
        loop {
            // An error here is that of a datagram sent before, to an address where nobody is.
            let Ok((len, from)) = self.socket.recv_from(&mut buffer).await else {
                tokio::time::sleep(PAUSE_AFTER_ERROR).await;
                continue;
            };
            let conditions = self.weather.of(from, Direction::ToTarget);
            match self.sender(from).await {
                Ok(sender) => sender.to_target.pass(&buffer[..len], &conditions),
                Err(error) => tracing::warn!(%error, %from, "no socket for a sender: its datagram is lost"),
            }
        }
    }

    async fn sender(&mut self, from: SocketAddr) -> io::Result<&mut Sender> {
        if !self.senders.contains_key(&from) {
            let sender = self.new_sender(from).await?;
            self.make_room();
            self.senders.insert(from, sender);
        }
        let sender = self.senders.get_mut(&from).expect("it is there, or was just added");
        sender.last_heard = Instant::now();
        Ok(sender)
    }

    async fn new_sender(&mut self, from: SocketAddr) -> io::Result<Sender> {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        socket.connect(self.target).await?;
        socket.writable().await?;
        let socket = Arc::new(socket);
        let seed = hash(self.seed, self.known);
        self.known += 1;
        let mut tasks = JoinSet::new();
        let to_target = Lane::new(Decider::new(hash(seed, 0)), &mut tasks, {
            let socket = Arc::clone(&socket);
            move |bytes| drop(socket.try_send(bytes))
        });
        let mut from_target = Lane::new(Decider::new(hash(seed, 1)), &mut tasks, {
            let socket = Arc::clone(&self.socket);
            move |bytes| drop(socket.try_send_to(bytes, from))
        });
        let weather = self.weather.clone();
        tasks.spawn(async move {
            let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
            loop {
                match socket.recv(&mut buffer).await {
                    Ok(len) => {
                        from_target.pass(&buffer[..len], &weather.of(from, Direction::FromTarget));
                    }
                    // Nobody is there at the moment: a broker that was killed comes back.
                    Err(_) => tokio::time::sleep(PAUSE_AFTER_ERROR).await,
                }
            }
        });
        Ok(Sender { to_target, last_heard: Instant::now(), _tasks: tasks })
    }

    fn make_room(&mut self) {
        if self.senders.len() < SENDERS_MAX {
            return;
        }
        let silent = self.senders.iter().min_by_key(|(_, sender)| sender.last_heard).map(|(from, _)| *from);
        silent.and_then(|from| self.senders.remove(&from));
    }
}

/// One direction of one sender. A datagram that is not late leaves at once; a full socket loses it, as a network does.
struct Lane {
    decider: Decider,
    send: Onwards,
    late: mpsc::Sender<(Instant, Vec<u8>)>,
}

impl Lane {
    fn new(decider: Decider, tasks: &mut JoinSet<()>, send: impl Fn(&[u8]) + Send + Sync + 'static) -> Lane {
        let send: Onwards = Arc::new(send);
        let (late, queue) = mpsc::channel(QUEUED_MAX);
        tasks.spawn(deliver_late(queue, Arc::clone(&send)));
        Lane { decider, send, late }
    }

    fn pass(&mut self, bytes: &[u8], conditions: &Conditions) {
        for copy in self.decider.decide(conditions) {
            if copy.after.is_zero() && copy.flipped_bit.is_none() {
                (self.send)(bytes);
                continue;
            }
            let mut bytes = bytes.to_vec();
            copy.flipped_bit.into_iter().for_each(|bit| flip(&mut bytes, bit));
            // A full queue loses it.
            let _ = self.late.try_send((Instant::now() + copy.after, bytes));
        }
    }
}

/// Sends each datagram when it is due; those that are due together in the order in which they came.
async fn deliver_late(mut queue: mpsc::Receiver<(Instant, Vec<u8>)>, send: Onwards) {
    let mut waiting: BinaryHeap<Reverse<(Instant, u64, Vec<u8>)>> = BinaryHeap::new();
    let mut arrived = 0;
    loop {
        let due = waiting.peek().map(|Reverse((due, ..))| *due);
        tokio::select! {
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                if let Some(Reverse((_, _, bytes))) = waiting.pop() {
                    send(&bytes);
                }
            }
            late = queue.recv(), if waiting.len() < QUEUED_MAX => {
                let Some((due, bytes)) = late else { return };
                waiting.push(Reverse((due, arrived, bytes)));
                arrived += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::timeout;

    const SOON: Duration = Duration::from_secs(5);
    /// Long enough for a datagram on loopback to have come if it comes.
    const A_WHILE: Duration = Duration::from_millis(100);

    struct Pair {
        relay: UdpRelay,
        near: UdpSocket,
        far: UdpSocket,
        /// Where the far end sees the near one.
        near_from_far: SocketAddr,
    }

    async fn pair() -> Pair {
        let far = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        let relay = UdpRelay::start(far.local_addr().expect("bound"), 7).await.expect("a socket");
        let near = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        near.connect(relay.address()).await.expect("loopback");
        near.send(b"hello").await.expect("loopback");
        let mut buffer = [0; 100];
        let (_, near_from_far) =
            timeout(SOON, far.recv_from(&mut buffer)).await.expect("it comes").expect("loopback");
        Pair { relay, near, far, near_from_far }
    }

    impl Pair {
        async fn there(&self, bytes: &[u8]) {
            self.near.send(bytes).await.expect("loopback");
        }

        async fn back(&self, bytes: &[u8]) {
            self.far.send_to(bytes, self.near_from_far).await.expect("loopback");
        }
    }

    async fn received(socket: &UdpSocket, within: Duration) -> Option<Vec<u8>> {
        let mut buffer = [0; 100];
        let len = timeout(within, socket.recv(&mut buffer)).await.ok()?.expect("loopback");
        Some(buffer[..len].to_vec())
    }

    #[tokio::test]
    async fn datagrams_pass_both_ways() {
        let pair = pair().await;
        pair.there(b"one").await;
        assert_eq!(received(&pair.far, SOON).await.as_deref(), Some(&b"one"[..]));
        pair.back(b"two").await;
        assert_eq!(received(&pair.near, SOON).await.as_deref(), Some(&b"two"[..]));
    }

    #[tokio::test]
    async fn a_cut_has_one_direction_or_two_and_ends() {
        let pair = pair().await;
        pair.relay.weather().set(Direction::FromTarget, Conditions::CUT);
        pair.back(b"lost").await;
        pair.there(b"passes").await;
        assert_eq!(received(&pair.far, SOON).await.as_deref(), Some(&b"passes"[..]));
        assert_eq!(received(&pair.near, A_WHILE).await, None);
        pair.relay.weather().cut();
        pair.there(b"lost").await;
        assert_eq!(received(&pair.far, A_WHILE).await, None);
        pair.relay.weather().clear();
        pair.there(b"again").await;
        assert_eq!(received(&pair.far, SOON).await.as_deref(), Some(&b"again"[..]));
    }

    #[tokio::test]
    async fn one_sender_can_be_cut_off_alone() {
        let pair = pair().await;
        let near = pair.near.local_addr().expect("bound");
        pair.relay.weather().set_of(near, Direction::ToTarget, Conditions::CUT);
        pair.there(b"lost").await;
        let other = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        other.send_to(b"passes", pair.relay.address()).await.expect("loopback");
        assert_eq!(received(&pair.far, SOON).await.as_deref(), Some(&b"passes"[..]));
        assert_eq!(received(&pair.far, A_WHILE).await, None);
    }

    #[tokio::test]
    async fn what_is_late_twice_or_damaged_arrives_so() {
        let pair = pair().await;
        let delay = Duration::from_millis(50);
        pair.relay.weather().set(
            Direction::ToTarget,
            Conditions { delay, duplication: 1.0, corruption: 1.0, ..Conditions::default() },
        );
        let sent = Instant::now();
        pair.there(b"word").await;
        for _ in 0..2 {
            let bytes = received(&pair.far, SOON).await.expect("it comes twice");
            let flipped: u32 = bytes.iter().zip(b"word").map(|(a, b)| (a ^ b).count_ones()).sum();
            assert_eq!((bytes.len(), flipped), (4, 1));
        }
        assert!(sent.elapsed() >= delay);
        assert_eq!(received(&pair.far, A_WHILE).await, None);
    }

    #[tokio::test]
    async fn what_comes_later_may_arrive_sooner() {
        let pair = pair().await;
        let conditions = Conditions { reordering: 0.5, ..Conditions::default() };
        pair.relay.weather().set(Direction::ToTarget, conditions);
        for number in 0..50u8 {
            pair.there(&[number]).await;
        }
        let mut arrived = Vec::new();
        for _ in 0..50 {
            arrived.extend(received(&pair.far, SOON).await.expect("all of them come"));
        }
        assert!(!arrived.is_sorted(), "some are overtaken");
        arrived.sort_unstable();
        assert_eq!(arrived, (0..50).collect::<Vec<u8>>());
    }
}
