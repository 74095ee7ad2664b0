//! After one failed write or sync nothing more is appended to a log.
//!
//! The kernel reports lost pages once and then answers OK, so the only safe answer to a failed sync is to stop
//! trusting what was written and to start again from what is really on disk.

use std::fmt;
use std::sync::{Arc, OnceLock};

/// Why a log takes no more records in this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoisonReason {
    /// What was attempted.
    pub operation: &'static str,
    /// What the operating system answered.
    pub error: String,
}

impl fmt::Display for PoisonReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} failed: {}", self.operation, self.error)
    }
}

/// Set once, never cleared.
#[derive(Debug, Clone, Default)]
pub(crate) struct Poison(OnceLock<Arc<PoisonReason>>);

impl Poison {
    /// Records the first failure; later ones say nothing new.
    pub(crate) fn set(&self, reason: PoisonReason) {
        // A second failure is a consequence of the first.
        let _ = self.0.set(Arc::new(reason));
    }

    pub(crate) fn reason(&self) -> Option<&Arc<PoisonReason>> {
        self.0.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_stays() {
        let poison = Poison::default();
        assert_eq!(poison.reason(), None);
        for operation in ["sync", "write"] {
            poison.set(PoisonReason { operation, error: "input/output error".into() });
        }
        assert_eq!(poison.reason().map(|reason| reason.operation), Some("sync"));
    }
}
