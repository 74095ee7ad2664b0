//! Calling one broker in one lane: connects when it is used, one attempt at a time, and pauses after failures.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, VarInt};
use quire_protocol::rpc::PROTOCOL_VERSION;
use quire_protocol::rpc::peer::{self, HelloRequest, HelloResponse, request, response};
use quire_protocol::{BrokerId, limits, window};
use tokio::net::lookup_host;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::lane::Lane;
use super::tls::{PeerIdentity, Revoked, broker_name};
use super::{PeerError, Shared, message};
use crate::identity::random;

/// A name may stand for more addresses; so many are tried.
const ADDRESSES_TRIED: usize = 4;

/// Calling one broker in one lane.
pub(super) struct Link {
    broker: BrokerId,
    lane: Lane,
    phase: watch::Sender<Phase>,
}

#[derive(Debug, Clone)]
enum Phase {
    /// Not used yet, or to be tried at once.
    Idle { failures: u32 },
    /// One attempt is under way.
    Connecting,
    /// Usable, unless it was closed since.
    Connected(Connection),
    /// Tried again not before `until`.
    Pausing { failures: u32, until: Instant, why: Arc<str> },
}

impl Link {
    pub(super) fn new(broker: BrokerId, lane: Lane) -> Link {
        Link { broker, lane, phase: watch::Sender::new(Phase::Idle { failures: 0 }) }
    }

    /// A connection that worked a moment ago, made now if there is none.
    ///
    /// # Errors
    /// If it can not be made, or could not be and it is too early to try again.
    pub(super) async fn connection(self: &Arc<Link>, shared: &Arc<Shared>) -> Result<Connection, PeerError> {
        let mut phases = self.phase.subscribe();
        loop {
            if let Some(failures) = self.begin(Instant::now()) {
                self.spawn_attempt(shared, failures);
            }
            match phases.borrow_and_update().clone() {
                Phase::Connected(connection) => return Ok(connection),
                Phase::Pausing { why, .. } => {
                    return Err(PeerError::Unreachable { broker: self.broker, why: why.to_string() });
                }
                Phase::Idle { .. } | Phase::Connecting => {}
            }
            let _ = phases.changed().await;
        }
    }

    /// Decides whether to connect now; the failures so far, if so.
    fn begin(&self, now: Instant) -> Option<u32> {
        let mut begun = None;
        self.phase.send_if_modified(|phase| {
            begun = match phase {
                Phase::Connected(connection) => connection.close_reason().map(|_| 0),
                Phase::Idle { failures } => Some(*failures),
                Phase::Pausing { failures, until, .. } => (now >= *until).then_some(*failures),
                Phase::Connecting => None,
            };
            if begun.is_some() {
                *phase = Phase::Connecting;
            }
            begun.is_some()
        });
        begun
    }

    /// The attempt outlives whoever asked for it first, and is driven by its lane's runtime.
    fn spawn_attempt(self: &Arc<Link>, shared: &Arc<Shared>, failures: u32) {
        let (link, shared) = (Arc::clone(self), Arc::clone(shared));
        let runtime = match self.lane {
            Lane::Control => shared.control.clone(),
            Lane::Data => shared.data.clone(),
        };
        runtime.spawn(async move {
            let attempt = timeout(limits::PEER_CONNECT_TIME_MAX, link.connect(&shared)).await;
            let next = match attempt.unwrap_or_else(|_| Err("it does not answer".to_owned())) {
                Ok(connection) => {
                    tracing::debug!(broker = link.broker.0, lane = ?link.lane, "connected to a broker");
                    Phase::Connected(connection)
                }
                Err(why) => {
                    // Told once, not at each of the attempts that follow.
                    if failures == 0 {
                        tracing::info!(broker = link.broker.0, lane = ?link.lane, why, "can not connect to a broker");
                    }
                    let until = Instant::now() + pause(failures, u64::from_le_bytes(random()));
                    Phase::Pausing { failures: failures.saturating_add(1), until, why: why.into() }
                }
            };
            link.phase.send_replace(next);
        });
    }

    async fn connect(&self, shared: &Shared) -> Result<Connection, String> {
        let address = shared.address_of(self.broker).ok_or("its address is not known")?;
        let found = lookup_host((address.host.as_str(), address.port));
        let found = found.await.map_err(|error| format!("{address} can not be looked up: {error}"))?;
        let mut why = format!("{address} has no address that can be reached from {}", shared.address);
        let family = |found: &SocketAddr| found.is_ipv4() == shared.address.is_ipv4();
        for found in found.filter(family).take(ADDRESSES_TRIED) {
            match self.connect_to(shared, found).await {
                Ok(connection) => return Ok(connection),
                Err(error) => why = format!("{found}: {error}"),
            }
        }
        Err(why)
    }

