//! Keys, one by one, from a terminal that waits for no Enter; and the terminal as it was, however the command ends.

use std::io::{self, IsTerminal, Read, Stdin};

use rustix::process::{Signal, getpgrp, getpid, kill_process};
use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios};
use rustix::termios::{tcgetattr, tcgetpgrp, tcsetattr};
use tokio::signal::unix::{self, SignalKind};
use tokio::sync::mpsc;

/// Keys typed ahead; what is typed beyond them waits in the terminal.
const KEYS_AHEAD: usize = 64;

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
    keys: mpsc::Receiver<Key>,
    /// Ctrl-Z.
    suspend: unix::Signal,
}

impl Keyboard {
    /// Takes the terminal; `None` where there is none, or this process does not have it at the moment.
    pub fn take() -> Option<Keyboard> {
        let terminal = io::stdin();
        if !terminal.is_terminal() || !is_foreground(&terminal) {
            return None;
        }
        let before = tcgetattr(&terminal).ok()?;
        let suspend = unix::signal(SignalKind::from_raw(Signal::TSTP.as_raw())).ok()?;
        let (sender, keys) = mpsc::channel(KEYS_AHEAD);
        let keyboard = Keyboard { terminal, before, keys, suspend };
        keyboard.listen();
        std::thread::spawn(move || read_keys(&sender));
        Some(keyboard)
    }

    /// The next key; for ever where none can come any more. Ctrl-Z is dealt with meanwhile: the process stops with the
    /// terminal as it was, and takes it again when it goes on. Dropping the future loses nothing.
    pub async fn key(&mut self) -> Key {
        loop {
            tokio::select! {
                Some(key) = self.keys.recv() => return key,
                Some(()) = self.suspend.recv() => {
                    self.restore();
                    let _ = kill_process(getpid(), Signal::STOP);
                    if is_foreground(&self.terminal) {
                        self.listen();
                    }
                }
                else => return std::future::pending().await,
            }
        }
    }

    /// Keys come at once and are not shown; Ctrl-C and Ctrl-Z stay signals.
    fn listen(&self) {
        let mut mode = self.before.clone();
        mode.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO);
        mode.special_codes[SpecialCodeIndex::VMIN] = 1;
        mode.special_codes[SpecialCodeIndex::VTIME] = 0;
        // A terminal that takes no such mode still serves, with an Enter behind each key.
        let _ = tcsetattr(&self.terminal, OptionalActions::Now, &mode);
    }

    fn restore(&self) {
        // One that is gone has nothing to be restored.
        let _ = tcsetattr(&self.terminal, OptionalActions::Now, &self.before);
    }
}

impl Drop for Keyboard {
    fn drop(&mut self) {
        self.restore();
    }
}

/// Whoever is not in the foreground is stopped by the system for reading keys.
fn is_foreground(terminal: &Stdin) -> bool {
    tcgetpgrp(terminal).is_ok_and(|group| group == getpgrp())
}

/// On a thread of its own, since a terminal can only be waited for, not called back.
fn read_keys(sender: &mpsc::Sender<Key>) {
    let mut decoder = Decoder::Plain;
    for byte in io::stdin().lock().bytes().map_while(Result::ok) {
        if let Some(key) = decoder.take(byte)
            && sender.blocking_send(key).is_err()
        {
            return;
        }
    }
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
