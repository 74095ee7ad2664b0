//! What this node answers to the others.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use prost::Message;
use quire_engine::controller::{Refusal, Request, Response};
use quire_protocol::limits;
use quire_protocol::rpc::raft as form;
use tokio::time::Instant;

use super::types::{Member, Vote};
use super::wire as convert;
use super::{Attempt, Node, ProposeError, RaftMetadata, machine};

/// A snapshot that is arriving in pieces; one at a time.
#[derive(Debug)]
pub(super) struct Arriving {
    vote: Vote,
    transfer: u64,
    total: u64,
    bytes: BytesMut,
}

/// Something that this node does not do, and that changed nothing.
struct Unserved(String);

impl<E: std::error::Error> From<E> for Unserved {
    fn from(error: E) -> Unserved {
        Unserved(error.to_string())
    }
}

impl RaftMetadata {
    /// Answers a request of another node's [`super::Transport`].
    pub async fn serve(&self, request: Bytes) -> Bytes {
        let body = match self.node.serve(request).await {
            Ok(body) => body,
            Err(Unserved(why)) => form::response::Body::Unserved(form::Unserved { why }),
        };
        form::Response { body: Some(body) }.encode_to_vec().into()
    }
}

impl Node {
    async fn serve(&self, request: Bytes) -> Result<form::response::Body, Unserved> {
        use form::request::Body;
        let request: form::Request = convert::decode(&request)?;
        // Who asks to join knows an address and not yet who is there.
        if request.to != self.id && !matches!(request.body, Some(Body::Join(_))) {
            return Err(Unserved(format!("this is node {}, not {}", self.id, request.to)));
        }
        let Some(body) = request.body else { return Err(Unserved("a request without content".to_owned())) };
        Ok(match body {
            Body::Append(request) => {
                let response = self.raft.append_entries(convert::to_append(request)?).await?;
                self.heard_of_leader();
                form::response::Body::Append(convert::from_append_response(&response))
            }
            Body::Vote(request) => {
                let response = self.raft.vote(convert::to_vote_request(request)?).await?;
                form::response::Body::Vote(convert::from_vote_response(&response))
            }
            Body::PreVote(request) => {
                let response = self.raft.pre_vote(convert::to_vote_request(request)?).await?;
                form::response::Body::Vote(convert::from_vote_response(&response))
            }
            Body::Snapshot(piece) => {
                let vote = self.take_piece(piece).await?;
                form::response::Body::Snapshot(form::SnapshotResponse {
                    vote: Some(convert::from_vote(&vote)),
                })
            }
            Body::Transfer(request) => {
                let response = self.raft.handle_transfer_leader(convert::to_transfer(request)?).await?;
                form::response::Body::Transfer(convert::from_transfer_response(&response))
            }
            Body::Propose(request) => form::response::Body::Propose(self.decide_for_another(request).await?),
            Body::Join(request) => form::response::Body::Join(self.admit(request).await?),
        })
    }

    /// Somebody appends here as the leader.
    fn heard_of_leader(&self) {
        let metrics = self.metrics();
        let Some(leader) = metrics.current_leader.filter(|leader| *leader != self.id) else { return };
        let Some(member) = metrics.membership_config.membership().get_node(&leader) else { return };
        let heard = (member.broker, self.now());
        *self.led_by.lock().expect("nobody panics while holding it") = Some(heard);
    }

    async fn decide_for_another(
        &self,
        request: form::ProposeRequest,
    ) -> Result<form::ProposeResponse, Unserved> {
        let request = Request::decode(&request.request)?;
        let deadline = Instant::now() + self.propose_time;
        Ok(write_proposed(self.propose_here(request, deadline).await))
    }

    /// Puts a snapshot together; with its last piece it is installed. Gives the vote that this node holds to.
    async fn take_piece(&self, piece: form::SnapshotPiece) -> Result<Vote, Unserved> {
        let vote =
            convert::to_vote(piece.vote.ok_or_else(|| Unserved("a snapshot without a vote".to_owned()))?);
        let bytes = {
            let mut arriving = self.arriving.lock().expect("nobody panics while holding it");
            if piece.position == 0 {
                if piece.total > limits::METADATA_SNAPSHOT_BYTES_MAX as u64 {
                    return Err(Unserved("the snapshot exceeds the limit".to_owned()));
                }
                let bytes = BytesMut::new();
                *arriving = Some(Arriving { vote, transfer: piece.transfer, total: piece.total, bytes });
            }
            let expected = arriving.as_mut().filter(|expected| {
                (expected.vote, expected.transfer, expected.total) == (vote, piece.transfer, piece.total)
                    && expected.bytes.len() as u64 == piece.position
                    && piece.position + piece.bytes.len() as u64 <= piece.total
            });
            let Some(expected) = expected else {
                return Err(Unserved("a piece of a snapshot that is not expected".to_owned()));
            };
            expected.bytes.extend_from_slice(&piece.bytes);
            if (expected.bytes.len() as u64) < expected.total {
                None
            } else {
                arriving.take().map(|complete| complete.bytes.freeze())
            }
        };
        let Some(bytes) = bytes else { return Ok(vote) };
        let snapshot = machine::read_snapshot(bytes)?;
        Ok(self.raft.install_full_snapshot(vote, snapshot).await?.vote)
    }

