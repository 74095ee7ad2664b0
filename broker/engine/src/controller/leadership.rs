//! What becomes of a partition when its replicas, its in-sync replicas or the brokers around it change.
//!
//! One function, [`settle`], takes a partition before and a draft of it after, and gives it as it has to be: nobody
//! fenced or suspect is in sync, a reassignment that can complete does, the eligible leader replicas (KIP-966) are those
//! that left while nothing could be committed without them, somebody who holds everything committed leads if anybody
//! can, and the epochs count the change.

use std::sync::Arc;

use quire_protocol::{BrokerId, TopicId, TopicPartition};

use super::image::{Image, Partition, Topic};
use super::records::Record;
use super::{Refusal, reassignment, topics};
use crate::mutant::{self, Mutant};

/// What a partition is judged by: the cluster as it will be, and who may lack what was committed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules<'a> {
    /// The cluster after the change that the partition follows.
    pub image: &'a Image,
    /// The partition's topic after it.
    pub topic: &'a Topic,
    /// A broker whose replica of this partition can not be trusted.
    pub suspect: Option<BrokerId>,
}

impl<'a> Rules<'a> {
    pub fn new(image: &'a Image, topic: &'a Topic) -> Rules<'a> {
        Rules { image, topic, suspect: None }
    }

    fn min_in_sync(&self) -> usize {
        self.topic.config.min_insync_replicas as usize
    }

    /// What the only replica lacks is lost in any case, and counted by its broker.
    fn is_suspect(&self, partition: &Partition, broker: BrokerId) -> bool {
        self.suspect == Some(broker) && partition.replicas.len() > 1 && !mutant::is_on(Mutant::SuspectRule)
    }
}

/// The partition as it has to be after a change of which `draft` is the first part; `None` if it is as before.
/// The draft keeps the epochs and the eligible leader replicas of before.
pub(super) fn settle(rules: Rules<'_>, before: &Partition, mut draft: Partition) -> Option<Partition> {
    let stays = |id: BrokerId| {
        draft.in_sync.contains(&id) && rules.image.is_active(id) && !rules.is_suspect(&draft, id)
    };
    draft.in_sync = draft.replicas.iter().copied().filter(|id| stays(*id)).collect();
    if let Some(suspect) = rules.suspect.filter(|id| rules.is_suspect(&draft, *id)) {
        draft.suspects.retain(|id| *id != suspect);
        draft.suspects.push(suspect);
    }
    reassignment::complete(&mut draft);
    draft.eligible = eligible(rules, before, &draft);
    elect(rules, &mut draft);
    // Who was elected may be all that the partition is to have.
    reassignment::complete(&mut draft);
    let is_enough = draft.in_sync.len() >= rules.min_in_sync();
    let Partition { replicas, eligible, suspects, in_sync, .. } = &mut draft;
    eligible.retain(|id| !is_enough && replicas.contains(id));
    suspects.retain(|id| replicas.contains(id) && !in_sync.contains(id));
    if draft == *before {
        return None;
    }
    draft.partition_epoch = before.partition_epoch + 1;
    // Who is removed may drop its log and be added again before its leader hears of either: what it said before must not
    // count for what it has then. So a leadership ends with each removal, as in Kafka's PartitionChangeBuilder.
    let has_lost_replicas = before.replicas.iter().any(|id| !draft.replicas.contains(id));
    if draft.leader != before.leader || has_lost_replicas {
        draft.leader_epoch.0 = before.leader_epoch.0 + 1;
    }
    Some(draft)
}

/// Who left the in-sync replicas while nothing can be committed without them: they hold everything that is. A replica
/// that left before, when others sufficed, is not among them.
fn eligible(rules: Rules<'_>, before: &Partition, after: &Partition) -> Vec<BrokerId> {
    if after.in_sync.len() >= rules.min_in_sync() {
        return Vec::new();
    }
    let held = |id: BrokerId| before.in_sync.contains(&id) || before.eligible.contains(&id);
    let left = |id: BrokerId| held(id) && !after.in_sync.contains(&id) && !rules.is_suspect(after, id);
    after.replicas.iter().copied().filter(|id| left(*id)).collect()
}

