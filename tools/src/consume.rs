//! `quire consume`: records to standard output, from any position to any other.

use std::io::{self, BufWriter, IsTerminal, StdoutLock, Write};
use std::str::FromStr;
use std::time::{Duration, Instant};

use clap::Args;
use futures_util::FutureExt;
use quire_client::{
    Client, ConsumeError, ConsumedRecord, Consumer, ErrorCode, GroupConsumer, GroupPartition, PartitionIndex,
    Position,
};
use quire_protocol::limits;

use crate::connect;
use crate::failure::{Exit, Failure};
use crate::outlet::Outlet;
use crate::output::{self, counted};
use crate::position::PositionArg;
use crate::record_format::{self, Shown, Template};
use crate::signals::StopSignals;
use crate::time;

const OUTPUT_BUFFER_BYTES: usize = 64 * 1024;
/// Records between two looks at whether Ctrl-C was pressed, while records keep coming.
pub(crate) const RECORDS_BETWEEN_LOOKS: u64 = 256;
/// Between two commits of a group, while records keep coming.
const COMMIT_INTERVAL: Duration = Duration::from_secs(1);
/// The same, while whoever reads the output holds it up.
const BLOCKED_COMMIT_INTERVAL: Duration = Duration::from_millis(100);

/// Read records from any offset or time.
#[derive(Debug, Args)]
#[command(after_help = "\
Positions: beginning, end, an offset (18422), -100 (the last hundred records of each partition),
a time (2013-06-13T08:00Z; UTC unless it says otherwise), a date (2013-06-13), an age (2h).

--format: %t topic, %p partition, %o offset, %T timestamp (ms), %k key, %s value, %h headers, %% percent;
\\n \\t \\r \\0 \\\\. --json: one object a line with topic, partition, offset, timestamp (ms), key, value, headers
(key_base64, value_base64 where the bytes are not UTF-8).

Examples:
  quire consume flights
  quire consume flights --from 2013-06-13 --until 2013-06-14 -n 2 --format '%T %p:%o %k %s\\n'
  quire consume flights --from -10 --no-follow --json
  quire consume flights --group billing                     (in several terminals, too)")]
pub struct ConsumeArgs {
    /// The topic to read
    topic: String,
    /// Where to start in each partition
    #[arg(long, value_name = "POSITION", default_value = "beginning", allow_hyphen_values = true)]
    pub(crate) from: PositionArg,
    /// Where to stop in each partition, before the record there
    #[arg(long, value_name = "POSITION", allow_hyphen_values = true)]
    until: Option<PositionArg>,
    /// Only these partitions: 3, or 0-99; may be repeated, or listed with commas
    #[arg(short, long, value_name = "N", value_delimiter = ',')]
    partition: Vec<PartitionRange>,
    /// Read as a member of this group: it shares the partitions out and remembers how far it is. --from is for partitions of
    /// which it has committed nothing
    #[arg(
        short, long, value_name = "GROUP", value_parser = crate::group::name,
        conflicts_with_all = ["partition", "until", "no_follow", "merge_by_time"]
    )]
    group: Option<String>,
    /// With --group: the member's name across restarts, under which it gets its partitions back; after a crash once the
    /// session from before is over
    #[arg(long, value_name = "NAME", requires = "group")]
    instance_id: Option<String>,
    /// With --group: silent for so long, the member is taken for dead and others take over, e.g. 10s
    #[arg(long, value_name = "TIME", requires = "group", default_value = "45s", value_parser = session)]
    session_timeout: Duration,
    /// Stop after so many records
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Wait for records to come [default: on a terminal without --until and -n; always with --group]
    #[arg(short = 'F', long, conflicts_with_all = ["no_follow", "until"])]
    follow: bool,
    /// Stop at the end as it was at the start
    #[arg(long)]
    no_follow: bool,
    /// Order records of all partitions by their timestamps
    #[arg(long)]
    merge_by_time: bool,
    /// Read from in-sync replicas in this rack where there are any, from the leaders else
    #[arg(long, value_name = "RACK")]
    rack: Option<String>,
    /// How a record is written
    #[arg(short, long, value_name = "TEMPLATE", conflicts_with = "json", allow_hyphen_values = true)]
    format: Option<Template>,
    /// Write one JSON object a line
    #[arg(long)]
    json: bool,
    /// With --json: put values that are JSON in as they are, not as strings
    #[arg(long, requires = "json")]
    parse_json: bool,
}

