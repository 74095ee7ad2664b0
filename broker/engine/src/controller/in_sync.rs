//! Decisions about the in-sync replicas of a partition: its leader proposes, and everything it knew must still hold.

use quire_protocol::BrokerId;

use super::brokers::current;
use super::image::{Image, Partition};
use super::leadership::{Rules, changed_in, settle};
use super::records::Record;
use super::{ChangeInSync, Refusal, topics};
use crate::mutant::{self, Mutant};

/// Decides a leader's proposal. Who asks again after its change was made is refused, since the partition epoch moved on:
/// the image tells what became of it.
pub(super) fn change(image: &Image, request: ChangeInSync) -> Result<Vec<Record>, Refusal> {
    let (topic, before) = topics::find_partition(image, request.partition)?;
    check_proposer(before, &request)?;
    check_members(image, before, &request)?;
    let draft = Partition {
        in_sync: request.in_sync.iter().map(|(id, _)| *id).collect(),
        // Somebody who followed it in its leadership has what it has.
        is_recovering: before.is_recovering && request.in_sync.len() < 2,
        ..Partition::clone(before)
    };
    let changed = settle(Rules::new(image, topic), before, draft);
    // A leader that does not know what became of an earlier proposal asks for what holds already, to have done with it:
    // whatever was made for the old partition epoch will never be taken.
    let counted = || Partition { partition_epoch: before.partition_epoch + 1, ..Partition::clone(before) };
    let changed = changed.or_else(|| Some(counted()));
    Ok(changed_in(topic.id, changed.into_iter().collect()).into_iter().collect())
}

/// Only the leader, in its leadership, and on what it knows.
fn check_proposer(before: &Partition, request: &ChangeInSync) -> Result<(), Refusal> {
    if before.leader != Some(request.leader) {
        let (partition, leader) = (request.partition, before.leader);
        return Err(Refusal::NotLeader { partition, given: request.leader, leader });
    }
    if before.leader_epoch != request.leader_epoch {
        let (have, given) = (before.leader_epoch, request.leader_epoch);
        return Err(Refusal::LeaderEpoch { partition: request.partition, have, given });
    }
    if before.partition_epoch != request.partition_epoch && !mutant::is_on(Mutant::PartitionEpochCompared) {
        let (have, given) = (before.partition_epoch, request.partition_epoch);
        return Err(Refusal::PartitionEpoch { partition: request.partition, have, given });
    }
    Ok(())
}

/// Replicas that are not fenced, in the registration under which they followed.
fn check_members(image: &Image, before: &Partition, request: &ChangeInSync) -> Result<(), Refusal> {
    let refuse =
        |broker: BrokerId, why| Err(Refusal::Ineligible { partition: request.partition, broker, why });
    if !request.in_sync.iter().any(|(id, _)| *id == request.leader) {
        return refuse(request.leader, "it leads, and so has to be among them");
    }
    for (at, (id, epoch)) in request.in_sync.iter().enumerate() {
        if request.in_sync[..at].iter().any(|(earlier, _)| earlier == id) {
            return refuse(*id, "it is named twice");
        }
        if !before.replicas.contains(id) {
            return refuse(*id, "it holds no replica");
        }
        if mutant::is_on(Mutant::BrokerEpochInProposal) {
            continue;
        }
        if !current(image, *id, *epoch)?.is_active() {
            return refuse(*id, "it is fenced");
        }
    }
    Ok(())
}
