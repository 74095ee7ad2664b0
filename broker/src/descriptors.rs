//! File descriptors: a log that is in use has one, and so has a connection to the admin server. What most systems give a
//! process at first is far below what they let it have.

use quire_protocol::limits;
use rustix::process::{Resource, getrlimit, setrlimit};

/// Lets this process open as many files as it may, and warns if that is few.
pub(crate) fn raise_limit() {
    let limit = getrlimit(Resource::Nofile);
    // No limit is no number.
    let Some(hard) = limit.maximum.or(limit.current) else { return };
    let mut soft = limit.current.unwrap_or(hard);
    if soft < hard {
        let raised = rustix::process::Rlimit { current: Some(hard), ..limit };
        match setrlimit(Resource::Nofile, raised) {
            Ok(()) => soft = hard,
            Err(error) => tracing::warn!(%error, soft, hard, "the limit of open files can not be raised"),
        }
    }
    if soft < limits::DESCRIPTORS_MIN {
        tracing::warn!(
            limit = soft,
            wanted = limits::DESCRIPTORS_MIN,
            "few files may be open: raise it with 'ulimit -Hn' or systemd's LimitNOFILE, or many partitions in use fail"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_is_the_hard_one_from_then_on() {
        let before = getrlimit(Resource::Nofile);
        let lowered = rustix::process::Rlimit { current: before.current.map(|soft| soft.min(512)), ..before };
        setrlimit(Resource::Nofile, lowered).expect("it may be lowered");
        raise_limit();
        let after = getrlimit(Resource::Nofile);
        assert_eq!(after.current, before.maximum.or(before.current));
    }
}
