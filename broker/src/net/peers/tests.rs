//! Brokers that call each other on loopback, and those that must not.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};

use quire_protocol::rpc::peer::{HeartbeatRequest, HeartbeatResponse};
use rcgen::ExtendedKeyUsagePurpose;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::super::authority::{Authority, Subject, new_key};
use super::super::certificates::Identity;
use super::tls::{PeerIdentity, broker_subject};
use super::*;

const PATIENCE: Duration = Duration::from_secs(10);
const CLUSTER: &str = "c1";

/// Answers heartbeats with the caller's number, and sends back what comes on a stream.
#[derive(Default)]
struct Echo {
    served: AtomicUsize,
}

impl PeerService for Echo {
    fn serve(&self, from: BrokerId, request: request::Body) -> BoxFuture<'static, response::Body> {
        self.served.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move {
            match request {
                request::Body::Heartbeat(_) => response::Body::Heartbeat(HeartbeatResponse {
                    controller_id: from.0,
                    ..Default::default()
                }),
                request::Body::Raft(bytes) => response::Body::Raft(bytes),
                _ => std::future::pending().await,
            }
        })
    }

    fn stream(
        &self,
        _from: BrokerId,
        kind: StreamKind,
        mut send: SendStream,
        mut recv: RecvStream,
    ) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            let _ = send.write_all(&[kind as u8]).await;
            while let Ok(Some(chunk)) = recv.read_chunk(usize::MAX, true).await {
                if send.write_chunk(chunk.bytes).await.is_err() {
                    return;
                }
            }
            let _ = send.finish();
        })
    }
}

struct Cluster {
    authority: Authority,
    revoked: Arc<Revoked>,
}

impl Cluster {
    fn new() -> Cluster {
        Cluster { authority: Authority::create().expect("made"), revoked: Arc::default() }
    }

    fn identity(&self, subject: &Subject) -> Identity {
        let key = new_key().expect("a key");
        let certificate_pem = self.authority.sign(subject, &key).expect("signed");
        Identity { certificate_pem, key_pem: key.serialize_pem() }
    }

    fn options(&self, broker: u32, identity: &Identity) -> PeersOptions {
        PeersOptions {
            broker: BrokerId(broker),
            cluster_id: CLUSTER.to_owned(),
            listen: "127.0.0.1:0".parse().expect("an address"),
            authority_pem: self.authority.pem.clone(),
            certificate: Arc::new(BrokerCertificate::new(identity).expect("usable")),
            revoked: Arc::clone(&self.revoked),
            reset_key: ResetKey([7; ResetKey::LEN]),
            sockets: Default::default(),
            control: Handle::current(),
        }
    }

    fn broker(&self, broker: u32) -> Peers {
        let identity = self.identity(&broker_subject(BrokerId(broker), &[]));
        Peers::open(self.options(broker, &identity)).expect("it opens")
    }

    /// A broker that serves, and another that knows where it is.
    fn pair(&self) -> (Peers, Peers, Arc<Echo>) {
        let (called, caller, echo) = (self.broker(1), self.broker(2), Arc::new(Echo::default()));
        called.serve(Arc::clone(&echo) as _);
        introduce(&caller, &called, 1);
        (called, caller, echo)
    }
}

fn introduce(caller: &Peers, called: &Peers, broker: u32) {
    let address = HostPort { host: called.address().ip().to_string(), port: called.address().port() };
    caller.set_address(BrokerId(broker), address);
}

fn heartbeat() -> request::Body {
    request::Body::Heartbeat(HeartbeatRequest::default())
}

async fn called_as(caller: &Peers) -> Result<u32, PeerError> {
    match caller.call(BrokerId(1), heartbeat(), PATIENCE).await? {
        response::Body::Heartbeat(answer) => Ok(answer.controller_id),
        other => panic!("answered {other:?}"),
    }
}

async fn refusal(caller: &Peers) -> String {
    called_as(caller).await.expect_err("it must be refused").to_string()
}

