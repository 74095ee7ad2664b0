//! Which syncs the shard's own thread does.

use quire_protocol::batch::TimestampType;
use quire_protocol::limits;
use quire_storage::{AppendContext, NewBatch, Want};

use super::super::run::LoneSyncs;
use super::*;

/// A sync of one record of about so many bytes.
fn sync_of(bytes: usize) -> (TopicPartition, Task) {
    let options = quire_storage::LogOptions::default();
    let disk = SimDisk::new(1);
    let (mut log, _) = Log::open(Arc::new(disk), "/data/0".as_ref(), PARTITION, options).expect("a new log");
    let bytes = batch(&"x".repeat(bytes));
    let header = BatchHeader::check(&bytes).expect("just built");
    let at = AppendContext {
        leader_epoch: LeaderEpoch(1),
        now: Timestamp(1),
        high_watermark: Offset::ZERO,
        timestamp_type: TimestampType::CreateTime,
    };
    let mut batches = vec![NewBatch { header, bytes }];
    while let Err(refused) = log.append(batches, at) {
        batches = refused.batches;
        let job = log.next_job(Want { sync: false }).expect("space is to be made");
        log.complete(job.run());
    }
    let job = log.next_job(Want { sync: true }).expect("a record is to be synced");
    assert_eq!(job.kind(), JobKind::Sync);
    (PARTITION, Task::Job(job))
}

#[test]
fn a_small_sync_with_nothing_beside_it_is_done_by_the_shard() {
    let mut lone = LoneSyncs::default();
    let mut tasks = vec![sync_of(1000)];
    assert!(lone.take(Time::default(), &mut tasks).is_some());
    assert!(tasks.is_empty());
    assert!(lone.take(Time::default(), &mut vec![sync_of(1000)]).is_none(), "the first is not back");
    lone.under_way -= 1;
    assert!(lone.take(Time::default(), &mut vec![sync_of(1000)]).is_some());
}

#[test]
fn syncs_that_can_share_the_device_or_take_long_go_to_flushers() {
    let mut lone = LoneSyncs::default();
    let mut two = vec![sync_of(10), sync_of(10)];
    assert!(lone.take(Time::default(), &mut two).is_none(), "two run side by side");
    assert_eq!(two.len(), 2);
    let mut large = vec![sync_of(limits::LONE_SYNC_BYTES_MAX as usize)];
    assert!(lone.take(Time::default(), &mut large).is_none(), "appends go on meanwhile");
    assert!(lone.take(Time::default(), &mut Vec::new()).is_none());
}

#[test]
fn a_slow_disk_holds_up_the_shard_once() {
    let mut lone = LoneSyncs::default();
    let began = Time::default();
    let ended = began + limits::LONE_SYNC_TIME_MAX + Duration::from_millis(1);
    lone.done(began, ended);
    assert!(lone.take(ended, &mut vec![sync_of(10)]).is_none());
    let later = ended + limits::LONE_SYNC_PAUSE;
    assert!(lone.take(later, &mut vec![sync_of(10)]).is_some());
    lone.under_way -= 1;
    lone.done(later, later + limits::LONE_SYNC_TIME_MAX);
    assert!(lone.take(later, &mut vec![sync_of(10)]).is_some(), "as fast as it must be");
}
