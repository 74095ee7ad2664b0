//! The machine that sees a partition's batches through, to be driven by hand: without a connection, a thread or a clock.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use quire_protocol::batch::{BatchBuilder, Compression, Record};
use quire_protocol::stream::{Ack, Acks, Opened};
use quire_protocol::topic_config::MessageTimestampType;
use quire_protocol::{ErrorCode, PartitionIndex, ProducerEpoch, ProducerId, Timestamp, TopicId};

use crate::error::Error;
use crate::retry::{Backoff, Jitter, Retry};

use super::delivery::{Completer, Completion};
use super::pipeline::{self, DeliveryPolicy, Established, Pipeline, ReadyBatch};

/// The sender of one partition's batches, with acknowledgements of all replicas and numbers. Each record goes in a batch of
/// its own. Time is counted from the beginning.
#[derive(Debug)]
pub struct SimulatedPipeline {
    pipeline: Pipeline,
    origin: Instant,
    /// Not in a batch yet, with when they came.
    waiting: VecDeque<(Duration, u64, Bytes)>,
    timeout: Duration,
    /// In a batch, and not ended.
    under_way: Vec<(Arc<Completion>, u64)>,
    actions: Vec<pipeline::Action>,
}

/// What happened.
#[derive(Debug, Clone)]
pub enum Input {
    /// A record is to be sent; its tag says which one has ended.
    Record {
        /// Names it.
        tag: u64,
        /// What it says.
        value: Bytes,
    },
    /// The broker accepted the stream.
    Opened {
        /// What the broker said.
        opened: Opened,
        /// The topic's id.
        topic: TopicId,
        /// Who numbers the stream's batches.
        producer: ProducerId,
    },
    /// No stream could be opened: by a broker's word, or since there is nobody to ask.
    Refused(Option<ErrorCode>),
    /// The oldest unanswered batch is acknowledged.
    Acked(Ack),
    /// The stream ended: by the broker's word, or lost.
    Failed(Option<ErrorCode>),
    /// Time passed.
    Tick,
}

/// What is to be done.
#[derive(Debug, Clone)]
pub enum Action {
    /// Open a stream under this claim.
    Open {
        /// The producer's id, if it has one.
        id: Option<ProducerId>,
        /// An id that can be used no more.
        used_up: Option<ProducerId>,
        /// The producer's epoch.
        epoch: ProducerEpoch,
    },
    /// Write a batch to the stream.
    Write(Bytes),
    /// Drop the stream and what is not yet written to it.
    Abandon,
    /// End the stream.
    Finish,
    /// A record has ended.
    Ended {
        /// Which.
        tag: u64,
        /// With its acknowledgement, or with an error: then only what was never written is certainly not appended.
        acked: Result<Ack, String>,
    },
}

impl SimulatedPipeline {
    /// With nothing to send; `seed` draws its pauses.
    pub fn new(seed: u64, timeout: Duration) -> SimulatedPipeline {
        let policy = DeliveryPolicy { acks: Acks::All, timeout, is_idempotent: true };
        let retry = Retry::new(Backoff::default(), Jitter::from_seed(seed));
        SimulatedPipeline {
            pipeline: Pipeline::new(policy, retry),
            origin: Instant::now(),
            waiting: VecDeque::new(),
            timeout,
            under_way: Vec::new(),
            actions: Vec::new(),
        }
    }

    /// When [`Input::Tick`] is due.
    pub fn deadline(&self) -> Option<Duration> {
        let pipeline = self.pipeline.deadline().map(|due| due.saturating_duration_since(self.origin));
        let waiting = self.waiting.front().map(|(came, ..)| *came + self.timeout);
        [pipeline, waiting].into_iter().flatten().min()
    }

    /// Takes one input; what follows from it.
    pub fn handle(&mut self, now: Duration, input: Input) -> Vec<Action> {
        let mut shown = Vec::new();
        match input {
            Input::Record { tag, value } => self.waiting.push_back((now, tag, value)),
            Input::Opened { opened, topic, producer } => {
                let established = Established { opened, topic, producer: Some(producer) };
                self.step(now, pipeline::Input::Opened(established));
            }
            Input::Refused(code) => self.step(now, pipeline::Input::Refused(error(code))),
            Input::Acked(ack) => self.step(now, pipeline::Input::Acked(ack)),
            Input::Failed(code) => self.step(now, pipeline::Input::Failed(error(code))),
            Input::Tick => {
                let timeout = self.timeout;
                while let Some((_, tag, _)) = self.waiting.pop_front_if(|(came, ..)| *came + timeout <= now) {
                    shown.push(Action::Ended { tag, acked: Err(self.pipeline.timed_out().to_string()) });
                }
                self.step(now, pipeline::Input::Tick);
            }
        }
        while self.pipeline.wants_batch()
            && let Some((_, tag, value)) = self.waiting.pop_front()
        {
            let batch = self.batch(now, tag, value);
            self.step(now, pipeline::Input::Batch(batch));
        }
        if !self.waiting.is_empty() {
            self.step(now, pipeline::Input::Records);
        }
        let actions = std::mem::take(&mut self.actions);
        shown.extend(actions.into_iter().flat_map(|action| self.shown(action)));
        shown
    }

    fn step(&mut self, now: Duration, input: pipeline::Input) {
        self.pipeline.handle(self.origin + now, input, &mut self.actions);
    }

    fn batch(&mut self, now: Duration, tag: u64, value: Bytes) -> ReadyBatch {
        let mut builder = BatchBuilder::new(Compression::None);
        let record = Record { value: Some(value), ..Record::default() };
        let at = Timestamp(i64::try_from(now.as_millis()).unwrap_or(i64::MAX));
        builder.push(&record, at).expect("one record fits into a batch");
        let bytes = builder.finish_numbered(self.pipeline.next_number()).expect("nothing to compress");
        let completer = Completer::new(Completion::new(
            "simulated".into(),
            PartitionIndex(0),
            MessageTimestampType::CreateTime,
        ));
        self.under_way.push((Arc::clone(completer.completion()), tag));
        let begun_at = self.origin + now;
        ReadyBatch { bytes, completer, memory: 0, begun_at, records: 1, numbered: None, times_sent: 0 }
    }

    fn shown(&mut self, action: pipeline::Action) -> Vec<Action> {
        match action {
            pipeline::Action::Open => {
                let claim = self.pipeline.claim().expect("its batches are numbered");
                vec![Action::Open { id: claim.id, used_up: claim.used_up, epoch: claim.epoch }]
            }
            pipeline::Action::Write(bytes) => vec![Action::Write(bytes)],
            pipeline::Action::Abandon => vec![Action::Abandon],
            pipeline::Action::Finish => vec![Action::Finish],
            pipeline::Action::Complete { completer, outcome, .. } => {
                let is_it = |(completion, _): &(Arc<Completion>, u64)| {
                    Arc::ptr_eq(completion, completer.completion())
                };
                let at = self.under_way.iter().position(is_it).expect("it is under way");
                let (_, tag) = self.under_way.swap_remove(at);
                vec![Action::Ended { tag, acked: outcome.map_err(|error| error.to_string()) }]
            }
            pipeline::Action::RefuseWaiting(error) => {
                let ended = |(_, tag, _)| Action::Ended { tag, acked: Err(error.to_string()) };
                self.waiting.drain(..).map(ended).collect()
            }
        }
    }
}

fn error(code: Option<ErrorCode>) -> Error {
    match code {
        Some(code) => Error::Broker { code, message: "refused".to_owned(), suggestion: None },
        None => Error::ConnectionLost { address: "the leader".to_owned(), why: "lost".to_owned() },
    }
}
