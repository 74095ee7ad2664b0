//! Replays a topic a hundred times as fast as it was recorded, with silences cut to two seconds. Enter pauses it and
//! lets it go on.
//!
//! With a broker running (`quire dev`): `cargo run -p quire-client --example replay -- flights 2013-01-08`

use std::io::BufRead;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use quire_client::{Client, Position, Profile, Speed, Timestamp};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let topic = arguments.next().context("usage: replay TOPIC [POSITION]")?;
    let now = Timestamp(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as i64);
    let from = match arguments.next() {
        Some(text) => Position::parse(&text, now)?,
        None => Position::Beginning,
    };

    let client = Client::connect_with(Profile::load(None)?).await?;
    let replay = client.replay().topic(topic).from(from).max_gap(Duration::from_secs(2));
    let mut replay = replay.speed(Speed::Times(100.0)).build().await?;

    let control = replay.control();
    std::thread::spawn(move || {
        for _ in std::io::stdin().lock().lines() {
            match control.position().is_paused {
                true => control.resume(),
                false => control.pause(),
            }
        }
    });
    while let Some(record) = replay.next().await {
        let record = record?;
        let value = record.value.as_deref().map(String::from_utf8_lossy).unwrap_or_default();
        println!("{} {}:{} {value}", record.timestamp, record.partition, record.offset);
    }
    Ok(())
}
