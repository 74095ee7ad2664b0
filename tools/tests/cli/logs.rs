//! `quire log`

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::support::{Dev, Home, path, sample};

/// A home, and the data of a broker that took the sample and was stopped.
fn stopped() -> (Home, Home) {
    let data = Home::new();
    let dev = Dev::start_in(Home::new(), &["--data", path(data.path())]);
    dev.home.stdout(&["topic", "create", "flights", "--partitions", "2"]);
    dev.home.stdout(&["produce", "flights", "--file", path(&sample()), "--input", "ndjson"]);
    (dev.stop().0, data)
}

/// The directory of partition 1.
fn partition(data: &Path) -> PathBuf {
    let topics = std::fs::read_dir(data.join("topics")).expect("there are topics");
    let topic = topics.map(|entry| entry.expect("it can be listed").path()).next().expect("there is one");
    topic.join("1")
}

fn segment(partition: &Path) -> PathBuf {
    let mut files =
        std::fs::read_dir(partition).expect("it is a directory").map(|entry| entry.expect("listed").path());
    files.find(|file| file.extension().is_some_and(|extension| extension == "log")).expect("it has a segment")
}

#[test]
fn a_whole_data_directory_is_inspected_and_verified() {
    let (home, data) = stopped();
    let inspected = home.stdout(&["log", "inspect", path(data.path())]);
    assert_eq!(inspected.matches("closed cleanly at offset").count(), 3, "{inspected}");
    assert!(inspected.contains(" SEGMENT ") && inspected.contains(".log"), "{inspected}");
    let verified = home.stdout(&["log", "verify", path(data.path())]);
    assert_eq!(verified.matches(" ✓\n").count(), 3, "{verified}");
    assert!(
        verified.contains("3 logs, ") && verified.ends_with("intact: checksums, offsets and chain\n"),
        "{verified}"
    );

    let logs = home.json(&["log", "verify", path(data.path()), "--json"]);
    let records: u64 = logs[1..].iter().filter_map(|log| log["records"].as_u64()).sum();
    assert_eq!((logs[0]["log"].as_str(), records), (Some("metadata"), 11_045));
    let one = home.json(&["log", "inspect", path(&partition(data.path())), "--json"]);
    assert_eq!(
        (one.len(), &one[0]["partition"], &one[0]["manifest"]["state"]),
        (1, &1.into(), &"intact".into())
    );
}

#[test]
fn a_flipped_bit_is_found_at_its_byte_and_is_exit_code_1() {
    let (home, data) = stopped();
    let partition = partition(data.path());
    let file = segment(&partition);
    let position = 1000;
    let segment = std::fs::OpenOptions::new().read(true).write(true).open(&file).expect("it is there");
    let mut byte = [0];
    segment.read_exact_at(&mut byte, position).expect("it is longer");
    segment.write_all_at(&[byte[0] ^ 1], position).expect("it can be written");
    drop(segment);

    for dir in [data.path(), &partition] {
        let ran = home.quire(&["log", "verify", path(dir)]).assert().failure().code(1);
        let out = crate::support::text(&ran.get_output().stdout);
        assert!(out.contains(&format!("{} at byte ", file.display())), "{out}");
        assert!(out.contains("DAMAGED: 1 log\n"), "{out}");
        assert!(out.contains("damaged. The broker serves what is intact"), "{out}");
    }
    let ran = home.quire(&["log", "verify", path(&partition), "--json"]).assert().failure().code(1);
    let log: serde_json::Value = serde_json::from_slice(&ran.get_output().stdout).expect("one object");
    assert_eq!((&log["intact"], &log["finding"]["kind"]), (&false.into(), &"corruption".into()));
}

#[test]
fn what_holds_no_log_is_said_so() {
    let home = Home::new();
    let failure = home.failure(&["log", "verify", path(home.path())], 1);
    assert!(failure.contains("holds no log") && failure.contains("data directory"), "{failure}");
    let failure = home.failure(&["log", "inspect", "/nowhere/at/all"], 1);
    assert!(failure.contains("no such file or directory"), "{failure}");
}

#[test]
fn a_running_brokers_directory_is_warned_about() {
    let data = Home::new();
    let dev = Dev::start_in(Home::new(), &["--data", path(data.path())]);
    let ran = dev.home.quire(&["log", "inspect", path(data.path())]).assert().success();
    let err = crate::support::text(&ran.get_output().stderr);
    assert!(err.contains("a broker has this directory open"), "{err}");
}

#[test]
fn logs_are_called_by_their_topic() {
    let (home, data) = stopped();
    for command in ["inspect", "verify"] {
        for (dir, of_topic) in [(data.path().to_owned(), 2), (partition(data.path()), 1)] {
            let shown = home.stdout(&["log", command, path(&dir)]);
            assert!(shown.contains("flights/1 (") && shown.contains("…)"), "{shown}");
            let logs = home.json(&["log", command, path(&dir), "--json"]);
            assert_eq!(logs.iter().filter(|log| log["topic"] == "flights").count(), of_topic);
        }
    }
}

#[test]
fn a_log_that_the_metadata_knows_and_that_is_missing_is_damage() {
    let (home, data) = stopped();
    let lost = partition(data.path()).with_file_name("0");
    std::fs::remove_dir_all(&lost).expect("it was there");
    for is_empty_there in [false, true] {
        if is_empty_there {
            std::fs::create_dir(&lost).expect("it can be made");
        }
        for command in ["inspect", "verify"] {
            let ran = home.quire(&["log", command, path(data.path())]).assert().failure().code(1);
            let out = crate::support::text(&ran.get_output().stdout);
            assert!(out.contains("flights/0 (") && out.contains("its log is missing"), "{out}");
            assert!(out.contains("flights/1 ("), "the others are shown all the same: {out}");
        }
    }
    let topic = lost.parent().expect("a topic's directory");
    std::fs::remove_dir_all(topic).expect("it was there");
    let ran = home.quire(&["log", "verify", path(data.path()), "--json"]).assert().failure().code(1);
    let out = crate::support::text(&ran.get_output().stdout);
    assert_eq!(out.matches("\"missing\":true").count(), 2, "{out}");
}

#[test]
fn a_directory_that_no_topic_owns_is_pointed_out() {
    let (home, data) = stopped();
    let topic = partition(data.path()).with_file_name("");
    let stray = data.path().join("topics").join("ab".repeat(16)).join("0");
    std::fs::create_dir_all(&stray).expect("a new folder");
    let passed_over = home.stdout(&["log", "verify", path(data.path())]);
    assert!(passed_over.contains("/0: no topic owns this directory"), "{passed_over}");
    assert!(passed_over.ends_with("intact: checksums, offsets and chain\n"), "no damage: {passed_over}");
    let third = topic.join("2");
    std::fs::create_dir(&third).expect("a new folder");
    for file in std::fs::read_dir(topic.join("1")).expect("there") {
        let file = file.expect("listed");
        std::fs::copy(file.path(), third.join(file.file_name())).expect("room");
    }
    let ran = home.quire(&["log", "verify", path(data.path())]).assert().failure().code(1);
    let out = crate::support::text(&ran.get_output().stdout);
    assert!(out.contains("/2: no topic owns this directory"), "{out}");
}
