//! Reading ahead for one consumer of old data: the disk is asked for what comes next while the consumer still has some
//! of what it was asked for before. At most one call is under way, and nobody waits for it.

use std::sync::Arc;

use futures_util::FutureExt;
use quire_protocol::Offset;
use quire_storage::{LogReader, ReadAhead};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinHandle, spawn_blocking};

/// What the disk was asked for.
#[derive(Debug, Default)]
pub(super) enum Ahead {
    /// Nothing: the consumer reads what is in memory.
    #[default]
    Off,
    /// So much.
    Asked(ReadAhead),
    /// It is being asked.
    Asking(JoinHandle<Option<ReadAhead>>),
}

impl Ahead {
    /// A consumer had to wait for the disk: if it goes on, to `next`, it is read ahead for.
    pub(super) fn start(&mut self, next: Offset) {
        if matches!(self, Ahead::Off) {
            *self = Ahead::Asked(ReadAhead::due_at(next));
        }
    }

    /// The consumer goes on from `next`: asks for more if it is time to. If too many are at it already, then later.
    pub(super) fn advance(&mut self, turns: &Arc<Semaphore>, reader: &LogReader, next: Offset) {
        if let Ahead::Asking(call) = self {
            let Some(asked) = outcome(call) else {
                return;
            };
            *self = asked.map_or(Ahead::Off, Ahead::Asked);
        }
        if let Ahead::Asked(asked) = self
            && asked.is_due(next)
            && let Ok(turn) = Arc::clone(turns).try_acquire_owned()
        {
            *self = Ahead::Asking(ask(reader.clone(), next, *asked, turn));
        }
    }
}

impl Drop for Ahead {
    /// What did not begin yet need not.
    fn drop(&mut self) {
        if let Ahead::Asking(call) = self {
            call.abort();
        }
    }
}

fn ask(
    reader: LogReader,
    next: Offset,
    asked: ReadAhead,
    turn: OwnedSemaphorePermit,
) -> JoinHandle<Option<ReadAhead>> {
    spawn_blocking(move || {
        let _turn = turn;
        // What went wrong, the read that comes there says.
        reader.read_ahead(next, asked).ok().flatten()
    })
}

/// What a call came to, if it has ended.
fn outcome(call: &mut JoinHandle<Option<ReadAhead>>) -> Option<Option<ReadAhead>> {
    call.now_or_never().map(|joined| joined.ok().flatten())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use quire_protocol::batch::{BatchBuilder, BatchHeader, Compression, Record, TimestampType};
    use quire_protocol::{LeaderEpoch, PartitionIndex, Timestamp, TopicId, TopicPartition};
    use quire_storage::disk::SimDisk;
    use quire_storage::{AppendContext, Log, LogOptions, NewBatch, Want};

    use super::*;

    fn open(disk: &SimDisk) -> Log {
        let partition = TopicPartition { topic: TopicId([1; 16]), partition: PartitionIndex(0) };
        let opened = Log::open(Arc::new(disk.clone()), Path::new("/log"), partition, LogOptions::default());
        opened.expect("a healthy disk").0
    }

    /// A log with one record, which was there when it was opened.
    fn old_log() -> Log {
        let disk = SimDisk::new(1);
        let mut log = open(&disk);
        log.run_jobs(Want { sync: false });
        let mut builder = BatchBuilder::new(Compression::None);
        builder.push(&Record::default(), Timestamp(5)).expect("it fits");
        let bytes = builder.finish().expect("nothing to compress").to_vec();
        let batch = NewBatch { header: BatchHeader::check(&bytes).expect("just built"), bytes };
        let context = AppendContext {
            leader_epoch: LeaderEpoch(0),
            now: Timestamp(5),
            high_watermark: log.high_watermark(),
            timestamp_type: TimestampType::CreateTime,
        };
        let mut batches = vec![batch];
        while let Err(error) = log.append(batches, context) {
            batches = error.batches;
            log.run_jobs(Want { sync: false });
        }
        log.run_jobs(Want { sync: true });
        log.close().expect("a healthy disk");
        open(&disk)
    }

    async fn answered(ahead: &mut Ahead) {
        let Ahead::Asking(call) = ahead else { panic!("{ahead:?}") };
        let asked = call.await.expect("no panic");
        *ahead = asked.map_or(Ahead::Off, Ahead::Asked);
    }

    #[tokio::test]
    async fn who_waited_for_the_disk_is_read_ahead_for_up_to_the_end() {
        let log = old_log();
        let (reader, turns) = (log.reader(), Arc::new(Semaphore::new(1)));
        let mut ahead = Ahead::default();
        ahead.advance(&turns, &reader, Offset(0));
        assert!(matches!(ahead, Ahead::Off), "it never waited");
        ahead.start(Offset(0));
        ahead.advance(&turns, &reader, Offset(0));
        answered(&mut ahead).await;
        ahead.advance(&turns, &reader, Offset(0));
        assert!(matches!(ahead, Ahead::Asked(_)), "asked for once");
        ahead.advance(&turns, &reader, log.end_offset());
        answered(&mut ahead).await;
        assert!(matches!(ahead, Ahead::Off), "nothing old is left");
        assert_eq!(turns.available_permits(), 1);
    }

    #[tokio::test]
    async fn one_more_than_may_ask_asks_later() {
        let log = old_log();
        let (reader, turns) = (log.reader(), Arc::new(Semaphore::new(1)));
        let turn = Arc::clone(&turns).try_acquire_owned().expect("free");
        let mut ahead = Ahead::default();
        ahead.start(Offset(0));
        ahead.advance(&turns, &reader, Offset(0));
        assert!(matches!(ahead, Ahead::Asked(_)));
        drop(turn);
        ahead.advance(&turns, &reader, Offset(0));
        assert!(matches!(ahead, Ahead::Asking(_)));
    }
}
