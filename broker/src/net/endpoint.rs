//! The UDP socket and the QUIC endpoint on it.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Weak};
use std::time::Duration;

use quinn::congestion::CubicConfig;
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{
    AckFrequencyConfig, AsyncUdpSocket, Endpoint, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, Runtime,
    ServerConfig, TokioRuntime, TransportConfig, VarInt,
};
use quire_protocol::limits;
use socket2::{Domain, Protocol, Socket, Type};

use super::reset::{AnyIds, ResetKey};
use super::sockets::Sockets;

/// Opens the endpoint that clients connect to.
pub(crate) fn open(
    listen: SocketAddr,
    tls: Arc<QuicServerConfig>,
    reset_key: ResetKey,
    sockets: &Sockets,
) -> io::Result<(Endpoint, HeldSocket)> {
    open_on(bind(listen, sockets)?, tls, reset_key)
}

/// Opens an endpoint that other brokers connect to; how each connection is to be carried is said when it is accepted.
pub(super) fn open_for_peers(
    listen: SocketAddr,
    server: ServerConfig,
    reset_key: ResetKey,
    sockets: &Sockets,
) -> io::Result<(Endpoint, HeldSocket)> {
    open_with(bind(listen, sockets)?, Some(server), reset_key)
}

/// Opens an endpoint that only connects to others, from a free port of this address.
pub(super) fn open_to_connect(from: IpAddr, reset_key: ResetKey, sockets: &Sockets) -> io::Result<Endpoint> {
    let socket = bind(SocketAddr::new(from, 0), sockets)?;
    open_with(socket, None, reset_key).map(|(endpoint, _)| endpoint)
}

fn open_on(
    socket: Arc<dyn AsyncUdpSocket>,
    tls: Arc<QuicServerConfig>,
    reset_key: ResetKey,
) -> io::Result<(Endpoint, HeldSocket)> {
    open_with(socket, Some(server_config(tls, transport())), reset_key)
}

/// How connections are accepted: few handshakes at once, each with little memory.
pub(super) fn server_config(tls: Arc<QuicServerConfig>, transport: TransportConfig) -> ServerConfig {
    let mut server = ServerConfig::with_crypto(tls);
    server
        .transport_config(Arc::new(transport))
        .max_incoming(limits::HANDSHAKES_MAX)
        // Without early data a handshake sends no more than a few datagrams before it is accepted.
        .incoming_buffer_size(64 * 1024)
        .incoming_buffer_size_total((limits::HANDSHAKES_MAX * 16 * 1024) as u64);
    server
}

fn open_with(
    socket: Arc<dyn AsyncUdpSocket>,
    server: Option<ServerConfig>,
    reset_key: ResetKey,
) -> io::Result<(Endpoint, HeldSocket)> {
    let held = HeldSocket(Arc::downgrade(&socket));
    let mut endpoint = EndpointConfig::new(Arc::new(reset_key));
    endpoint.cid_generator(|| Box::new(AnyIds));
    endpoint.max_udp_payload_size(limits::UDP_PAYLOAD_BYTES_MAX).expect("the limit is a legal payload size");
    let opened = Endpoint::new_with_abstract_socket(endpoint, server, socket, Arc::new(TokioRuntime))?;
    Ok((opened, held))
}

/// Knows whether an endpoint that is being dropped still has its socket.
#[derive(Debug)]
pub(crate) struct HeldSocket(Weak<dyn AsyncUdpSocket>);

