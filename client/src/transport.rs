//! QUIC and TLS as this client speaks them: TLS 1.3 alone, the profile's authority and no other, no early data, and
//! the windows and datagram sizes that the broker uses too.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quinn::congestion::CubicConfig;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{
    AckFrequencyConfig, Endpoint, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, Runtime, TokioRuntime,
    TransportConfig, VarInt,
};
use quire_protocol::{limits, stream};
use rustls::RootCertStore;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::time::timeout;

use crate::config::{Address, Cipher, ClientConfig};
use crate::error::Error;
use crate::profile::{Profile, ProfileError};
use crate::sockets::Sockets;

/// One UDP socket for each family, made when it is first needed, and the settings for every connection.
#[derive(Debug)]
pub(crate) struct Transport {
    settings: quinn::ClientConfig,
    server_name: Option<String>,
    sockets: Sockets,
    v4: Mutex<Option<Endpoint>>,
    v6: Mutex<Option<Endpoint>>,
}

impl Transport {
    pub(crate) fn new(profile: &Profile, config: &ClientConfig) -> Result<Transport, Error> {
        let tls = quic_config(tls_config(profile, config.cipher)?)?;
        let mut settings = quinn::ClientConfig::new(Arc::new(tls));
        settings.transport_config(Arc::new(transport_config(config.idle_timeout)));
        Ok(Transport {
            settings,
            server_name: profile.expected_server_name().map(str::to_owned),
            sockets: config.sockets.clone(),
            v4: Mutex::new(None),
            v6: Mutex::new(None),
        })
    }

    /// Shakes hands with whoever listens at `remote`, which `address` led to.
    pub(crate) async fn connect(
        &self,
        address: &Address,
        remote: SocketAddr,
    ) -> Result<quinn::Connection, ConnectError> {
        let endpoint = self.endpoint(remote).map_err(ConnectError::Socket)?;
        let name = self.server_name.clone().unwrap_or_else(|| default_server_name(address));
        let connecting = endpoint
            .connect_with(self.settings.clone(), remote, &name)
            .map_err(|error| ConnectError::Invalid(error.to_string()))?;
        tokio::select! {
            connected = connecting => connected.map_err(ConnectError::Handshake),
            () = refused_by_host(remote), if !self.sockets.are_given() => Err(ConnectError::NothingListens),
        }
    }

    /// Closes every connection, and waits until the peers were told.
    pub(crate) async fn close(&self) {
        for family in [&self.v4, &self.v6] {
            let endpoint = family.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(endpoint) = endpoint {
                endpoint.close(VarInt::from_u32(0), b"closed");
                endpoint.wait_idle().await;
            }
        }
    }

    fn endpoint(&self, remote: SocketAddr) -> std::io::Result<Endpoint> {
        let family = if remote.is_ipv4() { &self.v4 } else { &self.v6 };
        let mut family = family.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(endpoint) = &*family {
            return Ok(endpoint.clone());
        }
        let endpoint = open_endpoint(local_address_for(remote), &self.sockets)?;
        *family = Some(endpoint.clone());
        Ok(endpoint)
    }
}

/// How often a host is asked whether anything listens.
const PROBE_INTERVAL: Duration = Duration::from_millis(250);

/// Why no connection came about.
#[derive(Debug)]
pub(crate) enum ConnectError {
    Socket(std::io::Error),
    Invalid(String),
    NothingListens,
    Handshake(quinn::ConnectionError),
}

