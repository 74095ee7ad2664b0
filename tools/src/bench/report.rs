//! What a benchmark found: the one object that `--json` prints, `--report` draws and `compare` reads again.
//!
//! Everything a reader needs to judge a figure is in it: settings, machine, every repetition, and every second of each.
//! Fields are added, never renamed or taken away; [`FORMAT`] changes only if that rule has to be broken.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The version of this object's layout.
pub const FORMAT: u32 = 1;

/// One benchmark: the same settings, run one or more times.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`FORMAT`] of the version that wrote it.
    pub format: u32,
    /// Quire's version.
    pub version: String,
    /// When the first repetition began (milliseconds since 1970 UTC).
    pub started_at: i64,
    /// What was measured, with every setting that decides the figure.
    pub title: String,
    /// What was asked for.
    pub settings: Settings,
    /// Where it ran.
    pub machine: Machine,
    /// Every repetition, in order; nothing is left out.
    pub runs: Vec<Run>,
    /// Over all repetitions.
    pub summary: Summary,
}

/// What is done to the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scenario {
    /// Producers alone.
    Produce,
    /// Consumers alone, over records written before.
    Consume,
    /// Producers, and consumers that wait for what is produced.
    EndToEnd,
    /// Producers, and consumers that read from the beginning meanwhile.
    Mixed,
}

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// What is done.
    pub scenario: Scenario,
    /// The address of the broker that was there, or `None` for one started for the benchmark.
    pub broker: Option<String>,
    /// Producers, each with a connection and a task of its own.
    pub producers: u32,
    /// Consumers, likewise.
    pub consumers: u32,
    /// Partitions of the topic.
    pub partitions: u32,
    /// Replicas of each partition.
    pub replicas: u32,
    /// The topic's other settings, as far as they were given.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub topic_config: BTreeMap<String, String>,
    /// The topic's `sync`: `always` or `interval`.
    pub sync: String,
    /// The cipher of the connections, such as `AES_128_GCM`.
    pub cipher: String,
    /// The size of a record's value as it was asked for: `1024`, `100..2000` (uniform), `100:9,10000:1` (weighted).
    pub record_size: String,
    /// Its mean (bytes).
    pub record_size_mean: f64,
    /// Different keys; 0 for records without one.
    pub keys: u64,
    /// Largest batch (bytes).
    pub batch_bytes: u64,
    /// How long a batch waits for more records (milliseconds).
    pub linger_ms: f64,
    /// Unacknowledged records a producer may have; `None` for what its memory holds.
    pub in_flight: Option<u32>,
    /// Compression of batches: `none`, `lz4`, `zstd`, …
    pub compression: String,
    /// `all`, `leader` or `none`.
    pub acks: String,
    /// Records a second over all producers, sent on schedule whatever the broker does; `None` for flat out.
    pub rate: Option<f64>,
    /// How long a repetition is measured (seconds), unless [`Settings::count`] ends it.
    pub duration_seconds: Option<f64>,
    /// Records of a repetition.
    pub count: Option<u64>,
    /// Records that were written before the measurement, for consumers to read; 0 where there were none.
    #[serde(default)]
    pub prefill: u64,
    /// Memory made ready for the page cache before each repetition (bytes).
    pub page_cache_warm_up_bytes: u64,
    /// Load before each measured part, not measured (seconds).
    pub warm_up_seconds: f64,
    /// Whether every record's content, order and presence is checked.
    pub verify: bool,
    /// Repetitions.
    pub repeat: u32,
    /// The seed that record contents, keys and sizes come from.
    pub seed: u64,
}

/// Where it ran.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name.
    pub cpu: String,
    /// Processors that this process may use.
    pub cores: u32,
    /// Main memory (bytes).
    pub memory_bytes: u64,
    /// The operating system and its version.
    pub os: String,
    /// The file system under the broker's data, where it is known: `ext4`.
    pub file_system: Option<String>,
    /// Whether client and broker share this machine's cores.
    pub is_shared: bool,
}

/// One repetition.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// How long the measured part took (seconds).
    pub seconds: f64,
    /// What was acknowledged to producers, if there were any.
    pub produced: Option<Flow>,
    /// What consumers had in their hands, if there were any.
    pub consumed: Option<Flow>,
    /// Latencies, one of each kind that the scenario has.
    pub latencies: Vec<Latency>,
    /// What happened in each second of it.
    pub timeline: Vec<Second>,
    /// Processor time and memory of the process that made the load.
    pub client: Process,
    /// The same of the broker, where it could be read.
    pub broker: Option<Process>,
    /// The broker's syncs of logs, where they could be read.
    pub syncs: Option<u64>,
    /// Those for each acknowledged record.
    pub syncs_per_record: Option<f64>,
    /// Those for each acknowledged batch.
    pub syncs_per_batch: Option<f64>,
    /// Records that were refused or timed out.
    pub failed: u64,
    /// What the check of every record found, if it was asked for.
    pub verification: Option<Verification>,
}

/// Records over time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Flow {
    /// Records.
    pub records: u64,
    /// Bytes of their keys and values.
    pub bytes: u64,
    /// Records a second.
    pub records_per_second: f64,
    /// Bytes a second.
    pub bytes_per_second: f64,
}

