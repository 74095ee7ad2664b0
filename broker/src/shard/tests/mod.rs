//! One shard, driven by hand: events in, jobs run when the test says so, answers out. The disk is simulated, so that a
//! test can look at what an acknowledgement stands on.

mod acknowledgements;
mod catching_up;
mod compacting;
mod failures;
mod group_commit;
mod leaderships;
mod lifecycle;
mod lone_sync;
mod producers;
mod scrubbing;
mod suspects;
mod threads;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use quire_engine::Time;
use quire_protocol::batch::{BatchBuilder, BatchHeader, Compression, Record};
use quire_protocol::frame::FrameHeader;
use quire_protocol::stream::{Ack, Acks};
use quire_protocol::topic_config::TopicConfig;
use quire_protocol::{
    BrokerId, ErrorCode, LeaderEpoch, Offset, PartitionIndex, Timestamp, TopicId, TopicPartition, limits,
};
use quire_storage::disk::SimDisk;
use quire_storage::{JobKind, Log, Residency};
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::event::Closed;
use super::handle::{PartitionHandle, Shared};
use super::*;

const PARTITION: TopicPartition = TopicPartition { topic: TopicId([7; 16]), partition: PartitionIndex(0) };
const RETENTION_INTERVAL: Duration = Duration::from_secs(10);
/// What answers one stream may have waiting.
const WINDOW: usize = 64;

/// A shard and everything around it that is otherwise threads.
struct Rig {
    disk: SimDisk,
    shard: Shard,
    now: Now,
    /// Handed out and not yet run, oldest first.
    tasks: VecDeque<(TopicPartition, Task)>,
    shared: Arc<Shared>,
    budget: Arc<Semaphore>,
    /// Keeps the queue of the handles open; nothing is sent through it.
    _queue: mpsc::Receiver<Event>,
}

/// A produce stream's end.
struct Stream {
    acks: Acks,
    reply: mpsc::Sender<ProduceReply>,
    replies: mpsc::Receiver<ProduceReply>,
}

fn store(disk: &SimDisk) -> Store {
    Store { disk: Arc::new(disk.clone()), dir: PathBuf::from("/data/topics") }
}

/// The only broker's part.
fn alone(leader_epoch: LeaderEpoch) -> Arc<Assignment> {
    Arc::new(Assignment::alone(BrokerId(0), leader_epoch))
}

fn new_shard(now: Now, store: Store) -> Shard {
    Shard::new(now, BrokerId(0), store, RETENTION_INTERVAL, Limits::default(), ShardMetrics::none())
}

fn batch(text: &str) -> Vec<u8> {
    let mut builder = BatchBuilder::new(Compression::None);
    let record = Record { value: Some(text.to_owned().into()), ..Record::default() };
    builder.push(&record, Timestamp(1)).expect("a small record fits");
    Vec::from(builder.finish().expect("nothing to compress"))
}

impl Stream {
    fn new(acks: Acks) -> Stream {
        let (reply, replies) = mpsc::channel(WINDOW + 1);
        Stream { acks, reply, replies }
    }

    /// Everything answered so far.
    fn answers(&mut self) -> Vec<ProduceReply> {
        std::iter::from_fn(|| self.replies.try_recv().ok()).collect()
    }

    /// Base offsets and error codes of everything answered so far.
    fn outcomes(&mut self) -> Vec<Result<u64, ErrorCode>> {
        let outcome = |answer: ProduceReply| answer.map(|ack| ack.base_offset.0).map_err(|error| error.code);
        self.answers().into_iter().map(outcome).collect()
    }
}

impl Rig {
    /// A shard with one partition, open and idle.
    fn new(config: TopicConfig) -> Rig {
        Rig::on(SimDisk::new(1), config)
    }

    fn on(disk: SimDisk, config: TopicConfig) -> Rig {
        Rig::led(disk, config, LeaderEpoch(1))
    }

    fn led(disk: SimDisk, config: TopicConfig, leader_epoch: LeaderEpoch) -> Rig {
        let mut rig = Rig::unopened(disk, config, leader_epoch);
        rig.open();
        rig
    }

