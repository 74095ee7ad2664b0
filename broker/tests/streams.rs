//! Produce, consume and control streams, spoken by hand: what is promised, and what is refused.

mod support;

use anyhow::{Result, bail, ensure};
use quire_protocol::rpc::control::{
    DeleteTopicRequest, DescribeTopicsRequest, ListOffsetsRequest, PartitionPosition, Position, position::At,
    request, response,
};
use quire_protocol::stream::{Acks, Answer, ProduceHeader, Start, StreamKind};
use quire_protocol::{ErrorCode, LeaderEpoch, Offset, PartitionIndex, TopicId, TopicPartition, limits};

use support::{PATIENCE, RawClient, batch, code, failure, start};

#[tokio::test]
async fn what_is_acknowledged_is_consumed_with_its_offsets() -> Result<()> {
    let started = start().await?;
    let client = RawClient::connect(&started.broker).await?;
    let partition = client.create_topic("flights", &[]).await?;
    let (mut consumer, opened) = client.consume(partition, Start::Beginning, 1 << 20).await?;
    ensure!(matches!(opened, Answer::Opened(_)), "answered {opened:?}");

    let (mut producer, opened) = client.produce(partition).await?;
    let Answer::Opened(opened) = opened else { bail!("answered {opened:?}") };
    assert_eq!(opened.window, limits::PRODUCE_WINDOW_BATCHES);
    // A whole window at once, and answered in order.
    for _ in 0..limits::PRODUCE_WINDOW_BATCHES {
        producer.send.write_all(&batch(&["a", "b"])?).await?;
    }
    for expected in 0..limits::PRODUCE_WINDOW_BATCHES {
        assert_eq!(producer.ack().await?, Offset(u64::from(expected) * 2));
    }

    let mut next = Offset::ZERO;
    while next < Offset(u64::from(limits::PRODUCE_WINDOW_BATCHES) * 2) {
        let Answer::Frames(announced) = consumer.answer().await? else { bail!("no frames") };
        for header in consumer.frames(partition, announced).await? {
            assert_eq!(header.base_offset, next);
            next = header.next_offset();
        }
        assert!(next <= announced.high_watermark, "nothing beyond the high watermark is sent");
    }
    Ok(())
}

#[tokio::test]
async fn more_than_the_window_is_read_only_as_it_is_answered() -> Result<()> {
    let started = start().await?;
    let client = RawClient::connect(&started.broker).await?;
    let partition = client.create_topic("flights", &[]).await?;
    let (mut producer, _) = client.produce(partition).await?;
    let sent = batch(&["x"])?.repeat(4 * limits::PRODUCE_WINDOW_BATCHES as usize);
    producer.send.write_all(&sent).await?;
    producer.send.finish()?;
    for expected in 0..4 * u64::from(limits::PRODUCE_WINDOW_BATCHES) {
        assert_eq!(producer.ack().await?, Offset(expected));
    }
    assert!(producer.answer().await.is_err(), "the stream ends when all is answered");
    Ok(())
}

#[tokio::test]
async fn a_batch_too_large_is_refused_by_its_length_alone() -> Result<()> {
    let started = start().await?;
    let client = RawClient::connect(&started.broker).await?;
    let partition = client.create_topic("small", &[("max.message.bytes", "1024")]).await?;
    let (mut producer, _) = client.produce(partition).await?;
    let good = batch(&["fits"])?;
    let mut prefix = good.clone();
    prefix.truncate(12);
    prefix[8..12].copy_from_slice(&5000i32.to_be_bytes());
    producer.send.write_all(&good).await?;
    producer.send.write_all(&prefix).await?;
    assert_eq!(producer.ack().await?, Offset::ZERO, "what came before is answered first");
    let failure = producer.failure().await?;
    assert_eq!(failure.code, ErrorCode::RecordTooLarge);
    assert!(failure.message.contains("1024"), "{}", failure.message);
    Ok(())
}

