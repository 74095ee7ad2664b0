//! One consume stream: frames out as far as credit and the high watermark allow, credit in.
//!
//! Frames go out as slices of the log's maps, without a copy. What has left the page cache is brought back on the blocking
//! pool, and accounted for until the client took it; ahead of a consumer that goes on there, the disk is asked for what it
//! will want next (`ahead.rs`). A consumer that waits is one small future: it sleeps until the partition changes, credit
//! comes, or somebody leaves.

mod ahead;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quinn::{RecvStream, SendStream};
use quire_engine::controller::image::Operation;
use quire_protocol::frame;
use quire_protocol::stream::{Answer, ConsumeHeader, Frames, Opened, Start};
use quire_protocol::{ErrorCode, Offset, limits};
use quire_storage::{LogReader, ReadError, Residency, Slice};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, SemaphorePermit, watch};
use tokio::time::timeout;

use self::ahead::Ahead;
use super::{access, offsets};
use crate::context::Context;
use crate::error::RequestError;
use crate::net::connection::Session;
use crate::net::message;
use crate::shard::{PartitionHandle, Watermarks, not_leader};
use crate::shutdown::Stopping;

const CREDIT_LEN: usize = 8;

/// Why a stream ended before its time.
enum End {
    /// The client is gone, or wants no more.
    Gone,
    /// The client is told.
    Refused(RequestError),
}

impl<E: Into<RequestError>> From<E> for End {
    fn from(error: E) -> End {
        End::Refused(error.into())
    }
}

/// Serves a stream to its end.
///
/// # Errors
/// What the client is to be told in place of further frames.
pub(crate) async fn serve(
    session: &Session,
    header: &[u8; ConsumeHeader::LEN],
    send: &mut SendStream,
    recv: &mut RecvStream,
) -> Result<(), RequestError> {
    let header = ConsumeHeader::decode(header).map_err(|error| message::malformed(&error))?;
    let context = &session.context;
    access::check_partition(session, Operation::Consume, header.partition)?;
    // A replica in sync serves what it knows to be committed.
    let partition = context.partitions.find_replica(header.partition)?;
    is_readable(context, &partition)?;
    let next = resolve(context, &partition, header.start).await?;
    let mut consumption = Consumption {
        context,
        cold_reads: &session.cold_reads,
        changes: partition.changes(),
        stopping: context.stopping.clone(),
        is_heard: context.is_heard.clone(),
        partition,
        next,
        credit: Credit::default(),
        told: (Offset::ZERO, Offset::ZERO),
        ahead: Ahead::default(),
        send,
    };
    consumption.credit.grant(header.credit)?;
    match consumption.run(recv).await {
        End::Gone => Ok(()),
        End::Refused(error) => Err(error),
    }
}

/// Where a consumer begins.
async fn resolve(
    context: &Context,
    partition: &PartitionHandle,
    start: Start,
) -> Result<Offset, RequestError> {
    let reader = partition.reader();
    match start {
        Start::Beginning => Ok(reader.log_start()),
        Start::End => {
            offsets::end_is_known(partition)?;
            Ok(reader.high_watermark())
        }
        // What was read of the leader is in sync here, and known to be committed a little later.
        Start::Offset(offset) if !partition.standing().is_leading && is_held(reader, offset) => Ok(offset),
        Start::Offset(offset) => {
            if offset > reader.high_watermark() {
                offsets::end_is_known(partition)?;
            }
            offsets::in_range(reader, offset)
        }
        Start::Timestamp(timestamp) => {
            offsets::end_is_known(partition)?;
            let found = offsets::at_time(context, partition, timestamp).await?;
            Ok(found.offset)
        }
    }
}

/// Whether this is a record of the log, or the next one to come.
fn is_held(reader: &LogReader, offset: Offset) -> bool {
    reader.log_start() <= offset && offset <= reader.end_offset()
}

