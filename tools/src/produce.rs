//! `quire produce`: records from lines, pipelined, with an account of what was acknowledged.
//!
//! ```text
//! reading thread ──records, bounded──► enqueue ──► deliveries, awaited in the order of the lines ──► account
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use futures_util::FutureExt;
use quire_client::{Client, Compression, Delivery, PartitionIndex, Producer, RecordMetadata, SendError};
use quire_protocol::limits;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::args::JsonArg;
use crate::connect;
use crate::failure::{Exit, Failure};
use crate::input_source::InputSource;
use crate::obstacles;
use crate::output::{self, Align, Palette, Table, counted, thousands};
use crate::progress::Progress;
use crate::record_input::{InputError, InputRecord, LineFormat, RecordInput};
use crate::signals::StopSignals;
use crate::time;

/// Longest time from handing over a record to its acknowledgement.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(30);
/// A run that ends early waits this long for what is on its way before it says so.
const SILENT_WAIT: Duration = Duration::from_millis(500);

/// Write records from standard input or a file.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  echo hello | quire produce greetings
  quire produce flights --file flights.ndjson.gz --input ndjson
  quire produce users --key-separator : < users.txt
  quire consume flights --no-follow --json | quire produce copy --input ndjson

ndjson is one object a line: {\"key\", \"value\", \"timestamp\", \"headers\"}. A value is a string, or any JSON, which is
stored as its text; null is a tombstone. A timestamp is in milliseconds or RFC 3339. Bytes that are no text stand
under \"key_base64\" and \"value_base64\".")]
pub struct ProduceArgs {
    /// The topic to write to
    topic: String,
    /// Read this file, plain, gzip or zstd ['-' or nothing: standard input]
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// What a line is
    #[arg(short, long, value_enum, default_value_t = Input::Lines)]
    input: Input,
    /// What stands between key and value in a line
    #[arg(short, long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    key_separator: Option<String>,
    /// Begin with this line of the input: what a run that failed half-way tells
    #[arg(long, value_name = "LINE", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    from_line: u64,
    /// Write to this partition [default: chosen by key, as Kafka's clients do]
    #[arg(short, long, value_name = "N")]
    partition: Option<u32>,
    /// How batches are compressed
    #[arg(short = 'z', long, value_enum, default_value_t = CompressionArg::None)]
    compression: CompressionArg,
    #[command(flatten)]
    output: JsonArg,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Input {
    /// A record's value, or its key and value around --key-separator
    Lines,
    /// A JSON object
    Ndjson,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum CompressionArg {
    None,
    Gzip,
    Snappy,
    Lz4,
    Zstd,
}

impl From<CompressionArg> for Compression {
    fn from(arg: CompressionArg) -> Compression {
        match arg {
            CompressionArg::None => Compression::None,
            CompressionArg::Gzip => Compression::Gzip,
            CompressionArg::Snappy => Compression::Snappy,
            CompressionArg::Lz4 => Compression::Lz4,
            CompressionArg::Zstd => Compression::Zstd,
        }
    }
}

impl ProduceArgs {
    fn format(&self) -> Result<LineFormat, Failure> {
        match (self.input, &self.key_separator) {
            (Input::Lines, key_separator) => Ok(LineFormat::Lines { key_separator: key_separator.clone() }),
            (Input::Ndjson, None) => Ok(LineFormat::Ndjson),
            (Input::Ndjson, Some(_)) => Err(Failure::usage("--key-separator goes with --input lines only")
                .hint("in ndjson the key is the field \"key\"")),
        }
    }
}

/// Writes every record of the input and says what was acknowledged.
///
/// # Errors
/// If a line is no record or a record is not acknowledged; both say from which line to resume.
pub async fn run(profile: Option<&str>, args: &ProduceArgs) -> Result<Exit, Failure> {
    let format = args.format()?;
    connect::with_client(profile, async |client| produce(client, args, format).await).await
}

async fn produce(client: &Client, args: &ProduceArgs, format: LineFormat) -> Result<Exit, Failure> {
    check_topic(client, args).await?;
    if args.file.is_none() && io::stdin().is_terminal() {
        output::note("one record a line; Ctrl-D ends");
    }
    let producer = client.producer().compression(args.compression.into()).delivery_timeout(DELIVERY_TIMEOUT);
    let mut run = Run::start(args, format, producer.build())?;
    // Only now, so that Ctrl-C simply ends what waits for the broker or for the first input.
    let mut stop = StopSignals::listen()?;
    let (watched, progress) = (run.producer.clone(), run.progress.clone());
    let mut watch = pin!(obstacles::watch(&watched, |text| progress.note(text)));
    let outcome = tokio::select! {
        outcome = run.pump() => outcome,
        () = stop.stop() => Err(Stopped::Interrupted),
        never = &mut watch => match never {},
    };
    let given_up = tokio::select! {
        () = run.finish(outcome.is_err()) => false,
        () = stop.stop() => true,
        never = &mut watch => match never {},
    };
    stop.force_on_next();
    run.settle();
    run.progress.clear();
    run.account.print(args, run.started.elapsed())?;
    let stopped = match given_up {
        true => Some(Stopped::Interrupted),
        false => run.account.failed.take().map(Stopped::NotDelivered).or(outcome.err()),
    };
    match stopped {
        None => Ok(Exit::Done),
        Some(Stopped::Interrupted) => {
            output::note(&run.interrupted());
            Ok(Exit::Interrupted)
        }
        Some(stopped) => Err(run.account.resume.explain(stopped, args)),
    }
}

/// Before anything is read, so that nobody types into the void.
async fn check_topic(client: &Client, args: &ProduceArgs) -> Result<(), Failure> {
    let described = client.admin().describe_topic(&args.topic).await;
    let topic = described.map_err(|error| connect::about_topic(&args.topic, error))?;
    let partitions = topic.partitions.len() as u32;
    match args.partition.filter(|partition| *partition >= partitions) {
        Some(partition) => {
            let partition = PartitionIndex(partition);
            Err(SendError::UnknownPartition { topic: topic.name, partition, partitions }.into())
        }
        None => Ok(()),
    }
}

/// Why no more is read.
enum Stopped {
    BadInput(InputError),
    NotDelivered(NotDelivered),
    Interrupted,
}

struct NotDelivered {
    line: u64,
    error: SendError,
}

/// One run: what is on its way, and what has arrived.
struct Run<'a> {
    args: &'a ProduceArgs,
    producer: Producer,
    records: mpsc::Receiver<Result<Read, InputError>>,
    outstanding: VecDeque<(u64, Delivery)>,
    /// The line after the last one handed over.
    next_line: u64,
    account: Account,
    progress: Progress,
    stored_bytes_read: Arc<AtomicU64>,
    started: Instant,
}

/// A record read ahead, with the memory it may take.
struct Read {
    input: InputRecord,
    _room: OwnedSemaphorePermit,
}

impl<'a> Run<'a> {
    fn start(args: &'a ProduceArgs, format: LineFormat, producer: Producer) -> Result<Run<'a>, Failure> {
        let source = InputSource::open(args.file.as_deref())?;
        let progress = Progress::reading(source.stored_bytes);
        let stored_bytes_read = Arc::clone(&source.stored_bytes_read);
        let input = RecordInput::new(source.name, format, source.reader);
        Ok(Run {
            args,
            producer,
            records: read_ahead(input, args.from_line),
            outstanding: VecDeque::new(),
            next_line: args.from_line,
            account: Account::default(),
            progress,
            stored_bytes_read,
            started: Instant::now(),
        })
    }

    /// Hands records over and takes acknowledgements until the input ends or something is wrong. May be dropped
    /// between records; what is outstanding stays so.
    async fn pump(&mut self) -> Result<(), Stopped> {
        loop {
            let has_room = self.outstanding.len() < limits::PRODUCE_OUTSTANDING_RECORDS;
            tokio::select! {
                biased;
                arrived = first_arrival(&mut self.outstanding) => {
                    self.arrived(arrived.0, arrived.1);
                    if let Some(failed) = self.account.failed.take() {
                        return Err(Stopped::NotDelivered(failed));
                    }
                }
                read = self.records.recv(), if has_room => match read {
                    Some(read) => self.hand_over(read.map_err(Stopped::BadInput)?).await?,
                    None => return Ok(()),
                },
            }
        }
    }

    async fn hand_over(&mut self, read: Read) -> Result<(), Stopped> {
        let InputRecord { line, record } = read.input;
        let topic = &self.args.topic;
        let enqueued = match self.args.partition {
            Some(partition) => self.producer.enqueue_to(topic, PartitionIndex(partition), record).await,
            None => self.producer.enqueue(topic, record).await,
        };
        match enqueued {
            Ok(delivery) => {
                self.outstanding.push_back((line, delivery));
                self.next_line = line + 1;
                Ok(())
            }
            Err(error) => Err(Stopped::NotDelivered(NotDelivered { line, error })),
        }
    }

    /// Waits for everything on its way, and says so if that takes long after an early end. May be dropped; what is
    /// outstanding stays so.
    async fn finish(&mut self, ended_early: bool) {
        if ended_early && tokio::time::timeout(SILENT_WAIT, self.drain()).await.is_err() {
            self.progress.note(&waiting(self.outstanding.len() as u64));
        }
        self.drain().await;
    }

    /// Takes what has arrived, in whatever order, and waits for nothing.
    fn settle(&mut self) {
        for (line, mut delivery) in std::mem::take(&mut self.outstanding) {
            match (&mut delivery).now_or_never() {
                Some(arrived) => self.arrived(line, arrived),
                None => self.outstanding.push_back((line, delivery)),
            }
        }
    }

    /// The last words of a run that was told to stop: where to go on, before the first line that is not known to be
    /// written.
    fn interrupted(&self) -> String {
        let unknown = match self.outstanding.len() as u64 {
            0 => String::new(),
            records => format!("; {} on the way may be written or not", counted(records, "record")),
        };
        let oldest = self.outstanding.front().map(|(line, _)| *line);
        let line = oldest.into_iter().chain(self.account.resume.failed_line).min().unwrap_or(self.next_line);
        let resume = self.args.file.is_some().then(|| format!("; resume with --from-line {line}"));
        format!("interrupted{unknown}{}", resume.unwrap_or_default())
    }

    /// Waits for everything on its way. May be dropped; what is outstanding stays so.
    async fn drain(&mut self) {
        while !self.outstanding.is_empty() {
            let (line, arrived) = first_arrival(&mut self.outstanding).await;
            self.arrived(line, arrived);
        }
    }

    fn arrived(&mut self, line: u64, arrived: Result<RecordMetadata, SendError>) {
        match arrived {
            Ok(metadata) => self.account.acknowledged(&metadata),
            Err(error) => self.account.not_delivered(NotDelivered { line, error }),
        }
        let (records, started) = (self.account.records, self.started);
        self.progress.at_with(self.stored_bytes_read.load(Ordering::Relaxed), || {
            let per_second = records as f64 / started.elapsed().as_secs_f64();
            format!("{} acknowledged, {}/s", counted(records, "record"), thousands(per_second as u64))
        });
    }
}

fn waiting(records: u64) -> String {
    let records = counted(records, "record");
    format!("waiting up to {DELIVERY_TIMEOUT:?} for {records} on the way; Ctrl-C again gives up")
}

/// Waits for the oldest delivery; for ever while there is none. Dropping the future loses nothing.
async fn first_arrival(
    outstanding: &mut VecDeque<(u64, Delivery)>,
) -> (u64, Result<RecordMetadata, SendError>) {
    let Some((line, delivery)) = outstanding.front_mut() else { return std::future::pending().await };
    let arrived = (*line, delivery.await);
    outstanding.pop_front();
    arrived
}

/// Reads on a thread of its own, since standard input can only be waited for, not called back.
fn read_ahead(input: RecordInput, from_line: u64) -> mpsc::Receiver<Result<Read, InputError>> {
    let (sender, receiver) = mpsc::channel(limits::INPUT_RECORDS_AHEAD);
    let room = Arc::new(Semaphore::new(limits::INPUT_BYTES_AHEAD));
    let runtime = tokio::runtime::Handle::current();
    std::thread::spawn(move || {
        for read in input {
            let read = match read {
                Ok(input) if input.line < from_line => continue,
                Ok(input) => {
                    let bytes = bytes_of(&input).min(limits::INPUT_BYTES_AHEAD) as u32;
                    let Ok(room) = runtime.block_on(Arc::clone(&room).acquire_many_owned(bytes)) else {
                        return;
                    };
                    Ok(Read { input, _room: room })
                }
                Err(error) => Err(error),
            };
            if sender.blocking_send(read).is_err() {
                return;
            }
        }
    });
    receiver
}

fn bytes_of(input: &InputRecord) -> usize {
    let length = |bytes: &Option<bytes::Bytes>| bytes.as_ref().map_or(0, bytes::Bytes::len);
    length(&input.record.key) + length(&input.record.value)
}

/// What arrived where.
#[derive(Default)]
struct Account {
    records: u64,
    partitions: BTreeMap<u32, PartitionAccount>,
    resume: Resume,
    failed: Option<NotDelivered>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct PartitionAccount {
    topic: String,
    partition: u32,
    records: u64,
    base_offset: u64,
    last_offset: u64,
    replicas_on_disk: u32,
}

/// From where a run that ended early is to be taken up again.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Resume {
    acknowledged: u64,
    /// Acknowledged although a line before was not.
    acknowledged_after_failure: u64,
    failed_line: Option<u64>,
}

impl Account {
    fn acknowledged(&mut self, metadata: &RecordMetadata) {
        self.records += 1;
        self.resume.acknowledged += 1;
        self.resume.acknowledged_after_failure += u64::from(self.resume.failed_line.is_some());
        let offset = metadata.offset.0;
        let partition = self.partitions.entry(metadata.partition.0).or_insert_with(|| PartitionAccount {
            topic: metadata.topic.to_string(),
            partition: metadata.partition.0,
            records: 0,
            base_offset: offset,
            last_offset: offset,
            replicas_on_disk: metadata.replicas_on_disk,
        });
        partition.records += 1;
        partition.base_offset = partition.base_offset.min(offset);
        partition.last_offset = partition.last_offset.max(offset);
        partition.replicas_on_disk = partition.replicas_on_disk.min(metadata.replicas_on_disk);
    }

