//! `quire replay`

use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{Dev, Home, path, sample, text};

fn topic(dev: &Dev, name: &str, partitions: &str) {
    dev.home.stdout(&["topic", "create", name, "--partitions", partitions]);
}

/// Ten records in two partitions: number n, at n seconds and a bit, its key its parity, its header its half.
fn with_ten() -> Dev {
    let dev = Dev::start();
    topic(&dev, "t", "2");
    for partition in [0, 1] {
        let line = |n: u64| {
            let half = if n < 5 { "first" } else { "second" };
            let at = 1000 * n + 7;
            format!(r#"{{"key":"{}","value":"{n}","timestamp":{at},"headers":{{"half":"{half}"}}}}"#, n % 2)
        };
        let lines: Vec<_> = (0..10).filter(|n| n % 2 == partition).map(line).collect();
        let to = partition.to_string();
        dev.home.pipe(&["produce", "t", "--input", "ndjson", "--partition", &to], lines.join("\n"));
    }
    dev
}

#[test]
fn history_comes_in_one_stream_in_the_order_of_time() {
    let dev = Dev::start();
    topic(&dev, "flights", "8");
    dev.home.stdout(&["produce", "flights", "--file", path(&sample()), "--input", "ndjson"]);
    let day = ["replay", "flights", "--from", "2013-01-08", "--until", "2013-01-09"];
    let replayed =
        dev.home.quire(&[&day[..], &["--speed", "86400", "--format", "%T\\n"]].concat()).assert().success();
    let output = replayed.get_output();
    let times: Vec<i64> = text(&output.stdout).lines().map(|line| line.parse().expect(line)).collect();
    assert_eq!(times.len(), 908);
    assert!(times.is_sorted());
    let told = text(&output.stderr);
    assert!(told.starts_with("908 records, stopped by --until; 23 h 5"), "{told}");
    let everything = dev.home.json(&["replay", "flights", "--flat-out", "--json"]);
    assert_eq!(everything.len(), 11_045);
    assert!(everything.is_sorted_by_key(|record| record["timestamp"].as_i64()));
}

#[test]
fn filters_and_bounds_choose_what_is_replayed() {
    let dev = with_ten();
    let replay = |flags: &[&str]| {
        let out = dev.home.stdout(&[&["replay", "t", "--flat-out", "--format", "%s "], flags].concat());
        out.trim_end().to_owned()
    };
    assert_eq!(replay(&[]), "0 1 2 3 4 5 6 7 8 9");
    assert_eq!(replay(&["-n", "3"]), "0 1 2");
    assert_eq!(replay(&["--partition", "1"]), "1 3 5 7 9");
    assert_eq!(replay(&["--from", "1970-01-01T00:00:02Z", "--until", "1970-01-01T00:00:06Z"]), "2 3 4 5");
    assert_eq!(replay(&["--from", "-1"]), "8 9");
    assert_eq!(replay(&["--from", "2h ago"]), "");
    assert_eq!(replay(&["--key", "0"]), "0 2 4 6 8");
    assert_eq!(replay(&["--key", "0", "--key", "1", "-n", "2"]), "0 1");
    assert_eq!(replay(&["--header", "half=second", "--key", "1"]), "5 7 9");
    assert_eq!(replay(&["--header", "half=second", "--header", "half=first"]), "");
    let stopped = dev.home.quire(&["replay", "t", "--flat-out", "-n", "2"]).assert().success();
    let told = text(&stopped.get_output().stderr);
    assert!(told.starts_with("2 records, stopped by -n; 1 s in "), "{told}");
}

#[test]
fn the_pace_is_the_recorded_one_or_the_one_asked_for() {
    let dev = with_ten();
    let took = |flags: &[&str]| {
        let start = Instant::now();
        let out = dev.home.stdout(&[&["replay", "t", "-n", "3"], flags].concat());
        assert_eq!(out, "0\n1\n2\n");
        start.elapsed()
    };
    let flat_out = took(&["--flat-out"]);
    assert!(took(&[]) >= Duration::from_secs(2));
    let faster = took(&["--speed", "4"]);
    assert!(faster >= Duration::from_millis(500) && faster < flat_out + Duration::from_secs(2), "{faster:?}");
    let cut_short = took(&["--max-gap", "150ms"]);
    assert!(cut_short >= Duration::from_millis(300) && cut_short < flat_out + Duration::from_millis(1900));
}

#[test]
fn a_dry_run_says_what_it_would_be() {
    let dev = with_ten();
    let dry_run = |flags: &[&str]| dev.home.stdout(&[&["replay", "t", "--dry-run"], flags].concat());
    assert_eq!(
        dry_run(&["--speed", "2"]),
        "t   at most 10 records   1970-01-01T00:00:00.007Z to 1970-01-01T00:00:09.007Z, 9 s\n\
         at 2×: about 4.50 s   (from offsets and the ends of partitions; not every offset need hold a record)\n"
    );
    assert_eq!(
        dry_run(&["--max-gap", "100ms", "--key", "0"]),
        "t   5 records   1970-01-01T00:00:00.007Z to 1970-01-01T00:00:08.007Z, 8 s\n\
         at 1×: 0.40 s   (every record was read for this)\n"
    );
    assert!(dry_run(&["--flat-out"]).contains("\nflat out: as fast as it can be read and written "));
    assert_eq!(dry_run(&["--from", "end"]), "t   nothing to replay\n");
    assert_eq!(
        serde_json::from_str::<Value>(&dry_run(&["-n", "4", "--json"])).expect("one object"),
        json!({"topic":"t","records":4,"is_exact":true,"first":7,"last":3007,"takes_ms":3000})
    );
    assert_eq!(
        serde_json::from_str::<Value>(&dry_run(&["--flat-out", "--json"])).expect("one object"),
        json!({"topic":"t","records":10,"is_exact":false,"first":7,"last":9007,"takes_ms":null})
    );
}

#[test]
fn a_topic_is_replayed_into_another_with_where_and_when_it_was_recorded() {
    let dev = with_ten();
    topic(&dev, "copy", "1");
    let started = quire::time::now().0;
    let answer = dev.home.json(&["replay", "t", "--flat-out", "--from", "-2", "--into", "copy", "--json"]);
    assert_eq!((answer[0]["records"].clone(), answer[0]["acknowledged"].clone()), (json!(4), json!(4)));
    assert_eq!((answer[0]["first"].clone(), answer[0]["last"].clone()), (json!(6007), json!(9007)));
    let copied = dev.home.json(&["consume", "copy", "--json"]);
    let values: Vec<_> = copied.iter().map(|record| record["value"].as_str().expect("text")).collect();
    assert_eq!(values, ["6", "7", "8", "9"], "in the order of time");
    assert_eq!(copied[1]["key"], "1");
    assert!(
        copied[1]["timestamp"].as_i64().expect("a number") >= started,
        "its own timestamp is that of the replay"
    );
    assert_eq!(
        copied[1]["headers"],
        json!([
            {"key":"half","value":"second"},
            {"key":"quire.replay.topic","value":"t"},
            {"key":"quire.replay.partition","value":"1"},
            {"key":"quire.replay.offset","value":"3"},
            {"key":"quire.replay.timestamp","value":"7007"},
        ])
    );

    let again = dev.home.quire(&["replay", "copy", "--into", "copy", "--flat-out"]).assert().success();
    let told = text(&again.get_output().stderr);
    assert!(
        told.contains("\"copy\" is replayed into itself: at most the 4 records that it has now\n"),
        "{told}"
    );
    assert!(told.contains("4 records acknowledged by \"copy\", reached the end; "), "{told}");
    assert_eq!(text(&again.get_output().stdout), "");
    assert_eq!(dev.home.json(&["consume", "copy", "--json"]).len(), 8);
}

#[test]
fn a_topic_is_replayed_into_another_cluster() {
    let dev = with_ten();
    let (other, _) = Dev::spawn(&dev.home, &["--ephemeral", "--profile", "other"]);
    // Written last, it would be the default otherwise.
    let first = ["--profile", "dev"];
    let failure = dev
        .home
        .failure(&[&["replay", "t", "--into", "t", "--into-profile", "other"], &first[..]].concat(), 1);
    assert!(failure.contains("no topic \"t\""), "{failure}");
    dev.home.stdout(&["topic", "create", "t", "--profile", "other"]);
    let flat_out = ["replay", "t", "--into", "t", "--into-profile", "other", "--flat-out"];
    let replayed = dev.home.quire(&[&flat_out[..], &first].concat()).assert().success();
    let told = text(&replayed.get_output().stderr);
    assert!(told.starts_with("10 records acknowledged by \"t\", reached the end"), "{told}");
    assert_eq!(dev.home.json(&["consume", "t", "--json", "--profile", "other"]).len(), 10);
    assert_eq!(dev.home.json(&["consume", "t", "--json", "--profile", "dev"]).len(), 10);
    drop(other);
}

#[test]
fn what_is_not_acknowledged_is_told_and_fails() {
    let dev = Dev::start();
    topic(&dev, "t", "1");
    dev.home.stdout(&["topic", "create", "small", "--config", "max.message.bytes=1024"]);
    for length in [10, 5000] {
        dev.home.pipe(&["produce", "t"], "x".repeat(length));
    }
    let failure = dev.home.failure(&["replay", "t", "--into", "small", "--flat-out"], 1);
    assert!(failure.starts_with("error: "), "{failure}");
    assert!(failure.contains("before it, 1 record acknowledged by \"small\", 1 not\n"), "{failure}");
}

#[test]
fn mistakes_are_told_before_anything_is_replayed() {
    let dev = with_ten();
    let failure = |args: &[&str], code: i32| dev.home.failure(&[&["replay"], args].concat(), code);
    for speed in ["0", "-1", "nan", "inf", "fast"] {
        let told = failure(&["t", "--speed", speed], 2);
        assert!(told.contains("a number above 0"), "{told}");
    }
    failure(&["t", "--speed", "2", "--flat-out"], 2);
    assert!(failure(&["t", "--header", "half"], 2).contains("carrier=UA"));
    assert!(failure(&["tt"], 1).contains("no topic \"tt\" (UNKNOWN_TOPIC"));
    assert!(failure(&["t", "--into", "tt"], 1).contains("no topic \"tt\" (UNKNOWN_TOPIC"));
    assert!(failure(&["t", "--partition", "7"], 1).contains("has partitions 0 to 1, not 7"));
    failure(&["t", "--into", "t", "--into-profile", "none"], 2);
    let nobody = Home::new();
    nobody.failure(&["replay", "t"], 2);
}

#[test]
fn ctrl_c_ends_a_replay_with_its_count() {
    let dev = with_ten();
    let mut replay = dev.home.spawn(&["replay", "t", "--speed", "0.001"]);
    assert_eq!(replay.line(), "0");
    replay.signal(Signal::INT);
    let ended = replay.end();
    assert_eq!(ended.status.code(), Some(130));
    let told = text(&ended.stderr);
    assert!(told.starts_with("1 record, interrupted; 0 ms in "), "{told}");
}

#[test]
fn a_reader_that_leaves_ends_a_replay_though_nothing_is_due() {
    let dev = with_ten();
    let mut replay = dev.home.spawn(&["replay", "t", "--speed", "0.00001"]);
    assert_eq!(replay.line(), "0");
    replay.close_stdout();
    let ended = replay.end();
    assert_eq!((ended.status.code(), text(&ended.stderr)), (Some(0), String::new()));
}
