//! Groups, asked by hand: where they are coordinated, and who may do what with them.

mod support;

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use quire_broker::Broker;
use quire_broker::config::{FirstStart, HostPort};
use quire_protocol::rpc::control::{
    self, CreateTopicRequest, ElectLeadersRequest, FindCoordinatorRequest, GroupHeartbeatRequest,
    GroupHeartbeatResponse, ReassignRequest, request, response,
};
use quire_protocol::{ErrorCode, OFFSETS_TOPIC};

use support::{PATIENCE, RawClient, code};

const GROUP: &str = "billing";
const TOPIC: &str = "flights";

/// Asks again and again until the answer is the one that is waited for.
async fn until<T>(what: &str, asked: impl AsyncFn() -> Result<Option<T>>) -> Result<T> {
    let answered = async {
        loop {
            match asked().await? {
                Some(answer) => return Ok(answer),
                None => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, answered).await.with_context(|| format!("not in time: {what}"))?
}

struct Three {
    brokers: Vec<Broker>,
    clients: Vec<RawClient>,
    _dirs: Vec<tempfile::TempDir>,
}

impl Three {
    /// Three brokers that all hold the topic.
    async fn start() -> Result<Three> {
        let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir()).collect::<Result<_, _>>()?;
        let mut brokers: Vec<Broker> = Vec::new();
        for dir in &dirs {
            let first_start = match brokers.first() {
                None => FirstStart::Found,
                Some(founder) => FirstStart::Join {
                    at: HostPort { host: founder.address().ip().to_string(), port: founder.address().port() },
                    token: founder.join_token(Duration::from_secs(3600)).await?,
                },
            };
            let builder = Broker::builder().data_dir(dir.path()).shards(1).first_start(first_start);
            brokers.push(builder.start().await?);
        }
        let mut clients = Vec::new();
        for broker in &brokers {
            clients.push(RawClient::connect(broker).await?);
        }
        until("all of them take partitions", async || {
            let create =
                CreateTopicRequest { name: TOPIC.into(), partitions: 2, replicas: 3, ..Default::default() };
            let created = clients[0].rpc(request::Body::CreateTopic(create)).await?;
            Ok(matches!(created, response::Body::CreateTopic(_)).then_some(()))
        })
        .await?;
        Ok(Three { brokers, clients, _dirs: dirs })
    }

    /// The group's coordinator as one broker has it, and its partition.
    async fn coordinator(&self, at: usize) -> Result<Option<(u32, u32)>> {
        let asked = FindCoordinatorRequest { group: GROUP.into() };
        Ok(match self.clients[at].rpc(request::Body::FindCoordinator(asked)).await? {
            response::Body::FindCoordinator(found) => Some((found.broker_id, found.partition)),
            _ => None,
        })
    }

    fn client_of(&self, broker: u32) -> Result<&RawClient> {
        let at = self.brokers.iter().position(|known| known.id().0 == broker);
        Ok(&self.clients[at.context("it is one of them")?])
    }
}

fn join(member: &str, topics: &[&str]) -> GroupHeartbeatRequest {
    GroupHeartbeatRequest {
        group: GROUP.into(),
        member: member.into(),
        has_subscription: true,
        topics: topics.iter().map(|topic| (*topic).into()).collect(),
        session_timeout_ms: 60_000,
        ..Default::default()
    }
}

fn beat(member: &str, epoch: i32) -> GroupHeartbeatRequest {
    GroupHeartbeatRequest {
        group: GROUP.into(),
        member: member.into(),
        member_epoch: epoch,
        ..Default::default()
    }
}

/// What a heartbeat is answered.
async fn says(
    client: &RawClient,
    heartbeat: GroupHeartbeatRequest,
) -> Result<Result<GroupHeartbeatResponse, control::Error>> {
    match client.rpc(request::Body::GroupHeartbeat(heartbeat)).await? {
        response::Body::GroupHeartbeat(answer) => Ok(Ok(answer)),
        response::Body::Error(error) => Ok(Err(error)),
        other => bail!("answered {other:?}"),
    }
}

/// A coordinator that lost its partition while everybody was there once said for ever that it reads its log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_finds_the_coordinator_that_it_was_moved_to() -> Result<()> {
    let three = Three::start().await?;
    let (first, partition) = until("there is a coordinator", async || three.coordinator(0).await).await?;
    let joined = until("the member has joined", async || {
        Ok(says(three.client_of(first)?, join("m1", &[TOPIC])).await?.ok())
    })
    .await?;

    let mut replicas: Vec<u32> = three.brokers.iter().map(|broker| broker.id().0).collect();
    replicas.sort_by_key(|id| *id == first);
    let preferred = replicas[0];
    let reassign = ReassignRequest { topic: OFFSETS_TOPIC.into(), partition, replicas, give_up: false };
    let reassigned = three.clients[0].rpc(request::Body::Reassign(reassign)).await?;
    ensure!(matches!(reassigned, response::Body::Reassign(_)), "answered {reassigned:?}");
    until("another leads", async || {
        let elect = ElectLeadersRequest { topic: OFFSETS_TOPIC.into(), unclean_partition: None };
        three.clients[0].rpc(request::Body::ElectLeaders(elect)).await?;
        Ok((three.coordinator(0).await? == Some((preferred, partition))).then_some(()))
    })
    .await?;

    let refused = until("the one before knows it", async || {
        let answer = says(three.client_of(first)?, beat("m1", joined.member_epoch)).await?;
        Ok(answer.err().filter(|error| error.error_code() == ErrorCode::NotCoordinator))
    })
    .await?;
    ensure!(refused.message.contains(&preferred.to_string()), "it says who is: {}", refused.message);
    let answer = until("the other one decides", async || {
        Ok(says(three.client_of(preferred)?, beat("m1", joined.member_epoch)).await?.ok())
    })
    .await?;
    ensure!(answer.member_epoch == joined.member_epoch, "it goes on as it was: {answer:?}");
    ensure!(!answer.has_assignment, "and has what it had");
    Ok(())
}

