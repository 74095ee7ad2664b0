//! Reading from any position to any position, in turns and by time, with little memory, again after a seek.

use std::time::Duration;

use futures_util::StreamExt;
use quire_client::{
    Client, ClientConfig, ConsumeError, Error, ErrorCode, Offset, PartitionLag, Position, Timestamp,
};
use tokio::time::timeout;

use crate::support::{Rig, all, partition, profile, quick, record, timed, values};

/// A topic of one partition with the records 0 to 99, whose timestamps are ten times their offsets.
async fn hundred() -> Rig {
    let rig = Rig::with_topic(1).await;
    let producer = rig.client.producer().batch_bytes(1024).build();
    for number in 0..100i64 {
        drop(producer.enqueue("t", timed(number.to_string(), 10 * number)).await.expect("room"));
    }
    producer.close().await.expect("acknowledged");
    rig
}

async fn offsets(client: &Client, from: Position, until: Option<Position>) -> Vec<u64> {
    let builder = client.consumer().topic("t").from(from);
    let builder = match until {
        Some(until) => builder.until(until),
        None => builder,
    };
    all(builder.build().await.expect("built")).await.iter().map(|record| record.offset.0).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_position_starts_and_stops_where_it_says() {
    let rig = hundred().await;
    let client = &rig.client;
    let at = |offset| Position::Offset(Offset(offset));
    let time = |time| Position::Timestamp(Timestamp(time));
    let cases = [
        (Position::Beginning, None, 0..100),
        (Position::End, None, 0..0),
        (at(42), None, 42..100),
        (at(100), None, 0..0),
        (Position::BeforeEnd(3), None, 97..100),
        (Position::BeforeEnd(1000), None, 0..100),
        (time(415), None, 42..100),
        (time(420), Some(time(500)), 42..50),
        (time(5_000), None, 0..0),
        (Position::Beginning, Some(at(7)), 0..7),
        (at(10), Some(Position::BeforeEnd(80)), 10..20),
        (at(10), Some(at(10)), 0..0),
        (at(10), Some(Position::Beginning), 0..0),
        (at(90), Some(at(5000)), 90..100),
    ];
    for (from, until, expected) in cases {
        let read = offsets(client, from, until).await;
        assert_eq!(read, expected.collect::<Vec<_>>(), "{from:?} until {until:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offset_out_of_range_is_refused_with_the_range() {
    let rig = hundred().await;
    let built = rig.client.consumer().topic("t").from(Position::Offset(Offset(101))).build().await;
    let error = built.expect_err("only 100 records");
    let expected =
        "offset 101 of partition 0 of \"t\" is out of range: it holds 0 up to, but not including, 100";
    assert_eq!(error.to_string(), expected);
    assert_eq!(error.code(), Some(ErrorCode::OffsetOutOfRange));
    let none = rig.client.consumer().topic("t").partitions([partition(1)]).build().await;
    assert!(matches!(none, Err(ConsumeError::UnknownPartition { partitions: 1, .. })));
    let empty = rig.client.consumer().topic("t").partitions([]).build().await;
    assert!(matches!(empty, Err(ConsumeError::InvalidSettings(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seek_goes_back_and_forth_and_revives_a_finished_consumer() {
    let rig = hundred().await;
    for merge in [false, true] {
        let mut consumer =
            rig.client.consumer().topic("t").merge_by_time(merge).build().await.expect("built");
        for expected in 0..3 {
            let record = consumer.next().await.expect("not yet the end").expect("a record");
            assert_eq!(record.offset, Offset(expected));
        }
        assert_eq!(consumer.positions(), [(partition(0), Offset(3))]);
        let lag = PartitionLag {
            partition: partition(0),
            position: Offset(3),
            high_watermark: Offset(100),
            records: 97,
        };
        assert_eq!(consumer.lag(), [lag]);
        consumer.seek(partition(0), Position::Offset(Offset(98))).await.expect("in range");
        let rest: Vec<_> = consumer.by_ref().map(|record| record.expect("a record").offset.0).collect().await;
        assert_eq!(rest, [98, 99]);
        assert_eq!(consumer.seek(partition(0), Position::BeforeEnd(1)).await, Ok(Offset(99)));
        assert_eq!(consumer.next().await.expect("revived").expect("a record").offset, Offset(99));
        assert!(consumer.next().await.is_none());
        let beyond = consumer.seek(partition(0), Position::Offset(Offset(500))).await;
        assert!(matches!(beyond, Err(ConsumeError::OffsetOutOfRange { .. })));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_follows_sees_what_comes_later_and_stops_at_its_time() {
    let rig = Rig::with_topic(2).await;
    let mut consumer = rig
        .client
        .consumer()
        .topic("t")
        .from(Position::End)
        .until(Position::Timestamp(Timestamp(1000)))
        .follow(true)
        .build()
        .await
        .expect("built");
    assert!(timeout(Duration::from_millis(50), consumer.next()).await.is_err(), "nothing is there yet");
    let producer = rig.client.producer().build();
    for number in 0..2 {
        producer.send_to("t", partition(number), timed("before", 999)).await.expect("acknowledged");
        producer.send_to("t", partition(number), timed("after", 1000)).await.expect("acknowledged");
    }
    assert_eq!(values(&all(consumer).await), ["before", "before"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_partitions_merge_by_time_within_tiny_memory() {
    let rig = Rig::with_topic(100).await;
    let producer = rig.client.producer().batch_bytes(4096).build();
    // Partition p holds p, p + 100, ...; every record is larger than the partition's share.
    for number in 0..2_000u32 {
        let value = format!("{number:0>5000}");
        let record = timed(value, number.into());
        drop(producer.enqueue_to("t", partition(number % 100), record).await.expect("room"));
    }
    producer.close().await.expect("acknowledged");
    let consumer =
        rig.client.consumer().topic("t").merge_by_time(true).memory_bytes(1).build().await.expect("built");
    let records = timeout(Duration::from_secs(30), all(consumer)).await.expect("it never gets stuck");
    let times: Vec<_> = records.iter().map(|record| record.timestamp.0).collect();
    assert_eq!(times, (0..2_000).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn merging_while_following_is_not_held_up_by_an_idle_partition() {
    let rig = Rig::with_topic(3).await;
    let mut consumer =
        rig.client.consumer().topic("t").merge_by_time(true).follow(true).build().await.expect("built");
    let producer = rig.client.producer().build();
    for (number, time) in [(0, 30), (1, 20)] {
        producer.send_to("t", partition(number), timed(time.to_string(), time)).await.expect("acknowledged");
        let next = timeout(Duration::from_secs(10), consumer.next()).await.expect("nothing is waited for");
        assert_eq!(next.expect("it follows").expect("a record").timestamp, Timestamp(time));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_is_not_polled_takes_no_more_than_its_memory() {
    let rig = Rig::with_topic(1).await;
    let producer = rig.client.producer().build();
    for _ in 0..400 {
        drop(producer.enqueue("t", record(vec![3; 50_000])).await.expect("room"));
    }
    producer.close().await.expect("acknowledged");
    let memory = 1 << 20;
    let mut slow = rig.client.consumer().topic("t").memory_bytes(memory).build().await.expect("built");
    // The first record is there, and so is all that will ever come unasked; another consumer on the same connection
    // reads everything meanwhile.
    slow.next().await.expect("20 MB are there").expect("a record");
    let other = rig.client.consumer().topic("t").build().await.expect("built");
    assert_eq!(all(other).await.len(), 400);
    let held = slow.buffered_bytes();
    assert!(held <= memory + 512 * 1024, "{held} bytes are held");
    assert_eq!(all(slow).await.len(), 399);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_client_says_at_once_that_it_can_consume_no_more_partitions() {
    let rig = Rig::with_topic(3).await;
    let config = ClientConfig { partition_streams: 4, ..quick() };
    let client = Client::connect_configured(profile(&rig.broker), config).await.expect("connected");
    let too_many = client.consumer().topic("t").build().await.expect_err("three of at most two");
    assert!(too_many.to_string().contains("at most 2 partitions, not 3; use several clients"), "{too_many}");
    let consumer = |number| client.consumer().topic("t").partitions([partition(number)]).follow(true);
    let mut reading = Vec::new();
    let producer = rig.client.producer().build();
    for number in 0..2 {
        producer.send_to("t", partition(number), record("a")).await.expect("acknowledged");
        let mut one = consumer(number).build().await.expect("built");
        one.next().await.expect("it follows").expect("a record");
        reading.push(one);
    }
    let mut third = consumer(2).build().await.expect("built");
    let refused = timeout(Duration::from_secs(10), third.next()).await.expect("at once");
    let refused = refused.expect("an error first").expect_err("no stream is left");
    assert!(matches!(refused, ConsumeError::Broker(Error::TooManyPartitions { limit: 2, .. })), "{refused}");
    assert!(!refused.is_retriable() && refused.advice().contains("another client"));
    drop(reading.pop());
    producer.send_to("t", partition(2), record("b")).await.expect("acknowledged");
    let read = async {
        loop {
            third.seek(partition(2), Position::Beginning).await.expect("in range");
            if let Some(Ok(record)) = third.next().await {
                return record;
            }
        }
    };
    let read = timeout(Duration::from_secs(10), read).await.expect("a stream is free again");
    assert_eq!(read.value.as_deref(), Some(b"b".as_slice()));
}
