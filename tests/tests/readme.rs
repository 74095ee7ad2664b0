//! README.md is true: its commands are run in the order they stand, in a home of their own, and print what it says.
//!
//! Each `sh` block is one script; a `text` block right behind it is what its standard output ends with. A block that is one command of
//! `quire dev` or `quire broker` runs in the background until the next such block, or `<!-- test: stop -->`. `cargo` is a
//! stand-in that knows the README's commands and runs the binary that this test run built.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use quire_tests::process::quire_binary;
use quire_tests::repository::root;

const READY_TIME_MAX: Duration = Duration::from_secs(60);
const BLOCK_SECONDS_MAX: &str = "300";
/// Where the README's broker listens; the test's takes a free port in its place.
const README_ADDRESS: &str = "127.0.0.1:9440";
const STOP: &str = "<!-- test: stop -->";

const CARGO: &str = r#"#!/usr/bin/env bash
case "$*" in
    "run --release -- "*) shift 3; exec quire "$@" ;;
    "test --workspace") ;; # this test is a part of it
    "install --path tools --locked") test -f "$REPOSITORY/tools/Cargo.toml" ;;
    *) echo "tests/tests/readme.rs does not know: cargo $*" >&2; exit 1 ;;
esac
"#;

/// A step of the README.
#[derive(Debug, PartialEq)]
enum Step {
    Run { line: usize, script: String, prints: Option<String> },
    Background { line: usize, command: String },
    Stop,
}

fn steps(readme: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut lines = readme.lines().enumerate();
    let mut last_block_end = 0;
    while let Some((number, line)) = lines.next() {
        if line == STOP {
            steps.push(Step::Stop);
        }
        let Some(language) = line.strip_prefix("```") else { continue };
        let body: Vec<_> = lines.by_ref().map(|(_, line)| line).take_while(|line| *line != "```").collect();
        let follows = number == last_block_end && number > 0;
        last_block_end = number + body.len() + 2;
        let body = body.join("\n");
        match (language, steps.last_mut()) {
            ("sh", _) if is_server(&body) => steps.push(Step::Background { line: number + 2, command: body }),
            ("sh", _) => steps.push(Step::Run { line: number + 2, script: body, prints: None }),
            ("text", Some(Step::Run { prints, .. })) if follows => *prints = Some(body + "\n"),
            _ => {}
        }
    }
    steps
}

fn is_server(script: &str) -> bool {
    let is_one_command = script.lines().count() == 1 && !script.contains('|');
    let serves = script.starts_with("quire dev") || script.starts_with("quire broker");
    is_one_command && serves && !script.ends_with("--check")
}

/// The place where the README is tried out.
struct Scratch {
    folder: tempfile::TempDir,
    broker_address: String,
}

impl Scratch {
    fn new() -> Result<Scratch> {
        let folder = tempfile::tempdir()?;
        let path = folder.path();
        for name in ["bin", "home", "checkout"] {
            fs::create_dir(path.join(name))?;
        }
        symlink(quire_binary()?, path.join("bin/quire"))?;
        let cargo = path.join("bin/cargo");
        fs::write(&cargo, CARGO)?;
        fs::set_permissions(&cargo, fs::Permissions::from_mode(0o755))?;
        symlink(root().join("config"), path.join("checkout/config"))?;
        let broker_address = quire_tests::process::free_address()?.to_string();
        Ok(Scratch { folder, broker_address })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn command(&self, words: &[&str]) -> Command {
        let path = std::env::var("PATH").unwrap_or_default();
        let mut command = Command::new(words[0]);
        command
            .args(&words[1..])
            .current_dir(self.path("checkout"))
            .env("HOME", self.path("home"))
            .env("TMPDIR", self.path("home"))
            .env("PATH", format!("{}:{path}", self.path("bin").display()))
            .env("REPOSITORY", root())
            .env("QUIRE_NETWORK_LISTEN", &self.broker_address)
            .env("QUIRE_ADMIN_LISTEN", "127.0.0.1:0")
            .stdin(Stdio::null());
        for other in ["XDG_CONFIG_HOME", "XDG_DATA_HOME", "QUIRE_PROFILE", "RUST_LOG"] {
            command.env_remove(other);
        }
        command
    }

    fn run(&self, line: usize, script: &str, prints: Option<&str>) -> Result<()> {
        let script = script.replace(README_ADDRESS, &self.broker_address);
        let words = ["timeout", BLOCK_SECONDS_MAX, "bash", "-euo", "pipefail", "-c", &script];
        let output = self.command(&words).output()?;
        let (stdout, stderr) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "README.md:{line}: {}\n{stdout}{stderr}", output.status);
        if let Some(expected) = prints {
            ensure!(stdout.ends_with(expected), "README.md:{line} prints\n{stdout}and not\n{expected}");
        }
        Ok(())
    }

