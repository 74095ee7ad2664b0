//! Starting, stopping, starting again, and several brokers in one process.

mod support;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use quire_broker::{Broker, DataDirectoryError, StartError};
use quire_protocol::stream::{Answer, Start};
use quire_protocol::{ErrorCode, Offset, limits};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use support::{PATIENCE, RawClient, batch, failure, start};

#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_restart() -> Result<()> {
    let started = start().await?;
    let client = RawClient::connect(&started.broker).await?;
    let partition = client.create_topic("flights", &[]).await?;
    let (mut producer, _) = client.produce(partition).await?;
    producer.send.write_all(&batch(&["kept"])?).await?;
    producer.ack().await?;
    let (cluster_id, credentials) = (started.broker.cluster_id().to_owned(), started.broker.credentials());
    ensure!(started.broker.shutdown().await.clean, "a clean shutdown");

    let broker = Broker::builder().data_dir(started.dir.path()).start().await?;
    assert_eq!(broker.cluster_id(), cluster_id);
    assert_eq!(broker.credentials(), credentials, "clients need no new certificate");
    let client = RawClient::connect(&broker).await?;
    let (mut consumer, opened) = client.consume(partition, Start::Beginning, 1 << 20).await?;
    let Answer::Opened(opened) = opened else { bail!("answered {opened:?}") };
    assert_eq!(opened.high_watermark, Offset(1));
    let Answer::Frames(announced) = consumer.answer().await? else { bail!("no frames") };
    assert_eq!(consumer.frames(partition, announced).await?.len(), 1);
    Ok(())
}

#[tokio::test]
async fn a_shutdown_leaves_no_appended_batch_without_its_answer() -> Result<()> {
    let started = start().await?;
    let client = RawClient::connect(&started.broker).await?;
    let partition = client.create_topic("flights", &[]).await?;
    let (mut producer, _) = client.produce(partition).await?;
    producer.send.write_all(&batch(&["in flight"])?.repeat(limits::PRODUCE_WINDOW_BATCHES as usize)).await?;
    let first = producer.ack().await?;
    let shutdown = tokio::spawn(started.broker.shutdown());
    let mut acknowledged = first.0 + 1;
    let failure = loop {
        match producer.answer().await? {
            Answer::Ack(ack) => acknowledged = ack.base_offset.0 + 1,
            answer => break failure(answer)?,
        }
    };
    assert_eq!(failure.code, ErrorCode::ShuttingDown);
    ensure!(shutdown.await?.clean, "a clean shutdown");

    let broker = Broker::builder().data_dir(started.dir.path()).shards(1).start().await?;
    let client = RawClient::connect(&broker).await?;
    let (_, opened) = client.consume(partition, Start::End, 0).await?;
    let Answer::Opened(opened) = opened else { bail!("answered {opened:?}") };
    assert_eq!(opened.high_watermark, Offset(acknowledged), "what is kept is what was acknowledged");
    Ok(())
}

#[tokio::test]
async fn a_data_directory_serves_one_broker_and_is_free_again_after_a_drop() -> Result<()> {
    let started = start().await?;
    let second = Broker::builder().data_dir(started.dir.path()).start().await;
    match second {
        Err(StartError::DataDirectory(DataDirectoryError::InUse { path })) => {
            assert_eq!(path, started.dir.path())
        }
        other => bail!("started: {other:?}"),
    }
    drop(started.broker);
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = Broker::builder().data_dir(started.dir.path()).start().await {
        ensure!(Instant::now() < deadline, "still not free: {error}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

#[tokio::test]
async fn two_brokers_in_one_process_do_not_touch_each_other() -> Result<()> {
    let (first, second) = (start().await?, start().await?);
    ensure!(first.broker.cluster_id() != second.broker.cluster_id(), "two clusters");
    let client = RawClient::connect(&first.broker).await?;
    client.create_topic("flights", &[]).await?;
    RawClient::connect(&second.broker).await?.create_topic("flights", &[]).await?;
    ensure!(first.broker.shutdown().await.clean, "a clean shutdown");
    RawClient::connect(&second.broker).await?;
    Ok(())
}

#[tokio::test]
async fn the_admin_server_tells_health_metrics_and_topics() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let admin = Some("127.0.0.1:0".parse()?);
    let broker = Broker::builder().data_dir(dir.path()).shards(1).admin(admin).start().await?;
    let address = broker.admin_address().expect("it was asked for");
    let client = RawClient::connect(&broker).await?;
    let partition = client.create_topic("flights", &[]).await?;
    let (mut producer, _) = client.produce(partition).await?;
    producer.send.write_all(&batch(&["a", "b"])?).await?;
    producer.ack().await?;
    drop(producer);
    let get = |path| get(address, path);
    for path in ["/healthz", "/readyz"] {
        ensure!(get(path).await?.starts_with("HTTP/1.1 200"), "{path}");
    }
    let metrics = get("/metrics").await?;
    ensure!(metrics.contains("\nquire_partitions 1\n"), "{metrics}");
    ensure!(metrics.contains("\nquire_connections 1\n"), "{metrics}");
    ensure!(metrics.contains("\nquire_log_appended_records_total 2\n"), "{metrics}");
    ensure!(metrics.contains("\nquire_log_syncs_total 1\n"), "{metrics}");
    ensure!(metrics.contains("\nquire_shard_queue_events 0\n"), "{metrics}");
    let topics = get("/topics").await?;
    ensure!(topics.contains("\"name\":\"flights\"") && topics.contains("\"high_watermark\":2"), "{topics}");
    ensure!(get("/nothing").await?.starts_with("HTTP/1.1 404"), "an unknown path");
    Ok(())
}

#[tokio::test]
async fn the_address_is_free_when_the_shutdown_returns() -> Result<()> {
    let started = start().await?;
    let address = started.broker.address();
    let _client = RawClient::connect(&started.broker).await?;
    started.broker.shutdown().await;
    std::net::UdpSocket::bind(address)?;
    Ok(())
}

#[tokio::test]
async fn a_broker_that_stops_says_so_until_it_has() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut config = quire_broker::Config::new(dir.path());
    config.network.listen = "127.0.0.1:0".parse()?;
    config.admin_listen = Some("127.0.0.1:0".parse()?);
    config.drain = PATIENCE;
    let broker = Broker::from_config(config).await?;
    let address = broker.admin_address().expect("it was asked for");
    let client = RawClient::connect(&broker).await?;
    // A stream that says nothing keeps the broker from having stopped.
    let (mut send, recv) = client.connection.open_bi().await?;
    send.write_all(&[0]).await?;
    while !get(address, "/metrics").await?.contains("\nquire_streams 1\n") {
        tokio::task::yield_now().await;
    }
    let shutdown = tokio::spawn(broker.shutdown());
    loop {
        let answer = get(address, "/readyz").await?;
        if answer.starts_with("HTTP/1.1 503") && answer.ends_with("stopping\n") {
            break;
        }
        ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    drop((send, recv, client));
    ensure!(shutdown.await?.clean, "a clean shutdown");
    ensure!(TcpStream::connect(address).await.is_err(), "the port is free again");
    Ok(())
}

async fn get(address: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}
