//! The load of a drill: producers at a fixed rate, consumers with a fixed assignment, and at the end one who reads everything.
//!
//! Each tells the [`Record`] what it asks for before it asks, and what it was answered when it was. The load is open: a
//! cluster that stands still delays no producer, until its memory is full.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::FutureExt;
use futures_util::stream::{FuturesUnordered, StreamExt};
use quire_client::{
    Client, ConsumeError, ConsumedRecord, Consumer, Error, NewTopic, Offset, PartitionIndex, Position,
    Record as ClientRecord, RecordMetadata, SendError, TopicId, TopicPartition,
};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use super::group::{GroupLoad, GroupReport};
use super::history::{Action, Kind, Phase, Process, Read, Value};
use super::payload;
use super::record::Record;
use crate::bench::schedule::Schedule;

/// Records of one poll at most.
const POLL_RECORDS_MAX: usize = 256;
/// How long a record may be on its way, through faults and retries.
const DELIVERY_TIME_MAX: Duration = Duration::from_secs(60);
/// How long everything may take to be read in the end.
pub const FINAL_TIME_MAX: Duration = Duration::from_secs(30);
/// How long a consumer waits for a cluster that is away.
const CONSUMER_RETRY_TIME_MAX: Duration = Duration::from_secs(120);
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(100);
/// The first numbers of consumers, and of who reads in the end.
const CONSUMERS: u32 = 100;
const FINAL_READER: Process = Process(200);

/// How much load.
#[derive(Debug, Clone)]
pub struct Load {
    /// The topic's name.
    pub topic: String,
    /// Its partitions.
    pub partitions: u32,
    /// Its replicas.
    pub replicas: u32,
    /// Its `min.insync.replicas`.
    pub in_sync_min: u32,
    /// Producers.
    pub producers: u32,
    /// Consumers, who share the partitions.
    pub consumers: u32,
    /// Members of one group; 0 for no group.
    pub members: u32,
    /// Records a second, over all producers.
    pub rate: f64,
    /// What records say follows from it.
    pub seed: u64,
}

/// A load under way.
#[derive(Debug)]
pub struct Workload {
    load: Arc<Load>,
    client: Client,
    topic: TopicId,
    record: Arc<Record>,
    stop: watch::Sender<bool>,
    producers: JoinSet<Result<(), SendError>>,
    consumers: JoinSet<()>,
    group: Option<GroupLoad>,
}

impl Workload {
    /// Makes the topic and starts everybody.
    ///
    /// # Errors
    /// If the topic can not be made.
    pub async fn start(client: Client, load: Load, record: Arc<Record>) -> Result<Workload, Error> {
        let topic = NewTopic::new(load.topic.as_str())
            .partitions(load.partitions)
            .replicas(load.replicas)
            .config("segment.bytes", "1048576");
        let topic = match load.replicas {
            1 => topic,
            _ => topic.config("min.insync.replicas", load.in_sync_min.to_string()),
        };
        let topic = client.admin().create_topic(topic).await?.id;
        let mut workload = Workload {
            load: Arc::new(load),
            client,
            topic,
            record,
            stop: watch::Sender::new(false),
            producers: JoinSet::new(),
            consumers: JoinSet::new(),
            group: None,
        };
        let start = Instant::now();
        for number in 0..workload.load.producers {
            let producer = workload.producer(number, start);
            workload.producers.spawn(producer.run(workload.stop.subscribe()));
        }
        for number in 0..workload.load.consumers {
            let reader = workload.reader(number);
            workload.consumers.spawn(reader.run());
        }
        if workload.load.members > 0 {
            let (client, load) = (workload.client.clone(), &workload.load);
            workload.group = Some(GroupLoad::start(client, &load.topic, load.members));
        }
        Ok(workload)
    }

    /// Waits until the group, if there is one, was given everything, and ends it.
    ///
    /// # Errors
    /// If nobody can say where the partitions end.
    pub async fn end_group(&mut self) -> Result<Option<GroupReport>, Error> {
        let Some(group) = self.group.take() else { return Ok(None) };
        let ends = (0..self.load.partitions).map(|index| (PartitionIndex(index), Position::End));
        let ends = self.client.admin().list_offsets(&self.load.topic, ends).await?;
        let ends = ends.into_iter().map(|end| (end.partition, end.offset)).collect();
        Ok(Some(group.finish(&ends, FINAL_TIME_MAX).await))
    }