/// Whether what is committed can be read here. A follower that the controller does not hear may be in sync no more without
/// knowing, and its readers would wait for what others have long read.
fn is_readable(context: &Context, partition: &PartitionHandle) -> Result<(), RequestError> {
    let standing = partition.standing();
    let is_heard = || context.is_heard.as_ref().is_none_or(|is_heard| *is_heard.borrow());
    if standing.is_leading || (standing.is_readable && is_heard()) {
        return Ok(());
    }
    Err(not_leader(standing.leader))
}

/// What a consumer still takes: granted by the client, overdrawn by at most one frame.
#[derive(Debug, Default)]
struct Credit {
    bytes: i64,
    /// Bytes of the next grant, as far as they came.
    partial: [u8; CREDIT_LEN],
    filled: usize,
}

impl Credit {
    /// How much may be read for the consumer now.
    fn available(&self) -> usize {
        usize::try_from(self.bytes).unwrap_or(0)
    }

    fn grant(&mut self, bytes: u64) -> Result<(), RequestError> {
        let granted = i64::try_from(bytes).ok().and_then(|bytes| self.bytes.checked_add(bytes));
        let limit = limits::CONSUME_CREDIT_BYTES_MAX;
        self.bytes = granted.filter(|sum| *sum <= limit as i64).ok_or_else(|| {
            let message = format!("a consume stream may hold credit for at most {limit} bytes");
            RequestError::new(ErrorCode::InvalidRequest, message)
        })?;
        Ok(())
    }

    fn spend(&mut self, bytes: usize) {
        self.bytes -= bytes as i64;
    }

    /// Waits for bytes of a grant; takes it when it is complete. Cancel-safe.
    async fn receive(&mut self, recv: &mut RecvStream) -> Result<(), End> {
        match recv.read(&mut self.partial[self.filled..]).await {
            Ok(Some(count)) => self.filled += count,
            // A client that will grant no more has left, or is about to.
            Ok(None) | Err(_) => return Err(End::Gone),
        }
        if self.filled == CREDIT_LEN {
            self.filled = 0;
            self.grant(u64::from_le_bytes(self.partial))?;
        }
        Ok(())
    }
}

/// A consumer being served.
struct Consumption<'a> {
    context: &'a Context,
    /// See [`Session::cold_reads`].
    cold_reads: &'a Semaphore,
    partition: PartitionHandle,
    changes: watch::Receiver<Watermarks>,
    stopping: Stopping,
    is_heard: Option<watch::Receiver<bool>>,
    /// The first offset not sent yet.
    next: Offset,
    credit: Credit,
    /// Log start and high watermark, as last told.
    told: (Offset, Offset),
    ahead: Ahead,
    send: &'a mut SendStream,
}

/// Frames read for a consumer.
struct Read<'a> {
    slice: Slice,
    /// Held until the frames are on their way.
    _memory: Option<ColdRead<'a>>,
}

/// A read from the disk: its connection's permit, then the broker's memory, taken in this order.
struct ColdRead<'a> {
    _turn: SemaphorePermit<'a>,
    _memory: OwnedSemaphorePermit,
}

impl<'a> Consumption<'a> {
    async fn run(&mut self, recv: &mut RecvStream) -> End {
        let outcome = match self.open().await {
            Ok(()) => self.push_all(recv).await,
            Err(end) => Err(end),
        };
        outcome.err().unwrap_or(End::Gone)
    }

    async fn open(&mut self) -> Result<(), End> {
        let (log_start, high_watermark) = self.range();
        let mut bytes = Vec::with_capacity(64);
        Answer::Opened(Opened {
            leader_epoch: self.partition.leader_epoch(),
            window: 0,
            batch_bytes_max: 0,
            next_offset: self.next,
            log_start,
            high_watermark,
        })
        .encode(&mut bytes);
        self.told = (log_start, high_watermark);
        self.write(&mut [Bytes::from(bytes)]).await
    }