impl HeldSocket {
    /// Waits until the address is free again. The endpoint's task lets go of it soon after the last handle is dropped,
    /// and tells nobody.
    pub(crate) async fn released(self) {
        while self.0.strong_count() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

fn bind(address: SocketAddr, sockets: &Sockets) -> io::Result<Arc<dyn AsyncUdpSocket>> {
    match sockets.bind(address) {
        Some(bound) => bound,
        None => TokioRuntime.wrap_udp_socket(socket(address)?.into()),
    }
}

fn socket(listen: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(listen), Type::DGRAM, Some(Protocol::UDP))?;
    enlarge_buffers(&socket);
    socket.bind(&listen.into())?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Asks for large buffers; the kernel grants what it is configured to. A smaller grant costs throughput, not safety.
fn enlarge_buffers(socket: &Socket) {
    let asked = limits::SOCKET_BUFFER_BYTES;
    let granted = |set: io::Result<()>, read: io::Result<usize>| set.and(read).unwrap_or(0);
    let send = granted(socket.set_send_buffer_size(asked), socket.send_buffer_size());
    let receive = granted(socket.set_recv_buffer_size(asked), socket.recv_buffer_size());
    for (way, granted, sysctl) in
        [("send", send, "net.core.wmem_max"), ("receive", receive, "net.core.rmem_max")]
    {
        if granted < asked {
            tracing::warn!(
                granted,
                asked,
                "small socket {way} buffer: raise it with 'sysctl -w {sysctl}={asked}'"
            );
        }
    }
}

/// The transport of client connections, made for bulk on a LAN.
pub(super) fn transport() -> TransportConfig {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(limits::UDP_PAYLOAD_BYTES_MAX);
    let mut congestion = CubicConfig::default();
    congestion.initial_window(limits::CONGESTION_WINDOW_INITIAL_BYTES);
    let mut acknowledgements = AckFrequencyConfig::default();
    acknowledgements
        .ack_eliciting_threshold(VarInt::from_u32(10))
        .max_ack_delay(Some(Duration::from_millis(5)));

    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(limits::STREAMS_BEFORE_HELLO))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(limits::STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(limits::CONNECTION_WINDOW_BYTES))
        .send_window(limits::SEND_WINDOW_BYTES_MIN)
        .initial_rtt(limits::RTT_INITIAL)
        .mtu_discovery_config(Some(discovery))
        .congestion_controller_factory(Arc::new(congestion))
        .ack_frequency_config(Some(acknowledgements))
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(Some(IdleTimeout::try_from(limits::IDLE_TIME_MAX).expect("a few seconds fit")))
        .keep_alive_interval(Some(limits::KEEP_ALIVE_INTERVAL));
    transport
}

#[cfg(test)]
mod tests {
    use quinn::ConnectionError;
    use quinn::crypto::rustls::QuicClientConfig;
    use quire_protocol::stream::ALPN_CLIENT;
    use rustls::RootCertStore;
    use rustls_pki_types::CertificateDer;
    use rustls_pki_types::pem::PemObject;

    use super::super::certificates::{self, Certificates};
    use super::super::tls::{self, Admits, BrokerCertificate};
    use super::*;

    fn open_broker(socket: Socket, made: &Certificates) -> Endpoint {
        let certificate = Arc::new(BrokerCertificate::new(&made.broker).expect("just made"));
        let tls = tls::server_config(&made.authority_pem, certificate, Admits::Anyone).expect("just made");
        let socket = TokioRuntime.wrap_udp_socket(socket.into()).expect("a socket");
        open_on(socket, tls, made.reset_key.clone()).expect("a socket").0
    }

    fn client(made: &Certificates) -> Endpoint {
        let mut roots = RootCertStore::empty();
        let authority = CertificateDer::from_pem_slice(made.authority_pem.as_bytes()).expect("PEM");
        roots.add(authority).expect("an authority");
        let tls = rustls::ClientConfig::builder_with_provider(tls::provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .expect("the provider has them");
        let mut tls = tls.with_root_certificates(roots).with_no_client_auth();
        tls.alpn_protocols = vec![ALPN_CLIENT.to_vec()];
        let tls = QuicClientConfig::try_from(tls).expect("TLS 1.3");
        let mut endpoint = Endpoint::client("127.0.0.1:0".parse().expect("an address")).expect("a port");
        endpoint.set_default_client_config(quinn::ClientConfig::new(Arc::new(tls)));
        endpoint
    }

    #[test]
    fn a_client_learns_from_the_next_start_that_the_broker_was_killed() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let made = certificates::ensure(dir.path(), &["localhost".to_owned()]).expect("made");
        let killed = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        // Both starts have the one socket: an address that was let go of can be another process's at once.
        let socket = socket("127.0.0.1:0".parse().expect("an address")).expect("a free port");
        let again = socket.try_clone().expect("a descriptor");
        let first = killed.block_on(async { open_broker(socket, &made) });
        let address = first.local_addr().expect("it is bound");
        let endpoint = runtime.block_on(async { client(&made) });
        let connecting = runtime.spawn({
            let endpoint = endpoint.clone();
            async move { endpoint.connect(address, "localhost").expect("a valid name").await }
        });
        let accepted =
            killed.block_on(async { first.accept().await.expect("a client").await.expect("it may connect") });
        let connection = runtime.block_on(connecting).expect("it runs").expect("it connects");
        // None of its tasks runs any more: nothing is said to the client.
        drop((accepted, first, killed));

        runtime.block_on(async {
            let (mut send, _recv) = connection.open_bi().await.expect("it notices nothing yet");
            let read = certificates::ensure(dir.path(), &["localhost".to_owned()]).expect("read");
            let _second = open_broker(again, &read);
            // It may be told already, for what it sent meanwhile.
            let _ = send.write_all(b"anything").await;
            let closed = tokio::time::timeout(Duration::from_secs(5), connection.closed()).await;
            assert_eq!(closed.expect("it is told at once"), ConnectionError::Reset);
        });
    }
}