#[tokio::test]
async fn a_broker_is_known_by_its_certificate_and_reached_in_both_lanes() {
    let (called, caller, _) = Cluster::new().pair();
    assert_eq!(called_as(&caller).await, Ok(2));
    assert_eq!(caller.call(BrokerId(9), heartbeat(), PATIENCE).await, Err(PeerError::Unknown(BrokerId(9))));
    let (mut send, mut recv) =
        caller.open_stream(BrokerId(1), StreamKind::Replicate, 3).await.expect("opened");
    send.write_all(b"frames").await.expect("written");
    send.finish().expect("open");
    assert_eq!(recv.read_to_end(100).await.expect("read"), b"\x04frames");
    assert_eq!(called_as(&called).await, Ok(1), "a broker may call itself");
}

#[tokio::test]
async fn what_no_broker_of_the_cluster_shows_is_refused() {
    let cluster = Cluster::new();
    let (called, _, echo) = cluster.pair();
    let of_client = Subject {
        principal: "broker-2".to_owned(),
        names: Vec::new(),
        usages: vec![ExtendedKeyUsagePurpose::ClientAuth],
    };
    let of_nobody = Subject { principal: "broker".to_owned(), ..broker_subject(BrokerId(2), &[]) };
    let elsewhere = Cluster::new().identity(&broker_subject(BrokerId(2), &[]));
    for (who, identity) in [
        ("a client whose name reads like a broker's", cluster.identity(&of_client)),
        ("a certificate of no broker in particular", cluster.identity(&of_nobody)),
        ("a broker of another authority", elsewhere),
    ] {
        let caller = Peers::open(cluster.options(2, &identity)).expect("it opens");
        introduce(&caller, &called, 1);
        let error = called_as(&caller).await.expect_err(who);
        assert!(matches!(error, PeerError::Unreachable { .. }), "{who}: {error}");
    }
    assert_eq!(echo.served.load(Ordering::Relaxed), 0, "nothing of theirs was looked at");
}

#[tokio::test]
async fn a_broker_with_anothers_certificate_is_not_that_broker() {
    // A host name may read like another broker: it makes its holder nobody else.
    let cluster = Cluster::new();
    let named = broker_subject(BrokerId(2), &["broker-1".to_owned(), "localhost".to_owned()]);
    let impostor = Peers::open(cluster.options(1, &cluster.identity(&named))).expect("it opens");
    impostor.serve(Arc::new(Echo::default()));
    let caller = cluster.broker(3);
    introduce(&caller, &impostor, 1);
    let error = refusal(&caller).await;
    assert!(error.contains("by its certificate it is broker-2"), "{error}");
}

#[tokio::test]
async fn a_caller_is_who_its_certificate_says_whatever_it_says_itself() {
    let cluster = Cluster::new();
    let (called, _, _) = cluster.pair();
    let identity = cluster.identity(&broker_subject(BrokerId(2), &[]));
    let liar = Peers::open(cluster.options(3, &identity)).expect("it opens");
    introduce(&liar, &called, 1);
    assert_eq!(called_as(&liar).await, Ok(2));
}

#[tokio::test]
async fn a_copy_of_a_broker_is_not_let_in() {
    let cluster = Cluster::new();
    let (called, _, _) = cluster.pair();
    let identity = cluster.identity(&broker_subject(BrokerId(1), &[]));
    let copy = Peers::open(cluster.options(4, &identity)).expect("it opens");
    introduce(&copy, &called, 1);
    assert!(called_as(&copy).await.is_err());
}

#[tokio::test]
async fn a_broker_of_another_cluster_is_told_so() {
    let cluster = Cluster::new();
    let (called, _, _) = cluster.pair();
    let identity = cluster.identity(&broker_subject(BrokerId(2), &[]));
    let options = PeersOptions { cluster_id: "c2".to_owned(), ..cluster.options(2, &identity) };
    let stranger = Peers::open(options).expect("it opens");
    introduce(&stranger, &called, 1);
    let error = refusal(&stranger).await;
    assert!(error.contains("this is cluster c1, the caller belongs to c2"), "{error}");
}

