//! Brokers of a cluster that are away or silent.

use std::time::Duration;

use quire_client::{Client, Consumer, NewTopic};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use crate::support::{Trio, quick, record};

/// Nothing here takes this long.
const PATIENCE: Duration = Duration::from_secs(30);

async fn next_value(consumer: &mut Consumer) -> String {
    let next = timeout(PATIENCE, consumer.next()).await.expect("in time").expect("it follows");
    String::from_utf8_lossy(next.expect("a record").value.as_deref().unwrap_or_default()).into_owned()
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