/// `45s`, `2m`, or a bare number of seconds.
fn session(text: &str) -> Result<Duration, String> {
    let (min, max) = (limits::GROUP_SESSION_MIN, limits::GROUP_SESSION_MAX);
    let time = time::parse_span(text).ok_or("write a time such as 45s or 2m")?;
    match (min..=max).contains(&time) {
        true => Ok(time),
        false => Err(format!("a session takes from {} to {}", time::show_span(min), time::show_span(max))),
    }
}

impl ConsumeArgs {
    fn follows(&self, on_terminal: bool) -> bool {
        let bounded = self.until.is_some() || self.count.is_some();
        self.follow || (!self.no_follow && !bounded && on_terminal)
    }
}

/// One partition, or all from one to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PartitionRange {
    first: u32,
    last: u32,
}

impl PartitionRange {
    pub(crate) fn partitions(&self) -> impl Iterator<Item = PartitionIndex> + use<> {
        (self.first..=self.last).map(PartitionIndex)
    }
}

impl FromStr for PartitionRange {
    type Err = String;

    fn from_str(text: &str) -> Result<PartitionRange, String> {
        let number = |text: &str| text.parse::<u32>().ok();
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let range = number(first).zip(number(last)).filter(|(first, last)| first <= last);
        let (first, last) = range.ok_or("write a partition, e.g. 3, or a range of them, e.g. 0-99")?;
        // No topic has more, and a list is made of what is asked for.
        if last - first >= limits::TOPIC_PARTITIONS_MAX {
            return Err(format!("a topic has at most {} partitions", limits::TOPIC_PARTITIONS_MAX));
        }
        Ok(PartitionRange { first, last })
    }
}

/// Why reading ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Count,
    End,
    Interrupted,
}

/// Writes records to standard output and, at the end, their number to standard error.
///
/// # Errors
/// If the topic or the position does not exist, the broker can not be asked, or what it sends is damaged.
pub async fn run(profile: Option<&str>, args: &ConsumeArgs) -> Result<Exit, Failure> {
    connect::with_client(profile, async |client| consume(client, args).await).await
}

async fn consume(client: &Client, args: &ConsumeArgs) -> Result<Exit, Failure> {
    if let Some(group) = &args.group {
        return consume_in_group(client, args, group).await;
    }
    let mut consumer = start(client, args).await.map_err(|error| explain("consume", &args.topic, error))?;
    // Only now, so that Ctrl-C simply ends what waits for the broker.
    let mut stop = StopSignals::listen()?;
    let mut writer = RecordWriter::new(Form::new(args.format.as_ref(), args.json, args.parse_json));
    let ending = pump(&mut consumer, &mut writer, args.count, &mut stop).await;
    writer.out.flush()?;
    let written = counted(writer.records, "record");
    let ending = ending.map_err(|failure| match writer.records {
        0 => failure,
        _ => failure.hint(format!("before it, {written} came through")),
    })?;
    output::note(&format!("{written}, {}", describe(ending, args)));
    Ok(if ending == Ending::Interrupted { Exit::Interrupted } else { Exit::Done })
}

