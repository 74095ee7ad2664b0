//! The task that reads one partition: opens a consume stream, verifies what comes, puts it on its shelf, gives credit,
//! and continues at the next offset when the stream is lost.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::SendStream;
use quire_protocol::frame::FrameSeed;
use quire_protocol::stream::{Answer, ConsumeHeader, Failure, Opened, Start, StreamKind};
use quire_protocol::{BrokerId, ErrorCode, Offset, PartitionIndex};
use tokio::time::{sleep_until, timeout};

use crate::Client;
use crate::answers::{self, AnswerStream};
use crate::connection::Connection;
use crate::error::Error;
use crate::leadership;
use crate::metadata::{Racks, TopicMetadata};
use crate::retry::{Jitter, Retry};
use crate::streams::StreamPermit;

use super::ConsumeError;
use super::credit::Credit;
use super::frames::FrameReader;
use super::lookout::{Lookout, Occasion, Seen, Sight};
use super::near::{self, Near, Replicas};
use super::shelf::{Generation, Shelves, Status};

/// Most credit messages that may wait to be written (bytes); a broker that takes none of them is not reading.
const CREDIT_BYTES_WAITING_MAX: usize = 4096;

/// A log that ends before where reading has come to belongs to a leader that does not know yet that it was deposed, or lost
/// records that were committed. For so long it is taken for the former while nobody else can be asked who leads.
const BEYOND_END_TIME_MAX: Duration = Duration::from_secs(15);
/// And for so long while others say that it leads: many times as long as brokers take to hear of a leader.
const BEYOND_END_TIME_MIN: Duration = Duration::from_secs(1);

/// One partition's fetcher.
pub(super) struct Fetcher {
    pub client: Client,
    pub topic: Arc<TopicMetadata>,
    pub partition: PartitionIndex,
    /// Its place among the shelves.
    pub place: usize,
    pub shelves: Arc<Shelves>,
    /// Where to stop, exclusive.
    pub end: Option<Offset>,
    /// Bytes it may hold.
    pub share: u64,
    pub retry_timeout: Duration,
    /// Where a replica is wanted that is near.
    pub near: Option<Near>,
    /// Whether the replica last read from was chosen for being near.
    pub is_near: bool,
}

/// What one request has come to.
struct Progress {
    generation: Generation,
    start: Start,
    reader: Option<FrameReader>,
    credit: Credit,
    /// Released bytes that the credit knows of.
    released: u64,
    high_watermark: Offset,
    /// What the consumer was told.
    is_caught_up: bool,
    /// When the stream in use was accepted.
    opened_at: Option<Instant>,
}

/// Why reading stopped.
enum Stop {
    /// Another request came.
    Superseded,
    /// Everything was read.
    Ended,
    /// It can not go on.
    Failed(ConsumeError),
    /// The stream is lost; another may do.
    Lost(Error),
    /// The log ends before the position, says a broker that may not lead any more without knowing.
    Beyond(ConsumeError),
    /// Another replica is the one to read from now.
    Moved,
}

struct ConsumeStream {
    connection: Arc<Connection>,
    send: SendStream,
    answers: AnswerStream,
    /// Credit messages yet to be written.
    outgoing: Vec<u8>,
    _permit: StreamPermit,
}

impl Fetcher {
    /// Runs until its consumer is dropped.
    pub(super) async fn run(mut self) {
        loop {
            let request = self.shelves.request(self.place);
            match request.start {
                Some(start) => self.serve(request.generation, start).await,
                None => self.shelves.request_changed(self.place).await,
            }
        }
    }

