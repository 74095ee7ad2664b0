//! What a broker says of itself at its admin address, and what the system says of its process.

use std::io::{Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::str::FromStr;
use std::time::Duration;

use super::process::{self, Usage};

const PATIENCE: Duration = Duration::from_secs(5);
/// Largest answer that is read (bytes).
const ANSWER_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Where a broker serves its metrics: `http://HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminUrl(String);

impl FromStr for AdminUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<AdminUrl, String> {
        let rest = match text.split_once("://") {
            Some(("http", rest)) => rest,
            Some((scheme, _)) => return Err(format!("{scheme}:// is not served: write http://HOST:PORT")),
            None => text,
        };
        let authority = rest.split('/').next().unwrap_or_default();
        match authority.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0) => {
                Ok(AdminUrl(authority.to_owned()))
            }
            _ => Err(format!("\"{text}\" names no port: write http://HOST:PORT")),
        }
    }
}

/// What brokers had done and held at one time, all of them together. What is not known is `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct BrokerSample {
    /// Processor seconds so far.
    pub cpu_seconds: Option<f64>,
    /// Resident memory (bytes).
    pub memory_bytes: Option<u64>,
    /// Of it, what is no file (bytes).
    pub anonymous_bytes: Option<u64>,
    /// Syncs of logs so far.
    pub syncs: Option<u64>,
    /// Batches acknowledged so far.
    pub batches: Option<u64>,
}

impl BrokerSample {
    /// Both together; what is not known of one is not known of both.
    fn plus(self, other: BrokerSample) -> BrokerSample {
        fn sum<T: std::ops::Add<Output = T>>(one: Option<T>, other: Option<T>) -> Option<T> {
            Some(one? + other?)
        }
        BrokerSample {
            cpu_seconds: sum(self.cpu_seconds, other.cpu_seconds),
            memory_bytes: sum(self.memory_bytes, other.memory_bytes),
            anonymous_bytes: sum(self.anonymous_bytes, other.anonymous_bytes),
            syncs: sum(self.syncs, other.syncs),
            batches: sum(self.batches, other.batches),
        }
    }
}

/// The ways to look at the brokers under load.
#[derive(Debug, Clone, Default)]
pub struct Probe {
    brokers: Vec<BrokerProbe>,
}

impl Probe {
    /// Of these brokers.
    pub fn new(brokers: Vec<BrokerProbe>) -> Probe {
        Probe { brokers }
    }

    /// Looks at all of them now. Blocks for as long as they take to answer.
    pub fn sample(&self) -> BrokerSample {
        let samples = self.brokers.iter().map(BrokerProbe::sample);
        samples.reduce(BrokerSample::plus).unwrap_or_default()
    }

    /// What the system says of their processes together, if they run on this machine and are known.
    pub fn usage(&self) -> Option<Usage> {
        let usage = |broker: &BrokerProbe| broker.process.and_then(process::usage_of_process);
        let mut usages = self.brokers.iter().map(usage);
        let first = usages.next()??;
        usages.try_fold(first, |sum, usage| Some(sum.plus(usage?)))
    }
}

/// The ways to look at one broker.
#[derive(Debug, Clone, Default)]
pub struct BrokerProbe {
    /// Its process, if it runs on this machine and is known.
    pub process: Option<u32>,
    /// Its admin server.
    pub admin: Option<AdminUrl>,
}

impl BrokerProbe {
    fn sample(&self) -> BrokerSample {
        let page = self.admin.as_ref().and_then(|admin| match fetch_metrics(admin) {
            Ok(page) => Some(page),
            Err(error) => {
                tracing::warn!(%error, "the broker's metrics can not be read");
                None
            }
        });
        let metric = |name| page.as_deref().and_then(|page| metric(page, name));
        let count = |name| metric(name).map(|value| value as u64);
        let (syncs, batches) = (count("quire_log_syncs_total"), count("quire_produce_batches_total"));
        match self.process.and_then(process::usage_of_process) {
            Some(usage) => BrokerSample {
                cpu_seconds: Some(usage.cpu_seconds),
                memory_bytes: Some(usage.memory_bytes),
                anonymous_bytes: usage.anonymous_bytes,
                syncs,
                batches,
            },
            None => BrokerSample {
                cpu_seconds: metric("quire_process_cpu_seconds"),
                memory_bytes: count("quire_process_memory_bytes"),
                anonymous_bytes: count("quire_process_anonymous_memory_bytes"),
                syncs,
                batches,
            },
        }
    }
}

/// The broker's `/metrics`.
///
/// # Errors
/// If nobody answers there, or something else than a page of metrics.
pub fn fetch_metrics(admin: &AdminUrl) -> Result<String, String> {
    let AdminUrl(authority) = admin;
    let failed = |error: std::io::Error| format!("http://{authority}/metrics: {error}");
    let address = authority.to_socket_addrs().map_err(failed)?.next();
    let address = address.ok_or_else(|| format!("http://{authority}: the host has no address"))?;
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).map_err(failed)?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(failed)?;
    // Version 1.0: the answer is not cut into chunks, and the connection closed behind it.
    let request = format!("GET /metrics HTTP/1.0\r\nHost: {authority}\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(failed)?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer).map_err(failed)?;
    let (head, page) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.lines().next().unwrap_or_default();
    match status.split(' ').nth(1) {
        Some("200") => Ok(page.to_owned()),
        _ => Err(format!("http://{authority}/metrics answers \"{status}\"")),
    }
}

/// The value of a metric without labels.
fn metric(page: &str, name: &str) -> Option<f64> {
    let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    value.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_found_by_their_whole_name() {
        let page = "# HELP a_total Help.\n# TYPE a_total counter\na_total_more 5\na_total 17\nb 0.25\n";
        assert_eq!((metric(page, "a_total"), metric(page, "b")), (Some(17.0), Some(0.25)));
        assert_eq!(metric(page, "c"), None);
    }

    #[test]
    fn brokers_are_taken_together_and_what_one_does_not_tell_is_not_known() {
        let one = BrokerSample { cpu_seconds: Some(1.5), syncs: Some(3), ..BrokerSample::default() };
        let other = BrokerSample { cpu_seconds: Some(0.5), batches: Some(7), ..BrokerSample::default() };
        let both = BrokerSample { cpu_seconds: Some(2.0), ..BrokerSample::default() };
        assert_eq!(one.plus(other), both);
        assert_eq!(Probe::default().sample(), BrokerSample::default());
    }

    #[test]
    fn an_admin_url_is_a_host_and_a_port() {
        for text in ["http://127.0.0.1:9644", "127.0.0.1:9644", "http://127.0.0.1:9644/metrics"] {
            assert_eq!(text.parse(), Ok(AdminUrl("127.0.0.1:9644".into())), "{text}");
        }
        for text in ["https://a:1", "a", "a:0", ":9644", "http://"] {
            assert!(text.parse::<AdminUrl>().is_err(), "{text}");
        }
    }
}