/// As a member of a group: until it is stopped, or has so many records. What was written is committed.
async fn consume_in_group(client: &Client, args: &ConsumeArgs, group: &str) -> Result<Exit, Failure> {
    // A name that nobody has would be waited for in silence.
    let topic = client.admin().describe_topic_metadata(&args.topic).await;
    topic.map_err(|error| connect::about_topic(&args.topic, error))?;
    let mut builder = client
        .consumer()
        .group(group)
        .topics([&args.topic])
        .from(args.from.0)
        .session_timeout(args.session_timeout)
        .client_name("quire consume")
        // Processed is what was written, and that is known here.
        .commit_manually()
        .on_assigned(|partitions| output::note(&format!("reading {}", group_partitions(partitions))))
        .on_revoked(|partitions| {
            let lost = partitions.iter().any(|partition| partition.is_lost);
            let verb = if lost { "lost" } else { "gave up" };
            output::note(&format!("{verb} {}", group_partitions(partitions)));
        });
    if let Some(instance_id) = &args.instance_id {
        builder = builder.instance_id(instance_id);
    }
    if let Some(rack) = &args.rack {
        builder = builder.rack(rack);
    }
    let mut consumer = builder.build()?;
    let mut stop = StopSignals::listen()?;
    let form = Form::new(args.format.as_ref(), args.json, args.parse_json);
    let mut writer = RecordWriter::to(form, Outlet::default());
    let ending = pump_group(&mut consumer, &mut writer, args.count, &mut stop).await;
    let let_out = match ending {
        Ok(Ending::Interrupted) => Ok(writer.out.waiting() == 0),
        _ => writer.out.let_out(&mut stop).await,
    };
    // Ending takes as long as the coordinator lets it wait.
    stop.force_on_next();
    // What is out is processed, whatever ended it; what is not is not, and how far that is was committed before it.
    let committed = match let_out {
        Ok(true) => consumer.commit_sync().await,
        Ok(false) | Err(_) => Ok(()),
    };
    let left = consumer.leave().await;
    let written = counted(writer.records - writer.out.waiting(), "record");
    let ending = ending?;
    let_out?;
    output::note(&format!("{written}, {}", describe(ending, args)));
    if writer.records > 0 {
        committed.map_err(Failure::from)?;
    }
    if let Err(error) = left {
        output::note(&format!("the group was not told: {error}"));
    }
    Ok(if ending == Ending::Interrupted { Exit::Interrupted } else { Exit::Done })
}

fn group_partitions(partitions: &[GroupPartition]) -> String {
    let named: Vec<_> = partitions.iter().map(|partition| partition.id.partition.to_string()).collect();
    let noun = if named.len() == 1 { "partition" } else { "partitions" };
    format!("{noun} {}", named.join(", "))
}

/// When what is out was committed last.
struct CommitPace {
    /// Or when it began, before the first.
    at: Instant,
    /// So many records were out then.
    records: u64,
}

impl CommitPace {
    fn is_due(&self, interval: Duration, records: u64) -> bool {
        let has_waited = self.at.elapsed() >= interval || (self.records == 0 && interval < COMMIT_INTERVAL);
        records != self.records && has_waited
    }

    fn commit(&mut self, consumer: &mut GroupConsumer, records: u64) {
        consumer.commit();
        *self = CommitPace { at: Instant::now(), records };
    }
}

/// As [`pump`], of a group; an error of one partition that may not pass ends it.
async fn pump_group(
    consumer: &mut GroupConsumer,
    writer: &mut RecordWriter<Outlet>,
    count: Option<u64>,
    stop: &mut StopSignals,
) -> Result<Ending, Failure> {
    let mut pace = CommitPace { at: Instant::now(), records: 0 };
    loop {
        let mut is_due = pace.is_due(COMMIT_INTERVAL, writer.records);
        if is_due || writer.out.is_full() {
            if !writer.out.let_out(stop).await? {
                return Ok(Ending::Interrupted);
            }
            // The next piece may wait for its reader for long.
            is_due |= writer.out.would_block() && pace.is_due(BLOCKED_COMMIT_INTERVAL, writer.records);
        }
        if is_due {
            pace.commit(consumer, writer.records);
        }
        let next = match consumer.next().now_or_never() {
            Some(next) => next,
            None => {
                if !writer.out.let_out(stop).await? {
                    return Ok(Ending::Interrupted);
                }
                if pace.records != writer.records {
                    pace.commit(consumer, writer.records);
                }
                tokio::select! {
                    next = consumer.next() => next,
                    () = stop.stop() => return Ok(Ending::Interrupted),
                }
            }
        };
        match next {
            Ok(record) => {
                writer.write(&record)?;
                writer.out.end_record();
            }
            // Told, and gone on behind.
            Err(error) if error.is_retriable() || matches!(error, ConsumeError::OffsetOutOfRange { .. }) => {
                let skipped = skipped(&error).map(|skipped| format!("\n  {skipped}"));
                output::note(&format!("warning: {error}{}", skipped.unwrap_or_default()));
            }
            Err(error) => return Err(error.into()),
        }
        if count == Some(writer.records) {
            return Ok(Ending::Count);
        }
        if writer.records.is_multiple_of(RECORDS_BETWEEN_LOOKS) && stop.stop().now_or_never().is_some() {
            return Ok(Ending::Interrupted);
        }
    }
}

