//! Going through the frames of a segment file, wherever its bytes come from.

use std::ops::Range;

use bytes::Bytes;
use quire_protocol::frame::{self, FrameError, FrameHeader, FrameSeed};

/// Bytes looked at together when searching for the next intact frame.
const SEARCH_WINDOW_BYTES: u64 = 256 * 1024;
/// Bytes that tell a damaged header from an intact one.
const SEAL_LEN: u64 = (frame::HEADER_LEN + frame::BATCH_PREFIX_LEN) as u64;

/// Gives the bytes of a range of a file: all of them, or those that are left of a file that was cut short.
pub(crate) trait FrameBytes {
    /// Why they can not be had.
    type Error;

    /// The bytes of `range`; fewer if the file ends in it.
    fn bytes(&self, range: Range<u64>) -> Result<Bytes, Self::Error>;
}

/// Why there is no next frame.
#[derive(Debug)]
pub(crate) enum WalkError<E> {
    /// The bytes could not be had.
    Read(E),
    /// What begins at this position is no intact frame.
    Frame { position: u64, error: FrameError },
}

/// A frame's position, header and bytes.
pub(crate) type WholeFrame = (u64, FrameHeader, Bytes);

/// Goes from frame to frame.
pub(crate) struct Walk<'a, B: FrameBytes> {
    source: &'a B,
    /// Where the next frame begins.
    position: u64,
    /// No frame reaches beyond this.
    end: u64,
    /// Bytes asked for at once; a longer frame is asked for as a whole.
    window_len: u64,
    /// The bytes from `window_start` on that were asked for last.
    window: Bytes,
    window_start: u64,
}

impl<'a, B: FrameBytes> Walk<'a, B> {
    pub(crate) fn new(source: &'a B, range: Range<u64>, window_len: u64) -> Walk<'a, B> {
        let Range { start: position, end } = range;
        Walk { source, position, end, window_len, window: Bytes::new(), window_start: position }
    }

    /// The next frame's position and header, which is only parsed: good for finding the way, not for serving.
    pub(crate) fn next_header(&mut self) -> Result<Option<(u64, FrameHeader)>, WalkError<B::Error>> {
        let position = self.position;
        if position >= self.end {
            return Ok(None);
        }
        let bytes = self.peek(frame::HEADER_LEN as u64)?;
        let header = FrameHeader::parse(&bytes).map_err(|error| WalkError::Frame { position, error })?;
        self.step(&header)?;
        Ok(Some((position, header)))
    }

    /// The next frame, checked completely: its position, header and bytes.
    pub(crate) fn next_frame(&mut self, seed: FrameSeed) -> Result<Option<WholeFrame>, WalkError<B::Error>> {
        let position = self.position;
        if position >= self.end {
            return Ok(None);
        }
        let mut bytes = self.peek(SEAL_LEN)?;
        let mut checked = FrameHeader::check(seed, &bytes);
        if let Err(FrameError::Short { need, .. }) = checked
            && position + need as u64 <= self.end
        {
            bytes = self.peek(need as u64)?;
            checked = FrameHeader::check(seed, &bytes);
        }
        let header = checked.map_err(|error| WalkError::Frame { position, error })?;
        bytes.truncate(header.frame_len());
        self.step(&header)?;
        Ok(Some((position, header, bytes)))
    }

    /// Goes on at another position.
    pub(crate) fn seek(&mut self, position: u64) {
        self.position = position;
    }

    /// At least `len` bytes from here on, unless the end comes first.
    fn peek(&mut self, len: u64) -> Result<Bytes, WalkError<B::Error>> {
        let wanted = (self.position + len).min(self.end);
        let window_end = self.window_start + self.window.len() as u64;
        if self.position < self.window_start || wanted > window_end {
            let end = self.position.saturating_add(self.window_len).clamp(wanted, self.end);
            self.window = self.source.bytes(self.position..end).map_err(WalkError::Read)?;
            self.window_start = self.position;
        }
        Ok(self.window.slice((self.position - self.window_start) as usize..))
    }

    fn step(&mut self, header: &FrameHeader) -> Result<(), WalkError<B::Error>> {
        let next = self.position + header.frame_len() as u64;
        if next > self.end {
            let (have, need) = ((self.end - self.position) as usize, header.frame_len());
            let error = FrameError::Short { have, need };
            return Err(WalkError::Frame { position: self.position, error });
        }
        self.position = next;
        Ok(())
    }
}

/// The first intact frame that begins in `range`, wherever it does; its position and header.
pub(crate) fn search<B: FrameBytes>(
    source: &B,
    seed: FrameSeed,
    range: Range<u64>,
) -> Result<Option<(u64, FrameHeader)>, B::Error> {
    let mut start = range.start;
    while start + SEAL_LEN <= range.end {
        // A magic that the window's end cuts through is found by the next window.
        let window_end = (start + SEARCH_WINDOW_BYTES).min(range.end);
        let window = source.bytes(start..window_end)?;
        for at in magics(&window) {
            let position = start + at as u64;
            if let Some(header) = frame_at(source, seed, position, range.end)? {
                return Ok(Some((position, header)));
            }
        }
        if window_end == range.end {
            break;
        }
        start = window_end - (frame::MAGIC.len() as u64 - 1);
    }
    Ok(None)
}

/// The position after the last byte of `range` that is not zero, if any is not.
pub(crate) fn end_of_content<B: FrameBytes>(source: &B, range: Range<u64>) -> Result<Option<u64>, B::Error> {
    let mut end = range.end;
    while end > range.start {
        let start = end.saturating_sub(SEARCH_WINDOW_BYTES).max(range.start);
        let window = source.bytes(start..end)?;
        if let Some(last) = window.iter().rposition(|byte| *byte != 0) {
            return Ok(Some(start + last as u64 + 1));
        }
        end = start;
    }
    Ok(None)
}

/// The header of the intact frame that begins at `position`, if one does.
fn frame_at<B: FrameBytes>(
    source: &B,
    seed: FrameSeed,
    position: u64,
    end: u64,
) -> Result<Option<FrameHeader>, B::Error> {
    let mut walk = Walk::new(source, position..end, SEAL_LEN);
    match walk.next_frame(seed) {
        Ok(frame) => Ok(frame.map(|(_, header, _)| header)),
        Err(WalkError::Read(error)) => Err(error),
        Err(WalkError::Frame { .. }) => Ok(None),
    }
}

fn magics(bytes: &[u8]) -> impl Iterator<Item = usize> + '_ {
    let first = frame::MAGIC[0];
    bytes
        .windows(frame::MAGIC.len())
        .enumerate()
        .filter(move |(_, window)| window[0] == first && **window == frame::MAGIC)
        .map(|(at, _)| at)
}