async fn deletes(client: &RawClient) -> Result<response::Body> {
    client.rpc(request::Body::DeleteGroup(control::DeleteGroupRequest { group: GROUP.into() })).await
}

#[tokio::test]
async fn only_who_joined_speaks_for_a_member() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Broker::builder().data_dir(dir.path()).shards(1).anonymous(true).start().await?;
    let admin = RawClient::connect(&broker).await?;
    admin.create_topic(TOPIC, &[]).await?;
    let nobody = RawClient::connect_as(broker.address(), &broker.credentials().authority_pem, None).await?;
    let hello = control::HelloRequest { version_min: 1, version_max: 1, ..Default::default() };
    nobody.rpc(request::Body::Hello(hello)).await?;
    until("there is a coordinator", async || {
        let asked = FindCoordinatorRequest { group: GROUP.into() };
        let found = admin.rpc(request::Body::FindCoordinator(asked)).await?;
        Ok(matches!(found, response::Body::FindCoordinator(_)).then_some(()))
    })
    .await?;
    let joined =
        until("the member has joined", async || Ok(says(&admin, join("m1", &[TOPIC])).await?.ok())).await?;

    let refused = async |heartbeat: GroupHeartbeatRequest| {
        let answer = says(&nobody, heartbeat.clone()).await?;
        let error = answer.err().with_context(|| format!("{heartbeat:?} is taken"))?;
        anyhow::Ok(error.error_code())
    };
    for epoch in [joined.member_epoch, -1, -2] {
        ensure!(refused(beat("m1", epoch)).await? == ErrorCode::NotAuthorized, "in epoch {epoch}");
    }
    let unnamed = says(&admin, join("", &[TOPIC])).await?.err().context("whoever joins draws an id")?;
    ensure!(unnamed.error_code() == ErrorCode::InvalidRequest, "{}", unnamed.message);
    ensure!(refused(join("m2", &[])).await? == ErrorCode::InvalidRequest, "whoever joins names topics");
    ensure!(refused(join("m2", &[TOPIC])).await? == ErrorCode::NotAuthorized, "that it may consume");
    ensure!(says(&admin, beat("m1", joined.member_epoch)).await?.is_ok(), "the member is there");

    ensure!(says(&admin, beat("m1", -1)).await?.is_ok(), "it leaves");
    ensure!(
        code(deletes(&nobody).await?)? == ErrorCode::NotAuthorized,
        "a group without offsets is not anybody's"
    );
    ensure!(matches!(deletes(&admin).await?, response::Body::DeleteGroup(_)));
    Ok(())
}

