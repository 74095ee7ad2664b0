//! The task that serves one partition of a producer: it waits for the next event and lets the pipeline decide.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use quinn::SendStream;
use quire_protocol::batch::ProducerIdentity;
use quire_protocol::stream::{Acks, Answer, ProduceHeader};
use quire_protocol::{ErrorCode, PartitionIndex};
use tokio::sync::{Notify, Semaphore};
use tokio::time::{sleep_until, timeout};

use crate::Client;
use crate::answers::{self, AnswerStream};
use crate::connection::{Connection, lock};
use crate::error::Error;
use crate::leadership::{self, Progress};
use crate::metadata::TopicMetadata;
use crate::streams::{Promise, StreamPermit};

use super::SendError;
use super::accumulator::{Accumulator, SealedBatch};
use super::delivery::{Completer, Outcome};
use super::ids::ProducerIds;
use super::numbers::Claim;
use super::obstacle::Obstacle;
use super::pipeline::{Action, Established, Input, Pipeline, ReadyBatch};

/// How long a broker may take to end a stream that has ended here.
const FINISH_TIME_MAX: Duration = Duration::from_secs(5);

/// One partition's records, shared between those who append and the worker.
#[derive(Debug)]
pub(super) struct PartitionQueue {
    pub accumulator: Mutex<Accumulator>,
    /// Told when the accumulator has something new.
    pub changed: Notify,
    /// Told once, when the producer goes away.
    pub aborted: Notify,
    /// What keeps its records waiting.
    pub obstacle: Mutex<Option<Obstacle>>,
}

/// What all of a producer's workers share.
#[derive(Debug)]
pub(super) struct Delivered {
    /// Bytes of records that may yet be taken in.
    pub memory: Semaphore,
    /// The first failure that no flush has reported yet.
    pub first_failure: Mutex<Option<SendError>>,
}

impl Delivered {
    fn complete(&self, completer: Completer, memory: usize, outcome: Outcome) {
        if let Err(error) = &outcome {
            lock(&self.first_failure).get_or_insert_with(|| error.clone());
        }
        self.memory.add_permits(memory);
        completer.complete(outcome);
    }
}

/// The stream in use.
struct ProduceStream {
    connection: Arc<Connection>,
    send: SendStream,
    answers: AnswerStream,
    /// What is yet to be written; one piece a batch.
    outgoing: VecDeque<Bytes>,
    permit: StreamPermit,
    /// What it was opened by.
    known: Arc<TopicMetadata>,
    /// Made when another partition needs the stream more.
    promise: Option<Promise>,
}

type Opening = Pin<Box<dyn Future<Output = Result<(ProduceStream, Established), Error>> + Send>>;

pub(super) struct Worker {
    pub client: Client,
    pub topic: Arc<str>,
    pub partition: PartitionIndex,
    pub acks: Acks,
    pub delivery_timeout: Duration,
    pub queue: Arc<PartitionQueue>,
    pub delivered: Arc<Delivered>,
    pub ids: Arc<ProducerIds>,
    pub pipeline: Pipeline,
    /// Whether the queue has an obstacle.
    pub is_obstructed: bool,
}

/// What the worker waits for.
enum Event {
    Changed,
    Aborted,
    Deadline,
    Opened(Result<(ProduceStream, Established), Error>),
    /// Whole batches written.
    Written(usize),
    Received,
    /// Another partition waits for a stream.
    AskedFor(Promise),
    Lost(Error),
    /// Nothing came for a while, and whether there is another leader.
    Watched(bool),
}

/// What is wrong with what is known of the topic.
#[derive(Debug, Clone, Default)]
enum Doubt {
    #[default]
    None,
    /// The last attempt failed: somebody else may lead.
    Stale,
    /// It is of a topic that was left, told by a broker that is behind.
    Left(Arc<TopicMetadata>),
}

/// The worker's connections to the world, apart from what decides.
#[derive(Default)]
struct Io {
    stream: Option<ProduceStream>,
    opening: Option<Opening>,
    /// What the last attempt says of the metadata.
    doubt: Doubt,
    /// Looks for another leader while an answer is waited for.
    watch: Option<Pin<Box<dyn Future<Output = bool> + Send>>>,
    progress: Arc<Progress>,
}

impl Worker {
    /// Runs until the producer goes away.
    pub(super) async fn run(mut self) {
        let mut io = Io::default();
        loop {
            self.take_batches(&mut io);
            let deadline = self.deadline();
            // A stream that was opened for records is not given up before it carried some.
            let may_give_up = self.pipeline.has_carried() || lock(&self.queue.accumulator).is_empty();
            self.watch(&mut io);
            let event = io.next_event(&self.queue, deadline, may_give_up).await;
            if matches!(event, Event::Aborted) {
                let end = if self.pipeline.is_empty() { Action::Finish } else { Action::Abandon };
                return self.perform(end, &mut io);
            }
            self.apply(event, &mut io);
            self.show_obstacle();
        }
    }

