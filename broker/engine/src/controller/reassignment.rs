//! Decisions about who holds a partition: it grows first, and shrinks once everybody it is to have is in sync.

use quire_protocol::{BrokerId, limits};

use super::image::{Image, Partition, Topic};
use super::leadership::{Rules, changed_in, settle};
use super::records::Record;
use super::{Reassign, Refusal, topics};

/// Decides a reassignment, or that one is given up.
pub(super) fn reassign(image: &Image, request: Reassign) -> Result<Vec<Record>, Refusal> {
    let (topic, before) = topics::find_partition(image, request.partition)?;
    let draft = match &request.replicas {
        Some(target) => {
            check_target(image, topic, before, target)?;
            grown(before, target)
        }
        None if !before.is_reassigning() => return Ok(Vec::new()),
        None => given_up(before),
    };
    let changed = settle(Rules::new(image, topic), before, draft);
    if let Some(after) = &changed
        && before.leader.is_some()
        && after.leader.is_none()
    {
        return Err(Refusal::NobodyToLead { partition: request.partition });
    }
    Ok(changed_in(topic.id, changed.into_iter().collect()).into_iter().collect())
}

/// Completes a reassignment if everybody the partition is to have is in sync.
pub(super) fn complete(partition: &mut Partition) {
    let is_caught_up = partition.target().all(|id| partition.in_sync.contains(&id));
    if !partition.is_reassigning() || !is_caught_up {
        return;
    }
    let removed = std::mem::take(&mut partition.removing);
    partition.adding.clear();
    partition.replicas.retain(|id| !removed.contains(id));
    partition.in_sync.retain(|id| !removed.contains(id));
}

/// With all replicas it has and is to have. What an earlier reassignment was adding counts as added still, so that
/// giving up takes it away.
fn grown(before: &Partition, target: &[BrokerId]) -> Partition {
    let has = |id: &BrokerId| before.replicas.contains(id) && !before.adding.contains(id);
    let removing: Vec<_> = before.replicas.iter().copied().filter(|id| !target.contains(id)).collect();
    Partition {
        adding: target.iter().copied().filter(|id| !has(id)).collect(),
        replicas: target.iter().chain(&removing).copied().collect(),
        removing,
        ..before.clone()
    }
}

/// With the replicas it had.
fn given_up(before: &Partition) -> Partition {
    let stays = |id: &BrokerId| !before.adding.contains(id);
    Partition {
        replicas: before.replicas.iter().copied().filter(stays).collect(),
        in_sync: before.in_sync.iter().copied().filter(stays).collect(),
        adding: Vec::new(),
        removing: Vec::new(),
        ..before.clone()
    }
}

fn check_target(
    image: &Image,
    topic: &Topic,
    before: &Partition,
    target: &[BrokerId],
) -> Result<(), Refusal> {
    let (replicas, brokers) = (target.len() as u32, image.brokers().len());
    if target.is_empty() || target.len() > limits::REPLICAS_MAX {
        return Err(Refusal::ReplicaCount { given: replicas, brokers });
    }
    if topic.config.min_insync_replicas > replicas {
        return Err(Refusal::MinInsyncReplicas { given: topic.config.min_insync_replicas, replicas });
    }
    let counts = image.replica_counts();
    for (at, id) in target.iter().enumerate() {
        if image.broker(*id).is_none() {
            return Err(Refusal::UnknownBroker { broker: *id });
        }
        if target[..at].contains(id) {
            return Err(Refusal::ReplicaTwice { broker: *id });
        }
        let held = counts.get(id).copied().unwrap_or_default() + u32::from(!before.replicas.contains(id));
        if held > limits::BROKER_PARTITIONS_MAX {
            return Err(Refusal::BrokerPartitions { given: held, max: limits::BROKER_PARTITIONS_MAX });
        }
    }
    Ok(())
}
