//! Creates a topic if it is not there, and shows it.
//!
//! With a broker running (`quire dev`): `cargo run -p quire-client --example admin -- flights`

use anyhow::Context;
use quire_client::{Client, ErrorCode, NewTopic, Profile};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let name = std::env::args().nth(1).context("usage: admin TOPIC")?;
    let client = Client::connect_with(Profile::load(None)?).await?;
    let admin = client.admin();

    let new = NewTopic::new(&name).partitions(8).config("retention.ms", "86400000");
    match admin.create_topic(new).await {
        Ok(topic) => println!("created {} ({})", topic.name, topic.id),
        Err(error) if error.code() == Some(ErrorCode::TopicAlreadyExists) => {
            println!("{name} is there already")
        }
        // Every error says what to do about it.
        Err(error) => anyhow::bail!("{error}\n{}", error.advice()),
    }
    let topic = admin.describe_topic(&name).await?;
    for partition in &topic.partitions {
        println!("{} {} to {}", partition.partition, partition.log_start, partition.high_watermark);
    }
    Ok(())
}