    /// Shows what keeps records waiting, and that nothing does any more.
    fn show_obstacle(&mut self) {
        let is_waiting = || !self.pipeline.is_empty() || !lock(&self.queue.accumulator).is_empty();
        let error = self.pipeline.last_failure().filter(|_| is_waiting());
        if error.is_none() && !self.is_obstructed {
            return;
        }
        let mut obstacle = lock(&self.queue.obstacle);
        *obstacle = error.map(|error| Obstacle {
            topic: Arc::clone(&self.topic),
            partition: self.partition,
            error: error.clone(),
            since: obstacle.as_ref().map_or_else(Instant::now, |known| known.since),
        });
        self.is_obstructed = obstacle.is_some();
    }

    fn apply(&mut self, event: Event, io: &mut Io) {
        match event {
            Event::Changed => {}
            Event::Aborted => unreachable!("ends the loop"),
            Event::Deadline => self.tick(io),
            Event::Opened(Ok((stream, established))) => {
                let known = Arc::clone(&stream.known);
                io.stream = Some(stream);
                (io.watch, io.progress) = (None, Arc::default());
                self.handle(Input::Opened(established), io);
                // One that is given up at once is of a broker that is behind.
                io.doubt = if io.stream.is_some() { Doubt::None } else { Doubt::Left(known) };
            }
            Event::Opened(Err(error)) => {
                io.doubt = Doubt::Stale;
                self.handle(Input::Refused(error), io);
            }
            Event::Written(count) => (0..count).for_each(|_| self.handle(Input::Written, io)),
            Event::Received => {
                io.progress.received.fetch_add(1, Ordering::Relaxed);
                self.read_answers(io);
            }
            Event::AskedFor(promise) => {
                if let Some(stream) = &mut io.stream {
                    stream.promise = Some(promise);
                }
                self.handle(Input::AskedFor, io);
            }
            Event::Lost(error) => self.fail(error, io),
            Event::Watched(false) => {}
            Event::Watched(true) => {
                let message = "the partition has another leader now".into();
                self.fail(Error::Broker { code: ErrorCode::NotLeader, message, suggestion: None }, io);
            }
        }
    }

    /// Begins to look for another leader where an answer is waited for. It ends by itself.
    fn watch(&self, io: &mut Io) {
        let is_waiting = self.pipeline.is_waiting();
        io.progress.is_waiting.store(is_waiting, Ordering::Relaxed);
        let Some(stream) = &io.stream else { return io.watch = None };
        if is_waiting && io.watch.is_none() {
            let (client, known) = (self.client.clone(), Arc::clone(&stream.known));
            let watch = leadership::has_moved(client, known, self.partition, Arc::clone(&io.progress));
            io.watch = Some(Box::pin(watch));
        }
    }

    /// Takes as many batches as may leave now. They are finished here, outside the lock.
    fn take_batches(&mut self, io: &mut Io) {
        loop {
            let now = Instant::now();
            let taken = {
                let mut accumulator = lock(&self.queue.accumulator);
                if accumulator.is_empty() {
                    return;
                }
                match self.pipeline.wants_batch() {
                    true => accumulator.take(now, self.pipeline.is_idle()),
                    false => None,
                }
            };
            let Some(batch) = taken else { return self.handle(Input::Records, io) };
            let SealedBatch { builder, completer, memory, begun_at } = batch;
            let records = builder.len() as u32;
            match builder.finish_numbered(self.pipeline.next_number()) {
                Ok(bytes) => {
                    let (numbered, times_sent) = (None, 0);
                    let batch =
                        ReadyBatch { bytes, completer, memory, begun_at, records, numbered, times_sent };
                    self.handle(Input::Batch(batch), io);
                }
                Err(error) => {
                    self.delivered.complete(completer, memory, Err(error.into()));
                }
            }
        }
    }

    fn read_answers(&mut self, io: &mut Io) {
        while let Some(stream) = &mut io.stream {
            match stream.answers.inbox.answer() {
                Ok(None) => return,
                Ok(Some(Answer::Ack(ack))) => self.handle(Input::Acked(ack), io),
                Ok(Some(Answer::Failure(failure))) => {
                    self.fail(answers::failure_error(failure), io);
                }
                Ok(Some(_)) => {
                    let error = stream.connection.protocol("it sent a message that belongs elsewhere");
                    self.fail(error, io);
                }
                Err(error) => {
                    let error = stream.connection.protocol(error);
                    self.fail(error, io);
                }
            }
        }
    }

