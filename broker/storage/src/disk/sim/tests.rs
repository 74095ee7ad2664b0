//! The simulated disk against the promises it simulates.

use proptest::prelude::*;

use super::*;

const RANDOM: CrashOptions = CrashOptions { data: Survival::Random, names: Survival::Random };
const CRUEL: CrashOptions = CrashOptions { data: Survival::Nothing, names: Survival::Nothing };
const KIND: CrashOptions = CrashOptions { data: Survival::Everything, names: Survival::Everything };

fn create(disk: &SimDisk, path: &str) -> Arc<dyn DiskFile> {
    disk.open(Path::new(path), OpenMode::CreateNew).expect("new")
}

fn write(file: &dyn DiskFile, position: u64, bytes: &[u8]) -> io::Result<()> {
    file.write_at(position, &[IoSlice::new(bytes)])
}

fn content(disk: &SimDisk, path: &str) -> Option<Vec<u8>> {
    let file = disk.open(Path::new(path), OpenMode::Read).ok()?;
    let mut bytes = vec![0; file.len().expect("open") as usize];
    file.read_exact_at(0, &mut bytes).expect("readable");
    Some(bytes)
}

fn sync_root(disk: &SimDisk) {
    disk.sync_dir(Path::new("/")).expect("there");
}

/// How many of `count` ways to lose power leave what `holds` looks for.
fn outcomes(disk: &SimDisk, count: u64, holds: impl Fn(&SimDisk) -> bool) -> u64 {
    let after = (0..count).map(|seed| {
        let fork = disk.fork(seed);
        fork.crash(&RANDOM);
        fork
    });
    after.filter(|disk| holds(disk)).count() as u64
}

fn is_io_error<T>(result: io::Result<T>) -> bool {
    result.is_err_and(|error| error.raw_os_error() == Some(Errno::IO.raw_os_error()))
}

#[derive(Debug, Clone)]
enum Step {
    Write { position: u64, len: usize, fill: u8 },
    Allocate(u64),
    Sync,
    FailSync,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0u64..3000, 0usize..2000, 1u8..).prop_map(|(position, len, fill)| Step::Write { position, len, fill }),
        1 => (0u64..6000).prop_map(Step::Allocate),
        2 => Just(Step::Sync),
        1 => Just(Step::FailSync),
    ]
}

proptest! {
    /// Each sector holds what it held at some moment since the last sync that covered it, and nothing else; the length
    /// too. Without a failed sync that is never older than the last sync.
    #[test]
    fn after_a_crash_a_sector_is_one_that_was_written(
        steps in proptest::collection::vec(step(), 1..20),
        seed in any::<u64>(),
    ) {
        let disk = SimDisk::new(seed);
        let file = create(&disk, "/f");
        sync_root(&disk);
        let mut now = Vec::new();
        // Every content the file had since the last successful sync that followed no failed one.
        let mut possible = vec![now.clone()];
        let mut has_failed = false;
        for step in steps {
            match step {
                Step::Write { position, len, fill } => {
                    write(&*file, position, &vec![fill; len]).expect("room");
                    let end = position as usize + len;
                    if len > 0 {
                        now.resize(now.len().max(end), 0);
                        now[position as usize..end].fill(fill);
                    }
                }
                Step::Allocate(end) => {
                    file.allocate(end).expect("room");
                    now.resize(now.len().max(end as usize), 0);
                }
                Step::Sync => {
                    file.sync_data().expect("no fault");
                    if !has_failed {
                        possible.clear();
                    }
                }
                Step::FailSync => {
                    disk.inject(Fault::SyncFails { nth: 1 });
                    prop_assert!(is_io_error(file.sync_data()));
                    has_failed = true;
                }
            }
            possible.push(now.clone());
            prop_assert_eq!(content(&disk, "/f"), Some(now.clone()));
        }
        disk.crash(&RANDOM);
        let found = content(&disk, "/f").expect("its name was synced");
        prop_assert!(possible.iter().any(|state| state.len() == found.len()), "length {}", found.len());
        for at in (0..found.len()).step_by(512) {
            let sector = &found[at..found.len().min(at + 512)];
            let was_there = |state: &Vec<u8>| {
                let known = state.get(at..).unwrap_or_default();
                let known = &known[..known.len().min(sector.len())];
                sector.starts_with(known) && sector[known.len()..].iter().all(|byte| *byte == 0)
            };
            prop_assert!(possible.iter().any(was_there), "sector at {} was never like this", at);
        }
    }

    #[test]
    fn a_seed_replays_a_run_exactly(steps in proptest::collection::vec(step(), 1..20), seed in any::<u64>()) {
        let run = || {
            let disk = SimDisk::new(seed);
            let file = create(&disk, "/f");
            for step in &steps {
                match step {
                    Step::Write { position, len, fill } => {
                        write(&*file, *position, &vec![*fill; *len]).expect("room");
                    }
                    Step::Allocate(end) => file.allocate(*end).expect("room"),
                    Step::Sync => file.sync_data().expect("no fault"),
                    Step::FailSync => {
                        disk.inject(Fault::SyncFails { nth: 1 });
                        assert!(is_io_error(file.sync_data()));
                    }
                }
            }
            disk.crash(&RANDOM);
            (content(&disk, "/f"), disk.take_trace(), disk.counters())
        };
        prop_assert_eq!(run(), run());
    }
}

