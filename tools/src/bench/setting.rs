//! What was asked for and where it ran, named for people; and what of it differs between reports.

use quire_protocol::limits;

use crate::output;

use super::quantity;
use super::report::{Machine, Report, Scenario, Settings};

/// A name and its value for people.
pub type Row = (&'static str, String);

/// Every setting, in the order in which one asks for them.
pub fn settings(settings: &Settings) -> Vec<Row> {
    let flat_out = || "flat out".to_owned();
    let of_rate = |rate: f64| format!("{} records/s", quantity::count(rate));
    let bytes = |count: u64| quantity::memory(count as f64);
    vec![
        ("Scenario", scenario(settings.scenario).to_owned()),
        ("Broker", settings.broker.clone().unwrap_or_else(|| started(settings.replicas))),
        ("Producers", settings.producers.to_string()),
        ("Consumers", settings.consumers.to_string()),
        ("Partitions", settings.partitions.to_string()),
        ("Replicas", settings.replicas.to_string()),
        ("Topic settings", topic_settings(settings)),
        ("Sync", settings.sync.clone()),
        ("Cipher", settings.cipher.clone()),
        ("Acks", settings.acks.clone()),
        ("Record size", record_size(settings)),
        ("Keys", if settings.keys == 0 { "none".to_owned() } else { output::thousands(settings.keys) }),
        ("Batch at most", bytes(settings.batch_bytes)),
        ("Linger", quantity::latency(settings.linger_ms * 1e3)),
        ("In flight", settings.in_flight.map_or_else(in_memory, in_flight)),
        ("Compression", settings.compression.clone()),
        ("Rate", settings.rate.map_or_else(flat_out, of_rate)),
        ("Length", length(settings)),
        ("Written before", written_before(settings)),
        ("Warm-up", warm_up(settings)),
        ("Verified", if settings.verify { "every record" } else { "no" }.to_owned()),
        ("Repetitions", settings.repeat.to_string()),
        ("Seed", settings.seed.to_string()),
    ]
}

fn topic_settings(settings: &Settings) -> String {
    let given = settings.topic_config.iter().map(|(key, value)| format!("{key} {value}"));
    let given: Vec<_> = given.collect();
    if given.is_empty() { "as by default".to_owned() } else { given.join(", ") }
}

/// The benchmark's own.
fn started(replicas: u32) -> String {
    match replicas {
        1 => "started for the benchmark".to_owned(),
        brokers => format!("a cluster of {brokers}, started for the benchmark"),
    }
}

/// Everything known of the machine.
pub fn machine(machine: &Machine) -> Vec<Row> {
    vec![
        ("Processor", machine.cpu.clone()),
        ("Cores in use", machine.cores.to_string()),
        ("Memory", quantity::memory(machine.memory_bytes as f64)),
        ("System", machine.os.clone()),
        ("File system", machine.file_system.clone().unwrap_or_else(|| "not known".to_owned())),
        (
            "Client and broker",
            if machine.is_shared { "share this machine" } else { "on machines of their own" }.to_owned(),
        ),
    ]
}

/// The command line that asks for the same again.
pub fn command(settings: &Settings) -> String {
    let mut words = vec!["quire bench".to_owned(), scenario(settings.scenario).to_owned()];
    let mut flag = |name: &str, value: &dyn std::fmt::Display| {
        words.push(format!("--{name} {}", output::quoted(&value.to_string())));
    };
    flag("producers", &settings.producers);
    if settings.scenario != Scenario::Produce {
        flag("consumers", &settings.consumers);
    }
    flag("partitions", &settings.partitions);
    flag("replicas", &settings.replicas);
    for (key, value) in &settings.topic_config {
        flag("config", &format!("{key}={value}"));
    }
    flag("sync", &settings.sync);
    flag("cipher", &settings.cipher.to_lowercase().replace('_', "-"));
    flag("acks", &settings.acks);
    flag("record-size", &settings.record_size);
    flag("keys", &settings.keys);
    flag("batch-bytes", &settings.batch_bytes);
    flag("linger", &format!("{}ms", settings.linger_ms));
    flag("compression", &settings.compression);
    if let Some(records) = settings.in_flight {
        flag("in-flight", &records);
    }
    if let Some(rate) = settings.rate {
        flag("rate", &rate);
    }
    match (settings.duration_seconds, settings.count, settings.scenario) {
        (Some(seconds), ..) => flag("duration", &format!("{seconds}s")),
        (None, Some(count), Scenario::Consume) => flag("prefill", &count),
        (None, Some(count), _) => flag("count", &count),
        (None, None, _) => {}
    }
    let is_told = settings.scenario == Scenario::Consume && settings.duration_seconds.is_none();
    if settings.prefill > 0 && !is_told {
        flag("prefill", &settings.prefill);
    }
    flag("warm-up", &format!("{}s", settings.warm_up_seconds));
    if settings.page_cache_warm_up_bytes > 0 {
        flag("page-cache-warm-up", &settings.page_cache_warm_up_bytes);
    }
    flag("repeat", &settings.repeat);
    flag("seed", &settings.seed);
    let is_cold = settings.broker.is_none() && settings.page_cache_warm_up_bytes == 0;
    let switches = [
        (is_cold, "--no-page-cache-warm-up"),
        (settings.verify, "--verify"),
        (settings.broker.is_some(), "--cluster"),
    ];
    words.extend(switches.iter().filter(|(is_on, _)| *is_on).map(|(_, switch)| (*switch).to_owned()));
    words.join(" ")
}

fn written_before(settings: &Settings) -> String {
    match settings.prefill {
        0 => "nothing".to_owned(),
        records => output::counted(records, "record"),
    }
}

/// A scenario as the command line names it.
pub fn scenario(scenario: Scenario) -> &'static str {
    match scenario {
        Scenario::Produce => "produce",
        Scenario::Consume => "consume",
        Scenario::EndToEnd => "end-to-end",
        Scenario::Mixed => "mixed",
    }
}

