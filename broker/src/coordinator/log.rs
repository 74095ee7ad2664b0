//! A coordinator's partition: everything in it read at the beginning, and decisions appended to it.

use std::sync::Arc;

use bytes::{Buf, Bytes};
use quire_engine::group::records::DecodeError;
use quire_protocol::batch::{BatchBuilder, BatchHeader, Compression, Record, Records};
use quire_protocol::frame::{FrameHeader, HEADER_LEN};
use quire_protocol::stream::Acks;
use quire_protocol::{LeaderEpoch, Offset, Timestamp, limits};
use quire_storage::{ReadError, Residency};
use tokio::sync::{Semaphore, mpsc};

use crate::error::RequestError;
use crate::shard::{PartitionHandle, ProduceReply, ProduceRequest};

/// A key and what it stands for; `None` takes it away.
pub(super) type Entry = (Bytes, Option<Bytes>);

/// Bytes read at a time.
const READ_BYTES: usize = 1024 * 1024;

/// Why a log can not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum LogError {
    /// Its bytes can not be had, or are damaged.
    #[error(transparent)]
    Disk(#[from] ReadError),
    /// They are intact, and not what a coordinator of this version writes.
    #[error(transparent)]
    Records(#[from] DecodeError),
}

/// Reads everything below `below`, in order, and hands it over piece by piece; stops if nobody takes it any more. Blocks
/// on the disk.
///
/// # Errors
/// If the log can not be read.
pub(super) fn read_all(
    partition: &PartitionHandle,
    below: Offset,
    take: &mpsc::Sender<Vec<Entry>>,
) -> Result<(), LogError> {
    let reader = partition.reader();
    let mut next = reader.log_start();
    while next < below {
        let slice = match reader.read(next, READ_BYTES, below, Residency::Any) {
            // Compaction or retention took the beginning away meanwhile.
            Err(ReadError::OutOfRange { log_start, .. }) if log_start > next => {
                next = log_start;
                continue;
            }
            slice => slice?,
        };
        if slice.frames.is_empty() {
            return Ok(());
        }
        let mut entries = Vec::new();
        for mut frames in slice.frames {
            while !frames.is_empty() {
                read_frame(next, &mut frames, &mut entries)?;
            }
        }
        if take.blocking_send(entries).is_err() {
            return Ok(());
        }
        next = slice.next_offset;
    }
    Ok(())
}

/// Takes a frame off the front of those from an offset on. They were checked when they were read: what does not parse now is
/// intact, and another version's.
fn read_frame(from: Offset, frames: &mut Bytes, entries: &mut Vec<Entry>) -> Result<(), DecodeError> {
    let frame = FrameHeader::parse(frames).map_err(|_| DecodeError::Batch(from))?;
    let at = frame.base_offset;
    frames.advance(HEADER_LEN);
    let batch = frames.split_to(frame.batch_len as usize);
    let header = BatchHeader::parse(&batch).map_err(|_| DecodeError::Batch(at))?;
    for record in Records::open(&header, &batch).map_err(|_| DecodeError::Batch(at))? {
        let record = record.map_err(|_| DecodeError::Batch(at))?;
        entries.push((record.key.unwrap_or_default(), record.value));
    }
    Ok(())
}

/// Appends to the partition, in the order asked, and hears what became of it.
pub(super) struct Appender {
    partition: PartitionHandle,
    leader_epoch: LeaderEpoch,
    reply: mpsc::Sender<ProduceReply>,
    memory: Arc<Semaphore>,
}

impl Appender {
    /// For one leadership. At most `under_way` appends may be unanswered; the answers come in the order of the appends.
    pub(super) fn new(
        partition: PartitionHandle,
        leader_epoch: LeaderEpoch,
        under_way: usize,
    ) -> (Appender, mpsc::Receiver<ProduceReply>) {
        let (reply, replies) = mpsc::channel(under_way + 1);
        let memory = Arc::new(Semaphore::new(2 * limits::BATCH_BYTES_MAX));
        (Appender { partition, leader_epoch, reply, memory }, replies)
    }

    /// Appends these together: all of them or none.
    ///
    /// # Errors
    /// If they are too many for one batch, or the shard has ended: nothing was appended.
    pub(super) async fn append(&self, now: Timestamp, entries: &[Entry]) -> Result<(), RequestError> {
        let mut builder = BatchBuilder::new(Compression::None);
        for (key, value) in entries {
            let record = Record { key: Some(key.clone()), value: value.clone(), ..Record::default() };
            builder.push(&record, now).map_err(|error| too_large(&error.to_string()))?;
        }
        let batch = builder.finish().map_err(|error| too_large(&error.to_string()))?;
        if batch.len() > limits::BATCH_BYTES_MAX {
            return Err(too_large(&format!("{} bytes", batch.len())));
        }
        let batch = Vec::from(batch);
        let header = BatchHeader::check(&batch).expect("just built");
        let permit = Arc::clone(&self.memory).acquire_many_owned(batch.len() as u32).await;
        let request = ProduceRequest {
            header,
            batch,
            leader_epoch: self.leader_epoch,
            acks: Acks::All,
            permit: permit.expect("never closed"),
            reply: self.reply.clone(),
        };
        self.partition.produce(request).await.map_err(|refused| refused.0)
    }
}

fn too_large(what: &str) -> RequestError {
    let message = format!("one change of the group does not fit into one batch: {what}");
    RequestError::new(quire_protocol::ErrorCode::LimitExceeded, message)
}
