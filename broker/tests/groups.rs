//! Groups, asked by hand: where they are coordinated, and who may do what with them.

mod support;

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use quire_broker::Broker;
use quire_broker::config::{FirstStart, HostPort};
use quire_protocol::rpc::control::{
    self, AclOperation, CreateTopicRequest, ElectLeadersRequest, FindCoordinatorRequest,
    GroupHeartbeatRequest, GroupHeartbeatResponse, ReassignRequest, request, response,
};
use quire_protocol::{ErrorCode, OFFSETS_TOPIC, TopicId};

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

/// A broker that lets anonymous clients in and coordinates groups, its administrator, and an anonymous client.
async fn admitted() -> Result<(Broker, tempfile::TempDir, RawClient, RawClient)> {
    let dir = tempfile::tempdir()?;
    let broker = Broker::builder().data_dir(dir.path()).shards(1).anonymous(true).start().await?;
    let admin = RawClient::connect(&broker).await?;
    let nobody = RawClient::connect_as(broker.address(), &broker.credentials().authority_pem, None).await?;
    let hello = control::HelloRequest { version_min: 1, version_max: 1, ..Default::default() };
    nobody.rpc(request::Body::Hello(hello)).await?;
    until("there is a coordinator", async || {
        let found = admin.rpc(finds(GROUP)).await?;
        Ok(matches!(found, response::Body::FindCoordinator(_)).then_some(()))
    })
    .await?;
    Ok((broker, dir, admin, nobody))
}

fn finds(group: &str) -> request::Body {
    request::Body::FindCoordinator(FindCoordinatorRequest { group: group.into() })
}

/// Gives the anonymous client a right on what begins so, or takes it away.
async fn change(admin: &RawClient, operation: AclOperation, prefix: &str, remove: bool) -> Result<()> {
    let is_of_groups = operation == AclOperation::Join;
    let (topic_prefix, group_prefix) = if is_of_groups { ("", prefix) } else { (prefix, "") };
    let acl = control::Acl {
        principal: "anonymous".into(),
        operation: operation.into(),
        topic_prefix: topic_prefix.into(),
        group_prefix: group_prefix.into(),
    };
    let changed =
        admin.rpc(request::Body::ChangeAcl(control::ChangeAclRequest { acl: Some(acl), remove })).await?;
    ensure!(matches!(changed, response::Body::ChangeAcl(_)), "answered {changed:?}");
    Ok(())
}

#[tokio::test]
async fn only_who_joined_speaks_for_a_member() -> Result<()> {
    let (_broker, _dir, admin, nobody) = admitted().await?;
    let topic = admin.create_topic(TOPIC, &[]).await?.topic;
    for (operation, prefix) in [(AclOperation::Join, GROUP), (AclOperation::Consume, TOPIC)] {
        change(&admin, operation, prefix, false).await?;
    }
    let joined =
        until("the member has joined", async || Ok(says(&admin, join("m1", &[TOPIC])).await?.ok())).await?;

    let refused = async |heartbeat: GroupHeartbeatRequest| {
        let answer = says(&nobody, heartbeat.clone()).await?;
        let error = answer.err().with_context(|| format!("{heartbeat:?} is taken"))?;
        anyhow::Ok(error.error_code())
    };
    for epoch in [joined.member_epoch, 0, -1, -2] {
        let said = GroupHeartbeatRequest { member_epoch: epoch, ..join("m1", &[TOPIC]) };
        ensure!(refused(said).await? == ErrorCode::NotAuthorized, "in epoch {epoch}");
    }
    let commit = commits(topic, "m1", joined.member_epoch);
    ensure!(code(nobody.rpc(commit.clone()).await?)? == ErrorCode::NotAuthorized, "in the member's name");
    let unnamed = says(&admin, join("", &[TOPIC])).await?.err().context("whoever joins draws an id")?;
    ensure!(unnamed.error_code() == ErrorCode::InvalidRequest, "{}", unnamed.message);
    ensure!(refused(join("m2", &[])).await? == ErrorCode::InvalidRequest, "whoever joins names topics");
    ensure!(refused(join("m2", &["secret"])).await? == ErrorCode::NotAuthorized, "that it may consume");
    ensure!(says(&admin, beat("m1", joined.member_epoch)).await?.is_ok(), "the member is there");
    let committed = admin.rpc(commit).await?;
    ensure!(is_committed(&committed), "by who it joined as: {committed:?}");
    ensure!(says(&admin, beat("m1", -1)).await?.is_ok(), "it leaves");
    Ok(())
}

