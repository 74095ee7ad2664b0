//! The log's types between their form in memory and `raft.proto`, which is sent and stored.
//!
//! Bytes of a peer or of a disk are walked before they are decoded, so that what is allocated for them stays in
//! proportion to their length.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use openraft::EntryPayload;
use openraft::entry::RaftEntry as _;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderError, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use prost::Message;
use quire_engine::controller::Record;
use quire_engine::controller::proposals::{self, Leadership};
use quire_engine::controller::records::DecodeError;
use quire_protocol::BrokerId;
use quire_protocol::limits;
use quire_protocol::rpc::{self, raft as wire};

use super::types::{
    Decision, Entry, LogId, Member, Membership, SnapshotMeta, StoredMembership, Types, Vote, log_id, term_of,
};

/// Bytes that are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Malformed {
    /// Not protobuf, or too much of it.
    #[error("{0}")]
    Message(String),
    /// Without something that must be there.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A value that nothing has.
    #[error("{0} is out of range")]
    Range(&'static str),
    /// A record that can not be read.
    #[error("a record of it can not be read: {0}")]
    Record(#[from] DecodeError),
}

/// Decodes a message, after it was walked.
pub(super) fn decode<M: Message + Default>(bytes: &Bytes) -> Result<M, Malformed> {
    rpc::check_items(bytes, limits::RAFT_MESSAGE_ITEMS_MAX)
        .map_err(|error| Malformed::Message(error.to_string()))?;
    M::decode(bytes.clone()).map_err(|error| Malformed::Message(error.to_string()))
}

pub(super) fn from_log_id(id: &LogId) -> wire::LogId {
    wire::LogId { term: term_of(id), index: id.index }
}

pub(super) fn to_log_id(id: wire::LogId) -> LogId {
    log_id(id.term, id.index)
}

pub(super) fn from_vote(vote: &Vote) -> wire::Vote {
    let leader = vote.leader_id();
    wire::Vote { term: leader.term, node: leader.voted_for, is_committed: vote.is_committed() }
}

pub(super) fn to_vote(vote: wire::Vote) -> Vote {
    if vote.is_committed {
        Vote::new_committed(vote.term, vote.node)
    } else {
        Vote::new(vote.term, vote.node)
    }
}

fn to_given_vote(vote: Option<wire::Vote>) -> Result<Vote, Malformed> {
    vote.map(to_vote).ok_or(Malformed::Missing("vote"))
}

pub(super) fn from_member(member: &Member) -> wire::Member {
    wire::Member { broker_id: member.broker.0, host: member.host.clone(), port: member.port.into() }
}

pub(super) fn to_member(member: wire::Member) -> Result<Member, Malformed> {
    let broker = member.broker_id;
    let port = member.port.try_into().map_err(|_| Malformed::Range("port"))?;
    Ok(Member { broker: BrokerId(broker), host: member.host, port })
}

fn from_membership(membership: &Membership) -> wire::Membership {
    let set = |nodes: &BTreeSet<u64>| wire::VoterSet { nodes: nodes.iter().copied().collect() };
    wire::Membership {
        voters: membership.get_joint_config().iter().map(set).collect(),
        members: membership.nodes().map(|(node, member)| (*node, from_member(member))).collect(),
    }
}

fn to_membership(membership: wire::Membership) -> Result<Membership, Malformed> {
    let voters: Vec<BTreeSet<u64>> =
        membership.voters.into_iter().map(|set| set.nodes.into_iter().collect()).collect();
    let member = |(node, member)| to_member(member).map(|member| (node, member));
    let members: BTreeMap<u64, Member> =
        membership.members.into_iter().map(member).collect::<Result<_, _>>()?;
    if voters.is_empty() && members.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(voters, members).map_err(|_| Malformed::Range("membership"))
}

pub(super) fn from_entry(entry: &Entry) -> wire::Entry {
    let body = match &entry.payload {
        EntryPayload::Blank => None,
        EntryPayload::Normal(Decision(decision)) => Some(wire::entry::Body::Decision(wire::Decision {
            leadership: decision.leadership.0,
            serial: decision.serial,
            after: decision.after,
            records: decision.records.iter().map(|record| record.encode().into()).collect(),
        })),
        EntryPayload::Membership(membership) => {
            Some(wire::entry::Body::Membership(from_membership(membership)))
        }
    };
    wire::Entry { id: Some(from_log_id(&entry.log_id)), body }
}

pub(super) fn to_entry(entry: wire::Entry) -> Result<Entry, Malformed> {
    let id = to_log_id(entry.id.ok_or(Malformed::Missing("log id"))?);
    let payload = match entry.body {
        None => EntryPayload::Blank,
        Some(wire::entry::Body::Membership(membership)) => {
            EntryPayload::Membership(to_membership(membership)?)
        }
        Some(wire::entry::Body::Decision(decision)) => {
            let records = decision.records.iter().map(|record| Record::decode(record));
            EntryPayload::Normal(Decision(Arc::new(proposals::Entry {
                leadership: Leadership(decision.leadership),
                serial: decision.serial,
                after: decision.after,
                records: records.collect::<Result<_, _>>()?,
            })))
        }
    };
    Ok(Entry::new(id, payload))
}

/// A snapshot whole: what it covers, and the state there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Captured {
    pub(super) meta: SnapshotMeta,
    pub(super) position: proposals::Position,
    pub(super) image: Bytes,
}

