//! What a cluster's broker does for the others, with what it knows of the metadata.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use quinn::{RecvStream, SendStream};
use quire_engine::controller::{Refusal, Request, Response};
use quire_protocol::rpc::join::Seed;
use quire_protocol::rpc::peer::{
    Failure, HeartbeatRequest, HeartbeatResponse, RenewRequest, RenewResponse, request, response,
};
use quire_protocol::stream::StreamKind;
use quire_protocol::{BrokerId, ErrorCode, Timestamp};

use crate::controller::raft::{Heartbeat, HeartbeatAnswer, RaftMetadata};
use crate::controller::{Metadata, ProposeError};
use crate::handlers;
use crate::net::authority::PublicKey;
use crate::net::connection::close_code;
use crate::net::join::admit::{JoinBook, NotRedeemed, check_names};
use crate::net::peers::tls::broker_subject;
use crate::net::peers::{PeerError, PeerService, Peers};
use crate::net::seal::{self, SealKey};
use crate::shard::{Clock, Partitions};

/// Answers other brokers.
pub(super) struct Service {
    pub(super) metadata: RaftMetadata,
    pub(super) signer: Arc<Signer>,
    /// What followers follow; set once the shards run.
    pub(super) partitions: OnceLock<Partitions>,
}

impl PeerService for Service {
    fn serve(&self, from: BrokerId, request: request::Body) -> BoxFuture<'static, response::Body> {
        match request {
            request::Body::Raft(request) => {
                let metadata = self.metadata.clone();
                async move { response::Body::Raft(metadata.serve(request).await) }.boxed()
            }
            request::Body::Heartbeat(request) => {
                let metadata = self.metadata.clone();
                async move { response::Body::Heartbeat(hear(&metadata, from, request).await) }.boxed()
            }
            request::Body::Renew(request) => {
                let signer = Arc::clone(&self.signer);
                async move {
                    match signer.renew(from, request).await {
                        Ok(certificate_pem) => response::Body::Renew(RenewResponse { certificate_pem }),
                        Err(failure) => response::Body::Failure(failure),
                    }
                }
                .boxed()
            }
            request::Body::Hello(_) => {
                let failure = Failure::new(ErrorCode::InvalidRequest, "hello was said before");
                async move { response::Body::Failure(failure) }.boxed()
            }
        }
    }

    fn stream(
        &self,
        from: BrokerId,
        kind: StreamKind,
        mut send: SendStream,
        mut recv: RecvStream,
    ) -> BoxFuture<'static, ()> {
        let code = match (kind, self.partitions.get()) {
            (StreamKind::Replicate, Some(partitions)) => {
                return handlers::replicate::serve(partitions.clone(), from, send, recv).boxed();
            }
            (StreamKind::Replicate, None) => ErrorCode::Unavailable,
            _ => ErrorCode::InvalidRequest,
        };
        let _ = recv.stop(close_code(code));
        let _ = send.reset(close_code(code));
        std::future::ready(()).boxed()
    }
}

async fn hear(metadata: &RaftMetadata, from: BrokerId, request: HeartbeatRequest) -> HeartbeatResponse {
    if metadata.image().is_removed(from) {
        return HeartbeatResponse { is_removed: true, is_stale: true, ..HeartbeatResponse::default() };
    }
    let HeartbeatRequest { broker_epoch, applied, wants_drain } = request;
    let heartbeat = Heartbeat { broker: from, epoch: broker_epoch, applied, wants_drain };
    match metadata.heartbeat(heartbeat).await {
        HeartbeatAnswer::Heard { is_fenced, may_stop } => {
            HeartbeatResponse { is_fenced, may_stop, ..HeartbeatResponse::default() }
        }
        HeartbeatAnswer::Stale => HeartbeatResponse { is_stale: true, ..HeartbeatResponse::default() },
        HeartbeatAnswer::Elsewhere(controller) => HeartbeatResponse {
            is_elsewhere: true,
            controller_id: controller.map_or(0, |broker| broker.0),
            ..HeartbeatResponse::default()
        },
    }
}

/// Signs with the cluster's authority, where this broker can unseal it.
#[derive(Debug)]
pub(super) struct Signer {
    pub(super) cluster_id: String,
    pub(super) metadata: RaftMetadata,
    pub(super) seal_key: Option<SealKey>,
}

