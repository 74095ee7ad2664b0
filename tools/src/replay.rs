//! `quire replay`: history again, to standard output or into a topic, at its own pace or another.
//!
//! ```text
//! keys ──► ReplayControl ─┐
//!                      Replay ──records, when they are due──► standard output, or Copy (produces)
//!                         └──position──► Status
//! ```

pub mod copy;
pub mod dry_run;
pub mod keyboard;
pub mod status;

use std::io::{self, IsTerminal, Write};
use std::str::FromStr;
use std::time::{Duration, Instant};

use clap::Args;
use futures_util::FutureExt;
use quire_client::{
    Client, ConsumedRecord, Extent, Profile, Replay, ReplayBuilder, ReplayControl, SendError, Speed,
};
use serde::Serialize;

use crate::bench::args::span;
use crate::connect;
use crate::consume::{self, Form, PartitionRange, RECORDS_BETWEEN_LOOKS, RecordWriter};
use crate::failure::{Exit, Failure};
use crate::output::{self, counted, thousands};
use crate::position::PositionArg;
use crate::record_format::Template;
use crate::signals::StopSignals;
use crate::time;

use copy::Copy;
use keyboard::{Key, Keyboard};
use status::{DRAW_INTERVAL, Outline, Status};

/// Speeds that the keys go through, and on from there by tens.
const RUNGS: [f64; 3] = [1.0, 2.0, 5.0];

/// Play history again: as recorded, N times faster, or flat out.
#[derive(Debug, Args)]
#[command(after_help = "\
Records of all partitions come in one stream, in the order of their timestamps, each when it is due: the first at once,
the others at their distance from it, divided by the speed. It ends at the end as it was at the start, or before.

On a terminal: space pauses and goes on, n or the right arrow steps to the next record, + and - change the speed, q stops.
Not where the output is piped into another command, which may want the keys itself.

--into produces the records again, into partitions by their keys, with their keys, values and headers. Their timestamps are
those of the replay; quire.replay.timestamp (ms), .topic, .partition and .offset are headers that say where they come from.

Positions, --format and --json: as in 'quire consume', see there.

Examples:
  quire replay flights --from 2013-06-13 --until 2013-06-14 --speed 3600
  quire replay orders --from '2h ago' --max-gap 5s
  quire replay orders --key customer-7 --header region=eu --flat-out --json
  quire replay orders --from 2013-06-13 --into orders-test --into-profile staging --speed 10
  quire replay flights --from 2013-06-13 --until 2013-06-14 --speed 3600 --dry-run")]
pub struct ReplayArgs {
    /// The topic to replay
    topic: String,
    /// Where to start in each partition
    #[arg(long, value_name = "POSITION", default_value = "beginning", allow_hyphen_values = true)]
    from: PositionArg,
    /// Where to stop in each partition, before the record there [default: the end at the start]
    #[arg(long, value_name = "POSITION", allow_hyphen_values = true)]
    until: Option<PositionArg>,
    /// Only these partitions: 3, or 0-99; may be repeated, or listed with commas
    #[arg(short, long, value_name = "N", value_delimiter = ',')]
    partition: Vec<PartitionRange>,
    /// Stop after so many records
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// So many times as fast as recorded: 10, or 0.5 [default: 1]
    #[arg(short, long, value_name = "N", allow_hyphen_values = true, value_parser = speed)]
    speed: Option<f64>,
    /// Without pauses, as fast as it can be read and written
    #[arg(long, conflicts_with = "speed")]
    flat_out: bool,
    /// Wait no longer than this for the next record: 5s, 500ms, 2m
    #[arg(long, value_name = "TIME", value_parser = span)]
    max_gap: Option<Duration>,
    /// Only records with this key; of several, any
    #[arg(short, long, value_name = "KEY")]
    key: Vec<String>,
    /// Only records with this header; of several, all
    #[arg(short = 'H', long, value_name = "NAME=VALUE")]
    header: Vec<HeaderArg>,
    /// Produce the records into this topic in place of writing them
    #[arg(long, value_name = "TOPIC", conflicts_with_all = ["format", "parse_json"])]
    into: Option<String>,
    /// The profile of the cluster that has that topic [default: the same cluster]
    #[arg(long, value_name = "NAME", requires = "into")]
    into_profile: Option<String>,
    /// Only say how many records over what time it would be
    #[arg(long)]
    dry_run: bool,
    /// How a record is written
    #[arg(short, long, value_name = "TEMPLATE", conflicts_with = "json", allow_hyphen_values = true)]
    format: Option<Template>,
    /// Write one JSON object a line; with --into or --dry-run, one in all
    #[arg(long)]
    json: bool,
    /// With --json: put values that are JSON in as they are, not as strings
    #[arg(long, requires = "json")]
    parse_json: bool,
}

