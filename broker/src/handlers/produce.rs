//! One produce stream: batches in, acknowledgements out, in order.
//!
//! Two halves run side by side in one task. The first takes whole batches off the stream, checks them, and hands them to
//! the partition's shard; the second writes the shard's answers. Between them stands the window: a batch is read only
//! once fewer than the window are unanswered, so that the reply channel always has room.
//!
//! An error ends the stream and answers the oldest unanswered batch and all later ones. So an error of the first half is
//! told only after everything before it was answered.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::BufMut;
use quinn::{RecvStream, SendStream};
use quire_engine::controller::image::Operation;
use quire_protocol::batch::{BatchError, BatchHeader, HEADER_LEN, ProducerIdentity, TimestampType};
use quire_protocol::stream::{Acks, Answer, Opened, ProduceHeader};
use quire_protocol::{ErrorCode, limits};
use tokio::io::AsyncReadExt;
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, SemaphorePermit, mpsc};
use tokio::time::timeout;

use super::access;
use crate::context::Context;
use crate::error::RequestError;
use crate::net::connection::Session;
use crate::net::message;
use crate::shard::{PartitionHandle, ProduceReply, ProduceRequest};

const WINDOW: usize = limits::PRODUCE_WINDOW_BATCHES as usize;
/// Bytes of a batch that tell its length.
const PREFIX_LEN: usize = 12;

/// Why a stream ended before its time.
enum End {
    /// The client is gone; there is nobody to tell.
    Gone,
    /// The client is told.
    Refused(RequestError),
}

impl From<RequestError> for End {
    fn from(error: RequestError) -> End {
        End::Refused(error)
    }
}

/// Serves a stream to its end.
///
/// # Errors
/// What the client is to be told in place of further acknowledgements.
pub(crate) async fn serve(
    session: &Session,
    header: ProduceHeader,
    send: &mut SendStream,
    recv: &mut RecvStream,
) -> Result<(), RequestError> {
    let context = &session.context;
    access::check_partition(session, Operation::Produce, header.partition)?;
    let partition = context.partitions.find(header.partition)?;
    let opened = admit(&partition, &header)?;
    let served = match open(opened, send).await {
        Ok(()) => exchange(session, &partition, &header, send, recv).await,
        Err(end) => Err(end),
    };
    match served {
        Ok(()) | Err(End::Gone) => Ok(()),
        Err(End::Refused(error)) => {
            context.metrics.produce_refused.increment(1);
            Err(error)
        }
    }
}

/// Whether a stream may be opened to a partition that is led here, and what its client is told then.
///
/// # Errors
/// If the client knows another leadership, or wants more replicas than are in sync.
pub fn admit(partition: &PartitionHandle, header: &ProduceHeader) -> Result<Opened, RequestError> {
    let standing = partition.standing();
    let current = standing.leader_epoch;
    if header.leader_epoch < current {
        let message = format!("the client knows leader epoch {}, it is {current} now", header.leader_epoch);
        return Err(RequestError::new(ErrorCode::FencedLeaderEpoch, message));
    }
    if header.leader_epoch > current {
        let message =
            format!("this broker leads in epoch {current} and has not heard of {}", header.leader_epoch);
        return Err(RequestError::new(ErrorCode::NotLeader, message));
    }
    if header.acks == Acks::All && !standing.has_enough_replicas {
        let message = "fewer replicas are in sync than the topic's min.insync.replicas";
        return Err(RequestError::new(ErrorCode::NotEnoughReplicas, message));
    }
    let reader = partition.reader();
    Ok(Opened {
        leader_epoch: current,
        window: limits::PRODUCE_WINDOW_BATCHES,
        batch_bytes_max: partition.config().message_bytes_max as u32,
        next_offset: reader.end_offset(),
        log_start: reader.log_start(),
        high_watermark: reader.high_watermark(),
    })
}

async fn open(opened: Opened, send: &mut SendStream) -> Result<(), End> {
    let mut bytes = Vec::with_capacity(64);
    Answer::Opened(opened).encode(&mut bytes);
    send.write_all(&bytes).await.map_err(|_| End::Gone)
}

