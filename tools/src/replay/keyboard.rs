//! Keys, one by one, from a terminal that waits for no Enter; and the terminal as it was, however the command ends.

use std::collections::VecDeque;
use std::io::{self, IsTerminal, Stdin};
use std::time::Duration;

use rustix::fs::{FileType, fstat};
use rustix::process::{Signal, getpgrp, getpid, kill_process};
use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios};
use rustix::termios::{tcgetattr, tcgetpgrp, tcsetattr};
use tokio::signal::unix::{self, SignalKind};
use tokio::time::{Interval, MissedTickBehavior, interval};

/// Bytes read at a time; what is typed ahead of them waits in the terminal.
const BYTES_AT_A_TIME: usize = 64;
/// How often it looks for keys, or in the background whether it has the terminal again. Reading would have to wait on a thread,
/// and whoever waits so when the shell takes the terminal away is stopped for it.
const LOOK_INTERVAL: Duration = Duration::from_millis(30);

/// What a key asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Key {
    /// Pause, or go on.
    Pause,
    /// The next record.
    Step,
    /// The next higher speed.
    Faster,
    /// The next lower speed.
    Slower,
    /// The end.
    Stop,
}

/// A terminal whose keys are read. Dropped, it is as it was before.
pub struct Keyboard {
    terminal: Stdin,
    before: Termios,
    /// Whether keys come at once; not in the background, where the terminal is somebody else's.
    is_listening: bool,
    decoder: Decoder,
    keys: VecDeque<Key>,
    looks: Interval,
    /// Ctrl-Z.
    suspend: unix::Signal,
}

impl Keyboard {
    /// Takes the terminal; `None` where there is none, where this process does not have it at the moment, or where standard
    /// output goes to another process, which may want the keys itself: a pager does.
    ///
    /// # Panics
    /// If it is not called on a tokio runtime.
    pub fn take() -> Option<Keyboard> {
        let terminal = io::stdin();
        if !terminal.is_terminal() || !is_foreground(&terminal) || is_piped() {
            return None;
        }
        let before = tcgetattr(&terminal).ok()?;
        let suspend = unix::signal(SignalKind::from_raw(Signal::TSTP.as_raw())).ok()?;
        let mut looks = interval(LOOK_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let (decoder, keys) = (Decoder::Plain, VecDeque::new());
        let mut keyboard = Keyboard { terminal, before, is_listening: false, decoder, keys, looks, suspend };
        keyboard.listen();
        Some(keyboard).filter(|keyboard| keyboard.is_listening)
    }

    /// The next key; for ever where none can come any more. Ctrl-Z is dealt with meanwhile: the process stops with the
    /// terminal as it was, and takes it again when it goes on, or comes back from the background. Dropping the future loses
    /// nothing.
    pub async fn key(&mut self) -> Key {
        loop {
            if let Some(key) = self.keys.pop_front() {
                return key;
            }
            tokio::select! {
                _ = self.looks.tick() => match self.is_listening {
                    true => self.read(),
                    false => self.listen(),
                },
                Some(()) = self.suspend.recv() => {
                    self.restore();
                    let _ = kill_process(getpid(), Signal::STOP);
                    self.listen();
                }
            }
        }
    }

    /// Takes what was typed. Whoever reads in the background is stopped by the system, and whoever reads a terminal in its usual
    /// mode waits for Enter.
    fn read(&mut self) {
        self.is_listening =
            is_foreground(&self.terminal) && tcgetattr(&self.terminal).is_ok_and(is_immediate);
        if !self.is_listening {
            return;
        }
        let mut bytes = [0; BYTES_AT_A_TIME];
        // One that is gone has no more keys.
        let count = rustix::io::read(&self.terminal, &mut bytes).unwrap_or(0);
        self.keys.extend(bytes[..count].iter().filter_map(|byte| self.decoder.take(*byte)));
    }

    /// Keys come at once and are not shown, while this process is in the foreground; Ctrl-C and Ctrl-Z stay signals.
    fn listen(&mut self) {
        if !is_foreground(&self.terminal) {
            return;
        }
        let mut mode = self.before.clone();
        mode.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO);
        // Reading waits for nothing.
        mode.special_codes[SpecialCodeIndex::VMIN] = 0;
        mode.special_codes[SpecialCodeIndex::VTIME] = 0;
        self.is_listening = tcsetattr(&self.terminal, OptionalActions::Now, &mode).is_ok();
    }

    fn restore(&mut self) {
        // Whoever changes it from the background is stopped by the system, and has changed nothing.
        if std::mem::take(&mut self.is_listening) && is_foreground(&self.terminal) {
            // One that is gone has nothing to be restored.
            let _ = tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
        }
    }
}

impl Drop for Keyboard {
    fn drop(&mut self) {
        self.restore();
    }
}

/// Whether reading takes what is there, and waits for nothing.
fn is_immediate(mode: Termios) -> bool {
    !mode.local_modes.contains(LocalModes::ICANON) && mode.special_codes[SpecialCodeIndex::VMIN] == 0
}

/// Whoever is not in the foreground is stopped by the system for reading keys.
fn is_foreground(terminal: &Stdin) -> bool {
    tcgetpgrp(terminal).is_ok_and(|group| group == getpgrp())
}

/// Whether standard output is read by another process.
fn is_piped() -> bool {
    let kind = fstat(io::stdout()).map(|stat| FileType::from_raw_mode(stat.st_mode));
    kind.is_ok_and(|kind| matches!(kind, FileType::Fifo | FileType::Socket))
}

/// Understands keys byte by byte; an arrow is three of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decoder {
    Plain,
    /// After Escape.
    Escaped,
    /// After Escape and a bracket.
    Sequence,
}

impl Decoder {
    fn take(&mut self, byte: u8) -> Option<Key> {
        let before = std::mem::replace(self, Decoder::Plain);
        match (before, byte) {
            (_, 0x1b) => *self = Decoder::Escaped,
            (Decoder::Escaped, b'[' | b'O') => *self = Decoder::Sequence,
            (Decoder::Sequence, b'C') => return Some(Key::Step),
            (Decoder::Sequence, b'0'..=b'9' | b';') => *self = Decoder::Sequence,
            (Decoder::Sequence, _) => {}
            (_, b' ') => return Some(Key::Pause),
            (_, b'n') => return Some(Key::Step),
            (_, b'+' | b'=') => return Some(Key::Faster),
            (_, b'-' | b'_') => return Some(Key::Slower),
            (_, b'q') => return Some(Key::Stop),
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_arrows_are_understood_and_others_passed_over() {
        let mut decoder = Decoder::Plain;
        let typed = b" n+=-_x\x1b[C\x1bOC\x1b[A\x1b[1;5C\x1b[B\x1b\x1b[C\x1bq\x1b[3~q";
        let keys: Vec<_> = typed.iter().filter_map(|byte| decoder.take(*byte)).collect();
        use Key::{Faster, Pause, Slower, Step, Stop};
        let expected = [Pause, Step, Faster, Faster, Slower, Slower, Step, Step, Step, Step, Stop, Stop];
        assert_eq!(keys, expected);
    }
}
