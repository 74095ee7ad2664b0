//! Append: the log alone on one thread, with every job it asks for, beside bare writes of the same batches.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use quire_benches::bare_disk::{Appends, Synced};
use quire_benches::page_cache;
use quire_benches::payload::incompressible;
use quire_benches::row::{Bar, Row};
use quire_benches::runner::{Measurement, Settings};
use quire_benches::series::{Pair, Pairs};
use quire_benches::unit::Unit;
use quire_protocol::batch::{BatchBuilder, BatchHeader, Compression, Record, TimestampType};
use quire_protocol::{LeaderEpoch, PartitionIndex, Timestamp, TopicId, TopicPartition};
use quire_storage::disk::OsDisk;
use quire_storage::{AppendContext, AppendErrorKind, Log, LogOptions, NewBatch, Want};

const KIB: usize = 1024;
/// About what a batch of one record takes beside the record's value.
const BATCH_OVERHEAD_BYTES: usize = 75;

pub fn measurements() -> Vec<Measurement> {
    let of = |name: &'static str, batch_bytes: usize, synced, part, bar| {
        Measurement::new([name], move |settings| measure(settings, name, batch_bytes, synced, part, bar))
    };
    vec![
        of("append-64k", 64 * KIB, Synced::No, 1.0, 0.7),
        // A sync of 64 KiB costs little less than one of 1 MiB: so many bytes would take very long.
        of("append-64k-synced", 64 * KIB, Synced::Each, 1.0 / 16.0, 0.8),
        of("append-1m-synced", KIB * KIB, Synced::Each, 0.5, 0.8),
    ]
}

fn measure(
    settings: &Settings,
    name: &str,
    batch_bytes: usize,
    synced: Synced,
    part: f64,
    bar: f64,
) -> Result<Vec<Row>> {
    let count = (settings.bytes as f64 * part) as u64 / batch_bytes as u64;
    let bytes = count * batch_bytes as u64;
    let (header, batch) = batch(batch_bytes)?;
    let mut pairs = Pairs::default();
    for _ in 0..settings.pairs {
        let warm = page_cache::settle(bytes)?;
        let quire = append(settings.dir.path(), header, &batch, count, synced)?;
        drop(warm);
        let warm = page_cache::settle(bytes)?;
        let bare = Appends { payload: batch.clone(), count, files: 1, synced }.run(settings.dir.path())?;
        drop(warm);
        let rate = |took: Duration| bytes as f64 / took.as_secs_f64();
        pairs.push(Pair { quire: rate(quire), bare: Some(rate(bare)) });
    }
    let (sync, bare) = match synced {
        Synced::Each => ("a sync each", "pwritev and fdatasync each"),
        _ => ("no sync", "pwritev"),
    };
    Ok(vec![Row {
        name: name.to_owned(),
        title: format!(
            "append, batches of {}, {sync}, 1 log, 1 thread, {} a run",
            bytesize::ByteSize(batch_bytes as u64),
            bytesize::ByteSize(bytes),
        ),
        bare: bare.to_owned(),
        unit: Unit::BytesPerSecond,
        pairs,
        bar: Bar::AtLeastOfBare(bar),
        notes: Vec::new(),
    }])
}

/// A batch of one record, as long as asked for.
fn batch(len: usize) -> Result<(BatchHeader, Bytes)> {
    let of_value = |value_bytes| {
        let mut builder = BatchBuilder::new(Compression::None);
        let value = incompressible(value_bytes, 11);
        builder.push(&Record { value: Some(value), ..Record::default() }, Timestamp(0))?;
        anyhow::Ok(builder.finish()?)
    };
    // What surrounds the value depends on its length, by a few bytes at most.
    let roughly = len - BATCH_OVERHEAD_BYTES;
    let bytes = of_value(roughly + len - of_value(roughly)?.len())?;
    ensure!(bytes.len() == len, "a batch of {} bytes", bytes.len());
    Ok((BatchHeader::check(&bytes)?, bytes))
}

/// Appends `count` batches to a new log in `dir`, as a shard does but on one thread, and removes it again.
fn append(dir: &Path, header: BatchHeader, bytes: &Bytes, count: u64, synced: Synced) -> Result<Duration> {
    let partition = TopicPartition { topic: TopicId([9; 16]), partition: PartitionIndex(0) };
    let dir = dir.join("log");
    let (mut log, _) = Log::open(Arc::new(OsDisk), &dir, partition, LogOptions::default())?;
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
            ensure!(matches!(refused.kind, AppendErrorKind::NoSpaceYet), "{:?}", refused.kind);
            batches = refused.batches;
            run_jobs(&mut log, false);
        }
        if synced == Synced::Each {
            run_jobs(&mut log, true);
        }
    }
    let took = start.elapsed();
    drop(log);
    std::fs::remove_dir_all(&dir).context("the log's own directory")?;
    Ok(took)
}

/// Runs every job the log has, here and now.
fn run_jobs(log: &mut Log, sync: bool) {
    while let Some(job) = log.next_job(Want { sync }) {
        log.complete(job.run());
    }
}