    fn start(&self, line: usize, command: &str) -> Result<Server> {
        let socket = self.path("notify");
        let _ = fs::remove_file(&socket);
        let notified = UnixDatagram::bind(&socket)?;
        notified.set_read_timeout(Some(READY_TIME_MAX))?;
        let words: Vec<_> = command.split_whitespace().collect();
        let child = self.command(&words).env("NOTIFY_SOCKET", &socket).stderr(Stdio::piped()).spawn()?;
        let mut server = Server { child, line };
        let says = server.read_stderr();
        if words[1] == "broker" {
            let mut message = [0; 256];
            let length = notified.recv(&mut message).with_context(|| server.failed(&says))?;
            ensure!(message[..length].starts_with(b"READY=1"), "the service manager is told {message:?}");
        } else {
            let ready = says.recv_timeout(READY_TIME_MAX).unwrap_or_default();
            ensure!(ready.starts_with("ready in "), "{}\n{ready}", server.failed(&says));
        }
        Ok(server)
    }
}

/// A broker in the background. Killed when dropped.
struct Server {
    child: Child,
    line: usize,
}

impl Server {
    /// What it says on standard error, line by line; read on, so that it never waits for a reader.
    fn read_stderr(&mut self) -> mpsc::Receiver<String> {
        let stderr = self.child.stderr.take().expect("it is piped");
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                // The test may be past caring; the broker still must not block.
                let _ = sender.send(line);
            }
        });
        receiver
    }

    fn failed(&self, says: &mpsc::Receiver<String>) -> String {
        let said: Vec<_> = says.try_iter().collect();
        format!("README.md:{} does not start:\n{}", self.line, said.join("\n"))
    }

    /// What Ctrl-C does, and that it ends well.
    fn stop(mut self) -> Result<()> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "README.md:{} ends with {status}", self.line);
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already; there is nobody left to tell.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn every_command_of_the_readme_works() -> Result<()> {
    let readme = fs::read_to_string(root().join("README.md"))?;
    let scratch = Scratch::new()?;
    let mut server: Option<Server> = None;
    for step in steps(&readme) {
        match step {
            Step::Run { line, script, prints } => scratch.run(line, &script, prints.as_deref())?,
            Step::Background { line, command } => {
                server.take().map(Server::stop).transpose()?;
                server = Some(scratch.start(line, &command)?);
            }
            Step::Stop => server.take().map(Server::stop).transpose()?.unwrap_or_default(),
        }
    }
    server.map(Server::stop).transpose()?;
    Ok(())
}

#[test]
fn the_readme_begins_with_the_two_commands_of_the_gate() -> Result<()> {
    let readme = fs::read_to_string(root().join("README.md"))?;
    let Some(Step::Run { script, .. }) = steps(&readme).into_iter().next() else { bail!("no sh block") };
    assert_eq!(script, "cargo run --release -- demo\ncargo test --workspace");
    let gate = fs::read_to_string(root().join(".ci/run"))?;
    for command in ["cargo run --release --locked -- demo", "cargo test --workspace --locked"] {
        assert!(gate.contains(command), ".ci/run lacks {command}");
    }
    Ok(())
}

#[test]
fn blocks_are_read_as_they_stand() {
    let page = "a\n```sh\none\ntwo\n```\n```text\nout\n```\n\n```sh\nquire dev\n```\n```text\nx\n```\n<!-- test: stop -->\n";
    let run = Step::Run { line: 3, script: "one\ntwo".into(), prints: Some("out\n".into()) };
    let server = Step::Background { line: 11, command: "quire dev".into() };
    assert_eq!(steps(page), [run, server, Step::Stop]);
    assert!(!is_server("quire broker --config c --check"));
}

#[test]
fn what_the_readme_points_to_is_there() {
    // Links are held by tidy.rs; this is what scripts read.
    for path in ["config/quire.toml", "config/samples/flights.ndjson.gz", "tools/Cargo.toml"] {
        assert!(Path::new(&root()).join(path).is_file(), "{path}");
    }
}
