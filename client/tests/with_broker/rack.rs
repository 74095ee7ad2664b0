//! Reading from the replica in the consumer's rack, and from the leader when that one is gone.

use std::time::Duration;

use quire_broker::Broker;
use quire_client::{BrokerId, Client, Consumer, NewTopic, Position};
use tempfile::TempDir;
use tokio::time::timeout;

use crate::support::{connect, first_start, partition, record, values};

/// Nothing here takes this long.
const PATIENCE: Duration = Duration::from_secs(30);

/// Brokers 1, 2 and 3 in racks a, b and c.
struct Racks {
    brokers: Vec<Option<Broker>>,
    client: Client,
    _dirs: Vec<TempDir>,
}

impl Racks {
    async fn start() -> Racks {
        let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().expect("a temporary folder")).collect();
        let mut brokers: Vec<Option<Broker>> = Vec::new();
        for (dir, rack) in dirs.iter().zip(["a", "b", "c"]) {
            let first_start = first_start(brokers.first().and_then(Option::as_ref)).await;
            let builder =
                Broker::builder().data_dir(dir.path()).shards(1).rack(rack).first_start(first_start);
            brokers.push(Some(builder.start().await.expect("it starts")));
        }
        let client = connect(brokers[0].as_ref().expect("it runs")).await;
        Racks { brokers, client, _dirs: dirs }
    }

    /// Creates `t` on all three; gives its leader and another broker, whose rack is the third of them.
    async fn topic(&self) -> (BrokerId, BrokerId, &'static str) {
        let created = async {
            loop {
                let topic = NewTopic::new("t").partitions(1).replicas(3);
                match self.client.admin().create_topic(topic).await {
                    Ok(topic) => return topic,
                    // Not all of them are unfenced yet.
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        };
        let topic = timeout(PATIENCE, created).await.expect("it is created");
        let leader = topic.partitions[0].leader.expect("it has one");
        // Not the one that the client's profile names, so that it can go away.
        let near = [BrokerId(2), BrokerId(3)].into_iter().find(|id| *id != leader).expect("there are two");
        (leader, near, ["a", "b", "c"][near.0 as usize - 1])
    }

    async fn produce(&self, numbers: std::ops::Range<u32>) {
        let producer = self.client.producer().build();
        for number in numbers {
            drop(producer.enqueue("t", record(number.to_string())).await.expect("room"));
        }
        producer.close().await.expect("acknowledged");
    }

    async fn consumer(&self, rack: &str) -> Consumer {
        let builder = self.client.consumer().topic("t").from(Position::Beginning).follow(true).rack(rack);
        builder.build().await.expect("built")
    }
}

async fn read(consumer: &mut Consumer, count: usize) -> Vec<String> {
    let mut records = Vec::new();
    while records.len() < count {
        let next = timeout(PATIENCE, consumer.next()).await.expect("it comes in time");
        records.push(next.expect("it follows").expect("a record"));
    }
    values(&records)
}

fn numbers(numbers: std::ops::Range<u32>) -> Vec<String> {
    numbers.map(|number| number.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn records_come_from_the_near_replica_and_from_the_leader_once_that_is_gone() {
    let mut racks = Racks::start().await;
    let (leader, near, rack) = racks.topic().await;
    racks.produce(0..100).await;

    let mut consumer = racks.consumer(rack).await;
    let mut far = racks.consumer("nowhere").await;
    assert_eq!(read(&mut consumer, 100).await, numbers(0..100));
    assert_eq!(read(&mut far, 100).await, numbers(0..100));
    assert_eq!(consumer.sources(), [(partition(0), Some(near))]);
    assert_eq!(far.sources(), [(partition(0), Some(leader))], "nobody is in that rack");

    racks.produce(100..200).await;
    assert_eq!(read(&mut consumer, 50).await, numbers(100..150));
    let gone = racks.brokers[near.0 as usize - 1].take().expect("it runs");
    gone.shutdown().await;
    assert_eq!(read(&mut consumer, 50).await, numbers(150..200));
    racks.produce(200..300).await;
    assert_eq!(read(&mut consumer, 100).await, numbers(200..300));
    assert_eq!(consumer.sources(), [(partition(0), Some(leader))]);
}