    fn fail(&mut self, error: Error, io: &mut Io) {
        tracing::debug!(topic = %self.topic, partition = %self.partition, %error, "produce stream failed");
        io.doubt = Doubt::Stale;
        self.handle(Input::Failed(error), io);
    }

    fn tick(&mut self, io: &mut Io) {
        let begun_until = Instant::now().checked_sub(self.delivery_timeout);
        let expired = begun_until.map(|time| lock(&self.queue.accumulator).take_begun_until(time));
        self.refuse(expired.unwrap_or_default(), &self.pipeline.timed_out());
        self.handle(Input::Tick, io);
    }

    fn deadline(&self) -> Option<Instant> {
        let accumulator = lock(&self.queue.accumulator);
        let delivery = accumulator.oldest().map(|begun_at| begun_at + self.delivery_timeout);
        let linger = accumulator.linger_end().filter(|_| self.pipeline.wants_batch());
        [delivery, linger, self.pipeline.deadline()].into_iter().flatten().min()
    }

    fn handle(&mut self, input: Input, io: &mut Io) {
        let mut actions = Vec::new();
        self.pipeline.handle(Instant::now(), input, &mut actions);
        actions.into_iter().for_each(|action| self.perform(action, io));
    }

    fn perform(&mut self, action: Action, io: &mut Io) {
        match action {
            Action::Open => io.opening = Some(self.open(io.doubt.clone())),
            Action::Write(bytes) => {
                if let Some(stream) = &mut io.stream {
                    stream.outgoing.push_back(bytes);
                }
            }
            Action::Abandon => {
                io.opening = None;
                if let Some(mut stream) = io.stream.take() {
                    let _ = stream.send.reset(quinn::VarInt::from_u32(0));
                    stream.answers.stop();
                }
            }
            Action::Finish => {
                if let Some(stream) = io.stream.take() {
                    stream.finish();
                }
            }
            Action::Complete { completer, memory, outcome } => {
                self.delivered.complete(completer, memory, outcome);
            }
            Action::RefuseWaiting(error) => {
                let waiting = lock(&self.queue.accumulator).drain();
                self.refuse(waiting, &error);
            }
        }
    }

    fn refuse(&self, batches: Vec<SealedBatch>, error: &SendError) {
        for batch in batches {
            self.delivered.complete(batch.completer, batch.memory, Err(error.clone()));
        }
    }

    fn open(&self, doubt: Doubt) -> Opening {
        let (client, topic) = (self.client.clone(), Arc::clone(&self.topic));
        let (partition, ids) = (self.partition, Arc::clone(&self.ids));
        let wanted = WantedStream { partition, acks: self.acks, claim: self.pipeline.claim() };
        let after = client.brokers().config().request_timeout;
        Box::pin(async move {
            let opened = timeout(after, open_stream(client, &ids, &topic, wanted, doubt)).await;
            opened.unwrap_or_else(|_| {
                let address = format!("the leader of \"{topic}\", partition {partition}");
                Err(Error::TimedOut { address, what: "opening a produce stream", after })
            })
        })
    }
}

impl Drop for Worker {
    /// However it ends, also with its runtime or in a panic: what it leaves behind is closed, and no more is taken in.
    fn drop(&mut self) {
        if std::thread::panicking() {
            // What was in hand at that moment is in no queue any more, and must not look delivered to a flush.
            lock(&self.delivered.first_failure).get_or_insert(SendError::Closed);
        }
        let mut actions = Vec::new();
        self.pipeline.abort(&SendError::Closed, &mut actions);
        for action in actions {
            if let Action::Complete { completer, memory, outcome } = action {
                self.delivered.complete(completer, memory, outcome);
            }
        }
        let waiting = lock(&self.queue.accumulator).close();
        self.refuse(waiting, &SendError::Closed);
        *lock(&self.queue.obstacle) = None;
    }
}

impl Io {
    async fn next_event(
        &mut self,
        queue: &PartitionQueue,
        deadline: Option<Instant>,
        may_give_up: bool,
    ) -> Event {
        let Io { stream, opening, watch, .. } = self;
        let streams = stream.as_ref().filter(|stream| may_give_up && stream.promise.is_none());
        let streams = streams.map(|stream| Arc::clone(&stream.connection.streams));
        let asked_for = async {
            match &streams {
                Some(streams) => streams.asked_for().await,
                None => std::future::pending().await,
            }
        };
        let deadline = async {
            match deadline {
                Some(deadline) => sleep_until(deadline.into()).await,
                None => std::future::pending().await,
            }
        };
        let opened = async {
            match opening {
                Some(opening) => opening.await,
                None => std::future::pending().await,
            }
        };
        let watched = async {
            match watch {
                Some(watch) => watch.await,
                None => std::future::pending().await,
            }
        };
        let exchanged = async {
            match stream {
                Some(stream) => stream.exchange().await,
                None => std::future::pending().await,
            }
        };
        let event = tokio::select! {
            () = queue.aborted.notified() => Event::Aborted,
            event = exchanged => event,
            opened = opened => Event::Opened(opened),
            promise = asked_for => Event::AskedFor(promise),
            () = queue.changed.notified() => Event::Changed,
            () = deadline => Event::Deadline,
            has_moved = watched => Event::Watched(has_moved),
        };
        match event {
            Event::Opened(_) => self.opening = None,
            Event::Watched(_) => self.watch = None,
            _ => {}
        }
        event
    }
}