/// Members once waited for ever, or had the whole log read again with every heartbeat.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_too_few_replicas_are_in_sync_members_are_told_so() -> Result<()> {
    let mut three = Three::start().await?;
    let (leader, _) = until("there is a coordinator", async || three.coordinator(0).await).await?;
    let joined = until("the member has joined", async || {
        Ok(says(three.client_of(leader)?, join("m1", &[TOPIC])).await?.ok())
    })
    .await?;
    let needs = async |three: &Three, replicas: &str| {
        let alter = control::AlterTopicRequest {
            name: OFFSETS_TOPIC.into(),
            set_config: [("min.insync.replicas".to_owned(), replicas.to_owned())].into(),
            ..Default::default()
        };
        let altered = three.client_of(leader)?.rpc(request::Body::AlterTopic(alter)).await?;
        ensure!(matches!(altered, response::Body::AlterTopic(_)), "answered {altered:?}");
        Ok(())
    };
    needs(&three, "3").await?;
    let away = three.brokers.iter().position(|broker| broker.id().0 != leader).context("there are others")?;
    three.clients.remove(away);
    three.brokers.remove(away).shutdown().await;
    until("it is told", async || {
        let answer = says(three.client_of(leader)?, beat("m1", joined.member_epoch)).await?;
        Ok(answer.err().filter(|error| error.error_code() == ErrorCode::NotEnoughReplicas))
    })
    .await?;
    let listed =
        three.client_of(leader)?.rpc(request::Body::ListGroups(control::ListGroupsRequest {})).await?;
    let response::Body::ListGroups(listed) = listed else { bail!("answered {listed:?}") };
    ensure!(!listed.loading.is_empty(), "a list says of whom it does not know: {listed:?}");
    needs(&three, "2").await?;
    let answer = until("it goes on", async || {
        Ok(says(three.client_of(leader)?, beat("m1", joined.member_epoch)).await?.ok())
    })
    .await?;
    ensure!(answer.member_epoch == joined.member_epoch && !answer.has_assignment, "as it was: {answer:?}");
    Ok(())
}

#[tokio::test]
async fn what_groups_are_kept_in_is_not_set_to_lose_them() -> Result<()> {
    let support::TestBroker { broker, dir: _dir } = support::start().await?;
    let client = RawClient::connect(&broker).await?;
    until("the topic is there", async || {
        let asked = FindCoordinatorRequest { group: GROUP.into() };
        let found = client.rpc(request::Body::FindCoordinator(asked)).await?;
        Ok(matches!(found, response::Body::FindCoordinator(_)).then_some(()))
    })
    .await?;
    let alter = |set: &[(&str, &str)], unset: &[&str]| {
        request::Body::AlterTopic(control::AlterTopicRequest {
            name: OFFSETS_TOPIC.into(),
            set_config: set.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            unset_config: unset.iter().map(|key| (*key).to_owned()).collect(),
            ..Default::default()
        })
    };
    for setting in [
        ("cleanup.policy", "delete"),
        ("retention.ms", "1000"),
        ("retention.bytes", "1000"),
        ("delete.retention.ms", "0"),
        ("sync", "interval"),
        ("unclean.leader.election.enable", "true"),
    ] {
        ensure!(code(client.rpc(alter(&[setting], &[])).await?)? == ErrorCode::NotPossible, "{setting:?}");
        ensure!(code(client.rpc(alter(&[], &[setting.0])).await?)? == ErrorCode::NotPossible, "{setting:?}");
    }
    let harmless = client.rpc(alter(&[("segment.bytes", "1048576")], &[])).await?;
    ensure!(matches!(harmless, response::Body::AlterTopic(_)), "answered {harmless:?}");
    Ok(())
}
