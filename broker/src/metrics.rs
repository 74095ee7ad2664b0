//! What the broker counts, under names that dashboards rely on.
//!
//! Each broker has a recorder of its own, so that several in one process do not mix. Handles are looked up once.

use std::sync::Arc;

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Level, Metadata, Recorder, SharedString, Unit};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

/// One metric's name, unit and help.
struct Description {
    name: &'static str,
    unit: Unit,
    help: &'static str,
}

const CONNECTIONS: Description =
    Description { name: "quire_connections", unit: Unit::Count, help: "Client connections that are open." };
const CONNECTIONS_REFUSED: Description = Description {
    name: "quire_connections_refused_total",
    unit: Unit::Count,
    help: "Connections refused because of a limit or a shutdown.",
};
const HANDSHAKES_FAILED: Description = Description {
    name: "quire_handshakes_failed_total",
    unit: Unit::Count,
    help: "Handshakes that failed, mostly for want of an acceptable certificate.",
};
const STREAMS: Description =
    Description { name: "quire_streams", unit: Unit::Count, help: "Streams that are open." };
const PRODUCE_BATCHES: Description =
    Description { name: "quire_produce_batches_total", unit: Unit::Count, help: "Batches acknowledged." };
const PRODUCE_RECORDS: Description = Description {
    name: "quire_produce_records_total",
    unit: Unit::Count,
    help: "Records received in batches that were well-formed.",
};
const PRODUCE_BYTES: Description = Description {
    name: "quire_produce_bytes_total",
    unit: Unit::Bytes,
    help: "Bytes of batches received that were well-formed.",
};
const PRODUCE_SECONDS: Description = Description {
    name: "quire_produce_seconds",
    unit: Unit::Seconds,
    help: "From a whole batch received to its acknowledgement handed to the network.",
};
const PRODUCE_REFUSED: Description = Description {
    name: "quire_produce_refused_total",
    unit: Unit::Count,
    help: "Produce streams ended with an error.",
};
const PRODUCE_MEMORY_FREE: Description = Description {
    name: "quire_produce_memory_free_bytes",
    unit: Unit::Bytes,
    help: "Memory for batches that is not in use.",
};
const REPLICA_FETCHED_BYTES: Description = Description {
    name: "quire_replica_fetched_bytes_total",
    unit: Unit::Bytes,
    help: "Bytes of frames appended that leaders sent.",
};
const COMMITTED_TRUNCATED: Description = Description {
    name: "quire_committed_truncated_total",
    unit: Unit::Count,
    help: "Offsets below the high watermark that were cut because the leader does not have them: lost by an unclean election.",
};
const CHAINS_COMPARED: Description = Description {
    name: "quire_replica_chains_compared_total",
    unit: Unit::Count,
    help: "Times that a follower compared its history with its leader's.",
};
const CHAINS_DIFFERENT: Description = Description {
    name: "quire_replica_chains_different_total",
    unit: Unit::Count,
    help: "Times that a follower's history was not its leader's, so that it was fetched anew.",
};
const CONSUME_BYTES: Description = Description {
    name: "quire_consume_bytes_total",
    unit: Unit::Bytes,
    help: "Bytes of frames sent to consumers.",
};
const CONSUME_COLD_READS: Description = Description {
    name: "quire_consume_cold_reads_total",
    unit: Unit::Count,
    help: "Reads for consumers that had to go to the disk.",
};
const REQUESTS: Description =
    Description { name: "quire_requests_total", unit: Unit::Count, help: "Control requests answered." };
const REQUESTS_FAILED: Description = Description {
    name: "quire_requests_failed_total",
    unit: Unit::Count,
    help: "Control requests answered with an error.",
};
const PARTITIONS: Description =
    Description { name: "quire_partitions", unit: Unit::Count, help: "Partitions on this broker." };
const PARTITIONS_IMPAIRED: Description = Description {
    name: "quire_partitions_impaired",
    unit: Unit::Count,
    help: "Partitions that do not serve everything: damaged, failed, or out of disk space.",
};
const PARTITIONS_CORRUPT: Description = Description {
    name: "quire_partitions_corrupt",
    unit: Unit::Count,
    help: "Partitions whose log is damaged or gone: they take no records until it is restored.",
};
const LOG_BYTES: Description =
    Description { name: "quire_log_bytes", unit: Unit::Bytes, help: "Bytes kept in all partitions." };
const LOG_APPENDED_RECORDS: Description = Description {
    name: "quire_log_appended_records_total",
    unit: Unit::Count,
    help: "Records appended to partitions.",
};
const LOG_APPENDED_BYTES: Description = Description {
    name: "quire_log_appended_bytes_total",
    unit: Unit::Bytes,
    help: "Bytes of frames appended to partitions.",
};
const PRODUCE_DUPLICATES: Description = Description {
    name: "quire_produce_duplicates_total",
    unit: Unit::Count,
    help: "Batches that were in the log already and were answered as they were then.",
};
const LOG_SYNCS: Description =
    Description { name: "quire_log_syncs_total", unit: Unit::Count, help: "Syncs of partitions." };