pub(super) fn from_captured(captured: &Captured) -> wire::Snapshot {
    let membership = &captured.meta.last_membership;
    wire::Snapshot {
        last: captured.meta.last_log_id.as_ref().map(from_log_id),
        membership_id: membership.log_id().as_ref().map(from_log_id),
        membership: Some(from_membership(membership.membership())),
        leadership: captured.position.leadership.0,
        serial: captured.position.serial,
        image: captured.image.clone(),
    }
}

pub(super) fn to_captured(bytes: &Bytes) -> Result<Captured, Malformed> {
    // Its one long field is the image, which is walked where it is decoded.
    let snapshot =
        wire::Snapshot::decode(bytes.clone()).map_err(|error| Malformed::Message(error.to_string()))?;
    let membership = to_membership(snapshot.membership.ok_or(Malformed::Missing("membership"))?)?;
    Ok(Captured {
        meta: SnapshotMeta {
            last_log_id: snapshot.last.map(to_log_id),
            last_membership: StoredMembership::new(snapshot.membership_id.map(to_log_id), membership),
        },
        position: proposals::Position {
            leadership: Leadership(snapshot.leadership),
            serial: snapshot.serial,
        },
        image: snapshot.image,
    })
}

pub(super) fn from_append(request: &AppendEntriesRequest<Types>) -> wire::AppendRequest {
    wire::AppendRequest {
        vote: Some(from_vote(&request.vote)),
        previous: request.prev_log_id.as_ref().map(from_log_id),
        entries: request.entries.iter().map(from_entry).collect(),
        committed: request.leader_commit.as_ref().map(from_log_id),
    }
}

/// # Errors
/// Also if its entries do not follow one another: nothing behind this looks again.
pub(super) fn to_append(request: wire::AppendRequest) -> Result<AppendEntriesRequest<Types>, Malformed> {
    let entries = request.entries.into_iter().map(to_entry).collect::<Result<Vec<_>, _>>()?;
    let previous = request.previous.map(to_log_id);
    let mut last = previous;
    for entry in &entries {
        let next = last.map_or(0, |last| last.index.saturating_add(1));
        if entry.log_id.index != next || last.is_some_and(|last| last.leader_id > entry.log_id.leader_id) {
            return Err(Malformed::Range("order of entries"));
        }
        last = Some(entry.log_id);
    }
    Ok(AppendEntriesRequest {
        vote: to_given_vote(request.vote)?,
        prev_log_id: previous,
        entries,
        leader_commit: request.committed.map(to_log_id),
    })
}

