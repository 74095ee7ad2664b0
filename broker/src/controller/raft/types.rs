//! What the consensus engine is told about us: the types of its log.

use std::fmt;
use std::sync::Arc;

use openraft::impls::leader_id_std::LeaderId;
use openraft::type_config::alias;
use quire_engine::controller::proposals;
use quire_protocol::BrokerId;

openraft::declare_raft_types!(
    /// The metadata log: terms have one leader each, and entries are decisions of the controller.
    pub(crate) Types:
        D = Decision,
        R = (),
        NodeId = u64,
        Node = Member,
        Term = u64,
        LeaderId = LeaderId<u64, u64>,
);

pub(super) type Entry = alias::EntryOf<Types>;
pub(super) type LogId = alias::LogIdOf<Types>;
pub(super) type Vote = alias::VoteOf<Types>;
pub(super) type Membership = openraft::Membership<u64, Member>;
pub(super) type StoredMembership = alias::StoredMembershipOf<Types>;
pub(super) type SnapshotMeta = alias::SnapshotMetaOf<Types>;
pub(super) type Snapshot = alias::SnapshotOf<Types, bytes::Bytes>;
pub(super) type Raft = openraft::Raft<Types, super::machine::StateMachine>;

/// A node of the log: its broker, and where peers reach that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its broker.
    pub broker: BrokerId,
    /// Where peers reach it.
    pub host: String,
    /// Where peers reach it.
    pub port: u16,
}

impl Default for Member {
    fn default() -> Member {
        Member { broker: BrokerId(0), host: String::new(), port: 0 }
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "broker {} at {}:{}", self.broker, self.host, self.port)
    }
}

/// A decision of the controller, shared between the log and whoever applies and sends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Decision(pub(super) Arc<proposals::Entry>);

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let proposals::Entry { leadership, serial, records, .. } = &*self.0;
        write!(f, "decision {serial} of term {}, {} records", leadership.0, records.len())
    }
}

/// A position in the log.
pub(super) fn log_id(term: u64, index: u64) -> LogId {
    LogId::new(committed_leader(term), index)
}

/// A term, as the name of the leadership that won it.
pub(super) fn committed_leader(term: u64) -> alias::CommittedLeaderIdOf<Types> {
    use openraft::vote::RaftLeaderId;
    LeaderId::new(term, 0).to_committed()
}

/// The term in which an entry was taken.
pub(super) fn term_of(id: &LogId) -> u64 {
    *id.leader_id
}