#[tokio::test]
async fn damaged_and_impossible_batches_end_their_stream_with_their_code() -> Result<()> {
    let started = start().await?;
    let client = RawClient::connect(&started.broker).await?;
    let partition = client.create_topic("flights", &[]).await?;
    let good = batch(&["value"])?;
    let mut damaged = good.clone();
    *damaged.last_mut().expect("not empty") ^= 1;
    let mut old_format = good.clone();
    old_format[16] = 1;
    let mut negative = good;
    negative[8] = 0xff;
    let cases = [
        (damaged, ErrorCode::CorruptBatch),
        (old_format, ErrorCode::InvalidBatch),
        (negative, ErrorCode::InvalidBatch),
    ];
    for (bytes, expected) in cases {
        let (mut producer, _) = client.produce(partition).await?;
        producer.send.write_all(&bytes).await?;
        assert_eq!(producer.failure().await?.code, expected);
    }
    Ok(())
}

#[tokio::test]
async fn garbage_ends_its_stream_and_never_the_connection() -> Result<()> {
    let started = start().await?;
    let client = RawClient::connect(&started.broker).await?;
    let partition = client.create_topic("flights", &[]).await?;
    for (bytes, expected) in [
        (vec![99, 1], ErrorCode::InvalidRequest),
        (vec![StreamKind::Produce as u8, 77], ErrorCode::UnsupportedVersion),
        (
            [&StreamKind::Produce.prefix()[..], &[0xff; ProduceHeader::LEN]].concat(),
            ErrorCode::InvalidRequest,
        ),
        ([&StreamKind::Consume.prefix()[..], &[0xff; 37]].concat(), ErrorCode::InvalidRequest),
    ] {
        let (_, answer) = client.open(&bytes).await?;
        assert_eq!(failure(answer)?.code, expected, "{bytes:?}");
    }
    let too_long = [&StreamKind::Rpc.prefix()[..], &u32::MAX.to_le_bytes()].concat();
    assert_eq!(code(client.rpc_bytes(&too_long).await?)?, ErrorCode::InvalidRequest);
    let no_protobuf = [&StreamKind::Rpc.prefix()[..], &4u32.to_le_bytes(), &[0xff; 4]].concat();
    assert_eq!(code(client.rpc_bytes(&no_protobuf).await?)?, ErrorCode::InvalidRequest);

    let (mut producer, _) = client.produce(partition).await?;
    producer.send.write_all(&batch(&["still served"])?).await?;
    assert_eq!(producer.ack().await?, Offset::ZERO);
    Ok(())
}

#[tokio::test]
async fn nothing_is_served_before_hello() -> Result<()> {
    let started = start().await?;
    let credentials = started.broker.credentials();
    let client = RawClient::connect_unannounced(started.broker.address(), &credentials).await?;
    let partition = TopicPartition { topic: TopicId([1; 16]), partition: PartitionIndex(0) };
    let (_, answer) = client.consume(partition, Start::Beginning, 0).await?;
    assert_eq!(failure(answer)?.code, ErrorCode::InvalidRequest);
    let describe = request::Body::DescribeTopics(DescribeTopicsRequest::default());
    assert_eq!(code(client.rpc(describe).await?)?, ErrorCode::InvalidRequest);
    Ok(())
}

#[tokio::test]
async fn many_streams_are_permitted_though_few_are_at_first() -> Result<()> {
    let started = start().await?;
    let client = RawClient::connect(&started.broker).await?;
    let partition = client.create_topic("flights", &[]).await?;
    let mut open = Vec::new();
    while open.len() < 8 * limits::STREAMS_AT_FIRST as usize {
        let opening = client.consume(partition, Start::End, 0);
        let (stream, opened) = tokio::time::timeout(PATIENCE, opening).await??;
        ensure!(matches!(opened, Answer::Opened(_)), "answered {opened:?}");
        open.push(stream);
    }
    Ok(())
}

