//! The set of nodes, as the active controller keeps it: nodes of brokers that are gone, or came back as another node,
//! leave it, and learners that have caught up vote while there are fewer voters than there should be.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use openraft::{ChangeMembers, RaftMetrics, ServerState};
use quire_engine::controller::Image;
use quire_protocol::limits;
use tokio::time::Instant;

use super::Node;
use super::types::{Member, Types};

/// Between two looks at the set.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// A learner this close behind the leader has caught up (entries).
const BEHIND_MAX: u64 = 64;

/// A learner whose broker is registered with another node for so long is not about to take its place.
const JOIN_TIME_MAX: Duration = Duration::from_secs(60);

/// A change of the set.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Change {
    /// It votes from now on.
    Promote(u64),
    /// It votes no more, and is gone.
    RemoveVoter(u64),
    /// It is gone.
    RemoveLearner(u64),
}

/// Keeps the set in order for as long as this node is the active controller.
pub(super) async fn keep(node: Arc<Node>) {
    let mut joining = BTreeMap::new();
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        if node.driver().deciding().is_none() {
            joining.clear();
            continue;
        }
        let (metrics, image) = (node.metrics(), node.image.borrow().clone());
        let Some(change) = due(&metrics, &image, &mut joining, Instant::now()) else { continue };
        tracing::info!(?change, "changing the nodes of the metadata log");
        let (change, is_kept) = match change {
            Change::Promote(node) => (ChangeMembers::AddVoterIds(BTreeSet::from([node])), true),
            Change::RemoveVoter(node) => (ChangeMembers::RemoveVoters(BTreeSet::from([node])), false),
            Change::RemoveLearner(node) => (ChangeMembers::RemoveNodes(BTreeSet::from([node])), false),
        };
        // A leader that is one no longer is told so; whoever is then does it.
        if let Err(error) = node.raft.change_membership(change, is_kept).await {
            tracing::info!(%error, "the nodes of the metadata log were not changed");
        }
    }
}

/// The next change that the set needs, if it needs any and none is under way.
fn due(
    metrics: &RaftMetrics<Types>,
    image: &Image,
    joining: &mut BTreeMap<u64, Instant>,
    now: Instant,
) -> Option<Change> {
    let membership = metrics.membership_config.membership();
    if metrics.state != ServerState::Leader || membership.get_joint_config().len() > 1 {
        return None;
    }
    let voters: BTreeSet<u64> = membership.voter_ids().collect();
    for (node, member) in membership.nodes().filter(|(node, _)| **node != metrics.id) {
        match standing(*node, member, image) {
            Standing::Registered => drop(joining.remove(node)),
            Standing::Removed if voters.contains(node) => return Some(Change::RemoveVoter(*node)),
            Standing::Removed => return Some(Change::RemoveLearner(*node)),
            // Only who was registered votes: another node has taken its place.
            Standing::Another if voters.contains(node) => return Some(Change::RemoveVoter(*node)),
            Standing::Another => {
                let since = *joining.entry(*node).or_insert(now);
                if now.duration_since(since) > JOIN_TIME_MAX {
                    return Some(Change::RemoveLearner(*node));
                }
            }
        }
    }
    if voters.len() >= limits::CONTROLLERS_MAX {
        return None;
    }
    let last = metrics.last_log_index?;
    let replication = metrics.replication.as_ref()?;
    let may_vote = |learner: &u64| {
        let matched = replication.get(learner).and_then(|matched| matched.as_ref());
        let has_caught_up = matched.is_some_and(|matched| matched.index + BEHIND_MAX >= last);
        let member = membership.get_node(learner);
        has_caught_up
            && member.is_some_and(|member| standing(*learner, member, image) == Standing::Registered)
    };
    membership.learner_ids().find(may_vote).map(Change::Promote)
}

/// What the image says of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It is the node that its broker registered with.
    Registered,
    /// Its broker has registered with another one, or not yet: it may be about to join.
    Another,
    /// Its broker was removed.
    Removed,
}

fn standing(node: u64, member: &Member, image: &Image) -> Standing {
    match image.broker(member.broker) {
        Some(broker) if broker.node == node => Standing::Registered,
        None if image.is_removed(member.broker) => Standing::Removed,
        _ => Standing::Another,
    }
}