#[test]
fn what_was_synced_is_there_and_what_was_not_may_be() {
    let disk = SimDisk::new(7);
    let file = create(&disk, "/f");
    write(&*file, 0, &[1; 2048]).expect("room");
    file.sync_data().expect("no fault");
    sync_root(&disk);
    write(&*file, 512, &[2; 2048]).expect("room");
    let all = |disk: &SimDisk, byte| {
        content(disk, "/f")
            .is_some_and(|found| found.get(512..).is_some_and(|rest| rest.iter().all(|found| *found == byte)))
    };
    assert_eq!(
        outcomes(&disk, 300, |disk| content(disk, "/f").is_some_and(|found| found[..512] == [1; 512])),
        300
    );
    assert!(outcomes(&disk, 300, |disk| all(disk, 1)) > 0, "all of the second write may be lost");
    assert!(outcomes(&disk, 300, |disk| all(disk, 2)) > 0, "or survive");
    assert!(outcomes(&disk, 300, |disk| !all(disk, 1) && !all(disk, 2)) > 100, "it is mostly torn");
    let (cruel, kind) = (disk.fork(0), disk.fork(0));
    cruel.crash(&CRUEL);
    kind.crash(&KIND);
    assert_eq!(content(&cruel, "/f"), Some(vec![1; 2048]));
    assert_eq!(content(&kind, "/f"), Some([[1; 512].as_slice(), &[2; 2048]].concat()));
}

#[test]
fn sectors_survive_in_any_order() {
    let disk = SimDisk::new(7);
    let file = create(&disk, "/f");
    file.allocate(1024).expect("room");
    file.sync_data().expect("no fault");
    sync_root(&disk);
    write(&*file, 0, &[1; 512]).expect("room");
    write(&*file, 512, &[2; 512]).expect("room");
    let later_alone = |disk: &SimDisk| content(disk, "/f") == Some([[0; 512], [2; 512]].concat());
    assert!(outcomes(&disk, 300, later_alone) > 0);
}

#[test]
fn a_failed_sync_loses_data_and_the_next_one_says_ok() {
    let disk = SimDisk::new(7);
    let file = create(&disk, "/f");
    sync_root(&disk);
    write(&*file, 0, &[1; 4096]).expect("room");
    disk.inject(Fault::SyncFails { nth: 1 });
    assert!(is_io_error(file.sync_data()));
    assert_eq!(content(&disk, "/f"), Some(vec![1; 4096]), "the page cache still shows it");
    file.sync_data().expect("as Linux does");
    disk.drop_caches();
    let found = content(&disk, "/f").expect("synced");
    assert_eq!(found.len(), 4096);
    assert!(found.contains(&0) && found.contains(&1), "part of it is gone");
    disk.crash(&KIND);
    assert_eq!(content(&disk, "/f"), Some(found));
}

/// The kernel tells each handle once. A handle that is opened too late to be told says OK: so a log's own handle must
/// be the one that syncs it.
#[test]
fn a_failed_write_back_is_told_once_to_each_handle() {
    let disk = SimDisk::new(7);
    let [first, second] =
        [create(&disk, "/f"), disk.open(Path::new("/f"), OpenMode::ReadWrite).expect("there")];
    write(&*first, 0, &[1; 4096]).expect("room");
    disk.inject(Fault::WriteBackFails { path: "/f".into() });
    assert!(is_io_error(first.sync_data()) && is_io_error(second.sync_data()));
    let later = disk.open(Path::new("/f"), OpenMode::ReadWrite).expect("there");
    for file in [&first, &second, &later] {
        file.sync_data().expect("as Linux does");
    }
    disk.drop_caches();
    assert!(content(&disk, "/f").is_some_and(|found| found.contains(&0)), "part of it is gone");
}

