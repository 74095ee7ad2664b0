//! What a benchmark is asked to do: given on the command line, then checked into [`Plan`]s, one for each of a matrix.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use quire_client::{Acks, Cipher, Compression};
use quire_protocol::limits;

use super::load::produce::Limit;
use super::payload::{ContentSettings, STAMP_LEN};
use super::probe::AdminUrl;
use super::report::{Scenario, Settings};
use super::size::{self, RecordSize, RecordSizes};
use super::warm_up;
use crate::failure::Failure;
use crate::topic::setting;

/// Most producers or consumers: each has a socket of its own.
const CLIENTS_MAX: i64 = 10_000;
/// Most different keys; they are kept in memory.
const KEYS_MAX: u64 = 1_000_000;
/// Bytes that are there to be consumed unless told otherwise.
const PREFILL_BYTES: u64 = 1024 * 1024 * 1024;
const DURATION_DEFAULT: Duration = Duration::from_secs(5);
const WARM_UP_DEFAULT: Duration = Duration::from_secs(1);

/// What every scenario takes.
#[derive(Debug, Clone, Args)]
pub struct LoadArgs {
    /// Producers, each with a connection of its own
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=CLIENTS_MAX), help_heading = "Load")]
    producers: u32,
    /// Consumers, each with a connection of its own; they share out the partitions [default: 1; produce: none]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=CLIENTS_MAX), help_heading = "Load")]
    consumers: Option<u32>,
    /// Size of a value: 1KiB, from..to (100..2000), or weighted (100:9,10000:1)
    #[arg(long, value_name = "SIZE", default_value = "1KiB", help_heading = "Load")]
    record_size: Vec<RecordSizes>,
    /// Different keys; 0 for records without one
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=KEYS_MAX), help_heading = "Load")]
    keys: u64,
    /// Records a second over all producers, sent on schedule whatever the broker does [default: flat out]
    #[arg(long, value_name = "N", value_parser = rate, help_heading = "Load")]
    rate: Option<f64>,
    /// Unacknowledged records a producer may have [default: what its 64 MiB of memory hold]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Load")]
    in_flight: Option<u32>,
    /// Largest batch
    #[arg(long, value_name = "SIZE", default_value = "256KiB", value_parser = size::bytes, help_heading = "Load")]
    batch_bytes: u64,
    /// How long a batch waits for more records: 0, 5ms
    #[arg(long, value_name = "TIME", default_value = "0", value_parser = span, help_heading = "Load")]
    linger: Duration,
    /// How batches are compressed
    #[arg(short = 'z', long, value_enum, default_value_t = CompressionArg::None, help_heading = "Load")]
    compression: CompressionArg,
    /// What an acknowledgement waits for
    #[arg(long, value_enum, default_value_t = AcksArg::All, help_heading = "Load")]
    acks: AcksArg,
    /// Records written before consumers begin (consume, mixed) [default: --count, or what fills 1 GiB]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Load")]
    prefill: Option<u64>,
    /// The topic's partitions
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(limits::TOPIC_PARTITIONS_MAX)), help_heading = "Topic and connections")]
    partitions: u32,
    /// Whether an acknowledgement waits for the disk (always) or for the page cache (interval)
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "always",
        help_heading = "Topic and connections"
    )]
    sync: Vec<SyncArg>,
    /// Replicas of each partition; the benchmark starts as many brokers for itself
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1", value_parser = clap::value_parser!(u32).range(1..=limits::REPLICAS_MAX as i64), help_heading = "Topic and connections")]
    replicas: Vec<u32>,
    /// Another setting of the topic, e.g. retention.bytes=1073741824; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = setting, help_heading = "Topic and connections")]
    config: Vec<(String, String)>,
    /// The only cipher that clients offer
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "aes-128-gcm",
        help_heading = "Topic and connections"
    )]
    cipher: Vec<CipherArg>,
    /// How long to measure: 10s, 2m [default: 5s; consume: once through what was written]
    #[arg(long, value_name = "TIME", value_parser = seconds_or_span, conflicts_with = "count", help_heading = "Measurement")]
    duration: Option<Duration>,
    /// Measure so many records in place of a time
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Measurement")]
    count: Option<u64>,
    /// Repetitions, of which the median counts
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000), help_heading = "Measurement")]
    repeat: u32,
    /// Load before each measurement [default: 1s]
    #[arg(long, value_name = "TIME", value_parser = seconds_or_span, help_heading = "Measurement")]
    warm_up: Option<Duration>,
    /// Memory made ready for the page cache before each repetition [default: 4GiB, or a quarter of what is available]
    #[arg(long, value_name = "SIZE", value_parser = size::bytes, help_heading = "Measurement")]
    page_cache_warm_up: Option<u64>,
    /// Make no memory ready: on a virtual machine the first gigabytes may then be several times slower
    #[arg(long, conflicts_with = "page_cache_warm_up", help_heading = "Measurement")]
    no_page_cache_warm_up: bool,
    /// Read everything back and check every record and the chain
    #[arg(long, help_heading = "Measurement")]
    verify: bool,
    /// Where sizes, keys and contents come from
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Measurement")]
    seed: u64,
    /// Run every combination of --sync, --cipher, --replicas and --record-size, which then take lists
    #[arg(long, help_heading = "Measurement")]
    pub(super) matrix: bool,
    /// Load the running broker of --profile in place of one started for the benchmark
    #[arg(long, help_heading = "Broker")]
    pub(super) cluster: bool,
    /// The running broker's admin address, for its processor time, memory and syncs: http://HOST:9644
    #[arg(long, value_name = "URL", requires = "cluster", help_heading = "Broker")]
    pub(super) admin: Option<AdminUrl>,
    /// Keep the data of the benchmark's own brokers in a temporary folder in DIR: the disk to measure
    #[arg(long, value_name = "DIR", conflicts_with = "cluster", help_heading = "Broker")]
    pub(super) data: Option<PathBuf>,
    /// Answer in JSON, one object for each combination
    #[arg(long, help_heading = "Output")]
    pub(super) json: bool,
    /// Also write a page to look at: one HTML file that needs nothing else
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(super) report: Option<PathBuf>,
}

