//! The whole year of departures, where `QUIRE_TEST_DATA` names the folder that holds it.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use flate2::read::GzDecoder;
use serde::Deserialize;

use crate::support::{Dev, path, text};

#[derive(Deserialize)]
struct Produced {
    key: String,
    timestamp: i64,
    value: serde_json::Value,
}

#[derive(Deserialize)]
struct Consumed {
    key: String,
    timestamp: i64,
    value: String,
}

/// One key's events: when, and which flight.
pub type Events = Vec<(i64, u64)>;

pub struct Tally {
    pub events: u64,
    pub delay_min: i64,
    pub keys: HashMap<String, Events>,
}

/// What `quire consume --json` wrote.
pub fn tally<'a>(lines: impl Iterator<Item = &'a str>) -> Tally {
    let mut tally = Tally { events: 0, delay_min: 0, keys: HashMap::new() };
    for line in lines {
        let record: Consumed = serde_json::from_str(line).expect(line);
        let value: serde_json::Value = serde_json::from_str(&record.value).expect(line);
        tally.events += 1;
        tally.delay_min += value["delay_min"].as_i64().expect(line);
        tally.keys.entry(record.key).or_default().push((record.timestamp, flight(&value)));
    }
    tally
}

/// Every key's events in the order of the file.
pub fn keys(file: &Path) -> HashMap<String, Events> {
    let file = std::fs::File::open(file).expect("the file is there");
    let mut keys: HashMap<String, Events> = HashMap::new();
    for line in BufReader::new(GzDecoder::new(file)).lines() {
        let line = line.expect("the file is whole");
        let record: Produced = serde_json::from_str(&line).expect("a line is a record");
        keys.entry(record.key).or_default().push((record.timestamp, flight(&record.value)));
    }
    keys
}

fn flight(value: &serde_json::Value) -> u64 {
    value["flight"].as_u64().expect("a flight has a number")
}

/// The year, if it is there; says so if `test` is skipped for lack of it.
fn file(test: &str) -> Option<PathBuf> {
    let file = std::env::var_os("QUIRE_TEST_DATA").map(|dir| PathBuf::from(dir).join("flights.ndjson.gz"));
    if file.is_none() {
        println!("skipped: {test} (QUIRE_TEST_DATA is not set)");
    }
    file
}

/// A broker with the year in the topic `flights`.
fn with_the_year(file: &Path) -> Dev {
    let dev = Dev::start();
    dev.home.stdout(&["topic", "create", "flights", "--partitions", "8"]);
    let acknowledged =
        dev.home.json(&["produce", "flights", "--file", path(file), "--input", "ndjson", "--json"]);
    let produced: u64 = acknowledged.iter().filter_map(|partition| partition["records"].as_u64()).sum();
    assert_eq!(produced, 328_521);
    dev
}

#[test]
fn the_year_goes_in_and_comes_out_whole_and_in_order() {
    let Some(file) = file("the_year_goes_in_and_comes_out_whole_and_in_order") else { return };
    let dev = with_the_year(&file);
    let consumed =
        dev.home.stdout(&["consume", "flights", "--from", "beginning", "--until", "end", "--json"]);
    let tally = tally(consumed.lines());
    assert_eq!((tally.events, tally.delay_min), (328_521, 4_152_200));
    assert!(tally.keys == keys(&file), "every aircraft's departures, in the order they were produced");
}

/// Midnight before the day that is replayed (ms since 1970).
const JUNE_13: i64 = 1_371_081_600_000;

/// Times and flights of that day, in the order of time and then of flights.
fn departures_of_june_13(file: &Path) -> Events {
    let day = JUNE_13..JUNE_13 + 86_400_000;
    let mut departures: Events = keys(file).into_values().flatten().collect();
    departures.retain(|(at, _)| day.contains(at));
    departures.sort_unstable();
    departures
}

#[test]
fn a_day_replays_in_24_seconds_with_every_departure_in_its_time() {
    let Some(file) = file("a_day_replays_in_24_seconds_with_every_departure_in_its_time") else { return };
    let dev = with_the_year(&file);
    let day = ["replay", "flights", "--from", "2013-06-13", "--until", "2013-06-14", "--speed", "3600"];
    let rehearsed = dev.home.stdout(&[&day[..], &["--dry-run"]].concat());
    assert!(rehearsed.contains("at most 851 records") && rehearsed.contains("about 24.0 s"), "{rehearsed}");

    let mut replay = dev.home.spawn(&[&day[..], &["--json"]].concat());
    let (mut departures, mut errors) = (Events::new(), Vec::new());
    let mut start = None;
    loop {
        let line = replay.line();
        if line.is_empty() {
            break;
        }
        let now = Instant::now();
        let record: Consumed = serde_json::from_str(&line).expect(&line);
        let value: serde_json::Value = serde_json::from_str(&record.value).expect(&line);
        departures.push((record.timestamp, flight(&value)));
        let start = *start.get_or_insert(now);
        // The day's first departure is at midnight, on the minute as all of them are.
        let due = start + Duration::from_millis((record.timestamp - JUNE_13) as u64) / 3600;
        errors.push(now.max(due) - now.min(due));
    }
    let took = start.expect("there are departures").elapsed();
    let told = text(&replay.end().stderr);
    errors.sort_unstable();
    let p99 = errors[errors.len() * 99 / 100];
    println!("{} departures in {took:?}, p99 of the pace {p99:?}; {told}", departures.len());
    assert!(departures.is_sorted_by_key(|(at, _)| *at), "in the order of time, over all partitions");
    departures.sort_unstable();
    assert_eq!(departures.len(), 851);
    assert_eq!(departures, departures_of_june_13(&file));
    // 23 h 59 min at 3600 times the pace; what the machine may be late by is only the last record's.
    assert!(took >= Duration::from_millis(23_900) && took < Duration::from_millis(25_000), "{took:?}");
    assert!(p99 < Duration::from_millis(250), "{p99:?}");
    assert!(
        told.ends_with("stopped by --until; 23 h 59 min in 24.0 s\n") || took > Duration::from_millis(24_049),
        "{told}"
    );
}