    /// Reads for one request, until the next one comes.
    async fn serve(&mut self, generation: Generation, start: Start) {
        let mut progress = Progress::new(generation, start, self.share);
        let backoff = self.client.brokers().config().backoff;
        let mut retry = Retry::new(backoff, Jitter::from_entropy());
        let (mut lost_since, mut beyond_since): (Option<Instant>, Option<Instant>) = (None, None);
        loop {
            let before = progress.position();
            let stop = self.read(&mut progress, lost_since.is_some()).await;
            self.shelves.set_source(self.place, None);
            if let Some(reader) = &mut progress.reader {
                reader.restart();
            }
            let stop = match stop {
                Stop::Failed(error) | Stop::Beyond(error) if self.is_near => {
                    tracing::info!(topic = %self.topic.name, partition = %self.partition, %error, "the near replica fails");
                    Stop::Lost(Error::ConnectionLost {
                        address: "the near replica".into(),
                        why: error.to_string(),
                    })
                }
                stop => stop,
            };
            // A topic may be quiet, or its consumer slow: a stream that lasted was no failure, though nothing came.
            let lasted = progress.opened_at.take().map_or(Duration::ZERO, |at| at.elapsed());
            if let Some(near) = self.near.as_mut().filter(|_| self.is_near) {
                near.served(lasted);
            }
            let lasted = lasted >= backoff.longest;
            if lasted || progress.position() != before {
                (lost_since, beyond_since) = (None, None);
                retry.succeeded();
            }
            let lost_for = |since: &mut Option<Instant>| since.get_or_insert_with(Instant::now).elapsed();
            let (error, may_wait) = match stop {
                Stop::Superseded => return,
                Stop::Moved => continue,
                // The leader has its turn at once.
                Stop::Lost(_) if self.is_near => {
                    lost_for(&mut lost_since);
                    self.near_failed();
                    continue;
                }
                Stop::Ended => {
                    self.rest(Status::Ended, generation).await;
                    return;
                }
                Stop::Failed(error) => (error, false),
                Stop::Lost(error) => (error.into(), lost_for(&mut lost_since) < self.retry_timeout),
                Stop::Beyond(error) => {
                    // Others are asked who leads before each attempt.
                    lost_for(&mut lost_since);
                    let time_max = match self.topic.is_leader_named_by_another(self.partition) {
                        true => BEYOND_END_TIME_MIN,
                        false => BEYOND_END_TIME_MAX,
                    };
                    (error, lost_for(&mut beyond_since) < time_max.min(self.retry_timeout))
                }
            };
            if !may_wait {
                self.rest(Status::Failed(error), generation).await;
                return;
            }
            tracing::debug!(topic = %self.topic.name, partition = %self.partition, %error, "reading again");
            if !self.pause(retry.failed(Instant::now()), generation).await {
                return;
            }
        }
    }

    /// Tells how reading ended, and waits for the next request.
    async fn rest(&self, status: Status, generation: Generation) {
        self.shelves.set_status(self.place, generation, status);
        while self.shelves.request(self.place).generation == generation {
            self.shelves.request_changed(self.place).await;
        }
    }

    /// Waits, and answers whether the request still stands.
    async fn pause(&self, until: Instant, generation: Generation) -> bool {
        let superseded = async {
            while self.shelves.request(self.place).generation == generation {
                self.shelves.request_changed(self.place).await;
            }
        };
        tokio::select! {
            () = sleep_until(until.into()) => true,
            () = superseded => false,
        }
    }

    /// Opens a stream and reads it to its end.
    async fn read(&mut self, progress: &mut Progress, is_stale: bool) -> Stop {
        self.note_released(progress);
        let after = self.client.brokers().config().request_timeout;
        let opened = match timeout(after, self.open(progress, is_stale)).await {
            Ok(opened) => opened,
            Err(_) => {
                let address = format!("the leader of \"{}\", partition {}", self.topic.name, self.partition);
                return Stop::Lost(Error::TimedOut { address, what: "opening a consume stream", after });
            }
        };
        let (mut stream, opened) = match opened {
            Ok(Ok(opened)) => opened,
            Ok(Err(failure)) => return self.failed(progress, failure),
            Err(error) if error.is_retriable() => return Stop::Lost(error),
            Err(error) => return Stop::Failed(error.into()),
        };
        if self.opened(progress, &opened) {
            stream.answers.stop();
            return Stop::Ended;
        }
        self.shelves.set_source(self.place, Some(stream.broker()));
        let mut lookout = Lookout::new(Instant::now(), self.occasion());
        loop {
            if let Some(stop) = self.apply(progress, &mut stream) {
                stream.answers.stop();
                return stop;
            }
            tokio::select! {
                exchanged = stream.exchange(&self.shelves, self.place) => match exchanged {
                    Err(error) => return Stop::Lost(error),
                    Ok(Woken::Received) => lookout.received(),
                    Ok(Woken::Otherwise) => {}
                },
                sight = lookout.next() => match sight {
                    Sight::Due => lookout.look(after, self.look()),
                    Sight::Seen(Some(seen)) if self.is_elsewhere(&seen, stream.broker()) => {
                        stream.answers.stop();
                        return Stop::Moved;
                    }
                    Sight::Seen(_) => {}
                },
            }
        }
    }

    fn occasion(&self) -> Occasion {
        match self.near {
            Some(_) => Occasion::Always,
            None if self.topic.has_followers(self.partition) => Occasion::Quiet,
            None => Occasion::Never,
        }
    }