/// The settings whose values are not the same in all reports, each with one value a report.
pub fn differing(reports: &[Report]) -> Vec<(&'static str, Vec<String>)> {
    let columns: Vec<_> = reports.iter().map(|report| settings(&report.settings)).collect();
    differing_rows(&columns)
}

/// What makes the figures of these reports hard to set side by side; empty where nothing does.
pub fn warnings(reports: &[Report]) -> Vec<String> {
    let columns: Vec<_> = reports.iter().map(|report| machine(&report.machine)).collect();
    let machines: Vec<_> =
        differing_rows(&columns).into_iter().map(|(name, _)| name.to_lowercase()).collect();
    let mut warnings = Vec::new();
    if !machines.is_empty() {
        warnings.push(format!("the machines differ: {}", machines.join(", ")));
    }
    let mut versions: Vec<_> = reports.iter().map(|report| report.version.as_str()).collect();
    versions.sort_unstable();
    versions.dedup();
    if versions.len() > 1 {
        warnings.push(format!("the versions of Quire differ: {}", versions.join(", ")));
    }
    let sizes = reports.windows(2).any(|pair| pair[0].settings.record_size != pair[1].settings.record_size);
    if sizes {
        warnings.push("the record sizes differ: compare bytes a second, not records a second".to_owned());
    }
    let latencies = || reports.iter().flat_map(|report| &report.runs).flat_map(|run| &run.latencies);
    if latencies().any(|latency| latency.is_corrected) && latencies().any(|latency| !latency.is_corrected) {
        warnings.push(
            "latencies begin at different instants: some when the schedule wanted the record sent, some when it was sent"
                .to_owned(),
        );
    }
    warnings
}

/// The names, kept out of `columns` where every column says the same.
fn differing_rows(columns: &[Vec<Row>]) -> Vec<(&'static str, Vec<String>)> {
    let Some(first) = columns.first() else { return Vec::new() };
    let values = |index: usize| columns.iter().filter_map(move |rows| Some(rows.get(index)?.1.clone()));
    let named = first.iter().enumerate().map(|(index, row)| (row.0, values(index).collect::<Vec<_>>()));
    named.filter(|(_, values)| values.iter().any(|value| *value != values[0])).collect()
}

fn record_size(settings: &Settings) -> String {
    match settings.record_size.parse::<u64>() {
        Ok(size) => format!("{} B", output::thousands(size)),
        Err(_) => format!("{} B, mean {} B", settings.record_size, settings.record_size_mean.round()),
    }
}

fn in_flight(records: u32) -> String {
    output::counted(u64::from(records), "record")
}

/// What bounds a producer that nothing else does.
fn in_memory() -> String {
    format!("what {} hold", quantity::memory(limits::PRODUCER_MEMORY_BYTES_DEFAULT as f64))
}

fn length(settings: &Settings) -> String {
    match (settings.count, settings.duration_seconds) {
        (Some(count), _) => output::counted(count, "record"),
        (None, Some(seconds)) => quantity::latency(seconds * 1e6),
        (None, None) => "until it was stopped".to_owned(),
    }
}

fn warm_up(settings: &Settings) -> String {
    let load = quantity::latency(settings.warm_up_seconds * 1e6);
    match settings.page_cache_warm_up_bytes {
        0 => format!("{load} of load"),
        bytes => format!("{load} of load, {} of memory made ready", quantity::memory(bytes as f64)),
    }
}

#[cfg(test)]
mod tests {
    use clap::FromArgMatches;

    use super::*;
    use crate::args::{Cli, Command};
    use crate::bench::{BenchCommand, sample};

