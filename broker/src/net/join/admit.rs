//! The cluster's side of a join: few at a time, redeemed before anything is signed.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use prost::Message;
use quinn::{Connection, RecvStream};
use quire_protocol::rpc::PROTOCOL_VERSION;
use quire_protocol::rpc::join::{Admission, JoinRequest, JoinResponse, Refusal, Seed, join_response};
use quire_protocol::{BrokerId, ErrorCode, limits};
use rustls_pki_types::ServerName;
use tokio::time::timeout;

use super::super::authority::PublicKey;
use super::super::certificates::administrator;
use super::super::connection::close_code;
use super::super::peers::tls::broker_subject;
use super::super::seal::{self, SealKey, UnsealError};
use super::token::{self, Fingerprint};

/// What a join needs of the cluster's metadata.
pub(crate) trait JoinBook: fmt::Debug + Send + Sync + 'static {
    /// The cluster's authority, sealed.
    fn authority(&self) -> Option<Arc<[u8]>>;

    /// Redeems a secret, told by its hash, for who is told by the other. Answers the same one the same again.
    fn redeem(&self, hash: [u8; 32], redeemer: [u8; 32])
    -> BoxFuture<'static, Result<BrokerId, NotRedeemed>>;

    /// Where the cluster's brokers are reached by others.
    fn seeds(&self) -> Vec<Seed>;
}

/// A secret was not redeemed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotRedeemed {
    #[error("the token has expired; make a new one with 'quire cluster token'")]
    Expired,
    #[error("the token was used by another broker; make a new one with 'quire cluster token'")]
    Used,
    #[error(
        "the cluster knows no such token: it was mistyped, or forgotten after it expired; make a new one with 'quire cluster token'"
    )]
    Unknown,
    #[error("the cluster can not take a broker now: {0}; try again")]
    Unavailable(String),
}

/// Admits brokers to the cluster.
#[derive(Debug)]
pub(crate) struct Gate {
    cluster_id: String,
    fingerprint: Fingerprint,
    seal_key: Option<SealKey>,
    book: Arc<dyn JoinBook>,
    budget: Mutex<Budget>,
}

/// How many may ask: some at once, then one an interval. Guessing a secret is hopeless anyway; this bounds what asking
/// costs the cluster's metadata.
#[derive(Debug)]
struct Budget {
    left: u32,
    since: Instant,
}

impl Budget {
    fn new(now: Instant) -> Budget {
        Budget { left: limits::JOINS_AT_ONCE, since: now }
    }

    fn take(&mut self, now: Instant) -> bool {
        let intervals = now.duration_since(self.since).as_nanos() / limits::JOIN_INTERVAL.as_nanos();
        let earned = u32::try_from(intervals).unwrap_or(u32::MAX);
        self.left = self.left.saturating_add(earned).min(limits::JOINS_AT_ONCE);
        self.since = match self.left {
            limits::JOINS_AT_ONCE => now,
            _ => self.since + limits::JOIN_INTERVAL * earned,
        };
        let is_allowed = self.left > 0;
        self.left -= u32::from(is_allowed);
        is_allowed
    }
}

impl Gate {
    pub(crate) fn new(
        cluster_id: String,
        fingerprint: Fingerprint,
        seal_key: Option<SealKey>,
        book: Arc<dyn JoinBook>,
    ) -> Gate {
        Gate { cluster_id, fingerprint, seal_key, book, budget: Mutex::new(Budget::new(Instant::now())) }
    }

    /// The cluster's authority, as tokens name it.
    pub(crate) fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Serves a connection of a broker that wants to join.
    pub(crate) async fn serve(&self, connection: Connection) {
        let served = timeout(limits::JOIN_TIME_MAX, self.answer(&connection)).await;
        if served.is_err() {
            connection.close(close_code(ErrorCode::TimedOut), b"it took too long");
        }
        // The joiner closes once it has read the answer; it has a moment for that.
        let _ = timeout(Duration::from_secs(1), connection.closed()).await;
        connection.close(close_code(ErrorCode::TimedOut), b"answered");
    }

    async fn answer(&self, connection: &Connection) {
        let address = connection.remote_address();
        let Ok((mut send, mut recv)) = connection.accept_bi().await else { return };
        let admitted = match read(&mut recv).await {
            Ok(request) => self.admit(request).await,
            Err(why) => Err(refuse(ErrorCode::InvalidRequest, why)),
        };
        match &admitted {
            Ok(admission) => {
                tracing::info!(%address, broker = admission.broker_id, "a broker joins the cluster")
            }
            Err(refusal) => {
                tracing::warn!(%address, why = refusal.message, "a broker was not let into the cluster")
            }
        }
        let result = match admitted {
            Ok(admission) => join_response::Result::Admission(admission),
            Err(refusal) => join_response::Result::Refusal(refusal),
        };
        let _ = send.write_all(&frame(&JoinResponse { result: Some(result) })).await;
        let _ = send.finish();
    }

