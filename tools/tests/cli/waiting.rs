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
