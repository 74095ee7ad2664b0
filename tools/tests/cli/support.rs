//! A home of its own, and a `quire dev` that runs in it.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(60);

/// A user's home without anything in it.
pub struct Home(tempfile::TempDir);

impl Home {
    pub fn new() -> Home {
        Home(tempfile::tempdir().expect("a temporary folder"))
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Writes a file into it.
    pub fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(name);
        std::fs::write(&path, bytes).expect("a file in a temporary folder can be written");
        path
    }

    fn environment(&self) -> Vec<(&'static str, PathBuf)> {
        let home = self.path();
        vec![
            // What a killed broker leaves behind goes with the home.
            ("TMPDIR", home.to_owned()),
            ("HOME", home.to_owned()),
            ("XDG_CONFIG_HOME", home.join("config")),
            ("XDG_DATA_HOME", home.join("data")),
        ]
    }

    /// The binary, to be run to its end.
    pub fn quire(&self, args: &[&str]) -> assert_cmd::Command {
        let mut command = assert_cmd::Command::new(env!("CARGO_BIN_EXE_quire"));
        command.args(args).envs(self.environment()).timeout(PATIENCE);
        command.env_remove("QUIRE_PROFILE").env_remove("RUST_LOG").env_remove("NOTIFY_SOCKET");
        command
    }

    /// Any program, to be started in this home.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.envs(self.environment()).env_remove("QUIRE_PROFILE").env_remove("RUST_LOG");
        command
    }

    /// The binary, started and left running.
    pub fn spawn(&self, args: &[&str]) -> Running {
        self.spawn_with(args, &[])
    }

    pub fn spawn_with(&self, args: &[&str], environment: &[(&str, &Path)]) -> Running {
        let mut child = self
            .command(env!("CARGO_BIN_EXE_quire"))
            .args(args)
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let stdout = child.stdout.take().expect("it is piped");
        let stderr = BufReader::new(child.stderr.take().expect("it is piped"));
        Running { child, stdout: Some(BufReader::new(stdout)), stderr }
    }

    /// What a successful run wrote to standard output.
    pub fn stdout(&self, args: &[&str]) -> String {
        text(&self.quire(args).assert().success().get_output().stdout)
    }

    /// The lines of JSON that a successful run wrote.
    pub fn json(&self, args: &[&str]) -> Vec<Value> {
        self.stdout(args).lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    }

    /// What a run that failed with `code` wrote to standard error.
    pub fn failure(&self, args: &[&str], code: i32) -> String {
        text(&self.quire(args).assert().failure().code(code).get_output().stderr)
    }

    /// Writes `input` to the binary's standard input, and expects success.
    pub fn pipe(&self, args: &[&str], input: impl Into<Vec<u8>>) -> String {
        text(&self.quire(args).write_stdin(input).assert().success().get_output().stdout)
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("the command line writes text")
}

/// Whether SIGINT is ignored here, which processes inherit until they listen to it.
pub fn ignores_interrupts() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").expect("the kernel tells");
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).expect("it is a line of it");
    let ignored = u64::from_str_radix(ignored.trim(), 16).expect("a mask of signals");
    ignored & (1 << (Signal::INT.as_raw() - 1)) != 0
}

/// A process that is ended when the test is.
pub struct Running {
    child: Child,
    stdout: Option<BufReader<ChildStdout>>,
    stderr: BufReader<ChildStderr>,
}

impl Running {
    /// The id of its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The next line of its standard output, without its end.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        let stdout = self.stdout.as_mut().expect("standard output was not closed");
        stdout.read_line(&mut line).expect("a line of text");
        line.trim_end().to_owned()
    }

    /// The next line of its standard error, without its end.
    pub fn error_line(&mut self) -> String {
        let mut line = String::new();
        self.stderr.read_line(&mut line).expect("a line of text");
        line.trim_end().to_owned()
    }

    /// Stops reading its standard output, as `head` does.
    pub fn close_stdout(&mut self) {
        self.stdout = None;
    }

    pub fn write(&mut self, bytes: &[u8]) {
        let stdin = self.child.stdin.as_mut().expect("it is piped");
        stdin.write_all(bytes).and_then(|()| stdin.flush()).expect("it reads");
    }

    pub fn signal(&self, signal: Signal) {
        let id = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a process id");
        kill_process(id, signal).expect("it still runs");
    }

    /// Waits for its end without reading on; then what was left to be read.
    pub fn end_unread(mut self) -> Output {
        let deadline = Instant::now() + Duration::from_secs(30);
        while self.child.try_wait().expect("it is a child").is_none() {
            assert!(Instant::now() < deadline, "it does not end while nobody reads its output");
            std::thread::sleep(Duration::from_millis(10));
        }
        self.end()
    }

    /// Waits for its end.
    pub fn end(mut self) -> Output {
        let mut out = Vec::new();
        if let Some(mut stdout) = self.stdout.take() {
            stdout.read_to_end(&mut out).expect("it can be read");
        }
        let mut err = Vec::new();
        self.stderr.read_to_end(&mut err).expect("it can be read");
        Output { status: self.child.wait().expect("it ends"), stdout: out, stderr: err }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Whatever has ended already can not be killed, which is as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A broker in a home, as `quire dev` makes it.
pub struct Dev {
    pub home: Home,
    pub broker: Running,
    pub ready: Value,
}

impl Dev {
    /// With data in a temporary folder.
    pub fn start() -> Dev {
        Dev::start_in(Home::new(), &["--ephemeral"])
    }

    pub fn start_in(home: Home, flags: &[&str]) -> Dev {
        let (broker, ready) = Dev::spawn(&home, flags);
        Dev { home, broker, ready }
    }

    /// Another broker in the same home.
    pub fn spawn(home: &Home, flags: &[&str]) -> (Running, Value) {
        let listen = ["dev", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--json"];
        let mut broker = home.spawn(&[&listen, flags].concat());
        let line = broker.line();
        match serde_json::from_str(&line) {
            Ok(ready) => (broker, ready),
            Err(error) => panic!("{error} in {line:?}; {}", text(&broker.end().stderr)),
        }
    }

    /// Stops the broker as Ctrl-C does and returns its last words.
    pub fn stop(self) -> (Home, String) {
        self.broker.signal(Signal::INT);
        let ended = self.broker.end();
        let last = text(&ended.stderr);
        assert!(ended.status.success(), "{last}");
        (self.home, last)
    }
}

/// The sample in the repository.
pub fn sample() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/samples/flights.ndjson.gz")
}

pub fn path(path: &Path) -> &str {
    path.to_str().expect("temporary folders have plain names")
}
