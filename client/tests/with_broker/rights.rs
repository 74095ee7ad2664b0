//! Two principals: what one may do with a group it is told, and what is missing with the command that gives it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use quire_broker::Broker;
use quire_client::{
    Acl, AclOperation, Client, ConsumeError, Error, ErrorCode, GroupConsumer, GroupConsumerBuilder, NewTopic,
    Profile,
};
use tempfile::TempDir;
use tokio::time::timeout;

use crate::support::{connect, quick, record};

const PATIENCE: Duration = Duration::from_secs(30);

/// A broker with a topic `t` of one record, its administrator, and an anonymous client.
struct Two {
    _broker: Broker,
    _dir: TempDir,
    admin: Client,
    nobody: Client,
}

impl Two {
    async fn start() -> Two {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let broker = Broker::builder().data_dir(dir.path()).anonymous(true).start().await.expect("it starts");
        let admin = connect(&broker).await;
        let profile = Profile::new(format!("quire://{}", broker.address()))
            .authority_pem(broker.credentials().authority_pem);
        let nobody = Client::connect_configured(profile, quick()).await.expect("it is let in");
        assert_eq!((admin.principal(), nobody.principal()), ("admin", "anonymous"));
        admin.admin().create_topic(NewTopic::new("t")).await.expect("created");
        admin.producer().build().send("t", record("a record")).await.expect("acknowledged");
        Two { _broker: broker, _dir: dir, admin, nobody }
    }

    fn right(operation: AclOperation, prefix: &str) -> Acl {
        Acl { principal: "anonymous".into(), operation, prefix: prefix.into() }
    }

    async fn give(&self, operation: AclOperation, prefix: &str) {
        self.admin.admin().add_acl(Two::right(operation, prefix)).await.expect("given");
    }
}

fn builder(client: &Client, group: &str) -> GroupConsumerBuilder {
    client.consumer().group(group).topics(["t"]).commit_interval(Duration::from_millis(20))
}

/// Why a group does not take a member.
async fn refusal(client: &Client, group: &str) -> String {
    let mut consumer = builder(client, group).build().expect("settings that hold");
    let refused = timeout(PATIENCE, consumer.next()).await.expect("in time").expect_err("it may not join");
    assert_eq!(refused.code(), Some(ErrorCode::NotAuthorized), "{refused}");
    refused.to_string()
}

async fn takes(consumer: &mut GroupConsumer) {
    timeout(PATIENCE, consumer.next()).await.expect("in time").expect("a record");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_takes_whoever_may_join_it_and_consume_its_topics() {
    let two = Two::start().await;
    two.give(AclOperation::Consume, "t").await;
    let told = refusal(&two.nobody, "billing").await;
    let missing = "\"anonymous\" may not join group \"billing\"; an administrator gives the right with: \
                   quire acl add anonymous join --group billing";
    assert!(told.contains(missing), "{told}");
    let described = two.nobody.admin().describe_group("billing").await.expect_err("it may not know");
    assert_eq!(described.code(), Some(ErrorCode::NotAuthorized), "{described}");

    two.give(AclOperation::Join, "billing").await;
    two.admin.admin().remove_acl(Two::right(AclOperation::Consume, "t")).await.expect("taken away");
    let told = refusal(&two.nobody, "billing").await;
    let missing = "\"anonymous\" may not consume topic \"t\"; an administrator gives the right with: \
                   quire acl add anonymous consume --prefix t";
    assert!(told.contains(missing), "{told}");

    two.give(AclOperation::Consume, "t").await;
    let mut consumer = builder(&two.nobody, "billing").build().expect("settings that hold");
    takes(&mut consumer).await;
    consumer.commit_sync().await.expect("committed");
    consumer.leave().await.expect("told");
    let mut other = builder(&two.admin, "audit").build().expect("settings that hold");
    takes(&mut other).await;
    let names =
        |groups: quire_client::Groups| groups.groups.into_iter().map(|group| group.name).collect::<Vec<_>>();
    let seen = names(two.nobody.admin().list_groups().await.expect("a list"));
    assert_eq!(seen, ["billing"], "one's own, and no other");
    let seen = names(two.admin.admin().list_groups().await.expect("a list"));
    assert_eq!(seen, ["audit", "billing"]);
    let refused = two.nobody.admin().delete_group("audit").await.expect_err("it is not its own");
    assert_eq!(refused.code(), Some(ErrorCode::NotAuthorized), "{refused}");
    two.nobody.admin().delete_group("billing").await.expect("it is its own");
}

/// A member that could not go on stayed, and its partitions were read by nobody for its session.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_whose_right_is_taken_away_is_told_and_leaves() {
    let two = Two::start().await;
    two.give(AclOperation::Consume, "t").await;
    two.give(AclOperation::Join, "").await;
    let settings = builder(&two.nobody, "billing").session_timeout(Duration::from_secs(600));
    let mut consumer = settings.commit_manually().build().expect("settings that hold");
    takes(&mut consumer).await;
    two.admin.admin().remove_acl(Two::right(AclOperation::Join, "")).await.expect("taken away");
    let refused = timeout(PATIENCE, consumer.next()).await.expect("in time").expect_err("its right is gone");
    assert_eq!(refused.code(), Some(ErrorCode::NotAuthorized), "{refused}");
    let _ = consumer.leave().await;
    let described = two.admin.admin().describe_group("billing").await.expect("it is there");
    assert_eq!(described.members, [], "long before its session is over");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_client_makes_a_group_whose_name_breaks_lines() {
    let two = Two::start().await;
    let odd = "two\nlines";
    let builders = [
        builder(&two.admin, odd),
        builder(&two.admin, ""),
        builder(&two.admin, &"g".repeat(256)),
        builder(&two.admin, "g").instance_id(odd),
        builder(&two.admin, "g").rack(odd),
        builder(&two.admin, "g").client_name(odd),
    ];
    for builder in builders {
        let built = builder.clone().build();
        assert!(matches!(built, Err(ConsumeError::InvalidSettings(_))), "{builder:?}");
    }
    let why = builder(&two.admin, odd).build().expect_err("no group has the name").to_string();
    assert_eq!(why, "a group's name has '\\n'; all characters are allowed but control characters");
    let reset = two.admin.admin().reset_group(odd, &BTreeMap::new(), &BTreeSet::new()).await;
    assert!(matches!(reset, Err(Error::InvalidRequest(_))), "{reset:?}");
}
