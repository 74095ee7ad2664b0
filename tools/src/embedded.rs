//! A broker inside this process, as `dev`, `demo` and `broker` run one.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use quire_broker::{Broker, DataDirectoryError, StartError};
use quire_client::Profile;

use crate::failure::{Failure, describe_io};
use crate::output;
use crate::signals::StopSignals;

/// Starts a broker, unless it is to stop before that is done: then `None`. A log that is being recovered is left as it
/// is, for the next start.
///
/// # Errors
/// If it does not start.
pub async fn start(
    starting: impl Future<Output = Result<Broker, StartError>> + Send + 'static,
    stop: &mut StopSignals,
) -> Result<Option<Broker>, Failure> {
    // On a task of its own: whatever it is doing, the signal is heard.
    let mut starting = tokio::spawn(starting);
    tokio::select! {
        started = &mut starting => match started {
            Ok(started) => started.map(Some).map_err(|error| explain_start(&error)),
            Err(error) => Err(Failure::failed(format!("the broker did not start: {error}"))),
        },
        () = stop.stop() => {
            starting.abort();
            output::note("stopped before it was ready");
            Ok(None)
        }
    }
}

/// A profile that reaches `broker` with the certificates it made.
pub fn profile(broker: &Broker) -> Profile {
    let credentials = broker.credentials();
    Profile::new(format!("quire://{}", from_here(broker.address())))
        .authority_pem(credentials.authority_pem)
        .identity_pem(credentials.certificate_pem, credentials.key_pem)
}

/// Where a client on this machine reaches a broker that listens at `address`, which may stand for all of its addresses.
pub fn from_here(address: SocketAddr) -> SocketAddr {
    let host = match address.ip() {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Ipv6Addr::LOCALHOST.into(),
        host => host,
    };
    SocketAddr::new(host, address.port())
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
    let what = match error {
        StartError::Listen { address, source } => {
            format!("the broker can not listen on {address}: {}", describe_io(source))
        }
        other => format!("the broker did not start: {other}"),
    };
    let next = match error {
        StartError::Listen { source, .. } if source.kind() == io::ErrorKind::AddrInUse => {
            "another process has that port: stop it, or choose another with --listen or --admin"
        }
        StartError::Listen { .. } => "choose an address of this machine with --listen or --admin",
        StartError::DataDirectory(DataDirectoryError::InUse { .. }) => "choose another with --data DIR",
        _ => "correct what it names and start again; -v says more",
    };
    Failure::failed(what).hint(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_named_with_a_way_out() {
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], 9440));
        let source = io::Error::from_raw_os_error(98);
        let failure = explain_start(&StartError::Listen { address, source });
        assert_eq!(
            failure.to_string(),
            "error: the broker can not listen on 127.0.0.1:9440: address already in use\n  \
             another process has that port: stop it, or choose another with --listen or --admin"
        );
    }
}
