//! The controller: the replicated machine that owns the cluster's metadata.
//!
//! [`Controller::decide`](Replicated::decide) turns a request into records and a response, on applied and pending
//! state; applying the committed records is the only way the [`Image`] changes. Deciding is split by what is decided:
//! `topics`, `brokers`, `in_sync`, `reassignment`, `producers`, `access`; `placement` chooses who holds a partition, and
//! `leadership` says what becomes of one when anything around it changes. [`proposals`] is the controller on a log that
//! other nodes write to as well; [`liveness`] tells which brokers are heard of, [`preferred`] who is to lead again.

mod access;
mod brokers;
pub mod image;
mod in_sync;
mod leadership;
pub mod liveness;
mod placement;
pub mod preferred;
mod producers;
pub mod proposals;
mod reassignment;
pub mod rebalance;
pub mod records;
mod refusal;
mod request;
mod topics;
pub mod wire;

use std::sync::Arc;

use quire_protocol::{Timestamp, TopicId, TopicPartition};

use crate::Random;
use crate::machine::{Decision, Replicated};
pub use image::{Conflict, Image};
pub use records::Record;
pub use refusal::Refusal;
pub use request::{AlterTopic, ChangeInSync, CreateTopic, Reassign, RegisterBroker, Request, Response};

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
        let after = self.latest().after(&records);
        let topic = after.topic(id).expect("the topic was found or created").clone();
        let records = if validate_only { Vec::new() } else { records };
        Decision { records, response: Response::Topic(topic) }
    }

    fn decide_partition(&self, id: TopicPartition, records: Vec<Record>) -> Decision<Record, Response> {
        let after = self.latest().after(&records);
        let state = after.partition(id).expect("the partition was found").clone();
        Decision { records, response: Response::Partition { id, state } }
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
            Request::FenceBroker { broker, epoch } => done(brokers::fence(image, broker, epoch)?),
            Request::UnfenceBroker { broker, epoch } => done(brokers::unfence(image, broker, epoch)?),
            Request::DrainBroker { broker, epoch } => {
                let (leaderships, records) = brokers::drain(image, broker, epoch)?;
                Ok(Decision { records, response: Response::Draining { leaderships } })
            }
            Request::RemoveBroker { broker } => done(brokers::remove(image, broker)?),
            Request::ReportSuspect { broker, epoch, partition } => {
                done(brokers::report_suspect(image, broker, epoch, partition)?)
            }
            Request::ChangeInSync(request) => {
                let id = request.partition;
                let records = in_sync::change(image, request)?;
                Ok(self.decide_partition(id, records))
            }
            Request::Reassign(request) => {
                let id = request.partition;
                let records = reassignment::reassign(image, request)?;
                Ok(self.decide_partition(id, records))
            }
            Request::ElectPreferred { partitions } => {
                let (elected, records) = leadership::elect_preferred(image, &partitions);
                Ok(Decision { records, response: Response::Elected { partitions: elected } })
            }
            Request::ElectUnclean { partition } => {
                let records = leadership::elect_unclean(image, partition)?;
                Ok(self.decide_partition(partition, records))
            }
            Request::AllocateProducerIds { broker, epoch } => {
                let (first, record) = producers::allocate(image, broker, epoch)?;
                let count = quire_protocol::limits::PRODUCER_ID_BLOCK;
                Ok(Decision { records: vec![record], response: Response::ProducerIds { first, count } })
            }
            Request::AddAcl(acl) => done(access::add_acl(image, acl)?),
            Request::RemoveAcl(acl) => done(access::remove_acl(image, acl)?),
            Request::IssueToken { hash, expires_at } => {
                done(access::issue_token(image, now, hash, expires_at)?)
            }
            Request::RedeemToken { hash, redeemer } => {
                let (broker, records) = access::redeem_token(image, now, hash, redeemer)?;
                Ok(Decision { records, response: Response::TokenRedeemed { broker } })
            }
            Request::SetAuthority { sealed } => done(access::set_authority(image, sealed)?),
            Request::RevokeCertificate { serial } => done(access::revoke_certificate(image, serial)?),
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
            Request::HoldTopic { id, broker, partitions, missing } => {
                let records = topics::hold(image, id, broker, partitions, missing).into_iter().collect();
                Ok(Decision { records, response: Response::TopicHeld })
            }
        }
    }
}

/// A decision that has nothing to tell but that it was made.
fn done(records: Vec<Record>) -> Result<Decision<Record, Response>, Refusal> {
    Ok(Decision { records, response: Response::Done })
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