    /// Only the first counts: what failed after it is beyond the line to resume from anyway.
    fn not_delivered(&mut self, failed: NotDelivered) {
        if self.resume.failed_line.is_none() {
            self.resume.failed_line = Some(failed.line);
            self.failed = Some(failed);
        }
    }

    fn print(&self, args: &ProduceArgs, took: Duration) -> Result<(), Failure> {
        if args.output.json {
            return self.partitions.values().try_for_each(output::print_json);
        }
        if self.records == 0 {
            output::note("nothing acknowledged");
            return Ok(());
        }
        output::print(&self.page(&args.topic, took, Palette::stdout()))
    }

    fn page(&self, topic: &str, took: Duration, palette: Palette) -> String {
        let mut table = Table::new(&[
            ("PART", Align::Right),
            ("RECORDS", Align::Right),
            ("OFFSETS", Align::Left),
            ("ON DISK", Align::Left),
        ]);
        for partition in self.partitions.values() {
            table.row(vec![
                partition.partition.to_string(),
                thousands(partition.records),
                format!("{} to {}", thousands(partition.base_offset), thousands(partition.last_offset)),
                on_disk(partition.replicas_on_disk),
            ]);
        }
        let rate = (self.records as f64 / took.as_secs_f64().max(0.001)) as u64;
        let (name, acknowledged) = (palette.bold(topic), counted(self.records, "record"));
        let summary = format!("{name}   {acknowledged} acknowledged   {}", time::show_took(took));
        let rate =
            if self.records > 1000 { format!("   {} records/s", thousands(rate)) } else { String::new() };
        format!("{summary}{rate}\n{}", table.render(palette))
    }
}

fn on_disk(replicas: u32) -> String {
    match replicas {
        0 => "not yet (sync = interval)".to_owned(),
        replicas => counted(replicas.into(), "replica"),
    }
}

impl Resume {
    fn explain(self, stopped: Stopped, args: &ProduceArgs) -> Failure {
        let (line, failure) = match stopped {
            Stopped::BadInput(error) => (error.line, Failure::failed(error.to_string()).hint(error.advice)),
            Stopped::NotDelivered(NotDelivered { line, error: SendError::Broker(error) }) => (
                line,
                connect::about_topic(&args.topic, error)
                    .context(&format!("line {line} was not acknowledged")),
            ),
            Stopped::NotDelivered(NotDelivered { line, error }) => {
                (line, Failure::from(error).context(&format!("line {line} was not acknowledged")))
            }
            Stopped::Interrupted => return Failure::failed("interrupted"),
        };
        let acknowledged = counted(self.acknowledged - self.acknowledged_after_failure, "record");
        let failure =
            failure.hint(format!("{acknowledged} before it acknowledged; resume with --from-line {line}"));
        match self.acknowledged_after_failure {
            0 => failure,
            after => failure.hint(format!(
                "{} after it acknowledged too: resuming writes them twice",
                counted(after, "record")
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quire_client::{Chain, LeaderEpoch, Offset, Timestamp};

    fn metadata(partition: u32, offset: u64, replicas_on_disk: u32) -> RecordMetadata {
        RecordMetadata {
            topic: "flights".into(),
            partition: PartitionIndex(partition),
            offset: Offset(offset),
            timestamp: Timestamp(0),
            append_time: Timestamp(0),
            leader_epoch: LeaderEpoch(0),
            chain: Chain([0; 32]),
            replicas_on_disk,
        }
    }

    #[test]
    fn the_account_has_each_partitions_range_and_its_worst_safety() {
        let mut account = Account::default();
        for (partition, offset, replicas) in [(1, 7, 2), (0, 0, 1), (1, 8, 1)] {
            account.acknowledged(&metadata(partition, offset, replicas));
        }
        assert_eq!(
            account.page("flights", Duration::from_millis(210), Palette::PLAIN),
            "flights   3 records acknowledged   0.21 s\n \
             PART  RECORDS  OFFSETS  ON DISK\n    \
             0        1  0 to 0   1 replica\n    \
             1        2  7 to 8   1 replica\n"
        );
        assert_eq!(on_disk(0), "not yet (sync = interval)");
    }

    fn args(line: &str) -> ProduceArgs {
        #[derive(clap::Parser)]
        struct Wrapper {
            #[command(flatten)]
            args: ProduceArgs,
        }
        <Wrapper as clap::Parser>::parse_from(line.split(' ')).args
    }

    #[test]
    fn a_failure_names_the_line_to_resume_from() {
        let mut account = Account::default();
        account.acknowledged(&metadata(0, 0, 1));
        account.not_delivered(NotDelivered { line: 2, error: SendError::Closed });
        account.acknowledged(&metadata(1, 0, 1));
        account.not_delivered(NotDelivered { line: 4, error: SendError::Closed });
        let failed = account.failed.take().expect("line 2 failed");
        let failure = account.resume.explain(Stopped::NotDelivered(failed), &args("produce flights"));
        let text = failure.to_string();
        assert!(text.starts_with("error: line 2 was not acknowledged: the producer was closed"), "{text}");
        assert!(text.contains("\n  1 record before it acknowledged; resume with --from-line 2"), "{text}");
        assert!(
            text.ends_with("\n  1 record after it acknowledged too: resuming writes them twice"),
            "{text}"
        );
        assert_eq!(failure.exit(), Exit::Failed);
    }

    #[test]
    fn a_bad_line_keeps_its_place_and_its_advice() {
        let error =
            InputError { source_name: "in".into(), line: 9, what: "odd".into(), advice: "fix it".into() };
        let failure = Resume::default().explain(Stopped::BadInput(error), &args("produce flights"));
        assert_eq!(
            failure.to_string(),
            "error: in:9: odd\n  fix it\n  0 records before it acknowledged; resume with --from-line 9"
        );
    }

    #[test]
    fn a_key_separator_makes_no_sense_in_ndjson() {
        assert!(args("produce t --input ndjson --key-separator :").format().is_err());
        let lines = args("produce t --key-separator :").format();
        assert_eq!(lines, Ok(LineFormat::Lines { key_separator: Some(":".into()) }));
    }
}
