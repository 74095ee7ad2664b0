//! `quire broker`

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::{Home, path, text};

fn config(home: &Home) -> std::path::PathBuf {
    let data = home.path().join("broker-data");
    home.file(
        "quire.toml",
        format!(
            "[broker]\ndata_dir = \"{}\"\n[network]\nlisten = \"127.0.0.1:0\"\n[admin]\nlisten = \"127.0.0.1:0\"\n",
            path(&data)
        ),
    )
}

#[test]
fn a_broker_tells_the_service_manager_and_drains_on_sigterm() {
    let home = Home::new();
    let socket_path = home.path().join("notify");
    let socket = UnixDatagram::bind(&socket_path).expect("a socket in a temporary folder");
    socket.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout is allowed");
    let broker =
        home.spawn_with(&["broker", "--config", path(&config(&home))], &[("NOTIFY_SOCKET", &socket_path)]);
    assert_eq!(told(&socket), "READY=1");
    broker.signal(Signal::HUP);
    broker.signal(Signal::TERM);
    assert_eq!(told(&socket), "STOPPING=1");
    let ended = broker.end();
    let err = text(&ended.stderr);
    assert!(ended.status.success(), "{err}");
    assert!(err.contains("stopping: 0 clients told, 0 partitions synced, clean ("), "{err}");
}

fn told(socket: &UnixDatagram) -> String {
    let mut buffer = [0; 256];
    let length = socket.recv(&mut buffer).expect("the broker tells in time");
    text(&buffer[..length]).trim_end().to_owned()
}

#[test]
fn a_configuration_is_checked_before_anything_starts() {
    let home = Home::new();
    let fine = home.quire(&["broker", "--config", path(&config(&home)), "--check"]).assert().success();
    assert!(text(&fine.get_output().stderr).ends_with("quire.toml: fine\n"));
    let wrong = home.file("wrong.toml", "[network]\nlissten = \"127.0.0.1:0\"\n");
    let failure = home.failure(&["broker", "--config", path(&wrong)], 2);
    assert!(failure.contains("line 2") && failure.contains("did you mean \"network.listen\"?"), "{failure}");
    let missing = home.failure(&["broker", "--config", "/nowhere.toml"], 2);
    assert!(missing.contains("/nowhere.toml"), "{missing}");
}

#[test]
fn dev_on_every_address_writes_a_profile_that_connects() {
    let home = Home::new();
    let args = ["dev", "--ephemeral", "--listen", "0.0.0.0:0", "--admin", "127.0.0.1:0", "--json"];
    let mut dev = home.spawn(&args);
    let ready = dev.line();
    assert!(ready.contains("quire://127.0.0.1:"), "{ready}");
    assert_eq!(home.stdout(&["topic", "list"]), "");
}
