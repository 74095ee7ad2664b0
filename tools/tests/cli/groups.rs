//! `quire group` and `quire consume --group`

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::{Dev, Running, text};

fn filled(dev: &Dev) {
    dev.home.stdout(&["topic", "create", "flights", "--partitions", "2"]);
    let lines: String = (0..100).map(|number| format!("{number}:{number}\n")).collect();
    dev.home.pipe(&["produce", "flights", "--key-separator", ":"], lines.as_str());
}

#[test]
fn a_group_goes_on_where_it_was_and_is_moved_and_deleted() {
    let dev = Dev::start();
    let home = &dev.home;
    filled(&dev);
    let first =
        home.stdout(&["consume", "flights", "--group", "billing", "-n", "60", "--format", "%p:%o\\n"]);
    let second = home.stdout(&["consume", "flights", "-g", "billing", "-n", "40", "--format", "%p:%o\\n"]);
    let mut places: Vec<_> = first.lines().chain(second.lines()).collect();
    places.sort_unstable();
    places.dedup();
    assert_eq!(places.len(), 100, "nothing twice, nothing missing");

    let listed = home.json(&["group", "list", "--json"]);
    assert_eq!(
        (listed.len(), &listed[0]["name"], &listed[0]["state"]),
        (1, &"billing".into(), &"empty".into())
    );
    let described = &home.json(&["group", "describe", "billing", "--json"])[0];
    assert_eq!((&described["lag"], described["partitions"].as_array().map(Vec::len)), (&0.into(), Some(2)));
    let page = home.stdout(&["group", "describe", "billing"]);
    assert!(
        page.starts_with("billing   empty   generation ") && page.contains("RETENTION TAKES IT IN"),
        "{page}"
    );

    let planned = home.stdout(&["group", "reset", "billing", "--shift", "-10", "--dry-run"]);
    assert!(planned.contains("-10"), "{planned}");
    let lag = |home: &crate::support::Home| {
        home.json(&["group", "describe", "billing", "--json"])[0]["lag"].as_u64().expect("a number")
    };
    assert_eq!(lag(home), 0, "a dry run changes nothing");
    home.stdout(&["group", "reset", "billing", "--shift", "-10"]);
    assert_eq!(lag(home), 20);
    let told = home.stdout(&["group", "explain", "billing"]);
    assert!(
        told.contains("nobody processes its 20 waiting records") && told.contains("    → start its"),
        "{told}"
    );
    let findings = &home.json(&["group", "explain", "billing", "--json"])[0]["findings"];
    assert_eq!(findings[0]["weight"], "stuck");
    home.stdout(&["group", "reset", "billing", "--to", "beginning", "--partition", "1"]);
    let again = home.stdout(&["consume", "flights", "--group", "billing", "-n", "1", "--format", "%o\\n"]);
    assert!(!again.is_empty());

    assert_eq!(home.stdout(&["group", "delete", "billing"]), "deleted group billing\n");
    let gone = home.failure(&["group", "describe", "billing"], 1);
    assert!(gone.contains("(UNKNOWN_GROUP, not retriable)") && gone.contains("quire group list"), "{gone}");
}

#[test]
fn what_can_not_be_says_why() {
    let dev = Dev::start();
    let home = &dev.home;
    let gone = home.failure(&["group", "reset", "nobody", "--to", "end"], 2);
    assert!(gone.contains("--topic TOPIC"), "{gone}");
    let gone = home.failure(&["consume", "nothing", "--group", "g"], 1);
    assert!(gone.contains("quire topic create nothing"), "{gone}");
    for name in ["", "two\nlines", "bell\u{7}"] {
        home.failure(&["consume", "t", "--group", name], 2);
        home.failure(&["group", "reset", name, "--to", "end", "--topic", "t"], 2);
    }
    for line in [
        "consume t --group g --partition 1",
        "consume t --group g --until end",
        "consume t --instance-id a",
        "consume t --group g --session-timeout 10ms",
        "group reset g --to end --shift 1",
        "group reset g",
    ] {
        home.failure(&line.split(' ').collect::<Vec<_>>(), 2);
    }
}

/// Stops it as Ctrl-C does once it has partitions.
fn stop_when_it_reads(mut consumer: Running) {
    loop {
        let line = consumer.error_line();
        assert!(!line.is_empty(), "it ended: {}", text(&consumer.end().stderr));
        if line.starts_with("reading ") {
            break;
        }
    }
    consumer.signal(Signal::INT);
    consumer.end();
}

