//! A broker inside this process, as `dev`, `demo` and `broker` run one.

use quire_broker::{Broker, StartError};
use quire_client::Profile;

use crate::failure::{Exit, Failure, describe_io};

/// A profile that reaches `broker` with the certificates it made.
pub fn profile(broker: &Broker) -> Profile {
    let credentials = broker.credentials();
    Profile::new(format!("quire://{}", broker.address()))
        .authority_pem(&credentials.authority_pem)
        .identity_pem(&credentials.certificate_pem, &credentials.key_pem)
}

/// A folder that is removed when dropped.
///
/// # Errors
/// If the system's temporary folder can not be written.
pub fn temporary_folder() -> Result<tempfile::TempDir, Failure> {
    tempfile::Builder::new().prefix("quire-").tempdir().map_err(|error| {
        Failure::failed(format!("no temporary folder: {}", describe_io(&error)))
            .hint("set TMPDIR to a folder that can be written")
    })
}

/// Why a broker did not start.
pub fn explain_start(error: &StartError) -> Failure {
    Failure::Told {
        exit: Exit::Failed,
        what: format!("the broker did not start: {error}"),
        hints: Vec::new(),
    }
}
