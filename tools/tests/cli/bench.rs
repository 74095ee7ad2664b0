//! `quire bench`: tiny benchmarks of every kind, whose figures must agree with each other.

use std::path::Path;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::{Dev, Home, path, text};

/// Short enough for a test.
const TINY: &[&str] =
    &["--count", "2000", "--repeat", "1", "--warm-up", "0", "--no-page-cache-warm-up", "--json"];

fn bench(home: &Home, flags: &[&str]) -> Value {
    let answers = home.json(&[&["bench"], flags, TINY].concat());
    let [answer] = <[Value; 1]>::try_from(answers).expect("one object");
    answer
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("a number, not {value}"))
}

fn sum(items: &Value, field: &str) -> u64 {
    items.as_array().expect("a list").iter().map(|item| item[field].as_u64().expect(field)).sum()
}

/// What a repetition says in one place it must say in all.
fn check(run: &Value) {
    let seconds = number(&run["seconds"]);
    for (flow, in_seconds) in [("produced", "produced_records"), ("consumed", "consumed_records")] {
        let records = run[flow]["records"].as_u64().unwrap_or(0);
        assert_eq!(sum(&run["timeline"], in_seconds), records, "{flow}");
        if records > 0 {
            let rate = number(&run[flow]["records_per_second"]);
            assert!((rate * seconds / records as f64 - 1.0).abs() < 1e-6, "{flow}: {rate}");
        }
    }
    for latency in run["latencies"].as_array().expect("a list") {
        let flow = if latency["kind"] == "acknowledgement" { "produced" } else { "consumed" };
        assert_eq!(latency["count"], run[flow]["records"], "{flow}");
        assert_eq!(Some(sum(&latency["buckets"], "count")), latency["count"].as_u64());
        let order = ["min_us", "p50_us", "p90_us", "p99_us", "p999_us", "p9999_us", "max_us"];
        let values = order.map(|field| number(&latency[field]));
        assert!(values[0] > 0.0 && values.is_sorted(), "{values:?}");
    }
}

fn latency_kinds(run: &Value) -> Vec<&str> {
    let latencies = run["latencies"].as_array().expect("a list").iter();
    latencies.map(|latency| latency["kind"].as_str().expect("a word")).collect()
}