#[tokio::test]
async fn unknown_partitions_and_old_leaderships_are_told_apart() -> Result<()> {
    let started = start().await?;
    let client = RawClient::connect(&started.broker).await?;
    let partition = client.create_topic("flights", &[]).await?;
    let elsewhere = TopicPartition { topic: TopicId([7; 16]), partition: PartitionIndex(0) };
    let beyond = TopicPartition { partition: PartitionIndex(1), ..partition };
    let (_, answer) = client.consume(elsewhere, Start::Beginning, 0).await?;
    assert_eq!(failure(answer)?.code, ErrorCode::UnknownTopic);
    let (_, answer) = client.consume(beyond, Start::Beginning, 0).await?;
    assert_eq!(failure(answer)?.code, ErrorCode::UnknownPartition);

    let mut bytes = StreamKind::Produce.prefix().to_vec();
    let header = ProduceHeader {
        partition,
        leader_epoch: LeaderEpoch(i32::MAX as u32),
        acks: Acks::All,
        producer: None,
    };
    header.encode(&mut bytes);
    let (_, answer) = client.open(&bytes).await?;
    assert_eq!(failure(answer)?.code, ErrorCode::NotLeader, "the broker has not heard of that leadership");
    Ok(())
}

#[tokio::test]
async fn an_offset_out_of_range_names_the_range() -> Result<()> {
    let started = start().await?;
    let client = RawClient::connect(&started.broker).await?;
    let partition = client.create_topic("flights", &[]).await?;
    let (mut producer, _) = client.produce(partition).await?;
    producer.send.write_all(&batch(&["a", "b", "c"])?).await?;
    producer.ack().await?;
    let (_, answer) = client.consume(partition, Start::Offset(Offset(4)), 0).await?;
    let failure = failure(answer)?;
    assert_eq!(failure.code, ErrorCode::OffsetOutOfRange);
    assert_eq!((failure.log_start, failure.high_watermark), (Offset(0), Offset(3)));
    let (_, answer) = client.consume(partition, Start::Offset(Offset(3)), 0).await?;
    assert!(matches!(answer, Answer::Opened(_)), "the end can be waited at: {answer:?}");
    Ok(())
}

#[tokio::test]
async fn frames_stop_where_credit_does() -> Result<()> {
    let started = start().await?;
    let client = RawClient::connect(&started.broker).await?;
    let partition = client.create_topic("flights", &[]).await?;
    let (mut producer, _) = client.produce(partition).await?;
    for _ in 0..3 {
        producer.send.write_all(&batch(&["a"])?).await?;
        producer.ack().await?;
    }
    // Credit for one byte is overdrawn by one whole frame, and by no more.
    let (mut consumer, _) = client.consume(partition, Start::Beginning, 1).await?;
    for expected in 0..3 {
        let Answer::Frames(announced) = consumer.answer().await? else { bail!("no frames") };
        let headers = consumer.frames(partition, announced).await?;
        assert_eq!(headers.len(), 1);
        assert_eq!(headers[0].base_offset, Offset(expected));
        consumer.send.write_all(&u64::from(announced.length).to_le_bytes()).await?;
    }
    Ok(())
}

#[tokio::test]
async fn too_much_credit_is_refused() -> Result<()> {
    let started = start().await?;
    let client = RawClient::connect(&started.broker).await?;
    let partition = client.create_topic("flights", &[]).await?;
    let (_, answer) = client.consume(partition, Start::Beginning, u64::MAX).await?;
    assert_eq!(failure(answer)?.code, ErrorCode::InvalidRequest);
    let (mut consumer, _) = client.consume(partition, Start::End, limits::CONSUME_CREDIT_BYTES_MAX).await?;
    consumer.send.write_all(&1u64.to_le_bytes()).await?;
    assert_eq!(consumer.failure().await?.code, ErrorCode::InvalidRequest);
    Ok(())
}