pub(super) fn from_append_response(response: &AppendEntriesResponse<Types>) -> wire::AppendResponse {
    use wire::append_response::Result as Wire;
    let result = match response {
        AppendEntriesResponse::Success => Wire::IsSuccess(true),
        AppendEntriesResponse::PartialSuccess(Some(id)) => Wire::UpTo(from_log_id(id)),
        // Nothing was taken, nor was anything wrong: the sender begins again where it began.
        AppendEntriesResponse::PartialSuccess(None) => return wire::AppendResponse { result: None },
        AppendEntriesResponse::Conflict => Wire::IsConflict(true),
        AppendEntriesResponse::HigherVote(vote) => Wire::Higher(from_vote(vote)),
    };
    wire::AppendResponse { result: Some(result) }
}

pub(super) fn to_append_response(response: wire::AppendResponse) -> AppendEntriesResponse<Types> {
    use wire::append_response::Result as Wire;
    match response.result {
        None => AppendEntriesResponse::PartialSuccess(None),
        Some(Wire::IsSuccess(_)) => AppendEntriesResponse::Success,
        Some(Wire::UpTo(id)) => AppendEntriesResponse::PartialSuccess(Some(to_log_id(id))),
        Some(Wire::IsConflict(_)) => AppendEntriesResponse::Conflict,
        Some(Wire::Higher(vote)) => AppendEntriesResponse::HigherVote(to_vote(vote)),
    }
}

pub(super) fn from_vote_request(request: &VoteRequest<Types>) -> wire::VoteRequest {
    wire::VoteRequest {
        vote: Some(from_vote(&request.vote)),
        last: request.last_log_id.as_ref().map(from_log_id),
        is_transfer: request.leadership_transfer,
    }
}

pub(super) fn to_vote_request(request: wire::VoteRequest) -> Result<VoteRequest<Types>, Malformed> {
    let mut given = VoteRequest::new(to_given_vote(request.vote)?, request.last.map(to_log_id));
    given.leadership_transfer = request.is_transfer;
    Ok(given)
}

pub(super) fn from_vote_response(response: &VoteResponse<Types>) -> wire::VoteResponse {
    wire::VoteResponse {
        vote: Some(from_vote(&response.vote)),
        is_granted: response.vote_granted,
        last: response.last_log_id.as_ref().map(from_log_id),
    }
}

pub(super) fn to_vote_response(response: wire::VoteResponse) -> Result<VoteResponse<Types>, Malformed> {
    let vote = to_given_vote(response.vote)?;
    Ok(VoteResponse::new(vote, response.last.map(to_log_id), response.is_granted))
}

pub(super) fn from_transfer(request: &TransferLeaderRequest<Types>) -> wire::TransferRequest {
    wire::TransferRequest {
        from: Some(from_vote(request.from_leader())),
        to_node: *request.to_node_id(),
        last: request.last_log_id().map(from_log_id),
    }
}

pub(super) fn to_transfer(request: wire::TransferRequest) -> Result<TransferLeaderRequest<Types>, Malformed> {
    let from = to_given_vote(request.from)?;
    Ok(TransferLeaderRequest::new(from, request.to_node, request.last.map(to_log_id)))
}

pub(super) fn from_transfer_response(response: &TransferLeaderResponse<Types>) -> wire::TransferResponse {
    match response {
        Ok(()) => wire::TransferResponse { is_accepted: true, ..Default::default() },
        Err(TransferLeaderError::VoteChanged { actual, .. }) => {
            wire::TransferResponse { vote: Some(from_vote(actual)), ..Default::default() }
        }
        Err(TransferLeaderError::LogNotFlushed { actual, .. }) => {
            wire::TransferResponse { flushed: actual.as_ref().map(from_log_id), ..Default::default() }
        }
    }
}