impl ReplayArgs {
    fn speed(&self) -> Speed {
        match self.speed {
            _ if self.flat_out => Speed::FlatOut,
            Some(factor) => Speed::Times(factor),
            None => Speed::Recorded,
        }
    }

    /// Whether not everything in its range is replayed.
    fn is_filtered(&self) -> bool {
        !self.key.is_empty() || !self.header.is_empty()
    }

    fn builder(&self, client: &Client) -> ReplayBuilder {
        let mut replay = client.replay().topic(&self.topic).from(self.from.0).speed(self.speed());
        if let Some(until) = self.until {
            replay = replay.until(until.0);
        }
        if !self.partition.is_empty() {
            replay = replay.partitions(self.partition.iter().flat_map(PartitionRange::partitions));
        }
        if let Some(gap) = self.max_gap {
            replay = replay.max_gap(gap);
        }
        if let Some(count) = self.count {
            replay = replay.records_max(count);
        }
        replay = self.key.iter().fold(replay, |replay, key| replay.key(key.clone()));
        self.header.iter().fold(replay, |replay, header| {
            replay.header(header.name.clone(), header.value.clone().into_bytes())
        })
    }
}

/// A number above 0, maybe with the × that speeds are written with.
fn speed(text: &str) -> Result<f64, String> {
    let number = text.trim().trim_end_matches(['x', '×']).replace(['_', ','], "");
    match number.parse::<f64>() {
        Ok(factor) if factor.is_finite() && factor > 0.0 => Ok(factor),
        _ => Err("write how many times as fast, a number above 0: 10, or 0.5; or use --flat-out".into()),
    }
}

/// A header that records must have.
#[derive(Debug, Clone, PartialEq, Eq)]
struct HeaderArg {
    name: String,
    value: String,
}

impl FromStr for HeaderArg {
    type Err = String;

    fn from_str(text: &str) -> Result<HeaderArg, String> {
        match text.split_once('=') {
            Some((name, value)) if !name.is_empty() => {
                Ok(HeaderArg { name: name.to_owned(), value: value.to_owned() })
            }
            _ => Err("write the header's name and its value, e.g. carrier=UA".into()),
        }
    }
}

/// Why a replay ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    End,
    Quit,
    Interrupted,
}

/// What `--into --json` answers.
#[derive(Debug, Serialize)]
struct CopyAnswer<'a> {
    topic: &'a str,
    into: &'a str,
    records: u64,
    acknowledged: u64,
    first: Option<i64>,
    last: Option<i64>,
    took_ms: u64,
}

/// Replays, and says at the end how many records that were.
///
/// # Errors
/// If topic or position do not exist, a broker can not be asked, what it sends is damaged, or a record that was to be
/// produced was not acknowledged.
pub async fn run(profile: Option<&str>, args: &ReplayArgs) -> Result<Exit, Failure> {
    connect::with_client(profile, async |client| match &args.into_profile {
        Some(other) => {
            let other = Client::connect_with(Profile::load(Some(other))?).await?;
            let outcome = replay(client, &other, args).await;
            other.close().await;
            outcome
        }
        None => replay(client, client, args).await,
    })
    .await
}

async fn replay(client: &Client, other: &Client, args: &ReplayArgs) -> Result<Exit, Failure> {
    let explain = |error| consume::explain("replay", &args.topic, error);
    let copy = match &args.into {
        Some(into) => Some(Copy::start(other, into).await?),
        None => None,
    };
    let builder = args.builder(client);
    if args.dry_run {
        return dry_run::run(&builder, args).await.map_err(explain)?;
    }
    let extent = match status::has_line() {
        true => builder.extent().await.map_err(explain)?,
        false => Extent { records_max: 0, first: None, last: None },
    };
    let mut replay = builder.build().await.map_err(explain)?;
    if args.into.as_ref() == Some(&args.topic) && client.cluster_id() == other.cluster_id() {
        output::note(&format!(
            "\"{}\" is replayed into itself: at most the {} that it has now",
            args.topic,
            counted(replay.records_max(), "record")
        ));
    }
    let outline = Outline {
        extent,
        records_max: replay.records_max(),
        is_counted: args.count.is_some() && !args.is_filtered(),
        has_longest_gap: args.max_gap.is_some(),
    };
    let mut run = Run::start(args, &replay, outline, copy)?;
    let ending = run.play(&mut replay).await;
    run.end(ending).await
}

