//! The metadata log: what is answered is on disk, what is on disk is replayed, and damage is refused.

use std::path::Path;

use quire_engine::controller::{CreateTopic, Refusal};
use quire_storage::disk::{CrashOptions, Fault, Operation, SimDisk, Survival};
use quire_storage::remove_log;

use super::*;
use crate::shard::SystemClock;

const DIR: &str = "/data/metadata";

fn options(disk: &SimDisk) -> LocalMetadataOptions {
    LocalMetadataOptions {
        disk: Arc::new(disk.clone()),
        dir: PathBuf::from(DIR),
        topics_dir: PathBuf::from("/data/topics"),
        clock: Arc::new(SystemClock::new()),
        seed: 11,
        registration: RegisterBroker {
            cluster_id: "c-1".into(),
            broker: BrokerId(0),
            host: "127.0.0.1".into(),
            port: 9440,
            incarnation: incarnation(),
            is_alone: true,
            ..RegisterBroker::default()
        },
    }
}

/// Another one for each start.
fn incarnation() -> [u8; 16] {
    static STARTS: std::sync::atomic::AtomicU8 = std::sync::atomic::AtomicU8::new(1);
    [STARTS.fetch_add(1, std::sync::atomic::Ordering::Relaxed); 16]
}

fn create(name: &str) -> Request {
    Request::CreateTopic(CreateTopic { name: name.into(), partitions: 2, ..CreateTopic::default() })
}

/// A disk with a data directory, as the broker makes it before it opens anything in it.
fn disk() -> SimDisk {
    let disk = SimDisk::new(4);
    disk.create_dir_all(Path::new("/data")).expect("the disk has room");
    disk.sync_dir(Path::new("/")).expect("it is there");
    disk
}

/// A journal whose broker is registered.
fn journal(disk: &SimDisk) -> Journal {
    let options = options(disk);
    let registration = Request::RegisterBroker(options.registration.clone());
    let mut journal = Journal::open(options).expect("a sound log");
    assert!(journal.commit(vec![registration])[0].is_ok());
    journal
}

fn names(image: &Image) -> Vec<String> {
    image.topics().map(|topic| topic.name.to_string()).collect()
}

#[test]
fn what_was_answered_survives_a_power_loss() {
    let disk = disk();
    let mut journal = journal(&disk);
    assert!(journal.commit(vec![create("flights"), create("orders")]).iter().all(Result::is_ok));
    let image = journal.image.borrow().clone();
    disk.crash(&CrashOptions { data: Survival::Nothing, names: Survival::Nothing });

    let again = Journal::open(options(&disk)).expect("a sound log");
    assert_eq!(*again.controller.image(), image);
    assert_eq!(names(&image), ["flights", "orders"]);
}

#[test]
fn requests_of_one_round_share_a_sync_and_see_each_other() {
    let disk = disk();
    let mut journal = journal(&disk);
    disk.take_trace();
    let answers = journal.commit(vec![create("flights"), create("flights"), create("orders")]);
    let taken = Refusal::TopicExists { name: "flights".into() };
    assert!(answers[0].is_ok() && answers[2].is_ok());
    assert_eq!(answers[1], Err(ProposeError::Refused(taken)));
    let trace = disk.take_trace();
    let operations: Vec<_> = trace.iter().map(|event| &event.operation).collect();
    assert!(matches!(operations[..], [Operation::Write(..), Operation::Sync(_)]), "{operations:?}");
}

#[test]
fn a_failed_sync_ends_all_changes_and_shows_none_of_them() {
    let disk = disk();
    let mut journal = journal(&disk);
    disk.inject(Fault::SyncFails { nth: 1 });
    for name in ["flights", "orders"] {
        let answers = journal.commit(vec![create(name)]);
        assert!(matches!(answers[..], [Err(ProposeError::Failed { .. })]), "{answers:?}");
    }
    assert_eq!(names(&journal.image.borrow()), Vec::<String>::new());
}

#[test]
fn a_full_disk_refuses_changes_until_there_is_space() {
    let disk = disk();
    let mut journal = journal(&disk);
    disk.set_capacity(Some(100_000));
    let mut made = Vec::new();
    let full = (0..2_000).find_map(|number| {
        let name = format!("topic-{number:04}");
        let answer = journal.commit(vec![create(&name)]).remove(0);
        if answer.is_ok() {
            made.push(name);
        }
        answer.err()
    });
    assert_eq!(full, Some(ProposeError::DiskFull));
    disk.set_capacity(None);
    assert!(journal.commit(vec![create("z")])[0].is_ok(), "it goes on by itself");
    made.push("z".to_owned());
    assert_eq!(names(&journal.image.borrow()), made);
}

