//! Reports for tests.

use super::report::{
    Bucket, FORMAT, Flow, Latency, LatencyKind, Machine, Process, Report, Run, Scenario, Second, Settings,
    Summary, Verification,
};

/// Settings of a produce of three seconds, five times.
pub fn settings() -> Settings {
    Settings {
        scenario: Scenario::Produce,
        broker: None,
        producers: 1,
        consumers: 0,
        partitions: 8,
        replicas: 1,
        topic_config: std::collections::BTreeMap::new(),
        sync: "always".to_owned(),
        cipher: "AES_128_GCM".to_owned(),
        record_size: "1024".to_owned(),
        record_size_mean: 1024.0,
        keys: 0,
        batch_bytes: 262_144,
        linger_ms: 0.5,
        in_flight: None,
        compression: "none".to_owned(),
        acks: "all".to_owned(),
        rate: None,
        duration_seconds: Some(3.0),
        count: None,
        prefill: 0,
        page_cache_warm_up_bytes: 0,
        warm_up_seconds: 1.0,
        verify: true,
        repeat: 5,
        seed: 7,
    }
}

/// A report with one repetition for each rate (records a second).
pub fn report(title: &str, rates: &[f64]) -> Report {
    Report {
        format: FORMAT,
        version: "0.1.0".to_owned(),
        started_at: 1_795_363_200_000,
        title: title.to_owned(),
        settings: settings(),
        machine: Machine {
            cpu: "A processor".to_owned(),
            cores: 2,
            memory_bytes: 8 << 30,
            os: "Linux 6.1".to_owned(),
            file_system: Some("ext4".to_owned()),
            is_shared: true,
        },
        runs: rates.iter().map(|rate| run(*rate)).collect(),
        summary: Summary { is_clean: Some(true), ..Summary::default() },
    }
}

/// One of three seconds.
pub fn run(rate: f64) -> Run {
    let process = Process {
        cpu_seconds: 1.5,
        cpu_seconds_per_gb: Some(1.25),
        memory_bytes_max: 200 << 20,
        anonymous_bytes_max: Some(50 << 20),
    };
    Run {
        seconds: 3.0,
        produced: Some(Flow {
            records: (rate * 3.0) as u64,
            bytes: (rate * 3.0) as u64 * 1024,
            records_per_second: rate,
            bytes_per_second: rate * 1024.0,
        }),
        consumed: None,
        latencies: vec![latency()],
        timeline: (1..=3).map(|at| second(f64::from(at), rate)).collect(),
        client: process,
        broker: Some(process),
        syncs: Some(300),
        syncs_per_record: Some(0.01),
        syncs_per_batch: Some(0.9),
        failed: 0,
        verification: Some(Verification { records: 1, is_clean: true, ..Verification::default() }),
    }
}

fn second(at: f64, rate: f64) -> Second {
    Second {
        at,
        produced_records: rate as u64,
        produced_bytes: rate as u64 * 1024,
        acknowledgement_p50_us: Some(500.0),
        acknowledgement_p99_us: Some(2_500.0),
        client_cpu_seconds: 0.5,
        broker_cpu_seconds: Some(0.75),
        broker_memory_bytes: Some(190 << 20),
        syncs: Some(100),
        ..Second::default()
    }
}

fn latency() -> Latency {
    let bucket = |(upper_us, count)| Bucket { upper_us, count };
    Latency {
        kind: LatencyKind::Acknowledgement,
        is_corrected: false,
        count: 1_000,
        min_us: 100.0,
        mean_us: 600.0,
        p50_us: 500.0,
        p90_us: 1_000.0,
        p99_us: 2_500.0,
        p999_us: 9_000.0,
        p9999_us: 20_000.0,
        max_us: 20_000.0,
        buckets: [(500.0, 500), (1_000.0, 400), (2_500.0, 90), (9_000.0, 9), (20_000.0, 1)]
            .map(bucket)
            .to_vec(),
    }
}