    /// Stops the producers, and waits until each record is acknowledged or given up.
    ///
    /// # Errors
    /// If a producer could not go on.
    pub async fn end_load(&mut self) -> Result<(), SendError> {
        self.stop.send_replace(true);
        while let Some(ended) = self.producers.join_next().await {
            if let Ok(ended) = ended {
                ended?;
            }
        }
        Ok(())
    }

    /// Reads every partition once more from its beginning to its end.
    ///
    /// # Errors
    /// If a partition can not be read, or not within [`FINAL_TIME_MAX`]: then what was read is told all the same.
    pub async fn read_everything(&mut self) -> Result<(), FinalError> {
        self.consumers.shutdown().await;
        let deadline = Instant::now() + FINAL_TIME_MAX;
        loop {
            match timeout_at(deadline, self.read_to_the_end()).await {
                Ok(Ok(())) => return Ok(()),
                // What is read again is told again, from its beginning.
                Ok(Err(error)) if error.is_retriable() => sleep(PAUSE_AFTER_ERROR).await,
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => return Err(FinalError::TooLate),
            }
        }
    }

    async fn read_to_the_end(&self) -> Result<(), ConsumeError> {
        let ends = (0..self.load.partitions).map(|index| (PartitionIndex(index), Position::End));
        let ends = self.client.admin().list_offsets(&self.load.topic, ends).await?;
        for end in &ends {
            let partition = self.partition(end.partition);
            self.record.tell(FINAL_READER, Kind::Info, Action::LogStart { partition, offset: end.log_start });
            self.record.tell(FINAL_READER, Kind::Ok, Action::Seek { partition, offset: end.log_start });
        }
        let builder = self.client.consumer().topic(&self.load.topic).from(Position::Beginning);
        let mut consumer = builder.until(Position::End).build().await?;
        while let Some(records) = poll(&mut consumer).await? {
            tell_poll(&self.record, &self.load, self.topic, FINAL_READER, Phase::Final, records);
        }
        Ok(())
    }

    fn partition(&self, partition: PartitionIndex) -> TopicPartition {
        TopicPartition { topic: self.topic, partition }
    }

    fn producer(&self, number: u32, start: Instant) -> Producing {
        Producing {
            load: Arc::clone(&self.load),
            record: Arc::clone(&self.record),
            topic: self.topic,
            number,
            start,
            producer: self.client.producer().delivery_timeout(DELIVERY_TIME_MAX).build(),
        }
    }

    fn reader(&self, number: u32) -> Reading {
        let is_its = |index: &u32| index % self.load.consumers == number;
        Reading {
            load: Arc::clone(&self.load),
            record: Arc::clone(&self.record),
            topic: self.topic,
            process: Process(CONSUMERS + number),
            client: self.client.clone(),
            positions: (0..self.load.partitions)
                .filter(is_its)
                .map(|index| (PartitionIndex(index), Offset::ZERO))
                .collect(),
        }
    }
}

/// Why not everything could be read in the end.
#[derive(Debug, thiserror::Error)]
pub enum FinalError {
    /// The consumer's reason.
    #[error(transparent)]
    Consume(#[from] ConsumeError),
    /// It takes too long.
    #[error("not every partition could be read to its end within {FINAL_TIME_MAX:?}")]
    TooLate,
}

/// One producer: a record whenever one is due, to each partition in turn.
struct Producing {
    load: Arc<Load>,
    record: Arc<Record>,
    topic: TopicId,
    number: u32,
    start: Instant,
    producer: quire_client::Producer,
}

impl Producing {
    async fn run(self, mut stop: watch::Receiver<bool>) -> Result<(), SendError> {
        let schedule = Schedule::new(self.load.rate, self.load.producers);
        let mut in_flight = FuturesUnordered::new();
        let mut counter = 0;
        loop {
            let due = self.start + schedule.due(self.number, counter);
            tokio::select! {
                biased;
                _ = stop.changed() => break,
                Some(()) = in_flight.next() => continue,
                () = sleep_until(due) => {}
            }
            in_flight.push(self.send(counter).await?);
            counter += 1;
        }
        while in_flight.next().await.is_some() {}
        Ok(())
    }