#[test]
fn a_damaged_log_is_refused_and_left_as_it_is() {
    let disk = disk();
    let mut journal = journal(&disk);
    for name in ["a", "b", "c"] {
        assert!(journal.commit(vec![create(name)])[0].is_ok());
    }
    let trace = disk.take_trace();
    let written = |operation: &Operation| match operation {
        Operation::Write(path, _) if path.extension().is_some_and(|extension| extension == "log") => {
            Some(path.clone())
        }
        _ => None,
    };
    let segment = trace.iter().find_map(|event| written(&event.operation)).expect("records were written");
    disk.kill();
    disk.heal();
    disk.flip_bit(&segment, 300, 1);
    let disk = disk.fork(5);
    let error =
        LocalMetadata::open(options(&disk)).map(|_| ()).expect_err("it must not start without its topics");
    assert!(matches!(error, MetadataOpenError::Damaged { .. }), "{error:?}");
    assert!(
        error.to_string().starts_with("the metadata log in /data/metadata is damaged: offsets"),
        "{error}"
    );
}

#[tokio::test]
async fn a_full_disk_does_not_keep_a_known_broker_from_starting() {
    let disk = disk();
    let mut journal = journal(&disk);
    disk.set_capacity(Some(100_000));
    let full =
        (0..2_000).find_map(|number| journal.commit(vec![create(&format!("t-{number}"))]).remove(0).err());
    assert_eq!(full, Some(ProposeError::DiskFull));
    drop(journal);

    let metadata = LocalMetadata::open(options(&disk)).expect("what is there can be read");
    let epoch = |image: &Image| image.broker(BrokerId(0)).map(|broker| broker.epoch);
    assert_eq!(epoch(&metadata.image()), Some(1), "there was no room for another");
    assert_eq!(metadata.propose(create("late")).await, Err(ProposeError::DiskFull));
    disk.set_capacity(None);
    metadata.propose(create("late")).await.expect("there is room");
    assert_eq!(epoch(&metadata.image()), Some(2), "it registered with the first change");
}

#[test]
fn damage_to_the_last_change_is_not_taken_for_a_torn_append() {
    let disk = disk();
    let mut journal = journal(&disk);
    disk.take_trace();
    assert!(journal.commit(vec![create("flights")])[0].is_ok());
    let trace = disk.take_trace();
    journal.checkpoint();
    let is_segment = |path: &Path| path.extension().is_some_and(|extension| extension == "log");
    let last = trace.iter().rev().find_map(|event| match &event.operation {
        Operation::Write(path, range) if is_segment(path) && range.end > range.start => {
            Some((path.clone(), range.end - 1))
        }
        _ => None,
    });
    let (segment, position) = last.expect("the change was written");
    disk.kill();
    disk.heal();
    disk.flip_bit(&segment, position, 1);
    let error = Journal::open(options(&disk.fork(5))).map(|_| ()).expect_err("a topic would be forgotten");
    assert!(matches!(error, MetadataOpenError::Damaged { .. }), "{error:?}");
}

#[test]
fn lost_metadata_beside_topics_is_refused_and_not_begun_anew() {
    let disk = disk();
    drop(journal(&disk));
    disk.create_dir_all(Path::new("/data/topics/0707")).expect("the disk has room");
    Journal::open(options(&disk)).expect("what is there is the topics' own");
    remove_log(&disk, Path::new(DIR)).expect("it can be removed");
    let error = Journal::open(options(&disk)).map(|_| ()).expect_err("its topics would be forgotten");
    let text = "the metadata log in /data/metadata is empty or gone, but /data/topics holds topics";
    assert!(error.to_string().starts_with(text), "{error}");
}

#[test]
fn another_clusters_directory_is_refused() {
    let disk = disk();
    drop(journal(&disk));
    let mut options = options(&disk);
    options.registration.cluster_id = "c-2".into();
    let error = LocalMetadata::open(options).map(|_| ()).expect_err("it belongs to another cluster");
    assert_eq!(
        error.to_string(),
        "the broker can not be registered: this is cluster c-1, the broker belongs to cluster c-2"
    );
}

#[tokio::test]
async fn each_start_registers_anew_and_nothing_is_asked_after_the_end() {
    let disk = disk();
    for epoch in 1..4 {
        let metadata = LocalMetadata::open(options(&disk)).expect("a sound log");
        let image = metadata.image();
        assert_eq!(image.broker(BrokerId(0)).map(|broker| broker.epoch), Some(epoch));
        metadata.close().await.expect("nothing failed");
        assert_eq!(metadata.propose(create("late")).await, Err(ProposeError::Stopped));
        metadata.close().await.expect("closing twice is no mistake");
    }
}

#[tokio::test]
async fn who_is_answered_sees_the_change_and_followers_are_woken() {
    let metadata = LocalMetadata::open(options(&disk())).expect("a sound log");
    let mut changes = metadata.changes();
    metadata.propose(create("flights")).await.expect("a free name");
    assert_eq!(names(&metadata.image()), ["flights"]);
    assert!(changes.has_changed().expect("it runs"));
    assert_eq!(names(&changes.borrow_and_update()), ["flights"]);
}
