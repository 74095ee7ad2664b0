//! The whole pool, with its threads, on the metadata it follows.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, Ordering};

use quire_engine::controller::{AlterTopic, CreateTopic, Image, RegisterBroker, Request, Response};
use quire_protocol::batch::TimestampType;
use quire_protocol::limits;
use quire_storage::disk::{Disk, OpenMode};
use quire_storage::{AppendContext, NewBatch, Want, remove_log};

use tokio::sync::watch;
use tokio::time::timeout;

use super::super::flush::{Direct, Flushers};
use super::*;
use crate::controller::{LocalMetadata, LocalMetadataOptions, Metadata};

/// Nothing here takes this long; a test that waits for it has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// A broker has another incarnation at each start.
static STARTS: AtomicU8 = AtomicU8::new(1);

struct Broker {
    metadata: Arc<LocalMetadata>,
    shards: Shards,
}

impl Broker {
    async fn start(disk: &SimDisk) -> Broker {
        Broker::retaining_every(disk, RETENTION_INTERVAL).await
    }

    /// What can not be opened is tried again as often as retention looks at what is.
    async fn retaining_every(disk: &SimDisk, retention_interval: Duration) -> Broker {
        let clock = Arc::new(SystemClock::new());
        let options = LocalMetadataOptions {
            disk: Arc::new(disk.clone()),
            dir: PathBuf::from("/data/metadata"),
            topics_dir: PathBuf::from("/data/topics"),
            clock: clock.clone(),
            seed: 3,
            registration: RegisterBroker {
                cluster_id: "c-1".into(),
                broker: BrokerId(0),
                host: "127.0.0.1".into(),
                port: 9440,
                incarnation: [STARTS.fetch_add(1, Ordering::Relaxed); 16],
                is_alone: true,
                ..RegisterBroker::default()
            },
        };
        let metadata = Arc::new(LocalMetadata::open(options).expect("a sound log"));
        let registered = metadata.image().broker(BrokerId(0)).map(|broker| broker.epoch);
        let options = ShardsOptions {
            broker: BrokerId(0),
            disk: Arc::new(disk.clone()),
            dir: PathBuf::from("/data/topics"),
            shards: 2,
            clock,
            retention_interval,
            deletion_grace: Duration::ZERO,
            replica_lag: limits::REPLICA_LAG_DEFAULT,
            fetch_bytes: limits::REPLICA_MEMORY_BYTES,
            scrub: ScrubOptions { bytes_per_second: 0, interval: RETENTION_INTERVAL },
            registration: watch::channel(registered).1,
            outgoing: mpsc::unbounded_channel().0,
            metrics: ShardMetrics::none(),
        };
        let shards = Shards::start(options, metadata.clone()).expect("threads can be had");
        shards.partitions().all_opened().await;
        Broker { metadata, shards }
    }

    async fn stop(self) -> Closed {
        let closed = self.shards.close().await;
        self.metadata.close().await.expect("a sound log");
        closed
    }

    async fn create(&self, name: &str, partitions: u32) -> TopicId {
        let request = CreateTopic { name: name.into(), partitions, ..CreateTopic::default() };
        let response = self.metadata.propose(Request::CreateTopic(request)).await;
        let Ok(Response::Topic(topic)) = response else { panic!("the topic is made: {response:?}") };
        self.shards.partitions().opened_and_held(topic.id).await;
        topic.id
    }

    fn find(&self, topic: TopicId, partition: u32) -> Result<PartitionHandle, ErrorCode> {
        let id = TopicPartition { topic, partition: PartitionIndex(partition) };
        self.shards.partitions().find(id).map_err(|error| error.code)
    }
}

/// Produces so many batches, one after another; the offsets they got.
async fn produce(handle: &PartitionHandle, count: usize) -> Vec<u64> {
    let budget = Arc::new(Semaphore::new(1 << 20));
    let (reply, mut replies) = mpsc::channel(WINDOW + 1);
    let mut offsets = Vec::new();
    for _ in 0..count {
        let batch = batch("one");
        let request = ProduceRequest {
            header: BatchHeader::check(&batch).expect("just built"),
            permit: budget.clone().acquire_many_owned(batch.len() as u32).await.expect("never closed"),
            batch,
            leader_epoch: handle.leader_epoch(),
            acks: Acks::All,
            reply: reply.clone(),
        };
        handle.produce(request).await.expect("the shard runs");
        let answer = replies.recv().await.expect("the sender is here");
        offsets.push(answer.expect("nothing fails here").base_offset.0);
    }
    offsets
}

