//! Damaged, lost and suspect replicas: they leave the in-sync replicas, lead nothing, are fetched again from a leader, and
//! are trusted then.

use std::collections::BTreeSet;
use std::path::Path;

use quire_protocol::LeaderEpoch;
use quire_protocol::batch::TimestampType;
use quire_storage::disk::Fault;
use quire_storage::{
    AppendContext, AppendError, CompactionSettings, Log, LogOptions, NewBatch, ReadError, Want,
};

use super::*;
use crate::shard::PartitionState;

const RECORDS: u64 = 30;

impl Cluster {
    /// A partition with records that are on all three disks.
    async fn filled(&self, config: &[(&str, &str)]) -> TopicPartition {
        let config: Vec<_> = config.iter().copied().chain([("min.insync.replicas", "2")]).collect();
        let id = partition(self.create("flights", 1, &config).await, 0);
        let handle = self.leading(id).await;
        for number in 0..RECORDS {
            produce(&handle, &format!("record {number} {}", "x".repeat(3_000))).await.expect("taken");
        }
        self.until_same(id).await;
        id
    }

    fn follower(&self, id: TopicPartition) -> u32 {
        let leader = self.leader(id).expect("somebody leads");
        *self.brokers.keys().find(|broker| **broker != leader).expect("two follow")
    }

    fn handle(&self, broker: u32, id: TopicPartition) -> PartitionHandle {
        self.brokers[&broker].shards.partitions().find_replica(id).expect("its log is open")
    }

    fn is_in_sync(&self, broker: u32, id: TopicPartition) -> bool {
        self.metadata.image().partition(id).is_some_and(|known| known.in_sync.contains(&BrokerId(broker)))
    }

    /// Flips a bit in the middle of a partition's first segment.
    fn damage(&self, broker: u32, id: TopicPartition) {
        let disk = &self.disks[&broker];
        let dir = dir_of(id);
        let names = disk.list(&dir).expect("the partition has a directory");
        let segment = names.iter().find(|name| name.ends_with(".log")).expect("it has a segment");
        disk.flip_bit(&dir.join(segment), 20_000, 3);
    }

    /// Waits until the replica was found damaged, left, and came back with all that its leader has.
    async fn until_fetched_again(&self, broker: u32, id: TopicPartition) {
        self.until("it is in sync again, and trusted", |cluster| {
            let partitions = cluster.brokers[&broker].shards.partitions();
            cluster.in_sync(id) == 3 && partitions.suspects().is_empty()
        })
        .await;
        self.until_same(id).await;
        assert_eq!(*self.handle(broker, id).state(), PartitionState::Online);
        let handle = self.leading(id).await;
        produce(&handle, "afterwards").await.expect("taken");
        self.until_same(id).await;
    }
}

fn dir_of(id: TopicPartition) -> PathBuf {
    Path::new("/data/topics").join(id.topic.to_string()).join(id.partition.to_string())
}

