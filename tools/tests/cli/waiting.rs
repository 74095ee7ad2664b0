//! What a command waits for is said on standard error, long before it gives up.

use std::net::UdpSocket;

use crate::support::{Dev, text};

/// Nobody who waited for a broker that swallows everything knew what for.
#[test]
fn a_broker_that_does_not_answer_is_waited_for_with_a_word() {
    let dev = Dev::start();
    let silent = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let silent = silent.local_addr().expect("bound").to_string();
    let profile = dev.home.path().join("config/quire/profiles/dev.toml");
    let address = dev.ready["address"].as_str().expect("an address");
    let known = std::fs::read_to_string(&profile).expect("dev wrote it");
    let swallowed = known.replace(address.trim_start_matches("quire://"), &silent);
    std::fs::write(&profile, swallowed).expect("it can be written");
    let mut consume = dev.home.spawn(&["consume", "t"]);
    let line = consume.error_line();
    assert!(line.contains(&format!("waiting for a broker at {silent}: no answer yet")), "{line}");
    let ended = consume.end();
    assert_eq!(ended.status.code(), Some(3), "{}", text(&ended.stderr));
}

/// A produce whose broker was gone, or refused for now, said nothing for half a minute.
#[test]
fn a_produce_says_what_its_records_wait_for_and_what_to_do() {
    let dev = Dev::start();
    dev.home.stdout(&["topic", "create", "t"]);
    let mut produce = dev.home.spawn(&["produce", "t"]);
    produce.write(b"one\n");
    assert_eq!(dev.home.stdout(&["consume", "t", "-n", "1", "--follow"]), "one\n");
    let (_home, _) = dev.stop();
    produce.write(b"two\n");
    let (what, advice) = (produce.error_line(), produce.error_line());
    assert!(what.starts_with("waiting to write to partition 0 of \"t\": "), "{what}");
    assert!(advice.starts_with("  check that the broker"), "{advice}");
}
