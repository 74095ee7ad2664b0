//! `quire group` and `quire consume --group`

use crate::support::Dev;

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
