//! What is sent comes back: in order, whole, acknowledged where it says.

use std::time::Duration;

use quire_client::{
    Acks, Chain, Client, ClientConfig, Compression, Header, NewTopic, Offset, Partitioner, Position, Record,
    SendError, Timestamp,
};
use tokio::time::timeout;

use crate::support::{Rig, all, connect, partition, profile, quick, record, timed, values};

#[tokio::test(flavor = "multi_thread")]
async fn a_record_comes_back_with_everything_it_had() {
    let rig = Rig::with_topic(1).await;
    let producer = rig.client.producer().build();
    let header =
        |key: &str, value: Option<&'static str>| Header { key: key.into(), value: value.map(Into::into) };
    let sent_record = Record {
        key: Some("N14228".into()),
        value: Some("departed".into()),
        timestamp: Some(Timestamp(1_371_081_600_000)),
        headers: vec![header("a", Some("1")), header("a", None), header("b", Some(""))],
    };
    let sent = producer.send("t", sent_record.clone()).await.expect("acknowledged");
    assert_eq!((sent.partition, sent.offset), (partition(0), Offset(0)));
    assert_eq!((sent.timestamp, sent.replicas_on_disk), (Timestamp(1_371_081_600_000), 1));
    assert_ne!(sent.chain, Chain::START);
    let tombstone = Record { key: Some("N14228".into()), ..Record::default() };
    assert_eq!(producer.send("t", tombstone).await.expect("acknowledged").offset, Offset(1));

    let records = all(rig.client.consumer().topic("t").build().await.expect("built")).await;
    assert_eq!(records.len(), 2);
    let first = &records[0];
    assert_eq!((&first.key, &first.value), (&sent_record.key, &sent_record.value));
    assert_eq!((&first.headers, first.timestamp), (&sent_record.headers, Timestamp(1_371_081_600_000)));
    assert_eq!((&records[1].value, records[1].offset), (&None, Offset(1)));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_compression_comes_back() {
    let rig = Rig::with_topic(1).await;
    let compressions =
        [Compression::None, Compression::Gzip, Compression::Snappy, Compression::Lz4, Compression::Zstd];
    let mut expected = Vec::new();
    for compression in compressions {
        let producer = rig.client.producer().compression(compression).build();
        for number in 0..500 {
            let value = format!("{compression:?} {number} {}", "text ".repeat(20));
            expected.push(value.clone());
            drop(producer.enqueue("t", record(value)).await.expect("room"));
        }
        producer.close().await.expect("all acknowledged");
    }
    let records = all(rig.client.consumer().topic("t").build().await.expect("built")).await;
    assert_eq!(values(&records), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_records_keep_their_order_and_their_offsets() {
    let rig = Rig::with_topic(4).await;
    let producer = rig.client.producer().batch_bytes(16 * 1024).build();
    let mut deliveries = Vec::new();
    for number in 0..20_000u32 {
        let record = record(number.to_string());
        deliveries.push(producer.enqueue_to("t", partition(number % 4), record).await.expect("room"));
    }
    for (number, delivery) in deliveries.into_iter().enumerate() {
        let metadata = delivery.await.expect("acknowledged");
        assert_eq!(metadata.offset, Offset(number as u64 / 4));
        assert_eq!(metadata.partition, partition(number as u32 % 4));
    }
    let records = all(rig.client.consumer().topic("t").build().await.expect("built")).await;
    assert_eq!(records.len(), 20_000);
    for record in records {
        let number = record.offset.0 * 4 + u64::from(record.partition.0);
        assert_eq!(record.value.as_deref(), Some(number.to_string().as_bytes()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_values_pass_and_too_large_ones_are_refused_before_they_are_sent() {
    let rig = Rig::with_topic(1).await;
    let producer = rig.client.producer().build();
    let large: Vec<u8> = (0..1024 * 1024u32).map(|n| n.wrapping_mul(2_654_435_761) as u8).collect();
    producer.send("t", record(large.clone())).await.expect("1 MiB is allowed");
    let refused = producer.send("t", record(vec![0; 1024 * 1024 + 8192])).await.expect_err("more is not");
    assert!(matches!(refused, SendError::RecordTooLarge { .. }), "{refused}");
    // The limit is the topic's.
    let wide = NewTopic::new("wide").config("max.message.bytes", (8 << 20).to_string());
    rig.client.admin().create_topic(wide).await.expect("created");
    producer.send("wide", record(vec![7; 4 << 20])).await.expect("4 MiB is allowed here");

    let records = all(rig.client.consumer().topic("t").memory_bytes(1).build().await.expect("built")).await;
    assert_eq!(records[0].value.as_deref(), Some(large.as_slice()));
    let records =
        all(rig.client.consumer().topic("wide").memory_bytes(1).build().await.expect("built")).await;
    assert_eq!(records[0].value.as_ref().map(bytes::Bytes::len), Some(4 << 20));
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_keep_their_partition_and_records_without_one_are_spread() {
    let rig = Rig::with_topic(8).await;
    let producer = rig.client.producer().build();
    let keyed = |key: &'static str| Record { key: Some(key.into()), ..record("v") };
    // murmur2("21") = -973932308, which is positive 1173551340, which is 4 modulo 8.
    for _ in 0..3 {
        assert_eq!(producer.send("t", keyed("21")).await.expect("acknowledged").partition, partition(4));
    }
    let mut partitions = std::collections::BTreeSet::new();
    for _ in 0..8 {
        partitions.insert(producer.send("t", record("v")).await.expect("acknowledged").partition);
    }
    assert_eq!(partitions.len(), 8, "each batch goes to the next partition");
    let in_turns = rig.client.producer().partitioner(Partitioner::RoundRobin).build();
    let mut partitions = std::collections::BTreeSet::new();
    for _ in 0..8 {
        partitions.insert(in_turns.send("t", keyed("21")).await.expect("acknowledged").partition);
    }
    assert_eq!(partitions.len(), 8);
}

#[tokio::test(flavor = "multi_thread")]
async fn lingering_records_share_a_batch_and_a_flush_does_not_wait_for_them() {
    let rig = Rig::with_topic(1).await;
    let producer = rig.client.producer().linger(Duration::from_secs(3600)).build();
    let mut deliveries = Vec::new();
    for number in 0..10 {
        deliveries.push(producer.enqueue("t", record(number.to_string())).await.expect("room"));
    }
    producer.flush().await.expect("acknowledged");
    let mut chains = std::collections::HashSet::new();
    for delivery in deliveries {
        chains.insert(delivery.await.expect("acknowledged").chain);
    }
    assert_eq!(chains.len(), 1, "one batch");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_with_little_memory_waits_for_room() {
    let rig = Rig::with_topic(2).await;
    let producer = rig.client.producer().memory_bytes(20_000).linger(Duration::from_secs(3600)).build();
    for number in 0..500 {
        drop(producer.enqueue("t", timed(vec![1; 2_000], number)).await.expect("room comes"));
    }
    producer.close().await.expect("acknowledged");
    let records = all(rig.client.consumer().topic("t").build().await.expect("built")).await;
    assert_eq!(records.len(), 500);
    let too_large = rig.client.producer().memory_bytes(1_000).build().send("t", record(vec![0; 2_000])).await;
    assert!(matches!(too_large, Err(SendError::RecordTooLarge { limit: 1_000, .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_acks_records_arrive_and_their_offset_is_unknown() {
    let rig = Rig::with_topic(1).await;
    let producer = rig.client.producer().acks(Acks::None).build();
    assert_eq!(producer.send("t", record("a")).await.expect("written").offset, Offset::MAX);
    producer.flush().await.expect("written");
    let mut consumer = rig.client.consumer().topic("t").follow(true).build().await.expect("built");
    let arrived = consumer.next().await.expect("it follows").expect("a record");
    assert_eq!(arrived.value.as_deref(), Some(b"a".as_slice()));
    producer.close().await.expect("written");
}

#[tokio::test(flavor = "multi_thread")]
async fn under_log_append_time_producer_and_consumer_see_the_brokers_clock() {
    let rig = Rig::start().await;
    let topic = NewTopic::new("t").config("message.timestamp.type", "LogAppendTime");
    rig.client.admin().create_topic(topic).await.expect("created");
    let sent = rig.client.producer().build().send("t", timed("a", 5)).await.expect("acknowledged");
    assert_eq!(sent.timestamp, sent.append_time);
    let records =
        all(rig.client.consumer().topic("t").from(Position::Beginning).build().await.expect("built")).await;
    assert_eq!(records[0].timestamp, sent.append_time);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_producer_takes_no_more_and_a_dropped_one_says_what_it_left_behind() {
    let rig = Rig::with_topic(1).await;
    let producer = rig.client.producer().build();
    let clone = producer.clone();
    producer.send("t", record("a")).await.expect("acknowledged");
    producer.close().await.expect("nothing is left");
    assert_eq!(clone.send("t", record("b")).await, Err(SendError::Closed));

    let dropped = rig.client.producer().linger(Duration::from_secs(3600)).build();
    let delivery = dropped.enqueue("t", record("c")).await.expect("room");
    drop(dropped);
    assert_eq!(delivery.await, Err(SendError::Closed));
    let unknown = rig.client.producer().build().enqueue_to("t", partition(1), record("d")).await;
    assert!(matches!(unknown, Err(SendError::UnknownPartition { partitions: 1, .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_share_streams_where_there_are_fewer() {
    let rig = Rig::with_topic(30).await;
    let config = ClientConfig { partition_streams: 4, ..quick() };
    let client = Client::connect_configured(profile(&rig.broker), config).await.expect("connected");
    let producer = client.producer().delivery_timeout(Duration::from_secs(20)).build();
    for number in 0..3_000u32 {
        let value = record(number.to_string());
        drop(producer.enqueue_to("t", partition(number % 30), value).await.expect("room"));
    }
    // Requests have streams of their own, however many partitions wait for one.
    client.admin().list_topics().await.expect("answered");
    producer.flush().await.expect("all acknowledged");
    // Idle streams are given up at once: this one does not wait for another to be closed for its age.
    let one = client.consumer().topic("t").partitions([partition(7)]).build().await.expect("built");
    let number = |value: &String| value.parse().expect("a number");
    let read: Vec<u32> = values(&all(one).await).iter().map(number).collect();
    assert_eq!(read, (7..3_000).step_by(30).collect::<Vec<_>>());
}

#[test]
fn a_delivery_ends_with_the_runtime_of_its_producer() {
    let runtime = || tokio::runtime::Runtime::new().expect("threads");
    let (brokers, producers) = (runtime(), runtime());
    let rig = brokers.block_on(Rig::with_topic(1));
    let (producer, delivery) = producers.block_on(async {
        let client = connect(&rig.broker).await;
        let producer = client.producer().linger(Duration::from_secs(10)).build();
        let delivery = producer.enqueue("t", record("a")).await.expect("room");
        (producer, delivery)
    });
    producers.shutdown_timeout(Duration::from_secs(10));
    brokers.block_on(async {
        let ended = timeout(Duration::from_secs(10), delivery).await.expect("nobody waits for ever");
        assert_eq!(ended, Err(SendError::Closed));
        let later = producer.enqueue("t", record("b")).await;
        assert!(matches!(later, Err(SendError::Closed)), "nobody would send it");
        rig.broker.shutdown().await;
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_linger_leaves_time_for_the_delivery() {
    let rig = Rig::with_topic(1).await;
    let timeout = Duration::from_secs(1);
    let producer = rig.client.producer().linger(10 * timeout).delivery_timeout(timeout).build();
    producer.send("t", record("a")).await.expect("acknowledged");
}