    fn unopened(disk: SimDisk, config: TopicConfig, leader_epoch: LeaderEpoch) -> Rig {
        let store = store(&disk);
        disk.create_dir_all(&store.dir).expect("the disk has room");
        for dir in store.dir.ancestors().skip(1) {
            disk.sync_dir(dir).expect("just created");
        }
        let now = Now { time: Time::ZERO, timestamp: Timestamp(1_000_000) };
        let (queue, _queue) = mpsc::channel(1);
        let shared = Arc::new(Shared::new(PARTITION, false, queue, alone(leader_epoch), Arc::new(config)));
        Rig {
            shard: new_shard(now, store),
            disk,
            now,
            tasks: VecDeque::new(),
            shared,
            budget: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)),
            _queue,
        }
    }

    fn open(&mut self) {
        self.apply(Event::Open(self.shared.clone()));
        self.run_all();
    }

    /// A rig whose log has space, so that the only job an append needs is a sync.
    fn warm(config: TopicConfig) -> Rig {
        let mut rig = Rig::new(config);
        let mut stream = Stream::new(Acks::All);
        rig.produce(&stream, "first");
        rig.run_all();
        assert_eq!(stream.outcomes(), [Ok(0)]);
        rig
    }

    /// One round with one event.
    fn apply(&mut self, event: Event) {
        self.round([event]);
    }

    /// One round with these events.
    fn round(&mut self, events: impl IntoIterator<Item = Event>) {
        let mut tasks = Vec::new();
        for event in events {
            self.shard.apply(self.now, event, &mut tasks);
        }
        self.shard.write(self.now, &mut tasks);
        self.shard.answer(&mut tasks);
        self.tasks.extend(tasks);
    }

    fn request(&self, stream: &Stream, text: &str) -> Event {
        let batch = batch(text);
        let request = ProduceRequest {
            header: BatchHeader::check(&batch).expect("just built"),
            permit: self.budget.clone().try_acquire_many_owned(batch.len() as u32).expect("a large budget"),
            batch,
            leader_epoch: self.handle().leader_epoch(),
            acks: stream.acks,
            reply: stream.reply.clone(),
        };
        Event::Produce(PARTITION, request)
    }

    fn produce(&mut self, stream: &Stream, text: &str) {
        self.apply(self.request(stream, text));
    }

    /// Runs the `at`-th task handed out, and gives its result back.
    fn run(&mut self, at: usize) {
        let (id, task) = self.tasks.remove(at).expect("there is such a task");
        self.apply(Event::Done(id, task.run()));
    }

    fn run_all(&mut self) {
        while !self.tasks.is_empty() {
            self.run(0);
        }
    }

    /// What is handed out and not yet run.
    fn job_kinds(&self) -> Vec<JobKind> {
        let kind = |(_, task): &(_, Task)| match task {
            Task::Job(job) => Some(job.kind()),
            _ => None,
        };
        self.tasks.iter().filter_map(kind).collect()
    }

    fn advance(&mut self, by: Duration) {
        self.now.time = self.now.time + by;
        self.now.timestamp.0 += by.as_millis() as i64;
    }

    /// Bytes of produce memory that are in use.
    fn memory_in_use(&self) -> usize {
        Semaphore::MAX_PERMITS - self.budget.available_permits()
    }

    fn handle(&self) -> PartitionHandle {
        PartitionHandle::of(self.shared.clone())
    }

    /// What a consumer reads, from the log start to the high watermark.
    fn read(&self) -> Vec<u64> {
        let handle = self.handle();
        let reader = handle.reader();
        let (mut next, end) = (reader.log_start(), reader.high_watermark());
        let mut offsets = Vec::new();
        while next < end {
            let slice = reader.read(next, 1024, end, Residency::Any).expect("what is committed can be read");
            for frames in &slice.frames {
                let mut rest = frames.clone();
                while !rest.is_empty() {
                    let frame = FrameHeader::parse(&rest).expect("whole frames");
                    offsets.push(frame.base_offset.0);
                    let _ = rest.split_to(frame.frame_len());
                }
            }
            next = slice.next_offset;
        }
        offsets
    }
}
