//! `quire demo`

use rustix::process::Signal;

use crate::support::{Home, path, text};

#[test]
fn the_demo_succeeds_with_the_samples_totals_and_leaves_nothing_behind() {
    let home = Home::new();
    let temporary = home.path().join("tmp");
    std::fs::create_dir(&temporary).expect("a new folder");
    let ran = home.quire(&["demo"]).env("TMPDIR", path(&temporary)).assert().success();
    let (out, err) = (text(&ran.get_output().stdout), text(&ran.get_output().stderr));
    assert!(out.contains("\n UA            1,918     7.3 min\n"), "{out}");
    assert!(out.contains("11,045     6.6      72,532 minutes in total   ✓ as expected\n"), "{out}");
    assert!(
        out.ends_with("replay   2013-01-08, found by timestamp in 8 partitions: 908 departures   ✓\n"),
        "{out}"
    );
    assert!(err.contains("11,045 / 11,045") && err.contains("all on disk"), "{err}");
    assert!(err.contains("\nNext:  quire dev"), "{err}");
    assert_eq!(std::fs::read_dir(&temporary).expect("it is there").count(), 0);
    assert!(!home.path().join("config").exists(), "a throwaway broker writes no profile");
}

#[test]
fn the_demos_answer_is_also_json() {
    let answers = Home::new().json(&["demo", "--json"]);
    let [answer] = answers.as_slice() else { panic!("one object: {answers:?}") };
    assert_eq!(answer["departures"], 11_045);
    assert_eq!(answer["delay_min"], 72_532);
    assert_eq!(answer["one_day"]["departures"], 908);
    assert_eq!(answer["replicas_on_disk"], 1);
    assert_eq!(answer["as_expected"], true);
    assert_eq!(answer["carriers"].as_array().map(Vec::len), Some(15));
}

#[test]
fn the_commands_that_the_demo_recommends_exist() {
    let home = Home::new();
    let err = text(&home.quire(&["demo"]).assert().success().get_output().stderr);
    let next = err.split_once("Next:").expect("it says what is next").1;
    let commands = next.lines().filter_map(|line| line.trim().strip_prefix("quire "));
    let mut checked = 0;
    for command in commands {
        let words: Vec<&str> = command.split_whitespace().take_while(|word| word.is_ascii()).collect();
        home.quire(&[words[0], "--help"]).assert().success();
        checked += 1;
    }
    assert!(checked >= 2, "{next}");
}

#[test]
fn ctrl_c_interrupts_the_demo() {
    let home = Home::new();
    let mut demo = home.spawn(&["demo"]);
    let ready = demo.error_line();
    assert!(ready.starts_with("broker") && ready.contains("ready in"), "{ready}");
    demo.signal(Signal::INT);
    let ended = demo.end();
    assert_eq!(ended.status.code(), Some(130), "{}", text(&ended.stderr));
    assert_eq!(
        std::fs::read_dir(home.path()).expect("it is there").count(),
        0,
        "its broker's folder is gone"
    );
}