const LOG_SYNC_SECONDS: Description = Description {
    name: "quire_log_sync_seconds",
    unit: Unit::Seconds,
    help: "How long the disk took to sync a partition.",
};
const SCRUBBED_BYTES: Description = Description {
    name: "quire_scrubbed_bytes_total",
    unit: Unit::Bytes,
    help: "Bytes of partitions read again to find damage, and found intact.",
};
const SCRUB_DAMAGE: Description = Description {
    name: "quire_scrub_damage_total",
    unit: Unit::Count,
    help: "Times that a partition read again was found damaged.",
};
const SHARD_QUEUE_EVENTS: Description = Description {
    name: "quire_shard_queue_events",
    unit: Unit::Count,
    help: "Requests that wait for a shard.",
};
const PROCESS_CPU_SECONDS: Description = Description {
    name: "quire_process_cpu_seconds",
    unit: Unit::Seconds,
    help: "Processor time of the broker's process since its start, user and system.",
};
const PROCESS_MEMORY: Description = Description {
    name: "quire_process_memory_bytes",
    unit: Unit::Bytes,
    help: "Resident memory of the broker's process, mapped files included.",
};
const PROCESS_ANONYMOUS_MEMORY: Description = Description {
    name: "quire_process_anonymous_memory_bytes",
    unit: Unit::Bytes,
    help: "Resident memory of the broker's process without files.",
};
const READY_SECONDS: Description = Description {
    name: "quire_ready_seconds",
    unit: Unit::Seconds,
    help: "From the start of the broker until it served.",
};

/// Upper bounds of the buckets of produce and sync times (seconds): one sync takes a few tenths of a millisecond.
const TIME_BUCKETS: &[f64] =
    &[0.000_25, 0.000_5, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0, 4.0];

/// Handles to everything the broker counts.
pub(crate) struct Metrics {
    handle: PrometheusHandle,
    pub(crate) connections: Gauge,
    pub(crate) connections_refused: Counter,
    pub(crate) handshakes_failed: Counter,
    pub(crate) streams: Gauge,
    pub(crate) produce_batches: Counter,
    pub(crate) produce_records: Counter,
    pub(crate) produce_bytes: Counter,
    pub(crate) produce_seconds: Histogram,
    pub(crate) produce_refused: Counter,
    pub(crate) produce_memory_free: Gauge,
    pub(crate) consume_bytes: Counter,
    pub(crate) consume_cold_reads: Counter,
    pub(crate) requests: Counter,
    pub(crate) requests_failed: Counter,
    pub(crate) partitions: Gauge,
    pub(crate) partitions_impaired: Gauge,
    pub(crate) partitions_corrupt: Gauge,
    pub(crate) log_bytes: Gauge,
    pub(crate) shard_queue_events: Gauge,
    pub(crate) process_cpu_seconds: Gauge,
    pub(crate) process_memory: Gauge,
    pub(crate) process_anonymous_memory: Gauge,
    pub(crate) ready_seconds: Gauge,
    pub(crate) shards: Arc<ShardMetrics>,
}

/// What shards and their flushers count.
#[derive(Debug)]
pub struct ShardMetrics {
    pub(crate) appended_records: Counter,
    pub(crate) appended_bytes: Counter,
    pub(crate) duplicate_batches: Counter,
    pub(crate) fetched_bytes: Counter,
    pub(crate) committed_truncated: Counter,
    pub(crate) syncs: Counter,
    pub(crate) sync_seconds: Histogram,
    pub(crate) scrubbed_bytes: Counter,
    pub(crate) scrub_damage: Counter,
    pub(crate) chains_compared: Counter,
    pub(crate) chains_different: Counter,
}

