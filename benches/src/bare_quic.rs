//! The transport's own limit: incompressible bytes over bare quinn between two processes, tuned to its best.
//!
//! The listening end runs in a child process. A client opens bidirectional streams and asks on each of them for one
//! transfer: to send a number of bytes that the other side counts, or to be sent as many. Neither side looks at a byte.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use quinn::VarInt;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::task::JoinSet;

use crate::child::{self, Child, Role};
use crate::payload::incompressible;

const ALPN: &[u8] = b"bare";
/// A direction and a count.
const REQUEST_BYTES: usize = 9;

/// What may be set, on both ends alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tuning {
    /// Largest UDP payload (bytes).
    pub datagram_bytes: u16,
    /// Whether the kernel cuts what is sent into datagrams.
    pub offload: bool,
    /// Congestion window to start with (bytes).
    pub congestion_window_bytes: u64,
    /// Most bytes sent and not yet acknowledged.
    pub send_window_bytes: u64,
    /// Most bytes received and not yet read, of a stream; four times as many of a connection.
    pub stream_window_bytes: u32,
    /// Packets that are acknowledged together; 0 leaves quinn's two.
    pub acknowledged_together: u32,
    /// Socket buffers asked of the kernel (bytes); 0 leaves the system's default.
    pub socket_buffer_bytes: usize,
    /// Bytes handed to quinn at once.
    pub write_bytes: usize,
    /// Whether each process has a runtime of one thread, not of one a core.
    pub single_thread: bool,
}

impl Default for Tuning {
    fn default() -> Tuning {
        Tuning {
            datagram_bytes: 6500,
            offload: true,
            congestion_window_bytes: 1 << 20,
            // Little in flight stays in the processor's caches: a quarter faster than 8 MiB.
            send_window_bytes: 1 << 20,
            stream_window_bytes: 4 << 20,
            acknowledged_together: 10,
            socket_buffer_bytes: 8 << 20,
            write_bytes: 256 << 10,
            single_thread: false,
        }
    }
}

/// The connection outlives the runs of Quire between two of its own, which take longer than quinn's idle time.
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// Which way the bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Direction {
    /// From this process to the child, as produced records go.
    Up,
    /// From the child to this process, as consumed records go.
    Down,
}

/// How a client reaches the listening end.
#[derive(Debug, Serialize, Deserialize)]
struct Reached {
    address: SocketAddr,
    certificate_pem: String,
}

/// A connection to a process that listens.
#[derive(Debug)]
pub struct BareQuic {
    connection: quinn::Connection,
    payload: Bytes,
    _endpoint: quinn::Endpoint,
    child: Child,
}

