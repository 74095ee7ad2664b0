//! A client that speaks the protocol by hand, so that it can also speak it wrongly.
#![allow(dead_code, reason = "each test file uses its part")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use prost::Message;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, Endpoint, RecvStream, SendStream};
use quire_broker::{Broker, ClientCredentials};
use quire_protocol::batch::{BatchBuilder, Compression, Record};
use quire_protocol::frame::{FrameHeader, FrameSeed};
use quire_protocol::rpc::control::{CreateTopicRequest, HelloRequest, Request, Response, request, response};
use quire_protocol::stream::{
    ALPN_CLIENT, Acks, Answer, ConsumeHeader, Failure, Frames, Opened, ProduceHeader, Start, StreamKind,
};
use quire_protocol::{ErrorCode, LeaderEpoch, Offset, PartitionIndex, Timestamp, TopicId, TopicPartition};
use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// Nothing here takes this long; a test that waits for it has failed.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A broker on loopback, with its data in a folder that goes with it.
pub struct TestBroker {
    pub broker: Broker,
    pub dir: tempfile::TempDir,
}

pub async fn start() -> Result<TestBroker> {
    let dir = tempfile::tempdir()?;
    let broker = Broker::builder().data_dir(dir.path()).shards(1).start().await?;
    Ok(TestBroker { broker, dir })
}

/// A connection that said hello.
pub struct RawClient {
    pub connection: Connection,
    endpoint: Endpoint,
}

impl RawClient {
    pub async fn connect(broker: &Broker) -> Result<RawClient> {
        let client = RawClient::connect_unannounced(broker.address(), &broker.credentials()).await?;
        let hello = HelloRequest { version_min: 1, version_max: 1, ..HelloRequest::default() };
        match client.rpc(request::Body::Hello(hello)).await? {
            response::Body::Hello(_) => Ok(client),
            other => bail!("answered {other:?}"),
        }
    }

    /// Without hello.
    pub async fn connect_unannounced(
        address: SocketAddr,
        credentials: &ClientCredentials,
    ) -> Result<RawClient> {
        let identity = Some((credentials.certificate_pem.as_str(), credentials.key_pem.as_str()));
        RawClient::connect_as(address, &credentials.authority_pem, identity).await
    }

    pub async fn connect_as(
        address: SocketAddr,
        authority_pem: &str,
        identity: Option<(&str, &str)>,
    ) -> Result<RawClient> {
        let mut endpoint = Endpoint::client("127.0.0.1:0".parse()?)?;
        endpoint.set_default_client_config(client_config(authority_pem, identity)?);
        let connection = tokio::time::timeout(PATIENCE, endpoint.connect(address, "localhost")?).await??;
        Ok(RawClient { connection, endpoint })
    }

    /// One control request on a stream of its own.
    pub async fn rpc(&self, body: request::Body) -> Result<response::Body> {
        let bytes = Request { body: Some(body) }.encode_to_vec();
        let mut message = StreamKind::Rpc.prefix().to_vec();
        message.extend_from_slice(&(bytes.len() as u32).to_le_bytes());
        message.extend_from_slice(&bytes);
        self.rpc_bytes(&message).await
    }

    /// Sends anything on a stream, and reads a control response.
    pub async fn rpc_bytes(&self, bytes: &[u8]) -> Result<response::Body> {
        let (mut send, mut recv) = self.connection.open_bi().await?;
        send.write_all(bytes).await?;
        let answered = tokio::time::timeout(PATIENCE, read_response(&mut recv)).await?;
        answered?.body.context("a response has a body")
    }

    pub async fn create_topic(&self, name: &str, config: &[(&str, &str)]) -> Result<TopicPartition> {
        let config = config.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let create =
            CreateTopicRequest { name: name.to_owned(), partitions: 1, config, ..Default::default() };
        let response = self.rpc(request::Body::CreateTopic(create)).await?;
        let response::Body::CreateTopic(created) = response else { bail!("answered {response:?}") };
        let topic = created.topic.context("a topic")?;
        let topic = TopicId::from_slice(&topic.id).context("an id")?;
        Ok(TopicPartition { topic, partition: PartitionIndex(0) })
    }

    /// Opens a produce stream and reads the first answer.
    pub async fn produce(&self, partition: TopicPartition) -> Result<(Stream, Answer)> {
        let mut bytes = StreamKind::Produce.prefix().to_vec();
        ProduceHeader {
            partition,
            leader_epoch: self.leader_epoch(partition).await?,
            acks: Acks::All,
            producer: None,
        }
        .encode(&mut bytes);
        self.open(&bytes).await
    }

