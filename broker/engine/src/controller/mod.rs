//! The controller: the replicated machine that owns the cluster's metadata.
//!
//! [`Controller::decide`](Replicated::decide) turns a request into records and a response, on applied and pending
//! state; applying the committed records is the only way the [`Image`] changes. Deciding is split by what is decided:
//! `topics`, `brokers`; `placement` chooses who holds a partition. [`proposals`] is the controller on a log that other
//! nodes write to as well.

mod brokers;
pub mod image;
mod placement;
pub mod proposals;
pub mod records;
mod topics;

use std::collections::BTreeMap;
use std::sync::Arc;

use quire_protocol::topic_config::TopicConfigError;
use quire_protocol::{BrokerId, Timestamp, TopicId};

use crate::Random;
use crate::machine::{Decision, Replicated};
pub use image::{Conflict, Image};
pub use records::Record;

/// What the controller can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// A broker started.
    RegisterBroker(RegisterBroker),
    /// Make a topic.
    CreateTopic(CreateTopic),
    /// Add partitions to a topic, or change its settings.
    AlterTopic(AlterTopic),
    /// Delete a topic and all its records.
    DeleteTopic {
        /// Its name.
        name: String,
    },
    /// A broker has removed all it held of a deleted topic.
    ConfirmTopicDeletion {
        /// The topic.
        id: TopicId,
        /// The broker.
        broker: BrokerId,
    },
    /// A broker has the logs of a topic's first partitions on disk.
    HoldTopic {
        /// The topic.
        id: TopicId,
        /// The broker.
        broker: BrokerId,
        /// Of the partitions below this number, those that the broker replicates.
        partitions: u32,
    },
}

/// A broker's registration, at each of its starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegisterBroker {
    /// The cluster it belongs to, or founds.
    pub cluster_id: String,
    /// Its number.
    pub broker: BrokerId,
    /// Where clients reach it.
    pub host: String,
    /// Where clients reach it.
    pub port: u16,
    /// Its failure domain; empty if it was not told.
    pub rack: String,
}

/// A topic to be made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CreateTopic {
    /// Its name.
    pub name: String,
    /// How many partitions.
    pub partitions: u32,
    /// Replicas of each; `None` is three, or as many as there are brokers.
    pub replicas: Option<u32>,
    /// Settings that differ from the defaults.
    pub config: BTreeMap<String, String>,
    /// Only say what would happen.
    pub validate_only: bool,
}

/// Changes to a topic.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AlterTopic {
    /// Its name.
    pub name: String,
    /// How many partitions it is to have; `None` leaves them.
    pub partitions: Option<u32>,
    /// Settings to set.
    pub set_config: BTreeMap<String, String>,
    /// Settings to return to their default.
    pub unset_config: Vec<String>,
}

/// What the controller answers, once the change is applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Response {
    /// The broker is registered.
    BrokerRegistered {
        /// Its broker epoch from now on.
        epoch: u64,
    },
    /// The topic as it is now, or would be if only checked.
    Topic(Arc<image::Topic>),
    /// The topic is deleted.
    TopicDeleted {
        /// The id it had.
        id: TopicId,
    },
    /// The confirmation is kept.
    DeletionConfirmed,
    /// It is known who holds the topic, unless it is gone.
    TopicHeld,
}

/// Why a request is refused; nothing changed. The sentences are for users.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The name is taken.
    #[error("topic \"{name}\" exists already")]
    TopicExists {
        /// The name.
        name: String,
    },
    /// No topic of this name.
    #[error("no topic \"{name}\"{}", nearest.as_ref().map(|n| format!("; did you mean \"{n}\"?")).unwrap_or_default())]
    UnknownTopic {
        /// The name asked for.
        name: String,
        /// An existing name close to it.
        nearest: Option<Arc<str>>,
    },
    /// A name that no topic can have.
    #[error("\"{name}\" is not a topic name: {why}")]
    InvalidTopicName {
        /// The name.
        name: String,
        /// Which rule it breaks.
        why: String,
    },
    /// A partition count out of range.
    #[error("{given} partitions: expected {min} to {max}{}", if *min > 1 { ", since a partition count can not shrink" } else { "" })]
    PartitionCount {
        /// The count asked for.
        given: u32,
        /// The least possible.
        min: u32,
        /// The most possible.
        max: u32,
    },
    /// More partitions than a broker takes.
    #[error("a broker would hold {given} partitions, at most {max} are allowed")]
    BrokerPartitions {
        /// What the fullest broker would hold.
        given: u32,
        /// The limit.
        max: u32,
    },
    /// A replica count that the brokers do not allow.
    #[error("{given} replicas: expected 1 to {brokers}, the number of brokers")]
    ReplicaCount {
        /// The count asked for.
        given: u32,
        /// How many brokers there are.
        brokers: usize,
    },
    /// A topic that could never be produced to.
    #[error("min.insync.replicas = \"{given}\": expected at most {replicas}, the topic's replica count")]
    MinInsyncReplicas {
        /// The value asked for.
        given: u32,
        /// The topic's replica count.
        replicas: u32,
    },
    /// More settings than there are.
    #[error("{given} settings: expected at most {max}")]
    TooManySettings {
        /// How many were given.
        given: usize,
        /// The limit.
        max: usize,
    },
    /// A setting that does not exist, or a value out of range.
    #[error(transparent)]
    Config(#[from] TopicConfigError),
    /// A broker of another cluster.
    #[error("this is cluster {have}, the broker belongs to cluster {given}")]
    OtherCluster {
        /// The cluster's id.
        have: String,
        /// The broker's.
        given: String,
    },
}