async fn exchange(
    session: &Session,
    partition: &PartitionHandle,
    header: &ProduceHeader,
    send: &mut SendStream,
    recv: &mut RecvStream,
) -> Result<(), End> {
    // One more than the window: a failure may come where no acknowledgement is asked for.
    let (reply, replies) = mpsc::channel(WINDOW + 1);
    let unanswered = Unanswered::default();
    let context = &*session.context;
    let batches =
        Batches { context, receiving: &session.receiving, partition, header, unanswered: &unanswered };
    let received = batches.receive_all(recv, reply);
    let answered = answer_all(context, &unanswered, replies, send);
    tokio::pin!(received, answered);
    tokio::select! {
        // Either the shard refused a batch or the client is gone: nothing more is to be received.
        answered = &mut answered => answered,
        received = &mut received => {
            answered.await?;
            received
        }
    }
}

/// The batches of a stream that the shard has and has not answered, oldest first: when each was received.
struct Unanswered {
    window: Semaphore,
    since: Mutex<VecDeque<Instant>>,
}

impl Default for Unanswered {
    fn default() -> Unanswered {
        Unanswered { window: Semaphore::new(WINDOW), since: Mutex::default() }
    }
}

impl Unanswered {
    /// Waits until one more batch may be unanswered.
    async fn admit(&self) {
        if let Ok(slot) = self.window.acquire().await {
            slot.forget();
        }
    }

    fn received(&self) {
        self.since.lock().unwrap_or_else(PoisonError::into_inner).push_back(Instant::now());
    }

    /// Notes the oldest as answered; gives the time it was received.
    fn answered(&self) -> Option<Instant> {
        self.window.add_permits(1);
        self.since.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }
}

/// The receiving half.
struct Batches<'a> {
    context: &'a Context,
    /// See [`Session::receiving`].
    receiving: &'a Semaphore,
    partition: &'a PartitionHandle,
    header: &'a ProduceHeader,
    unanswered: &'a Unanswered,
}

impl Batches<'_> {
    /// Hands every batch to the shard, until the client ends its side. `reply` lives as long as answers may come.
    async fn receive_all(&self, recv: &mut RecvStream, reply: mpsc::Sender<ProduceReply>) -> Result<(), End> {
        loop {
            if self.header.acks != Acks::None {
                self.unanswered.admit().await;
            }
            let Some(first) = self.next_batch(recv).await? else { return Ok(()) };
            let received = timeout(limits::MESSAGE_TIME_MAX, self.receive(recv, first)).await;
            let (header, batch, permit) = received.map_err(|_| message::too_slow("a batch"))??;
            self.context.metrics.produce_records.increment(header.record_count.into());
            self.context.metrics.produce_bytes.increment(batch.len() as u64);
            if self.header.acks != Acks::None {
                self.unanswered.received();
            }
            let ProduceHeader { leader_epoch, acks, .. } = *self.header;
            let request = ProduceRequest { header, batch, leader_epoch, acks, permit, reply: reply.clone() };
            self.partition.produce(request).await.map_err(|refused| refused.0)?;
        }
    }

    /// Waits for the first bytes of a batch, for as long as it takes; `None` at the stream's regular end.
    async fn next_batch(&self, recv: &mut RecvStream) -> Result<Option<Prefix>, End> {
        let mut prefix = Prefix { bytes: [0; PREFIX_LEN], filled: 0 };
        let mut stopping = self.context.stopping.clone();
        let read = tokio::select! {
            biased;
            () = stopping.requested() => return Err(RequestError::shutting_down().into()),
            read = recv.read(&mut prefix.bytes) => read,
        };
        match read {
            Ok(Some(count)) => {
                prefix.filled = count;
                Ok(Some(prefix))
            }
            Ok(None) => Ok(None),
            Err(_) => Err(End::Gone),
        }
    }

    /// Receives the rest of a batch and checks it. Its memory is accounted for before it is allocated.
    async fn receive(
        &self,
        recv: &mut RecvStream,
        mut prefix: Prefix,
    ) -> Result<(BatchHeader, Vec<u8>, OwnedSemaphorePermit), End> {
        recv.read_exact(&mut prefix.bytes[prefix.filled..]).await.map_err(|_| End::Gone)?;
        let len = batch_len(&prefix.bytes, self.partition.config().message_bytes_max)?;
        let (_receiving, permit) = self.reserve(len).await?;
        let mut batch = Vec::with_capacity(len);
        batch.extend_from_slice(&prefix.bytes);
        read_rest(recv, &mut batch, len).await?;
        let header = check(&batch, self.header.producer)?;
        Ok((header, batch, permit))
    }

    /// Room for a batch: in the connection's share until it is there, in the broker's memory until it is answered. Who
    /// waits for the first holds nothing of what others need.
    async fn reserve(&self, len: usize) -> Result<(SemaphorePermit<'_>, OwnedSemaphorePermit), RequestError> {
        let acquired = timeout(limits::PRODUCE_MEMORY_WAIT_MAX, async {
            let receiving = self.receiving.acquire_many(len as u32).await?;
            let memory = Arc::clone(&self.context.memory.produce).acquire_many_owned(len as u32).await?;
            Ok::<_, AcquireError>((receiving, memory))
        });
        match acquired.await {
            Ok(Ok(permits)) => Ok(permits),
            _ => {
                let message = format!("no room for a batch of {len} bytes in the broker's produce memory");
                Err(RequestError::new(ErrorCode::MemoryFull, message))
            }
        }
    }
}