    /// Asks others about the topic, and where brokers stand if that matters.
    fn look(&self) -> impl Future<Output = Result<Seen, Error>> + Send + 'static {
        let (client, known, partition) = (self.client.clone(), Arc::clone(&self.topic), self.partition);
        let wants_racks = self.near.is_some();
        async move {
            let topic = refreshed(&client, &known, partition).await?;
            let racks = match wants_racks {
                true => Some(client.metadata().racks(near::LOOK_INTERVAL).await?),
                false => None,
            };
            Ok(Seen { topic, racks })
        }
    }

    /// Whether another replica than this broker's is the one to read from.
    fn is_elsewhere(&mut self, seen: &Seen, reads_from: BrokerId) -> bool {
        self.topic = Arc::clone(&seen.topic);
        let near = seen.racks.as_ref().and_then(|racks| self.choose(racks));
        let leader = self.topic.leadership(self.partition).and_then(|leadership| leadership.leader);
        near.or(leader).is_some_and(|broker| broker != reads_from)
    }

    /// The near replica to read from; `None` is the leader.
    fn choose(&self, racks: &Racks) -> Option<BrokerId> {
        let replicas = Replicas {
            partition: self.partition,
            leader: self.topic.leadership(self.partition).and_then(|leadership| leadership.leader),
            in_sync: self.topic.in_sync(self.partition),
            racks,
        };
        self.near.as_ref().and_then(|near| near.choose(Instant::now(), &replicas))
    }

    fn near_failed(&mut self) {
        if let Some(near) = &mut self.near {
            near.failed(Instant::now());
        }
    }

    async fn open(
        &mut self,
        progress: &mut Progress,
        is_stale: bool,
    ) -> Result<Result<(ConsumeStream, Opened), Failure>, Error> {
        self.is_near = false;
        if is_stale {
            self.refresh().await?;
        }
        let near = match self.near {
            Some(_) => self.choose(&*self.client.metadata().racks(near::LOOK_INTERVAL).await?),
            None => None,
        };
        self.is_near = near.is_some();
        let Some(broker) = near else {
            return self.open_at_leader(progress).await;
        };
        let opening = async {
            let connection = self.client.metadata().broker(broker).await?;
            self.open_at(progress, connection).await
        };
        // The leader is waiting: one that does not answer is not waited for as if there were no other.
        let after = near::OPENING_TIME_MAX;
        let (address, what) = (format!("broker {broker}"), "opening a consume stream");
        timeout(after, opening).await.unwrap_or(Err(Error::TimedOut { address, what, after }))
    }

    async fn open_at_leader(
        &mut self,
        progress: &mut Progress,
    ) -> Result<Result<(ConsumeStream, Opened), Failure>, Error> {
        loop {
            // A leader that was killed does not answer, and another may lead meanwhile.
            let (client, topic) = (self.client.clone(), Arc::clone(&self.topic));
            let waiting = Arc::new(leadership::Progress::waiting());
            let moved = leadership::has_moved(client, topic, self.partition, waiting);
            let opening = async {
                let connection = self.client.metadata().leader(&self.topic, self.partition).await?;
                self.open_at(progress, connection).await
            };
            tokio::select! {
                opened = opening => return opened,
                _ = moved => {}
            }
            self.refresh().await?;
        }
    }

    async fn open_at(
        &self,
        progress: &mut Progress,
        connection: Arc<Connection>,
    ) -> Result<Result<(ConsumeStream, Opened), Failure>, Error> {
        let permit = connection.stream_for_consuming().await?;
        let start = match &progress.reader {
            Some(reader) => Start::Offset(reader.next_offset()),
            None => progress.start,
        };
        let mut header = StreamKind::Consume.prefix().to_vec();
        let partition = self.topic.partition(self.partition);
        ConsumeHeader { partition, start, credit: progress.credit.open() }.encode(&mut header);
        let opened = answers::open(&connection, &header).await?;
        Ok(opened.map(|(send, answers, opened)| {
            (ConsumeStream { connection, send, answers, outgoing: Vec::new(), _permit: permit }, opened)
        }))
    }

    async fn refresh(&mut self) -> Result<(), Error> {
        self.topic = refreshed(&self.client, &self.topic, self.partition).await?;
        Ok(())
    }

    /// Answers whether there is nothing to read before the end.
    fn opened(&self, progress: &mut Progress, opened: &Opened) -> bool {
        let seed = FrameSeed::new(self.topic.partition(self.partition));
        self.note_high_watermark(opened.high_watermark);
        if progress.opened(seed, opened, self.end) {
            return true;
        }
        self.note_position(progress);
        false
    }

    /// Takes what was received, and gives credit for what was used up.
    fn apply(&self, progress: &mut Progress, stream: &mut ConsumeStream) -> Option<Stop> {
        if self.shelves.request(self.place).generation != progress.generation {
            return Some(Stop::Superseded);
        }
        if let Some(stop) = self.take_frames(progress, stream) {
            return Some(stop);
        }
        self.note_released(progress);
        if let Some(grant) = progress.credit.grant() {
            stream.outgoing.extend_from_slice(&grant.to_le_bytes());
        }
        if stream.outgoing.len() > CREDIT_BYTES_WAITING_MAX {
            return Some(Stop::Lost(stream.connection.stream_lost("the broker reads no credit")));
        }
        None
    }

    fn take_frames(&self, progress: &mut Progress, stream: &mut ConsumeStream) -> Option<Stop> {
        loop {
            if let Some(stop) = self.take_slices(progress, stream) {
                return Some(stop);
            }
            if progress.reader.as_ref().is_some_and(|reader| !reader.is_at_rest()) {
                return None;
            }
            match stream.answers.inbox.answer() {
                Ok(None) => return None,
                Ok(Some(Answer::Frames(frames))) => {
                    self.note_high_watermark(frames.high_watermark);
                    let announced = progress.reader.as_mut().map(|r| r.announce(frames.length as usize));
                    if let Some(Err(why)) = announced {
                        return Some(Stop::Failed(stream.connection.protocol(why).into()));
                    }
                    progress.high_watermark = frames.high_watermark;
                    self.note_position(progress);
                }
                Ok(Some(Answer::Failure(failure))) => return Some(self.failed(progress, failure)),
                Ok(Some(_)) => {
                    let error = stream.connection.protocol("it sent a message that belongs elsewhere");
                    return Some(Stop::Failed(error.into()));
                }
                Err(error) => return Some(Stop::Failed(stream.connection.protocol(error).into())),
            }
        }
    }

    fn take_slices(&self, progress: &mut Progress, stream: &mut ConsumeStream) -> Option<Stop> {
        loop {
            let reader = progress.reader.as_mut()?;
            let slice = match reader.receive(&mut stream.answers.inbox) {
                Ok(Some(slice)) => slice,
                Ok(None) => return None,
                Err(why) => return Some(Stop::Failed(self.corrupt(reader.next_offset(), why))),
            };
            progress.credit.received(slice.frames.len());
            let is_end = self.end.is_some_and(|end| slice.next_offset >= end);
            if !self.shelves.put(self.place, progress.generation, slice) {
                return Some(Stop::Superseded);
            }
            if is_end {
                return Some(Stop::Ended);
            }
            self.note_position(progress);
        }
    }

    /// A replica may know less of what is committed than the leader told.
    fn note_high_watermark(&self, high_watermark: Offset) {
        let known = if self.is_near { self.shelves.high_watermark(self.place) } else { Offset::ZERO };
        self.shelves.set_high_watermark(self.place, high_watermark.max(known));
    }

    /// Tells the consumer when everything up to the high watermark has been read, and when no longer.
    fn note_position(&self, progress: &mut Progress) {
        let is_caught_up = progress.position().is_some_and(|position| position >= progress.high_watermark);
        if is_caught_up != progress.is_caught_up {
            progress.is_caught_up = is_caught_up;
            let status = if is_caught_up { Status::CaughtUp } else { Status::Reading };
            self.shelves.set_status(self.place, progress.generation, status);
        }
    }

    fn note_released(&self, progress: &mut Progress) {
        let request = self.shelves.request(self.place);
        if request.generation == progress.generation {
            progress.credit.released(request.released - progress.released);
            progress.released = request.released;
        }
    }

    fn failed(&self, progress: &Progress, failure: Failure) -> Stop {
        let (code, log_start, high_watermark) = (failure.code, failure.log_start, failure.high_watermark);
        match code {
            ErrorCode::OffsetOutOfRange => {
                let offset = progress.position().unwrap_or(match progress.start {
                    Start::Offset(offset) => offset,
                    _ => log_start,
                });
                let (topic, partition) = (Arc::clone(&self.topic.name), self.partition);
                let error =
                    ConsumeError::OffsetOutOfRange { topic, partition, offset, log_start, high_watermark };
                // Where reading has come to, and what a group has committed, was committed once: somebody else may have
                // more than who is asked.
                match offset > high_watermark && self.topic.has_followers(partition) {
                    true => Stop::Beyond(error),
                    false => Stop::Failed(error),
                }
            }
            // Whether the topic is really gone, the metadata tells when it is looked at again.
            ErrorCode::UnknownTopic | ErrorCode::UnknownPartition => {
                Stop::Lost(answers::failure_error(failure))
            }
            code if code.is_retriable() => Stop::Lost(answers::failure_error(failure)),
            _ => Stop::Failed(answers::failure_error(failure).into()),
        }
    }

    fn corrupt(&self, offset: Offset, why: String) -> ConsumeError {
        let topic = Arc::clone(&self.topic.name);
        ConsumeError::CorruptFrame { topic, partition: self.partition, offset, why }
    }
}

