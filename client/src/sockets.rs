//! Where UDP sockets come from: the operating system, or a test's network.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use quinn::AsyncUdpSocket;

type Bind = dyn Fn(SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> + Send + Sync;

/// Binds UDP sockets. Default: the operating system's.
#[doc(hidden)]
#[derive(Clone, Default)]
pub struct Sockets(Option<Arc<Bind>>);

impl Sockets {
    /// Sockets of another network. Port 0 asks for a free one; an unspecified address for the host's own.
    pub fn new(
        bind: impl Fn(SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> + Send + Sync + 'static,
    ) -> Sockets {
        Sockets(Some(Arc::new(bind)))
    }

    pub(crate) fn are_given(&self) -> bool {
        self.0.is_some()
    }

    /// `None`: the operating system is to be asked.
    pub(crate) fn bind(&self, address: SocketAddr) -> Option<io::Result<Arc<dyn AsyncUdpSocket>>> {
        self.0.as_ref().map(|bind| bind(address))
    }
}

impl fmt::Debug for Sockets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Sockets(given)" } else { "Sockets(system)" })
    }
}