/// Leaves the leader if it is in sync, else chooses one.
fn elect(rules: Rules<'_>, partition: &mut Partition) {
    if partition.leader.is_some_and(|leader| partition.in_sync.contains(&leader)) {
        return;
    }
    partition.leader = None;
    if let Some(leader) = first_of(rules.image, &partition.in_sync) {
        partition.leader = Some(leader);
    } else if let Some(leader) = first_of(rules.image, &partition.eligible) {
        partition.leader = Some(leader);
        partition.in_sync = vec![leader];
        partition.eligible.retain(|id| *id != leader);
    } else if rules.topic.config.is_unclean_election_enabled {
        lead_uncleanly(rules.image, partition);
    }
}

/// Whoever is there leads, whatever it lacks; what others hold beyond that is void. A suspect only if nobody else is there, who
/// may be all that is left: first the one that was longest not said to be. One that is damaged says so again when it is to
/// lead, and so the next one leads then.
fn lead_uncleanly(image: &Image, partition: &mut Partition) {
    let suspects = &partition.suspects;
    let trusted: Vec<_> = partition.replicas.iter().copied().filter(|id| !suspects.contains(id)).collect();
    let Some(leader) = first_of(image, &trusted).or_else(|| first_of(image, suspects)) else { return };
    partition.leader = Some(leader);
    partition.in_sync = vec![leader];
    partition.eligible.clear();
    partition.is_recovering = true;
}

/// In the order of the replicas; one that drains only if nobody else is left.
fn first_of(image: &Image, candidates: &[BrokerId]) -> Option<BrokerId> {
    let first = |is_fit: &dyn Fn(BrokerId) -> bool| candidates.iter().copied().find(|id| is_fit(*id));
    first(&|id| image.is_unfenced(id)).or_else(|| first(&|id| image.is_active(id)))
}

/// The records of what becomes of every partition; each topic's in one. `change` is only asked to be right, not cheap:
/// see to it that most partitions are told apart at once.
pub(super) fn changes(
    image: &Image,
    change: impl Fn(&Topic, &Partition) -> Option<Partition>,
) -> Vec<Record> {
    let of_topic = |topic: &Arc<Topic>| {
        let changed = topic.partitions.iter().filter_map(|partition| change(topic, partition)).collect();
        changed_in(topic.id, changed)
    };
    image.topics().filter_map(of_topic).collect()
}

/// The record of these changes of one topic's partitions, if there are any.
pub(super) fn changed_in(id: TopicId, partitions: Vec<Partition>) -> Option<Record> {
    (!partitions.is_empty()).then_some(Record::PartitionsChanged { id, partitions })
}

/// Decides that preferred leaders lead where they can; also says how many that are.
pub(super) fn elect_preferred(image: &Image, partitions: &[TopicPartition]) -> (u32, Vec<Record>) {
    let records = changes(image, |topic, partition| {
        let id = TopicPartition { topic: topic.id, partition: partition.index };
        let is_asked = partitions.is_empty() || partitions.contains(&id);
        let preferred = preferred_leader(image, partition).filter(|_| is_asked)?;
        let draft = Partition { leader: Some(preferred), ..partition.clone() };
        settle(Rules::new(image, topic), partition, draft)
    });
    let count = |record: &Record| match record {
        Record::PartitionsChanged { partitions, .. } => partitions.len() as u32,
        _ => 0,
    };
    (records.iter().map(count).sum(), records)
}

/// The preferred leader, if it does not lead and could.
pub(super) fn preferred_leader(image: &Image, partition: &Partition) -> Option<BrokerId> {
    let preferred = *partition.replicas.first()?;
    let is_able = partition.in_sync.contains(&preferred) && image.is_unfenced(preferred);
    (is_able && partition.leader != Some(preferred)).then_some(preferred)
}

/// Decides that a partition without a leader gets one, whatever it lacks.
///
/// # Errors
/// If it has a leader, or nobody is there.
pub(super) fn elect_unclean(image: &Image, id: TopicPartition) -> Result<Vec<Record>, Refusal> {
    let (topic, before) = topics::find_partition(image, id)?;
    if let Some(leader) = before.leader {
        return Err(Refusal::HasLeader { partition: id, leader });
    }
    let mut draft = Partition::clone(before);
    lead_uncleanly(image, &mut draft);
    let changed =
        settle(Rules::new(image, topic), before, draft).ok_or(Refusal::NobodyToLead { partition: id })?;
    Ok(changed_in(id.topic, vec![changed]).into_iter().collect())
}
