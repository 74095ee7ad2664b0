//! Prints the records of a topic from a position on, and waits for more.
//!
//! With a broker running (`quire dev`): `cargo run -p quire-client --example consume -- flights -100`

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use quire_client::{Client, Position, Profile, Timestamp};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let topic = arguments.next().context("usage: consume TOPIC [POSITION]")?;
    let now = Timestamp(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as i64);
    let from = match arguments.next() {
        Some(text) => Position::parse(&text, now)?,
        None => Position::Beginning,
    };

    let client = Client::connect_with(Profile::load(None)?).await?;
    let mut consumer =
        client.consumer().topic(topic).from(from).follow(true).merge_by_time(true).build().await?;
    while let Some(record) = consumer.next().await {
        let record = record?;
        let value = record.value.as_deref().map(String::from_utf8_lossy).unwrap_or_default();
        println!("{} {}:{} {value}", record.timestamp, record.partition, record.offset);
    }
    Ok(())
}