/// Where a group goes on that retention went ahead of, and what that cost it.
fn skipped(error: &ConsumeError) -> Option<String> {
    let ConsumeError::OffsetOutOfRange { offset, log_start, high_watermark, .. } = error else { return None };
    Some(match log_start.0.checked_sub(offset.0).filter(|skipped| *skipped > 0) {
        // Compaction may have taken some of them before.
        Some(skipped) => format!(
            "up to {} had been deleted before the group read them; going on at {log_start}",
            counted(skipped, "record")
        ),
        None => format!("the log ends before that; going on at {high_watermark}"),
    })
}

async fn start(client: &Client, args: &ConsumeArgs) -> Result<Consumer, ConsumeError> {
    let follows = args.follows(io::stdout().is_terminal());
    let mut consumer = client
        .consumer()
        .topic(&args.topic)
        .from(args.from.0)
        .follow(follows)
        .merge_by_time(args.merge_by_time);
    if !args.partition.is_empty() {
        consumer = consumer.partitions(args.partition.iter().flat_map(PartitionRange::partitions));
    }
    if let Some(rack) = &args.rack {
        consumer = consumer.rack(rack);
    }
    if !follows {
        consumer = consumer.until(args.until.map_or(Position::End, |until| until.0));
    }
    consumer.build().await
}

/// Why `quire COMMAND TOPIC` can not read it.
pub(crate) fn explain(command: &str, topic: &str, error: ConsumeError) -> Failure {
    match error {
        ConsumeError::Broker(error) if error.code() == Some(ErrorCode::UnknownTopic) => {
            connect::about_topic(topic, error)
        }
        ConsumeError::TooManyPartitions { limit, partitions } => Failure::failed(format!(
            "one {command} reads at most {limit} partitions, not {partitions}"
        ))
        .hint(format!(
            "read some at a time: quire {command} {topic} --partition 0-{}",
            limit.saturating_sub(1)
        )),
        other => other.into(),
    }
}

fn describe(ending: Ending, args: &ConsumeArgs) -> &'static str {
    match ending {
        Ending::Count => "stopped by -n",
        Ending::End if args.until.is_some() => "stopped by --until",
        Ending::End => "reached the end",
        Ending::Interrupted => "interrupted",
    }
}

/// Writes records as they come. Output is flushed whenever nothing more is ready, so that a reader behind a pipe sees
/// each record at once and a busy stream is still written in large pieces.
async fn pump(
    consumer: &mut Consumer,
    writer: &mut RecordWriter,
    count: Option<u64>,
    stop: &mut StopSignals,
) -> Result<Ending, Failure> {
    loop {
        let ready = match consumer.next().now_or_never() {
            Some(next) => Some(next),
            None => {
                writer.out.flush()?;
                tokio::select! {
                    next = consumer.next() => Some(next),
                    () = stop.stop() => None,
                }
            }
        };
        let Some(next) = ready else { return Ok(Ending::Interrupted) };
        let Some(record) = next else { return Ok(Ending::End) };
        writer.write(&record?)?;
        if count == Some(writer.records) {
            return Ok(Ending::Count);
        }
        if writer.records.is_multiple_of(RECORDS_BETWEEN_LOOKS) && stop.stop().now_or_never().is_some() {
            return Ok(Ending::Interrupted);
        }
    }
}

/// Writes records to standard output, and counts them.
pub(crate) struct RecordWriter<W = BufWriter<StdoutLock<'static>>> {
    pub(crate) out: W,
    form: Form,
    pub(crate) records: u64,
}

/// How records are written.
pub(crate) enum Form {
    Json { parse: bool },
    Template(Template),
}

impl Form {
    /// What `--format`, `--json` and `--parse-json` say.
    pub(crate) fn new(format: Option<&Template>, json: bool, parse: bool) -> Form {
        match format {
            _ if json => Form::Json { parse },
            Some(template) => Form::Template(template.clone()),
            None => Form::Template(Template::value_lines()),
        }
    }