/// Reads all that is committed, as a consumer does; the damage it comes to, if any, told to the shard.
async fn read_all(handle: &PartitionHandle) -> Result<(), ErrorCode> {
    let reader = handle.reader();
    let (mut next, end) = (reader.log_start(), reader.high_watermark());
    while next < end {
        match reader.read(next, 4096, end, Residency::Any) {
            Ok(slice) => next = slice.next_offset,
            Err(error) => {
                assert!(matches!(error, ReadError::Corrupt { .. }), "{error}");
                return Err(handle.read_failed(error).await.code);
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_found_damaged_at_the_start_is_fetched_again_and_trusted() {
    let mut cluster = Cluster::start().await;
    let id = cluster.filled(&[]).await;
    let broker = cluster.leader(id).expect("somebody leads");
    cluster.crash(broker).await;
    cluster.damage(broker, id);
    cluster.start_broker(broker).await;
    assert!(cluster.told_suspects[&broker].contains(&id), "it was registered as suspect");
    cluster.until_fetched_again(broker, id).await;
    // What was held against it is gone for good.
    cluster.crash(broker).await;
    cluster.start_broker(broker).await;
    assert_eq!(cluster.brokers[&broker].shards.partitions().suspects(), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_that_a_reader_finds_takes_a_follower_out_until_it_was_fetched_again() {
    let cluster = Cluster::start().await;
    let id = cluster.filled(&[]).await;
    let broker = cluster.follower(id);
    cluster.damage(broker, id);
    let before = cluster.metadata.image().partition(id).expect("it exists").partition_epoch;
    assert_eq!(read_all(&cluster.handle(broker, id)).await, Err(ErrorCode::NotLeader));
    let has_left = |cluster: &Cluster| {
        cluster.metadata.image().partition(id).is_some_and(|known| known.partition_epoch > before)
    };
    cluster.until("it left", has_left).await;
    cluster.until_fetched_again(broker, id).await;
    assert_eq!(read_all(&cluster.handle(broker, id)).await, Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_log_is_damaged_leads_no_more_and_follows() {
    let cluster = Cluster::start().await;
    let id = cluster.filled(&[]).await;
    let broker = cluster.leader(id).expect("somebody leads");
    cluster.damage(broker, id);
    assert_eq!(read_all(&cluster.handle(broker, id)).await, Err(ErrorCode::NotLeader));
    cluster.until("another leads", |cluster| cluster.leader(id).is_some_and(|leader| leader != broker)).await;
    cluster.until_fetched_again(broker, id).await;
    assert_ne!(cluster.leader(id), Some(broker));
}

/// What is left without a manifest is of no use to anyone; the others have the records.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_of_which_nothing_can_be_read_is_replaced_once_nobody_counts_on_it() {
    let mut cluster = Cluster::start().await;
    let id = cluster.filled(&[]).await;
    let broker = cluster.leader(id).expect("somebody leads");
    for is_damaged in [true, false] {
        cluster.crash(broker).await;
        let (disk, manifest) = (&cluster.disks[&broker], dir_of(id).join("manifest"));
        match is_damaged {
            true => disk.flip_bit(&manifest, 20, 3),
            false => quire_storage::remove_log(disk, &dir_of(id)).expect("it goes"),
        }
        cluster.start_broker(broker).await;
        // One that is gone, on a broker that nobody counted on any more, is a new one.
        assert_eq!(cluster.told_suspects[&broker].contains(&id), is_damaged);
        cluster.until_fetched_again(broker, id).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unclean_stop_without_syncs_makes_a_replica_suspect_until_it_caught_up() {
    let mut cluster = Cluster::start().await;
    let id = cluster.filled(&[("sync", "interval")]).await;
    let broker = cluster.leader(id).expect("somebody leads");
    for _ in 0..2 {
        cluster.crash(broker).await;
        cluster.start_broker(broker).await;
        assert!(cluster.told_suspects[&broker].contains(&id), "it was registered as suspect");
        cluster.until_fetched_again(broker, id).await;
    }
}

/// In other files: what the system says of those that failed is not to be relied on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_whose_sync_failed_leads_no_more_and_is_fetched_again() {
    let mut cluster = Cluster::start().await;
    let id = cluster.filled(&[]).await;
    for broker in [cluster.follower(id), cluster.leader(id).expect("somebody leads")] {
        cluster.disks[&broker].inject(Fault::SyncFails { nth: 1 });
        let before = files_of(&cluster, broker, id);
        // Taken by the two others, or refused by a leader that fails.
        let _ = produce(&cluster.leading(id).await, "not on all disks").await;
        let is_elsewhere = |cluster: &Cluster| {
            files_of(cluster, broker, id).is_disjoint(&before) && cluster.is_in_sync(broker, id)
        };
        cluster.until("it is back with other files", is_elsewhere).await;
        assert_ne!(cluster.leader(id), Some(broker));
        cluster.until_fetched_again(broker, id).await;
        cluster.crash(broker).await;
        cluster.start_broker(broker).await;
        assert_eq!(cluster.brokers[&broker].shards.partitions().suspects(), []);
        cluster.until_fetched_again(broker, id).await;
    }
}

fn files_of(cluster: &Cluster, broker: u32, id: TopicPartition) -> BTreeSet<String> {
    let names = cluster.disks[&broker].list(&dir_of(id)).unwrap_or_default();
    names.into_iter().filter(|name| name.ends_with(".log")).collect()
}

/// Fetching it again is tried once, and what fails again is suspect at the next start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fails_again_is_left_alone_until_the_next_start() {
    let mut cluster = Cluster::start().await;
    let id = cluster.filled(&[]).await;
    let broker = cluster.follower(id);
    // The sync of the record, and one of the many while it is fetched again.
    let last = cluster.disks[&broker].counters().syncs + 8;
    for nth in [1, 8] {
        cluster.disks[&broker].inject(Fault::SyncFails { nth });
    }
    let handle = cluster.leading(id).await;
    produce(&handle, "not on all disks").await.expect("two suffice");
    let has_failed_for_good = |cluster: &Cluster| {
        let state = cluster.handle(broker, id).state();
        let is_over = cluster.disks[&broker].counters().syncs >= last;
        is_over && matches!(*state, PartitionState::Failed { .. }) && !cluster.is_in_sync(broker, id)
    };
    cluster.until("it failed", has_failed_for_good).await;
    cluster.crash(broker).await;
    cluster.start_broker(broker).await;
    assert!(cluster.told_suspects[&broker].contains(&id), "it was registered as suspect");
    cluster.until_fetched_again(broker, id).await;
}

/// Nobody reads what is damaged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_that_nobody_reads_is_found_and_fetched_again() {
    let cluster = Cluster::scrubbed_every(Duration::from_millis(50)).await;
    let id = cluster.filled(&[("segment.bytes", "65536")]).await;
    for broker in [cluster.follower(id), cluster.leader(id).expect("somebody leads")] {
        let epoch =
            |cluster: &Cluster| cluster.metadata.image().partition(id).expect("it exists").partition_epoch;
        let before = epoch(&cluster);
        cluster.damage(broker, id);
        cluster.until("it left", |cluster| epoch(cluster) > before).await;
        cluster.until_fetched_again(broker, id).await;
        assert_ne!(cluster.leader(id), Some(broker));
        assert_eq!(read_all(&cluster.handle(broker, id)).await, Ok(()));
    }
}

/// It has the same leaderships, and as many records, so that nothing else tells; nothing new comes that would not fit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_with_another_history_is_found_and_fetched_anew() {
    let mut cluster = Cluster::start().await;
    let id = cluster.filled(&[]).await;
    let broker = cluster.follower(id);
    let leader_epoch = cluster.metadata.image().partition(id).expect("it exists").leader_epoch;
    cluster.crash(broker).await;
    write_another_history(&cluster.disks[&broker], id, leader_epoch);
    cluster.start_broker(broker).await;
    cluster.until_same(id).await;
    cluster.until_fetched_again(broker, id).await;
}

fn write_another_history(disk: &SimDisk, id: TopicPartition, leader_epoch: LeaderEpoch) {
    let dir = dir_of(id);
    quire_storage::remove_log(disk, &dir).expect("it goes");
    let mut log = open_log(disk, id);
    let text = |number| batch(&format!("another {number} {}", "y".repeat(3_000)));
    write(&mut log, leader_epoch, (0..RECORDS).map(text));
    log.close().expect("nothing is under way");
}

/// It has more than its leader, as after one that lacked records was elected, and compacted all of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_compacted_what_its_leader_lacks_is_fetched_anew() {
    let mut cluster = Cluster::start().await;
    let id = cluster.filled(&[]).await;
    let broker = cluster.follower(id);
    let leader_epoch = cluster.metadata.image().partition(id).expect("it exists").leader_epoch;
    cluster.crash(broker).await;
    let mut log = open_log(&cluster.disks[&broker], id);
    write(&mut log, leader_epoch, (0..10).map(|_| keyed_batch("y".repeat(3_000))));
    // The active segment is old by then, and sealed.
    let now = Timestamp(i64::MAX);
    log.retain(now, None, None);
    let _ = log.run_jobs(Want { sync: true });
    let size = log.size_bytes();
    log.compact(now, &CompactionSettings { dirty_millionths_min: 0, ..CompactionSettings::default() });
    let _ = log.run_jobs(Want { sync: true });
    assert!(log.size_bytes() < size - 20_000, "some went for the last");
    log.close().expect("nothing is under way");
    let before = files_of(&cluster, broker, id);
    cluster.start_broker(broker).await;
    cluster.until_fetched_again(broker, id).await;
    assert!(files_of(&cluster, broker, id).is_disjoint(&before), "it was cut");
}

fn keyed_batch(value: String) -> Vec<u8> {
    let mut builder = BatchBuilder::new(Compression::None);
    let record = Record { key: Some("key".into()), value: Some(value.into()), ..Record::default() };
    builder.push(&record, Timestamp(1)).expect("a small record fits");
    Vec::from(builder.finish().expect("nothing to compress"))
}

fn open_log(disk: &SimDisk, id: TopicPartition) -> Log {
    let opened = Log::open(Arc::new(disk.clone()), &dir_of(id), id, LogOptions::default());
    opened.expect("nothing is damaged").0
}

fn write(log: &mut Log, leader_epoch: LeaderEpoch, batches: impl Iterator<Item = Vec<u8>>) {
    for bytes in batches {
        let mut batches = vec![NewBatch { header: BatchHeader::check(&bytes).expect("just built"), bytes }];
        let at = AppendContext {
            leader_epoch,
            now: Timestamp(1_000),
            high_watermark: log.high_watermark(),
            timestamp_type: TimestampType::CreateTime,
        };
        while let Err(AppendError { batches: back, .. }) = log.append(std::mem::take(&mut batches), at) {
            batches = back;
            let _ = log.run_jobs(Want { sync: false });
        }
        let _ = log.run_jobs(Want { sync: true });
        log.set_high_watermark(log.end_offset());
    }
}
