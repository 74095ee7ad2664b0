//! Who gets in: holders of a certificate of the broker's own authority, and nobody else by default.

mod support;

use anyhow::Result;
use quire_broker::Broker;
use quire_protocol::rpc::control::{HelloRequest, request, response};

use support::{RawClient, start};

/// Whether a client of these credentials is served. Under TLS 1.3 a client that is refused learns of it only when it
/// asks for something.
async fn is_served(broker: &Broker, authority: &str, identity: Option<(&str, &str)>) -> Option<String> {
    let client = RawClient::connect_as(broker.address(), authority, identity).await.ok()?;
    let hello = HelloRequest { version_min: 1, version_max: 1, ..HelloRequest::default() };
    match client.rpc(request::Body::Hello(hello)).await.ok()? {
        response::Body::Hello(hello) => Some(hello.principal),
        _ => None,
    }
}

#[tokio::test]
async fn only_a_certificate_of_the_own_authority_gets_in() -> Result<()> {
    let (ours, theirs) = (start().await?, start().await?);
    let (own, foreign) = (ours.broker.credentials(), theirs.broker.credentials());
    let identity = Some((own.certificate_pem.as_str(), own.key_pem.as_str()));
    assert_eq!(is_served(&ours.broker, &own.authority_pem, identity).await.as_deref(), Some("admin"));
    assert_eq!(is_served(&ours.broker, &own.authority_pem, None).await, None, "no certificate");
    let stranger = Some((foreign.certificate_pem.as_str(), foreign.key_pem.as_str()));
    assert_eq!(
        is_served(&ours.broker, &own.authority_pem, stranger).await,
        None,
        "another authority's client"
    );
    assert_eq!(
        is_served(&ours.broker, &foreign.authority_pem, identity).await,
        None,
        "another authority's broker"
    );
    Ok(())
}

#[tokio::test]
async fn anonymous_clients_are_let_in_only_where_that_is_set() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let broker = Broker::builder().data_dir(dir.path()).shards(1).anonymous(true).start().await?;
    let authority = broker.credentials().authority_pem;
    assert_eq!(is_served(&broker, &authority, None).await.as_deref(), Some("anonymous"));
    Ok(())
}
