//! Brokers that say different things of a topic, asked over the network: each says what its script has.

use std::net::Ipv4Addr;
use std::sync::Mutex;

use prost::Message;
use quire_protocol::rpc::PROTOCOL_VERSION;
use quire_protocol::stream;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::tests::described;
use super::*;
use crate::config::{Address, ClientConfig};
use crate::connection::lock;
use crate::profile::Profile;
use crate::transport::Transport;

/// What each broker says of the topic: its id, or that there is none. `None` for a broker that says nothing.
type Script = Arc<Mutex<Vec<Option<Option<u8>>>>>;

/// A cluster of brokers that only talk.
struct Talkers {
    script: Script,
    metadata: Metadata,
    /// Who was asked for the topic, in this order.
    asked: Arc<Mutex<Vec<u32>>>,
}

impl Talkers {
    /// As many as the script has lines; they lead what they speak of.
    fn new(script: &[Option<Option<u8>>]) -> Talkers {
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(["localhost".to_owned()]).expect("a name");
        let certificate = params.self_signed(&key).expect("self-signed").pem();
        let endpoints: Vec<_> = script.iter().map(|_| endpoint(&certificate, &key.serialize_pem())).collect();
        let ports: Vec<_> = endpoints.iter().map(|e| e.local_addr().expect("bound").port()).collect();
        let (script, asked) = (Arc::new(Mutex::new(script.to_vec())), Arc::default());
        for (endpoint, id) in endpoints.into_iter().zip(1..) {
            let talker =
                Talker { id, ports: ports.clone(), script: Arc::clone(&script), asked: Arc::clone(&asked) };
            tokio::spawn(talker.run(endpoint));
        }
        let profile = Profile::new("localhost").authority_pem(&certificate);
        let config = ClientConfig::default();
        let transport = Transport::new(&profile, &config).expect("a usable profile");
        let bootstrap = ports.iter().map(|port| Address { host: "127.0.0.1".into(), port: *port }).collect();
        let metadata = Metadata::new(Arc::new(Brokers::new(bootstrap, transport, config)));
        Talkers { script, metadata, asked }
    }

    fn say(&self, script: &[Option<Option<u8>>]) {
        *lock(&self.script) = script.to_vec();
    }

    /// Who was asked since this was last called.
    fn asked(&self) -> Vec<u32> {
        std::mem::take(&mut *lock(&self.asked))
    }
}

fn endpoint(certificate: &str, key: &str) -> quinn::Endpoint {
    let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).expect("just made")];
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("just made");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("it can")
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .expect("they belong together");
    tls.alpn_protocols = vec![stream::ALPN_CLIENT.to_vec()];
    let tls = quinn::crypto::rustls::QuicServerConfig::try_from(tls).expect("TLS 1.3");
    let config = quinn::ServerConfig::with_crypto(Arc::new(tls));
    quinn::Endpoint::server(config, (Ipv4Addr::LOCALHOST, 0).into()).expect("a free port")
}

#[derive(Clone)]
struct Talker {
    id: u32,
    ports: Vec<u16>,
    script: Script,
    asked: Arc<Mutex<Vec<u32>>>,
}

impl Talker {
    async fn run(self, endpoint: quinn::Endpoint) {
        while let Some(incoming) = endpoint.accept().await {
            let talker = self.clone();
            tokio::spawn(async move {
                let Ok(connection) = incoming.await else { return };
                let mut unanswered = Vec::new();
                while let Ok((mut send, mut receive)) = connection.accept_bi().await {
                    let request = receive.read_to_end(limits::RPC_BYTES_MAX).await.expect("a request");
                    // After the stream's two first bytes and the length.
                    let request = control::Request::decode(&request[6..]).expect("a request");
                    let Some(answer) = talker.answer(request.body.expect("a request")) else {
                        unanswered.push((send, receive));
                        continue;
                    };
                    let answer = control::Response { body: Some(answer) }.encode_to_vec();
                    let length = (answer.len() as u32).to_le_bytes();
                    send.write_all(&[&length[..], &answer].concat()).await.expect("it is read");
                    let _ = send.finish();
                }
            });
        }
    }

