//! Brokers of a cluster that are away or silent.

use std::time::Duration;

use quire_client::{BrokerId, Client, Consumer, ErrorCode, NewTopic, PartitionIndex, Position};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use crate::support::{Trio, partition, quick, record};

/// Nothing here takes this long.
const PATIENCE: Duration = Duration::from_secs(30);
/// The place of broker 3.
const LAST: usize = 2;

async fn next_value(consumer: &mut Consumer) -> String {
    let next = timeout(PATIENCE, consumer.next()).await.expect("in time").expect("it follows");
    String::from_utf8_lossy(next.expect("a record").value.as_deref().unwrap_or_default()).into_owned()
}

/// A topic of one partition on each broker; gives broker 3's and another one.
async fn spread(client: &Client) -> (PartitionIndex, PartitionIndex) {
    let placed = async {
        loop {
            let topic = NewTopic::new("spread").partitions(3).replicas(1);
            if let Ok(topic) = client.admin().create_topic(topic).await {
                let led_by = |is_it: &dyn Fn(BrokerId) -> bool| {
                    topic.partitions.iter().position(|partition| partition.leader.is_some_and(is_it))
                };
                let last = led_by(&|leader| leader == BrokerId(3));
                if let (Some(last), Some(other)) = (last, led_by(&|leader| leader != BrokerId(3))) {
                    return (partition(last as u32), partition(other as u32));
                }
                client.admin().delete_topic("spread").await.expect("deleted");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, placed).await.expect("it is created")
}

async fn has_no_leader(client: &Client, topic: &str, partition: PartitionIndex) {
    let lost = async {
        loop {
            let described = client.admin().describe_topic(topic).await;
            if described.is_ok_and(|topic| topic.partitions[partition.0 as usize].leader.is_none()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, lost).await.expect("its broker is missed");
}

/// One partition without a leader held back a whole consumer, and what was wrong for good was told when it had waited for that
/// partition in vain.
#[tokio::test(flavor = "multi_thread")]
async fn a_partition_without_a_leader_holds_back_no_other() {
    let mut trio = Trio::start().await;
    let client = trio.client(&[0, 1]).await;
    let (lost, led) = spread(&client).await;
    let producer = client.producer().delivery_timeout(PATIENCE).build();
    producer.send_to("spread", led, record("led")).await.expect("acknowledged");
    trio.kill(&[LAST]);
    has_no_leader(&client, "spread", lost).await;

    let consumer = || client.consumer().topic("spread").retry_timeout(2 * PATIENCE);
    let refused = timeout(PATIENCE / 2, consumer().partitions([lost, partition(9)]).build()).await;
    let refused = refused.expect("it does not wait for the other").expect_err("there is none");
    assert_eq!(refused.code(), Some(ErrorCode::UnknownPartition), "{refused}");
    let offsets = [(lost, Position::End), (led, Position::End)];
    let listed = timeout(PATIENCE / 2, client.admin().list_offsets("spread", offsets)).await;
    assert!(listed.expect("nothing is waited for").is_err_and(|error| error.is_retriable()));

    let building = timeout(PATIENCE / 2, consumer().partitions([lost, led]).follow(true).build()).await;
    let mut consumer = building.expect("it waits no longer").expect("one of them is led");
    assert_eq!(next_value(&mut consumer).await, "led");
    trio.start_again(LAST);
    producer.send_to("spread", lost, record("back")).await.expect("acknowledged");
    assert_eq!(next_value(&mut consumer).await, "back");
}

/// While a quiet partition's reader asked others who leads, and those did not answer, it read nothing.
#[tokio::test(flavor = "multi_thread")]
async fn looking_who_leads_holds_up_no_record() {
    let trio = Trio::start().await;
    let client = trio.client(&[0]).await;
    let created = async {
        loop {
            let topic = NewTopic::new("quiet").partitions(1).replicas(2);
            match client.admin().create_topic(topic).await {
                Ok(topic) => return topic.partitions[0].leader.expect("it has one"),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    let leader = timeout(PATIENCE, created).await.expect("it is created").0 as usize - 1;
    let mut silent = Vec::new();
    for _ in 0..8 {
        silent.push(UdpSocket::bind("127.0.0.1:0").await.expect("a free port"));
    }
    let silent_at = silent.iter().map(|socket| socket.local_addr().expect("bound").to_string());
    let addresses: Vec<_> = [trio.address(leader).to_string()].into_iter().chain(silent_at).collect();
    let profile = trio.profile_of(&[leader]).at(addresses.join(","));
    let reader = Client::connect_configured(profile, quick()).await.expect("the first one is there");
    let mut consumer = reader.consumer().topic("quiet").follow(true).build().await.expect("built");
    let producer = client.producer().build();
    producer.send("quiet", record("before")).await.expect("acknowledged");
    assert_eq!(next_value(&mut consumer).await, "before");

    let mut packet = [0; 2048];
    timeout(PATIENCE, silent[0].recv(&mut packet)).await.expect("it looks who leads").expect("a packet");
    producer.send("quiet", record("after")).await.expect("acknowledged");
    let next = timeout(Duration::from_millis(1200), consumer.next()).await;
    let next = next.expect("it reads while it looks").expect("it follows").expect("a record");
    assert_eq!(next.value.as_deref(), Some(b"after".as_slice()));
}

/// What a record waits for was told when its time was over, half a minute later.
#[tokio::test(flavor = "multi_thread")]
async fn what_records_wait_for_can_be_seen_and_that_it_is_over() {
    let mut trio = Trio::start().await;
    let client = trio.client(&[0, 1]).await;
    let (lost, led) = spread(&client).await;
    let producer = client.producer().delivery_timeout(2 * PATIENCE).build();
    producer.send_to("spread", lost, record("before")).await.expect("acknowledged");
    assert_eq!(producer.obstacles(), []);
    trio.kill(&[LAST]);
    let delivery = producer.enqueue_to("spread", lost, record("after")).await.expect("room");
    let seen = async {
        loop {
            if let Some(obstacle) = producer.obstacles().pop() {
                return obstacle;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let obstacle = timeout(PATIENCE, seen).await.expect("something stands in the way");
    assert_eq!((&*obstacle.topic, obstacle.partition), ("spread", lost));
    assert!(obstacle.error.is_retriable(), "{}", obstacle.error);
    producer
        .send_to("spread", led, record("other"))
        .await
        .expect("another partition is none of its business");
    let now = producer.obstacles();
    assert_eq!(now.iter().map(|other| other.since).collect::<Vec<_>>(), [obstacle.since], "it lasts");
    trio.start_again(LAST);
    timeout(PATIENCE, delivery).await.expect("in time").expect("acknowledged");
    let gone = async {
        while !producer.obstacles().is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, gone).await.expect("nothing stands in the way any more");
}
