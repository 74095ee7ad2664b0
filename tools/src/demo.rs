//! `quire demo`: the main job on real events, from nothing to a checked result in a few seconds.

use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::time::{Duration, Instant};

use clap::Args;
use flate2::read::GzDecoder;
use futures_util::stream::{FuturesUnordered, StreamExt};
use quire_broker::Broker;
use quire_client::{Client, NewTopic, Position, Record, Timestamp};
use serde::Serialize;

use crate::args::JsonArg;
use crate::embedded;
use crate::failure::{Exit, Failure};
use crate::flights::{self, Tally, Totals};
use crate::output::{self, Align, Palette, Table, thousands, thousands_signed};
use crate::progress::{self, Progress};
use crate::record_input::{LineFormat, RecordInput};
use crate::signals::StopSignals;
use crate::time;

/// 11,045 departures of January 2013; `config/samples/README.md` says where they are from.
const SAMPLE: &[u8] = include_bytes!("../../config/samples/flights.ndjson.gz");
const TOPIC: &str = "flights";
const PARTITIONS: u32 = 8;
/// Records between two steps of the bars.
const RECORDS_PER_STEP: u64 = 256;

/// Produce, consume and replay 11,045 real departures on a throwaway broker.
#[derive(Debug, Args)]
pub struct DemoArgs {
    #[command(flatten)]
    output: JsonArg,
}

/// Runs the demo. Wrong totals are a failure.
///
/// # Errors
/// If any step fails, or the result is not what the sample adds up to.
pub async fn run(args: &DemoArgs) -> Result<Exit, Failure> {
    let mut stop = StopSignals::listen()?;
    let folder = embedded::temporary_folder()?;
    let builder = Broker::builder().data_dir(folder.path()).listen(([127, 0, 0, 1], 0).into());
    let Some(broker) = embedded::start(builder.start(), &mut stop).await? else {
        return Ok(Exit::Interrupted);
    };
    let outcome = tokio::select! {
        outcome = tell(args, &broker) => outcome,
        () = stop.stop() => Ok(Exit::Interrupted),
    };
    stop.force_on_next();
    broker.shutdown().await;
    outcome
}

/// The sample's lines, decompressed.
pub fn sample() -> Box<dyn BufRead + Send> {
    Box::new(BufReader::new(GzDecoder::new(SAMPLE)))
}

async fn tell(args: &DemoArgs, broker: &Broker) -> Result<Exit, Failure> {
    let ready = time::show_took(broker.ready_in());
    step(
        "broker",
        &format!(
            "ready in {ready}   TLS 1.3 on {}   (data in a temporary folder, removed at the end)",
            broker.address()
        ),
    );
    let client = Client::connect_with(embedded::profile(broker)).await?;
    let topic = client.admin().create_topic(NewTopic::new(TOPIC).partitions(PARTITIONS)).await?;
    let sync = topic.config.get("sync").map_or("-", String::as_str);
    step("topic", &format!("{TOPIC}, {PARTITIONS} partitions, sync = {sync}"));

    let produced = produce(&client, sample_records()?).await?;
    let all_on_disk = produced.replicas_on_disk_min > 0;
    step_done(
        "produce",
        produced.records,
        produced.took,
        if all_on_disk { "all on disk" } else { "NOT all on disk" },
    );
    let consumed = consume(&client).await?;
    step_done("consume", consumed.totals.all().departures, consumed.took, "checksums and chain verified");
    let one_day = one_day(&client).await?;
    client.close().await;

    let result = DemoJson::new(&produced, &consumed, &one_day);
    if args.output.json {
        output::print_json(&result)?;
    } else {
        output::print(&page(&consumed.totals, &one_day, Palette::stdout()))?;
    }
    if !(result.as_expected && all_on_disk) {
        return Err(Failure::failed(format!(
            "the totals are wrong: expected {} departures, {} minutes and {} departures on {}, all on disk",
            thousands(flights::SAMPLE.departures),
            thousands_signed(flights::SAMPLE.delay_min),
            flights::ONE_DAY_DEPARTURES,
            flights::ONE_DAY
        ))
        .hint("this is a defect in quire; please report it with the lines above"));
    }
    if !args.output.json {
        output::note("\nNext:  quire dev                                    a broker that stays");
        output::note("       quire topic create flights --partitions 8    in a second terminal");
    }
    Ok(Exit::Done)
}

