//! Ctrl-C, SIGTERM and what stays afterwards.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::{Dev, Home, path, text};

#[test]
fn ctrl_c_stops_dev_cleanly_and_its_data_stays() {
    let data = Home::new();
    let dev = Dev::start_in(Home::new(), &["--data", path(data.path())]);
    assert_eq!(dev.ready["ephemeral"], false);
    dev.home.stdout(&["topic", "create", "t", "--partitions", "2"]);
    dev.home.pipe(&["produce", "t"], "kept\n");
    let (home, last) = dev.stop();
    assert!(last.starts_with("stopping: ") && last.contains("2 partitions synced, clean ("), "{last}");

    let again = Dev::start_in(home, &["--data", path(data.path())]);
    assert_eq!(again.home.stdout(&["consume", "t"]), "kept\n");
}

#[test]
fn sigterm_stops_dev_as_well_and_hangup_does_not() {
    let dev = Dev::start();
    dev.broker.signal(Signal::HUP);
    assert_eq!(dev.home.stdout(&["topic", "list"]), "");
    dev.broker.signal(Signal::TERM);
    let ended = dev.broker.end();
    assert!(ended.status.success() && text(&ended.stderr).contains("clean ("), "{}", text(&ended.stderr));
}

#[test]
fn a_data_folder_belongs_to_one_broker() {
    let data = Home::new();
    let dev = Dev::start_in(Home::new(), &["--data", path(data.path())]);
    let args = ["dev", "--data", path(data.path()), "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let failure = dev.home.failure(&args, 1);
    assert!(failure.contains("is in use by another broker"), "{failure}");
    assert!(failure.contains("--data DIR"), "{failure}");
}

#[test]
fn ctrl_c_ends_a_following_consume_with_its_count() {
    let dev = Dev::start();
    dev.home.stdout(&["topic", "create", "t"]);
    dev.home.pipe(&["produce", "t"], "one\ntwo\n");
    let mut consume = dev.home.spawn(&["consume", "t", "--follow"]);
    assert_eq!((consume.line(), consume.line()), ("one".to_owned(), "two".to_owned()));
    consume.signal(Signal::INT);
    let ended = consume.end();
    assert_eq!(ended.status.code(), Some(130));
    assert_eq!(text(&ended.stderr), "2 records, interrupted\n");
}

#[test]
fn ctrl_c_ends_a_produce_with_what_was_acknowledged() {
    let dev = Dev::start();
    dev.home.stdout(&["topic", "create", "t"]);
    let mut produce = dev.home.spawn(&["produce", "t"]);
    produce.write(b"one\n");
    let mut consume = dev.home.spawn(&["consume", "t", "--follow"]);
    assert_eq!(consume.line(), "one");
    produce.signal(Signal::INT);
    let ended = produce.end();
    assert_eq!(ended.status.code(), Some(130));
    assert!(text(&ended.stdout).contains("1 record acknowledged"), "{}", text(&ended.stdout));
    assert_eq!(text(&ended.stderr), "interrupted\n");
}

#[test]
fn ctrl_c_ends_a_produce_that_waits_for_its_first_line() {
    let dev = Dev::start();
    dev.home.stdout(&["topic", "create", "t"]);
    let produce = dev.home.spawn(&["produce", "t"]);
    // Long enough that it usually waits for input by now; if it does not yet, the signal ends it just the same.
    std::thread::sleep(Duration::from_millis(500));
    produce.signal(Signal::INT);
    let status = produce.end().status;
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(2), "{status}");
}

#[test]
fn sigterm_ends_a_broker_that_is_still_starting() {
    let data = Home::new();
    let dev = Dev::start_in(Home::new(), &["--data", path(data.path())]);
    let (home, _) = dev.stop();
    // A start that takes as long as it likes: nobody ever writes to this pipe.
    let authority = data.path().join("tls/authority.pem");
    std::fs::remove_file(&authority).expect("the first start made it");
    let made = std::process::Command::new("mkfifo").arg(&authority).status().expect("it is installed");
    assert!(made.success());
    let args = ["dev", "--data", path(data.path()), "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let starting = home.spawn(&args);
    let has_begun = || {
        let inspected = home.quire(&["log", "inspect", path(data.path())]).assert().success();
        text(&inspected.get_output().stderr).contains("a broker has this directory open")
    };
    let given_up = Instant::now() + Duration::from_secs(30);
    while !has_begun() {
        assert!(Instant::now() < given_up, "it never takes its data folder");
    }
    starting.signal(Signal::TERM);
    let ended = starting.end();
    assert!(ended.status.success(), "{}", ended.status);
    assert_eq!(text(&ended.stderr), "stopped before it was ready\n");
}

#[test]
fn an_interrupted_produce_says_what_it_waits_for_and_that_it_need_not() {
    let dev = Dev::start();
    dev.home.stdout(&["topic", "create", "t"]);
    let mut produce = dev.home.spawn(&["produce", "t"]);
    let mut consume = dev.home.spawn(&["consume", "t", "--follow"]);
    produce.write(b"one\n");
    assert_eq!(consume.line(), "one");
    dev.broker.signal(Signal::STOP);
    produce.write(b"two\n");
    // Nothing tells that the line was taken, since nobody answers.
    std::thread::sleep(Duration::from_millis(500));
    produce.signal(Signal::INT);
    assert_eq!(produce.error_line(), "waiting up to 30s for 1 record on the way; Ctrl-C again gives up");
    produce.signal(Signal::INT);
    let ended = produce.end();
    assert_eq!(ended.status.code(), Some(130));
    assert!(text(&ended.stdout).contains("1 record acknowledged"), "{}", text(&ended.stdout));
    assert_eq!(text(&ended.stderr), "interrupted; 1 record on the way may be written or not\n");
}
