//! A group's life as a readable script with its recorded output: what was asked, what went into the log, what was answered.
//!
//! `testdata/groups.txt` is written again by running this test with `RECORD=1`.

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use quire_engine::group::coordinator::Input;
use quire_engine::group::{Generation, Record, Request};

use crate::desk::{Desk, GROUP, beat, commit, join, join_as, offset, owns, partition, partitions, topics};

enum Step {
    Asks(Box<Request>),
    Waits(u64),
    Topics(u32),
    Moves,
}

fn steps() -> Vec<(&'static str, Step)> {
    let asks = |request| Step::Asks(Box::new(request));
    let says = |heartbeat| asks(Request::Heartbeat(heartbeat));
    vec![
        ("the first member joins", says(join("m1", &["a"]))),
        ("it commits", asks(commit("m1", 1, vec![offset(partition("a", 2), 7)]))),
        ("a second one joins, and waits", says(join_as("i2", "m2", &["a"]))),
        ("the first learns what to give up", says(beat("m1", 1))),
        ("it commits once more", asks(commit("m1", 1, vec![offset(partition("a", 2), 9)]))),
        ("an offset does not go back", asks(commit("m1", 1, vec![offset(partition("a", 2), 8)]))),
        ("it has given it up", says(owns("m1", 1, partitions("a", [0, 1])))),
        ("a commit of its last epoch", asks(commit("m1", 1, vec![offset(partition("a", 2), 10)]))),
        ("the second takes over", says(beat("m2", 2))),
        ("the coordinator moves", Step::Moves),
        ("the second goes on", says(beat("m2", 2))),
        ("it leaves for a while", says(beat("m2", Generation::PAUSES.0))),
        ("and is back in another process", says(join_as("i2", "m3", &["a"]))),
        ("the topic grows", Step::Topics(4)),
        ("the first learns of it", says(beat("m1", 2))),
        ("nobody is heard of", Step::Waits(10)),
        ("the first thinks that it is there", says(beat("m1", 3))),
        ("the group is forgotten", asks(Request::DeleteGroup { group: GROUP.into() })),
    ]
}

#[test]
fn the_script_gives_its_recorded_output() {
    let mut desk = Desk::with(topics(&[("a", 3)]));
    let mut script = String::new();
    for (what, step) in steps() {
        writeln!(script, "# {what}").expect("strings take everything");
        let before = desk.log.len();
        let answer = match step {
            Step::Asks(request) => Some(desk.ask(*request)),
            Step::Waits(seconds) => {
                desk.wait(Duration::from_secs(seconds));
                None
            }
            Step::Topics(count) => {
                desk.give(Input::Topics(topics(&[("a", count)])));
                None
            }
            Step::Moves => {
                desk.lead();
                None
            }
        };
        for (key, value) in &desk.log[before..] {
            let record = Record::decode(key, value.as_deref()).expect("what was written can be read");
            writeln!(script, "record: {record:?}").expect("strings take everything");
        }
        for removed in desk.removed.drain(..) {
            writeln!(script, "removed: {removed}").expect("strings take everything");
        }
        match answer {
            None => {}
            Some(Ok(response)) => writeln!(script, "answer: {response:?}").expect("strings take everything"),
            Some(Err(refusal)) => writeln!(script, "refused: {refusal}").expect("strings take everything"),
        }
        writeln!(script).expect("strings take everything");
    }
    for index in 0..4 {
        let each = partition("a", index);
        script = script.replace(&format!("{each:?}"), &format!("a-{index}"));
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/groups.txt");
    if std::env::var_os("RECORD").is_some() {
        std::fs::write(&path, &script).expect("the recording can be written");
    }
    let recorded = std::fs::read_to_string(&path).expect("the recording is there");
    assert_eq!(script, recorded);
}