/// The first bytes of a batch, as far as they are there.
struct Prefix {
    bytes: [u8; PREFIX_LEN],
    filled: usize,
}

/// The length of a batch that begins with `prefix`, if it may be received.
fn batch_len(prefix: &[u8; PREFIX_LEN], message_bytes_max: usize) -> Result<usize, RequestError> {
    let field = i32::from_be_bytes([prefix[8], prefix[9], prefix[10], prefix[11]]);
    let len = usize::try_from(field).ok().map(|len| len + PREFIX_LEN).filter(|len| *len >= HEADER_LEN);
    let Some(len) = len else {
        return Err(RequestError::new(ErrorCode::InvalidBatch, BatchError::Length(field.into()).to_string()));
    };
    if len > message_bytes_max.min(limits::BATCH_BYTES_MAX) {
        let message =
            format!("a batch of {len} bytes exceeds the topic's max.message.bytes of {message_bytes_max}");
        return Err(RequestError::new(ErrorCode::RecordTooLarge, message));
    }
    Ok(len)
}

/// Copies once, from the network's buffers into the batch.
async fn read_rest(recv: &mut RecvStream, batch: &mut Vec<u8>, len: usize) -> Result<(), End> {
    while batch.len() < len {
        let missing = len - batch.len();
        match recv.read_buf(&mut (&mut *batch).limit(missing)).await {
            Ok(0) | Err(_) => return Err(End::Gone),
            Ok(_) => {}
        }
    }
    Ok(())
}

/// `producer` is who numbers the stream's batches.
fn check(batch: &[u8], producer: Option<ProducerIdentity>) -> Result<BatchHeader, RequestError> {
    let checked = BatchHeader::check(batch).and_then(|header| Ok((header, header.numbering()?)));
    let (header, numbering) = checked.map_err(|error| {
        let code = match error {
            BatchError::Crc { .. } => ErrorCode::CorruptBatch,
            _ => ErrorCode::InvalidBatch,
        };
        RequestError::new(code, error.to_string())
    })?;
    let refused = if header.is_control {
        Some("only brokers write control batches")
    } else if header.is_transactional {
        Some("transactions are not supported")
    } else if numbering.map(|numbering| numbering.producer) != producer {
        Some("the batch names another producer than its stream")
    } else if header.timestamp_type == TimestampType::LogAppendTime {
        Some("only brokers stamp append times")
    } else {
        None
    };
    refused.map_or(Ok(header), |why| Err(RequestError::new(ErrorCode::InvalidBatch, why)))
}