    async fn push_all(&mut self, recv: &mut RecvStream) -> Result<(), End> {
        loop {
            // Also while there is more to send: the files of a deleted topic are about to go.
            if self.changes.borrow().is_closed {
                return Err(self.why_closed().into());
            }
            is_readable(self.context, &self.partition)?;
            let (log_start, high_watermark) = self.range();
            if self.next < log_start {
                return Err(RequestError::out_of_range(self.next, log_start, high_watermark).into());
            }
            if self.next < high_watermark && self.credit.available() > 0 {
                self.push(high_watermark).await?;
                // A consumer that keeps up never waits, and must still let others run.
                tokio::task::coop::consume_budget().await;
                continue;
            }
            if self.next >= high_watermark && self.told != (log_start, high_watermark) {
                self.tell(Vec::new(), 0).await?;
            }
            self.wait(recv).await?;
        }
    }

    /// Waits until there may be something to do.
    async fn wait(&mut self, recv: &mut RecvStream) -> Result<(), End> {
        // What was published between looking and marking as seen must not be slept through.
        let is_closed = self.changes.borrow_and_update().is_closed;
        if is_closed {
            return Ok(());
        }
        if self.next < self.partition.reader().high_watermark() && self.credit.available() > 0 {
            return Ok(());
        }
        let is_heard = &mut self.is_heard;
        let hearing_changed = async {
            if let Some(is_heard) = is_heard
                && is_heard.changed().await.is_ok()
            {
                return;
            }
            std::future::pending().await
        };
        tokio::select! {
            () = hearing_changed => Ok(()),
            changed = self.changes.changed() => match changed {
                Ok(()) => Ok(()),
                Err(_) => Err(self.why_closed().into()),
            },
            received = self.credit.receive(recv) => received,
            _ = self.send.stopped() => Err(End::Gone),
            () = self.stopping.requested() => Err(RequestError::shutting_down().into()),
        }
    }

    /// Reads what is next and sends it.
    async fn push(&mut self, high_watermark: Offset) -> Result<(), End> {
        if self.stopping.is_requested() {
            return Err(RequestError::shutting_down().into());
        }
        self.ahead.advance(&self.context.memory.read_aheads, self.partition.reader(), self.next);
        let bytes_max = self.credit.available().min(limits::READ_BYTES_MAX);
        let read = self.partition.reader().read(self.next, bytes_max, high_watermark, Residency::Resident);
        let read = match read {
            Ok(slice) => Read { slice, _memory: None },
            // Boxed: an idle consumer must not carry the room for it.
            Err(ReadError::NotResident) => Box::pin(self.read_cold(bytes_max, high_watermark)).await?,
            Err(error) => return Err(Box::pin(self.read_failed(error)).await),
        };
        let Slice { frames, bytes, next_offset } = read.slice;
        self.credit.spend(bytes);
        self.next = next_offset;
        self.tell(frames, bytes).await?;
        self.context.metrics.consume_bytes.increment(bytes as u64);
        Ok(())
    }

