//! Joining over loopback: what a broker gets, and what each refusal says.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use quire_protocol::rpc::join::{Admission, Seed};
use quire_protocol::{BrokerId, ErrorCode, limits};

use super::super::authority::{Authority, PublicKey, new_key};
use super::super::certificates::Identity;
use super::super::endpoint;
use super::super::peers::tls::broker_subject;
use super::super::reset::ResetKey;
use super::super::seal::{self, SealKey};
use super::super::tls::{self, Admits, BrokerCertificate};
use super::admit::{Gate, JoinBook, NotRedeemed};
use super::ask::{Ask, JoinError, ask};
use super::token::{Fingerprint, JoinToken};
use crate::config::HostPort;

const CLUSTER: &str = "c1";

/// The metadata of a cluster that never changes otherwise.
#[derive(Debug)]
struct Book {
    sealed: Arc<[u8]>,
    redeemed: Mutex<BTreeMap<[u8; 32], Option<Redeemed>>>,
}

/// By whom, and for which broker id.
type Redeemed = ([u8; 32], u32);

impl JoinBook for Book {
    fn authority(&self) -> Option<Arc<[u8]>> {
        Some(Arc::clone(&self.sealed))
    }

    fn redeem(
        &self,
        hash: [u8; 32],
        redeemer: [u8; 32],
    ) -> BoxFuture<'static, Result<BrokerId, NotRedeemed>> {
        let mut redeemed = self.redeemed.lock().expect("nobody panics");
        let next = 2 + redeemed.values().flatten().count() as u32;
        let answer = match redeemed.get_mut(&hash) {
            None => Err(NotRedeemed::Unknown),
            Some(Some((by, id))) if *by == redeemer => Ok(BrokerId(*id)),
            Some(Some(_)) => Err(NotRedeemed::Used),
            Some(free) => {
                *free = Some((redeemer, next));
                Ok(BrokerId(next))
            }
        };
        std::future::ready(answer).boxed()
    }

    fn seeds(&self) -> Vec<Seed> {
        vec![Seed { broker_id: 1, host: "10.0.0.1".to_owned(), port: 9441 }]
    }
}

struct Cluster {
    book: Arc<Book>,
    fingerprint: Fingerprint,
    at: HostPort,
    _endpoint: quinn::Endpoint,
}

impl Cluster {
    /// A broker of a cluster, which seals its authority under one key and holds another, or the same.
    fn start(sealed_under: &SealKey, held: SealKey) -> Cluster {
        let authority = Authority::create().expect("made");
        let sealed = seal::seal(&authority, sealed_under, CLUSTER).into();
        let book = Arc::new(Book { sealed, redeemed: Mutex::default() });
        let key = new_key().expect("a key");
        let certificate_pem = authority.sign(&broker_subject(BrokerId(1), &[]), &key).expect("signed");
        let identity = Identity { certificate_pem, key_pem: key.serialize_pem() };
        let shown = BrokerCertificate::with_authority(&identity, &authority.pem).expect("usable");
        let tls = tls::server_config(&authority.pem, Arc::new(shown), Admits::Joining).expect("usable");
        let listen = "127.0.0.1:0".parse().expect("an address");
        let (endpoint, _) =
            endpoint::open(listen, tls, ResetKey([7; ResetKey::LEN]), &Default::default()).expect("a port");
        let fingerprint = Fingerprint::of_pem(&authority.pem).expect("a certificate");
        let gate = Gate::new(CLUSTER.to_owned(), fingerprint, Some(held), Arc::clone(&book) as _);
        let gate = Arc::new(gate);
        tokio::spawn({
            let endpoint = endpoint.clone();
            async move {
                while let Some(incoming) = endpoint.accept().await {
                    let gate = Arc::clone(&gate);
                    tokio::spawn(async move {
                        let Ok(connection) = incoming.await else { return };
                        assert!(tls::is_joining(&connection), "nobody else comes");
                        gate.serve(connection).await;
                    });
                }
            }
        });
        let address = endpoint.local_addr().expect("bound");
        let at = HostPort { host: address.ip().to_string(), port: address.port() };
        Cluster { book, fingerprint, at, _endpoint: endpoint }
    }

    fn plain() -> Cluster {
        Cluster::start(&SealKey::Held([1; 32]), SealKey::Held([1; 32]))
    }

    fn token(&self) -> JoinToken {
        let token = JoinToken::draw(self.fingerprint);
        self.book.redeemed.lock().expect("nobody panics").insert(token.hash(), None);
        token
    }

    fn ask(&self, token: &JoinToken, keys: &(PublicKey, PublicKey)) -> Ask {
        Ask {
            at: self.at.clone(),
            token: token.clone(),
            broker_key: keys.0.clone(),
            client_key: keys.1.clone(),
            names: vec!["localhost".to_owned()],
            is_controller: true,
            sockets: Default::default(),
        }
    }
}