fn step(name: &str, text: &str) {
    output::note(&format!("{}{text}", Palette::stderr().bold(&format!("{name:<9}"))));
}

/// The line that stays when a bar is done.
fn step_done(name: &str, records: u64, took: Duration, remark: &str) {
    let expected = thousands(flights::SAMPLE.departures);
    let bar = Palette::stderr().good(&progress::full_bar()).into_owned();
    let took = format!("{:.2} s", took.as_secs_f64());
    step(name, &format!("{bar} {} / {expected}   {took}   {remark}", thousands(records)));
}

fn sample_records() -> Result<Vec<Record>, Failure> {
    let input = RecordInput::new("the sample".to_owned(), LineFormat::Ndjson, sample());
    input
        .map(|record| record.map(|record| record.record).map_err(|error| Failure::failed(error.to_string())))
        .collect()
}

struct Produced {
    records: u64,
    replicas_on_disk_min: u32,
    took: Duration,
}

async fn produce(client: &Client, records: Vec<Record>) -> Result<Produced, Failure> {
    let progress = Progress::counting("produce", records.len() as u64);
    let started = Instant::now();
    let producer = client.producer().build();
    let mut deliveries = FuturesUnordered::new();
    for record in records {
        deliveries.push(producer.enqueue(TOPIC, record).await?);
    }
    let mut produced = Produced { records: 0, replicas_on_disk_min: u32::MAX, took: Duration::ZERO };
    while let Some(delivered) = deliveries.next().await {
        produced.replicas_on_disk_min = produced.replicas_on_disk_min.min(delivered?.replicas_on_disk);
        produced.records += 1;
        if produced.records.is_multiple_of(RECORDS_PER_STEP) {
            progress.at(produced.records);
        }
    }
    produced.took = started.elapsed();
    progress.clear();
    Ok(produced)
}

struct Consumed {
    totals: Totals,
    took: Duration,
}

async fn consume(client: &Client) -> Result<Consumed, Failure> {
    let progress = Progress::counting("consume", flights::SAMPLE.departures);
    let started = Instant::now();
    let mut consumer =
        client.consumer().topic(TOPIC).from(Position::Beginning).until(Position::End).build().await?;
    let mut totals = Totals::default();
    while let Some(record) = consumer.next().await {
        let record = record?;
        totals.add(record.value.as_deref().unwrap_or_default()).map_err(|error| {
            Failure::failed(format!("partition {} offset {}: {error}", record.partition, record.offset))
        })?;
        if totals.all().departures.is_multiple_of(RECORDS_PER_STEP) {
            progress.at(totals.all().departures);
        }
    }
    progress.clear();
    Ok(Consumed { totals, took: started.elapsed() })
}

struct OneDay {
    departures: u64,
    /// Every record's time lies in the day, and times never go back.
    in_order: bool,
}

impl OneDay {
    fn is_as_expected(&self) -> bool {
        self.departures == flights::ONE_DAY_DEPARTURES && self.in_order
    }
}

/// Finds a day by timestamp in every partition and reads it merged by time.
async fn one_day(client: &Client) -> Result<OneDay, Failure> {
    let day = day();
    let mut consumer = client
        .consumer()
        .topic(TOPIC)
        .from(Position::Timestamp(day.start))
        .until(Position::Timestamp(day.end))
        .merge_by_time(true)
        .build()
        .await?;
    let mut found = OneDay { departures: 0, in_order: true };
    let mut latest = day.start;
    while let Some(record) = consumer.next().await {
        let timestamp = record?.timestamp;
        found.in_order &= day.contains(&timestamp) && latest <= timestamp;
        latest = timestamp;
        found.departures += 1;
    }
    Ok(found)
}

fn day() -> Range<Timestamp> {
    let start = time::parse(flights::ONE_DAY).expect("the constant is a date");
    start..Timestamp(start.0 + 24 * 60 * 60 * 1000)
}