#[test]
fn a_group_that_committed_nothing_has_no_lag_and_no_place_to_be_shifted_from() {
    let dev = Dev::start();
    let home = &dev.home;
    home.stdout(&["topic", "create", "t", "--partitions", "2"]);
    stop_when_it_reads(home.spawn(&["consume", "t", "--group", "sp ace"]));
    let described = &home.json(&["group", "describe", "sp ace", "--json"])[0];
    assert_eq!((&described["lag"], &described["behind_ms"]), (&().into(), &().into()), "{described}");
    let page = home.stdout(&["group", "describe", "sp ace"]);
    assert!(page.contains("lag unknown") && page.contains("quire group explain 'sp ace'"), "{page}");

    let refused = home.failure(&["group", "reset", "nobody", "--shift", "10", "--topic", "t"], 1);
    assert!(
        refused.contains("\"nobody\" has committed nothing in t") && refused.contains("use --to"),
        "{refused}"
    );
    assert_eq!(home.json(&["group", "list", "--json"]).len(), 1, "nothing was made");

    // One partition has an offset 5, the other is shorter.
    home.pipe(&["produce", "t", "--partition", "0"], "0\n1\n2\n3\n4\n5\n6\n");
    let moved = home.stdout(&["group", "reset", "made", "--to", "5", "--topic", "t"]);
    assert!(moved.contains("! 5 is beyond the end"), "{moved}");
    let partitions = home.json(&["group", "describe", "made", "--json"])[0]["partitions"].clone();
    assert_eq!((&partitions[0]["committed"], &partitions[1]["committed"]), (&5.into(), &0.into()));
    let deleted = home.stdout(&["group", "delete", "made", "sp ace"]);
    assert_eq!(deleted, "deleted group made\ndeleted group sp ace\n");
}

#[test]
fn a_static_member_that_left_is_named_to_who_would_move_its_group() {
    let dev = Dev::start();
    let home = &dev.home;
    filled(&dev);
    stop_when_it_reads(home.spawn(&["consume", "flights", "--group", "g", "--instance-id", "k"]));
    for args in [&["group", "reset", "g", "--to", "end"][..], &["group", "delete", "g"]] {
        let refused = home.failure(args, 1);
        assert!(refused.contains("static member k left") && refused.contains("\n  wait "), "{refused}");
        assert!(!refused.contains("stop its consumers"), "they are: {refused}");
    }
    let page = home.stdout(&["group", "describe", "g"]);
    assert!(!page.contains("has no partition"), "{page}");
}

/// Its reader takes a few lines and then nothing more.
#[test]
fn a_member_whose_output_is_not_read_commits_what_is_out_and_can_be_stopped() {
    let dev = Dev::start();
    let home = &dev.home;
    let lines: String = (0..40_000).map(|number| format!("line-{number:06}\n")).collect();
    home.stdout(&["topic", "create", "slow"]);
    home.pipe(&["produce", "slow"], lines.as_str());
    let mut consumer = home.spawn(&["consume", "slow", "--group", "g"]);
    for number in 0..10 {
        assert_eq!(consumer.line(), format!("line-{number:06}"));
    }
    let committed =
        || home.json(&["group", "describe", "g", "--json"])[0]["partitions"][0]["committed"].as_u64();
    let end = Instant::now() + Duration::from_secs(30);
    while committed().is_none_or(|committed| committed == 0) {
        assert!(Instant::now() < end, "nothing is committed while the output is full");
    }
    consumer.signal(Signal::TERM);
    let ended = consumer.end_unread();
    let out = text(&ended.stdout);
    assert!(out.ends_with('\n'), "records are written whole");
    // What a pipe and its reader hold.
    let read = 10 + out.lines().count() as u64;
    assert!(read < 20_000, "{read}");
    let shown = committed().expect("it was committed");
    assert!(shown > 0 && shown <= read, "{shown} of {read}");
    let rest = home.stdout(&["consume", "slow", "--group", "g", "-n", &(40_000 - shown).to_string()]);
    assert!(rest.starts_with(&format!("line-{shown:06}\n")) && rest.ends_with("line-039999\n"));
}
