//! The transport's own limit: bytes over one bare quinn stream between two endpoints on loopback, tuned like Quire's.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::Bytes;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quire_protocol::limits;

/// One connection between two endpoints of this process.
#[derive(Debug)]
pub struct BareQuic {
    client: quinn::Connection,
    server: quinn::Connection,
    _endpoints: [quinn::Endpoint; 2],
}

impl BareQuic {
    /// Connects both endpoints, with TLS 1.3 and AES-128-GCM first as Quire has it.
    ///
    /// # Errors
    /// If certificates, sockets or the handshake fail.
    pub async fn connect() -> Result<BareQuic> {
        let identity = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?;
        let certificate = identity.cert.der().clone();
        let key = rustls::pki_types::PrivateKeyDer::try_from(identity.signing_key.serialize_der())
            .map_err(anyhow::Error::msg)?;
        let provider = Arc::new(aes_128_first());

        let mut server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key)?;
        server.alpn_protocols = vec![b"bare".to_vec()];
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(server)?));
        server.transport_config(Arc::new(transport()?));

        let mut roots = rustls::RootCertStore::empty();
        roots.add(certificate)?;
        let mut client = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        client.alpn_protocols = vec![b"bare".to_vec()];
        let mut client = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(client)?));
        client.transport_config(Arc::new(transport()?));

        let listening = endpoint(Some(server))?;
        let dialing = endpoint(None)?;
        let connecting = dialing.connect_with(client, listening.local_addr()?, "localhost")?;
        let incoming = listening.accept().await.context("the endpoint closed")?;
        let (client, server) = tokio::try_join!(connecting, async { incoming.accept()?.await })?;
        Ok(BareQuic { client, server, _endpoints: [listening, dialing] })
    }

    /// Sends `count` times `payload` over one new stream and waits until the other side has read all of it.
    ///
    /// # Errors
    /// If the connection fails.
    pub async fn transfer(&self, payload: &Bytes, count: usize) -> Result<Duration> {
        let start = Instant::now();
        let server = self.server.clone();
        let reading = tokio::spawn(async move {
            let mut stream = server.accept_uni().await?;
            let mut total = 0usize;
            while let Some(chunk) = stream.read_chunk(1 << 20, true).await? {
                total += chunk.bytes.len();
            }
            anyhow::Ok(total)
        });
        let mut stream = self.client.open_uni().await?;
        for _ in 0..count {
            stream.write_chunk(payload.clone()).await?;
        }
        stream.finish()?;
        let total = reading.await??;
        anyhow::ensure!(total == payload.len() * count, "{total} bytes arrived");
        Ok(start.elapsed())
    }
}

fn endpoint(server: Option<quinn::ServerConfig>) -> Result<quinn::Endpoint> {
    let socket = std::net::UdpSocket::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let mut config = quinn::EndpointConfig::default();
    config.max_udp_payload_size(limits::UDP_PAYLOAD_BYTES_MAX)?;
    Ok(quinn::Endpoint::new(config, server, socket, Arc::new(quinn::TokioRuntime))?)
}

fn transport() -> Result<quinn::TransportConfig> {
    let mut congestion = quinn::congestion::CubicConfig::default();
    congestion.initial_window(limits::CONGESTION_WINDOW_INITIAL_BYTES);
    let mut discovery = quinn::MtuDiscoveryConfig::default();
    discovery.upper_bound(limits::UDP_PAYLOAD_BYTES_MAX);
    let mut transport = quinn::TransportConfig::default();
    transport
        .congestion_controller_factory(Arc::new(congestion))
        .mtu_discovery_config(Some(discovery))
        .stream_receive_window(limits::STREAM_WINDOW_BYTES.into())
        .receive_window(limits::CONNECTION_WINDOW_BYTES.into())
        .send_window(limits::SEND_WINDOW_BYTES)
        .initial_rtt(limits::RTT_INITIAL);
    Ok(transport)
}

fn aes_128_first() -> rustls::crypto::CryptoProvider {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider
        .cipher_suites
        .sort_by_key(|suite| suite.suite() != rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    provider
}