fn page(totals: &Totals, one_day: &OneDay, palette: Palette) -> String {
    let mut table = Table::new(&[
        ("carrier", Align::Left),
        ("departures", Align::Right),
        ("mean delay", Align::Right),
        ("", Align::Left),
    ]);
    for (index, (carrier, tally)) in totals.by_departures().into_iter().enumerate() {
        let unit = if index == 0 { "min" } else { "   " };
        let remark =
            flights::remark(tally).map(|remark| palette.warning(&format!("← {remark}")).into_owned());
        table.row(vec![
            carrier.to_owned(),
            thousands(tally.departures),
            format!("{:.1} {unit}", tally.mean_delay_min()),
            remark.unwrap_or_default(),
        ]);
    }
    let all = totals.all();
    table.row(vec![
        "all".to_owned(),
        thousands(all.departures),
        format!("{:.1}    ", all.mean_delay_min()),
        format!(
            "{} minutes in total   {}",
            thousands_signed(all.delay_min),
            verdict(is_sample(all), palette)
        ),
    ]);
    let found = format!(
        "found by timestamp in {PARTITIONS} partitions: {} departures",
        thousands(one_day.departures)
    );
    let mark = if one_day.is_as_expected() { palette.good("✓") } else { palette.bad("✗") };
    let name = palette.bold("replay   ").into_owned();
    format!("\n{}\n{name}{}, {found}   {mark}\n", table.render(palette), flights::ONE_DAY)
}

fn is_sample(all: Tally) -> bool {
    flights::SAMPLE.is_met_by(all)
}

fn verdict(as_expected: bool, palette: Palette) -> String {
    if as_expected { palette.good("✓ as expected") } else { palette.bad("✗ NOT as expected") }.into_owned()
}

#[derive(Serialize)]
struct DemoJson {
    departures: u64,
    delay_min: i64,
    carriers: Vec<CarrierJson>,
    one_day: OneDayJson,
    produce_seconds: f64,
    consume_seconds: f64,
    replicas_on_disk: u32,
    as_expected: bool,
}

#[derive(Serialize)]
struct CarrierJson {
    carrier: String,
    departures: u64,
    delay_min: i64,
    mean_delay_min: f64,
}

#[derive(Serialize)]
struct OneDayJson {
    day: &'static str,
    departures: u64,
    in_order: bool,
}

impl DemoJson {
    fn new(produced: &Produced, consumed: &Consumed, one_day: &OneDay) -> DemoJson {
        let all = consumed.totals.all();
        let carriers = consumed.totals.by_departures().into_iter();
        DemoJson {
            departures: all.departures,
            delay_min: all.delay_min,
            carriers: carriers.map(|(carrier, tally)| CarrierJson::new(carrier, tally)).collect(),
            one_day: OneDayJson {
                day: flights::ONE_DAY,
                departures: one_day.departures,
                in_order: one_day.in_order,
            },
            produce_seconds: produced.took.as_secs_f64(),
            consume_seconds: consumed.took.as_secs_f64(),
            replicas_on_disk: produced.replicas_on_disk_min,
            as_expected: is_sample(all) && one_day.is_as_expected(),
        }
    }
}

impl CarrierJson {
    fn new(carrier: &str, tally: Tally) -> CarrierJson {
        CarrierJson {
            carrier: carrier.to_owned(),
            departures: tally.departures,
            delay_min: tally.delay_min,
            mean_delay_min: (tally.mean_delay_min() * 10.0).round() / 10.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample_totals() -> Totals {
        let mut totals = Totals::default();
        for record in sample_records().expect("the sample is well-formed") {
            totals.add(record.value.as_deref().expect("a value")).expect("a departure");
        }
        totals
    }

    #[test]
    fn the_page_has_every_carrier_and_the_verdicts() {
        let one_day = OneDay { departures: 908, in_order: true };
        let page = page(&sample_totals(), &one_day, Palette::PLAIN);
        let lines: Vec<&str> = page.lines().collect();
        assert_eq!(lines[1], " carrier  departures  mean delay");
        assert_eq!(lines[2], " UA            1,918     7.3 min");
        assert_eq!(lines[3], " B6            1,912     8.4");
        assert_eq!(lines[16], " HA               13   114.8      ← 13 flights, one of them 21 h 41 min late");
        assert_eq!(lines[17], " all          11,045     6.6      72,532 minutes in total   ✓ as expected");
        assert_eq!(lines[19], "replay   2013-01-08, found by timestamp in 8 partitions: 908 departures   ✓");
    }

    #[test]
    fn a_wrong_day_or_total_is_seen() {
        assert!(!OneDay { departures: 907, in_order: true }.is_as_expected());
        assert!(!OneDay { departures: 908, in_order: false }.is_as_expected());
        let short = Totals::default();
        let shown = page(&short, &OneDay { departures: 0, in_order: true }, Palette::PLAIN);
        assert!(shown.contains("✗ NOT as expected"), "{shown}");
    }
}