    #[test]
    fn the_command_asks_for_the_same_again() {
        let settings = Settings { rate: Some(10_000.0), in_flight: Some(64), ..sample::settings() };
        assert_eq!(
            command(&settings),
            "quire bench produce --producers 1 --partitions 8 --replicas 1 --sync always --cipher aes-128-gcm \
             --acks all --record-size 1024 --keys 0 --batch-bytes 262144 --linger 0.5ms --compression none \
             --in-flight 64 --rate 10000 --duration 3s --warm-up 1s --repeat 5 --seed 7 --no-page-cache-warm-up \
             --verify"
        );
        let consume = Settings {
            scenario: Scenario::Consume,
            duration_seconds: None,
            count: Some(500),
            broker: Some("localhost:9440".to_owned()),
            page_cache_warm_up_bytes: 1 << 30,
            ..sample::settings()
        };
        let command = command(&consume);
        assert!(
            command.contains("consume --producers 1 --consumers 0") && command.contains("--prefill 500"),
            "{command}"
        );
        assert!(command.contains("--page-cache-warm-up 1073741824"), "{command}");
        assert!(command.ends_with("--verify --cluster"), "{command}");
    }

    #[test]
    fn the_command_is_read_as_the_settings_it_was_made_from() {
        for line in [
            "produce --page-cache-warm-up 1GiB",
            "produce --producers 3 --partitions 7 --sync interval --cipher chacha20-poly1305 --acks leader \
             --record-size 100..2000 --keys 50 --batch-bytes 1MiB --linger 500us -z zstd --in-flight 64 \
             --rate 12345.6 --duration 1500ms --warm-up 0.25 --no-page-cache-warm-up --repeat 5 --seed 9",
            "produce --record-size 100:9,10000:1 --count 12345 --page-cache-warm-up 0 --verify",
            "consume --producers 2 --partitions 8 --consumers 8 --no-page-cache-warm-up",
            "consume --count 500 --no-page-cache-warm-up",
            "consume --prefill 500 --duration 2m --no-page-cache-warm-up",
            "end-to-end --rate 10000 --verify --cipher aes-256-gcm --no-page-cache-warm-up",
            "mixed --prefill 3000 --count 2000 --no-page-cache-warm-up",
            "mixed --cluster --replicas 3 --config retention.bytes=1000 --duration 7",
        ] {
            let asked = asked_for(&format!("quire bench {line}"));
            assert_eq!(asked_for(&command(&asked)), asked, "{line}");
        }
    }

    /// The settings that a command line asks for; none of its words needs a shell's quotes.
    fn asked_for(line: &str) -> Settings {
        let read = crate::args::command().try_get_matches_from(line.split_whitespace());
        let cli = read.and_then(|matches| Cli::from_arg_matches(&matches)).expect(line);
        let (scenario, args) = match cli.command {
            Command::Bench(BenchCommand::Produce(args)) => (Scenario::Produce, args),
            Command::Bench(BenchCommand::Consume(args)) => (Scenario::Consume, args),
            Command::Bench(BenchCommand::EndToEnd(args)) => (Scenario::EndToEnd, args),
            Command::Bench(BenchCommand::Mixed(args)) => (Scenario::Mixed, args),
            other => panic!("{line} is read as {other:?}"),
        };
        let broker = args.cluster.then(|| "localhost:9440".to_owned());
        let mut plans = args.plans(scenario, broker).expect(line);
        plans.remove(0).settings
    }

    #[test]
    fn a_command_of_a_foreign_report_is_safe_to_paste() {
        let settings = Settings { sync: "always; rm -r '$HOME'".to_owned(), ..sample::settings() };
        let command = command(&settings);
        assert!(command.contains(r"--sync 'always; rm -r '\''$HOME'\'''"), "{command}");
    }

    #[test]
    fn only_what_differs_is_told_apart() {
        let a = sample::report("a", &[1.0]);
        let mut b = a.clone();
        assert!(differing(&[a.clone(), b.clone()]).is_empty());
        b.settings.sync = "interval".to_owned();
        b.settings.rate = Some(2_000.0);
        assert_eq!(
            differing(&[a.clone(), b, a]),
            [
                ("Sync", ["always", "interval", "always"].map(str::to_owned).to_vec()),
                ("Rate", ["flat out", "2k records/s", "flat out"].map(str::to_owned).to_vec()),
            ]
        );
    }

    #[test]
    fn other_machines_versions_and_instants_are_warned_of() {
        let a = sample::report("a", &[1.0]);
        let mut b = a.clone();
        assert!(warnings(&[a.clone(), b.clone()]).is_empty());
        b.machine.cores = 64;
        b.version = "9.9.9".to_owned();
        b.runs[0].latencies[0].is_corrected = true;
        let warnings = warnings(&[a.clone(), b, a]);
        assert_eq!(warnings.len(), 3, "{warnings:?}");
        assert_eq!(warnings[0], "the machines differ: cores in use");
        assert_eq!(warnings[1], "the versions of Quire differ: 0.1.0, 9.9.9");
        assert!(warnings[2].starts_with("latencies begin at different instants"));
        let a = sample::report("a", &[1.0]);
        let mut b = a.clone();
        b.settings.record_size = "65536".to_owned();
        assert_eq!(
            super::warnings(&[a, b]),
            ["the record sizes differ: compare bytes a second, not records a second"]
        );
    }
}
