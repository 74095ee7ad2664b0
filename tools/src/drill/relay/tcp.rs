//! The relay for byte streams. A stream hides loss, duplication and order, so that only delay, damage and cuts are felt: what
//! is cut waits, as it would behind a cable that was pulled, and goes on when the cut ends.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::sleep;

use super::{Conditions, Decider, Direction, SENDERS_MAX, Weather, flip};
use crate::bench::random::hash;

/// Bytes that one direction of a connection holds at most.
const CHUNK_BYTES: usize = 16 * 1024;

/// A relay in front of one TCP address. Ends when dropped, with every connection.
#[derive(Debug)]
pub struct TcpRelay {
    address: SocketAddr,
    weather: Weather,
    running: JoinHandle<()>,
}

impl TcpRelay {
    /// Starts a relay to `target`, on a free port of loopback.
    ///
    /// # Errors
    /// If the system gives no socket.
    pub async fn start(target: SocketAddr, seed: u64) -> io::Result<TcpRelay> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let weather = Weather::default();
        let running = tokio::spawn(accept(listener, target, seed, weather.clone()));
        Ok(TcpRelay { address, weather, running })
    }

    /// Where to connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What passes, and how. Connections are known by the address they come from.
    pub fn weather(&self) -> &Weather {
        &self.weather
    }
}

impl Drop for TcpRelay {
    fn drop(&mut self) {
        self.running.abort();
    }
}

async fn accept(listener: TcpListener, target: SocketAddr, seed: u64, weather: Weather) {
    let mut connections = JoinSet::new();
    let mut accepted = 0;
    loop {
        tokio::select! {
            Some(_) = connections.join_next() => {}
            connection = listener.accept(), if connections.len() < SENDERS_MAX => {
                let Ok((stream, from)) = connection else { continue };
                connections.spawn(carry(stream, from, target, hash(seed, accepted), weather.clone()));
                accepted += 1;
            }
        }
    }
}

/// Until both sides have ended, or one is lost.
async fn carry(stream: TcpStream, from: SocketAddr, target: SocketAddr, seed: u64, weather: Weather) {
    weather.open(from, Direction::ToTarget).await;
    // A target that is away shows as a connection that is closed.
    let Ok(onwards) = TcpStream::connect(target).await else { return };
    let ((near_read, near_write), (far_read, far_write)) = (stream.into_split(), onwards.into_split());
    let there = Lane {
        weather: weather.clone(),
        from,
        direction: Direction::ToTarget,
        decider: Decider::new(hash(seed, 0)),
    };
    let back = Lane { weather, from, direction: Direction::FromTarget, decider: Decider::new(hash(seed, 1)) };
    // Whichever side fails first, the other is closed by that.
    let _ = tokio::try_join!(there.run(near_read, far_write), back.run(far_read, near_write));
}

/// One direction of a connection.
struct Lane {
    weather: Weather,
    from: SocketAddr,
    direction: Direction,
    decider: Decider,
}

impl Lane {
    async fn run(mut self, mut reader: OwnedReadHalf, mut writer: OwnedWriteHalf) -> io::Result<()> {
        let mut buffer = vec![0; CHUNK_BYTES];
        loop {
            let len = reader.read(&mut buffer).await?;
            let conditions = self.weather.open(self.from, self.direction).await;
            if len == 0 {
                return writer.shutdown().await;
            }
            // What a stream would hide is no decision here.
            let felt = Conditions { loss: 0.0, duplication: 0.0, reordering: 0.0, ..conditions };
            for copy in self.decider.decide(&felt) {
                sleep(copy.after).await;
                copy.flipped_bit.into_iter().for_each(|bit| flip(&mut buffer[..len], bit));
                // A cut that came meanwhile holds for what is late, too.
                self.weather.open(self.from, self.direction).await;
                writer.write_all(&buffer[..len]).await?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use tokio::time::timeout;

    const SOON: Duration = Duration::from_secs(5);
    const A_WHILE: Duration = Duration::from_millis(100);

    async fn pair() -> (TcpRelay, TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a socket");
        let relay = TcpRelay::start(listener.local_addr().expect("bound"), 7).await.expect("a socket");
        let near = TcpStream::connect(relay.address()).await.expect("the relay listens");
        let (far, _) = timeout(SOON, listener.accept()).await.expect("it comes").expect("loopback");
        (relay, near, far)
    }

    #[tokio::test]
    async fn bytes_pass_both_ways_and_ends_are_ends() {
        let (_relay, mut near, mut far) = pair().await;
        let long: Vec<u8> = (0..100_000u32).map(|number| number as u8).collect();
        let (sent, got) = tokio::join!(
            async {
                near.write_all(&long).await.expect("it is read");
                near.shutdown().await
            },
            async {
                let mut got = Vec::new();
                far.read_to_end(&mut got).await.expect("it ends");
                got
            }
        );
        sent.expect("loopback");
        assert_eq!(got, long);
        far.write_all(b"answer").await.expect("the other way is open");
        drop(far);
        let mut answer = String::new();
        timeout(SOON, near.read_to_string(&mut answer)).await.expect("it ends").expect("text");
        assert_eq!(answer, "answer");
    }

    #[tokio::test]
    async fn what_is_cut_waits_and_goes_on() {
        let (relay, mut near, mut far) = pair().await;
        relay.weather().cut();
        near.write_all(b"late").await.expect("the relay's system takes it");
        let mut buffer = [0; 4];
        assert!(timeout(A_WHILE, far.read_exact(&mut buffer)).await.is_err());
        relay.weather().clear();
        timeout(SOON, far.read_exact(&mut buffer)).await.expect("it comes").expect("loopback");
        assert_eq!(&buffer, b"late");
    }

    #[tokio::test]
    async fn damage_is_one_bit_and_loss_is_not_felt() {
        let (relay, mut near, mut far) = pair().await;
        let conditions = Conditions { loss: 1.0, duplication: 1.0, corruption: 1.0, ..Conditions::default() };
        relay.weather().set(Direction::ToTarget, conditions);
        near.write_all(b"word").await.expect("it is read");
        near.shutdown().await.expect("loopback");
        let mut got = Vec::new();
        timeout(SOON, far.read_to_end(&mut got)).await.expect("it ends").expect("loopback");
        let flipped: u32 = got.iter().zip(b"word").map(|(a, b)| (a ^ b).count_ones()).sum();
        assert_eq!((got.len(), flipped), (4, 1));
    }
}
