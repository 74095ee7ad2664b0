//! Help and completions.

use crate::support::{Home, text};

const HELP: &str = "\
Quire: an event log whose acknowledgements are on disk.

Usage: quire <COMMAND>

Start here
  demo         produce, consume and replay 11,045 real departures on a throwaway broker
  dev          run a broker on this machine, everything made for you

Events
  produce      write records from standard input or a file
  consume      read from any offset or time
  replay       play history again: as recorded, N times faster, or flat out
  topic        create, list, describe, alter, delete, reassign
  group        list, describe, explain, reset, delete

Operations
  broker       run a broker from a config file
  cluster      status, token, profile, drain, remove, rebalance
  acl          who may do what
  completions  print completions for a shell

Proof
  drill        kill leaders under load, then account for every record
  bench        measure throughput and latency
  log          inspect or verify a data directory, offline

Everywhere: --profile NAME, -v, --help; --json where the answer is data
Exit codes: 0 done, 1 failed, 2 usage, 3 unreachable, 4 refused, 130 interrupted

New here?  quire demo
";

#[test]
fn the_help_is_one_page_in_groups() {
    for flag in ["--help", "-h"] {
        assert_eq!(Home::new().stdout(&[flag]), HELP);
    }
}

#[test]
fn every_command_has_help_and_says_what_it_takes() {
    for command in [
        "demo",
        "dev",
        "produce",
        "consume",
        "replay",
        "topic",
        "broker",
        "drill",
        "bench",
        "log",
        "completions",
    ] {
        let help = Home::new().stdout(&[command, "--help"]);
        assert!(help.contains("Usage: quire") && help.contains("--profile"), "{command}: {help}");
    }
    let topics = Home::new().stdout(&["topic", "create", "--help"]);
    assert!(topics.contains("retention.ms=3600000"), "{topics}");
}

#[test]
fn without_a_command_the_help_is_a_usage_error() {
    let ran = Home::new().quire(&[]).assert().failure().code(2);
    let err = text(&ran.get_output().stderr);
    assert!(err.contains("quire demo"), "{err}");
}

#[test]
fn completions_name_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let script = Home::new().stdout(&["completions", shell]);
        for command in ["demo", "produce", "consume", "replay", "topic", "verify"] {
            assert!(script.contains(command), "{shell}: {command}");
        }
    }
}

#[test]
fn the_version_is_the_packages() {
    assert_eq!(Home::new().stdout(&["--version"]), format!("quire {}\n", env!("CARGO_PKG_VERSION")));
}

/// The fields of every object in a command's answer, however deep.
fn fields(answer: &serde_json::Value, known: &mut Vec<String>) {
    match answer {
        serde_json::Value::Object(object) => object.iter().for_each(|(name, value)| {
            known.push(name.clone());
            // What users name themselves is not documented field by field.
            if !matches!(name.as_str(), "config" | "overrides") {
                fields(value, known);
            }
        }),
        serde_json::Value::Array(items) => items.iter().for_each(|item| fields(item, known)),
        _ => {}
    }
}

#[test]
fn every_field_of_every_answer_is_documented() {
    let readme =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).expect("it is there");
    let data = Home::new();
    let dev = crate::support::Dev::start_in(Home::new(), &["--data", crate::support::path(data.path())]);
    let mut known = Vec::new();
    fields(&dev.ready, &mut known);
    let home = &dev.home;
    home.pipe(&["topic", "create", "t"], "");
    let [always, interval] = ["always", "interval"].map(crate::bench_compare::fixture);
    for args in [
        &["bench", "compare", &always, &interval, "--json"][..],
        &[
            "bench",
            "end-to-end",
            "--count",
            "50",
            "--repeat",
            "1",
            "--warm-up",
            "0",
            "--no-page-cache-warm-up",
            "--verify",
            "--json",
        ],
        &["produce", "t", "--json"],
        &["consume", "t", "--json"],
        &["replay", "t", "--flat-out", "--json"],
        &["replay", "t", "--dry-run", "--json"],
        &["replay", "t", "--flat-out", "--into", "t", "--json"],
        &["topic", "list", "--json"],
        &["topic", "describe", "t", "--json"],
        &["cluster", "status", "--json"],
        &["acl", "add", "billing", "consume", "--json"],
        &["log", "inspect", crate::support::path(data.path()), "--json"],
        &["log", "verify", crate::support::path(data.path()), "--json"],
        &["topic", "delete", "t", "--json"],
        &["demo", "--json"],
    ] {
        let out = home.pipe(args, "a record\n");
        assert!(!out.is_empty(), "{args:?} answers");
        out.lines().for_each(|line| fields(&serde_json::from_str(line).expect(line), &mut known));
    }
    known.sort_unstable();
    known.dedup();
    let missing: Vec<_> = known.iter().filter(|name| !readme.contains(&format!("`{name}`"))).collect();
    assert!(missing.is_empty(), "tools/README.md does not say what these are: {missing:?}");
}