/// Where records go.
enum Sink {
    Output(RecordWriter),
    Copy(Copy),
}

/// One replay that is played.
struct Run<'a> {
    args: &'a ReplayArgs,
    sink: Sink,
    control: ReplayControl,
    keyboard: Option<Keyboard>,
    status: Status,
    stop: StopSignals,
    started: Instant,
    first: Option<i64>,
    last: Option<i64>,
}

/// What happened while a record was waited for.
enum Event {
    Key(Key),
    Interrupted,
    Acknowledged(Result<(), SendError>),
    /// It is time to look after what nobody tells of.
    Tick,
}

impl<'a> Run<'a> {
    fn start(
        args: &'a ReplayArgs,
        replay: &Replay,
        outline: Outline,
        copy: Option<Copy>,
    ) -> Result<Run<'a>, Failure> {
        // Only now, so that Ctrl-C simply ends what waits for the broker.
        let stop = StopSignals::listen()?;
        let keyboard = if status::has_line() { Keyboard::take() } else { None };
        let form = Form::new(args.format.as_ref(), args.json, args.parse_json);
        let shares_terminal = copy.is_none() && io::stdout().is_terminal();
        let is_in_the_way = shares_terminal && !form.ends_lines();
        let status = Status::new(outline, keyboard.is_some(), shares_terminal, is_in_the_way);
        let sink = match copy {
            Some(copy) => Sink::Copy(copy),
            None => Sink::Output(RecordWriter::new(form)),
        };
        let control = replay.control();
        let started = Instant::now();
        Ok(Run { args, sink, control, keyboard, status, stop, started, first: None, last: None })
    }

    /// Takes what is due until there is no more. Output is flushed whenever nothing more is ready.
    async fn play(&mut self, replay: &mut Replay) -> Result<Ending, Failure> {
        let mut taken = 0u64;
        loop {
            let next = match replay.next().now_or_never() {
                Some(next) => next,
                None => {
                    self.flush()?;
                    self.tell_if_due();
                    tokio::select! {
                        next = replay.next() => next,
                        event = self.event() => match self.apply(event)? {
                            Some(ending) => return Ok(ending),
                            None => continue,
                        },
                    }
                }
            };
            let Some(record) = next else { return Ok(Ending::End) };
            if let Some(ending) = self.take(record?).await? {
                return Ok(ending);
            }
            taken += 1;
            if taken.is_multiple_of(RECORDS_BETWEEN_LOOKS)
                && let Some(ending) = self.look()?
            {
                return Ok(ending);
            }
        }
    }

    /// What there is to see to between records that keep coming.
    fn look(&mut self) -> Result<Option<Ending>, Failure> {
        self.tell_if_due();
        match self.event().now_or_never() {
            Some(event) => self.apply(event),
            None => Ok(None),
        }
    }

    /// Waits for something to see to. Dropping the future loses nothing.
    async fn event(&mut self) -> Event {
        let Run { keyboard, stop, sink, .. } = self;
        let key = async {
            match keyboard {
                Some(keyboard) => keyboard.key().await,
                None => std::future::pending().await,
            }
        };
        let acknowledgement = async {
            match sink {
                Sink::Copy(copy) => copy.acknowledgement().await,
                Sink::Output(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = stop.stop() => Event::Interrupted,
            key = key => Event::Key(key),
            acknowledged = acknowledgement => Event::Acknowledged(acknowledged),
            () = tokio::time::sleep(DRAW_INTERVAL) => Event::Tick,
        }
    }

    fn apply(&mut self, event: Event) -> Result<Option<Ending>, Failure> {
        match event {
            Event::Interrupted => return Ok(Some(Ending::Interrupted)),
            Event::Key(Key::Stop) => return Ok(Some(Ending::Quit)),
            Event::Key(key) => {
                press(&self.control, key);
                self.status.tell(&self.control.position());
            }
            Event::Acknowledged(acknowledged) => acknowledged?,
            // The next record may be days away.
            Event::Tick if matches!(self.sink, Sink::Output(_)) && output::is_closed() => {
                return Err(Failure::OutputClosed);
            }
            Event::Tick => {}
        }
        Ok(None)
    }

    /// Passes the record on, which may have to wait for room.
    async fn take(&mut self, record: ConsumedRecord) -> Result<Option<Ending>, Failure> {
        let timestamp = record.timestamp.0;
        match &mut self.sink {
            Sink::Output(writer) => {
                self.status.make_way();
                writer.write(&record)?;
            }
            Sink::Copy(copy) => tokio::select! {
                biased;
                handed_over = copy.hand_over(record) => handed_over?,
                () = self.stop.stop() => return Ok(Some(Ending::Interrupted)),
            },
        }
        self.first.get_or_insert(timestamp);
        self.last = self.last.max(Some(timestamp));
        Ok(None)
    }

    fn flush(&mut self) -> Result<(), Failure> {
        match &mut self.sink {
            Sink::Output(writer) => Ok(writer.out.flush()?),
            Sink::Copy(_) => Ok(()),
        }
    }

    fn tell_if_due(&mut self) {
        if self.status.is_due() {
            self.status.tell(&self.control.position());
        }
    }

    /// Waits for what is on its way, and says what it came to.
    async fn end(mut self, ending: Result<Ending, Failure>) -> Result<Exit, Failure> {
        self.status.clear();
        // The terminal is as it was, whatever comes now.
        self.keyboard = None;
        let took = self.started.elapsed();
        match &mut self.sink {
            Sink::Output(writer) => {
                writer.out.flush()?;
                let records = writer.records;
                let written = counted(records, "record");
                let ending = ending.map_err(|failure| match records {
                    0 => failure,
                    _ => failure.hint(format!("before it, {written} came through")),
                })?;
                let how = describe(ending, self.args, records);
                output::note(&format!("{written}, {how}{}", self.pace(took)));
                Ok(exit(ending))
            }
            Sink::Copy(_) => self.end_copy(ending, took).await,
        }
    }

    async fn end_copy(mut self, ending: Result<Ending, Failure>, took: Duration) -> Result<Exit, Failure> {
        let pace = self.pace(took);
        let Run { args, sink, stop, first, last, .. } = &mut self;
        let (Sink::Copy(copy), Some(into)) = (sink, &args.into) else { return Ok(Exit::Done) };
        let finished = tokio::select! {
            finished = copy.finish() => Some(finished),
            () = stop.stop() => None,
        };
        let (acknowledged, failed, on_the_way) = (copy.acknowledged, copy.failed, copy.outstanding());
        let mut told = format!("{} acknowledged by \"{into}\"", counted(acknowledged, "record"));
        if failed > 0 {
            told += &format!(", {} not", thousands(failed));
        }
        if on_the_way > 0 {
            told += &format!(", {} on the way may be written or not", thousands(on_the_way));
        }
        if args.json {
            output::print_json(&CopyAnswer {
                topic: &args.topic,
                into,
                records: acknowledged + failed + on_the_way,
                acknowledged,
                first: *first,
                last: *last,
                took_ms: took.as_millis() as u64,
            })?;
        }
        let failure = match (ending, finished) {
            (Err(failure), _) => failure,
            (Ok(_), Some(Err(error))) => error.into(),
            (Ok(ending), finished) => {
                let ending = if finished.is_none() { Ending::Interrupted } else { ending };
                output::note(&format!("{told}, {}{pace}", describe(ending, args, acknowledged)));
                return Ok(exit(ending));
            }
        };
        Err(failure.hint(format!("before it, {told}")))
    }

    /// `; 23 h 55 min in 24 s`
    fn pace(&self, took: Duration) -> String {
        match self.first.zip(self.last) {
            Some((first, last)) => {
                let recorded = Duration::from_millis(last.abs_diff(first));
                format!("; {} in {}", time::show_length(recorded), time::show_took(took))
            }
            None => String::new(),
        }
    }
}

fn press(control: &ReplayControl, key: Key) {
    let position = control.position();
    match key {
        Key::Pause if position.is_paused => control.resume(),
        Key::Pause => control.pause(),
        Key::Step => control.step(1),
        Key::Faster | Key::Slower => {
            // Every rung of the ladder is a speed.
            let _ = control.set_speed(next_speed(position.speed, key == Key::Faster));
        }
        Key::Stop => {}
    }
}

/// The next higher or lower speed: 1, 2, 5, 10, and so on either way.
fn next_speed(speed: Speed, is_faster: bool) -> Speed {
    let Some(factor) = status::factor(speed) else {
        return if is_faster { speed } else { Speed::Times(1e6) };
    };
    let rungs = (-2..=6).flat_map(|tens| RUNGS.map(|rung| rung * 10f64.powi(tens)));
    let mut rungs: Vec<f64> = rungs.collect();
    if !is_faster {
        rungs.reverse();
    }
    // Rungs below 1 are no round numbers to a computer.
    let is_next = |rung: &f64| if is_faster { *rung > factor * 1.001 } else { *rung < factor * 0.999 };
    rungs.into_iter().find(is_next).map_or(speed, Speed::Times)
}

fn describe(ending: Ending, args: &ReplayArgs, records: u64) -> &'static str {
    match ending {
        Ending::End if args.count == Some(records) => "stopped by -n",
        Ending::End if args.until.is_some() => "stopped by --until",
        Ending::End => "reached the end",
        Ending::Quit => "stopped by q",
        Ending::Interrupted => "interrupted",
    }
}