    async fn admit(&self, request: JoinRequest) -> Result<Admission, Refusal> {
        if !self.budget.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now()) {
            let message = "too many brokers ask to join; try again in a moment";
            return Err(refuse(ErrorCode::LimitExceeded, message));
        }
        if request.version_min > PROTOCOL_VERSION || request.version_max < PROTOCOL_VERSION {
            let message = format!(
                "the cluster speaks protocol version {PROTOCOL_VERSION}, the joining broker {} to {}",
                request.version_min, request.version_max
            );
            return Err(refuse(ErrorCode::UnsupportedVersion, message));
        }
        let malformed = |what: &str| refuse(ErrorCode::InvalidRequest, what);
        let key = PublicKey::from_bytes(&request.broker_key).ok_or_else(|| malformed("no key to certify"))?;
        let client =
            PublicKey::from_bytes(&request.client_key).ok_or_else(|| malformed("no key to certify"))?;
        check_names(&request.names).map_err(|why| refuse(ErrorCode::InvalidRequest, why))?;
        // Whoever can not sign must not use up the secret.
        let unable =
            |error: UnsealError| refuse(ErrorCode::Unavailable, format!("{error}; join at another broker"));
        let not_founded = || refuse(ErrorCode::Unavailable, "the cluster is not founded yet; try again");
        let sealed = self.book.authority().ok_or_else(not_founded)?;
        let (seal_key, cluster_id) = (self.seal_key.clone(), self.cluster_id.clone());
        let unsealed =
            tokio::task::spawn_blocking(move || seal::unseal(&sealed, seal_key.as_ref(), &cluster_id));
        let authority = unsealed.await.map_err(|error| refuse(ErrorCode::Internal, error.to_string()))?;
        let authority = authority.map_err(unable)?;

        let redeemer = *blake3::hash(key.as_bytes()).as_bytes();
        let redeemed = self.book.redeem(token::hash(&request.secret), redeemer).await;
        let broker = redeemed.map_err(|error| {
            let code = match error {
                NotRedeemed::Unavailable(_) => ErrorCode::Unavailable,
                _ => ErrorCode::NotAuthorized,
            };
            refuse(code, error.to_string())
        })?;
        let failed = |error: rcgen::Error| refuse(ErrorCode::Internal, error.to_string());
        let subject = broker_subject(broker, &request.names);
        Ok(Admission {
            cluster_id: self.cluster_id.clone(),
            broker_id: broker.0,
            broker_certificate_pem: authority.sign(&subject, &key).map_err(failed)?,
            client_certificate_pem: authority.sign(&administrator(), &client).map_err(failed)?,
            authority_pem: authority.pem,
            seal_key: match &self.seal_key {
                Some(SealKey::Held(key)) if request.is_controller => key.to_vec(),
                _ => Vec::new(),
            },
            seeds: self.book.seeds(),
        })
    }
}

/// Refuses names that no certificate can have.
pub(crate) fn check_names(names: &[String]) -> Result<(), String> {
    if names.len() > limits::CERTIFICATE_NAMES_MAX {
        return Err(format!(
            "{} names; at most {} are certified",
            names.len(),
            limits::CERTIFICATE_NAMES_MAX
        ));
    }
    let is_certifiable =
        |name: &String| ServerName::try_from(name.strip_prefix("*.").unwrap_or(name)).is_ok();
    match names.iter().find(|name| !is_certifiable(name)) {
        Some(name) => Err(format!("\"{}\" is no host name or address", name.escape_default())),
        None => Ok(()),
    }
}

fn refuse(code: ErrorCode, message: impl Into<String>) -> Refusal {
    Refusal { code: code.number().into(), message: message.into() }
}

async fn read(recv: &mut RecvStream) -> Result<JoinRequest, String> {
    let bytes = read_frame(recv).await?;
    // Every name costs the sender two bytes, and this side a whole string: there are few in so many bytes.
    JoinRequest::decode(&bytes[..]).map_err(|error| format!("the request is malformed: {error}"))
}

/// Reads a message behind its length.
pub(super) async fn read_frame(recv: &mut RecvStream) -> Result<Vec<u8>, String> {
    let mut length = [0; 4];
    recv.read_exact(&mut length).await.map_err(|error| error.to_string())?;
    let length = u32::from_le_bytes(length) as usize;
    if length > limits::JOIN_BYTES_MAX {
        return Err(format!("a message of {length} bytes exceeds the limit of {}", limits::JOIN_BYTES_MAX));
    }
    let mut bytes = vec![0; length];
    recv.read_exact(&mut bytes).await.map_err(|error| error.to_string())?;
    Ok(bytes)
}

/// A message behind its length.
pub(super) fn frame(message: &impl Message) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4 + message.encoded_len());
    bytes.extend_from_slice(&(message.encoded_len() as u32).to_le_bytes());
    message.encode(&mut bytes).expect("a vector grows as needed");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_may_ask_at_once_and_then_one_an_interval() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let taken = |budget: &mut Budget, now| (0..100).filter(|_| budget.take(now)).count();
        assert_eq!(taken(&mut budget, start), limits::JOINS_AT_ONCE as usize);
        assert_eq!(taken(&mut budget, start + limits::JOIN_INTERVAL / 2), 0);
        assert_eq!(taken(&mut budget, start + limits::JOIN_INTERVAL), 1);
        assert_eq!(taken(&mut budget, start + limits::JOIN_INTERVAL * 5 / 2), 1);
        assert_eq!(taken(&mut budget, start + limits::JOIN_INTERVAL * 3), 1, "halves are kept");
        assert_eq!(taken(&mut budget, start + limits::JOIN_INTERVAL * 1000), limits::JOINS_AT_ONCE as usize);
    }

    #[test]
    fn names_that_no_certificate_can_have_are_refused() {
        let names = |names: &[&str]| check_names(&names.iter().map(|n| n.to_string()).collect::<Vec<_>>());
        assert_eq!(names(&["localhost", "10.0.0.1", "*.log.example"]), Ok(()));
        assert!(names(&["no spaces"]).is_err());
        assert!(names(&["a"; 65]).is_err());
    }
}
