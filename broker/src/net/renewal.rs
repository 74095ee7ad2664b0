//! Keeps the broker's certificate from expiring under it: looks once a day, and presents a new one from then on.
//!
//! Connections that are open keep the one they were made with.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::certificates::{self, CertificatesError};
use super::tls::{BrokerCertificate, TlsError};
use crate::shutdown::Stopping;

const INTERVAL: Duration = Duration::from_secs(24 * 3600);

/// A certificate could not be renewed; the one in use stays.
#[derive(Debug, thiserror::Error)]
enum RenewalError {
    #[error(transparent)]
    Files(#[from] CertificatesError),
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Renews until the broker stops.
pub(crate) async fn keep(
    dir: PathBuf,
    names: Vec<String>,
    certificate: Arc<BrokerCertificate>,
    mut stopping: Stopping,
) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = stopping.requested() => return,
        }
        let (dir, names, certificate) = (dir.clone(), names.clone(), Arc::clone(&certificate));
        let renewed = tokio::task::spawn_blocking(move || renew(&dir, &names, &certificate)).await;
        if let Ok(Err(error)) = renewed {
            tracing::error!(%error, "the broker's certificate can not be renewed; it is tried again in a day");
        }
    }
}

fn renew(dir: &Path, names: &[String], certificate: &BrokerCertificate) -> Result<(), RenewalError> {
    let certificates = certificates::ensure(dir, names)?;
    certificate.replace(&certificates.broker)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_certificate_is_presented_without_a_restart() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let names = ["localhost".to_owned()];
        let first = certificates::ensure(dir.path(), &names).expect("made");
        let certificate = BrokerCertificate::new(&first.broker).expect("it is usable");
        let presented = certificate.presented();
        renew(dir.path(), &names, &certificate).expect("nothing is due");
        assert_eq!(certificate.presented(), presented);

        // One that can not be used is due as one past half of its life is.
        std::fs::write(dir.path().join("broker.pem"), "damaged").expect("written");
        renew(dir.path(), &names, &certificate).expect("a new one is made");
        assert_ne!(certificate.presented(), presented);
    }
}