    /// Whether every record ends its line.
    pub(crate) fn ends_lines(&self) -> bool {
        match self {
            Form::Json { .. } => true,
            Form::Template(template) => template.ends_lines(),
        }
    }
}

impl RecordWriter {
    pub(crate) fn new(form: Form) -> RecordWriter {
        RecordWriter::to(form, BufWriter::with_capacity(OUTPUT_BUFFER_BYTES, io::stdout().lock()))
    }
}

impl<W: Write> RecordWriter<W> {
    /// To something else.
    pub(crate) fn to(form: Form, out: W) -> RecordWriter<W> {
        RecordWriter { out, form, records: 0 }
    }

    pub(crate) fn write(&mut self, record: &ConsumedRecord) -> Result<(), Failure> {
        let shown = Shown {
            topic: &record.topic,
            partition: record.partition.0,
            offset: record.offset.0,
            timestamp: record.timestamp.0,
            key: record.key.as_deref(),
            value: record.value.as_deref(),
            headers: &record.headers,
        };
        match &self.form {
            Form::Json { parse } => record_format::write_json(&shown, *parse, &mut self.out)?,
            Form::Template(template) => template.write(&shown, &mut self.out)?,
        }
        self.records += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use quire_client::Offset;

    use super::*;

    #[test]
    fn a_group_is_told_how_much_it_missed() {
        let out_of_range = |offset| ConsumeError::OffsetOutOfRange {
            topic: "t".into(),
            partition: PartitionIndex(0),
            offset: Offset(offset),
            log_start: Offset(1_500),
            high_watermark: Offset(2_000),
        };
        let told = |offset| skipped(&out_of_range(offset)).expect("it is of that kind");
        assert_eq!(
            told(0),
            "up to 1,500 records had been deleted before the group read them; going on at 1500"
        );
        assert_eq!(
            told(1_499),
            "up to 1 record had been deleted before the group read them; going on at 1500"
        );
        assert_eq!(told(2_001), "the log ends before that; going on at 2000");
    }

    fn args(line: &str) -> Result<ConsumeArgs, clap::Error> {
        #[derive(clap::Parser)]
        struct Wrapper {
            #[command(flatten)]
            args: ConsumeArgs,
        }
        <Wrapper as clap::Parser>::try_parse_from(line.split(' ')).map(|wrapper| wrapper.args)
    }

    #[test]
    fn a_terminal_follows_unless_bounded_or_told() {
        for (line, on_terminal, follows) in [
            ("consume t", true, true),
            ("consume t", false, false),
            ("consume t --follow", false, true),
            ("consume t --no-follow", true, false),
            ("consume t -n 5", true, false),
            ("consume t -n 5 --follow", false, true),
            ("consume t --until end", true, false),
        ] {
            assert_eq!(args(line).expect("valid").follows(on_terminal), follows, "{line}");
        }
    }

    #[test]
    fn contradictions_are_usage_errors() {
        for line in [
            "consume t --follow --until end",
            "consume t --follow --no-follow",
            "consume t --json --format %s",
            "consume t --parse-json",
            "consume t -n 0",
            "consume t --format %x",
        ] {
            assert!(args(line).is_err(), "{line}");
        }
    }

    #[test]
    fn several_partitions_may_be_listed() {
        let read: Vec<u32> = args("consume t -p 1,2 -p 5-7")
            .expect("valid")
            .partition
            .iter()
            .flat_map(PartitionRange::partitions)
            .map(|partition| partition.0)
            .collect();
        assert_eq!(read, [1, 2, 5, 6, 7]);
        for wrong in ["5-3", "-", "x", "1-", "0-4294967295"] {
            assert!(PartitionRange::from_str(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn more_partitions_than_possible_are_answered_with_a_range_that_is() {
        let error = ConsumeError::TooManyPartitions { partitions: 10_000, limit: 736 };
        assert_eq!(
            explain("consume", "t", error).to_string(),
            "error: one consume reads at most 736 partitions, not 10000\n  \
             read some at a time: quire consume t --partition 0-735"
        );
    }
}
