//! Brokers that are not there, go away, come back, or are somebody else's.

use std::time::{Duration, Instant};

use quire_client::{Client, ClientConfig, Error, ErrorCode, Position, Profile, SendError};
use tokio::time::timeout;

use crate::support::{Relay, Rig, all, connect, profile, quick, record, start_broker, values};

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_not_there_is_known_at_once() {
    let rig = Rig::start().await;
    let profile = profile(&rig.broker);
    rig.broker.shutdown().await;
    let begun = Instant::now();
    let error =
        Client::connect_configured(profile, ClientConfig::default()).await.expect_err("nobody is there");
    assert!(matches!(error, Error::Unreachable { .. }) && error.is_retriable(), "{error}");
    assert!(error.advice().contains("the broker runs"), "{}", error.advice());
    assert!(begun.elapsed() < Duration::from_secs(2), "the host says that nothing listens");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_swallows_everything_is_given_up_in_time() {
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let rig = Rig::start().await;
    let profile = profile(&rig.broker).at(format!("quire://{}", silent.local_addr().expect("bound")));
    let config = ClientConfig { connect_timeout: Duration::from_millis(300), ..quick() };
    let error = Client::connect_configured(profile, config).await.expect_err("nobody answers");
    assert!(error.to_string().contains("no answer within 300ms"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_of_another_cluster_are_refused_by_either_side() {
    let (ours, theirs) = (Rig::start().await, Rig::start().await);
    let (own, other) = (ours.broker.credentials(), theirs.broker.credentials());
    let address = format!("quire://{}", ours.broker.address());
    let wrong_authority = Profile::new(&address)
        .authority_pem(other.authority_pem.clone())
        .identity_pem(own.certificate_pem.clone(), own.key_pem.clone());
    let wrong_identity = Profile::new(&address)
        .authority_pem(own.authority_pem.clone())
        .identity_pem(other.certificate_pem, other.key_pem);
    let no_identity = Profile::new(&address).authority_pem(own.authority_pem);
    let cases = [
        (wrong_authority, "the broker's certificate is not one the profile trusts"),
        (wrong_identity, "the broker refused this client's certificate"),
        (no_identity, "the broker refused this client's certificate"),
    ];
    for (profile, part) in cases {
        let error = Client::connect_configured(profile, quick()).await.expect_err(part);
        assert!(matches!(error, Error::CertificateRefused { .. }) && !error.is_retriable(), "{error}");
        assert!(error.to_string().contains(part), "{error}");
        assert!(error.advice().contains("profile"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_survives_its_brokers_restart_without_losing_or_reordering() {
    let rig = Rig::with_topic(1).await;
    let address = rig.broker.address();
    let producer = rig.client.producer().build();
    producer.send("t", record("0")).await.expect("acknowledged");
    let background = producer.clone();
    let sending = tokio::spawn(async move {
        for number in 1..2_000 {
            drop(background.enqueue("t", record(number.to_string())).await.expect("room"));
            if number % 100 == 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        background.flush().await
    });
    tokio::time::sleep(Duration::from_millis(30)).await;
    rig.broker.shutdown().await;
    let broker = start_broker(rig.dir.path(), address).await;
    timeout(Duration::from_secs(30), sending)
        .await
        .expect("in time")
        .expect("no panic")
        .expect("all acknowledged");

    let client = connect(&broker).await;
    let read = values(&all(client.consumer().topic("t").build().await.expect("built")).await);
    // A batch whose answer was lost may be there twice, as a whole and later; nothing is missing or out of order.
    let mut expected = 0u32;
    for value in &read {
        let number: u32 = value.parse().expect("a number");
        assert!(number <= expected, "{number} came where {expected} was due");
        expected = expected.max(number + 1);
    }
    assert_eq!(expected, 2_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_continues_after_its_brokers_restart() {
    let rig = Rig::with_topic(2).await;
    let address = rig.broker.address();
    let producer = rig.client.producer().build();
    producer.send("t", record("before")).await.expect("acknowledged");
    let mut consumer = rig.client.consumer().topic("t").follow(true).build().await.expect("built");
    let first = consumer.next().await.expect("it follows").expect("a record");
    assert_eq!(first.value.as_deref(), Some(b"before".as_slice()));
    rig.broker.shutdown().await;
    let _broker = start_broker(rig.dir.path(), address).await;
    producer.send("t", record("after")).await.expect("acknowledged");
    let next = timeout(Duration::from_secs(20), consumer.next()).await.expect("in time");
    let next = next.expect("it follows").expect("a record");
    assert_eq!(next.value.as_deref(), Some(b"after".as_slice()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_not_be_delivered_in_time_fails_with_its_cause() {
    let rig = Rig::with_topic(1).await;
    let producer = rig.client.producer().delivery_timeout(Duration::from_millis(400)).build();
    producer.send("t", record("a")).await.expect("acknowledged");
    let consumer = rig.client.consumer().topic("t").from(Position::End).follow(true);
    let mut consumer = consumer.retry_timeout(Duration::from_millis(400)).build().await.expect("built");
    rig.broker.shutdown().await;
    let delivery = producer.enqueue("t", record("b")).await.expect("room");
    let failed = timeout(Duration::from_secs(20), delivery).await.expect("in time").expect_err("no broker");
    let SendError::DeliveryTimeout { cause: Some(cause), .. } = &failed else { panic!("{failed:?}") };
    assert!(cause.is_retriable(), "{cause}");
    assert_eq!(producer.flush().await, Err(failed), "a flush tells what nobody awaited");
    assert_eq!(producer.flush().await, Ok(()), "and tells it once");
    let ended = timeout(Duration::from_secs(20), consumer.next()).await.expect("in time");
    assert!(ended.expect("an error first").is_err_and(|error| error.is_retriable()));
    assert!(consumer.next().await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_falls_silent_is_noticed_and_what_was_sent_meanwhile_arrives() {
    let rig = Rig::with_topic(1).await;
    let relay = Relay::start(rig.broker.address()).await;
    let profile = profile(&rig.broker).at(format!("quire://{}", relay.address));
    let config = ClientConfig { idle_timeout: Duration::from_millis(300), ..quick() };
    let client = Client::connect_configured(profile, config).await.expect("the relay leads to the broker");
    let mut consumer = client.consumer().topic("t").follow(true).build().await.expect("built");
    let producer = client.producer().build();
    producer.send("t", record("a")).await.expect("acknowledged");
    assert!(consumer.next().await.expect("it follows").is_ok());

    relay.cut(true);
    let delivery = producer.enqueue("t", record("b")).await.expect("room");
    // As when a broker was killed: nobody says that the connection is gone.
    let lost = client.admin().list_topics().await.expect_err("nothing gets through");
    assert!(matches!(lost, Error::ConnectionLost { .. }), "{lost}");
    relay.cut(false);
    let sent = timeout(Duration::from_secs(20), delivery).await.expect("in time").expect("acknowledged");
    let arrived = timeout(Duration::from_secs(20), consumer.next()).await.expect("in time");
    let arrived = arrived.expect("it follows").expect("a record");
    assert_eq!((arrived.offset, arrived.value.as_deref()), (sent.offset, Some(b"b".as_slice())));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_of_a_quiet_topic_survives_one_lost_connection_after_another() {
    let rig = Rig::with_topic(1).await;
    let relay = Relay::start(rig.broker.address()).await;
    let profile = profile(&rig.broker).at(format!("quire://{}", relay.address));
    let config = ClientConfig { idle_timeout: Duration::from_millis(150), ..quick() };
    let client = Client::connect_configured(profile, config).await.expect("the broker is there");
    let retry_timeout = Duration::from_millis(500);
    let consumer = client.consumer().topic("t").follow(true).retry_timeout(retry_timeout);
    let mut consumer = consumer.build().await.expect("built");
    for _ in 0..2 {
        // Longer apart than one outage may last; either is over long before that.
        let nothing = timeout(retry_timeout + Duration::from_millis(100), consumer.next()).await;
        assert!(nothing.is_err(), "{nothing:?}");
        relay.cut(true);
        client.admin().list_topics().await.expect_err("nothing gets through");
        relay.cut(false);
    }
    rig.client.producer().build().send("t", record("a")).await.expect("acknowledged");
    let next = timeout(Duration::from_secs(20), consumer.next()).await.expect("in time");
    assert_eq!(next.expect("it follows").expect("a record").value.as_deref(), Some(b"a".as_slice()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_longer_than_metadata_lives_holds_up_no_record() {
    let rig = Rig::with_topic(1).await;
    let address = rig.broker.address();
    let config = ClientConfig { metadata_age_max: Duration::ZERO, ..quick() };
    let client = Client::connect_configured(profile(&rig.broker), config).await.expect("connected");
    let producer = client.producer().delivery_timeout(Duration::from_secs(20)).build();
    producer.send("t", record("0")).await.expect("acknowledged");
    rig.broker.shutdown().await;
    let begun = Instant::now();
    for number in 1..4 {
        drop(producer.enqueue("t", record(number.to_string())).await.expect("room"));
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "they wait in memory, not at the door");
    let broker = start_broker(rig.dir.path(), address).await;
    producer.flush().await.expect("all acknowledged");

    connect(&broker).await.admin().delete_topic("t").await.expect("deleted");
    let refused = async {
        loop {
            if let Err(error) = producer.send("t", record("4")).await {
                return error;
            }
        }
    };
    let refused = timeout(Duration::from_secs(20), refused).await.expect("it hears of it");
    assert_eq!(refused.code(), Some(ErrorCode::UnknownTopic), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_called_by_another_name_is_told_from_one_of_another_cluster() {
    let rig = Rig::start().await;
    let profile = profile(&rig.broker).server_name("elsewhere.example");
    let error = Client::connect_configured(profile, quick()).await.expect_err("not its name");
    assert!(matches!(error, Error::CertificateName { .. }) && !error.is_retriable(), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("not for the name \"elsewhere.example\"; ") && text.contains("localhost"),
        "{text}"
    );
    assert!(error.advice().contains("tls.names"), "{}", error.advice());
}