/// No broker, no data, no topic is left.
fn assert_nothing_left(home: &Home) {
    let left: Vec<_> =
        std::fs::read_dir(home.path()).expect("it is there").flatten().map(|e| e.file_name()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn produce_counts_every_record_once() {
    let home = Home::new();
    let report = bench(&home, &["produce", "--verify"]);
    let run = &report["runs"][0];
    check(run);
    assert_eq!(run["produced"]["records"], 2000);
    assert_eq!(run["produced"]["bytes"], 2000 * 1024);
    assert_eq!((&run["consumed"], &run["failed"]), (&Value::Null, &0.into()));
    assert_eq!(latency_kinds(run), ["acknowledgement"]);
    assert_eq!(run["verification"]["records"], 2000);
    assert_eq!(run["verification"]["is_clean"], true);
    assert_eq!(report["summary"]["is_clean"], true);
    let syncs = run["syncs"].as_u64().expect("the broker's metrics were read");
    assert!((1..=2000).contains(&syncs), "{syncs}");
    assert!(number(&run["syncs_per_batch"]) <= 1.0);
    assert!(number(&run["broker"]["memory_bytes_max"]) > 0.0);
    assert_eq!(report["settings"]["sync"], "always");
    assert_eq!(report["title"].as_str().map(|title| title.contains("1 KiB records")), Some(true));
    assert_nothing_left(&home);
}

#[test]
fn consume_reads_what_was_written_before_in_every_repetition() {
    let home = Home::new();
    let flags = ["bench", "consume", "--partitions", "4", "--consumers", "2", "--verify", "--repeat", "2"];
    let tiny = ["--count", "2000", "--warm-up", "0", "--no-page-cache-warm-up", "--json"];
    let answers = home.json(&[&flags[..], &tiny].concat());
    let runs = answers[0]["runs"].as_array().expect("a list");
    assert_eq!(runs.len(), 2);
    for run in runs {
        check(run);
        assert_eq!((&run["consumed"]["records"], &run["produced"]), (&2000.into(), &Value::Null));
        assert!(latency_kinds(run).is_empty(), "nothing tells how old a record should be");
        assert_eq!(run["verification"]["is_clean"], true);
    }
    assert_nothing_left(&home);
}

#[test]
fn end_to_end_times_every_record_until_its_consumer_has_it() {
    let home = Home::new();
    let report =
        bench(&home, &["end-to-end", "--rate", "4000", "--verify", "--partitions", "2", "--keys", "9"]);
    let run = &report["runs"][0];
    check(run);
    assert_eq!((&run["produced"]["records"], &run["consumed"]["records"]), (&2000.into(), &2000.into()));
    assert_eq!(latency_kinds(run), ["acknowledgement", "end_to_end"]);
    assert!(
        run["latencies"].as_array().expect("a list").iter().all(|latency| latency["is_corrected"] == true)
    );
    let seconds = number(&run["seconds"]);
    assert!(seconds > 0.49, "2,000 records at 4,000 a second took {seconds} s");
    assert!(run["verification"]["chain_links"].as_u64().is_some_and(|links| links > 0));
    assert_eq!(run["verification"]["is_clean"], true);
    assert_nothing_left(&home);
}

#[test]
fn mixed_produces_while_what_was_there_is_read() {
    let report = bench(&Home::new(), &["mixed", "--prefill", "3000", "--verify", "--record-size", "100"]);
    let run = &report["runs"][0];
    check(run);
    assert_eq!(run["produced"]["records"], 2000);
    assert_eq!(run["verification"]["records"], 5000);
    assert_eq!(report["settings"]["prefill"], 3000);
    assert_eq!(latency_kinds(run), ["acknowledgement"]);
}

#[test]
fn several_producers_keys_sizes_and_a_compression_are_all_checked() {
    for cipher in ["aes-256-gcm", "chacha20-poly1305"] {
        let flags =
            ["produce", "--producers", "3", "--partitions", "4", "--keys", "50", "--record-size", "24..3000"];
        let more =
            ["--compression", "lz4", "--linger", "1ms", "--sync", "interval", "--verify", "--cipher", cipher];
        let report = bench(&Home::new(), &[&flags[..], &more].concat());
        let run = &report["runs"][0];
        check(run);
        assert_eq!(run["produced"]["records"], 2000);
        assert_eq!(run["verification"]["is_clean"], true, "{run}");
        assert_eq!(report["settings"]["cipher"], cipher.to_uppercase().replace('-', "_"));
    }
}

#[test]
fn a_matrix_is_a_report_for_each_combination_and_one_table() {
    let flags = ["bench", "produce", "--matrix", "--sync", "always,interval", "--record-size", "100,1KiB"];
    let tiny = ["--count", "200", "--repeat", "1", "--warm-up", "0", "--no-page-cache-warm-up"];
    let home = Home::new();
    let reports = home.json(&[&flags[..], &tiny, &["--json"]].concat());
    let of = |report: &Value| {
        let settings = &report["settings"];
        format!(
            "{} {}",
            settings["sync"].as_str().expect("a word"),
            settings["record_size"].as_str().expect("a size")
        )
    };
    let combinations: Vec<_> = reports.iter().map(of).collect();
    assert_eq!(combinations, ["always 100", "always 1024", "interval 100", "interval 1024"]);
    let table = home.stdout(&[&flags[..], &tiny].concat());
    let [_, rows @ .., remark] = &*table.lines().collect::<Vec<_>>() else { panic!("{table}") };
    assert_eq!(rows.len(), 4, "{table}");
    assert!(rows.iter().all(|line| line.contains("AES-128-GCM")), "{table}");
    assert!(remark.starts_with("flat out: "), "{table}");
}

#[test]
fn a_combination_that_fails_takes_no_other_along() {
    let dev = Dev::start();
    let page = dev.home.path().join("page.html");
    // One broker can not keep three replicas.
    let flags = ["bench", "produce", "--cluster", "--matrix", "--replicas", "3,1", "--count", "200"];
    let more = ["--repeat", "1", "--warm-up", "0", "--report", path(&page)];
    let ran = dev.home.quire(&[&flags[..], &more].concat()).assert().code(1);
    let (out, err) = (text(&ran.get_output().stdout), text(&ran.get_output().stderr));
    let rows: Vec<_> = out.lines().skip(1).take(2).collect();
    assert!(rows[0].contains(" 1 KiB  ") && !rows[0].contains('!'), "what was measured: {out}");
    assert!(rows[1].contains("! not measured: ") && rows[1].contains("INVALID_REPLICA_COUNT"), "{out}");
    assert!(err.contains("error: "), "{err}");
    assert!(
        std::fs::read_to_string(&page)
            .expect("it was written")
            .contains("<b class=\"warn\">Not measured</b>")
    );
    assert_eq!(dev.home.stdout(&["topic", "list"]), "");
}

#[test]
fn three_replicas_are_measured_on_a_cluster_of_three_brokers() {
    let home = Home::new();
    let report = bench(&home, &["produce", "--replicas", "3", "--partitions", "3", "--verify"]);
    let run = &report["runs"][0];
    check(run);
    assert!(report["title"].as_str().expect("a title").contains(", 3 replicas, "), "{report}");
    // All three sync what is acknowledged.
    assert!(run["syncs"].as_u64() > Some(2), "{run}");
    assert!(number(&run["broker"]["cpu_seconds"]) > 0.0, "{run}");
}

#[test]
fn people_get_a_line_for_each_repetition_a_table_and_a_page() {
    let home = Home::new();
    let page = home.path().join("page.html");
    let flags = ["bench", "produce", "--count", "500", "--repeat", "2", "--warm-up", "0"];
    let more = ["--page-cache-warm-up", "1MiB", "--report", path(&page)];
    let ran = home.quire(&[&flags[..], &more].concat()).assert().success();
    let (out, err) = (text(&ran.get_output().stdout), text(&ran.get_output().stderr));
    assert!(out.starts_with("produce: 1 producer, 1 partition, 1 KiB records, sync always"), "{out}");
    for row in ["produced", "acknowledged p50", "CPU, client", "CPU, broker", "memory, broker", "syncs"] {
        assert!(out.contains(&format!("\n {row} ")), "{row}: {out}");
    }
    assert!(err.contains("\n  1/2  produced ") && err.contains("\n  2/2  produced "), "{err}");
    let compared = home.json(&["bench", "compare", path(&page), "--json"]);
    assert_eq!(compared[0]["reports"][0]["repetitions"], 2);
}

#[test]
fn a_running_broker_is_loaded_and_left_as_it_was() {
    let dev = Dev::start();
    let admin = dev.ready["admin"].as_str().expect("it has one").to_owned();
    let report = bench(&dev.home, &["produce", "--cluster", "--admin", &admin, "--verify"]);
    let run = &report["runs"][0];
    check(run);
    assert_eq!(report["settings"]["broker"], dev.ready["address"]);
    assert_eq!(report["machine"]["is_shared"], true);
    assert!(number(&run["broker"]["memory_bytes_max"]) > 0.0 && run["syncs"].as_u64() > Some(0), "{run}");
    assert_eq!(dev.home.stdout(&["topic", "list"]), "");
    let flags = ["bench", "produce", "--cluster", "--count", "100", "--repeat", "1", "--warm-up", "0"];
    let out = dev.home.stdout(&flags);
    assert!(
        out.contains("are not known: name it with --admin URL\none repetition: no spread is known\n"),
        "{out}"
    );
}

#[test]
fn what_does_not_go_together_is_refused_with_a_way_out() {
    let home = Home::new();
    for (flags, hint) in [
        (&["consume", "--consumers", "2"][..], "--partitions 2"),
        (&["produce", "--consumers", "2"], "quire bench end-to-end"),
        (&["consume", "--count", "5", "--prefill", "9"], "--duration"),
        (&["produce", "--acks", "none", "--verify"], "--acks leader"),
        (&["consume", "--acks", "none"], "--acks leader"),
        (&["produce", "--sync", "always,interval"], "add --matrix"),
        (&["produce", "--profile", "dev"], "add --cluster"),
        (&["produce", "--verify", "--record-size", "10"], "--record-size 24 or more"),
        (&["consume", "--rate", "5"], "quire bench mixed"),
        (&["produce", "--record-size", "many"], "write 100, 64KiB or 2GB"),
        (&["produce", "--linger", "5"], "5ms"),
    ] {
        let failure = home.failure(&[&["bench"], flags].concat(), 2);
        assert!(failure.contains(hint), "{flags:?}: {failure}");
    }
    assert_nothing_left(&home);
}

#[test]
fn a_folder_that_is_not_there_is_named() {
    let failure = Home::new().failure(&["bench", "produce", "--data", "/nowhere/at/all"], 1);
    assert!(failure.contains("/nowhere/at/all") && failure.contains("--data DIR"), "{failure}");
}

#[test]
fn ctrl_c_ends_a_benchmark_and_removes_what_it_made() {
    let home = Home::new();
    let flags = ["bench", "produce", "--duration", "60s", "--rate", "100", "--no-page-cache-warm-up"];
    let mut running = home.spawn(&[&flags[..], &["--repeat", "1", "--warm-up", "0"]].concat());
    assert!(running.error_line().starts_with("produce: "), "the title comes first");
    assert!(has_data(home.path()), "its broker runs");
    running.signal(Signal::INT);
    assert_eq!(running.end().status.code(), Some(130));
    assert_nothing_left(&home);
}

#[test]
fn a_matrix_that_is_interrupted_shows_what_it_has() {
    let home = Home::new();
    let flags =
        ["bench", "produce", "--matrix", "--sync", "interval,always", "--rate", "100", "--warm-up", "0"];
    let mut running =
        home.spawn(&[&flags[..], &["--duration", "1s", "--repeat", "1", "--no-page-cache-warm-up"]].concat());
    assert!(running.error_line().contains("sync interval"), "the first title");
    assert!(running.error_line().starts_with("  1/1  produced"), "its one repetition");
    assert!(running.error_line().contains("sync always"), "the second title");
    running.signal(Signal::INT);
    let ended = running.end();
    assert_eq!(ended.status.code(), Some(130));
    let out = text(&ended.stdout);
    assert_eq!((out.matches(" interval ").count(), out.matches(" always ").count()), (1, 0), "{out}");
    assert_nothing_left(&home);
}

#[test]
fn a_killed_benchmark_takes_its_broker_along() {
    let home = Home::new();
    let flags = ["bench", "produce", "--duration", "60s", "--rate", "100", "--no-page-cache-warm-up"];
    let mut running = home.spawn(&[&flags[..], &["--repeat", "1", "--warm-up", "0"]].concat());
    assert!(running.error_line().starts_with("produce: "), "the title comes first");
    running.signal(Signal::KILL);
    // The broker holds the other end of this until it has removed its data.
    running.end();
    assert_nothing_left(&home);
}

fn has_data(home: &Path) -> bool {
    std::fs::read_dir(home).expect("it is there").next().is_some()
}