#[tokio::test]
async fn topics_live_through_restarts_and_each_start_leads_anew() {
    let disk = SimDisk::new(5);
    let broker = Broker::start(&disk).await;
    let topic = broker.create("flights", 3).await;
    let handles: Vec<_> =
        (0..3).map(|partition| broker.find(topic, partition).expect("it is open")).collect();
    let producers: Vec<_> = (0..12)
        .map(|number| {
            let handle = handles[number % 3].clone();
            tokio::spawn(async move { produce(&handle, 20).await })
        })
        .collect();
    let mut offsets: Vec<u64> = Vec::new();
    for producer in producers {
        let own = producer.await.expect("no producer panics");
        assert!(own.is_sorted(), "a producer's batches are in its order");
        offsets.extend(own);
    }
    offsets.sort_unstable();
    let expected: Vec<u64> = (0..80).flat_map(|offset| [offset; 3]).collect();
    assert_eq!(offsets, expected, "every offset is given once in each partition");
    assert_eq!(handles[0].leader_epoch(), LeaderEpoch(1));
    assert_eq!(broker.stop().await, Closed { partitions: 3, clean: 3 });

    let broker = Broker::start(&disk).await;
    let handle = broker.find(topic, 1).expect("it is open again");
    assert_eq!(handle.leader_epoch(), LeaderEpoch(2), "no broker leads twice in one epoch");
    assert_eq!(handle.reader().high_watermark(), Offset(80));
    assert_eq!(produce(&handle, 1).await, [80]);
    broker.stop().await;
}

#[tokio::test]
async fn a_topic_can_grow_and_change_while_it_is_used() {
    let broker = Broker::start(&SimDisk::new(5)).await;
    let topic = broker.create("flights", 1).await;
    let handle = broker.find(topic, 0).expect("it is open");
    assert_eq!(broker.find(topic, 1).map(|_| ()), Err(ErrorCode::UnknownPartition));
    let request = AlterTopic {
        name: "flights".into(),
        partitions: Some(2),
        set_config: BTreeMap::from([("max.message.bytes".to_owned(), "2048".to_owned())]),
        unset_config: Vec::new(),
    };
    broker.metadata.propose(Request::AlterTopic(request)).await.expect("it can be changed");
    broker.shards.partitions().opened(topic).await;
    assert_eq!(produce(&broker.find(topic, 1).expect("it is open"), 1).await, [0]);
    // The shard takes the change before the batch that was sent after it was seen.
    while handle.config().message_bytes_max != 2048 {
        tokio::task::yield_now().await;
    }
    assert_eq!(produce(&handle, 1).await, [0]);
    broker.stop().await;
}

#[tokio::test]
async fn a_deleted_topic_is_removed_from_the_disk_and_its_name_is_free() {
    let disk = SimDisk::new(5);
    let broker = Broker::start(&disk).await;
    let topic = broker.create("flights", 2).await;
    produce(&broker.find(topic, 0).expect("it is open"), 3).await;
    let topics = PathBuf::from("/data/topics");
    assert_eq!(disk.list(&topics).expect("it is there"), [topic.to_string()]);

    let request = Request::DeleteTopic { name: "flights".into() };
    broker.metadata.propose(request).await.expect("it exists");
    let mut images = broker.metadata.changes();
    images.wait_for(|image| image.deleted_topics().len() == 0).await.expect("the removal is confirmed");
    assert_eq!(disk.list(&topics).expect("it is there"), Vec::<String>::new());
    assert_eq!(broker.find(topic, 0).map(|_| ()), Err(ErrorCode::UnknownTopic));

    let again = broker.create("flights", 1).await;
    assert_ne!(again, topic);
    assert_eq!(produce(&broker.find(again, 0).expect("it is open"), 1).await, [0]);
    broker.stop().await;
}

#[tokio::test]
async fn a_log_that_is_gone_is_told_and_not_begun_anew() {
    let disk = SimDisk::new(5);
    let broker = Broker::start(&disk).await;
    let topic = broker.create("flights", 2).await;
    produce(&broker.find(topic, 0).expect("it is open"), 3).await;
    broker.stop().await;
    for partition in ["0", "1"] {
        let dir = PathBuf::from("/data/topics").join(topic.to_string()).join(partition);
        remove_log(&disk, &dir).expect("it can be removed");
    }

    let broker = Broker::start(&disk).await;
    for partition in [0, 1] {
        let lost = broker.find(topic, partition).map(|_| ());
        assert_eq!(lost, Err(ErrorCode::CorruptLog), "partition {partition}, written or not");
    }
    let other = broker.create("orders", 1).await;
    assert_eq!(produce(&broker.find(other, 0).expect("it is open"), 1).await, [0]);
    broker.stop().await;
}

