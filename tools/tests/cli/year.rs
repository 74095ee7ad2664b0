//! The whole year of departures, where `QUIRE_TEST_DATA` names the folder that holds it.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use serde::Deserialize;

use crate::support::{Dev, path};

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

#[test]
fn the_year_goes_in_and_comes_out_whole_and_in_order() {
    let Some(file) =
        std::env::var_os("QUIRE_TEST_DATA").map(|dir| PathBuf::from(dir).join("flights.ndjson.gz"))
    else {
        println!("skipped: the_year_goes_in_and_comes_out_whole_and_in_order (QUIRE_TEST_DATA is not set)");
        return;
    };
    let dev = Dev::start();
    dev.home.stdout(&["topic", "create", "flights", "--partitions", "8"]);
    let acknowledged =
        dev.home.json(&["produce", "flights", "--file", path(&file), "--input", "ndjson", "--json"]);
    let produced: u64 = acknowledged.iter().filter_map(|partition| partition["records"].as_u64()).sum();
    assert_eq!(produced, 328_521);
    let consumed =
        dev.home.stdout(&["consume", "flights", "--from", "beginning", "--until", "end", "--json"]);
    let tally = tally(consumed.lines());
    assert_eq!((tally.events, tally.delay_min), (328_521, 4_152_200));
    assert!(tally.keys == keys(&file), "every aircraft's departures, in the order they were produced");
}
