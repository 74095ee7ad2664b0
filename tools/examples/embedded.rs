//! A broker and its client in one process: `cargo run --example embedded`
//!
//! Everything is as over the network: TLS, acknowledgements that are on disk, verified reads.

use quire_broker::Broker;
use quire_client::{Client, NewTopic, Position, Profile, Record};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let data = tempfile::tempdir()?;
    let broker = Broker::builder().data_dir(data.path()).start().await?;
    println!("ready in {:?} on {}", broker.ready_in(), broker.address());

    // The broker made an authority and a client certificate; with the address they are all a client needs.
    let credentials = broker.credentials();
    let profile = Profile::new(format!("quire://{}", broker.address()))
        .authority_pem(credentials.authority_pem)
        .identity_pem(credentials.certificate_pem, credentials.key_pem);
    let client = Client::connect_with(profile).await?;
    client.admin().create_topic(NewTopic::new("greetings").partitions(2)).await?;

    let producer = client.producer().build();
    for (key, value) in [("en", "hello"), ("de", "hallo"), ("fr", "bonjour")] {
        let record = Record { key: Some(key.into()), value: Some(value.into()), ..Record::default() };
        let acknowledged = producer.send("greetings", record).await?;
        println!(
            "{value}: partition {} offset {}, on disk on {} replica",
            acknowledged.partition, acknowledged.offset, acknowledged.replicas_on_disk
        );
    }
    producer.close().await?;

    let mut consumer = client.consumer().topic("greetings").from(Position::Beginning).build().await?;
    let mut records = 0;
    while let Some(record) = consumer.next().await {
        let record = record?;
        println!("read: {}", String::from_utf8_lossy(record.value.as_deref().unwrap_or_default()));
        records += 1;
    }
    anyhow::ensure!(records == 3, "all three are read back, in each partition's order");

    client.close().await;
    let report = broker.shutdown().await;
    anyhow::ensure!(report.clean, "everything is on disk");
    Ok(())
}
