//! The log's messages over the brokers' control connections.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use quire_protocol::rpc::peer::{request, response};

use super::network::{Transport, TransportError};
use super::types::Member;
use crate::config::HostPort;
use crate::net::peers::{PeerError, Peers};

/// Calls the brokers of the log's nodes.
#[derive(Debug, Clone)]
pub(crate) struct PeerTransport {
    peers: Peers,
}

impl PeerTransport {
    pub(crate) fn new(peers: Peers) -> PeerTransport {
        PeerTransport { peers }
    }
}

impl Transport for PeerTransport {
    fn call(
        &self,
        to: &Member,
        request: Bytes,
        time: Duration,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>> {
        let (peers, to) = (self.peers.clone(), to.clone());
        Box::pin(async move {
            let call = |request| peers.call(to.broker, request::Body::Raft(request), time);
            let answer = match call(request.clone()).await {
                // The image, which has the newer address, may not know it yet: its registration comes by this log.
                Err(PeerError::Unknown(_)) => {
                    peers.set_address(to.broker, HostPort { host: to.host.clone(), port: to.port });
                    call(request).await
                }
                answer => answer,
            };
            match answer {
                Ok(response::Body::Raft(answer)) => Ok(answer),
                Ok(_) => Err(TransportError::Unanswered("an answer to another question".to_owned())),
                Err(error) if error.is_outcome_unknown() => {
                    Err(TransportError::Unanswered(error.to_string()))
                }
                Err(error) => Err(TransportError::Unreachable(error.to_string())),
            }
        })
    }
}