impl Signer {
    /// Certifies a new key of a broker that proved who it is.
    pub(super) async fn renew(&self, broker: BrokerId, request: RenewRequest) -> Result<String, Failure> {
        let refuse = |code, message: String| Failure::new(code, message);
        let key = PublicKey::from_bytes(&request.public_key)
            .ok_or_else(|| refuse(ErrorCode::InvalidRequest, "no key to certify".to_owned()))?;
        check_names(&request.names).map_err(|why| refuse(ErrorCode::InvalidRequest, why))?;
        let sealed = self.metadata.image().authority().cloned();
        let sealed = sealed
            .ok_or_else(|| refuse(ErrorCode::Unavailable, "the cluster has no authority yet".to_owned()))?;
        let (seal_key, cluster_id) = (self.seal_key.clone(), self.cluster_id.clone());
        let signing = move || -> Result<String, String> {
            let authority =
                seal::unseal(&sealed, seal_key.as_ref(), &cluster_id).map_err(|e| e.to_string())?;
            authority.sign(&broker_subject(broker, &request.names), &key).map_err(|e| e.to_string())
        };
        let signed = tokio::task::spawn_blocking(signing).await;
        signed
            .unwrap_or_else(|error| Err(error.to_string()))
            .map_err(|why| refuse(ErrorCode::Unavailable, why))
    }
}

/// What joining needs, from the metadata.
#[derive(Debug)]
pub(super) struct Book {
    pub(super) metadata: RaftMetadata,
    pub(super) clock: Arc<dyn Clock>,
}

impl JoinBook for Book {
    fn authority(&self) -> Option<Arc<[u8]>> {
        self.metadata.image().authority().cloned()
    }

    fn redeem(
        &self,
        hash: [u8; 32],
        redeemer: [u8; 32],
    ) -> BoxFuture<'static, Result<BrokerId, NotRedeemed>> {
        let (metadata, now) = (self.metadata.clone(), self.clock.now().timestamp);
        async move {
            match metadata.propose(Request::RedeemToken { hash, redeemer }).await {
                Ok(Response::TokenRedeemed { broker }) => Ok(broker),
                Ok(_) => Err(NotRedeemed::Unavailable("an answer to something else".to_owned())),
                Err(ProposeError::Refused(Refusal::InvalidToken)) => Err(why_invalid(&metadata, hash, now)),
                Err(error) => Err(NotRedeemed::Unavailable(error.to_string())),
            }
        }
        .boxed()
    }

    fn seeds(&self) -> Vec<Seed> {
        let image = self.metadata.image();
        let reachable = image.brokers().filter(|broker| broker.peer_port != 0);
        let seed = reachable.map(|broker| Seed {
            broker_id: broker.id.0,
            host: broker.peer_host.clone(),
            port: broker.peer_port.into(),
        });
        seed.collect()
    }
}

/// Whoever shows the secret of a token may be told what became of it; of others it learns nothing.
fn why_invalid(metadata: &RaftMetadata, hash: [u8; 32], now: Timestamp) -> NotRedeemed {
    let image = metadata.image();
    let known = image.tokens().find(|(known, _)| **known == hash).map(|(_, token)| token);
    match known {
        None => NotRedeemed::Unknown,
        Some(token) if token.expires_at <= now => NotRedeemed::Expired,
        Some(_) => NotRedeemed::Used,
    }
}

/// Asks each broker that may be able to, until one signs.
pub(super) async fn renew_anywhere(
    peers: &Peers,
    brokers: impl IntoIterator<Item = BrokerId>,
    request: &RenewRequest,
    patience: Duration,
) -> Result<String, String> {
    let mut last = "no broker is known".to_owned();
    for broker in brokers {
        match peers.call(broker, request::Body::Renew(request.clone()), patience).await {
            Ok(response::Body::Renew(renewed)) => return Ok(renewed.certificate_pem),
            Ok(_) => last = format!("broker {broker} answered something else"),
            Err(PeerError::Failed { message, .. }) => last = format!("broker {broker}: {message}"),
            Err(error) => last = error.to_string(),
        }
    }
    Err(last)
}