fn local_address_for(remote: SocketAddr) -> SocketAddr {
    match remote {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

/// The name to expect in the certificate: the host, except that a broker's own machine is always `localhost`.
fn default_server_name(address: &Address) -> String {
    match address.host.parse::<IpAddr>() {
        Ok(ip) if ip.is_loopback() => "localhost".into(),
        _ => address.host.clone(),
    }
}

/// Resolves when the remote host says that nothing listens on the port, which QUIC itself does not look at: a broker
/// that is not there is then known at once and not after a timeout. Pends for ever if the host says nothing.
async fn refused_by_host(remote: SocketAddr) {
    let probe = async {
        let socket = tokio::net::UdpSocket::bind(local_address_for(remote)).await?;
        socket.connect(remote).await?;
        loop {
            // One byte is no QUIC packet: a broker drops it.
            socket.send(&[0]).await?;
            // Asked again, since a broker that is stopping has its socket a little longer.
            match timeout(PROBE_INTERVAL, socket.recv(&mut [0])).await {
                Ok(answered) => return answered,
                Err(_) => continue,
            }
        }
    };
    match probe.await {
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => {}
        _ => std::future::pending().await,
    }
}

fn open_endpoint(local: SocketAddr, sockets: &Sockets) -> std::io::Result<Endpoint> {
    let socket = match sockets.bind(local) {
        Some(bound) => bound?,
        None => TokioRuntime.wrap_udp_socket(system_socket(local)?.into())?,
    };
    let mut config = EndpointConfig::default();
    config
        .max_udp_payload_size(limits::UDP_PAYLOAD_BYTES_MAX)
        .map_err(|error| std::io::Error::other(error.to_string()))?;
    Endpoint::new_with_abstract_socket(config, None, socket, Arc::new(TokioRuntime))
}

fn system_socket(local: SocketAddr) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(local), Type::DGRAM, Some(Protocol::UDP))?;
    // The kernel grants what it is configured to; less costs throughput only, so that a refusal is no error.
    let _ = socket.set_send_buffer_size(limits::SOCKET_BUFFER_BYTES);
    let _ = socket.set_recv_buffer_size(limits::SOCKET_BUFFER_BYTES);
    if let (Ok(send), Ok(receive)) = (socket.send_buffer_size(), socket.recv_buffer_size()) {
        tracing::debug!(send, receive, asked = limits::SOCKET_BUFFER_BYTES, "socket buffers granted");
    }
    socket.bind(&local.into())?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn transport_config(idle_timeout: Duration) -> TransportConfig {
    let idle_timeout = idle_timeout.clamp(Duration::from_millis(100), limits::IDLE_TIME_MAX);
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
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(limits::STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(limits::CONNECTION_WINDOW_BYTES))
        .send_window(limits::SEND_WINDOW_BYTES_MIN)
        .initial_rtt(limits::RTT_INITIAL)
        .mtu_discovery_config(Some(discovery))
        .congestion_controller_factory(Arc::new(congestion))
        .ack_frequency_config(Some(acknowledgements))
        .datagram_receive_buffer_size(None)
        .max_idle_timeout(Some(IdleTimeout::try_from(idle_timeout).expect("a few seconds fit")))
        .keep_alive_interval(Some((idle_timeout * 3 / 5).min(limits::KEEP_ALIVE_INTERVAL)));
    transport
}

/// The provider is passed explicitly: a library must not depend on, nor set, the process's default.
fn provider(cipher: Option<Cipher>) -> CryptoProvider {
    let suite = |cipher| match cipher {
        Cipher::Aes128Gcm => aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
        Cipher::Aes256Gcm => aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
        Cipher::ChaCha20Poly1305 => aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    };
    let every = [Cipher::Aes128Gcm, Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305];
    let offered = every.into_iter().filter(|one| cipher.is_none_or(|only| *one == only));
    CryptoProvider { cipher_suites: offered.map(suite).collect(), ..aws_lc_rs::default_provider() }
}

/// The first packets are always protected with AES-128-GCM under a key that everybody knows (RFC 9001, 5.2), whether it
/// is offered for the rest or not.
fn quic_config(tls: rustls::ClientConfig) -> Result<QuicClientConfig, Error> {
    let system = |why: String| Error::System { what: "setting up TLS", why };
    let initial =
        aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256.tls13().and_then(|suite| suite.quic_suite());
    let initial = initial.ok_or_else(|| system("it lacks the cipher that QUIC starts with".into()))?;
    QuicClientConfig::with_initial(Arc::new(tls), initial).map_err(|error| system(error.to_string()))
}

fn tls_config(profile: &Profile, cipher: Option<Cipher>) -> Result<rustls::ClientConfig, Error> {
    let invalid = |why: String| Error::Profile(ProfileError::Invalid { path: None, why });
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(profile.authority().as_bytes()) {
        let certificate = certificate.map_err(|e| invalid(format!("the authority is damaged: {e}")))?;
        roots.add(certificate).map_err(|e| invalid(format!("the authority is not usable: {e}")))?;
    }
    if roots.is_empty() {
        return Err(invalid("it names no authority whose certificates to trust".into()));
    }
    let builder = rustls::ClientConfig::builder_with_provider(Arc::new(provider(cipher)))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| Error::System { what: "setting up TLS", why: e.to_string() })?
        .with_root_certificates(roots);
    let (certificate, key) = profile.identity();
    let mut config = match (certificate.is_empty(), key.is_empty()) {
        // A broker that lets anonymous clients in takes a client without an identity.
        (true, true) => builder.with_no_client_auth(),
        (false, false) => {
            let chain = CertificateDer::pem_slice_iter(certificate.as_bytes())
                .collect::<Result<Vec<_>, _>>()
                .map_err(|e| invalid(format!("the certificate is damaged: {e}")))?;
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
                .map_err(|e| invalid(format!("the key is damaged: {e}")))?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|e| invalid(format!("certificate and key are not usable: {e}")))?
        }
        _ => return Err(invalid("certificate and key come together or not at all".into())),
    };
    config.alpn_protocols = vec![stream::ALPN_CLIENT.to_vec()];
    config.enable_early_data = false;
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_without_what_tls_needs_is_refused_with_the_reason() {
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = rcgen::CertificateParams::default().self_signed(&key).expect("self-signed").pem();
        let whole = Profile::new("localhost")
            .authority_pem(&certificate)
            .identity_pem(&certificate, key.serialize_pem());
        assert!(tls_config(&whole, None).is_ok());
        let cases = [
            (Profile::new("localhost"), "names no authority"),
            (
                Profile::new("localhost").authority_pem(&certificate).identity_pem(&certificate, ""),
                "come together",
            ),
            (whole.clone().identity_pem(&certificate, "no PEM"), "the key is damaged"),
        ];
        for (profile, part) in cases {
            let error = tls_config(&profile, None).expect_err(part).to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn one_cipher_is_offered_alone_and_whatever_it_is_quic_can_start() {
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = rcgen::CertificateParams::default().self_signed(&key).expect("self-signed").pem();
        let profile = Profile::new("localhost").authority_pem(&certificate);
        assert_eq!(provider(None).cipher_suites.len(), 3);
        for cipher in [Cipher::Aes128Gcm, Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305] {
            assert_eq!(provider(Some(cipher)).cipher_suites.len(), 1, "{cipher:?}");
            let tls = tls_config(&profile, Some(cipher)).expect("a usable profile");
            assert!(quic_config(tls).is_ok(), "{cipher:?}");
        }
    }

    #[test]
    fn a_brokers_own_machine_is_localhost_and_any_other_what_it_is_called() {
        let name = |text| default_server_name(&Address::parse(text).expect("an address"));
        assert_eq!(name("127.0.0.1:1"), "localhost");
        assert_eq!(name("[::1]:1"), "localhost");
        assert_eq!(name("10.0.0.7:1"), "10.0.0.7");
        assert_eq!(name("broker.example:1"), "broker.example");
    }
}
