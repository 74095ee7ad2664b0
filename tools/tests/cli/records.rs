//! `quire produce` and `quire consume`

use std::collections::HashMap;
use std::io::Write;

use serde_json::{Value, json};

use crate::support::{Dev, path, sample, text};

fn topic(dev: &Dev, name: &str, partitions: &str) {
    dev.home.stdout(&["topic", "create", name, "--partitions", partitions]);
}

#[test]
fn lines_with_keys_come_back_as_they_went() {
    let dev = Dev::start();
    topic(&dev, "users", "1");
    let acknowledged = dev.home.pipe(&["produce", "users", "--key-separator", ":"], "ann:1:2\nbob:\n");
    assert!(acknowledged.starts_with("users   2 records acknowledged   "), "{acknowledged}");
    assert!(acknowledged.contains("    0        2  0 to 1   1 replica\n"), "{acknowledged}");
    let consumed = dev.home.stdout(&["consume", "users", "--format", r"%t %p:%o [%k] [%s] %%\n"]);
    assert_eq!(consumed, "users 0:0 [ann] [1:2] %\nusers 0:1 [bob] [] %\n");
}

#[test]
fn ndjson_keeps_the_text_the_time_and_the_headers_of_each_record() {
    let dev = Dev::start();
    topic(&dev, "events", "1");
    let lines = concat!(
        r#"{"key":"k","value":{"b": 1.50, "a":[ ]},"timestamp":5,"headers":{"trace":"x"}}"#,
        "\n\n",
        r#"{"value":null,"timestamp":"1970-01-01T00:00:01Z"}"#,
        "\n",
        r#"{"key_base64":"//4=","value":"plain \"text\""}"#,
    );
    let acknowledged = dev.home.pipe(&["produce", "events", "--input", "ndjson", "--json"], lines);
    assert_eq!(
        serde_json::from_str::<Value>(&acknowledged).expect("one object"),
        json!({"topic":"events","partition":0,"records":3,"base_offset":0,"last_offset":2,"replicas_on_disk":1})
    );
    let records = dev.home.json(&["consume", "events", "--json"]);
    assert_eq!(
        records[0],
        json!({"topic":"events","partition":0,"offset":0,"timestamp":5,"key":"k","value":"{\"b\": 1.50, \"a\":[ ]}",
               "headers":[{"key":"trace","value":"x"}]})
    );
    assert_eq!(records[1]["value"], Value::Null);
    assert_eq!(records[1]["timestamp"], 1000);
    assert_eq!(records[2]["key_base64"], "//4=");
    assert_eq!(records[2]["value"], "plain \"text\"");
    let parsed = dev.home.stdout(&["consume", "events", "--json", "--parse-json", "-n", "1"]);
    assert!(parsed.contains(r#""value":{"b": 1.50, "a":[ ]}"#), "{parsed}");

    topic(&dev, "copy", "1");
    let written = dev.home.stdout(&["consume", "events", "--json"]);
    dev.home.pipe(&["produce", "copy", "--input", "ndjson"], written);
    let mut copied = dev.home.json(&["consume", "copy", "--json"]);
    copied.iter_mut().for_each(|record| record["topic"] = json!("events"));
    assert_eq!(copied, records, "what consume writes, produce reads");
}

#[test]
fn files_are_read_plain_gzip_and_zstd() {
    let dev = Dev::start();
    topic(&dev, "t", "1");
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(b"two\n").expect("memory takes it");
    let files = [
        dev.home.file("a.txt", "one\n"),
        dev.home.file("b.gz", gzip.finish().expect("memory takes it")),
        dev.home.file("c.zst", zstd::encode_all(&b"three\n"[..], 1).expect("memory takes it")),
    ];
    for (file, compression) in files.iter().zip(["none", "zstd", "lz4"]) {
        dev.home.stdout(&["produce", "t", "--file", path(file), "--compression", compression]);
    }
    assert_eq!(dev.home.stdout(&["consume", "t"]), "one\ntwo\nthree\n");
}

#[test]
fn positions_choose_what_is_read() {
    let dev = Dev::start();
    topic(&dev, "t", "2");
    for (partition, first) in [("0", 0), ("1", 10)] {
        let lines: String = (first..first + 5)
            .map(|n| format!("{{\"value\":\"{n}\",\"timestamp\":\"2013-01-0{}\"}}\n", n % 10 + 1))
            .collect();
        dev.home.pipe(&["produce", "t", "--input", "ndjson", "--partition", partition], lines);
    }
    let read = |flags: &[&str]| {
        let out = dev.home.stdout(&[&["consume", "t", "--format", "%s "], flags].concat());
        out.trim_end().to_owned()
    };
    assert_eq!(read(&["-p", "0"]), "0 1 2 3 4");
    assert_eq!(read(&["-p", "1", "--from", "3"]), "13 14");
    assert_eq!(read(&["-p", "1", "--from", "-2"]), "13 14");
    assert_eq!(read(&["-p", "0", "--from", "1", "--until", "3"]), "1 2");
    assert_eq!(read(&["-p", "0", "--from", "2013-01-04"]), "3 4");
    assert_eq!(read(&["-p", "0", "--until", "2013-01-02T12:00Z"]), "0 1");
    assert_eq!(
        read(&["--merge-by-time", "--from", "2013-01-02", "--until", "2013-01-04"]).len(),
        "1 11 2 12".len()
    );
    assert_eq!(read(&["-p", "0", "--from", "end"]), "");
    assert_eq!(read(&["--from", "1h"]), "", "all of it is older than an hour");
    assert_eq!(read(&["-p", "1", "-n", "2"]), "10 11");
    let stopped = dev.home.quire(&["consume", "t", "-n", "2"]).assert().success();
    assert_eq!(text(&stopped.get_output().stderr), "2 records, stopped by -n\n");
}

#[test]
fn the_sample_adds_up_and_every_aircraft_keeps_its_order() {
    let dev = Dev::start();
    topic(&dev, "flights", "8");
    let acknowledged =
        dev.home.json(&["produce", "flights", "--file", path(&sample()), "--input", "ndjson", "--json"]);
    let produced: u64 = acknowledged.iter().filter_map(|partition| partition["records"].as_u64()).sum();
    assert_eq!((acknowledged.len(), produced), (8, 11_045));
    assert!(acknowledged.iter().all(|partition| partition["replicas_on_disk"] == 1));

    let consumed =
        dev.home.stdout(&["consume", "flights", "--from", "beginning", "--until", "end", "--json"]);
    let tally = crate::year::tally(consumed.lines());
    assert_eq!((tally.events, tally.delay_min), (11_045, 72_532));
    assert_eq!(tally.keys, crate::year::keys(&sample()));
}

#[test]
fn records_spread_by_key_and_keys_stay_together() {
    let dev = Dev::start();
    topic(&dev, "t", "4");
    let lines: String = (0..100).map(|n| format!("key{}:{n}\n", n % 10)).collect();
    dev.home.pipe(&["produce", "t", "-k", ":"], lines);
    let mut homes: HashMap<Value, Value> = HashMap::new();
    for record in dev.home.json(&["consume", "t", "--json"]) {
        let home = homes.entry(record["key"].clone()).or_insert_with(|| record["partition"].clone());
        assert_eq!(*home, record["partition"]);
    }
    assert_eq!(homes.len(), 10);
}

#[test]
fn a_reader_that_leaves_ends_consume_quietly() {
    let dev = Dev::start();
    topic(&dev, "t", "1");
    dev.home.pipe(&["produce", "t"], "x".repeat(100).add_lines(20_000));
    let mut consume = dev.home.spawn(&["consume", "t"]);
    assert_eq!(consume.line(), "x".repeat(100));
    consume.close_stdout();
    let ended = consume.end();
    assert_eq!((ended.status.code(), text(&ended.stderr)), (Some(0), String::new()));
}

trait Lines {
    fn add_lines(self, count: usize) -> Vec<u8>;
}

impl Lines for String {
    fn add_lines(self, count: usize) -> Vec<u8> {
        (self + "\n").repeat(count).into_bytes()
    }
}

#[test]
fn produce_acknowledges_what_comes_through_an_open_pipe() {
    let dev = Dev::start();
    topic(&dev, "t", "1");
    let mut produce = dev.home.spawn(&["produce", "t"]);
    produce.write(b"first\n");
    let mut consume = dev.home.spawn(&["consume", "t", "--follow"]);
    assert_eq!(consume.line(), "first", "although more may come");
    produce.write(b"second\n");
    assert_eq!(consume.line(), "second");
}
