//! A cluster of real processes, from the ready example in `config/cluster`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::{Home, Running, path, text};

/// Nothing here takes this long; a test that waits for it has failed.
const PATIENCE: Duration = Duration::from_secs(60);

fn example(broker: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../config/cluster/broker-{broker}.toml"))
}

fn data(home: &Home, broker: u32) -> PathBuf {
    home.path().join(format!("broker-{broker}"))
}

/// Starts a broker of the example on free ports.
fn start(home: &Home, broker: u32, flags: &[&str]) -> Running {
    let (config, data) = (example(broker), data(home, broker));
    let mut args = vec!["broker", "--config", path(&config), "--data", path(&data), "--no-admin"];
    args.extend(["--listen", "127.0.0.1:0", "--peer-listen", "127.0.0.1:0"]);
    args.extend(flags);
    home.spawn(&args)
}

fn wait_for(file: &Path) {
    let began = Instant::now();
    while !file.exists() {
        assert!(began.elapsed() < PATIENCE, "{} does not come", file.display());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Where clients reach a broker, once it serves.
fn address(home: &Home, broker: u32) -> String {
    let profile = data(home, broker).join("client-profile.toml");
    wait_for(&profile);
    let text = std::fs::read_to_string(profile).expect("it is whole");
    let line = text.lines().find_map(|line| line.strip_prefix("address = \"quire://")).expect("an address");
    line.trim_end_matches('"').to_owned()
}

#[test]
fn three_commands_make_a_cluster_that_keeps_every_record_three_times() {
    let home = Home::new();
    let mut brokers = vec![start(&home, 1, &["--init"])];
    let token_file = data(&home, 1).join("join-token");
    wait_for(&token_file);
    let token = std::fs::read_to_string(&token_file).expect("it is whole");
    let founder = address(&home, 1);
    brokers.push(start(&home, 2, &["--join", &founder, "--token", token.trim()]));
    address(&home, 2);

    let used = home.failure(
        &[
            "broker",
            "--data",
            path(&data(&home, 9)),
            "--listen",
            "127.0.0.1:0",
            "--peer-listen",
            "127.0.0.1:0",
            "--no-admin",
            "--join",
            &founder,
            "--token",
            token.trim(),
        ],
        1,
    );
    assert!(used.contains("used by another broker; make a new one with 'quire cluster token'"), "{used}");

    home.stdout(&["cluster", "profile", "--data", path(&data(&home, 2))]);
    let token = home.stdout(&["cluster", "token", "--hours", "1"]);
    brokers.push(start(&home, 3, &["--join", &founder, "--token", token.trim()]));
    address(&home, 3);

    let ran = home.quire(&["cluster", "profile", "--data", path(&data(&home, 3))]).assert().success();
    let noted = text(&ran.get_output().stderr).to_owned();
    assert_eq!(noted.matches("127.0.0.1:").count(), 3, "whoever of them is gone: {noted}");

    home.stdout(&["topic", "create", "flights", "--replicas", "3", "--partitions", "3"]);
    let records: String = (0..300).map(|number| format!("{number}\n")).collect();
    home.pipe(&["produce", "flights"], records.clone());
    let consumed = home.stdout(&["consume", "flights", "--from", "beginning", "--until", "end"]);
    assert_eq!(consumed.lines().count(), 300);

    // The last one to stop has nobody to move its leaderships to.
    while let Some(broker) = brokers.pop() {
        broker.signal(Signal::TERM);
        let ended = broker.end();
        assert!(ended.status.success(), "{}", text(&ended.stderr));
    }
}

#[test]
fn joining_without_a_token_or_with_half_of_one_is_a_usage_error() {
    let home = Home::new();
    let data = data(&home, 1);
    let join = ["broker", "--data", path(&data), "--join", "127.0.0.1:9440"];
    assert!(home.failure(&join, 2).contains("--token"));
    let half = [&join[..], &["--token", "quire-join-1-00"]].concat();
    assert!(home.failure(&half, 2).contains("incomplete or mistyped"));
    let both = [&join[..], &["--token", "quire-join-1-00", "--init"]].concat();
    home.failure(&both, 2);
    let address = ["--listen", "127.0.0.1:0", "--peer-listen", "127.0.0.1:0", "--no-admin"];
    let new = home.failure(&[&["broker", "--data", path(&data)][..], &address].concat(), 1);
    assert!(new.contains("holds no broker yet") && new.contains("its disk is not in place"), "{new}");
    let profile = home.failure(&["cluster", "profile", "--data", path(&data)], 1);
    assert!(profile.contains("client-profile.toml is not there"), "{profile}");
}