    /// Makes another node a learner, if this one leads; otherwise says who does.
    async fn admit(&self, request: form::JoinRequest) -> Result<form::JoinResponse, Unserved> {
        let member = request.member.ok_or_else(|| Unserved("a node without an address".to_owned()))?;
        let member = convert::to_member(member)?;
        match self.leader() {
            Some((leader, _)) if leader == self.id => {
                tracing::info!(node = request.node, %member, "a node joins the metadata log");
                self.raft.add_learner(request.node, member, false).await?;
                Ok(form::JoinResponse { is_member: true, ..form::JoinResponse::default() })
            }
            Some((leader, member)) => Ok(form::JoinResponse {
                is_member: false,
                leader: Some(convert::from_member(&member)),
                leader_node: leader,
            }),
            None => Err(Unserved("no controller is known".to_owned())),
        }
    }
}

fn write_proposed(attempt: Attempt) -> form::ProposeResponse {
    use form::propose_response::Result as Form;
    let (result, applied) = match attempt {
        Attempt::Made(response, applied) => (Form::Response(response.encode().into()), applied),
        Attempt::NotMade(_) => (Form::IsNotMade(true), 0),
        Attempt::Failed(ProposeError::Refused(refusal)) => (Form::Refusal(refusal.encode().into()), 0),
        Attempt::Failed(error) => (Form::Unknown(error.to_string()), 0),
    };
    form::ProposeResponse { result: Some(result), applied }
}

/// What came of a request that another node was asked to decide.
pub(super) fn read_proposed(response: form::ProposeResponse) -> Attempt {
    use form::propose_response::Result as Form;
    let applied = response.applied;
    match response.result {
        Some(Form::Response(bytes)) => match Response::decode(&bytes) {
            Ok(response) => Attempt::Made(response, applied),
            Err(what) => Attempt::unknown(&format!("the answer can not be read: {what}")),
        },
        Some(Form::Refusal(bytes)) => match Refusal::decode(&bytes) {
            Ok(refusal) => Attempt::Failed(ProposeError::Refused(refusal)),
            Err(what) => Attempt::unknown(&format!("the refusal can not be read: {what}")),
        },
        Some(Form::IsNotMade(_)) => {
            Attempt::NotMade("the node asked is not the active controller".to_owned())
        }
        Some(Form::Unknown(what)) => Attempt::unknown(&what),
        None => Attempt::unknown("an answer without content"),
    }
}

impl RaftMetadata {
    /// Has this node made a member of the log that the nodes at `seeds` keep. Returns once it hears from their leader.
    ///
    /// # Errors
    /// If nobody there admits it in time.
    pub async fn join(&self, seeds: &[Member], time: Duration) -> Result<(), ProposeError> {
        let deadline = Instant::now() + time;
        let mut last = "nobody was asked".to_owned();
        while Instant::now() < deadline {
            for seed in seeds {
                match self.node.ask_to_join(seed).await {
                    Ok(()) => return self.node.wait_followed(deadline).await,
                    Err(what) => last = what,
                }
            }
            tokio::time::sleep(super::RETRY_INTERVAL * 4).await;
        }
        Err(ProposeError::Unavailable { what: format!("the cluster does not admit this node: {last}") })
    }
}

impl Node {
    async fn ask_to_join(&self, seed: &Member) -> Result<(), String> {
        let (mut node, mut asked) = (0, seed.clone());
        // Who is asked may know better, and so may the one it names.
        for _ in 0..3 {
            let member = Some(convert::from_member(&self.member));
            let body = form::request::Body::Join(form::JoinRequest { node: self.id, member });
            let time = limits::RAFT_JOIN_TIME_MAX;
            match self.call(node, &asked, body, time).await.map_err(|error| error.to_string())? {
                form::response::Body::Join(response) if response.is_member => return Ok(()),
                form::response::Body::Join(form::JoinResponse {
                    leader: Some(leader), leader_node, ..
                }) => {
                    node = leader_node;
                    asked = convert::to_member(leader).map_err(|error| error.to_string())?;
                }
                form::response::Body::Unserved(unserved) => return Err(unserved.why),
                _ => return Err("an answer to another question".to_owned()),
            }
        }
        Err("the nodes asked name each other as leader".to_owned())
    }

    async fn wait_followed(&self, deadline: Instant) -> Result<(), ProposeError> {
        let mut applied = self.applied.clone();
        let followed = tokio::time::timeout_at(deadline, applied.wait_for(|applied| *applied > 0)).await;
        match followed {
            Ok(Ok(_)) => Ok(()),
            _ => Err(ProposeError::Unavailable {
                what: "the cluster's log does not reach this node".to_owned(),
            }),
        }
    }
}
