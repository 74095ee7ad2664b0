//! A cluster of real processes, from the ready example in `config/cluster`.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

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
    start_with(home, broker, flags, &[])
}

fn start_with(home: &Home, broker: u32, flags: &[&str], environment: &[(&str, &Path)]) -> Running {
    let (config, data) = (example(broker), data(home, broker));
    let mut args = vec!["broker", "--config", path(&config), "--data", path(&data), "--no-admin"];
    args.extend(["--listen", "127.0.0.1:0", "--peer-listen", "127.0.0.1:0"]);
    args.extend(flags);
    home.spawn_with(&args, environment)
}

/// Three brokers of the example, each in its own rack; the default profile reaches the first.
pub struct Three {
    pub home: Home,
    pub brokers: Vec<Option<Running>>,
}

impl Three {
    pub fn start() -> Three {
        Three::start_with(&[])
    }

    pub fn start_with(environment: &[(&str, &str)]) -> Three {
        let home = Home::new();
        let environment: Vec<_> = environment.iter().map(|(key, value)| (*key, Path::new(*value))).collect();
        let mut brokers = vec![Some(start_with(&home, 1, &["--init"], &environment))];
        let founder = address(&home, 1);
        home.stdout(&["cluster", "profile", "--data", path(&data(&home, 1))]);
        for broker in [2, 3] {
            let token = home.stdout(&["cluster", "token"]);
            let join = ["--join", &founder, "--token", token.trim()];
            brokers.push(Some(start_with(&home, broker, &join, &environment)));
            address(&home, broker);
            // For requests to this broker first.
            let name = format!("broker-{broker}");
            home.stdout(&["--profile", &name, "cluster", "profile", "--data", path(&data(&home, broker))]);
        }
        home.stdout(&["--profile", "broker-1", "cluster", "profile", "--data", path(&data(&home, 1))]);
        Three { home, brokers }
    }

    /// As if its machine lost power; what it had synced is still there.
    pub fn kill(&mut self, broker: u32) {
        let killed = self.brokers[broker as usize - 1].take().expect("it runs");
        killed.signal(Signal::KILL);
        killed.end();
    }

    /// Starts a broker again that was killed.
    pub fn restart(&mut self, broker: u32, environment: &[(&str, &str)]) {
        let environment: Vec<_> = environment.iter().map(|(key, value)| (*key, Path::new(*value))).collect();
        self.brokers[broker as usize - 1] = Some(start_with(&self.home, broker, &[], &environment));
    }

    /// What `quire cluster status` says through this broker.
    pub fn status(&self, broker: u32) -> Value {
        self.home.json(&["--profile", &format!("broker-{broker}"), "cluster", "status", "--json"]).remove(0)
    }

    /// Waits for a status, asked through this broker.
    pub fn wait_for_status(&self, broker: u32, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let began = Instant::now();
        loop {
            let status = self.status(broker);
            if is_so(&status) {
                return status;
            }
            assert!(began.elapsed() < PATIENCE, "{what}: {status}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
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
    let all = line.trim_end_matches('"');
    all.split(',').next().expect("its own comes first").to_owned()
}

/// How many brokers the profile in the data directory of this one names.
fn named(home: &Home, broker: u32) -> usize {
    let profile = std::fs::read_to_string(data(home, broker).join("client-profile.toml"));
    profile.expect("it is there").matches("127.0.0.1:").count()
}

#[test]
fn a_profile_names_every_broker_so_that_none_of_them_is_needed() {
    let mut three = Three::start();
    // Each broker tells the tools on its machine of those that came after it.
    let began = Instant::now();
    while (1..=3).any(|broker| named(&three.home, broker) < 3) {
        assert!(began.elapsed() < PATIENCE, "the profiles in the data directories lack brokers");
        std::thread::sleep(Duration::from_millis(20));
    }
    // It was written when there was one, and is brought up to date.
    let home = &three.home;
    let founder = address(home, 1);
    let old = home.path().join("config/quire/profiles/cluster.toml");
    let text_of = |file: &Path| std::fs::read_to_string(file).expect("it is whole");
    let whole = text_of(&old);
    let line = whole.lines().find(|line| line.starts_with("address")).expect("it has one");
    std::fs::write(&old, whole.replace(line, &format!("address = \"quire://{founder}\"")))
        .expect("it is ours");
    let renewed = home.quire(&["--profile", "cluster", "cluster", "profile"]).assert().success();
    let told = text(&renewed.get_output().stderr);
    assert_eq!(told.matches("127.0.0.1:").count(), 3, "{told}");
    assert_eq!(text_of(&old).matches("127.0.0.1:").count(), 3);

    three.kill(1);
    let home = &three.home;
    home.stdout(&["--profile", "cluster", "topic", "list"]);
    home.stdout(&["--profile", "again", "cluster", "profile", "--data", path(&data(home, 1))]);
    home.stdout(&["--profile", "again", "topic", "list"]);

    // Nor is a list of groups whole that most brokers did not answer for.
    three.kill(2);
    let partial = three.home.failure(&["--profile", "broker-3", "group", "list", "--json"], 1);
    assert!(partial.contains("groups may be missing") && !partial.contains("no groups yet"), "{partial}");
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