fn keys() -> (PublicKey, PublicKey) {
    let key = || PublicKey::of(&new_key().expect("a key"));
    (key(), key())
}

fn refused(outcome: Result<Admission, JoinError>) -> (ErrorCode, String) {
    match outcome {
        Err(JoinError::Refused { code, message }) => (code, message),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_broker_that_joins_gets_all_it_needs_and_the_same_again() {
    let cluster = Cluster::plain();
    let (token, keys) = (cluster.token(), keys());
    let first = ask(cluster.ask(&token, &keys)).await.expect("let in");
    assert_eq!((first.broker_id, first.cluster_id.as_str()), (2, CLUSTER));
    assert_eq!(first.seal_key, [1; 32], "a controller can sign");
    assert_eq!(first.seeds.len(), 1);
    let again = ask(cluster.ask(&token, &keys)).await.expect("the answer may have been lost");
    assert_eq!((again.broker_id, again.seeds), (2, first.seeds));
    let no_controller = Ask { is_controller: false, ..cluster.ask(&token, &keys) };
    assert!(ask(no_controller).await.expect("let in").seal_key.is_empty());
    let other = ask(cluster.ask(&cluster.token(), &self::keys())).await.expect("let in");
    assert_eq!(other.broker_id, 3);
}

#[tokio::test]
async fn a_used_or_unknown_token_says_what_to_do() {
    let cluster = Cluster::plain();
    let token = cluster.token();
    ask(cluster.ask(&token, &keys())).await.expect("let in");
    let (code, message) = refused(ask(cluster.ask(&token, &keys())).await);
    assert_eq!(code, ErrorCode::NotAuthorized);
    assert!(
        message.contains("used by another broker; make a new one with 'quire cluster token'"),
        "{message}"
    );
    let guessed = JoinToken::draw(cluster.fingerprint);
    let (_, message) = refused(ask(cluster.ask(&guessed, &keys())).await);
    assert!(message.contains("knows no such token"), "{message}");
}

#[tokio::test]
async fn a_token_of_another_cluster_is_not_shown_to_this_one() {
    let (ours, theirs) = (Cluster::plain(), Cluster::plain());
    let token = theirs.token();
    let error = ask(ours.ask(&token, &keys())).await.expect_err("another cluster");
    let expected = JoinError::OtherCluster {
        at: ours.at.to_string(),
        found: ours.fingerprint,
        expected: theirs.fingerprint,
    };
    assert_eq!(error, expected);
    assert!(error.to_string().contains("make a token there with 'quire cluster token'"));
}

#[tokio::test]
async fn a_broker_that_can_not_sign_uses_up_no_token() {
    let cluster = Cluster::start(&SealKey::Passphrase("p".to_owned()), SealKey::Held([1; 32]));
    let token = cluster.token();
    let (code, message) = refused(ask(cluster.ask(&token, &keys())).await);
    assert_eq!(code, ErrorCode::Unavailable);
    assert!(message.contains("QUIRE_CA_PASSPHRASE"), "{message}");
    let redeemed = cluster.book.redeemed.lock().expect("nobody panics");
    assert_eq!(redeemed.get(&token.hash()), Some(&None));
}

#[tokio::test]
async fn who_asks_too_often_is_told_to_wait() {
    let cluster = Cluster::plain();
    let guessed = JoinToken::draw(cluster.fingerprint);
    for _ in 0..limits::JOINS_AT_ONCE {
        assert_eq!(refused(ask(cluster.ask(&guessed, &keys())).await).0, ErrorCode::NotAuthorized);
    }
    let mut code = ErrorCode::NotAuthorized;
    while code == ErrorCode::NotAuthorized {
        code = refused(ask(cluster.ask(&guessed, &keys())).await).0;
    }
    assert_eq!(code, ErrorCode::LimitExceeded);
}

#[tokio::test]
async fn nobody_there_and_nobody_to_join_are_told_apart() {
    let cluster = Cluster::plain();
    let free = std::net::UdpSocket::bind("127.0.0.1:0").expect("a port");
    let at = HostPort { host: "127.0.0.1".to_owned(), port: free.local_addr().expect("bound").port() };
    let error = ask(Ask { at, ..cluster.ask(&cluster.token(), &keys()) }).await.expect_err("nobody");
    assert!(matches!(error, JoinError::Unreachable { .. }), "{error}");

    let dir = tempfile::tempdir().expect("a temporary folder");
    let alone = crate::Broker::builder().data_dir(dir.path()).shards(1).start().await.expect("started");
    let at = HostPort { host: "127.0.0.1".to_owned(), port: alone.address().port() };
    let error = ask(Ask { at, ..cluster.ask(&cluster.token(), &keys()) }).await.expect_err("alone");
    assert!(matches!(error, JoinError::NoCluster { .. }), "{error}");
}
