//! TLS for client connections: version 1.3 alone, no early data, and a certificate demanded of every client.
//!
//! The provider is passed explicitly everywhere: a broker inside someone's process must not depend on, nor set, the
//! process's default.

use std::sync::Arc;

use arc_swap::ArcSwap;
use quinn::crypto::rustls::{HandshakeData, NoInitialCipherSuite, QuicServerConfig};
use quire_protocol::stream::{ALPN_CLIENT, ALPN_JOIN};
use rustls::client::ResolvesClientCert;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::{ClientHello, ResolvesServerCert, VerifierBuilderError, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::authority;
use super::certificates::Identity;

/// Who a client without a certificate is, where such are let in.
pub(crate) const ANONYMOUS: &str = "anonymous";

/// TLS could not be set up from the certificates.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is not PEM.
    #[error("a certificate file is damaged: {0}")]
    Pem(#[from] rustls_pki_types::pem::Error),
    /// A certificate or key is not acceptable.
    #[error("a certificate cannot be used: {0}")]
    Certificate(#[from] rustls::Error),
    /// The authority cannot verify clients.
    #[error("the authority cannot be used to verify clients: {0}")]
    Verifier(#[from] VerifierBuilderError),
    /// The provider lacks what QUIC needs.
    #[error("TLS lacks the cipher that QUIC starts with: {0}")]
    Quic(#[from] NoInitialCipherSuite),
}

/// The provider with the suites in the order of their speed: AES-128-GCM first.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    let cipher_suites = vec![
        aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
        aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
        aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    Arc::new(CryptoProvider { cipher_suites, ..aws_lc_rs::default_provider() })
}

/// Whom the server's side of client connections lets finish a handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Admits {
    /// Holders of a certificate of the authority.
    Certified,
    /// Whoever comes: anonymous clients, where they are allowed.
    Anyone,
    /// Whoever comes, clients and brokers that want to join. Clients without a certificate are turned away right after
    /// the handshake: TLS can not demand a certificate of some and not of others.
    Joining,
}

/// The server's side of client connections, which presents `certificate` as it is at the time.
pub(crate) fn server_config(
    authority_pem: &str,
    certificate: Arc<BrokerCertificate>,
    admits: Admits,
) -> Result<Arc<QuicServerConfig>, TlsError> {
    let provider = provider();
    let roots = trusting(authority_pem)?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let verifier = match admits {
        Admits::Certified => verifier,
        Admits::Anyone | Admits::Joining => verifier.allow_unauthenticated(),
    };
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier.build()?)
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![ALPN_CLIENT.to_vec()];
    if admits == Admits::Joining {
        config.alpn_protocols.push(ALPN_JOIN.to_vec());
    }
    config.max_early_data_size = 0;
    // A resumed session would outlive its client's certificate.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(Arc::new(QuicServerConfig::try_from(config)?))
}

/// Whether the other end of an established connection wants to join the cluster.
pub(crate) fn is_joining(connection: &quinn::Connection) -> bool {
    let data = connection.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok());
    data.and_then(|data| data.protocol).is_some_and(|protocol| protocol == ALPN_JOIN)
}

/// The serial number of the certificate at the other end of an established connection.
pub(crate) fn serial(connection: &quinn::Connection) -> Option<Vec<u8>> {
    let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    authority::serial(chain.first()?)
}

/// Trust in one authority alone.
pub(super) fn trusting(authority_pem: &str) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority_pem.as_bytes())?)?;
    Ok(roots)
}

/// Who is at the other end of an established connection; `None` if its certificate names nobody.
pub(crate) fn principal(connection: &quinn::Connection) -> Option<String> {
    let Some(identity) = connection.peer_identity() else { return Some(ANONYMOUS.to_owned()) };
    let chain = identity.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    authority::principal(chain.first()?)
}

/// The certificate that clients and other brokers are shown, whatever server name they ask for: they check its names, the
/// broker has but one. It can be replaced while the broker runs.
#[derive(Debug)]
pub(crate) struct BrokerCertificate {
    current: ArcSwap<CertifiedKey>,
    /// Shown behind it, where brokers that want to join must see it.
    authority: Option<CertificateDer<'static>>,
}

impl BrokerCertificate {
    pub(crate) fn new(identity: &Identity) -> Result<BrokerCertificate, TlsError> {
        Ok(BrokerCertificate { current: ArcSwap::from_pointee(certified(identity, None)?), authority: None })
    }

    /// Shows the authority too.
    pub(crate) fn with_authority(
        identity: &Identity,
        authority_pem: &str,
    ) -> Result<BrokerCertificate, TlsError> {
        let authority = CertificateDer::from_pem_slice(authority_pem.as_bytes())?;
        let current = certified(identity, Some(&authority))?;
        Ok(BrokerCertificate { current: ArcSwap::from_pointee(current), authority: Some(authority) })
    }

    /// Shows another one to whoever connects from now on.
    pub(crate) fn replace(&self, identity: &Identity) -> Result<(), TlsError> {
        self.current.store(Arc::new(certified(identity, self.authority.as_ref())?));
        Ok(())
    }

    #[cfg(test)]
    pub(crate) fn presented(&self) -> Vec<CertificateDer<'static>> {
        self.current.load().cert.clone()
    }
}

impl ResolvesClientCert for BrokerCertificate {
    fn resolve(&self, _roots: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ResolvesServerCert for BrokerCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

fn certified(
    identity: &Identity,
    authority: Option<&CertificateDer<'static>>,
) -> Result<CertifiedKey, TlsError> {
    let mut chain = vec![CertificateDer::from_pem_slice(identity.certificate_pem.as_bytes())?];
    chain.extend(authority.cloned());
    let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes())?;
    Ok(CertifiedKey::from_der(chain, key, &provider())?)
}
