//! Who may do what: every request and every stream of a principal without the right is refused, with what to do.

mod support;

use anyhow::{Context, Result, bail};
use quire_broker::Broker;
use quire_protocol::ErrorCode;
use quire_protocol::rpc::control::{
    self, AclOperation, ClusterStatusRequest, CreateTopicRequest, DescribeTopicsRequest, HelloRequest,
    ListTopicsRequest, request, response,
};
use quire_protocol::stream::{Answer, Start};

use support::{RawClient, code, failure};

/// A broker that lets anonymous clients in, its administrator, and one that is nobody.
async fn admitted() -> Result<(Broker, tempfile::TempDir, RawClient, RawClient)> {
    let dir = tempfile::tempdir()?;
    let broker = Broker::builder().data_dir(dir.path()).shards(1).anonymous(true).start().await?;
    let admin = RawClient::connect(&broker).await?;
    let nobody = RawClient::connect_as(broker.address(), &broker.credentials().authority_pem, None).await?;
    let hello = HelloRequest { version_min: 1, version_max: 1, ..HelloRequest::default() };
    match nobody.rpc(request::Body::Hello(hello)).await? {
        response::Body::Hello(hello) if hello.principal == "anonymous" => {}
        other => bail!("answered {other:?}"),
    }
    Ok((broker, dir, admin, nobody))
}

fn change(operation: AclOperation, prefix: &str, remove: bool) -> request::Body {
    let acl = control::Acl {
        principal: "anonymous".into(),
        operation: operation.into(),
        topic_prefix: prefix.into(),
        ..control::Acl::default()
    };
    request::Body::ChangeAcl(control::ChangeAclRequest { acl: Some(acl), remove })
}

fn create(name: &str) -> request::Body {
    request::Body::CreateTopic(CreateTopicRequest {
        name: name.into(),
        partitions: 1,
        ..CreateTopicRequest::default()
    })
}

async fn names(client: &RawClient) -> Result<Vec<String>> {
    match client.rpc(request::Body::ListTopics(ListTopicsRequest {})).await? {
        response::Body::ListTopics(listed) => Ok(listed.topics.into_iter().map(|t| t.name).collect()),
        other => bail!("answered {other:?}"),
    }
}

#[tokio::test]
async fn nobody_does_anything_without_a_right() -> Result<()> {
    let (_broker, _dir, admin, nobody) = admitted().await?;
    let flights = admin.create_topic("flights", &[]).await?;

    for body in [
        create("mine"),
        request::Body::DeleteTopic(control::DeleteTopicRequest { name: "flights".into() }),
        request::Body::AlterTopic(control::AlterTopicRequest {
            name: "flights".into(),
            ..Default::default()
        }),
        request::Body::ClusterStatus(ClusterStatusRequest {}),
        request::Body::DrainBroker(control::DrainBrokerRequest::default()),
        request::Body::RemoveBroker(control::RemoveBrokerRequest { broker_id: 7 }),
        request::Body::PlanRebalance(control::PlanRebalanceRequest::default()),
        request::Body::Reassign(control::ReassignRequest { topic: "flights".into(), ..Default::default() }),
        request::Body::ElectLeaders(control::ElectLeadersRequest::default()),
        request::Body::ListAcls(control::ListAclsRequest {}),
        change(AclOperation::Administer, "", false),
        request::Body::ListOffsets(control::ListOffsetsRequest {
            with_ages: false,
            topic_id: flights.topic.as_bytes().to_vec(),
            partitions: Vec::new(),
        }),
    ] {
        assert_eq!(code(nobody.rpc(body.clone()).await?)?, ErrorCode::NotAuthorized, "{body:?}");
    }
    let (_stream, refused) = nobody.produce(flights).await?;
    assert_eq!(failure(refused)?.code, ErrorCode::NotAuthorized);
    let (_stream, refused) = nobody.consume(flights, Start::Beginning, 1024).await?;
    assert_eq!(failure(refused)?.code, ErrorCode::NotAuthorized);

    assert_eq!(names(&nobody).await?, Vec::<String>::new(), "what one has no right on is not shown");
    let asked =
        DescribeTopicsRequest { names: vec!["flights".into(), "flight".into()], with_log_state: true };
    let response::Body::DescribeTopics(described) = nobody.rpc(request::Body::DescribeTopics(asked)).await?
    else {
        bail!("topics are described one by one")
    };
    for topic in described.topics {
        let error = topic.error.context("it is refused")?;
        assert_eq!(error.error_code(), ErrorCode::NotAuthorized, "alike whether it exists or not");
        assert_eq!(topic.suggestion, "");
    }
    Ok(())
}

#[tokio::test]
async fn a_right_holds_for_its_operation_and_prefix_until_it_is_taken_away() -> Result<()> {
    let (_broker, _dir, admin, nobody) = admitted().await?;
    let (flights, secret) =
        (admin.create_topic("flights", &[]).await?, admin.create_topic("secret", &[]).await?);
    admin.rpc(change(AclOperation::Consume, "fl", false)).await?;
    assert_eq!(names(&nobody).await?, ["flights"]);
    let (_stream, opened) = nobody.consume(flights, Start::Beginning, 1024).await?;
    assert!(matches!(opened, Answer::Opened(_)), "{opened:?}");
    let (_stream, refused) = nobody.consume(secret, Start::Beginning, 1024).await?;
    assert_eq!(failure(refused)?.code, ErrorCode::NotAuthorized);
    let (_stream, refused) = nobody.produce(flights).await?;
    let refused = failure(refused)?;
    assert_eq!(
        refused.message,
        "\"anonymous\" may not produce to topic \"flights\"; an administrator gives the right with: \
         quire acl add anonymous produce --prefix flights"
    );
    admin.rpc(change(AclOperation::Manage, "own.", false)).await?;
    nobody.create_topic("own.things", &[]).await?;
    assert_eq!(code(nobody.rpc(create("others")).await?)?, ErrorCode::NotAuthorized);

    admin.rpc(change(AclOperation::Consume, "fl", true)).await?;
    let (_stream, refused) = nobody.consume(flights, Start::Beginning, 1024).await?;
    assert_eq!(failure(refused)?.code, ErrorCode::NotAuthorized);
    assert_eq!(code(admin.rpc(change(AclOperation::Consume, "fl", true)).await?)?, ErrorCode::InvalidRequest);
    Ok(())
}