#[tokio::test]
async fn a_revoked_certificate_ends_what_it_had_and_gets_nothing_new() {
    let cluster = Cluster::new();
    let called = cluster.broker(1);
    called.serve(Arc::new(Echo::default()));
    let identity = cluster.identity(&broker_subject(BrokerId(2), &[]));
    let der = CertificateDer::from_pem_slice(identity.certificate_pem.as_bytes()).expect("PEM");
    let serial = PeerIdentity::of(&der).expect("a broker's").serial;
    // The caller does not know the list yet.
    let options = PeersOptions { revoked: Arc::default(), ..cluster.options(2, &identity) };
    let caller = Peers::open(options).expect("it opens");
    introduce(&caller, &called, 1);
    assert_eq!(called_as(&caller).await, Ok(2));

    assert!(cluster.revoked.replace(BTreeSet::from([serial])));
    called.close_revoked(&cluster.revoked);
    // What was under way may be lost; what comes after is refused.
    let mut error = called_as(&caller).await.expect_err("revoked");
    while matches!(error, PeerError::Lost { .. }) {
        error = called_as(&caller).await.expect_err("revoked");
    }
    assert!(matches!(error, PeerError::Unreachable { .. }), "{error}");
    assert_eq!(called_as(&called).await, Ok(1));
}

#[tokio::test]
async fn a_call_ends_with_its_patience_and_the_connection_stays() {
    let (_called, caller, echo) = Cluster::new().pair();
    assert_eq!(called_as(&caller).await, Ok(2));
    let unanswered = request::Body::Renew(Default::default());
    let error = caller.call(BrokerId(1), unanswered, Duration::from_millis(50)).await.expect_err("no answer");
    assert!(error.is_outcome_unknown(), "{error}");
    assert_eq!(called_as(&caller).await, Ok(2));
    assert_eq!(echo.served.load(Ordering::Relaxed), 3);
}

#[tokio::test]
async fn a_broker_that_is_gone_is_found_again_where_it_comes_back() {
    let cluster = Cluster::new();
    let (called, caller, _) = cluster.pair();
    assert_eq!(called_as(&caller).await, Ok(2));
    called.close().await;
    drop(called);
    let error = loop {
        match called_as(&caller).await.expect_err("it is gone") {
            PeerError::Lost { .. } => {}
            error => break error,
        }
    };
    assert!(!error.is_outcome_unknown(), "{error}");
    let back = cluster.broker(1);
    back.serve(Arc::new(Echo::default()));
    introduce(&caller, &back, 1);
    assert_eq!(called_as(&caller).await, Ok(2), "a new address is tried at once");
}

#[tokio::test]
async fn messages_are_as_long_as_the_limit_and_no_longer() {
    let (_called, caller, _) = Cluster::new().pair();
    let of = |length: usize| request::Body::Raft(vec![1; length].into());
    let long = limits::PEER_MESSAGE_BYTES_MAX - 16;
    match caller.call(BrokerId(1), of(long), PATIENCE).await {
        Ok(response::Body::Raft(bytes)) => assert_eq!(bytes.len(), long),
        other => panic!("answered {other:?}"),
    }
    let error = caller.call(BrokerId(1), of(limits::PEER_MESSAGE_BYTES_MAX), PATIENCE).await;
    assert!(matches!(error, Err(PeerError::TooLong(_))));
}

#[tokio::test]
async fn a_length_beyond_the_limit_is_refused_before_it_is_believed() {
    let (_called, caller, echo) = Cluster::new().pair();
    let link = caller.shared.link(BrokerId(1), Lane::Control, 0).expect("known");
    let connection = link.connection(&caller.shared).await.expect("connected");
    let (mut send, mut recv) = connection.open_bi().await.expect("open");
    let lie = [&StreamKind::Rpc.prefix()[..], &u32::MAX.to_le_bytes()].concat();
    match message::exchange(&mut send, &mut recv, lie).await {
        Ok(response::Body::Failure(failure)) => assert!(failure.message.contains("exceeds the limit")),
        other => panic!("answered {other:?}"),
    }
    assert_eq!(echo.served.load(Ordering::Relaxed), 0);
}