#[tokio::test]
async fn every_kind_of_position_is_found() -> Result<()> {
    let started = start().await?;
    let client = RawClient::connect(&started.broker).await?;
    let partition = client.create_topic("flights", &[]).await?;
    let (mut producer, _) = client.produce(partition).await?;
    producer.send.write_all(&batch(&["a", "b", "c", "d"])?).await?;
    producer.ack().await?;
    let asked = [
        At::Beginning(true),
        At::End(true),
        At::Offset(2),
        At::BeforeEnd(1),
        At::BeforeEnd(100),
        At::Timestamp(0),
        At::Timestamp(5),
        At::Offset(9),
    ];
    let position = |at| PartitionPosition { partition: 0, position: Some(Position { at: Some(at) }) };
    let list = ListOffsetsRequest {
        with_ages: false,
        topic_id: partition.topic.as_bytes().to_vec(),
        partitions: asked.into_iter().map(position).collect(),
    };
    let response = client.rpc(request::Body::ListOffsets(list)).await?;
    let response::Body::ListOffsets(listed) = response else { bail!("answered {response:?}") };
    let offsets: Vec<_> = listed.partitions.iter().map(|found| (found.offset, found.timestamp)).collect();
    assert_eq!(offsets, [(0, -1), (4, -1), (2, -1), (3, -1), (0, -1), (0, 1), (4, -1), (0, -1)]);
    let errors: Vec<_> = listed.partitions.iter().map(|found| found.error.is_some()).collect();
    assert_eq!(errors, [false, false, false, false, false, false, false, true]);
    Ok(())
}

#[tokio::test]
async fn an_unknown_topic_is_answered_with_a_suggestion_beside_the_known_one() -> Result<()> {
    let started = start().await?;
    let client = RawClient::connect(&started.broker).await?;
    client.create_topic("flights", &[]).await?;
    let names = vec!["flihgts".to_owned(), "flights".to_owned()];
    let describe = request::Body::DescribeTopics(DescribeTopicsRequest { names, with_log_state: true });
    let response = client.rpc(describe).await?;
    let response::Body::DescribeTopics(described) = response else { bail!("answered {response:?}") };
    let [unknown, known] = described.topics.as_slice() else { bail!("one answer for each name") };
    assert_eq!(unknown.suggestion, "flights");
    assert_eq!(unknown.error.as_ref().map(|error| error.error_code()), Some(ErrorCode::UnknownTopic));
    let message = unknown.error.as_ref().map(|error| error.message.as_str());
    assert_eq!(message, Some("no topic \"flihgts\""), "the suggestion is said once");
    assert_eq!((known.error.is_none(), known.partitions.len()), (true, 1));

    let names = vec!["flihgts".to_owned(); 1_000];
    let describe = request::Body::DescribeTopics(DescribeTopicsRequest { names, with_log_state: false });
    let response = client.rpc(describe).await?;
    let response::Body::DescribeTopics(described) = response else { bail!("answered {response:?}") };
    ensure!(
        described.topics.iter().all(|topic| topic.suggestion.is_empty()),
        "nobody typed a thousand names"
    );
    Ok(())
}

#[tokio::test]
async fn a_shutdown_answers_what_was_taken_and_tells_every_stream() -> Result<()> {
    let started = start().await?;
    let client = RawClient::connect(&started.broker).await?;
    let partition = client.create_topic("flights", &[]).await?;
    let (mut producer, _) = client.produce(partition).await?;
    let (mut consumer, _) = client.consume(partition, Start::End, 1 << 20).await?;
    producer.send.write_all(&batch(&["last"])?).await?;
    assert_eq!(producer.ack().await?, Offset::ZERO);
    let Answer::Frames(announced) = consumer.answer().await? else { bail!("no frames") };
    consumer.frames(partition, announced).await?;

    let shutdown = tokio::spawn(started.broker.shutdown());
    assert_eq!(producer.failure().await?.code, ErrorCode::ShuttingDown);
    assert_eq!(consumer.failure().await?.code, ErrorCode::ShuttingDown);
    let closed = tokio::time::timeout(PATIENCE, client.connection.closed()).await?;
    let quinn::ConnectionError::ApplicationClosed(close) = closed else { bail!("closed by {closed}") };
    assert_eq!(close.error_code.into_inner(), u64::from(ErrorCode::ShuttingDown.number()));
    let report = shutdown.await?;
    assert_eq!((report.connections, report.partitions, report.clean), (1, 1, true));
    Ok(())
}