/// The answering half: writes answers in order, as many at once as are there, until no more can come.
async fn answer_all(
    context: &Context,
    unanswered: &Unanswered,
    mut replies: mpsc::Receiver<ProduceReply>,
    send: &mut SendStream,
) -> Result<(), End> {
    let mut ready = Vec::with_capacity(WINDOW);
    let mut bytes = Vec::new();
    while replies.recv_many(&mut ready, WINDOW).await > 0 {
        let mut refused = None;
        for reply in ready.drain(..) {
            match reply {
                Ok(ack) => {
                    Answer::Ack(ack).encode(&mut bytes);
                    context.metrics.produce_batches.increment(1);
                    if let Some(since) = unanswered.answered() {
                        context.metrics.produce_seconds.record(since.elapsed());
                    }
                }
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        send.write_all(&bytes).await.map_err(|_| End::Gone)?;
        bytes.clear();
        if let Some(error) = refused {
            return Err(error.into());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use quire_protocol::batch::{BatchBuilder, Compression, Record};
    use quire_protocol::{ProducerEpoch, ProducerId, Sequence, Timestamp};

    use super::*;

    fn batch() -> Vec<u8> {
        let mut builder = BatchBuilder::new(Compression::None);
        let record = Record { value: Some("v".into()), ..Record::default() };
        builder.push(&record, Timestamp(1)).expect("a small record fits");
        builder.finish().expect("nothing to compress").to_vec()
    }

    fn prefix(len_field: i32) -> [u8; PREFIX_LEN] {
        let mut prefix = [0; PREFIX_LEN];
        prefix[8..].copy_from_slice(&len_field.to_be_bytes());
        prefix
    }

    #[test]
    fn a_length_is_judged_before_anything_is_received_for_it() {
        let code = |field, max| batch_len(&prefix(field), max).map_err(|error| error.code);
        assert_eq!(code(100, 1024), Ok(112));
        assert_eq!(code(1013, 1024), Err(ErrorCode::RecordTooLarge));
        assert_eq!(code(i32::MAX, usize::MAX), Err(ErrorCode::RecordTooLarge));
        assert_eq!(code(-1, 1024), Err(ErrorCode::InvalidBatch));
        assert_eq!(code(10, 1024), Err(ErrorCode::InvalidBatch), "shorter than a header");
    }

    #[test]
    fn a_damaged_batch_may_be_sent_again_and_a_wrong_one_may_not() {
        let intact = batch();
        assert!(check(&intact, None).is_ok());
        let mut damaged = intact.clone();
        *damaged.last_mut().expect("not empty") ^= 1;
        assert_eq!(check(&damaged, None).map_err(|error| error.code), Err(ErrorCode::CorruptBatch));
        let mut other_format = intact;
        other_format[16] = 1;
        assert_eq!(check(&other_format, None).map_err(|error| error.code), Err(ErrorCode::InvalidBatch));
    }

    #[test]
    fn a_batch_is_its_streams_producers_or_nobodys() {
        let producer = ProducerIdentity { id: ProducerId(7), epoch: ProducerEpoch(1) };
        let mut numbered = batch();
        quire_protocol::batch::number(&mut numbered, producer, Sequence(5));
        let code = |batch: &[u8], producer| check(batch, producer).map(|_| ()).map_err(|error| error.code);
        assert_eq!(code(&numbered, Some(producer)), Ok(()));
        assert_eq!(code(&batch(), None), Ok(()));
        let refused = Err(ErrorCode::InvalidBatch);
        assert_eq!(code(&numbered, None), refused, "nobody said who numbers it");
        assert_eq!(code(&batch(), Some(producer)), refused);
        let later = ProducerIdentity { epoch: ProducerEpoch(2), ..producer };
        assert_eq!(code(&numbered, Some(later)), refused);
    }
}
