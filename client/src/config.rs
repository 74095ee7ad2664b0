//! Settings that hold for a whole client.

use std::time::Duration;

use quire_protocol::limits;

use crate::error::Error;
use crate::retry::Backoff;
use crate::sockets::Sockets;
use crate::streams::PARTITION_STREAMS_MAX;

/// How long a client waits for brokers, and how it comes back to them. The defaults suit a LAN and a WAN.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// Longest wait for one connection attempt, handshakes included. Default 5 s.
    pub connect_timeout: Duration,
    /// Longest wait for the answer to one control request. Default 30 s.
    pub request_timeout: Duration,
    /// A connection on which nothing arrives for so long counts as lost. Default 10 s. Shorter notices a broker that was
    /// killed sooner, and costs a small packet each three fifths of this time on an idle connection: one
    /// that is lost is sent again well before the rest is over.
    pub idle_timeout: Duration,
    /// Pauses between attempts: to connect, to open a stream again. While a pause lasts, further attempts to
    /// reach the same broker fail at once.
    pub backoff: Backoff,
    /// Age at which cached metadata is asked for again. Default 5 min.
    pub metadata_age_max: Duration,
    /// Most streams to one broker for partitions that are produced to or consumed. Default and most 3,488. Producers
    /// share them where they have more partitions; consumers keep theirs, and leave some to producers.
    pub partition_streams: usize,
    /// The only cipher to offer. Default `None`: all that there are, the fastest first. For measurements, and where a
    /// policy names one.
    pub cipher: Option<Cipher>,
    /// Name that the broker's log shows for this client.
    pub client_name: String,
    /// Where UDP sockets come from, for tests with a network of their own. Default: the operating system.
    #[doc(hidden)]
    pub sockets: Sockets,
}

/// What connections are encrypted with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cipher {
    /// AES-GCM with keys of 128 bits: the fastest where the processor has AES.
    Aes128Gcm,
    /// AES-GCM with keys of 256 bits.
    Aes256Gcm,
    /// ChaCha20-Poly1305: the fastest where the processor has no AES.
    ChaCha20Poly1305,
}

impl Default for ClientConfig {
    fn default() -> ClientConfig {
        ClientConfig {
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(30),
            idle_timeout: limits::CLIENT_IDLE_TIME_MAX,
            backoff: Backoff::default(),
            metadata_age_max: Duration::from_secs(300),
            partition_streams: PARTITION_STREAMS_MAX,
            cipher: None,
            client_name: env!("CARGO_PKG_NAME").into(),
            sockets: Sockets::default(),
        }
    }
}

/// Where a broker listens: `quire://HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Address {
    /// A name or an IP address, without brackets.
    pub host: String,
    /// The UDP port.
    pub port: u16,
}

/// The port that brokers listen on for clients unless told otherwise.
pub const DEFAULT_PORT: u16 = 9440;

impl Address {
    /// Reads `quire://HOST:PORT`; the scheme and the port (9440) may be left out, an IPv6 address takes brackets.
    ///
    /// # Errors
    /// If the text is nothing of that kind.
    pub fn parse(text: &str) -> Result<Address, Error> {
        let invalid = |why| Error::Address { given: text.chars().take(256).collect(), why };
        let rest = match text.split_once("://") {
            Some(("quire", rest)) => rest,
            Some(_) => return Err(invalid("the scheme is not quire://")),
            None => text,
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = match rest.strip_prefix('[') {
            Some(rest) => {
                let (host, after) = rest.split_once(']').ok_or_else(|| invalid("a bracket is not closed"))?;
                if host.parse::<std::net::Ipv6Addr>().is_err() {
                    return Err(invalid("no IPv6 address stands in the brackets"));
                }
                match after {
                    "" => (host, None),
                    _ => (
                        host,
                        Some(after.strip_prefix(':').ok_or_else(|| invalid("no port after the bracket"))?),
                    ),
                }
            }
            None => match rest.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (rest, None),
            },
        };
        let port = match port {
            None => DEFAULT_PORT,
            Some(port) => match port.parse() {
                Ok(0) | Err(_) => return Err(invalid("the port is not a number from 1 to 65535")),
                Ok(port) => port,
            },
        };
        let is_host_byte =
            |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':');
        if host.is_empty() || !host.bytes().all(is_host_byte) {
            return Err(invalid("the host is missing or has characters that no host has"));
        }
        Ok(Address { host: host.to_owned(), port })
    }
}

/// Most brokers that a profile names.
const BOOTSTRAP_MAX: usize = 64;

impl Address {
    /// Reads `quire://HOST:PORT,HOST:PORT`: any of a cluster's brokers, to be asked one after the other until one answers.
    /// The scheme may stand before each.
    ///
    /// # Errors
    /// If one of them is no address, or there are none or too many.
    pub fn parse_list(text: &str) -> Result<Vec<Address>, Error> {
        let mut addresses = Vec::new();
        for part in text.split(',').map(str::trim) {
            let address = Address::parse(part)?;
            if !addresses.contains(&address) {
                addresses.push(address);
            }
            if addresses.len() > BOOTSTRAP_MAX {
                let given = text.chars().take(256).collect();
                return Err(Error::Address { given, why: "it names more brokers than 64" });
            }
        }
        Ok(addresses)
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_with_and_without_their_optional_parts() {
        let cases = [
            ("quire://127.0.0.1:9440", "127.0.0.1:9440"),
            ("quire://broker-1.example.org:1/", "broker-1.example.org:1"),
            ("localhost", "localhost:9440"),
            ("[::1]:77", "[::1]:77"),
            ("quire://[::1]", "[::1]:9440"),
        ];
        for (text, expected) in cases {
            let address = Address::parse(text).expect(text);
            assert_eq!(address.to_string(), expected);
            assert_eq!(Address::parse(&address.to_string()), Ok(address), "its own text leads back");
        }
    }

    #[test]
    fn several_brokers_are_read_in_their_order_and_each_once() {
        let addresses = Address::parse_list("quire://a:1,b, quire://[::1]:2,a:1").expect("three brokers");
        let shown: Vec<_> = addresses.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["a:1", "b:9440", "[::1]:2"]);
        for text in ["", "a,", "a,,b", "a,http://b"] {
            assert!(Address::parse_list(text).is_err(), "{text:?}");
        }
        let many: Vec<_> = (0..65).map(|number| format!("b{number}")).collect();
        assert!(Address::parse_list(&many.join(",")).is_err());
    }

    #[test]
    fn other_text_is_refused() {
        for text in
            ["", "quire://", "http://a:1", "a:0", "a:70000", "a:b", "[::1", "[::1]9", "[a]:1", "a b", "::1"]
        {
            assert!(Address::parse(text).is_err(), "{text:?}");
        }
    }
}