    /// Opens a consume stream and reads the first answer.
    pub async fn consume(
        &self,
        partition: TopicPartition,
        start: Start,
        credit: u64,
    ) -> Result<(Stream, Answer)> {
        let mut bytes = StreamKind::Consume.prefix().to_vec();
        ConsumeHeader { partition, start, credit }.encode(&mut bytes);
        self.open(&bytes).await
    }

    /// Opens a stream, sends `bytes` and reads the first answer.
    pub async fn open(&self, bytes: &[u8]) -> Result<(Stream, Answer)> {
        let (mut send, recv) = self.connection.open_bi().await?;
        send.write_all(bytes).await?;
        let mut stream = Stream { send, recv };
        let answer = stream.answer().await?;
        Ok((stream, answer))
    }

    async fn leader_epoch(&self, partition: TopicPartition) -> Result<LeaderEpoch> {
        let (_stream, opened) = self.consume(partition, Start::End, 0).await?;
        match opened {
            Answer::Opened(Opened { leader_epoch, .. }) => Ok(leader_epoch),
            // The test sees the same refusal on the stream it meant to open.
            _ => Ok(LeaderEpoch(0)),
        }
    }
}

/// A produce or consume stream.
pub struct Stream {
    pub send: SendStream,
    pub recv: RecvStream,
}

impl Stream {
    pub async fn answer(&mut self) -> Result<Answer> {
        tokio::time::timeout(PATIENCE, self.read_answer()).await.context("no answer came")?
    }

    async fn read_answer(&mut self) -> Result<Answer> {
        let mut tag = [0];
        self.recv.read_exact(&mut tag).await?;
        let mut body = vec![0; Answer::body_len(tag[0])?];
        self.recv.read_exact(&mut body).await?;
        let mut text = vec![0; Answer::text_len(tag[0], &body)?];
        self.recv.read_exact(&mut text).await?;
        Ok(Answer::decode(tag[0], &body, &text)?)
    }

    /// Reads the frames that `announced` announces; gives the headers, checked.
    pub async fn frames(&mut self, partition: TopicPartition, announced: Frames) -> Result<Vec<FrameHeader>> {
        let mut bytes = vec![0; announced.length as usize];
        tokio::time::timeout(PATIENCE, self.recv.read_exact(&mut bytes)).await??;
        let mut headers = Vec::new();
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let header = FrameHeader::check(FrameSeed::new(partition), rest)?;
            rest = &rest[header.frame_len()..];
            headers.push(header);
        }
        Ok(headers)
    }

    /// The failure that ends the stream.
    pub async fn failure(&mut self) -> Result<Failure> {
        let answer = self.answer().await?;
        failure(answer)
    }

    pub async fn ack(&mut self) -> Result<Offset> {
        match self.answer().await? {
            Answer::Ack(ack) => Ok(ack.base_offset),
            other => bail!("answered {other:?}"),
        }
    }
}

pub fn failure(answer: Answer) -> Result<Failure> {
    match answer {
        Answer::Failure(failure) => Ok(failure),
        other => bail!("answered {other:?}"),
    }
}

pub fn code(response: response::Body) -> Result<ErrorCode> {
    match response {
        response::Body::Error(error) => Ok(error.error_code()),
        other => bail!("answered {other:?}"),
    }
}

pub fn batch(values: &[&str]) -> Result<Vec<u8>> {
    let mut builder = BatchBuilder::new(Compression::None);
    for value in values {
        let record = Record { value: Some(value.to_string().into()), ..Record::default() };
        builder.push(&record, Timestamp(1))?;
    }
    Ok(builder.finish()?.to_vec())
}

async fn read_response(recv: &mut RecvStream) -> Result<Response> {
    let mut length = [0; 4];
    recv.read_exact(&mut length).await?;
    let length = u32::from_le_bytes(length) as usize;
    ensure!(length <= 1 << 20, "a response of {length} bytes");
    let mut bytes = vec![0; length];
    recv.read_exact(&mut bytes).await?;
    Ok(Response::decode(bytes.as_slice())?)
}

fn client_config(authority_pem: &str, identity: Option<(&str, &str)>) -> Result<quinn::ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority_pem.as_bytes())?)?;
    let builder = rustls::ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots);
    let mut tls = match identity {
        Some((certificate, key)) => builder.with_client_auth_cert(
            vec![CertificateDer::from_pem_slice(certificate.as_bytes())?],
            PrivateKeyDer::from_pem_slice(key.as_bytes())?,
        )?,
        None => builder.with_no_client_auth(),
    };
    tls.alpn_protocols = vec![ALPN_CLIENT.to_vec()];
    Ok(quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?)))
}