/// Settings that options of their own decide.
const OWN_SETTINGS: [(&str, &str); 2] = [("sync", "--sync"), ("max.message.bytes", "--batch-bytes")];

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SyncArg {
    Always,
    Interval,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum CipherArg {
    #[value(name = "aes-128-gcm")]
    Aes128Gcm,
    #[value(name = "aes-256-gcm")]
    Aes256Gcm,
    #[value(name = "chacha20-poly1305")]
    ChaCha20Poly1305,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum AcksArg {
    All,
    Leader,
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum CompressionArg {
    None,
    Gzip,
    Snappy,
    Lz4,
    Zstd,
}

impl SyncArg {
    fn name(self) -> &'static str {
        match self {
            SyncArg::Always => "always",
            SyncArg::Interval => "interval",
        }
    }
}

impl CipherArg {
    fn cipher(self) -> (Cipher, &'static str) {
        match self {
            CipherArg::Aes128Gcm => (Cipher::Aes128Gcm, "AES_128_GCM"),
            CipherArg::Aes256Gcm => (Cipher::Aes256Gcm, "AES_256_GCM"),
            CipherArg::ChaCha20Poly1305 => (Cipher::ChaCha20Poly1305, "CHACHA20_POLY1305"),
        }
    }
}

impl AcksArg {
    fn acks(self) -> (Acks, &'static str) {
        match self {
            AcksArg::All => (Acks::All, "all"),
            AcksArg::Leader => (Acks::Leader, "leader"),
            AcksArg::None => (Acks::None, "none"),
        }
    }
}

impl CompressionArg {
    fn compression(self) -> (Compression, &'static str) {
        match self {
            CompressionArg::None => (Compression::None, "none"),
            CompressionArg::Gzip => (Compression::Gzip, "gzip"),
            CompressionArg::Snappy => (Compression::Snappy, "snappy"),
            CompressionArg::Lz4 => (Compression::Lz4, "lz4"),
            CompressionArg::Zstd => (Compression::Zstd, "zstd"),
        }
    }
}

/// What to do, checked.
#[derive(Debug, Clone)]
pub struct Plan {
    /// As it is reported.
    pub settings: Settings,
    /// What records hold.
    pub contents: ContentSettings,
    /// The only cipher to offer.
    pub cipher: Cipher,
    /// What an acknowledgement waits for.
    pub acks: Acks,
    /// How long a batch waits for more records.
    pub linger: Duration,
    /// How long to measure, unless a count ends it.
    pub duration: Option<Duration>,
    /// Load before each measurement.
    pub warm_up: Duration,
    /// Records written before consumers begin; 0 where none are.
    pub prefill: u64,
}

impl LoadArgs {
    /// What to do: one plan, or one for each combination of a matrix.
    ///
    /// # Errors
    /// If what was given does not go together.
    pub fn plans(&self, scenario: Scenario, broker: Option<String>) -> Result<Vec<Plan>, Failure> {
        let sizes: Vec<&RecordSize> = self.record_size.iter().flat_map(|sizes| &sizes.0).collect();
        let combinations = self.sync.len() * self.cipher.len() * self.replicas.len() * sizes.len();
        if combinations > 1 && !self.matrix {
            return Err(Failure::usage("several values of --sync, --cipher, --replicas or --record-size")
                .hint("to run every combination, add --matrix"));
        }
        self.check(scenario, &sizes)?;
        let mut plans = Vec::with_capacity(combinations);
        for sync in &self.sync {
            for cipher in &self.cipher {
                for replicas in &self.replicas {
                    for size in &sizes {
                        let cell = Cell { sync: *sync, cipher: *cipher, replicas: *replicas, size };
                        plans.push(self.plan(scenario, broker.clone(), &cell));
                    }
                }
            }
        }
        Ok(plans)
    }

    fn check(&self, scenario: Scenario, sizes: &[&RecordSize]) -> Result<(), Failure> {
        let reads = scenario != Scenario::Produce;
        if !reads && self.consumers.is_some() {
            return Err(Failure::usage("--consumers is for what is read, and produce only writes")
                .hint("use 'quire bench end-to-end' or 'quire bench mixed' to read meanwhile"));
        }
        let consumers = self.consumers(scenario);
        if consumers > self.partitions {
            let hint = format!("use --partitions {consumers} or fewer consumers");
            return Err(Failure::usage(
                "each partition has one consumer, and there are more consumers than partitions",
            )
            .hint(hint));
        }
        if scenario == Scenario::Consume && self.rate.is_some() {
            return Err(Failure::usage("--rate is for what is produced, and consume only reads")
                .hint("use 'quire bench mixed' to produce at a rate meanwhile"));
        }
        if !matches!(scenario, Scenario::Consume | Scenario::Mixed) && self.prefill.is_some() {
            return Err(Failure::usage(
                "--prefill is for consume and mixed, which read what was written before",
            ));
        }
        if scenario == Scenario::Consume && self.count.is_some() && self.prefill.is_some() {
            return Err(Failure::usage("--count and --prefill: consume reads what was written, once")
                .hint("use --prefill with --duration to read it again and again"));
        }
        for (key, _) in &self.config {
            if let Some(option) = OWN_SETTINGS.iter().find(|(own, _)| own == key).map(|(_, option)| option) {
                return Err(Failure::usage(format!("--config {key}")).hint(format!("use {option}")));
            }
            let is_deleting = key.starts_with("retention.") || key == "cleanup.policy";
            if is_deleting && self.verify {
                return Err(Failure::usage(format!("--verify with --config {key}"))
                    .hint("records that may be deleted can not be checked: leave out one of them"));
            }
        }
        if self.acks == AcksArg::None && (self.verify || scenario == Scenario::Consume) {
            return Err(Failure::usage("--acks none: nobody is told which records are there to be read")
                .hint("use --acks leader, or 'quire bench end-to-end' without --verify"));
        }
        let is_too_small = sizes.iter().any(|size| size.min() < STAMP_LEN);
        if is_too_small && (self.verify || scenario == Scenario::EndToEnd) {
            return Err(Failure::usage(format!(
                "records of less than {STAMP_LEN} bytes have no room for what tells them apart"
            ))
            .hint(format!(
                "use --record-size {STAMP_LEN} or more, or 'quire bench produce' without --verify"
            )));
        }
        Ok(())
    }

    fn plan(&self, scenario: Scenario, broker: Option<String>, cell: &Cell<'_>) -> Plan {
        let (cipher, cipher_name) = cell.cipher.cipher();
        let (acks, acks_name) = self.acks.acks();
        let (compression, compression_name) = self.compression.compression();
        let consume_once = scenario == Scenario::Consume && self.duration.is_none();
        let duration = match self.count {
            _ if consume_once => None,
            Some(_) => None,
            None => Some(self.duration.unwrap_or(DURATION_DEFAULT)),
        };
        let warm_up = self.warm_up.unwrap_or(WARM_UP_DEFAULT);
        let fills = (PREFILL_BYTES as f64 / cell.size.mean()).ceil() as u64;
        let prefill = match scenario {
            Scenario::Consume | Scenario::Mixed => self.prefill.or(self.count).unwrap_or(fills),
            Scenario::Produce | Scenario::EndToEnd => 0,
        };
        let is_embedded = broker.is_none();
        let settings = Settings {
            scenario,
            broker,
            producers: self.producers,
            consumers: self.consumers(scenario),
            partitions: self.partitions,
            replicas: cell.replicas,
            topic_config: self.config.iter().cloned().collect(),
            sync: cell.sync.name().to_owned(),
            cipher: cipher_name.to_owned(),
            record_size: cell.size.to_string(),
            record_size_mean: cell.size.mean(),
            keys: self.keys,
            batch_bytes: self.batch_bytes,
            linger_ms: self.linger.as_secs_f64() * 1000.0,
            in_flight: self.in_flight,
            compression: compression_name.to_owned(),
            acks: acks_name.to_owned(),
            rate: self.rate,
            duration_seconds: duration.map(|duration| duration.as_secs_f64()),
            count: if consume_once { Some(prefill) } else { self.count },
            prefill,
            page_cache_warm_up_bytes: if is_embedded { self.page_cache_warm_up_bytes() } else { 0 },
            warm_up_seconds: warm_up.as_secs_f64(),
            verify: self.verify,
            repeat: self.repeat,
            seed: self.seed,
        };
        let contents = ContentSettings {
            seed: self.seed,
            size: cell.size.clone(),
            keys: self.keys,
            compression,
            batch_bytes: self.batch_bytes as usize,
            partitions: self.partitions,
        };
        Plan { settings, contents, cipher, acks, linger: self.linger, duration, warm_up, prefill }
    }

    fn consumers(&self, scenario: Scenario) -> u32 {
        if scenario == Scenario::Produce { 0 } else { self.consumers.unwrap_or(1) }
    }

    fn page_cache_warm_up_bytes(&self) -> u64 {
        match self.no_page_cache_warm_up {
            true => 0,
            false => self.page_cache_warm_up.unwrap_or_else(warm_up::default_bytes),
        }
    }
}

/// One combination of a matrix.
struct Cell<'a> {
    sync: SyncArg,
    cipher: CipherArg,
    replicas: u32,
    size: &'a RecordSize,
}

impl Plan {
    /// What ends a producer's measured part that starts at `start_ns`, if there is no schedule.
    pub fn flat_out_limit(&self, producer: u32, start_ns: u64) -> Limit {
        match (self.duration, self.settings.count) {
            (Some(duration), _) => Limit::Until(start_ns + super::measure::nanos(duration)),
            (None, count) => Limit::Records(super::load::produce::share(
                count.expect("a time or a count ends every part"),
                self.settings.producers,
                producer,
            )),
        }
    }
}

fn rate(text: &str) -> Result<f64, String> {
    match text.replace(['_', ','], "").parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(rate),
        _ => Err("expected records a second, more than 0".into()),
    }
}

/// Reads `0`, `500us`, `5ms`, `10s`, `2m` or `1h`.
pub(crate) fn span(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let seconds = match unit {
        "" if number == "0" => 1.0,
        "us" | "µs" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err("expected a time with its unit: 5ms, 10s, 2m".into()),
    };
    let number: f64 =
        number.parse().map_err(|_| "expected a number with its unit: 5ms, 10s, 2m".to_owned())?;
    Duration::try_from_secs_f64(number * seconds).map_err(|error| error.to_string())
}

/// As [`span`], and bare seconds.
fn seconds_or_span(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string()),
        Err(_) => span(text),
    }
}