#[test]
fn a_failed_write_back_that_nobody_heard_of_is_told_to_the_next_handle() {
    let disk = SimDisk::new(7);
    write(&*create(&disk, "/f"), 0, &[1; 4096]).expect("room");
    disk.inject(Fault::WriteBackFails { path: "/f".into() });
    disk.kill();
    for is_told in [true, false] {
        let file = disk.open(Path::new("/f"), OpenMode::ReadWrite).expect("there");
        assert_eq!(is_io_error(file.sync_data()), is_told);
    }
}

#[test]
fn a_file_whose_name_was_not_synced_may_be_lost() {
    let disk = SimDisk::new(7);
    let file = create(&disk, "/f");
    write(&*file, 0, b"a").expect("room");
    file.sync_data().expect("no fault");
    let survivals = outcomes(&disk, 100, |disk| content(disk, "/f") == Some(b"a".to_vec()));
    assert!(survivals > 0);
    assert_eq!(outcomes(&disk, 100, |disk| content(disk, "/f").is_none()), 100 - survivals);
    assert!(survivals < 100);
    sync_root(&disk);
    assert_eq!(outcomes(&disk, 100, |disk| content(disk, "/f") == Some(b"a".to_vec())), 100);
}

#[test]
fn a_rename_leaves_the_old_file_or_the_new_one() {
    let disk = SimDisk::new(7);
    for (name, byte) in [("/f", b"a"), ("/f.tmp", b"b")] {
        let file = create(&disk, name);
        write(&*file, 0, byte).expect("room");
        file.sync_data().expect("no fault");
    }
    sync_root(&disk);
    disk.rename(Path::new("/f.tmp"), Path::new("/f")).expect("there");
    let old = outcomes(&disk, 100, |disk| content(disk, "/f") == Some(b"a".to_vec()));
    let new = outcomes(&disk, 100, |disk| content(disk, "/f") == Some(b"b".to_vec()));
    assert_eq!(old + new, 100);
    assert!(old > 0 && new > 0);
    assert_eq!(outcomes(&disk, 100, |disk| content(disk, "/f.tmp").is_some()), old);
}

#[test]
fn a_removed_file_may_come_back_until_its_directory_is_synced() {
    let disk = SimDisk::new(7);
    let file = create(&disk, "/f");
    write(&*file, 0, b"a").expect("room");
    file.sync_data().expect("no fault");
    sync_root(&disk);
    drop(file);
    disk.remove(Path::new("/f")).expect("there");
    let back = outcomes(&disk, 100, |disk| content(disk, "/f") == Some(b"a".to_vec()));
    assert!(back > 0 && back < 100);
    sync_root(&disk);
    assert_eq!(outcomes(&disk, 100, |disk| content(disk, "/f").is_none()), 100);
}

#[test]
fn a_lost_directory_takes_its_files_along() {
    let disk = SimDisk::new(7);
    disk.create_dir_all(Path::new("/a/b")).expect("room");
    create(&disk, "/a/b/f");
    disk.sync_dir(Path::new("/a/b")).expect("there");
    disk.sync_dir(Path::new("/a")).expect("there");
    let fork = disk.fork(0);
    fork.crash(&CRUEL);
    assert_eq!(fork.list(Path::new("/")).expect("the root"), Vec::<String>::new());
    sync_root(&disk);
    disk.crash(&CRUEL);
    assert!(content(&disk, "/a/b/f").is_some());
}

#[test]
fn a_kill_keeps_the_page_cache_and_ends_handles_and_locks() {
    let disk = SimDisk::new(7);
    let file = create(&disk, "/f");
    let lock = disk.lock(Path::new("/lock")).expect("free");
    write(&*file, 0, b"a").expect("room");
    disk.kill();
    assert!(file.sync_data().is_err_and(|error| Stopped::is_cause_of(&error)));
    let held = disk.lock(Path::new("/lock")).expect("the holder is dead");
    drop(lock);
    assert!(disk.lock(Path::new("/lock")).is_err(), "a dead holder can not give back another's lock");
    drop(held);
    assert_eq!(content(&disk, "/f"), Some(b"a".to_vec()));
    disk.crash(&CRUEL);
    assert_eq!(content(&disk, "/f"), None);
}

