//! Reads a broker's messages off a produce or consume stream.
//!
//! Bytes arrive in pieces of any size; [`Inbox`] takes them as they come and gives whole messages, and the frames that
//! follow some of them. It holds no more than what was last received.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};
use quinn::{ReadError, RecvStream, SendStream, WriteError};
use quire_protocol::stream::{Answer, Failure, Opened, StreamError};

use crate::connection::Connection;
use crate::error::Error;

/// Pieces taken off a stream at once; each is at most one datagram.
const PIECES: usize = 32;

/// A receiving stream and what was received and not yet read.
#[derive(Debug)]
pub(crate) struct AnswerStream {
    receive: RecvStream,
    pub(crate) inbox: Inbox,
}

impl AnswerStream {
    pub(crate) fn new(receive: RecvStream) -> AnswerStream {
        AnswerStream { receive, inbox: Inbox::default() }
    }

    /// Waits for more bytes; `false` at the stream's end. Can be cancelled without losing any.
    pub(crate) async fn fill(&mut self) -> Result<bool, ReadError> {
        let mut pieces = [const { Bytes::new() }; PIECES];
        let Some(count) = self.receive.read_chunks(&mut pieces).await? else { return Ok(false) };
        self.inbox.extend(pieces.into_iter().take(count));
        Ok(true)
    }

    /// Tells the broker that nothing more is wanted.
    pub(crate) fn stop(&mut self) {
        let _ = self.receive.stop(quinn::VarInt::from_u32(0));
    }
}

/// Opens a stream with this header, and waits until the broker accepts it or says why it does not.
///
/// # Errors
/// If the stream or its connection is lost.
pub(crate) async fn open(
    connection: &Connection,
    header: &[u8],
) -> Result<Result<(SendStream, AnswerStream, Opened), Failure>, Error> {
    let (mut send, receive) = connection.open().await?;
    let mut answers = AnswerStream::new(receive);
    match send.write_all(header).await {
        // A broker that refuses at once may stop the stream first; its answer says why.
        Ok(()) | Err(WriteError::Stopped(_)) => {}
        Err(error) => return Err(connection.stream_lost(error)),
    }
    loop {
        match answers.inbox.answer().map_err(|error| connection.protocol(error))? {
            Some(Answer::Opened(opened)) => return Ok(Ok((send, answers, opened))),
            Some(Answer::Failure(failure)) => return Ok(Err(failure)),
            Some(_) => return Err(connection.protocol("it answered before it opened the stream")),
            None => {}
        }
        match answers.fill().await {
            Ok(true) => {}
            Ok(false) => return Err(connection.stream_lost("the broker ended the stream")),
            Err(error) => return Err(connection.stream_lost(error)),
        }
    }
}

/// The error of a stream that the broker refused or ended so.
pub(crate) fn failure_error(failure: Failure) -> Error {
    Error::Broker { code: failure.code, message: failure.message, suggestion: None }
}

/// What was received and not yet read.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    pieces: VecDeque<Bytes>,
    length: usize,
}

impl Inbox {
    pub(crate) fn extend(&mut self, pieces: impl Iterator<Item = Bytes>) {
        for piece in pieces.filter(|piece| !piece.is_empty()) {
            self.length += piece.len();
            self.pieces.push_back(piece);
        }
    }

    /// The next message, if all of it is here.
    ///
    /// # Errors
    /// If what is here starts no message.
    pub(crate) fn answer(&mut self) -> Result<Option<Answer>, StreamError> {
        let Some(tag) = self.pieces.front().and_then(|piece| piece.first()).copied() else { return Ok(None) };
        let body_len = Answer::body_len(tag)?;
        let mut head = [0; 1 + Answer::BODY_LEN_MAX];
        let Some(head) = head.get_mut(..1 + body_len).filter(|_| self.length > body_len) else {
            return Ok(None);
        };
        self.copy_to(head);
        let text_len = Answer::text_len(tag, &head[1..])?;
        if self.length < head.len() + text_len {
            return Ok(None);
        }
        self.skip(head.len());
        let mut text = vec![0; text_len];
        self.copy_to(&mut text);
        self.skip(text_len);
        Answer::decode(tag, &head[1..], &text).map(Some)
    }

    /// Moves up to `length` bytes to the end of `out`, and answers how many.
    pub(crate) fn take(&mut self, length: usize, out: &mut BytesMut) -> usize {
        let mut missing = length.min(self.length);
        let taken = missing;
        while missing > 0
            && let Some(piece) = self.pieces.front_mut()
        {
            let part = missing.min(piece.len());
            out.extend_from_slice(&piece[..part]);
            missing -= part;
            self.skip(part);
        }
        taken
    }

    /// Fills `out` without taking anything; as many bytes are here.
    fn copy_to(&self, out: &mut [u8]) {
        let mut filled = 0;
        for piece in &self.pieces {
            let part = piece.len().min(out.len() - filled);
            out[filled..filled + part].copy_from_slice(&piece[..part]);
            filled += part;
        }
    }

    fn skip(&mut self, mut length: usize) {
        self.length -= length;
        while length > 0
            && let Some(piece) = self.pieces.front_mut()
        {
            let part = length.min(piece.len());
            piece.advance(part);
            length -= part;
            if piece.is_empty() {
                self.pieces.pop_front();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use quire_protocol::stream::Frames;
    use quire_protocol::{ErrorCode, Offset};

    fn frames(length: u32) -> Answer {
        Answer::Frames(Frames { length, high_watermark: Offset(9), log_start: Offset(1) })
    }

    fn failure() -> Answer {
        Answer::Failure(Failure {
            code: ErrorCode::DiskFull,
            log_start: Offset(0),
            high_watermark: Offset(0),
            message: "the disk is full".into(),
        })
    }

    proptest! {
        #[test]
        fn messages_come_out_whole_however_they_were_cut(cut in 1usize..40) {
            let mut bytes = Vec::new();
            frames(5).encode(&mut bytes);
            bytes.extend_from_slice(b"frame");
            failure().encode(&mut bytes);

            let (mut inbox, mut answers, mut payload, mut missing) = (Inbox::default(), vec![], BytesMut::new(), 0);
            for piece in bytes.chunks(cut) {
                inbox.extend(std::iter::once(Bytes::copy_from_slice(piece)));
                loop {
                    missing -= inbox.take(missing, &mut payload);
                    let next = if missing == 0 { inbox.answer().expect("valid") } else { None };
                    let Some(answer) = next else { break };
                    if let Answer::Frames(frames) = &answer {
                        missing = frames.length as usize;
                    }
                    answers.push(answer);
                }
            }
            prop_assert_eq!(answers, vec![frames(5), failure()]);
            prop_assert_eq!(payload.as_ref(), b"frame");
            prop_assert_eq!(inbox.length, 0);
        }
    }

    #[test]
    fn what_is_no_message_is_refused_at_once() {
        let mut inbox = Inbox::default();
        assert_eq!(inbox.answer(), Ok(None));
        inbox.extend(std::iter::once(Bytes::from_static(&[200])));
        assert!(inbox.answer().is_err());
    }
}
