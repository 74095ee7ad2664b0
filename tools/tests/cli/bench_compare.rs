//! `quire bench compare` over files that a benchmark wrote, and over files that none did.

use serde_json::Value;

use crate::support::{Home, path, text};

/// The path of a report kept for tests: a produce of three repetitions under that `sync`.
pub fn fixture(sync: &str) -> String {
    format!("{}/tests/fixtures/bench/produce-{sync}.json", env!("CARGO_MANIFEST_DIR"))
}

fn compared(home: &Home, files: &[&str]) -> Value {
    let answer = home.json(&[&["bench", "compare", "--json"], files].concat());
    let [answer] = <[Value; 1]>::try_from(answer).expect("one object");
    answer
}

#[test]
fn two_reports_stand_beside_each_other() {
    let page = Home::new().stdout(&["bench", "compare", &fixture("always"), &fixture("interval")]);
    let differ = page.find("SETTINGS THAT DIFFER").expect("they differ");
    let figures = page.find("FIGURE").expect("there are figures");
    assert!(differ < figures, "{page}");
    assert!(page[differ..figures].contains("Sync                  always  interval"), "{page}");
    let produced = page.lines().find(|line| line.starts_with(" Produced  ")).expect("a figure");
    assert!(produced.ends_with("×  better"), "{produced}");
}

#[test]
fn the_ratio_is_of_the_medians_and_to_the_first() {
    let answer = compared(&Home::new(), &[&fixture("always"), &fixture("interval")]);
    let medians: Vec<f64> = ["always", "interval"]
        .iter()
        .map(|sync| {
            let file = std::fs::read_to_string(fixture(sync)).expect("it is there");
            let report: Value = serde_json::from_str(&file).expect("it is JSON");
            report["summary"]["produced_records_per_second"]["median"].as_f64().expect("a number")
        })
        .collect();
    let figure = &answer["figures"][0];
    assert_eq!(
        figure["spreads"][1]["median"].as_f64(),
        Some(medians[1]),
        "as the report's own summary has it"
    );
    assert_eq!(figure["ratios"][1].as_f64(), Some(medians[1] / medians[0]));
    assert_eq!(figure["verdicts"][1], "better");
}

#[test]
fn a_report_beside_itself_shows_no_difference() {
    let answer = compared(&Home::new(), &[&fixture("always"), &fixture("always")]);
    assert_eq!(answer["settings"], Value::Array(Vec::new()));
    for figure in answer["figures"].as_array().expect("figures") {
        assert_eq!(figure["verdicts"][1], "within_spread", "{figure}");
    }
}

#[test]
fn a_page_is_written_and_can_be_compared_again() {
    let home = Home::new();
    let page = home.path().join("both.html");
    let ran = home
        .quire(&["bench", "compare", &fixture("always"), &fixture("interval"), "--report", path(&page)])
        .assert()
        .success();
    assert!(text(&ran.get_output().stderr).contains("both.html"), "it says where the page is");
    let html = std::fs::read_to_string(&page).expect("it was written");
    assert!(html.contains("<h1>Sync: always beside interval</h1>") && html.contains("<svg"));
    let [files, pages] =
        [compared(&home, &[&fixture("always"), &fixture("interval")]), compared(&home, &[path(&page)])];
    assert_eq!(files["figures"], pages["figures"]);
    assert_eq!(pages["reports"][1]["file"], path(&page));
}

#[test]
fn files_that_are_no_reports_are_named_with_what_is_wrong() {
    let home = Home::new();
    let newer = home.file("newer.json", r#"{"format":99,"version":"7.0.0"}"#);
    let foreign = home.file("foreign.json", r#"{"a":1}"#);
    let cut = home.file("cut.json", &std::fs::read(fixture("always")).expect("it is there")[..500]);
    let page = home.file("other.html", "<!doctype html><title>x</title>");
    for (file, told) in [
        (&newer, "written by Quire 7.0.0 in format 99; this Quire reads up to format 1"),
        (&foreign, "not a report of 'quire bench'"),
        (&cut, "not JSON: EOF"),
        (&page, "a page, but not one of 'quire bench'"),
    ] {
        let err = home.failure(&["bench", "compare", &fixture("always"), path(file)], 1);
        assert!(err.starts_with(&format!("error: {}: {told}", path(file))), "{err}");
        assert!(err.contains("quire bench … --json"), "{err}");
    }
    let err = home.failure(&["bench", "compare", "nowhere.json"], 1);
    assert!(err.starts_with("error: nowhere.json: no such file or directory"), "{err}");
    home.failure(&["bench", "compare"], 2);
    let err = home.failure(&["bench", "compare", &fixture("always"), "--report", "no/such/folder/x.html"], 1);
    assert!(err.contains("no/such/folder/x.html"), "{err}");
}
