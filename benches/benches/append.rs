//! Appends to a log, with and without a sync each, beside bare writes of the same bytes to a file of the same disk.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use quire_benches::bare_disk::{self, Synced};
use quire_benches::pair::Pairs;
use quire_benches::payload::incompressible;
use quire_protocol::batch::{BatchBuilder, BatchHeader, Compression, Record, TimestampType};
use quire_protocol::{LeaderEpoch, PartitionIndex, Timestamp, TopicId, TopicPartition};
use quire_storage::disk::OsDisk;
use quire_storage::{AppendContext, AppendErrorKind, Log, LogOptions, NewBatch, Want};

const KIB: usize = 1024;
const SAMPLES: usize = 10;

/// A batch of one record, as long as asked for.
fn batch(len: usize) -> (BatchHeader, Bytes) {
    let mut builder = BatchBuilder::new(Compression::None);
    let record = Record { value: Some(incompressible(len - 75, 11)), ..Record::default() };
    builder.push(&record, Timestamp(0)).expect("it fits");
    let bytes = builder.finish().expect("nothing to compress");
    (BatchHeader::check(&bytes).expect("just built"), bytes)
}

/// Runs every job the log has, here and now.
fn run_jobs(log: &mut Log, sync: bool) {
    while let Some(job) = log.next_job(Want { sync }) {
        log.complete(job.run());
    }
}

/// Appends `count` batches to a new log in `dir`, as a shard does but on one thread, and removes it again.
fn append(
    dir: &std::path::Path,
    header: BatchHeader,
    bytes: &Bytes,
    count: usize,
    synced: Synced,
) -> Duration {
    let partition = TopicPartition { topic: TopicId([9; 16]), partition: PartitionIndex(0) };
    let dir = dir.join("log");
    let disk = Arc::new(OsDisk);
    let (mut log, _) = Log::open(disk, &dir, partition, LogOptions::default()).expect("an empty directory");
    let start = Instant::now();
    for _ in 0..count {
        // A batch arrives in memory of its own; the copy stands for it and is not Quire's cost alone.
        let mut batches = vec![NewBatch { header, bytes: bytes.to_vec() }];
        let at = AppendContext {
            leader_epoch: LeaderEpoch(0),
            now: Timestamp(0),
            high_watermark: log.durable_end(),
            timestamp_type: TimestampType::CreateTime,
        };
        while let Err(refused) = log.append(batches, at) {
            assert!(matches!(refused.kind, AppendErrorKind::NoSpaceYet), "{:?}", refused.kind);
            batches = refused.batches;
            run_jobs(&mut log, false);
        }
        if synced == Synced::Each {
            run_jobs(&mut log, true);
        }
    }
    let took = start.elapsed();
    drop(log);
    std::fs::remove_dir_all(&dir).expect("the log's own directory");
    took
}

fn appends(c: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a temporary directory");
    for (synced, total, sizes) in [
        (Synced::No, 512 * KIB * KIB, [64 * KIB, 256 * KIB]),
        (Synced::Each, 64 * KIB * KIB, [64 * KIB, 1000 * KIB]),
    ] {
        let mut group = c.benchmark_group(format!("append, synced: {synced:?}"));
        group.sample_size(SAMPLES).measurement_time(Duration::from_secs(15));
        for size in sizes {
            let (header, bytes) = batch(size);
            let count = total / size;
            // The first gigabytes of page cache after idling are far slower; they are not what is measured.
            for _ in 0..2 {
                bare_disk::append(folder.path(), &bytes, count, synced).expect("space for a bare file");
            }
            let mut pairs = Pairs::default();
            group.throughput(Throughput::Bytes((size * count) as u64));
            group.bench_function(BenchmarkId::from_parameter(format!("{} KiB", size / KIB)), |b| {
                b.iter_custom(|iterations| {
                    let mut sum = Duration::ZERO;
                    for _ in 0..iterations {
                        let quire = append(folder.path(), header, &bytes, count, synced);
                        let bare = bare_disk::append(folder.path(), &bytes, count, synced).expect("space");
                        pairs.add(quire, bare);
                        sum += quire;
                    }
                    sum
                });
            });
            let title = format!("append {} KiB, synced: {synced:?}", size / KIB);
            println!("{}\n", pairs.report(&title, (size * count) as f64 / 1e6, "MB"));
        }
        group.finish();
    }
}

criterion_group!(benches, appends);
criterion_main!(benches);
