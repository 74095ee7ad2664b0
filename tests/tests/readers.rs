//! Consumers of a cluster whose leaders are lost in ways that nobody tells them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use quire::drill::relay::Conditions;
use quire_client::{BrokerId, Client, Consumer, GroupConsumer, NewTopic, Offset, PartitionIndex, Position};
use quire_tests::chaos::Trial;
use tokio::time::timeout;

const BROKERS: [BrokerId; 3] = [BrokerId(1), BrokerId(2), BrokerId(3)];
const PARTITION: PartitionIndex = PartitionIndex(0);
/// How soon a consumer has found its partition's next leader, once there is one. Well below the idle timeout, after which
/// the connection to a broker that stands still is lost by itself.
const FOUND_WITHIN: Duration = Duration::from_secs(6);

/// Cuts a broker off from the others, both ways, and from no client; or lets it through again.
fn set_links(trial: &Trial, broker: BrokerId, conditions: Conditions) {
    for other in BROKERS.into_iter().filter(|other| *other != broker) {
        trial.cluster.set_link(broker, other, conditions);
        trial.cluster.set_link(other, broker, conditions);
    }
}

/// Reads on until a record of this offset or a later one comes.
async fn read_to(consumer: &mut Consumer, offset: Offset) -> Result<()> {
    loop {
        let record = consumer.next().await.context("a consumer that follows has no end")??;
        if record.offset >= offset {
            return Ok(());
        }
    }
}

/// Follows the partition through the loss of its leader, up to what the next leader has taken.
async fn goes_on(trial: &mut Trial, consumer: &mut Consumer, topic: &str, lost: BrokerId) -> Result<()> {
    trial.moved_away(lost).await?;
    trial.resumed().await?;
    let ends = trial.client.admin().list_offsets(topic, [(PARTITION, Position::End)]).await?;
    let end = ends.first().context("one was asked for")?.offset;
    let found = timeout(FOUND_WITHIN, read_to(consumer, end)).await;
    found.with_context(|| format!("the consumer still reads from broker {lost}, which leads no more"))?
}

/// A leader that the others do not reach goes on serving its clients, and says nothing that is new. One that stands still
/// says nothing at all. Consumers waited for either: for the first until the end of the fault, for the second until
/// its connection was lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_leaves_a_leader_that_leads_no_more() -> Result<()> {
    let mut topic = String::new();
    let mut trial = Trial::start("readers of a lost leader", 0x131, |setup, load| {
        setup.peer_relays = Some(0x131);
        topic.clone_from(&load.topic);
    })
    .await?;
    let client = Client::connect_with(trial.cluster.profile()?).await?;
    let from_end = client.consumer().topic(&topic).partitions([PARTITION]).from(Position::End);
    let mut consumer = from_end.follow(true).build().await?;
    read_to(&mut consumer, Offset(0)).await?;

    let leader = trial.leader(0).await?;
    trial.fault(&format!("broker {leader} and the others do not reach each other"));
    set_links(&trial, leader, Conditions::CUT);
    goes_on(&mut trial, &mut consumer, &topic, leader).await?;
    set_links(&trial, leader, Conditions::default());
    trial.whole().await?;

    let leader = trial.leader(0).await?;
    trial.fault(&format!("SIGSTOP broker {leader}"));
    trial.node(leader)?.pause()?;
    goes_on(&mut trial, &mut consumer, &topic, leader).await?;
    trial.node(leader)?.resume()?;
    trial.whole().await?;

    drop(consumer);
    client.close().await;
    trial.finish().await?;
    Ok(())
}

/// Reads the partition as a member of a group until a record of this offset or a later one comes, commits and leaves;
/// answers the first offset that it was given.
async fn read_in_group(mut member: GroupConsumer, offset: Offset) -> Result<Offset> {
    let mut first = None;
    loop {
        let record = member.next().await?;
        if record.partition == PARTITION {
            first.get_or_insert(record.offset);
            if record.offset >= offset {
                break;
            }
        }
    }
    member.leave().await?;
    first.context("a record was read")
}

/// A member that asked a leader which did not know yet that it was deposed for what its group had committed since was told
/// that the log ends before that: it began again where that log ends, and its group was given records a second time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_is_not_sent_back_by_a_leader_that_leads_no_more() -> Result<()> {
    let mut topic = String::new();
    let mut trial = Trial::start("a group of a lost leader", 0x133, |setup, load| {
        setup.peer_relays = Some(0x133);
        topic.clone_from(&load.topic);
    })
    .await?;
    let client = Client::connect_with(trial.cluster.profile()?).await?;
    let member =
        |client: &Client, group: &str| client.consumer().group(group).topics([topic.as_str()]).build();
    let leader = trial.leader(0).await?;
    let mut groups = (0..).map(|number| format!("late-{number}"));
    let group = loop {
        let group = groups.next().context("there is always another")?;
        read_in_group(member(&client, &group)?, Offset::ZERO).await?;
        if client.admin().describe_group(&group).await?.coordinator != leader {
            break group;
        }
    };

    trial.fault(&format!("broker {leader} and the others do not reach each other"));
    set_links(&trial, leader, Conditions::CUT);
    trial.moved_away(leader).await?;
    trial.resumed().await?;
    let ends = client.admin().list_offsets(&topic, [(PARTITION, Position::End)]).await?;
    let end = ends.first().context("one was asked for")?.offset;
    timeout(FOUND_WITHIN, read_in_group(member(&client, &group)?, end)).await.context("not read")??;

    // Whom it asks first is the broker that was cut off.
    let late = Client::connect_with(trial.node(leader)?.profile()?).await?;
    let first = timeout(FOUND_WITHIN, read_in_group(member(&late, &group)?, end)).await;
    let first = first.context("the group does not go on")??;
    ensure!(first >= end, "the group has committed {end} or more, and was given {first}");
    set_links(&trial, leader, Conditions::default());
    trial.whole().await?;

    client.close().await;
    late.close().await;
    trial.finish().await?;
    Ok(())
}

/// A consumer that was built while its partition had no leader failed at once, though it was told to retry for a minute.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_is_built_during_a_failover_waits_for_the_leader() -> Result<()> {
    let mut trial = Trial::start("a consumer built without a leader", 0x132, |_, _| {}).await?;
    let alone = BROKERS[2];
    trial.client.admin().create_topic(NewTopic::new("alone").partitions(1).replicas(1)).await?;
    trial.client.admin().reassign("alone", PARTITION, Some(&[alone])).await?;
    let is_placed = |leader| move |found: &[quire_client::PartitionDescription]| found[0].leader == leader;
    trial.wait_for_topic("alone", "it did not move", is_placed(Some(alone))).await?;
    trial.fault(&format!("kill -9 broker {alone}, with the one replica of a topic"));
    trial.node(alone)?.kill()?;
    trial.wait_for_topic("alone", "it has a leader still", is_placed(None)).await?;

    let client = Client::connect_with(trial.cluster.profile()?).await?;
    let until_end = || client.consumer().topic("alone").until(Position::End);
    let given_up = until_end().retry_timeout(Duration::from_millis(300)).build().await;
    ensure!(given_up.is_err(), "nobody knows where it ends");
    let building = tokio::spawn(until_end().build());
    trial.node(alone)?.start()?;
    let consumer = timeout(Duration::from_secs(20), building).await.context("no answer")??;
    ensure!(consumer?.next().await.is_none(), "the topic is empty");

    client.close().await;
    trial.resumed().await?;
    trial.finish().await?;
    Ok(())
}
