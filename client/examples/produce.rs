//! Sends records and prints where they were appended.
//!
//! With a broker running (`quire dev`) and a topic (`quire topic create flights`):
//! `cargo run -p quire-client --example produce -- flights`

use anyhow::Context;
use quire_client::{Client, Compression, Header, Profile, Record};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let topic = std::env::args().nth(1).context("usage: produce TOPIC")?;
    let client = Client::connect_with(Profile::load(None)?).await?;
    let producer = client.producer().compression(Compression::Zstd).build();

    // One record, acknowledged before the next line runs.
    let record = Record {
        key: Some("N14228".into()),
        value: Some("departed".into()),
        headers: vec![Header { key: "carrier".into(), value: Some("UA".into()) }],
        ..Record::default()
    };
    let sent = producer.send(&topic, record).await?;
    println!("partition {} offset {} at {}", sent.partition, sent.offset, sent.append_time);

    // Many records: handed over as fast as there is memory, acknowledged in batches.
    let mut deliveries = Vec::new();
    for number in 0..10_000 {
        let record = Record { value: Some(format!("event {number}").into()), ..Record::default() };
        deliveries.push(producer.enqueue(&topic, record).await?);
    }
    for delivery in deliveries {
        delivery.await?;
    }
    println!("10,000 more on disk");

    producer.close().await?;
    client.close().await;
    Ok(())
}