impl BareQuic {
    /// Starts the other process and connects to it, with TLS 1.3 and AES-128-GCM first as Quire has it.
    ///
    /// # Errors
    /// If the process, sockets or the handshake fail.
    pub async fn start(tuning: &Tuning) -> Result<BareQuic> {
        let (child, reached) = Child::start::<Reached>(&Role::BareQuic(tuning.clone()))?;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(reached.certificate_pem.as_bytes())?)?;
        let mut tls = rustls::ClientConfig::builder_with_provider(Arc::new(aes_128_first()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let mut client = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
        client.transport_config(Arc::new(tuning.transport()?));
        let endpoint = tuning.endpoint(None)?;
        let connection = endpoint.connect_with(client, reached.address, "localhost")?.await?;
        let payload = incompressible(tuning.write_bytes, 3);
        Ok(BareQuic { connection, payload, _endpoint: endpoint, child })
    }

    /// Moves `bytes`, spread over `streams` at once, and waits until the receiving side has read all of it.
    ///
    /// # Errors
    /// If the connection fails, or not all arrives.
    pub async fn transfer(&self, direction: Direction, bytes: u64, streams: u64) -> Result<Duration> {
        let start = Instant::now();
        let mut transfers = JoinSet::new();
        for _ in 0..streams {
            let (connection, payload) = (self.connection.clone(), self.payload.clone());
            transfers.spawn(async move { ask(&connection, direction, bytes / streams, &payload).await });
        }
        while let Some(transfer) = transfers.join_next().await {
            transfer??;
        }
        Ok(start.elapsed())
    }

    /// Processor time of the other process so far.
    ///
    /// # Errors
    /// If it has ended.
    pub fn cpu(&self) -> Result<Duration> {
        self.child.cpu()
    }
}

async fn ask(
    connection: &quinn::Connection,
    direction: Direction,
    bytes: u64,
    payload: &Bytes,
) -> Result<()> {
    let (mut send, mut receive) = connection.open_bi().await?;
    let mut request = [0; REQUEST_BYTES];
    request[0] = direction as u8;
    request[1..].copy_from_slice(&bytes.to_le_bytes());
    send.write_all(&request).await?;
    let moved = match direction {
        Direction::Up => {
            fill(&mut send, bytes, payload).await?;
            let mut counted = [0; 8];
            receive.read_exact(&mut counted).await?;
            u64::from_le_bytes(counted)
        }
        Direction::Down => drain(&mut receive).await?,
    };
    ensure!(moved == bytes, "{moved} of {bytes} bytes arrived");
    Ok(())
}

async fn answer(mut send: quinn::SendStream, mut receive: quinn::RecvStream, payload: Bytes) -> Result<()> {
    let mut request = [0; REQUEST_BYTES];
    receive.read_exact(&mut request).await?;
    let bytes = u64::from_le_bytes(request[1..].try_into()?);
    if request[0] == Direction::Up as u8 {
        let counted = drain(&mut receive).await?;
        send.write_all(&counted.to_le_bytes()).await?;
        send.finish()?;
    } else {
        fill(&mut send, bytes, &payload).await?;
    }
    // The peer has everything once it says so.
    send.stopped().await?;
    Ok(())
}

async fn fill(send: &mut quinn::SendStream, bytes: u64, payload: &Bytes) -> Result<()> {
    let mut left = bytes;
    while left > 0 {
        let now = left.min(payload.len() as u64);
        send.write_chunk(payload.slice(..now as usize)).await?;
        left -= now;
    }
    Ok(send.finish()?)
}

async fn drain(receive: &mut quinn::RecvStream) -> Result<u64> {
    let mut chunks = vec![Bytes::new(); 64];
    let mut total = 0;
    while let Some(count) = receive.read_chunks(&mut chunks).await? {
        total += chunks[..count].iter().map(|chunk| chunk.len() as u64).sum::<u64>();
        chunks[..count].fill(Bytes::new());
    }
    Ok(total)
}

/// What a child does that listens for bare connections.
pub(crate) async fn serve(tuning: &Tuning) -> Result<()> {
    let identity = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?;
    let key = PrivateKeyDer::try_from(identity.signing_key.serialize_der()).map_err(anyhow::Error::msg)?;
    let mut tls = rustls::ServerConfig::builder_with_provider(Arc::new(aes_128_first()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(vec![identity.cert.der().clone()], key)?;
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls)?));
    server.transport_config(Arc::new(tuning.transport()?));
    let endpoint = tuning.endpoint(Some(server))?;
    let reached = Reached { address: endpoint.local_addr()?, certificate_pem: identity.cert.pem() };
    let payload = incompressible(tuning.write_bytes, 5);
    let serving = tokio::spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            tokio::spawn(serve_connection(incoming, payload.clone()));
        }
    });
    child::ready(&reached).await?;
    serving.abort();
    Ok(())
}

async fn serve_connection(incoming: quinn::Incoming, payload: Bytes) -> Result<()> {
    let connection = incoming.await?;
    loop {
        let (send, receive) = connection.accept_bi().await?;
        tokio::spawn(answer(send, receive, payload.clone()));
    }
}

impl Tuning {
    fn endpoint(&self, server: Option<quinn::ServerConfig>) -> Result<quinn::Endpoint> {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
        if self.socket_buffer_bytes > 0 {
            // The kernel grants what it is configured to.
            socket.set_send_buffer_size(self.socket_buffer_bytes)?;
            socket.set_recv_buffer_size(self.socket_buffer_bytes)?;
        }
        socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
        socket.set_nonblocking(true)?;
        let mut config = quinn::EndpointConfig::default();
        config.max_udp_payload_size(self.datagram_bytes).context("a legal payload size")?;
        Ok(quinn::Endpoint::new(config, server, socket.into(), Arc::new(quinn::TokioRuntime))?)
    }

    fn transport(&self) -> Result<quinn::TransportConfig> {
        let mut congestion = quinn::congestion::CubicConfig::default();
        congestion.initial_window(self.congestion_window_bytes);
        let mut discovery = quinn::MtuDiscoveryConfig::default();
        discovery.upper_bound(self.datagram_bytes);
        let mut transport = quinn::TransportConfig::default();
        transport
            .keep_alive_interval(Some(KEEP_ALIVE_INTERVAL))
            .congestion_controller_factory(Arc::new(congestion))
            .mtu_discovery_config(Some(discovery))
            .enable_segmentation_offload(self.offload)
            .stream_receive_window(VarInt::from_u32(self.stream_window_bytes))
            .receive_window(VarInt::from_u32(4 * self.stream_window_bytes))
            .send_window(self.send_window_bytes)
            .initial_rtt(Duration::from_millis(50));
        if self.acknowledged_together > 0 {
            let mut acknowledgements = quinn::AckFrequencyConfig::default();
            acknowledgements
                .ack_eliciting_threshold(VarInt::from_u32(self.acknowledged_together))
                .max_ack_delay(Some(Duration::from_millis(5)));
            transport.ack_frequency_config(Some(acknowledgements));
        }
        Ok(transport)
    }
}

fn aes_128_first() -> rustls::crypto::CryptoProvider {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider
        .cipher_suites
        .sort_by_key(|suite| suite.suite() != rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    provider
}