impl Metrics {
    pub(crate) fn new() -> Metrics {
        let times = [&PRODUCE_SECONDS, &LOG_SYNC_SECONDS];
        let builder = times.into_iter().fold(PrometheusBuilder::new(), |builder, time| {
            let matcher = Matcher::Full(time.name.to_owned());
            builder.set_buckets_for_metric(matcher, TIME_BUCKETS).expect("there are buckets")
        });
        let recorder = builder.build_recorder();
        let registry = Registry(recorder);
        Metrics {
            handle: registry.0.handle(),
            connections: registry.gauge(&CONNECTIONS),
            connections_refused: registry.counter(&CONNECTIONS_REFUSED),
            handshakes_failed: registry.counter(&HANDSHAKES_FAILED),
            streams: registry.gauge(&STREAMS),
            produce_batches: registry.counter(&PRODUCE_BATCHES),
            produce_records: registry.counter(&PRODUCE_RECORDS),
            produce_bytes: registry.counter(&PRODUCE_BYTES),
            produce_seconds: registry.histogram(&PRODUCE_SECONDS),
            produce_refused: registry.counter(&PRODUCE_REFUSED),
            produce_memory_free: registry.gauge(&PRODUCE_MEMORY_FREE),
            consume_bytes: registry.counter(&CONSUME_BYTES),
            consume_cold_reads: registry.counter(&CONSUME_COLD_READS),
            requests: registry.counter(&REQUESTS),
            requests_failed: registry.counter(&REQUESTS_FAILED),
            partitions: registry.gauge(&PARTITIONS),
            partitions_impaired: registry.gauge(&PARTITIONS_IMPAIRED),
            partitions_corrupt: registry.gauge(&PARTITIONS_CORRUPT),
            log_bytes: registry.gauge(&LOG_BYTES),
            shard_queue_events: registry.gauge(&SHARD_QUEUE_EVENTS),
            process_cpu_seconds: registry.gauge(&PROCESS_CPU_SECONDS),
            process_memory: registry.gauge(&PROCESS_MEMORY),
            process_anonymous_memory: registry.gauge(&PROCESS_ANONYMOUS_MEMORY),
            ready_seconds: registry.gauge(&READY_SECONDS),
            shards: Arc::new(ShardMetrics {
                appended_records: registry.counter(&LOG_APPENDED_RECORDS),
                appended_bytes: registry.counter(&LOG_APPENDED_BYTES),
                duplicate_batches: registry.counter(&PRODUCE_DUPLICATES),
                fetched_bytes: registry.counter(&REPLICA_FETCHED_BYTES),
                committed_truncated: registry.counter(&COMMITTED_TRUNCATED),
                syncs: registry.counter(&LOG_SYNCS),
                sync_seconds: registry.histogram(&LOG_SYNC_SECONDS),
                scrubbed_bytes: registry.counter(&SCRUBBED_BYTES),
                scrub_damage: registry.counter(&SCRUB_DAMAGE),
                chains_compared: registry.counter(&CHAINS_COMPARED),
                chains_different: registry.counter(&CHAINS_DIFFERENT),
            }),
        }
    }

    /// Everything in Prometheus's text format.
    pub(crate) fn render(&self) -> String {
        self.handle.render()
    }

    /// Folds what histograms collected into their buckets; to be called every few seconds, or they grow.
    pub(crate) fn upkeep(&self) {
        self.handle.run_upkeep();
    }
}

impl ShardMetrics {
    /// Counts nothing.
    pub fn none() -> Arc<ShardMetrics> {
        Arc::new(ShardMetrics {
            appended_records: Counter::noop(),
            appended_bytes: Counter::noop(),
            duplicate_batches: Counter::noop(),
            fetched_bytes: Counter::noop(),
            committed_truncated: Counter::noop(),
            syncs: Counter::noop(),
            sync_seconds: Histogram::noop(),
            scrubbed_bytes: Counter::noop(),
            scrub_damage: Counter::noop(),
            chains_compared: Counter::noop(),
            chains_different: Counter::noop(),
        })
    }
}

struct Registry(PrometheusRecorder);

const METADATA: Metadata<'static> = Metadata::new("quire", Level::INFO, Some(module_path!()));

impl Registry {
    fn counter(&self, description: &Description) -> Counter {
        let (name, unit, help) = description.parts();
        self.0.describe_counter(name, unit, help);
        self.0.register_counter(&Key::from_static_name(description.name), &METADATA)
    }

    fn gauge(&self, description: &Description) -> Gauge {
        let (name, unit, help) = description.parts();
        self.0.describe_gauge(name, unit, help);
        self.0.register_gauge(&Key::from_static_name(description.name), &METADATA)
    }

    fn histogram(&self, description: &Description) -> Histogram {
        let (name, unit, help) = description.parts();
        self.0.describe_histogram(name, unit, help);
        self.0.register_histogram(&Key::from_static_name(description.name), &METADATA)
    }
}

impl Description {
    fn parts(&self) -> (KeyName, Option<Unit>, SharedString) {
        (KeyName::from_const_str(self.name), Some(self.unit), SharedString::const_str(self.help))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_rendered_with_its_help() {
        let metrics = Metrics::new();
        metrics.produce_batches.increment(3);
        metrics.connections.set(1);
        metrics.produce_seconds.record(0.003);
        let text = metrics.render();
        assert!(text.contains("quire_produce_batches_total 3"), "{text}");
        assert!(text.contains("quire_connections 1"), "{text}");
        assert!(text.contains("# HELP quire_produce_seconds From a whole batch"), "{text}");
        assert!(text.contains("quire_produce_seconds_bucket{le=\"0.004\"} 1"), "{text}");
    }

    #[test]
    fn two_brokers_count_apart() {
        let (first, second) = (Metrics::new(), Metrics::new());
        first.requests.increment(1);
        assert!(second.render().contains("quire_requests_total 0"));
    }
}