impl ProduceStream {
    /// Ends it. Its permit is free once the broker has ended its side too: only then another stream may take its place.
    fn finish(self) {
        let ProduceStream { mut send, mut answers, permit, promise, .. } = self;
        let _ = send.finish();
        tokio::spawn(async move {
            let ended = async { while answers.fill().await.is_ok_and(|more| more) {} };
            let _ = timeout(FINISH_TIME_MAX, ended).await;
            drop((permit, promise));
        });
    }

    /// Writes what there is to write and reads what comes. Can be cancelled without losing anything.
    async fn exchange(&mut self) -> Event {
        let ProduceStream { connection, send, answers, outgoing, .. } = self;
        let write = async {
            match outgoing.is_empty() {
                true => std::future::pending().await,
                false => send.write_chunks(outgoing.make_contiguous()).await,
            }
        };
        tokio::select! {
            received = answers.fill() => match received {
                Ok(true) => Event::Received,
                Ok(false) => Event::Lost(connection.stream_lost("the broker ended the stream")),
                Err(error) => Event::Lost(connection.stream_lost(error)),
            },
            written = write => match written {
                Ok(written) => {
                    outgoing.drain(..written.chunks);
                    Event::Written(written.chunks)
                }
                // The broker stops what it does not read, and says why on its own side of the stream.
                Err(quinn::WriteError::Stopped(_)) => {
                    outgoing.clear();
                    Event::Written(0)
                }
                Err(error) => Event::Lost(connection.stream_lost(error)),
            },
        }
    }
}

/// What is to be opened.
#[derive(Clone, Copy)]
struct WantedStream {
    partition: PartitionIndex,
    acks: Acks,
    /// Who numbers its batches.
    claim: Option<Claim>,
}

async fn open_stream(
    client: Client,
    ids: &ProducerIds,
    topic: &str,
    wanted: WantedStream,
    doubt: Doubt,
) -> Result<(ProduceStream, Established), Error> {
    let metadata = client.metadata();
    let mut known = match &doubt {
        Doubt::Left(left) => metadata.instead_of(left, wanted.partition).await?,
        Doubt::None | Doubt::Stale => metadata.topic(topic).await?,
    };
    if matches!(doubt, Doubt::Stale) {
        known = metadata.refresh_from_others(&known, known.leadership(wanted.partition)).await?;
    }
    let producer = match wanted.claim {
        Some(claim) => {
            let id = ids.id(client.brokers(), claim).await?;
            Some(ProducerIdentity { id, epoch: claim.epoch })
        }
        None => None,
    };
    loop {
        // A leader that was killed does not answer, and another may lead meanwhile.
        let progress = Arc::new(Progress::waiting());
        let moved = leadership::has_moved(client.clone(), Arc::clone(&known), wanted.partition, progress);
        tokio::select! {
            opened = open_at_leader(&client, Arc::clone(&known), wanted, producer) => return opened,
            _ = moved => known = metadata.topic(topic).await?,
        }
    }
}

async fn open_at_leader(
    client: &Client,
    known: Arc<TopicMetadata>,
    wanted: WantedStream,
    producer: Option<ProducerIdentity>,
) -> Result<(ProduceStream, Established), Error> {
    let WantedStream { partition, acks, .. } = wanted;
    let connection = client.metadata().leader(&known, partition).await?;
    let permit = connection.streams.for_producing().await;
    let leader_epoch = known.leadership(partition).map(|leadership| leadership.epoch).unwrap_or_default();
    let header = ProduceHeader { partition: known.partition(partition), leader_epoch, acks, producer };
    let mut bytes = header.prefix().to_vec();
    header.encode(&mut bytes);
    match answers::open(&connection, &bytes).await? {
        Ok((send, answers, opened)) => {
            let outgoing = VecDeque::new();
            let established =
                Established { opened, topic: known.id, producer: producer.map(|producer| producer.id) };
            let stream = ProduceStream { connection, send, answers, outgoing, permit, known, promise: None };
            Ok((stream, established))
        }
        Err(failure) => Err(answers::failure_error(failure)),
    }
}
