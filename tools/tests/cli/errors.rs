//! What goes wrong says what was wrong, where, and what to do next.

use crate::support::{Dev, Home, path, text};

#[test]
fn an_unknown_topic_is_answered_with_the_nearest() {
    let dev = Dev::start();
    dev.home.stdout(&["topic", "create", "flights"]);
    let expected = "error: no topic \"fligths\" (UNKNOWN_TOPIC, not retriable)\n  \
                    did you mean \"flights\"?   or: quire topic create fligths\n";
    for command in [["produce", "fligths"], ["consume", "fligths"]] {
        assert_eq!(dev.home.failure(&command, 1), expected);
    }
    assert_eq!(dev.home.failure(&["topic", "describe", "fligths"], 1), expected);
}

#[test]
fn a_command_that_fails_takes_leave_of_the_broker() {
    let dev = Dev::start();
    dev.home.stdout(&["topic", "create", "t"]);
    dev.home.failure(&["consume", "t", "--from", "99"], 1);
    dev.home.failure(&["consume", "u"], 1);
    dev.home.failure(&["produce", "u"], 1);
    let (_, last) = dev.stop();
    assert!(last.contains("stopping: 0 clients told, "), "{last}");
}

#[test]
fn an_offset_out_of_range_names_the_range() {
    let dev = Dev::start();
    dev.home.stdout(&["topic", "create", "t"]);
    dev.home.pipe(&["produce", "t"], "a\nb\n");
    let failure = dev.home.failure(&["consume", "t", "--from", "99"], 1);
    assert!(failure.contains("OFFSET_OUT_OF_RANGE, not retriable"), "{failure}");
    assert!(failure.contains("99") && failure.contains('0') && failure.contains('2'), "{failure}");
}

#[test]
fn a_partition_that_is_not_there_names_those_that_are() {
    let dev = Dev::start();
    dev.home.stdout(&["topic", "create", "t", "--partitions", "2"]);
    for command in [["produce", "t", "--partition", "5"], ["consume", "t", "--partition", "5"]] {
        let failure = dev.home.failure(&command, 1);
        assert!(
            failure.contains("\"t\" has partitions 0 to 1, not 5 (UNKNOWN_PARTITION, not retriable)"),
            "{failure}"
        );
    }
}

#[test]
fn a_bad_line_says_where_and_from_where_to_resume() {
    let dev = Dev::start();
    dev.home.stdout(&["topic", "create", "t"]);
    let file = dev.home.file("in.ndjson", "{\"value\":1}\n{\"value\":2}\n{\"valeu\":3}\n{\"value\":4}\n");
    let failed =
        dev.home.quire(&["produce", "t", "-i", "ndjson", "-f", path(&file)]).assert().failure().code(1);
    let (out, err) = (text(&failed.get_output().stdout), text(&failed.get_output().stderr));
    assert!(err.starts_with(&format!("error: {}:3: unknown field `valeu`", file.display())), "{err}");
    assert!(err.ends_with("  2 records before it acknowledged; resume with --from-line 3\n"), "{err}");
    assert!(out.contains("2 records acknowledged"), "{out}");

    let file = dev.home.file("in.ndjson", "{\"value\":1}\n{\"value\":2}\n{\"value\":3}\n{\"value\":4}\n");
    dev.home.stdout(&["produce", "t", "-i", "ndjson", "-f", path(&file), "--from-line", "3"]);
    assert_eq!(dev.home.stdout(&["consume", "t"]), "1\n2\n3\n4\n");
}

#[test]
fn a_record_that_is_too_large_is_not_retriable() {
    let dev = Dev::start();
    dev.home.stdout(&["topic", "create", "t", "-c", "max.message.bytes=2000"]);
    let large = [b"small\n".to_vec(), vec![b'x'; 5000], b"\n".to_vec()].concat();
    let failed = dev.home.quire(&["produce", "t"]).write_stdin(large).assert().failure().code(1);
    let err = text(&failed.get_output().stderr);
    assert!(err.starts_with("error: line 2 was not acknowledged: "), "{err}");
    assert!(err.contains("(RECORD_TOO_LARGE, not retriable)"), "{err}");
    assert!(err.contains("--from-line 2"), "{err}");
}

#[test]
fn without_a_profile_the_way_to_one_is_said() {
    let failure = Home::new().failure(&["topic", "list"], 2);
    assert!(failure.starts_with("error: no profile is set up on this machine"), "{failure}");
    assert!(failure.contains("'quire dev'"), "{failure}");
    let failure = Home::new().failure(&["topic", "list", "--profile", "prod"], 2);
    assert!(failure.contains("there is no profile \"prod\""), "{failure}");
}

#[test]
fn a_broker_that_is_not_there_is_exit_code_3() {
    let (home, _) = Dev::start().stop();
    let failure = home.failure(&["topic", "list"], 3);
    assert!(failure.starts_with("error: no broker answers at 127.0.0.1:"), "{failure}");
    assert!(failure.contains("\n  check that the broker runs"), "{failure}");
}

#[test]
fn a_certificate_of_another_cluster_is_refused_with_exit_code_4() {
    let (one, other) = (Dev::start(), Dev::start());
    let profile = one.home.path().join("config/quire/profiles/dev.toml");
    let address = |dev: &Dev| dev.ready["address"].as_str().expect("an address").to_owned();
    let text = std::fs::read_to_string(&profile).expect("dev wrote it");
    std::fs::write(&profile, text.replace(&address(&one), &address(&other))).expect("it can be written");
    let failure = one.home.failure(&["topic", "list"], 4);
    assert!(failure.contains("certificate"), "{failure}");
}

#[test]
fn usage_errors_suggest_what_was_meant() {
    let home = Home::new();
    for (args, said) in [
        (&["prodce"][..], "produce"),
        (&["consume", "t", "--form", "end"], "--from"),
        (&["consume", "t", "--from", "begining"], "did you mean \"beginning\"?"),
        (&["consume", "t", "--from", "2013-13-01"], "not a time"),
        (&["consume", "t", "--format", "%x"], "%x means nothing"),
        (&["topic", "create", "t", "-c", "sync"], "KEY=VALUE"),
        (&["produce", "t", "-i", "ndjson", "-k", ":"], "--key-separator goes with --input lines only"),
    ] {
        // The last is found out by the command itself, before any broker is asked.
        let failure = home.failure(args, 2);
        assert!(failure.contains(said), "{args:?}: {failure}");
    }
}