#[tokio::test]
async fn a_client_that_stalls_its_requests_keeps_nobody_else_waiting() -> Result<()> {
    let started = start().await?;
    let stalling = RawClient::connect(&started.broker).await?;
    let mut stalled = Vec::new();
    for _ in 0..2 * limits::RPC_MEMORY_BYTES / limits::RPC_BYTES_MAX {
        let (mut send, recv) = stalling.connection.open_bi().await?;
        let mut announced = StreamKind::Rpc.prefix().to_vec();
        announced.extend_from_slice(&(limits::RPC_BYTES_MAX as u32).to_le_bytes());
        announced.push(0);
        send.write_all(&announced).await?;
        stalled.push((send, recv));
    }
    // What was sent is there before what follows is: all of it is read, or waits to be.
    let asked = request::Body::ListTopics(Default::default());
    let _ = tokio::time::timeout(std::time::Duration::from_millis(100), stalling.rpc(asked.clone())).await;
    let client = RawClient::connect(&started.broker).await?;
    let answer = client.rpc(asked).await?;
    ensure!(matches!(answer, response::Body::ListTopics(_)), "answered {answer:?}");
    Ok(())
}

#[tokio::test]
async fn a_client_that_stalls_its_batches_keeps_nobody_else_from_producing() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut config = quire_broker::Config::new(dir.path());
    config.network.listen = "127.0.0.1:0".parse()?;
    config.admin_listen = None;
    config.memory.produce_bytes = 2 * limits::BATCH_BYTES_MAX;
    let broker = quire_broker::Broker::from_config(config).await?;
    let stalling = RawClient::connect(&broker).await?;
    let largest = limits::BATCH_BYTES_MAX.to_string();
    let partition = stalling.create_topic("flights", &[("max.message.bytes", &largest)]).await?;
    let mut stalled = Vec::new();
    for _ in 0..2 {
        let (mut producer, _) = stalling.produce(partition).await?;
        let mut prefix = [0; 12];
        prefix[8..].copy_from_slice(&(limits::BATCH_BYTES_MAX as i32 - 12).to_be_bytes());
        producer.send.write_all(&prefix).await?;
        stalled.push(producer);
    }
    // One of them has the connection's share, the other does not get it.
    let (first, second) = stalled.split_at_mut(1);
    let refused = tokio::select! { one = first[0].failure() => one?, other = second[0].failure() => other? };
    assert_eq!(refused.code, ErrorCode::MemoryFull);

    let client = RawClient::connect(&broker).await?;
    let (mut producer, _) = client.produce(partition).await?;
    producer.send.write_all(&batch(&["x"])?).await?;
    assert_eq!(producer.ack().await?, Offset::ZERO);
    Ok(())
}

#[tokio::test]
async fn a_consumer_that_catches_up_on_a_deleted_topic_is_told() -> Result<()> {
    let started = start().await?;
    let client = RawClient::connect(&started.broker).await?;
    let partition = client.create_topic("flights", &[]).await?;
    let (mut producer, _) = client.produce(partition).await?;
    let large = batch(&[&"x".repeat(1_000_000)])?;
    for _ in 0..6 {
        producer.send.write_all(&large).await?;
        producer.ack().await?;
    }
    // More than fits on its way to a client that does not read.
    let (mut consumer, _) = client.consume(partition, Start::Beginning, 64 << 20).await?;
    let delete = DeleteTopicRequest { name: "flights".to_owned() };
    let response = client.rpc(request::Body::DeleteTopic(delete)).await?;
    ensure!(matches!(response, response::Body::DeleteTopic(_)), "answered {response:?}");
    let mut frames = 0;
    let failure = loop {
        match consumer.answer().await? {
            Answer::Frames(announced) => frames += consumer.frames(partition, announced).await?.len(),
            other => break failure(other)?,
        }
    };
    assert_eq!(failure.code, ErrorCode::UnknownTopic);
    ensure!(frames < 6, "it read on to the end");
    Ok(())
}