#[tokio::test]
async fn what_comes_after_the_end_is_told_so() {
    let broker = Broker::start(&SimDisk::new(5)).await;
    let topic = broker.create("flights", 1).await;
    let handle = broker.find(topic, 0).expect("it is open");
    let mut changes = handle.changes();
    broker.stop().await;
    assert!(changes.borrow_and_update().is_closed);
    let budget = Arc::new(Semaphore::new(1 << 20));
    let batch = batch("late");
    let request = ProduceRequest {
        header: BatchHeader::check(&batch).expect("just built"),
        permit: budget.try_acquire_many_owned(1).expect("free"),
        batch,
        leader_epoch: handle.leader_epoch(),
        acks: Acks::All,
        reply: mpsc::channel(1).0,
    };
    let refused = handle.produce(request).await.expect_err("the shard has ended");
    assert_eq!(refused.0.code, ErrorCode::ShuttingDown);
}

/// One log that could not be opened kept the topic's others from being known to be there: had they been lost then, they would
/// have begun anew.
#[tokio::test]
async fn what_can_not_be_opened_does_not_keep_others_from_being_known_to_be_held() {
    let disk = SimDisk::new(5);
    let broker = Broker::retaining_every(&disk, Duration::from_millis(20)).await;
    let topic = broker.create("flights", 1).await;
    // No directory can be made where there is a file.
    let in_the_way = PathBuf::from(format!("/data/topics/{topic}/1"));
    drop(disk.open(&in_the_way, OpenMode::CreateNew).expect("nothing is there yet"));
    let grow = AlterTopic { name: "flights".into(), partitions: Some(3), ..AlterTopic::default() };
    broker.metadata.propose(Request::AlterTopic(grow)).await.expect("it can grow");
    let is_held = |image: &Arc<Image>, index| {
        image.topic(topic).is_some_and(|topic| topic.is_held(PartitionIndex(index), BrokerId(0)))
    };
    let mut changes = broker.metadata.changes();
    let third = timeout(PATIENCE, changes.wait_for(|image| is_held(image, 2))).await.expect("in time");
    assert!(!is_held(&third.expect("it goes on"), 1), "it is not there");
    assert_eq!(broker.find(topic, 1).err(), Some(ErrorCode::StorageFailed));

    disk.remove(&in_the_way).expect("it is a file");
    timeout(PATIENCE, changes.wait_for(|image| is_held(image, 1)))
        .await
        .expect("in time")
        .expect("it goes on");
    broker.stop().await;
}

#[test]
fn a_file_job_does_not_wait_behind_a_log_that_is_opened() {
    let (queue, flushers) = Flushers::start(1, 1, &ShardMetrics::none()).expect("threads can be had");
    let disk = SimDisk::new(1);
    let dir = PathBuf::from("/data");
    disk.create_dir_all(&dir).expect("the disk has room");
    let back = |events| Direct { events, shard: std::thread::current() };
    // The only opener has an opened log that nobody takes from it.
    let (untaken, nobody) = crossbeam_channel::bounded(0);
    let open = Task::Open {
        disk: Arc::new(disk.clone()),
        dir: dir.join("0"),
        partition: PARTITION,
        is_held: false,
        options: quire_storage::LogOptions::default(),
    };
    queue.submit(PARTITION, open, &back(untaken));

    let options = quire_storage::LogOptions::default();
    let (mut log, _) = Log::open(Arc::new(disk), &dir.join("1"), PARTITION, options).expect("a new log");
    let bytes = batch("needs a segment");
    let header = BatchHeader::check(&bytes).expect("just built");
    let at = AppendContext {
        leader_epoch: LeaderEpoch(1),
        now: Timestamp(1),
        high_watermark: Offset::ZERO,
        timestamp_type: TimestampType::CreateTime,
    };
    log.append(vec![NewBatch { header, bytes }], at).expect_err("there is no segment yet");
    let job = log.next_job(Want { sync: false }).expect("one is to be made");
    let (events, done) = crossbeam_channel::unbounded();
    queue.submit(PARTITION, Task::Job(job), &back(events));
    let event = done.recv_timeout(Duration::from_secs(20)).expect("the job is done");
    assert!(matches!(event, Event::Done(PARTITION, TaskDone::Job(_))), "{event:?}");
    drop((nobody, queue));
    flushers.join();
}
