//! Topics and the cluster.

use quire_client::{ErrorCode, NewTopic, Offset, Position, TopicAlteration};

use crate::support::{Rig, partition, record};

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_is_created_listed_described_altered_and_deleted() {
    let rig = Rig::start().await;
    let admin = rig.client.admin();
    let checked = admin.create_topic(NewTopic::new("flights").partitions(2).validate_only(true)).await;
    assert!(checked.is_ok() && admin.list_topics().await.expect("listed").is_empty());

    let new = NewTopic::new("flights").partitions(2).config("retention.ms", "1000");
    let created = admin.create_topic(new.clone()).await.expect("created");
    assert_eq!(created.partitions.len(), 2);
    let again = admin.create_topic(new).await.expect_err("the name is taken");
    assert_eq!(again.code(), Some(ErrorCode::TopicAlreadyExists));

    rig.client.producer().build().send_to("flights", partition(1), record("a")).await.expect("acknowledged");
    let topic = admin.describe_topic("flights").await.expect("described");
    assert_eq!(
        (topic.id, topic.overrides.get("retention.ms").map(String::as_str)),
        (created.id, Some("1000"))
    );
    assert_eq!(topic.config.get("sync").map(String::as_str), Some("always"));
    assert_eq!(topic.partitions[1].high_watermark, Offset(1));
    assert!(topic.partitions[1].size_bytes > 0 && topic.partitions[1].leader.is_some());

    let alteration =
        TopicAlteration::new("flights").partitions(3).unset("retention.ms").set("sync", "interval");
    let altered = admin.alter_topic(alteration).await.expect("altered");
    assert_eq!(altered.partitions.len(), 3);
    assert!(!altered.overrides.contains_key("retention.ms"));
    let sent = rig.client.producer().build().send_to("flights", partition(2), record("b")).await;
    assert_eq!(sent.expect("the new partition takes records").replicas_on_disk, 0);

    let listed = admin.list_topics().await.expect("listed");
    assert_eq!(
        listed.iter().map(|topic| (topic.name.as_str(), topic.partitions)).collect::<Vec<_>>(),
        [("flights", 3)]
    );
    admin.delete_topic("flights").await.expect("deleted");
    assert!(admin.list_topics().await.expect("listed").is_empty());
    let gone = admin.delete_topic("flights").await.expect_err("it is gone");
    assert_eq!(gone.code(), Some(ErrorCode::UnknownTopic));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_topic_suggests_the_nearest() {
    let rig = Rig::start().await;
    rig.client.admin().create_topic(NewTopic::new("flights")).await.expect("created");
    let errors = [
        rig.client.admin().describe_topic("fligths").await.map(|_| ()).expect_err("no such topic"),
        rig.client
            .producer()
            .build()
            .send("fligths", record("a"))
            .await
            .map(|_| ())
            .expect_err("none")
            .into(),
        rig.client.consumer().topic("fligths").build().await.map(|_| ()).expect_err("none").into(),
    ];
    for error in errors {
        assert_eq!(error.code(), Some(ErrorCode::UnknownTopic), "{error}");
        assert_eq!(error.advice(), "Did you mean \"flights\"?");
        assert!(!error.is_retriable());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn offsets_are_listed_for_each_partition_asked() {
    let rig = Rig::with_topic(3).await;
    let producer = rig.client.producer().build();
    for _ in 0..5 {
        producer.send_to("t", partition(2), record("a")).await.expect("acknowledged");
    }
    let asked = [
        (partition(2), Position::End),
        (partition(0), Position::End),
        (partition(2), Position::BeforeEnd(2)),
    ];
    let offsets = rig.client.admin().list_offsets("t", asked).await.expect("listed");
    let found: Vec<_> = offsets.iter().map(|answer| (answer.partition.0, answer.offset.0)).collect();
    assert_eq!(found, [(2, 5), (0, 0), (2, 3)]);
    let unknown = rig.client.admin().list_offsets("t", [(partition(3), Position::End)]).await;
    assert_eq!(unknown.expect_err("three partitions").code(), Some(ErrorCode::UnknownPartition));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cluster_names_its_brokers_and_the_client() {
    let rig = Rig::start().await;
    let cluster = rig.client.admin().describe_cluster().await.expect("described");
    assert_eq!(cluster.cluster_id, rig.client.cluster_id());
    assert_eq!(cluster.brokers.len(), 1);
    assert_eq!(cluster.brokers[0].port, rig.broker.address().port());
    assert!(!rig.client.principal().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_was_created_again_is_produced_to_and_consumed() {
    let rig = Rig::with_topic(1).await;
    let producer = rig.client.producer().build();
    producer.send("t", record("old")).await.expect("acknowledged");
    // Somebody else does it, so that this client's metadata is wrong.
    let other = crate::support::connect(&rig.broker).await;
    other.admin().delete_topic("t").await.expect("deleted");
    // The deletion is decided when it is answered, and done soon after.
    let refused = loop {
        match producer.send("t", record("lost")).await {
            Ok(_) => {}
            Err(refused) => break refused,
        }
    };
    assert_eq!(refused.code(), Some(ErrorCode::UnknownTopic));
    other.admin().create_topic(NewTopic::new("t")).await.expect("created");
    let sent = producer.send("t", record("new")).await.expect("the new topic takes it");
    assert_eq!(sent.offset, Offset(0));
    let records = crate::support::all(rig.client.consumer().topic("t").build().await.expect("built")).await;
    assert_eq!(crate::support::values(&records), ["new"]);
}
