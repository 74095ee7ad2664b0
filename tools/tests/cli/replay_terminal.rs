//! `quire replay` on a terminal: its keys, its status line, and the terminal afterwards.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::support::{Dev, Home};

/// A terminal with a process on it, whose standard output goes into a file.
struct Terminal {
    keys: File,
    /// The process's side, kept open so that its state can be looked at.
    line: File,
    /// What was written to it, piece by piece, and what of it was not waited for yet.
    written: mpsc::Receiver<Vec<u8>>,
    screen: String,
    child: Child,
    out: BufReader<File>,
}

impl Terminal {
    fn start(home: &Home, args: &[&str]) -> Terminal {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let out = BufReader::new(file.reopen().expect("it is there"));
        Terminal::start_into(home, args, out, file.into_file().into())
    }

    fn start_into(home: &Home, args: &[&str], out: BufReader<File>, stdout: Stdio) -> Terminal {
        let control = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pseudoterminal");
        grantpt(&control).and_then(|()| unlockpt(&control)).expect("it is ours");
        let name = ptsname(&control, Vec::new()).expect("it has a name");
        let line = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).expect("it is there");
        let size = Winsize { ws_row: 24, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&line, size).expect("it takes any size");
        let (keys, line) = (File::from(control), File::from(line));
        let stdio = || Stdio::from(line.try_clone().expect("another handle"));
        // It becomes the terminal of a session of its own, as a shell's.
        let child = home
            .command("setsid")
            .args(["--ctty", env!("CARGO_BIN_EXE_quire")])
            .args(args)
            .env("TERM", "xterm")
            .stdin(stdio())
            .stderr(stdio())
            .stdout(stdout)
            .spawn()
            .expect("setsid is installed");
        let (sender, written) = mpsc::channel();
        let mut reader = keys.try_clone().expect("another handle");
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut bytes) {
                // The test may be past caring; the process still must not block.
                let _ = sender.send(bytes[..count].to_vec());
            }
        });
        Terminal { keys, line, written, screen: String::new(), child, out }
    }

    fn press(&mut self, keys: &[u8]) {
        self.keys.write_all(keys).expect("it takes keys");
    }

    /// The next line of the process's standard output.
    fn data(&mut self) -> String {
        let given_up = Instant::now() + Duration::from_secs(30);
        let mut line = String::new();
        while self.out.read_line(&mut line).is_ok() && !line.ends_with('\n') {
            assert!(Instant::now() < given_up, "no line comes after {line:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
        line.trim_end().to_owned()
    }

    /// Waits until this is on the screen, behind what was waited for before.
    fn shows(&mut self, text: &str) {
        let given_up = Instant::now() + Duration::from_secs(30);
        loop {
            if let Some(at) = self.screen.find(text) {
                self.screen.drain(..at + text.len());
                return;
            }
            match self.written.recv_timeout(given_up.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.screen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(_) => panic!("{text:?} does not come; on the screen is {:?}", self.screen),
            }
        }
    }

    /// Whether it shows what is typed, and waits for Enter.
    fn is_as_usual(&self) -> bool {
        let modes = tcgetattr(&self.line).expect("it is there").local_modes;
        modes.contains(LocalModes::ECHO | LocalModes::ICANON)
    }

    /// Waits for the process's end.
    fn ends(&mut self) -> Option<i32> {
        self.child.wait().expect("it ends").code()
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Whatever has ended already can not be killed, which is as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Four records, an hour from one to the next.
fn with_four() -> Dev {
    let dev = Dev::start();
    dev.home.stdout(&["topic", "create", "t"]);
    let line = |n: u64| format!(r#"{{"value":"{n}","timestamp":{}}}"#, 3_600_000 * n);
    let lines: Vec<_> = (0..4).map(line).collect();
    dev.home.pipe(&["produce", "t", "--input", "ndjson"], lines.join("\n"));
    dev
}

#[test]
fn keys_pause_step_and_change_the_speed() {
    let dev = with_four();
    let mut terminal = Terminal::start(&dev.home, &["replay", "t"]);
    assert_eq!(terminal.data(), "0");
    terminal.shows("▶ 1970-01-01T00:00:00Z   1×   1 record   0 %   3 h left");
    terminal.shows("space pause");
    assert!(!terminal.is_as_usual(), "keys come at once");
    terminal.press(b" ");
    terminal.shows("⏸");
    terminal.press(b"n");
    assert_eq!(terminal.data(), "1");
    terminal.shows("⏸ 1970-01-01T01:00:00Z   1×   2 records   33 %   paused");
    terminal.press(b"\x1b[C");
    assert_eq!(terminal.data(), "2");
    terminal.press(b"+");
    terminal.shows("2×");
    terminal.press(b"--");
    terminal.shows("0.5×");
    terminal.press(b" ");
    terminal.shows("▶ 1970-01-01T02:00:");
    for _ in 0..18 {
        terminal.press(b"+");
    }
    assert_eq!(terminal.data(), "3", "an hour goes by at a hundred thousand times its pace, and more");
    assert_eq!(terminal.ends(), Some(0));
    terminal.shows("4 records, reached the end; 3 h in ");
    assert!(terminal.is_as_usual());
}

#[test]
fn the_terminal_is_as_it_was_however_a_replay_ends() {
    let dev = with_four();
    for (key, code, told) in
        [(&b"q"[..], 0, "1 record, stopped by q"), (b"\x03", 130, "1 record, interrupted")]
    {
        let mut terminal = Terminal::start(&dev.home, &["replay", "t"]);
        assert_eq!(terminal.data(), "0");
        terminal.shows("space pause");
        assert!(!terminal.is_as_usual());
        terminal.press(key);
        assert_eq!(terminal.ends(), Some(code));
        terminal.shows(told);
        assert!(terminal.is_as_usual(), "after {key:?}");
    }
}

/// A pager reads its keys from the same terminal: two that change how it behaves leave it to the shell without an echo.
#[test]
fn whoever_reads_the_output_may_have_the_keys() {
    let dev = with_four();
    let nothing = tempfile::tempfile().expect("a temporary file");
    let mut terminal =
        Terminal::start_into(&dev.home, &["replay", "t"], BufReader::new(nothing), Stdio::piped());
    let mut out = BufReader::new(terminal.child.stdout.take().expect("it is piped"));
    let mut line = String::new();
    out.read_line(&mut line).expect("a line of text");
    assert_eq!(line, "0\n");
    terminal.shows("▶ 1970-01-01T00:00:00Z");
    assert!(terminal.is_as_usual(), "{:?}", terminal.screen);
    terminal.press(b"\x03");
    assert_eq!(terminal.ends(), Some(130));
    terminal.shows("1 record, interrupted");
    assert!(terminal.is_as_usual());
}
