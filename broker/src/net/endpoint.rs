//! The UDP socket and the QUIC endpoint on it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::congestion::CubicConfig;
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{
    AckFrequencyConfig, Endpoint, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, ServerConfig,
    TransportConfig, VarInt,
};
use quire_protocol::limits;
use socket2::{Domain, Protocol, Socket, Type};

/// Opens the endpoint that clients connect to.
pub(crate) fn open(listen: SocketAddr, tls: Arc<QuicServerConfig>) -> io::Result<Endpoint> {
    let socket = socket(listen)?;
    let mut endpoint = EndpointConfig::default();
    endpoint.max_udp_payload_size(limits::UDP_PAYLOAD_BYTES_MAX).expect("the limit is a legal payload size");
    let mut server = ServerConfig::with_crypto(tls);
    server
        .transport_config(Arc::new(transport()))
        .max_incoming(limits::HANDSHAKES_MAX)
        // Without early data a handshake sends no more than a few datagrams before it is accepted.
        .incoming_buffer_size(64 * 1024)
        .incoming_buffer_size_total((limits::HANDSHAKES_MAX * 16 * 1024) as u64);
    Endpoint::new(endpoint, Some(server), socket.into(), Arc::new(quinn::TokioRuntime))
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

fn transport() -> TransportConfig {
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
        .send_window(limits::SEND_WINDOW_BYTES)
        .initial_rtt(limits::RTT_INITIAL)
        .mtu_discovery_config(Some(discovery))
        .congestion_controller_factory(Arc::new(congestion))
        .ack_frequency_config(Some(acknowledgements))
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(Some(IdleTimeout::try_from(limits::IDLE_TIME_MAX).expect("a few seconds fit")))
        .keep_alive_interval(Some(limits::KEEP_ALIVE_INTERVAL));
    transport
}