/// The machine: the applied image, and what it will be once everything decided is committed.
#[derive(Debug, Clone, Default)]
pub struct Controller {
    applied: Arc<Image>,
    pending: Option<Pending>,
}

#[derive(Debug, Clone)]
struct Pending {
    image: Image,
    /// Records decided and not yet applied; never 0.
    records: usize,
}

impl Controller {
    /// A controller that has applied nothing yet.
    pub fn new() -> Controller {
        Controller::default()
    }

    /// A controller that has applied what led to this image.
    pub fn with_image(image: Arc<Image>) -> Controller {
        Controller { applied: image, pending: None }
    }

    /// The image as of the last applied record.
    pub fn image(&self) -> &Arc<Image> {
        &self.applied
    }

    /// What decisions are made on.
    fn latest(&self) -> &Image {
        self.pending.as_ref().map_or(&*self.applied, |pending| &pending.image)
    }

    /// Makes records pending: what is decided next takes them for granted.
    fn expect(&mut self, records: &[Record]) {
        if records.is_empty() {
            return;
        }
        let image = Image::clone(&self.applied);
        let pending = self.pending.get_or_insert(Pending { image, records: 0 });
        for record in records {
            pending.image.apply(record).expect("a record decided on an image fits that image");
        }
        pending.records += records.len();
    }

    fn decide_topic(
        &mut self,
        id: TopicId,
        records: Vec<Record>,
        validate_only: bool,
    ) -> Decision<Record, Response> {
        let mut after = self.latest().clone();
        for record in &records {
            after.apply(record).expect("a record decided on an image fits that image");
        }
        let topic = after.topic(id).expect("the topic was found or created").clone();
        let records = if validate_only { Vec::new() } else { records };
        Decision { records, response: Response::Topic(topic) }
    }

    fn decide_on_latest(
        &mut self,
        now: Timestamp,
        random: &mut dyn Random,
        request: Request,
    ) -> Result<Decision<Record, Response>, Refusal> {
        let image = self.latest();
        match request {
            Request::RegisterBroker(request) => {
                let (epoch, records) = brokers::register(image, request)?;
                Ok(Decision { records, response: Response::BrokerRegistered { epoch } })
            }
            Request::CreateTopic(request) => {
                let validate_only = request.validate_only;
                let (id, record) = topics::create(image, now, random, request)?;
                Ok(self.decide_topic(id, vec![record], validate_only))
            }
            Request::AlterTopic(request) => {
                let (id, records) = topics::alter(image, random, request)?;
                Ok(self.decide_topic(id, records, false))
            }
            Request::DeleteTopic { name } => {
                let (id, record) = topics::delete(image, now, &name)?;
                Ok(Decision { records: vec![record], response: Response::TopicDeleted { id } })
            }
            Request::ConfirmTopicDeletion { id, broker } => {
                let records = topics::confirm_deletion(image, id, broker).into_iter().collect();
                Ok(Decision { records, response: Response::DeletionConfirmed })
            }
            Request::HoldTopic { id, broker, partitions } => {
                let records = topics::hold(image, id, broker, partitions).into_iter().collect();
                Ok(Decision { records, response: Response::TopicHeld })
            }
        }
    }
}

impl Replicated for Controller {
    type Request = Request;
    type Response = Response;
    type Record = Record;
    type Refusal = Refusal;
    type Conflict = Conflict;

    fn decide(
        &mut self,
        now: Timestamp,
        random: &mut dyn Random,
        request: Request,
    ) -> Result<Decision<Record, Response>, Refusal> {
        let decision = self.decide_on_latest(now, random, request)?;
        self.expect(&decision.records);
        Ok(decision)
    }

    fn apply(&mut self, record: &Record) -> Result<(), Conflict> {
        Arc::make_mut(&mut self.applied).apply(record)?;
        if let Some(pending) = &mut self.pending {
            pending.records -= 1;
            if pending.records == 0 {
                assert!(pending.image == *self.applied, "what was applied is what was decided");
                self.pending = None;
            }
        }
        Ok(())
    }

    fn discard_pending(&mut self) {
        self.pending = None;
    }
}
