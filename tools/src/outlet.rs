//! Standard output for a reader that takes its time: no write keeps the process from being stopped, and which records are out is
//! known.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::signals::StopSignals;

/// What a pipe that has any room takes without blocking (bytes): `PIPE_BUF`.
const PIECE_BYTES: usize = 4096;
/// With so much it is let out (bytes): one piece, unless records are large, after which everything is out or nothing.
const ENOUGH_BYTES: usize = PIECE_BYTES / 2;
/// How long the rest of a record that is out in part has once the process is to stop.
const REST_TIME_MAX: Duration = Duration::from_secs(1);
/// How long a thread waits for a reader that takes its time, before it looks whether anybody still wants to know.
const WAIT_TIME: Duration = Duration::from_millis(100);

/// Records on their way to standard output.
#[derive(Debug, Default)]
pub struct Outlet {
    pending: Pending,
}

impl Outlet {
    /// What was written up to here is a record.
    pub fn end_record(&mut self) {
        self.pending.ends.push_back(self.pending.bytes.len());
    }

    /// Records that are not out yet, or not wholly.
    pub fn waiting(&self) -> u64 {
        self.pending.ends.len() as u64
    }

    /// Whether there is enough to be let out.
    pub fn is_full(&self) -> bool {
        self.pending.bytes.len() >= ENOUGH_BYTES
    }

    /// Whether whoever reads has to read on before more can be let out.
    pub fn would_block(&self) -> bool {
        !has_room(Duration::ZERO)
    }

    /// Writes everything, unless the process is to stop before: then `false`, and records stay behind whole, but for one that
    /// its reader does not take the rest of.
    ///
    /// # Errors
    /// If nobody reads any more, or the system refuses.
    pub async fn let_out(&mut self, stop: &mut StopSignals) -> io::Result<bool> {
        while !self.pending.is_empty() {
            let is_stopped = tokio::select! {
                () = room() => false,
                () = stop.stop() => true,
            };
            if is_stopped {
                while !self.pending.is_between_records() && timeout(REST_TIME_MAX, room()).await.is_ok() {
                    self.write_piece()?;
                }
                return Ok(false);
            }
            self.write_piece()?;
        }
        Ok(true)
    }

    fn write_piece(&mut self) -> io::Result<()> {
        match rustix::io::write(io::stdout(), self.pending.piece()) {
            Ok(written) => self.pending.advance(written),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

impl Write for Outlet {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.pending.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    /// Nothing: [`Outlet::let_out`] does.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Returns once a piece can be written, or writing it shows why not. The descriptor is others' too, and stays blocking: a thread
/// waits for it.
async fn room() {
    while !has_room(Duration::ZERO) {
        if !matches!(spawn_blocking(|| has_room(WAIT_TIME)).await, Ok(false)) {
            return;
        }
    }
}

/// Whether a piece can be written, or can be after this time. A file always has room.
fn has_room(wait: Duration) -> bool {
    let stdout = io::stdout();
    let mut watched = [PollFd::new(&stdout, PollFlags::OUT)];
    let wait = Timespec { tv_sec: 0, tv_nsec: wait.subsec_nanos().into() };
    poll(&mut watched, Some(&wait)).map_or_else(|error| error != Errno::INTR, |ready| ready > 0)
}

/// Bytes of records, and where each of these ends.
#[derive(Debug, Default)]
struct Pending {
    bytes: Vec<u8>,
    /// So many of them are out.
    done: usize,
    /// Of the records that are not out wholly.
    ends: VecDeque<usize>,
    /// The last record that is out ends here.
    out_to: usize,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.done == self.bytes.len()
    }

    fn is_between_records(&self) -> bool {
        self.done == self.out_to
    }

    /// What is written next: as many whole records as fit, or a part of one that does not.
    fn piece(&self) -> &[u8] {
        let most = self.done + PIECE_BYTES;
        let whole = self.ends.iter().copied().take_while(|end| *end <= most).last();
        &self.bytes[self.done..whole.unwrap_or(most).min(self.bytes.len())]
    }

    fn advance(&mut self, written: usize) {
        self.done += written;
        while let Some(end) = self.ends.pop_front_if(|end| *end <= self.done) {
            self.out_to = end;
        }
        if self.is_empty() {
            *self = Pending { bytes: std::mem::take(&mut self.bytes), ..Pending::default() };
            self.bytes.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending(lengths: &[usize]) -> Pending {
        let mut pending = Pending::default();
        for length in lengths {
            pending.bytes.resize(pending.bytes.len() + length, b'x');
            pending.ends.push_back(pending.bytes.len());
        }
        pending
    }

    #[test]
    fn a_piece_is_whole_records_as_long_as_they_fit() {
        let mut pending = pending(&[1000, 3000, 90, 5, 2, 10_000, 7]);
        let mut pieces = Vec::new();
        while !pending.is_empty() {
            pieces.push((pending.piece().len(), pending.is_between_records()));
            pending.advance(pending.piece().len());
        }
        assert_eq!(pieces, [(4095, true), (2, true), (4096, true), (4096, false), (1815, false)]);
        assert!(pending.is_between_records() && pending.ends.is_empty() && pending.bytes.is_empty());
    }

    #[test]
    fn a_part_of_a_piece_may_be_taken() {
        let mut pending = pending(&[10, 10]);
        pending.advance(4);
        assert!(!pending.is_between_records());
        assert_eq!((pending.piece().len(), pending.ends.len()), (16, 2));
        pending.advance(6);
        assert!(pending.is_between_records());
        assert_eq!((pending.piece().len(), pending.ends.len()), (10, 1));
    }
}