    fn answer(&self, request: request::Body) -> Option<response::Body> {
        Some(match request {
            request::Body::Hello(_) => response::Body::Hello(control::HelloResponse {
                version: PROTOCOL_VERSION,
                broker_id: self.id,
                ..Default::default()
            }),
            request::Body::DescribeCluster(_) => {
                let brokers = self.ports.iter().zip(1..).map(|(port, id)| control::Broker {
                    id,
                    host: "127.0.0.1".into(),
                    port: u32::from(*port),
                    ..Default::default()
                });
                let brokers = brokers.collect();
                response::Body::DescribeCluster(control::DescribeClusterResponse {
                    brokers,
                    ..Default::default()
                })
            }
            request::Body::DescribeTopics(_) => {
                lock(&self.asked).push(self.id);
                let topic = match lock(&self.script)[self.id as usize - 1]? {
                    Some(id) => self.led_topic(id),
                    None => control::Topic {
                        error: Some(control::Error {
                            code: u32::from(ErrorCode::UnknownTopic.number()),
                            message: "no topic".into(),
                        }),
                        ..Default::default()
                    },
                };
                response::Body::DescribeTopics(control::DescribeTopicsResponse { topics: vec![topic] })
            }
            _ => return None,
        })
    }

    fn led_topic(&self, id: u8) -> control::Topic {
        let mut topic = control::Topic { id: vec![id; 16], ..described(&[0]) };
        topic.partitions[0].leader = Some(self.id);
        topic
    }
}

const OLD: Option<Option<u8>> = Some(Some(1));
const NEW: Option<Option<u8>> = Some(Some(2));
const GONE: Option<Option<u8>> = Some(None);
const SILENT: Option<Option<u8>> = None;

fn id_of(topic: &TopicMetadata) -> u8 {
    topic.id.as_bytes()[0]
}

/// A broker that had not heard of the topic yet, or still of the one before it, was the first that was asked after a stream was
/// lost. What it said was believed, and ended producers and consumers for good.
#[tokio::test]
async fn what_one_broker_takes_back_is_believed_when_another_confirms_it() {
    for behind in [OLD, GONE] {
        let talkers = Talkers::new(&[NEW, NEW, NEW]);
        let known = talkers.metadata.topic("t").await.expect("it is there");
        talkers.say(&[behind, NEW, NEW]);
        let again = talkers.metadata.refresh(&known).await.expect("the others know it");
        assert_eq!((id_of(&known), id_of(&again)), (2, 2));
        assert_eq!(
            id_of(&talkers.metadata.topic("t").await.expect("it is known")),
            2,
            "nothing was forgotten"
        );

        talkers.say(&[behind, SILENT, SILENT]);
        let unconfirmed = talkers.metadata.refresh(&again).await;
        assert!(unconfirmed.as_ref().is_err_and(Error::is_retriable), "{unconfirmed:?}");
        assert_eq!(id_of(&talkers.metadata.topic("t").await.expect("it is known")), 2);

        talkers.say(&[behind, behind, NEW]);
        let confirmed = talkers.metadata.refresh(&again).await;
        match behind {
            GONE => assert!(confirmed.is_err_and(|error| error.code() == Some(ErrorCode::UnknownTopic))),
            _ => assert_eq!(id_of(&confirmed.expect("two brokers agree")), 1),
        }
    }
}

#[tokio::test]
async fn the_only_broker_there_is_needs_no_other() {
    let talkers = Talkers::new(&[OLD]);
    let known = talkers.metadata.topic("t").await.expect("it is there");
    talkers.say(&[GONE]);
    let gone = talkers.metadata.refresh(&known).await.expect_err("it was deleted");
    assert_eq!(gone.code(), Some(ErrorCode::UnknownTopic));
}

/// A producer that had left a topic asked the broker that still told of it again and again.
#[tokio::test]
async fn who_told_of_a_topic_that_was_left_is_asked_last() {
    let talkers = Talkers::new(&[OLD, OLD, OLD]);
    let left = talkers.metadata.topic("t").await.expect("it is there");
    assert_eq!(talkers.asked(), [1]);
    talkers.say(&[OLD, NEW, NEW]);
    let instead = talkers.metadata.instead_of(&left, PartitionIndex(0)).await.expect("others know better");
    assert_eq!(id_of(&instead), 2);
    assert_eq!(talkers.asked(), [2]);
    let again = talkers.metadata.instead_of(&left, PartitionIndex(0)).await.expect("it is known");
    assert_eq!((id_of(&again), talkers.asked()), (2, vec![]));
}

/// Each of a quiet topic's partitions looks now and then who leads it: a thousand idle consumers of ten partitions each would
/// ask a thousand times a second.
#[tokio::test]
async fn partitions_that_look_at_about_the_same_time_ask_once() {
    let talkers = Talkers::new(&[NEW, NEW]);
    let known = talkers.metadata.topic("t").await.expect("it is there");
    talkers.asked();
    let led = known.leadership(PartitionIndex(0));
    for _ in 0..3 {
        talkers.metadata.refresh_from_others(&known, led).await.expect("it is there");
    }
    let looks = (0..10).map(|_| talkers.metadata.refresh_from_others(&known, led));
    futures_util::future::join_all(looks).await;
    assert_eq!(talkers.asked(), [2], "and not the leader");
}