pub(super) fn to_transfer_response(
    response: wire::TransferResponse,
    request: &TransferLeaderRequest<Types>,
) -> TransferLeaderResponse<Types> {
    if response.is_accepted {
        return Ok(());
    }
    match response.vote {
        Some(vote) => {
            Err(TransferLeaderError::VoteChanged { expected: *request.from_leader(), actual: to_vote(vote) })
        }
        None => Err(TransferLeaderError::LogNotFlushed {
            expected: request.last_log_id().copied(),
            actual: response.flushed.map(to_log_id),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decision(serial: u64) -> Entry {
        let records = vec![Record::ClusterCreated { cluster_id: "c-1".into() }];
        let entry = proposals::Entry { leadership: Leadership(3), serial, after: serial - 1, records };
        Entry::new(log_id(3, serial), EntryPayload::Normal(Decision(Arc::new(entry))))
    }

    fn membership() -> Membership {
        let member = |number| Member { broker: BrokerId(number), host: "h".into(), port: 9441 };
        let members = BTreeMap::from([(7, member(1)), (8, member(2)), (9, member(3))]);
        Membership::new(vec![[7, 8].into(), [8, 9].into()], members).expect("all are members")
    }

    #[test]
    fn entries_survive_the_way() {
        let blank = Entry::new(log_id(4, 5), EntryPayload::Blank);
        let changed = Entry::new(log_id(4, 6), EntryPayload::Membership(membership()));
        for entry in [decision(1), blank, changed] {
            let bytes = Bytes::from(from_entry(&entry).encode_to_vec());
            assert_eq!(to_entry(decode(&bytes).expect("sound")).expect("sound"), entry);
        }
    }

    #[test]
    fn appends_are_held_to_the_order_of_the_log() {
        let request = |previous, entries| AppendEntriesRequest::<Types> {
            vote: Vote::new_committed(3, 7),
            prev_log_id: previous,
            entries,
            leader_commit: None,
        };
        let sound = request(Some(log_id(2, 0)), vec![decision(1), decision(2)]);
        let again = to_append(from_append(&sound)).expect("sound");
        assert_eq!(
            (again.vote, again.prev_log_id, &again.entries),
            (sound.vote, sound.prev_log_id, &sound.entries)
        );
        for (previous, entries) in [
            (None, vec![decision(1)]),
            (Some(log_id(2, 0)), vec![decision(2)]),
            (Some(log_id(4, 0)), vec![decision(1)]),
            (Some(log_id(2, 0)), vec![decision(1), decision(1)]),
        ] {
            let refused = to_append(from_append(&request(previous, entries)));
            assert_eq!(refused.map(drop), Err(Malformed::Range("order of entries")));
        }
    }

    #[test]
    fn answers_survive_the_way() {
        use AppendEntriesResponse::{Conflict, HigherVote, PartialSuccess, Success};
        let id = log_id(3, 4);
        for answer in
            [Success, Conflict, PartialSuccess(None), PartialSuccess(Some(id)), HigherVote(Vote::new(5, 7))]
        {
            assert_eq!(to_append_response(from_append_response(&answer)), answer);
        }
        let vote = VoteResponse::new(Vote::new_committed(3, 9), Some(id), true);
        assert_eq!(to_vote_response(from_vote_response(&vote)), Ok(vote));
        assert_eq!(to_vote_response(wire::VoteResponse::default()), Err(Malformed::Missing("vote")));
    }

    #[test]
    fn a_snapshot_survives_the_way() {
        let captured = Captured {
            meta: SnapshotMeta {
                last_log_id: Some(log_id(3, 4)),
                last_membership: StoredMembership::new(Some(log_id(2, 1)), membership()),
            },
            position: proposals::Position { leadership: Leadership(3), serial: 2 },
            image: Bytes::from_static(b"image"),
        };
        let bytes = Bytes::from(from_captured(&captured).encode_to_vec());
        assert_eq!(to_captured(&bytes), Ok(captured));
    }

    #[test]
    fn a_stranger_s_bytes_are_an_error() {
        let many = wire::AppendRequest {
            entries: vec![wire::Entry::default(); limits::RAFT_MESSAGE_ITEMS_MAX + 1],
            ..wire::AppendRequest::default()
        };
        let request = wire::Request { to: 1, body: Some(wire::request::Body::Append(many)) };
        assert!(decode::<wire::Request>(&Bytes::from(request.encode_to_vec())).is_err());
        let voters = vec![wire::VoterSet { nodes: vec![1] }];
        let membership = wire::Membership { voters, members: BTreeMap::new() };
        assert_eq!(to_membership(membership), Err(Malformed::Range("membership")));
        let member = wire::Member { port: 70_000, ..wire::Member::default() };
        assert_eq!(to_member(member), Err(Malformed::Range("port")));
    }
}