impl Progress {
    fn new(generation: Generation, start: Start, share: u64) -> Progress {
        Progress {
            generation,
            start,
            reader: None,
            credit: Credit::new(share),
            released: 0,
            high_watermark: Offset::ZERO,
            is_caught_up: false,
            opened_at: None,
        }
    }

    /// A stream continues at, or starts with, the offset that the broker says. Answers whether `end` is reached
    /// without a record: retention may have removed everything before it since it was asked for.
    fn opened(&mut self, seed: FrameSeed, opened: &Opened, end: Option<Offset>) -> bool {
        let reader = self.reader.get_or_insert_with(|| FrameReader::new(seed, opened.next_offset));
        let next_offset = reader.next_offset();
        self.opened_at = Some(Instant::now());
        self.high_watermark = opened.high_watermark;
        end.is_some_and(|end| next_offset >= end)
    }

    /// The offset that comes next, once it is known.
    fn position(&self) -> Option<Offset> {
        self.reader.as_ref().map(FrameReader::next_offset)
    }
}

/// Asks others than the leader first. Another topic of the same name is none of ours: its offsets mean other records.
async fn refreshed(
    client: &Client,
    known: &TopicMetadata,
    partition: PartitionIndex,
) -> Result<Arc<TopicMetadata>, Error> {
    let topic = client.metadata().refresh_from_others(known, known.leadership(partition)).await?;
    if topic.id != known.id {
        return Err(Error::Broker {
            code: ErrorCode::UnknownTopic,
            message: format!("\"{}\" was deleted while it was read, and created again", known.name),
            suggestion: None,
        });
    }
    Ok(topic)
}