#[test]
fn a_process_stops_after_so_many_operations() {
    for operations in 0..5 {
        let disk = SimDisk::new(operations);
        let run = || -> io::Result<()> {
            let file = disk.open(Path::new("/f"), OpenMode::CreateNew)?;
            write(&*file, 0, &[1; 4000])?;
            file.sync_data()?;
            disk.sync_dir(Path::new("/"))?;
            disk.rename(Path::new("/f"), Path::new("/g"))
        };
        disk.inject(Fault::StopsAfter { operations });
        let error = run().expect_err("it stops at every one of five operations");
        assert!(Stopped::is_cause_of(&error) && disk.is_stopped());
        assert!(disk.list(Path::new("/")).is_err(), "nothing answers any more");
        let trace = disk.take_trace();
        assert_eq!(trace.len() as u64, operations + 1);
        assert!(trace.iter().take(operations as usize).all(|event| event.succeeded));
        disk.kill();
        assert!(disk.list(Path::new("/")).is_ok());
        disk.crash(&CRUEL);
        let names = disk.list(Path::new("/")).expect("the root");
        assert_eq!(names.len(), usize::from(operations >= 4), "synced after the fourth");
    }
}

#[test]
fn a_full_disk_refuses_and_has_room_again_after_a_removal() {
    let disk = SimDisk::new(7);
    disk.set_capacity(Some(1000));
    let file = create(&disk, "/f");
    file.allocate(600).expect("room");
    let other = create(&disk, "/g");
    let full = |result: io::Result<()>| result.is_err_and(|error| error.kind() == io::ErrorKind::StorageFull);
    assert!(full(other.allocate(401)));
    assert!(full(write(&*other, 0, &[1; 401])));
    assert!(other.len().expect("open") <= 400);
    write(&*file, 0, &[1; 600]).expect("inside what was allocated");
    drop(file);
    disk.remove(Path::new("/f")).expect("there");
    other.allocate(1000).expect("room again");
    assert_eq!(disk.free_bytes(Path::new("/")).expect("known"), 0);
}

#[test]
fn faults_happen_once_and_where_they_were_asked_for() {
    let disk = SimDisk::new(7);
    let file = create(&disk, "/f");
    disk.inject(Fault::WriteFails { nth: 2 });
    write(&*file, 0, b"aaaa").expect("the first");
    assert!(is_io_error(write(&*file, 4, b"bbbb")));
    write(&*file, 4, b"bbbb").expect("the third");
    disk.inject(Fault::SyncDirFails { nth: 1 });
    assert!(is_io_error(disk.sync_dir(Path::new("/"))));
    sync_root(&disk);
    disk.inject(Fault::ReadFails { path: "/f".into(), range: 2..3 });
    let mut buf = [0; 2];
    file.read_exact_at(0, &mut buf).expect("before it");
    assert!(is_io_error(file.read_at(1, &mut buf)));
    file.read_exact_at(3, &mut buf).expect("behind it");
    disk.heal();
    file.read_exact_at(1, &mut buf).expect("healed");
    disk.flip_bit(Path::new("/f"), 0, 1);
    assert_eq!(content(&disk, "/f"), Some(b"caaabbbb".to_vec()));
}

#[test]
fn the_trace_tells_everything_in_order() {
    let disk = SimDisk::new(7);
    let file = create(&disk, "/f");
    write(&*file, 3, b"abc").expect("room");
    file.sync_data().expect("no fault");
    assert!(disk.remove(Path::new("/g")).is_err());
    let told: Vec<_> =
        disk.take_trace().into_iter().map(|event| (event.operation, event.succeeded)).collect();
    let expected = [
        (Operation::Create("/f".into()), true),
        (Operation::Write("/f".into(), 3..6), true),
        (Operation::Sync("/f".into()), true),
        (Operation::Remove("/g".into()), false),
    ];
    assert_eq!(told, expected);
    let counters = disk.counters();
    assert_eq!((counters.operations, counters.writes, counters.bytes_written, counters.syncs), (4, 1, 3, 1));
}

#[test]
fn files_that_nobody_can_reach_are_forgotten() {
    let disk = SimDisk::new(7);
    let file = create(&disk, "/f");
    sync_root(&disk);
    disk.remove(Path::new("/f")).expect("there");
    sync_root(&disk);
    assert_eq!(disk.state().inodes.len(), 1, "still open");
    drop(file);
    assert_eq!(disk.state().inodes.len(), 0);
}
