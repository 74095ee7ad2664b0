//! What was measured in one line: every setting that decides the figure.

use quire_protocol::limits;

use super::report::{Scenario, Settings};
use super::{quantity, remark};
use crate::output::{counted, thousands};

/// The settings as a title.
pub fn of(settings: &Settings) -> String {
    let scenario = match settings.scenario {
        Scenario::Produce => "produce",
        Scenario::Consume => "consume",
        Scenario::EndToEnd => "end to end",
        Scenario::Mixed => "mixed",
    };
    let is_produced = settings.scenario != Scenario::Consume;
    let mut parts = Vec::new();
    parts.extend(is_produced.then(|| counted(u64::from(settings.producers), "producer")));
    parts.extend((settings.consumers > 0).then(|| counted(u64::from(settings.consumers), "consumer")));
    parts.push(counted(u64::from(settings.partitions), "partition"));
    parts.extend((settings.replicas > 1).then(|| format!("{} replicas", settings.replicas)));
    parts.push(format!("{} records", size(&settings.record_size)));
    parts.extend((settings.keys > 0).then(|| counted(settings.keys, "key")));
    parts.push(format!("sync {}", settings.sync));
    parts.push(settings.cipher.replace('_', "-"));
    parts.push(format!("batches to {}", quantity::memory(settings.batch_bytes as f64)));
    parts.extend((settings.linger_ms > 0.0).then(|| format!("linger {} ms", settings.linger_ms)));
    parts.extend(settings.topic_config.iter().map(|(key, value)| format!("{key} {value}")));
    parts.extend((settings.compression != "none").then(|| settings.compression.clone()));
    if is_produced {
        parts.push(format!("acks {}", settings.acks));
        parts.extend(in_flight(settings));
        parts.push(match settings.rate {
            Some(rate) => format!("{} records/s on schedule", thousands(rate.round() as u64)),
            None => "flat out".to_owned(),
        });
    }
    let length = match (settings.duration_seconds, settings.count) {
        (Some(seconds), _) => format!("{seconds} s"),
        (None, count) => counted(count.unwrap_or(0), "record"),
    };
    parts.push(if settings.repeat > 1 { format!("{} x {length}", settings.repeat) } else { length });
    format!("{scenario}: {}", parts.join(", "))
}

/// What bounds the records in flight, where it decides the latency.
fn in_flight(settings: &Settings) -> Option<String> {
    let memory = || quantity::memory(limits::PRODUCER_MEMORY_BYTES_DEFAULT as f64);
    match settings.in_flight {
        Some(records) => Some(format!("{} in flight", thousands(u64::from(records)))),
        None => remark::is_queued(settings).then(|| format!("{} in flight", memory())),
    }
}

/// `1 KiB`, or a distribution as it was written.
pub fn size(record_size: &str) -> String {
    record_size.parse().map_or_else(|_| record_size.to_owned(), quantity::memory)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::bench::sample;

    #[test]
    fn the_title_has_every_setting_that_decides_the_figure() {
        let mut settings = sample::settings();
        settings.linger_ms = 0.0;
        let plain = of(&settings);
        settings = Settings {
            scenario: Scenario::EndToEnd,
            consumers: 2,
            partitions: 16,
            replicas: 3,
            topic_config: BTreeMap::from([("segment.bytes".into(), "1048576".into())]),
            record_size: "100..2000".into(),
            keys: 1000,
            linger_ms: 5.0,
            compression: "zstd".into(),
            in_flight: Some(4096),
            rate: Some(10_000.0),
            duration_seconds: None,
            count: Some(2000),
            repeat: 1,
            ..settings
        };
        let title = of(&settings);
        for part in [
            "end to end: ",
            "2 consumers",
            "16 partitions",
            "segment.bytes 1048576",
            "3 replicas",
            "100..2000 records",
            "1,000 keys",
            "linger 5 ms",
            "zstd",
            "4,096 in flight",
            "10,000 records/s on schedule",
            ", 2,000 records",
        ] {
            assert!(title.contains(part), "{part}: {title}");
            assert!(!plain.contains(part), "{part}: {plain}");
        }
        assert!(title.contains("sync always, AES-128-GCM, batches to 256 KiB"), "{title}");
        assert!(plain.contains("acks all, 64 MiB in flight, flat out"), "{plain}");
        let consume = of(&Settings { scenario: Scenario::Consume, rate: None, ..settings });
        for part in ["producer", "acks", "flat out", "in flight"] {
            assert!(!consume.contains(part), "{part} decides what was written before: {consume}");
        }
    }
}
