//! The joiner's side: it says its secret to nobody but the cluster that its token is for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prost::Message;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, VarInt};
use quire_protocol::rpc::PROTOCOL_VERSION;
use quire_protocol::rpc::join::{Admission, JoinRequest, JoinResponse, join_response};
use quire_protocol::stream::ALPN_JOIN;
use quire_protocol::{BrokerId, ErrorCode, limits};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::lookup_host;
use tokio::time::timeout;

use super::super::authority::PublicKey;
use super::super::endpoint;
use super::super::peers::tls::PeerIdentity;
use super::super::reset::ResetKey;
use super::super::sockets::Sockets;
use super::super::tls;
use super::admit::{frame, read_frame};
use super::token::{Fingerprint, JoinToken};
use crate::config::HostPort;
use crate::identity::random;

/// A broker that does not answer is given up after so long.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);

/// Why a broker could not join.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JoinError {
    /// Nobody answers there.
    #[error(
        "{at} can not be reached: {why}; give the address that clients of a broker of the cluster connect to"
    )]
    Unreachable {
        /// Where.
        at: String,
        /// Why.
        why: String,
    },
    /// Another cluster answers there. It was told nothing.
    #[error(
        "the broker at {at} belongs to another cluster: its authority's fingerprint is {found}, the token's is \
         {expected}; check the address, or make a token there with 'quire cluster token'"
    )]
    OtherCluster {
        /// Where.
        at: String,
        /// The authority that answers.
        found: Fingerprint,
        /// The one that the token is for.
        expected: Fingerprint,
    },
    /// What answers there shows no broker's certificate. It was told nothing.
    #[error("the broker at {at} is no broker of a cluster that can be joined: {why}")]
    NoCluster {
        /// Where.
        at: String,
        /// What is wrong.
        why: String,
    },
    /// The cluster said no.
    #[error("the cluster does not let this broker in: {message}")]
    Refused {
        /// The error's code.
        code: ErrorCode,
        /// Why, and what to do.
        message: String,
    },
    /// The answer makes no sense.
    #[error("the cluster's answer can not be used: {0}")]
    Answer(String),
}

/// What is asked.
#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) at: HostPort,
    pub(crate) token: JoinToken,
    pub(crate) broker_key: PublicKey,
    pub(crate) client_key: PublicKey,
    pub(crate) names: Vec<String>,
    pub(crate) is_controller: bool,
    pub(crate) sockets: Sockets,
}

/// Asks to join; the answer is checked.
pub(crate) async fn ask(ask: Ask) -> Result<Admission, JoinError> {
    let unreachable = |why: String| JoinError::Unreachable { at: ask.at.to_string(), why };
    let found = lookup_host((ask.at.host.as_str(), ask.at.port)).await;
    let found: Vec<_> = found.map_err(|error| unreachable(error.to_string()))?.take(4).collect();
    let mut last = unreachable("it has no address".to_owned());
    for address in found {
        match ask_at(&ask, address).await {
            Err(error @ JoinError::Unreachable { .. }) => last = error,
            outcome => return outcome,
        }
    }
    Err(last)
}

async fn ask_at(ask: &Ask, address: SocketAddr) -> Result<Admission, JoinError> {
    let at = ask.at.to_string();
    let unreachable = |why: String| JoinError::Unreachable { at: at.clone(), why };
    let from = match address {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let endpoint = endpoint::open_to_connect(from, ResetKey(random()), &ask.sockets)
        .map_err(|e| unreachable(e.to_string()))?;
    let pinned = Arc::new(Pinned {
        provider: tls::provider(),
        expected: ask.token.fingerprint,
        found: Mutex::default(),
    });
    let config = client_config(&pinned).map_err(JoinError::Answer)?;
    let connecting =
        endpoint.connect_with(config, address, "quire").map_err(|e| unreachable(e.to_string()))?;
    let connection = match timeout(CONNECT_TIME_MAX, connecting).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return Err(pinned.explain(at.clone(), &error)),
        Err(_) => return Err(unreachable("it does not answer".to_owned())),
    };
    let response = timeout(limits::JOIN_TIME_MAX, exchange(ask, &connection)).await;
    let response = response.map_err(|_| unreachable("it does not answer in time".to_owned()))?;
    let response = response.map_err(unreachable)?;
    connection.close(VarInt::from_u32(0), b"done");
    endpoint.wait_idle().await;
    match response.result {
        Some(join_response::Result::Admission(admission)) => check(ask, admission).map_err(JoinError::Answer),
        Some(join_response::Result::Refusal(refusal)) => {
            let code = u16::try_from(refusal.code).ok().and_then(ErrorCode::from_number);
            let code = code.unwrap_or(ErrorCode::Internal);
            Err(JoinError::Refused { code, message: refusal.message })
        }
        None => Err(JoinError::Answer("it says nothing that this version knows".to_owned())),
    }
}