    async fn connect_to(&self, shared: &Shared, address: SocketAddr) -> Result<Connection, String> {
        let endpoint = match self.lane {
            Lane::Control => &shared.control_calls,
            Lane::Data => &shared.data_calls,
        };
        let config = self.lane.client_config(Arc::clone(&shared.tls.client));
        let connecting = endpoint.connect_with(config, address, &broker_name(self.broker));
        let connection =
            connecting.map_err(|error| error.to_string())?.await.map_err(|error| error.to_string())?;
        connection.set_send_window(window::send_window_bytes(connection.rtt()));
        self.greet(shared, &connection).await.inspect_err(|_| {
            connection.close(VarInt::from_u32(0), b"the hello exchange failed");
        })?;
        Ok(connection)
    }

    async fn greet(&self, shared: &Shared, connection: &Connection) -> Result<(), String> {
        let hello = HelloRequest {
            version_min: PROTOCOL_VERSION,
            version_max: PROTOCOL_VERSION,
            features: 0,
            cluster_id: shared.cluster_id.to_string(),
            lane: self.lane.number(),
            software_version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let hello = message::encode(&peer::Request { body: Some(request::Body::Hello(hello)) });
        let hello = hello.map_err(|error| error.to_string())?;
        let (mut send, mut recv) = connection.open_bi().await.map_err(|error| error.to_string())?;
        match message::exchange(&mut send, &mut recv, hello).await? {
            response::Body::Hello(answer) => self.check(shared, &answer),
            response::Body::Failure(failure) => Err(format!("{}: {}", failure.error_code(), failure.message)),
            _ => Err("it did not answer hello".to_owned()),
        }
    }

    fn check(&self, shared: &Shared, answer: &HelloResponse) -> Result<(), String> {
        if answer.cluster_id != *shared.cluster_id {
            return Err(format!("it belongs to cluster {}", answer.cluster_id));
        }
        if answer.broker_id != self.broker.0 {
            return Err(format!("it is broker {}", answer.broker_id));
        }
        match answer.version == PROTOCOL_VERSION {
            true => Ok(()),
            false => Err(format!("it speaks version {} of the protocol between brokers", answer.version)),
        }
    }

    /// Forgets a pause: something changed that may have been the reason.
    pub(super) fn retry_now(&self) {
        self.phase.send_if_modified(|phase| match phase {
            Phase::Pausing { .. } => {
                *phase = Phase::Idle { failures: 0 };
                true
            }
            _ => false,
        });
    }

    pub(super) fn close(&self, code: VarInt, why: &[u8]) {
        if let Phase::Connected(connection) = &*self.phase.borrow() {
            connection.close(code, why);
        }
    }

    pub(super) fn close_if_revoked(&self, revoked: &Revoked) {
        let Phase::Connected(connection) = self.phase.borrow().clone() else { return };
        let identity = PeerIdentity::of_connection(&connection);
        if identity.is_none_or(|identity| revoked.contains(&identity.serial)) {
            connection.close(VarInt::from_u32(0), b"the certificate is revoked");
        }
    }
}

/// How long to wait after so many failures: doubling, and anywhere between half and the whole, so that brokers that lost
/// the same one do not all come back at once.
fn pause(failures: u32, dice: u64) -> Duration {
    let longest = limits::PEER_RETRY_PAUSE_MAX;
    let whole =
        limits::PEER_RETRY_PAUSE_MIN.checked_mul(1 << failures.min(16)).unwrap_or(longest).min(longest);
    let half = whole / 2;
    half + Duration::from_nanos(dice % (half.as_nanos() as u64 + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_doubles_up_to_the_longest_and_is_spread() {
        for (failures, whole_ms) in [(0, 50), (1, 100), (4, 800), (5, 1000), (60, 1000)] {
            let whole = Duration::from_millis(whole_ms);
            for dice in [0, 1, u64::MAX, 0x5555_5555_5555_5555] {
                let paused = pause(failures, dice);
                assert!(paused >= whole / 2 && paused <= whole, "{failures} failures: {paused:?}");
            }
            assert_ne!(pause(failures, 1), pause(failures, 2_000_000));
        }
    }
}