/// Why waiting ended.
enum Woken {
    /// Something was received.
    Received,
    /// Something was written, or the request changed.
    Otherwise,
}

impl ConsumeStream {
    fn broker(&self) -> BrokerId {
        self.connection.broker_id()
    }

    /// Waits until something was received or the request changed; writes credit meanwhile. Can be cancelled without losing
    /// anything.
    async fn exchange(&mut self, shelves: &Shelves, place: usize) -> Result<Woken, Error> {
        let ConsumeStream { connection, send, answers, outgoing, .. } = self;
        let write = async {
            match outgoing.is_empty() {
                true => std::future::pending().await,
                false => send.write(outgoing).await,
            }
        };
        tokio::select! {
            received = answers.fill() => match received {
                Ok(true) => Ok(Woken::Received),
                Ok(false) => Err(connection.stream_lost("the broker ended the stream")),
                Err(error) => Err(connection.stream_lost(error)),
            },
            written = write => match written {
                Ok(count) => {
                    outgoing.drain(..count);
                    Ok(Woken::Otherwise)
                }
                // The broker says why on its own side of the stream.
                Err(quinn::WriteError::Stopped(_)) => {
                    outgoing.clear();
                    Ok(Woken::Otherwise)
                }
                Err(error) => Err(connection.stream_lost(error)),
            },
            () = shelves.request_changed(place) => Ok(Woken::Otherwise),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quire_protocol::{LeaderEpoch, TopicId, TopicPartition};

    fn opened_at(offset: u64) -> Opened {
        Opened {
            leader_epoch: LeaderEpoch(0),
            window: 0,
            batch_bytes_max: 0,
            next_offset: Offset(offset),
            log_start: Offset(offset),
            high_watermark: Offset(200),
        }
    }

    #[test]
    fn a_partition_whose_records_before_the_end_are_gone_has_been_read() {
        let seed = FrameSeed::new(TopicPartition { topic: TopicId::METADATA, partition: PartitionIndex(0) });
        let end = Some(Offset(100));
        for (next_offset, is_read) in [(99, false), (100, true), (150, true)] {
            let mut progress = Progress::new(0, Start::Beginning, 1);
            assert_eq!(progress.opened(seed, &opened_at(next_offset), end), is_read, "from {next_offset}");
            assert_eq!(progress.position(), Some(Offset(next_offset)));
        }
        assert!(!Progress::new(0, Start::Beginning, 1).opened(seed, &opened_at(150), None), "it follows");
    }
}
