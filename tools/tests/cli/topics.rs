//! `quire topic`

use crate::support::Dev;

#[test]
fn a_topic_lives_from_create_to_delete() {
    let dev = Dev::start();
    let home = &dev.home;
    assert_eq!(home.stdout(&["topic", "list"]), "");

    let created =
        home.stdout(&["topic", "create", "flights", "--partitions", "3", "--config", "retention.ms=3600000"]);
    assert_eq!(created, "created flights   3 partitions   1 replica   sync always   retention 1h\n");
    home.stdout(&["topic", "create", "events"]);

    let listed = home.stdout(&["topic", "list"]);
    assert!(listed.contains(" events            1         1\n"), "{listed}");
    assert!(listed.contains(" flights           3         1\n"), "{listed}");
    let names: Vec<_> = home.json(&["topic", "list", "--json"]).iter().map(|t| t["name"].clone()).collect();
    assert_eq!(names, ["events", "flights"]);

    home.pipe(&["produce", "flights", "--partition", "1"], "a\nb\n");
    let described = home.stdout(&["topic", "describe", "flights"]);
    assert!(
        described.starts_with("flights   3 partitions   1 replica   sync always   retention 1h\n"),
        "{described}"
    );
    assert!(described.contains("LEADER") && described.contains("HIGH WATERMARK"), "{described}");
    assert!(described.ends_with(" 2 records   0 under-replicated   0 offline\n"), "{described}");
    let settings = home.stdout(&["topic", "describe", "flights", "--settings"]);
    assert!(settings.contains("3600000") && settings.contains("set for this topic"), "{settings}");
    let described = &home.json(&["topic", "describe", "flights", "--json"])[0];
    assert_eq!(described["partitions"][1]["high_watermark"], 2);
    assert_eq!(described["partitions"][1]["log_start"], 0);
    assert!(described["partitions"][1]["size_bytes"].as_u64() > Some(0), "{described}");
    assert_eq!(described["overrides"]["retention.ms"], "3600000");

    let altered = home.stdout(&[
        "topic",
        "alter",
        "flights",
        "-p",
        "4",
        "-c",
        "sync=interval",
        "--unset",
        "retention.ms",
    ]);
    assert_eq!(altered, "altered flights   4 partitions   1 replica   sync interval   retention 7d\n");

    assert_eq!(home.stdout(&["topic", "delete", "flights"]), "deleted flights\n");
    let gone = home.failure(&["topic", "describe", "flights"], 1);
    assert!(gone.contains("(UNKNOWN_TOPIC, not retriable)"), "{gone}");
}

#[test]
fn what_a_broker_refuses_has_its_name_and_a_way_out() {
    let dev = Dev::start();
    let home = &dev.home;
    home.stdout(&["topic", "create", "flights"]);
    let twice = home.failure(&["topic", "create", "flights"], 1);
    assert!(twice.contains("(TOPIC_ALREADY_EXISTS, not retriable)\n  use the existing topic"), "{twice}");
    let name = home.failure(&["topic", "create", "a/b"], 1);
    assert!(name.contains("INVALID_TOPIC_NAME"), "{name}");
    let config = home.failure(&["topic", "create", "t", "-c", "retention.mss=5"], 1);
    assert!(
        config.contains("INVALID_CONFIG") && config.contains("did you mean \"retention.ms\"?"),
        "{config}"
    );
    let shrunk = home.failure(&["topic", "alter", "flights", "--partitions", "1", "-c", "sync=never"], 1);
    assert!(shrunk.contains("always or interval"), "{shrunk}");
    let nothing = home.failure(&["topic", "alter", "flights"], 2);
    assert!(nothing.contains("--partitions"), "{nothing}");
}

#[test]
fn a_dry_run_creates_nothing() {
    let dev = Dev::start();
    let answer = dev.home.stdout(&["topic", "create", "later", "--dry-run"]);
    assert!(answer.starts_with("could create later"), "{answer}");
    assert_eq!(dev.home.json(&["topic", "list", "--json"]).len(), 0);
}