/// A commit of one record; of a client that reads by itself if it names no member.
fn commits(topic: TopicId, member: &str, epoch: i32) -> request::Body {
    let offset =
        control::CommittedOffset { topic_id: topic.as_bytes().to_vec(), offset: 1, ..Default::default() };
    request::Body::CommitOffsets(control::CommitOffsetsRequest {
        group: GROUP.into(),
        member: member.into(),
        member_epoch: epoch,
        offsets: vec![offset],
    })
}

fn is_committed(answer: &response::Body) -> bool {
    matches!(answer, response::Body::CommitOffsets(told) if told.errors.iter().all(|error| error.code == 0))
}

fn describes() -> request::Body {
    request::Body::DescribeGroup(control::DescribeGroupRequest { group: GROUP.into() })
}

/// Names of groups, each with the topics it is shown with.
async fn listed(client: &RawClient) -> Result<Vec<(String, Vec<String>)>> {
    match client.rpc(request::Body::ListGroups(control::ListGroupsRequest {})).await? {
        response::Body::ListGroups(listed) => {
            Ok(listed.groups.into_iter().map(|group| (group.group, group.topics)).collect())
        }
        other => bail!("answered {other:?}"),
    }
}

/// A right to consume a topic was once a right to every group that there is.
#[tokio::test]
async fn a_group_is_nobodys_who_may_not_join_it() -> Result<()> {
    let (_broker, _dir, admin, nobody) = admitted().await?;
    let topic = admin.create_topic(TOPIC, &[]).await?.topic;
    change(&admin, AclOperation::Consume, "", false).await?;
    change(&admin, AclOperation::Join, "bills", false).await?;
    let joined =
        until("the member has joined", async || Ok(says(&admin, join("m1", &[TOPIC])).await?.ok())).await?;
    ensure!(is_committed(&admin.rpc(commits(topic, "m1", joined.member_epoch)).await?));

    let simple = || commits(topic, "", 0);
    let fetch = request::Body::FetchOffsets(control::FetchOffsetsRequest {
        group: GROUP.into(),
        ..Default::default()
    });
    let reset = request::Body::ResetOffsets(control::ResetOffsetsRequest {
        group: GROUP.into(),
        ..Default::default()
    });
    let delete = request::Body::DeleteGroup(control::DeleteGroupRequest { group: GROUP.into() });
    for (body, what) in [
        (finds(GROUP), "join"),
        (request::Body::GroupHeartbeat(join("m2", &[TOPIC])), "join"),
        (request::Body::GroupHeartbeat(beat("m1", joined.member_epoch)), "join"),
        (simple(), "commit offsets of"),
        (commits(topic, "m1", joined.member_epoch), "commit offsets of"),
        (fetch.clone(), "look at"),
        (describes(), "look at"),
        (reset, "reset"),
        (delete.clone(), "delete"),
    ] {
        let response::Body::Error(error) = nobody.rpc(body.clone()).await? else {
            bail!("{body:?} is taken")
        };
        ensure!(error.error_code() == ErrorCode::NotAuthorized, "{body:?}");
        let told = format!(
            "\"anonymous\" may not {what} group \"billing\"; an administrator gives the right with: \
             quire acl add anonymous join --group billing"
        );
        ensure!(error.message == told, "{}", error.message);
    }
    let unknown = request::Body::DescribeGroup(control::DescribeGroupRequest { group: "unknown".into() });
    ensure!(
        code(nobody.rpc(unknown).await?)? == ErrorCode::NotAuthorized,
        "alike whether there is one or not"
    );
    ensure!(listed(&nobody).await?.is_empty(), "what one has no right to is not shown");
    ensure!(listed(&admin).await? == [(GROUP.to_owned(), vec![TOPIC.to_owned()])]);
    let response::Body::DescribeGroup(group) = admin.rpc(describes()).await? else { bail!("it is there") };
    ensure!((group.members.len(), group.offsets.len()) == (1, 1), "nothing of it happened: {group:?}");

    ensure!(says(&admin, beat("m1", -1)).await?.is_ok(), "it leaves");
    change(&admin, AclOperation::Join, "billing", false).await?;
    ensure!(is_committed(&nobody.rpc(simple()).await?), "who reads by itself needs the same right");
    ensure!(
        matches!(nobody.rpc(fetch).await?, response::Body::FetchOffsets(told) if told.offsets.len() == 1)
    );
    ensure!(
        matches!(nobody.rpc(delete).await?, response::Body::DeleteGroup(_)),
        "it is whose who may join it"
    );
    Ok(())
}