/// What a latency is measured between.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LatencyKind {
    /// Until the producer holds the acknowledgement.
    Acknowledgement,
    /// Until a consumer has the record in its hands.
    EndToEnd,
}

/// A distribution of latencies (microseconds).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// What was measured.
    pub kind: LatencyKind,
    /// Whether it begins when the schedule wanted the record sent, however late it was (no coordinated omission); else
    /// when it was sent.
    pub is_corrected: bool,
    /// Records measured.
    pub count: u64,
    /// The smallest.
    pub min_us: f64,
    /// The mean.
    pub mean_us: f64,
    /// The median.
    pub p50_us: f64,
    /// 90 % are at most this.
    pub p90_us: f64,
    /// 99 %.
    pub p99_us: f64,
    /// 99.9 %.
    pub p999_us: f64,
    /// 99.99 %.
    pub p9999_us: f64,
    /// The largest.
    pub max_us: f64,
    /// Ascending: how many latencies were at most `upper_us` and more than the bucket before.
    pub buckets: Vec<Bucket>,
}

/// One bar of a distribution.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Bucket {
    /// The bucket's upper end (microseconds), inclusive.
    pub upper_us: f64,
    /// Latencies in it.
    pub count: u64,
}

/// One second of a repetition.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Second {
    /// Seconds since the measured part began, at this one's end; the last may be shorter than the others.
    pub at: f64,
    /// Records acknowledged in it.
    pub produced_records: u64,
    /// Bytes of those.
    pub produced_bytes: u64,
    /// Records consumed in it.
    pub consumed_records: u64,
    /// Bytes of those.
    pub consumed_bytes: u64,
    /// Median acknowledgement latency (microseconds).
    pub acknowledgement_p50_us: Option<f64>,
    /// 99th percentile of it.
    pub acknowledgement_p99_us: Option<f64>,
    /// Median latency end to end (microseconds).
    pub end_to_end_p50_us: Option<f64>,
    /// 99th percentile of it.
    pub end_to_end_p99_us: Option<f64>,
    /// Processor seconds that the load's process used in it.
    pub client_cpu_seconds: f64,
    /// Those of the broker.
    pub broker_cpu_seconds: Option<f64>,
    /// The broker's resident memory (bytes).
    pub broker_memory_bytes: Option<u64>,
    /// Syncs in it.
    pub syncs: Option<u64>,
}

/// What a process cost.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Process {
    /// Processor seconds, user and system.
    pub cpu_seconds: f64,
    /// Processor seconds for 10⁹ bytes of records moved; `None` where none were.
    pub cpu_seconds_per_gb: Option<f64>,
    /// Largest resident memory seen (bytes), mapped files included.
    pub memory_bytes_max: u64,
    /// Largest resident memory seen without files of the page cache (bytes), where the system tells.
    pub anonymous_bytes_max: Option<u64>,
}

/// What the check of every record found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verification {
    /// Records read back.
    pub records: u64,
    /// Acknowledged and not there.
    pub lost: u64,
    /// There more than once.
    pub duplicated: u64,
    /// Not in the order in which their producer sent them.
    pub reordered: u64,
    /// With other bytes than were sent.
    pub altered: u64,
    /// Links of the chain that were recomputed and held.
    pub chain_links: u64,
    /// Whether all of it is as it must be.
    pub is_clean: bool,
}

/// Over all repetitions: each figure's median, and its spread.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Records acknowledged a second.
    pub produced_records_per_second: Option<Spread>,
    /// Bytes acknowledged a second.
    pub produced_bytes_per_second: Option<Spread>,
    /// Records consumed a second.
    pub consumed_records_per_second: Option<Spread>,
    /// Bytes consumed a second.
    pub consumed_bytes_per_second: Option<Spread>,
    /// Acknowledgement latency.
    pub acknowledgement: Option<LatencySummary>,
    /// Latency end to end.
    pub end_to_end: Option<LatencySummary>,
    /// Client processor seconds for 10⁹ bytes.
    pub client_cpu_seconds_per_gb: Option<Spread>,
    /// Broker processor seconds for 10⁹ bytes.
    pub broker_cpu_seconds_per_gb: Option<Spread>,
    /// The broker's largest resident memory (bytes).
    pub broker_memory_bytes_max: Option<Spread>,
    /// Syncs for each acknowledged record.
    pub syncs_per_record: Option<Spread>,
    /// Syncs for each acknowledged batch.
    pub syncs_per_batch: Option<Spread>,
    /// Records that were refused or timed out, over all repetitions.
    pub failed: u64,
    /// Whether every repetition was verified and clean; `None` if that was not asked for.
    pub is_clean: Option<bool>,
}

/// A latency's percentiles over all repetitions (microseconds).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LatencySummary {
    /// The median's.
    pub p50_us: Spread,
    /// The 99th percentile's.
    pub p99_us: Spread,
    /// The 99.9th percentile's.
    pub p999_us: Spread,
    /// The largest's.
    pub max_us: Spread,
}

/// A figure over several repetitions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The middle one; of an even number, the mean of the two in the middle.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}
