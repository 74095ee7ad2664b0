//! What is on disk: the engine's own suite, and that a node which may have lost its word does not come back.

use std::path::Path;
use std::sync::Arc;

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use quire_storage::disk::{CrashOptions, Disk, Operation, SimDisk, Survival};
use quire_storage::remove_log;
use tokio::sync::mpsc;

use super::mesh::{Host, Mesh, create, register, timing};
use super::{dir, disk};
use crate::controller::Metadata;
use crate::controller::raft::driver::Driver;
use crate::controller::raft::files::Files;
use crate::controller::raft::log_store::LogStore;
use crate::controller::raft::machine::StateMachine;
use crate::controller::raft::types::{Types, Vote, log_id};
use crate::controller::raft::{FormatError, Opened, RaftOpenError, format};
use crate::shard::SystemClock;

#[derive(Debug)]
struct OnSimDisk;

impl StoreBuilder<Types, LogStore, StateMachine> for OnSimDisk {
    async fn build(&self) -> Result<((), LogStore, StateMachine), StorageError<Types>> {
        let disk = Arc::new(disk(1));
        format(disk.clone(), &dir(), 0).expect("a new directory");
        let clock = Arc::new(SystemClock::new());
        let files = Files::new(disk, dir());
        let opened = Opened::read(files.clone(), clock.clone()).expect("just formatted");
        let (appends, _) = mpsc::channel(1);
        let driver = Arc::new(std::sync::Mutex::new(Driver::new(1, clock, appends)));
        Ok(((), opened.log, StateMachine::new(driver, files, None)))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_engines_own_suite_passes() {
    Suite::test_all(OnSimDisk).await.expect("the store keeps its contract");
}

fn open(disk: &SimDisk) -> Result<Opened, RaftOpenError> {
    Opened::read(Files::new(Arc::new(disk.clone()), dir()), Arc::new(SystemClock::new()))
}

/// A node that founded a cluster, and made a few topics there.
async fn founder() -> Host {
    let (host, mesh) = (Host::new(1), Mesh::new(1));
    let node = host.open(&mesh, timing()).await.expect("a formatted directory");
    node.found().await.expect("it is new");
    node.propose(register(1)).await.expect("it decides alone");
    for name in ["a", "b", "c"] {
        node.propose(create(name)).await.expect("it decides alone");
    }
    host.kill(&mesh).await;
    host
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vote_and_what_was_acknowledged_survive_a_power_loss() {
    let host = founder().await;
    host.lose_power();
    let mut opened = open(&host.disk).expect("nothing is lost");
    use openraft::RaftLogReader;
    let vote = opened.log.read_vote().await.expect("it is there");
    assert_eq!(vote, Some(Vote::new_committed(1, 101)));
    let mesh = Mesh::new(1);
    opened.journal.close().await.expect("it is sound");
    let node = host.open(&mesh, timing()).await.expect("nothing is lost");
    node.propose(create("d")).await.expect("it decides again");
    let names: Vec<_> = node.image().topics().map(|topic| topic.name.to_string()).collect();
    assert_eq!(names, ["a", "b", "c", "d"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_lost_its_word_does_not_come_back() {
    let host = founder().await;
    let fork = |seed| {
        let disk = host.disk.fork(seed);
        disk.crash(&CrashOptions { data: Survival::Everything, names: Survival::Everything });
        disk
    };
    let error = |disk: &SimDisk| open(disk).map(drop).expect_err("it must not take part").to_string();

    let wiped = disk(9);
    assert!(error(&wiped).contains("was never made a metadata directory"), "{}", error(&wiped));
    let no_vote = fork(1);
    no_vote.remove(Path::new("/data/metadata/vote")).expect("it is there");
    assert!(error(&no_vote).starts_with("/data/metadata/vote: missing"), "{}", error(&no_vote));
    let bad_vote = fork(2);
    bad_vote.flip_bit(Path::new("/data/metadata/vote"), 13, 3);
    assert!(error(&bad_vote).starts_with("/data/metadata/vote: damaged"), "{}", error(&bad_vote));
    let no_log = fork(3);
    remove_log(&no_log, Path::new("/data/metadata/journal")).expect("it is there");
    assert!(error(&no_log).starts_with("the metadata log can not be opened"), "{}", error(&no_log));
    let no_node = fork(4);
    no_node.remove(Path::new("/data/metadata/node")).expect("it is there");
    assert!(error(&no_node).contains("its files are gone"), "{}", error(&no_node));
    let again = format(Arc::new(no_node.clone()), &dir(), 7).expect_err("its log is another's");
    assert!(matches!(again, FormatError::Journal(_)), "{again:?}");
    let again = format(Arc::new(fork(5)), &dir(), 7).expect_err("it is a node's");
    assert!(matches!(again, FormatError::Formatted { .. }), "{again:?}");
    open(&fork(6)).map(drop).expect("what is whole is taken");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_log_is_refused() {
    let host = founder().await;
    let is_segment = |path: &Path| path.extension().is_some_and(|extension| extension == "log");
    let segment = host.disk.take_trace().iter().find_map(|event| match &event.operation {
        Operation::Write(path, _) if is_segment(path) => Some(path.clone()),
        _ => None,
    });
    let disk = host.disk.fork(1);
    disk.flip_bit(&segment.expect("entries were written"), 300, 1);
    let error = open(&disk).map(drop).expect_err("it must not take part").to_string();
    assert!(error.starts_with("the metadata log is damaged: "), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_format_is_begun_again() {
    for stop in 0..40 {
        let disk = disk(stop);
        disk.inject(quire_storage::disk::Fault::StopsAfter { operations: stop });
        let disk_for = Arc::new(disk.clone());
        let stopped = std::panic::catch_unwind(|| format(disk_for, Path::new(super::DIR), 7));
        disk.crash(&CrashOptions { data: Survival::Nothing, names: Survival::Nothing });
        disk.heal();
        if !matches!(stopped, Ok(Ok(()))) {
            let again = format(Arc::new(disk.clone()), &dir(), 8);
            // Its last step may have been done all the same.
            assert!(matches!(again, Ok(()) | Err(FormatError::Formatted { .. })), "{again:?}");
        }
        open(&disk).map(drop).expect("it is formatted");
    }
}

#[test]
fn a_snapshot_has_to_reach_the_log() {
    use crate::controller::raft::machine::leaves_a_hole;
    let id = |index| log_id(1, index);
    assert!(!leaves_a_hole(None, None) && !leaves_a_hole(Some(&id(4)), None));
    assert!(!leaves_a_hole(Some(&id(4)), Some(&id(4))) && !leaves_a_hole(Some(&id(5)), Some(&id(4))));
    assert!(leaves_a_hole(None, Some(&id(4))) && leaves_a_hole(Some(&id(3)), Some(&id(4))));
}
