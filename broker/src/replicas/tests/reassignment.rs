//! Replicas that move: a new one begins empty, whatever else of the topic its broker has; one that moved away goes, with its
//! files, and with nothing else.

use quire_engine::controller::Reassign;

use super::*;
use crate::shard::PartitionState;

impl Cluster {
    /// A topic of which each broker has some partitions, and none has all, with records in each.
    async fn spread(&self) -> TopicId {
        let request = CreateTopic {
            name: "flights".into(),
            partitions: 6,
            replicas: Some(2),
            ..CreateTopic::default()
        };
        let Ok(Response::Topic(topic)) = self.metadata.ask(Request::CreateTopic(request)) else {
            panic!("it is created")
        };
        for index in 0..6 {
            let handle = self.leading(partition(topic.id, index)).await;
            for number in 0..20 {
                produce(&handle, &format!("record {number}")).await.expect("taken");
            }
        }
        let is_held = |cluster: &Cluster| {
            let image = cluster.metadata.image();
            image.topic(topic.id).is_some_and(|topic| (0..3).all(|id| topic.is_all_held(BrokerId(id))))
        };
        self.until("it is known who has what", is_held).await;
        topic.id
    }

    fn replicas(&self, id: TopicPartition) -> Vec<u32> {
        let image = self.metadata.image();
        image.partition(id).expect("it exists").replicas.iter().map(|broker| broker.0).collect()
    }

    fn reassign(&self, id: TopicPartition, replicas: &[u32]) {
        let replicas = Some(replicas.iter().copied().map(BrokerId).collect());
        self.metadata.ask(Request::Reassign(Reassign { partition: id, replicas })).expect("it can be");
    }

    async fn until_replicas(&self, id: TopicPartition, expected: &[u32]) {
        let is_so =
            |cluster: &Cluster| cluster.replicas(id) == expected && cluster.in_sync(id) == expected.len();
        self.until("the replicas are where they are to be", is_so).await;
    }

    fn directories(&self, broker: u32, topic: TopicId) -> Vec<String> {
        self.disks[&broker].list(&PathBuf::from("/data/topics").join(topic.to_string())).unwrap_or_default()
    }
}

/// The broker that has no replica of the partition.
fn third(replicas: &[u32]) -> u32 {
    (0..3).find(|id| !replicas.contains(id)).expect("two of three have it")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_moves_to_a_broker_that_has_others_of_the_topic_and_back() {
    let mut cluster = Cluster::start().await;
    let topic = cluster.spread().await;
    let id = partition(topic, 0);
    let before = cluster.replicas(id);
    let (stays, goes, comes) = (before[0], before[1], third(&before));
    for (from, to) in [(goes, comes), (comes, goes)] {
        let others = cluster.directories(from, topic).len();
        cluster.reassign(id, &[stays, to]);
        cluster.until_replicas(id, &[stays, to]).await;
        let is_gone =
            |cluster: &Cluster| !cluster.directories(from, topic).contains(&id.partition.to_string());
        cluster.until("its files are gone", is_gone).await;
        assert_eq!(cluster.directories(from, topic).len(), others - 1, "and nothing else");
        let refused = cluster.brokers[&from].shards.partitions().find_replica(id).expect_err("it moved");
        assert_eq!(refused.code, ErrorCode::NotLeader);
        let handle = cluster.brokers[&to].shards.partitions().find_replica(id).expect("it came");
        assert_eq!(*handle.state(), PartitionState::Online);
        assert_eq!(handle.reader().end_offset(), Offset(20));
    }
    // What a start finds is what is to be there.
    for id in 0..3 {
        cluster.crash(id).await;
        cluster.start_broker(id).await;
        assert_eq!(cluster.brokers[&id].shards.partitions().suspects(), []);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_comes_back_in_its_grace_period_goes_on_with_what_it_has() {
    let mut cluster = Cluster::start().await;
    cluster.deletion_grace = Duration::from_secs(3600);
    for id in 0..3 {
        cluster.crash(id).await;
        cluster.start_broker(id).await;
    }
    let topic = cluster.spread().await;
    let id = partition(topic, 0);
    let before = cluster.replicas(id);
    let (stays, goes, comes) = (before[0], before[1], third(&before));
    cluster.reassign(id, &[stays, comes]);
    cluster.until_replicas(id, &[stays, comes]).await;
    let handle = cluster.brokers[&goes].shards.partitions().find_replica(id).expect("it is there still");
    assert_eq!(handle.reader().end_offset(), Offset(20));
    cluster.reassign(id, &[stays, goes]);
    cluster.until_replicas(id, &[stays, goes]).await;

    // The broker that it left for good finds what is to go at its next start.
    assert!(cluster.directories(comes, topic).contains(&id.partition.to_string()));
    cluster.deletion_grace = Duration::ZERO;
    cluster.crash(comes).await;
    let held = cluster.directories(comes, topic).len();
    cluster.start_broker(comes).await;
    let is_gone = |cluster: &Cluster| cluster.directories(comes, topic).len() == held - 1;
    cluster.until("its files are gone", is_gone).await;
    assert!(!cluster.directories(comes, topic).contains(&id.partition.to_string()));
    assert_eq!(cluster.in_sync(id), 2);
}
