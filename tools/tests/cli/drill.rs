//! `quire drill`: a broker that is killed again and again loses nothing, and nothing of a drill stays.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, test_kill_process};
use serde_json::Value;

use crate::support::{Dev, Home, path, text};

const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for something that another process does.
fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The processes that a process started and that still run.
fn children(parent: u32) -> Vec<Pid> {
    let threads = std::fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
    let ids: String =
        threads.filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok()).collect();
    ids.split_whitespace().filter_map(|id| Pid::from_raw(id.parse().ok()?)).collect()
}

fn folders(home: &Home) -> Vec<PathBuf> {
    let files =
        std::fs::read_dir(home.path()).expect("the home is there").map(|file| file.expect("read").path());
    files.filter(|file| file.to_string_lossy().contains("quire-")).collect()
}

#[test]
fn a_broker_that_is_killed_loses_nothing_that_it_acknowledged() {
    let home = Home::new();
    let kept = home.path().join("kept");
    let args = ["drill", "--duration", "6s", "--rate", "500", "--seed", "7", "--json", "--keep", path(&kept)];
    let ran = home.quire(&args).output().expect("it runs");
    let report: Value = serde_json::from_slice(&ran.stdout).expect("one object");
    for count in ["lost", "duplicated", "reordered"] {
        assert_eq!(report[count], 0, "{report}");
    }
    assert_eq!(report["verdict"], "clean", "{report}");
    assert_eq!(report["brokers"], 3, "{report}");
    assert_eq!(report["replicas_read"], 3 * 8, "{report}");
    assert_eq!(report["read_back"], report["acknowledged"], "{report}");
    assert_eq!(report["failures"], Value::Array(Vec::new()), "{report}");
    assert!(report["acknowledged"].as_u64().is_some_and(|count| count > 1000), "{report}");
    let faults = report["faults"].as_array().expect("a list");
    assert!(!faults.is_empty() && faults.iter().all(|fault| fault["resumed"] == true), "{report}");
    assert!(report["unavailable_ms"]["max"].as_u64().is_some_and(|ms| ms > 0), "{report}");
    assert_eq!(report["seed"], 7);
    assert_eq!(ran.status.code(), Some(0), "the exit code is the verdict");
    let history = std::fs::read_to_string(kept.join("history.txt")).expect("it is kept");
    assert!(history.contains("note kill -9 broker "), "the kills stand in the history");
    assert!(history.contains(" epoch "), "acknowledgements say which leadership they are of");
    assert!(history.contains(" ok frame "), "what replicas hold stands there too");
}

/// A broker alone is away while it starts again, and loses nothing either.
#[test]
fn a_broker_alone_is_drilled_too() {
    let home = Home::new();
    let args = ["drill", "--kill-all", "--brokers", "1", "--duration", "4s", "--rate", "200", "--json"];
    let report = home.json(&args).remove(0);
    assert_eq!((&report["verdict"], &report["replicas_read"]), (&"clean".into(), &8.into()), "{report}");
    assert_eq!(report["faults"][0]["what"], "kill -9 the broker");
}

#[test]
fn a_running_cluster_is_put_under_load_and_left_alone() {
    let dev = Dev::start();
    let args = ["drill", "--cluster", "--duration", "4s", "--rate", "200", "--json"];
    let report = dev.home.json(&args).remove(0);
    assert_eq!((&report["verdict"], &report["duplicated"]), (&"clean".into(), &0.into()), "{report}");
    assert_eq!(report["faults"], Value::Array(Vec::new()));
    assert_eq!(report["replicas_read"], Value::Null, "its files are not ours");
    assert_eq!(dev.home.stdout(&["topic", "list"]), "", "its topic is gone");
}

/// What does not run as long as the drill has no use: Ctrl-C ends the brokers too, and removes what they wrote.
#[test]
fn ctrl_c_leaves_no_process_and_no_file() {
    let home = Home::new();
    let drill = home.spawn(&["drill", "--duration", "60s"]);
    let brokers =
        wait_for("a broker starts", || Some(children(drill.id())).filter(|found| !found.is_empty()));
    drill.signal(Signal::INT);
    let ended = drill.end();
    assert_eq!(ended.status.code(), Some(130), "{}", text(&ended.stderr));
    assert!(brokers.iter().all(|broker| test_kill_process(*broker).is_err()), "a broker still runs");
    assert_eq!(folders(&home), Vec::<PathBuf>::new());
}

/// A drill that is killed itself can clean up nothing; its brokers see the end of their input.
#[test]
fn no_broker_outlives_a_drill_that_is_killed() {
    let home = Home::new();
    let drill = home.spawn(&["drill", "--duration", "60s"]);
    let brokers =
        wait_for("a broker starts", || Some(children(drill.id())).filter(|found| !found.is_empty()));
    drill.signal(Signal::KILL);
    drop(drill.end());
    for broker in brokers {
        wait_for("it ends", || {
            test_kill_process(broker).err().or_else(|| {
                // A zombie is a process that nobody waits for any more: it runs no longer.
                let stat = std::fs::read_to_string(format!("/proc/{}/stat", broker.as_raw_nonzero())).ok()?;
                stat.contains(") Z ").then_some(rustix::io::Errno::SRCH)
            })
        });
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    let home = Home::new();
    for (args, what) in [
        (&["drill", "--cluster", "--kill-all"][..], "cannot be used with"),
        (&["drill", "--duration", "1s"][..], "from 4s to 24h"),
        (&["drill", "--seed", "x"][..], "0x5eed1f2a"),
        (&["drill", "--profile", "p"][..], "add --cluster"),
        (&["drill", "--keep", path(home.path().parent().expect("it is in a folder"))][..], "is not empty"),
    ] {
        let failure = home.failure(args, 2);
        assert!(failure.contains(what), "{args:?}: {failure}");
    }
}
