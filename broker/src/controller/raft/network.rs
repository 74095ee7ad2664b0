//! The log's messages on their way to other nodes: one call each, with a deadline, over whatever carries them.

use std::fmt::Debug;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, VoteRequest,
    VoteResponse,
};
use openraft::{RaftNetworkFactory, RaftNetworkV2};
use prost::Message;
use quire_protocol::limits;
use quire_protocol::rpc::raft as wire;

use super::types::{Member, Snapshot, Types, Vote};
use super::wire as convert;

/// Carries a request to another node and its answer back.
pub trait Transport: Debug + Send + Sync + 'static {
    /// One request, one answer. Ends with an error when `time` is up or the connection is lost.
    fn call(
        &self,
        to: &Member,
        request: Bytes,
        time: Duration,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>>;
}

/// No answer came.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// It certainly was not delivered.
    #[error("it can not be reached: {0}")]
    Unreachable(String),
    /// It may have been delivered, and carried out.
    #[error("no answer came: {0}")]
    Unanswered(String),
}

/// Gives the engine its connections.
#[derive(Debug, Clone)]
pub(super) struct Network {
    transport: Arc<dyn Transport>,
    /// Tells transfers of snapshots apart.
    transfers: Arc<AtomicU64>,
}

/// A way to one node.
#[derive(Debug)]
pub(super) struct Link {
    network: Network,
    node: u64,
    member: Member,
}

type CallError = RPCError<Types>;
type TransferAnswer = openraft::raft::TransferLeaderResponse<Types>;

impl Network {
    pub(super) fn new(transport: Arc<dyn Transport>, seed: u64) -> Network {
        Network { transport, transfers: Arc::new(AtomicU64::new(seed)) }
    }
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Link;

    async fn new_client(&mut self, node: u64, member: &Member) -> Link {
        Link { network: self.clone(), node, member: member.clone() }
    }
}

impl Link {
    async fn call(
        &self,
        body: wire::request::Body,
        time: Duration,
    ) -> Result<wire::response::Body, CallError> {
        let request = wire::Request { to: self.node, body: Some(body) };
        let called = self.network.transport.call(&self.member, request.encode_to_vec().into(), time).await;
        let answer = called.map_err(|error| unreachable(&error.to_string()))?;
        let response: wire::Response =
            convert::decode(&answer).map_err(|error| unreachable(&error.to_string()))?;
        match response.body {
            Some(wire::response::Body::Unserved(wire::Unserved { why })) => Err(unreachable(&why)),
            Some(body) => Ok(body),
            None => Err(unreachable("an answer without content")),
        }
    }
}

/// The engine waits a while before it tries again, whatever it was.
fn unreachable(why: &str) -> CallError {
    RPCError::Unreachable(Unreachable::from_string(why))
}

fn unexpected() -> CallError {
    unreachable("an answer to another question")
}

impl RaftNetworkV2<Types> for Link {
    type SnapshotData = Bytes;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, CallError> {
        let body = wire::request::Body::Append(convert::from_append(&request));
        match self.call(body, option.soft_ttl()).await? {
            wire::response::Body::Append(response) => Ok(convert::to_append_response(response)),
            _ => Err(unexpected()),
        }
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, CallError> {
        let body = wire::request::Body::Vote(convert::from_vote_request(&request));
        self.ask_vote(body, option).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, CallError> {
        let body = wire::request::Body::PreVote(convert::from_vote_request(&request));
        self.ask_vote(body, option).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let mut cancel = std::pin::pin!(cancel.fuse());
        let transfer = self.network.transfers.fetch_add(1, Ordering::Relaxed);
        let (bytes, mut position) = (snapshot.snapshot, 0);
        loop {
            let end = bytes.len().min(position + limits::RAFT_SNAPSHOT_PIECE_BYTES);
            let piece = wire::SnapshotPiece {
                vote: Some(convert::from_vote(&vote)),
                transfer,
                position: position as u64,
                total: bytes.len() as u64,
                bytes: bytes.slice(position..end),
            };
            let call = self.call(wire::request::Body::Snapshot(piece), option.soft_ttl());
            let answer = tokio::select! {
                closed = &mut cancel => return Err(StreamingError::Closed(closed)),
                answer = call => answer?,
            };
            let wire::response::Body::Snapshot(wire::SnapshotResponse { vote: Some(theirs) }) = answer else {
                return Err(unexpected().into());
            };
            let theirs = convert::to_vote(theirs);
            if end == bytes.len() || theirs > vote {
                return Ok(SnapshotResponse::new(theirs));
            }
            position = end;
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferAnswer, CallError> {
        let body = wire::request::Body::Transfer(convert::from_transfer(&request));
        match self.call(body, option.soft_ttl()).await? {
            wire::response::Body::Transfer(response) => Ok(convert::to_transfer_response(response, &request)),
            _ => Err(unexpected()),
        }
    }
}

impl Link {
    async fn ask_vote(
        &self,
        body: wire::request::Body,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, CallError> {
        match self.call(body, option.soft_ttl()).await? {
            wire::response::Body::Vote(response) => {
                convert::to_vote_response(response).map_err(|error| unreachable(&error.to_string()))
            }
            _ => Err(unexpected()),
        }
    }
}