#[tokio::test]
async fn who_joins_a_group_needs_a_right_to_it_and_one_to_what_it_consumes() -> Result<()> {
    let (_broker, _dir, admin, nobody) = admitted().await?;
    let topic = admin.create_topic(TOPIC, &[]).await?.topic;
    change(&admin, AclOperation::Join, "bill", false).await?;
    let refused = says(&nobody, join("m1", &[TOPIC])).await?.err().context("it may not consume")?;
    ensure!(
        refused.message
            == "\"anonymous\" may not consume topic \"flights\"; an administrator gives the right with: \
                quire acl add anonymous consume --prefix flights",
        "{}",
        refused.message
    );
    ensure!(code(nobody.rpc(commits(topic, "", 0)).await?)? == ErrorCode::NotAuthorized, "nor by itself");
    change(&admin, AclOperation::Consume, TOPIC, false).await?;
    let joined =
        until("the member has joined", async || Ok(says(&nobody, join("m1", &[TOPIC])).await?.ok())).await?;
    let committed = nobody.rpc(commits(topic, "m1", joined.member_epoch)).await?;
    ensure!(is_committed(&committed), "{committed:?}");
    ensure!(matches!(nobody.rpc(describes()).await?, response::Body::DescribeGroup(_)));
    ensure!(listed(&nobody).await? == [(GROUP.to_owned(), vec![TOPIC.to_owned()])]);

    change(&admin, AclOperation::Consume, TOPIC, true).await?;
    ensure!(
        listed(&nobody).await? == [(GROUP.to_owned(), Vec::new())],
        "topics are shown by their own right"
    );
    ensure!(code(nobody.rpc(describes()).await?)? == ErrorCode::NotAuthorized);
    change(&admin, AclOperation::Join, "bill", true).await?;
    let refused = says(&nobody, beat("m1", joined.member_epoch)).await?.err().context("its right is gone")?;
    ensure!(refused.error_code() == ErrorCode::NotAuthorized, "{}", refused.message);
    ensure!(says(&nobody, beat("m1", -1)).await?.is_ok(), "it leaves, and holds up nobody for its session");
    let response::Body::DescribeGroup(group) = admin.rpc(describes()).await? else { bail!("it is there") };
    ensure!(group.members.is_empty(), "{group:?}");
    Ok(())
}

#[tokio::test]
async fn a_right_names_topics_or_groups_and_is_listed_so() -> Result<()> {
    let (_broker, _dir, admin, _nobody) = admitted().await?;
    change(&admin, AclOperation::Join, "bill", false).await?;
    let response::Body::ListAcls(told) =
        admin.rpc(request::Body::ListAcls(control::ListAclsRequest {})).await?
    else {
        bail!("rights are listed")
    };
    let given = control::Acl {
        principal: "anonymous".into(),
        operation: AclOperation::Join.into(),
        topic_prefix: String::new(),
        group_prefix: "bill".into(),
    };
    ensure!(told.acls == [given.clone()], "{told:?}");
    for (operation, topic_prefix, group_prefix) in
        [(AclOperation::Join, "t", ""), (AclOperation::Join, "t", "g"), (AclOperation::Consume, "", "g")]
    {
        let acl = control::Acl {
            operation: operation.into(),
            topic_prefix: topic_prefix.into(),
            group_prefix: group_prefix.into(),
            ..given.clone()
        };
        let change = control::ChangeAclRequest { acl: Some(acl), remove: false };
        ensure!(code(admin.rpc(request::Body::ChangeAcl(change)).await?)? == ErrorCode::InvalidRequest);
    }
    Ok(())
}

#[tokio::test]
async fn no_group_comes_to_be_with_a_name_that_breaks_lines() -> Result<()> {
    let (_broker, _dir, admin, _nobody) = admitted().await?;
    admin.create_topic(TOPIC, &[]).await?;
    for joins in [
        GroupHeartbeatRequest { group: "two\nlines".into(), ..join("m1", &[TOPIC]) },
        join("bell\u{7}", &[TOPIC]),
        GroupHeartbeatRequest { client_name: "\u{1b}[2J".into(), ..join("m1", &[TOPIC]) },
    ] {
        let refused = until("it is decided", async || {
            let answer = says(&admin, joins.clone()).await?;
            let error = answer.err().context("it joins")?;
            Ok((error.error_code() != ErrorCode::CoordinatorLoading).then_some(error))
        })
        .await?;
        ensure!(refused.error_code() == ErrorCode::InvalidRequest, "{}", refused.message);
        ensure!(refused.message.ends_with("all characters are allowed but control characters"));
    }
    ensure!(listed(&admin).await?.is_empty());
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