async fn exchange(ask: &Ask, connection: &Connection) -> Result<JoinResponse, String> {
    let request = JoinRequest {
        version_min: PROTOCOL_VERSION,
        version_max: PROTOCOL_VERSION,
        secret: ask.token.secret.to_vec(),
        broker_key: ask.broker_key.as_bytes().to_vec(),
        client_key: ask.client_key.as_bytes().to_vec(),
        names: ask.names.clone(),
        is_controller: ask.is_controller,
    };
    let (mut send, mut recv) = connection.open_bi().await.map_err(|error| error.to_string())?;
    send.write_all(&frame(&request)).await.map_err(|error| error.to_string())?;
    let _ = send.finish();
    let bytes = read_frame(&mut recv).await?;
    JoinResponse::decode(&bytes[..]).map_err(|error| error.to_string())
}

/// The cluster proved who it is; this is against its mistakes.
fn check(ask: &Ask, admission: Admission) -> Result<Admission, String> {
    if Fingerprint::of_pem(&admission.authority_pem) != Some(ask.token.fingerprint) {
        return Err("the authority is not the one that the token names".to_owned());
    }
    let der = CertificateDer::from_pem_slice(admission.broker_certificate_pem.as_bytes());
    let identity = der.ok().and_then(|der| PeerIdentity::of(&der));
    match identity.map(|identity| identity.broker) == Some(BrokerId(admission.broker_id)) {
        true => Ok(admission),
        false => Err(format!("the certificate is not broker {}'s", admission.broker_id)),
    }
}

fn client_config(pinned: &Arc<Pinned>) -> Result<ClientConfig, String> {
    let mut tls = rustls::ClientConfig::builder_with_provider(Arc::clone(&pinned.provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(pinned) as _)
        .with_no_client_auth();
    tls.alpn_protocols = vec![ALPN_JOIN.to_vec()];
    tls.enable_early_data = false;
    tls.resumption = rustls::client::Resumption::disabled();
    let tls = QuicClientConfig::try_from(tls).map_err(|error| error.to_string())?;
    let mut config = ClientConfig::new(Arc::new(tls));
    config.transport_config(Arc::new(endpoint::transport()));
    Ok(config)
}

/// Trusts the authority of this fingerprint alone, and below it only brokers.
#[derive(Debug)]
struct Pinned {
    provider: Arc<CryptoProvider>,
    expected: Fingerprint,
    /// The authority that was shown in place of the expected one.
    found: Mutex<Option<Fingerprint>>,
}

impl Pinned {
    /// Why a handshake failed.
    fn explain(&self, at: String, error: &quinn::ConnectionError) -> JoinError {
        if let Some(found) = *self.found.lock().unwrap_or_else(PoisonError::into_inner) {
            return JoinError::OtherCluster { at, found, expected: self.expected };
        }
        match error {
            quinn::ConnectionError::TransportError(error) => {
                JoinError::NoCluster { at, why: error.reason.clone() }
            }
            quinn::ConnectionError::ConnectionClosed(closed) => {
                JoinError::NoCluster { at, why: closed.to_string() }
            }
            error => JoinError::Unreachable { at, why: error.to_string() },
        }
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(authority) = intermediates.iter().find(|shown| Fingerprint::of(shown) == self.expected)
        else {
            let found = intermediates.last().map(Fingerprint::of);
            *self.found.lock().unwrap_or_else(PoisonError::into_inner) = found;
            return Err(Error::InvalidCertificate(CertificateError::UnknownIssuer));
        };
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &roots, &[], now, algorithms)?;
        match PeerIdentity::of(end_entity) {
            Some(_) => Ok(ServerCertVerified::assertion()),
            None => Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