fn exit(ending: Ending) -> Exit {
    if ending == Ending::Interrupted { Exit::Interrupted } else { Exit::Done }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(line: &str) -> Result<ReplayArgs, clap::Error> {
        #[derive(clap::Parser)]
        struct Wrapper {
            #[command(flatten)]
            args: ReplayArgs,
        }
        <Wrapper as clap::Parser>::try_parse_from(line.split(' ')).map(|wrapper| wrapper.args)
    }

    #[test]
    fn the_pace_is_the_recorded_one_unless_another_is_asked_for() {
        for (line, speed) in [
            ("replay t", Speed::Recorded),
            ("replay t --speed 10", Speed::Times(10.0)),
            ("replay t --speed 3,600x", Speed::Times(3600.0)),
            ("replay t -s 0.5×", Speed::Times(0.5)),
            ("replay t --flat-out", Speed::FlatOut),
        ] {
            assert_eq!(args(line).expect("valid").speed(), speed, "{line}");
        }
    }

    #[test]
    fn what_makes_no_sense_is_a_usage_error() {
        for line in [
            "replay t --speed 0",
            "replay t --speed -1",
            "replay t --speed nan",
            "replay t --speed inf",
            "replay t --speed fast",
            "replay t --speed 2 --flat-out",
            "replay t --max-gap 5",
            "replay t --max-gap -5s",
            "replay t --header carrier",
            "replay t --header =UA",
            "replay t --into-profile p",
            "replay t --into u --format %s",
            "replay t --json --format %s",
            "replay t -n 0",
        ] {
            assert!(args(line).is_err(), "{line}");
        }
        let header: HeaderArg = "query=a=b".parse().expect("the first = counts");
        assert_eq!((header.name.as_str(), header.value.as_str()), ("query", "a=b"));
    }

    #[test]
    fn keys_go_up_and_down_a_ladder_of_speeds() {
        let speeds = |mut speed: Speed, is_faster: bool, presses: usize| -> Vec<Speed> {
            let press = |_| {
                speed = next_speed(speed, is_faster);
                speed
            };
            (0..presses).map(press).collect()
        };
        let times = |factors: [f64; 3]| factors.map(Speed::Times).to_vec();
        assert_eq!(speeds(Speed::Recorded, true, 3), times([2.0, 5.0, 10.0]));
        assert_eq!(speeds(Speed::Times(3600.0), true, 3), times([5000.0, 10_000.0, 20_000.0]));
        assert_eq!(speeds(Speed::Times(3600.0), false, 3), times([2000.0, 1000.0, 500.0]));
        assert_eq!(speeds(Speed::Times(5.0), false, 3), times([2.0, 1.0, 0.5]));
        assert_eq!(speeds(Speed::FlatOut, true, 1), [Speed::FlatOut]);
        assert_eq!(speeds(Speed::FlatOut, false, 1), [Speed::Times(1e6)]);
        let lowest = speeds(Speed::Recorded, false, 100);
        assert_eq!(lowest.last(), Some(&Speed::Times(0.01)), "and not below");
    }
}
