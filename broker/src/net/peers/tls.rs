//! TLS between brokers: both sides show a certificate of the cluster's authority, and a broker's certificate alone will do.
//!
//! Which broker it is says the common name, `broker-<id>`, and nothing else: host names are the operators' to choose, and
//! one that reads like another broker must not make its holder that broker. A client's certificate may have any common
//! name, but can not be used by a server, and a peer's must.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quire_protocol::BrokerId;
use quire_protocol::stream::ALPN_PEER;
use rcgen::ExtendedKeyUsagePurpose;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::super::authority::Subject;
use super::super::tls::{self, BrokerCertificate, TlsError};

const NAME_PREFIX: &str = "broker-";

/// The common name of a broker's certificate, and the server name that it is called by.
pub(crate) fn broker_name(broker: BrokerId) -> String {
    format!("{NAME_PREFIX}{}", broker.0)
}

/// The broker that a common name stands for.
pub(crate) fn broker_named(name: &str) -> Option<BrokerId> {
    let id = name.strip_prefix(NAME_PREFIX)?.parse().ok().map(BrokerId)?;
    // "broker-+1" and "broker-01" are nobody.
    (broker_name(id) == name).then_some(id)
}

/// What a broker's certificate says. Other brokers call it and are called by it.
pub(crate) fn broker_subject(broker: BrokerId, names: &[String]) -> Subject {
    Subject {
        principal: broker_name(broker),
        names: names.to_vec(),
        usages: vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
    }
}

/// Who a certificate makes its holder among brokers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PeerIdentity {
    pub(crate) broker: BrokerId,
    pub(crate) serial: Serial,
}

/// The number that tells the certificates of an authority apart.
pub(crate) type Serial = Vec<u8>;

impl PeerIdentity {
    /// `None` if it is no broker's certificate. Its signature is not looked at.
    pub(crate) fn of(certificate: &CertificateDer<'_>) -> Option<PeerIdentity> {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let usage = parsed.extended_key_usage().ok().flatten()?.value;
        if !usage.server_auth || !usage.client_auth {
            return None;
        }
        let mut names = parsed.subject().iter_common_name();
        let broker = broker_named(names.next()?.as_str().ok()?)?;
        let serial = parsed.raw_serial().to_vec();
        names.next().is_none().then_some(PeerIdentity { broker, serial })
    }

    /// Who is at the other end of an established connection.
    pub(crate) fn of_connection(connection: &quinn::Connection) -> Option<PeerIdentity> {
        let chain = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
        PeerIdentity::of(chain.first()?)
    }
}

/// The certificates that are valid no more, as committed; shared by all that verify.
#[derive(Debug, Default)]
pub(crate) struct Revoked(ArcSwap<BTreeSet<Serial>>);

impl Revoked {
    /// Whether that is another list than before.
    pub(crate) fn replace(&self, serials: BTreeSet<Serial>) -> bool {
        let is_news = **self.0.load() != serials;
        if is_news {
            self.0.store(Arc::new(serials));
        }
        is_news
    }

    pub(crate) fn contains(&self, serial: &[u8]) -> bool {
        self.0.load().contains(serial)
    }
}

/// Both sides of TLS between brokers.
pub(crate) struct PeerTls {
    pub(crate) server: Arc<QuicServerConfig>,
    pub(crate) client: Arc<QuicClientConfig>,
}

impl fmt::Debug for PeerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PeerTls")
    }
}

impl PeerTls {
    /// Trusts `authority_pem` but for what is revoked; shows `certificate` as it is at the time.
    pub(crate) fn new(
        authority_pem: &str,
        certificate: &Arc<BrokerCertificate>,
        revoked: &Arc<Revoked>,
    ) -> Result<PeerTls, TlsError> {
        let (provider, roots) = (tls::provider(), Arc::new(tls::trusting(authority_pem)?));
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider)).build()?;
        let callers = Callers { verifier, revoked: Arc::clone(revoked) };
        let mut server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(callers))
            .with_cert_resolver(Arc::clone(certificate) as _);
        server.alpn_protocols = vec![ALPN_PEER.to_vec()];
        server.max_early_data_size = 0;
        server.send_tls13_tickets = 0;
        server.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});

        let called = Called { provider: Arc::clone(&provider), roots, revoked: Arc::clone(revoked) };
        let mut client = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(called))
            .with_client_cert_resolver(Arc::clone(certificate) as _);
        client.alpn_protocols = vec![ALPN_PEER.to_vec()];
        client.enable_early_data = false;
        client.resumption = rustls::client::Resumption::disabled();
        Ok(PeerTls {
            server: Arc::new(QuicServerConfig::try_from(server)?),
            client: Arc::new(QuicClientConfig::try_from(client)?),
        })
    }
}

fn identify(certificate: &CertificateDer<'_>, revoked: &Revoked) -> Result<BrokerId, Error> {
    let identity = PeerIdentity::of(certificate)
        .ok_or(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))?;
    match revoked.contains(&identity.serial) {
        true => Err(Error::InvalidCertificate(CertificateError::Revoked)),
        false => Ok(identity.broker),
    }
}

/// Verifies brokers that call.
#[derive(Debug)]
struct Callers {
    verifier: Arc<dyn ClientCertVerifier>,
    revoked: Arc<Revoked>,
}

impl ClientCertVerifier for Callers {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.verifier.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.verifier.verify_client_cert(end_entity, intermediates, now)?;
        identify(end_entity, &self.revoked)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

/// Verifies brokers that are called: by the name of the broker that is meant.
#[derive(Debug)]
struct Called {
    provider: Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
    revoked: Arc<Revoked>,
}

impl ServerCertVerifier for Called {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let algorithms = self.provider.signature_verification_algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, algorithms)?;
        let broker = identify(end_entity, &self.revoked)?;
        match server_name.to_str() == broker_name(broker) {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(Error::General(format!("by its certificate it is {}", broker_name(broker)))),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stands_for_one_broker_and_is_written_one_way() {
        assert_eq!(broker_named(&broker_name(BrokerId(7))), Some(BrokerId(7)));
        for name in
            ["broker-", "broker-+1", "broker-01", "broker-4294967296", "Broker-1", "admin", "broker-1.x"]
        {
            assert_eq!(broker_named(name), None, "{name}");
        }
    }
}