    /// Hands a record over, and gives back what waits for its end.
    async fn send(&self, counter: u64) -> Result<impl Future<Output = ()> + use<'_>, SendError> {
        let value = Value { producer: self.number, counter };
        let index =
            PartitionIndex(((counter + u64::from(self.number)) % u64::from(self.load.partitions)) as u32);
        let partition = TopicPartition { topic: self.topic, partition: index };
        let tell = move |kind, sent: Option<RecordMetadata>| {
            let (offset, epoch) = sent.map(|sent| (sent.offset, sent.leader_epoch)).unzip();
            self.record.tell(Process(self.number), kind, Action::Send { partition, value, offset, epoch });
        };
        tell(Kind::Invoke, None);
        let payload = payload::encode(self.load.seed, value);
        let record = ClientRecord { value: Some(payload.into()), ..ClientRecord::default() };
        let delivery = self.producer.enqueue_to(&self.load.topic, index, record).await;
        let delivery = match delivery {
            Ok(delivery) => delivery,
            Err(error) => {
                tell(Kind::Fail, None);
                return Err(error);
            }
        };
        Ok(async move {
            match delivery.await {
                Ok(sent) => tell(Kind::Ok, Some(sent)),
                Err(error) => {
                    self.record.note(&format!("{value} was given up: {error}"));
                    tell(kind_of(&error), None);
                }
            }
        })
    }
}

/// Whether a record that was handed over and failed is certainly not in the log.
fn kind_of(error: &SendError) -> Kind {
    match error {
        SendError::RecordTooLarge { .. }
        | SendError::TooManyHeaders { .. }
        | SendError::UnknownPartition { .. }
        | SendError::BufferFull { .. }
        | SendError::Compression(_) => Kind::Fail,
        // A batch that is refused in the end may have been taken before, by a connection that was then lost.
        _ => Kind::Info,
    }
}

/// One consumer with its partitions.
struct Reading {
    load: Arc<Load>,
    record: Arc<Record>,
    topic: TopicId,
    process: Process,
    client: Client,
    positions: BTreeMap<PartitionIndex, Offset>,
}

impl Reading {
    /// Reads until it is dropped. Whatever fails, it goes on where it was.
    async fn run(mut self) {
        while !self.positions.is_empty() {
            if let Err(error) = self.read().await {
                // Retention overtook it.
                if let ConsumeError::OffsetOutOfRange { partition, log_start, .. } = &error {
                    let position = self.positions.entry(*partition).or_default();
                    *position = (*position).max(*log_start);
                }
                self.record.note(&format!("reader {}: {error}", self.process));
                sleep(PAUSE_AFTER_ERROR).await;
            }
        }
    }

    async fn read(&mut self) -> Result<(), ConsumeError> {
        let builder =
            self.client.consumer().topic(&self.load.topic).partitions(self.positions.keys().copied());
        let mut consumer = builder.follow(true).retry_timeout(CONSUMER_RETRY_TIME_MAX).build().await?;
        for (index, offset) in &self.positions {
            if *offset > Offset::ZERO {
                consumer.seek(*index, Position::Offset(*offset)).await?;
            }
            let partition = TopicPartition { topic: self.topic, partition: *index };
            self.record.tell(self.process, Kind::Ok, Action::Seek { partition, offset: *offset });
        }
        while let Some(records) = poll(&mut consumer).await? {
            for record in &records {
                self.positions.insert(record.partition, Offset(record.offset.0 + 1));
            }
            tell_poll(&self.record, &self.load, self.topic, self.process, Phase::Live, records);
        }
        Ok(())
    }
}

/// The next records, as many as are there; nothing at the consumer's end.
async fn poll(consumer: &mut Consumer) -> Result<Option<Vec<ConsumedRecord>>, ConsumeError> {
    let Some(first) = consumer.next().await else { return Ok(None) };
    let mut records = vec![first?];
    while records.len() < POLL_RECORDS_MAX {
        match consumer.next().now_or_never() {
            Some(Some(Ok(record))) => records.push(record),
            // Its records before were not told, and are read again: nobody saw them.
            Some(Some(Err(error))) => return Err(error),
            Some(None) | None => break,
        }
    }
    Ok(Some(records))
}

fn tell_poll(
    record: &Record,
    load: &Load,
    topic: TopicId,
    process: Process,
    phase: Phase,
    records: Vec<ConsumedRecord>,
) {
    let mut by_partition: BTreeMap<PartitionIndex, Vec<Read>> = BTreeMap::new();
    for record in records {
        let value = payload::decode(load.seed, record.value.as_deref().unwrap_or_default());
        let reads = by_partition.entry(record.partition).or_default();
        reads.push(Read { offset: record.offset, value });
    }
    for (partition, records) in by_partition {
        let partition = TopicPartition { topic, partition };
        record.tell(process, Kind::Ok, Action::Poll { partition, phase, records });
    }
}
