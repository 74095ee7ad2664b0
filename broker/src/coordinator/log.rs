//! A coordinator's partition: everything in it read at the beginning, and decisions appended to it.

use std::sync::Arc;

use bytes::{Buf, Bytes};
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

/// Reads everything below `below`, in order, and hands it over piece by piece; stops if nobody takes it any more. Blocks
/// on the disk.
///
/// # Errors
/// If the log can not be read.
pub(super) fn read_all(
    partition: &PartitionHandle,
    below: Offset,
    take: &mpsc::Sender<Vec<Entry>>,
) -> Result<(), ReadError> {
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
                read_frame(partition, &mut frames, &mut entries);
            }
        }
        if take.blocking_send(entries).is_err() {
            return Ok(());
        }
        next = slice.next_offset;
    }
    Ok(())
}

/// The frames were checked when they were read: what does not parse was not written by a coordinator, and is left out.
fn read_frame(partition: &PartitionHandle, frames: &mut Bytes, entries: &mut Vec<Entry>) {
    let Ok(frame) = FrameHeader::parse(frames) else {
        frames.clear();
        return;
    };
    frames.advance(HEADER_LEN);
    let batch = frames.split_to(frame.batch_len as usize);
    let records = BatchHeader::parse(&batch).ok().and_then(|header| Records::open(&header, &batch).ok());
    let Some(records) = records else {
        tracing::warn!(partition = %partition.id(), offset = %frame.base_offset, "a batch holds no records of groups");
        return;
    };
    entries.extend(records.map_while(Result::ok).filter_map(|record| Some((record.key?, record.value))));
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