    /// Reads on a thread that may wait for the disk.
    async fn read_cold(&mut self, bytes_max: usize, high_watermark: Offset) -> Result<Read<'a>, End> {
        let message_bytes_max = self.partition.config().message_bytes_max;
        let (reader, next) = (self.partition.reader().clone(), self.next);
        // One frame may exceed what was asked for.
        let needed = bytes_max.max(frame::HEADER_LEN + message_bytes_max);
        let turn = self.cold_reads.acquire().await.map_err(|_| RequestError::shutting_down())?;
        let memory = ColdRead { _turn: turn, _memory: cold_read_memory(self.context, needed).await? };
        self.context.metrics.consume_cold_reads.increment(1);
        let read = move || reader.read(next, bytes_max, high_watermark, Residency::Any);
        match tokio::task::spawn_blocking(read).await {
            Ok(Ok(slice)) => {
                self.ahead.start(slice.next_offset);
                Ok(Read { slice, _memory: Some(memory) })
            }
            Ok(Err(error)) => Err(self.read_failed(error).await),
            Err(_) => Err(RequestError::new(ErrorCode::Internal, "reading was interrupted").into()),
        }
    }

    async fn read_failed(&self, error: ReadError) -> End {
        match error {
            // The end that the log knows lies beyond what may be asked for.
            ReadError::OutOfRange { .. } => {
                let (log_start, high_watermark) = self.range();
                RequestError::out_of_range(self.next, log_start, high_watermark).into()
            }
            // The shard says it, once.
            error @ ReadError::Corrupt { .. } => self.partition.read_failed(error).await.into(),
            error => {
                tracing::error!(partition = %self.partition.id(), offset = %self.next, %error, "cannot read");
                self.partition.read_failed(error).await.into()
            }
        }
    }

    /// Sends frames of `length` bytes together, or none, with the range that can be read now.
    async fn tell(&mut self, frames: Vec<Bytes>, length: usize) -> Result<(), End> {
        let (log_start, high_watermark) = self.range();
        let mut bytes = Vec::with_capacity(32);
        Answer::Frames(Frames { length: length as u32, high_watermark, log_start }).encode(&mut bytes);
        self.told = (log_start, high_watermark);
        let mut chunks = Vec::with_capacity(1 + frames.len());
        chunks.push(Bytes::from(bytes));
        chunks.extend(frames);
        self.write(&mut chunks).await
    }

    async fn write(&mut self, chunks: &mut [Bytes]) -> Result<(), End> {
        write_within(self.send, chunks, limits::CONSUME_STALL_MAX).await
    }

    fn range(&self) -> (Offset, Offset) {
        let reader: &LogReader = self.partition.reader();
        // In this order: both only grow, so that the range is never inverted.
        let log_start = reader.log_start();
        (log_start, reader.high_watermark().max(log_start))
    }

    fn why_closed(&self) -> RequestError {
        if self.stopping.is_requested() {
            return RequestError::shutting_down();
        }
        let found = self.context.partitions.find(self.partition.id());
        found.err().unwrap_or_else(|| RequestError::new(ErrorCode::Unavailable, "the partition was closed"))
    }
}

/// Room for a read from the disk; waits for it, since whoever has it must pass it on within
/// [`limits::CONSUME_STALL_MAX`].
async fn cold_read_memory(context: &Context, bytes: usize) -> Result<OwnedSemaphorePermit, RequestError> {
    let bytes = bytes.min(context.config.memory.cold_read_bytes) as u32;
    let acquired = Arc::clone(&context.memory.cold_read).acquire_many_owned(bytes).await;
    acquired.map_err(|_| RequestError::shutting_down())
}

/// Writes all of `chunks` in time, or gives the stream up: its client granted credit and takes nothing.
async fn write_within(send: &mut SendStream, chunks: &mut [Bytes], limit: Duration) -> Result<(), End> {
    match timeout(limit, send.write_all_chunks(chunks)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(End::Gone),
        Err(_) => {
            // A part may have been written: only a reset ends such a stream without passing for an answer.
            let _ = send.reset(crate::net::connection::close_code(ErrorCode::TimedOut));
            Err(End::Gone)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credit_is_overdrawn_by_one_frame_and_paid_back() {
        let mut credit = Credit::default();
        credit.grant(100).expect("below the limit");
        credit.spend(150);
        assert_eq!(credit.available(), 0);
        credit.grant(60).expect("below the limit");
        assert_eq!(credit.available(), 10);
    }

    #[test]
    fn credit_beyond_the_limit_is_refused() {
        let mut credit = Credit::default();
        credit.grant(limits::CONSUME_CREDIT_BYTES_MAX).expect("at the limit");
        assert_eq!(credit.grant(1).map_err(|error| error.code), Err(ErrorCode::InvalidRequest));
        assert!(Credit::default().grant(u64::MAX).is_err());
    }
}
