//! Ctrl-C, SIGTERM and what stays afterwards.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::{Dev, Home, ignores_interrupts, path, text};

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
    // As under nohup: such a signal ends nothing by itself, here and in what is started from here.
    if ignores_interrupts() {
        println!("skipped: ctrl_c_ends_a_produce_that_waits_for_its_first_line (SIGINT is ignored here)");
        return;
    }
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
    // Nothing tells when a line is taken that nobody answers: a busy machine gets more time.
    let mut pauses = [500, 2_000, 8_000].map(Duration::from_millis).into_iter();
    assert!(pauses.any(interrupts_what_waits), "the line is never taken");
}

/// Produces a line that reaches the log and one that nobody answers, and interrupts after `pause`. Whether the second
/// was taken by then: what was said then is checked.
fn interrupts_what_waits(pause: Duration) -> bool {
    let dev = Dev::start();
    dev.home.stdout(&["topic", "create", "t"]);
    let mut produce = dev.home.spawn(&["produce", "t"]);
    let mut consume = dev.home.spawn(&["consume", "t", "--follow"]);
    produce.write(
        b"one
",
    );
    assert_eq!(consume.line(), "one");
    dev.broker.signal(Signal::STOP);
    produce.write(
        b"two
",
    );
    std::thread::sleep(pause);
    produce.signal(Signal::INT);
    let note = produce.error_line();
    let on_the_way =
        match note.strip_prefix("waiting up to 30s for ").and_then(|rest| rest.split_once(" on the way")) {
            Some((on_the_way, "; Ctrl-C again gives up")) => on_the_way,
            _ if note == "interrupted" => return false,
            _ => panic!("{note}"),
        };
    produce.signal(Signal::INT);
    let ended = produce.end();
    assert_eq!(ended.status.code(), Some(130));
    let (out, err) = (text(&ended.stdout), text(&ended.stderr));
    let last = format!("interrupted; {on_the_way} on the way may be written or not\n");
    match on_the_way {
        "1 record" => assert!(out.contains("1 record acknowledged") && err == last, "{out}{err}"),
        // The consumer saw the first line, the producer not yet its acknowledgement.
        "2 records" => {
            assert!(out.is_empty() && err == format!("nothing acknowledged\n{last}"), "{out}{err}")
        }
        other => panic!("{other}"),
    }
    true
}
