//! Requests, answers and refusals as brokers send them to the active controller and back.
//!
//! A refusal keeps its code and its sentence; whoever is refused elsewhere has nothing else to go by.

use prost::Message;
use quire_protocol::rpc::controller::{self as sent, request::Body, response::Body as Answer};
use quire_protocol::{BrokerId, ErrorCode, LeaderEpoch, PartitionIndex, Timestamp, TopicPartition, limits};
use std::sync::Arc;

use super::image::snapshot::SnapshotError;
use super::image::{Acl, Partition, Topic};
use super::records::{DecodeError, fixed, fixed_or_zeros, topic_id};
use super::{AlterTopic, ChangeInSync, CreateTopic, Reassign, Refusal, RegisterBroker, Request, Response};

/// Bytes that are no request, answer or refusal this version understands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Longer than any control message.
    #[error("it has {0} bytes, at most {max} are read", max = limits::RPC_BYTES_MAX)]
    TooLong(usize),
    /// Malformed, of a kind that this version does not know, or with a field out of range.
    #[error(transparent)]
    Malformed(#[from] DecodeError),
    /// A topic in it that does not fit together.
    #[error(transparent)]
    Topic(#[from] SnapshotError),
}

impl From<prost::DecodeError> for WireError {
    fn from(error: prost::DecodeError) -> WireError {
        WireError::Malformed(error.into())
    }
}

impl Request {
    /// The request as it is sent.
    pub fn encode(&self) -> Vec<u8> {
        sent::Request { body: Some(self.to_sent()) }.encode_to_vec()
    }

    /// Reads a request.
    ///
    /// # Errors
    /// If the bytes are none.
    pub fn decode(bytes: &[u8]) -> Result<Request, WireError> {
        check_length(bytes)?;
        let body = sent::Request::decode(bytes)?.body.ok_or(DecodeError::Unknown)?;
        Ok(Request::from_sent(body)?)
    }

    fn to_sent(&self) -> Body {
        match self.clone() {
            Request::RegisterBroker(request) => Body::RegisterBroker(request.to_sent()),
            Request::FenceBroker { broker, epoch } => Body::FenceBroker(broker_epoch(broker, epoch)),
            Request::UnfenceBroker { broker, epoch } => Body::UnfenceBroker(broker_epoch(broker, epoch)),
            Request::DrainBroker { broker, epoch } => Body::DrainBroker(broker_epoch(broker, epoch)),
            Request::RemoveBroker { broker } => Body::RemoveBroker(broker.0),
            Request::ChangeInSync(request) => Body::ChangeInSync(request.to_sent()),
            Request::ReportSuspect { broker, epoch, partition } => Body::ReportSuspect(sent::ReportSuspect {
                broker: Some(broker_epoch(broker, epoch)),
                partition: Some(partition_id(partition)),
            }),
            Request::AllocateProducerIds { broker, epoch } => {
                Body::AllocateProducerIds(broker_epoch(broker, epoch))
            }
            Request::Reassign(request) => Body::Reassign(sent::Reassign {
                partition: Some(partition_id(request.partition)),
                is_given_up: request.replicas.is_none(),
                replicas: request.replicas.into_iter().flatten().map(|id| id.0).collect(),
            }),
            Request::ElectPreferred { partitions } => Body::ElectPreferred(sent::ElectPreferred {
                partitions: partitions.into_iter().map(partition_id).collect(),
            }),
            Request::ElectUnclean { partition } => Body::ElectUnclean(partition_id(partition)),
            Request::CreateTopic(request) => Body::CreateTopic(sent::CreateTopic {
                name: request.name,
                partitions: request.partitions,
                replicas: request.replicas,
                config: request.config,
                validate_only: request.validate_only,
            }),
            Request::AlterTopic(request) => Body::AlterTopic(sent::AlterTopic {
                name: request.name,
                partitions: request.partitions,
                set_config: request.set_config,
                unset_config: request.unset_config,
            }),
            Request::DeleteTopic { name } => Body::DeleteTopic(name),
            Request::ConfirmTopicDeletion { id, broker } => {
                Body::ConfirmTopicDeletion(sent::ConfirmTopicDeletion {
                    topic_id: id.0.to_vec(),
                    broker_id: broker.0,
                })
            }
            Request::HoldTopic { id, broker, partitions, missing } => Body::HoldTopic(sent::HoldTopic {
                topic_id: id.0.to_vec(),
                broker_id: broker.0,
                partitions,
                missing: missing.into_iter().map(|index| index.0).collect(),
            }),
            Request::AddAcl(acl) => Body::AddAcl(acl.to_stored()),
            Request::RemoveAcl(acl) => Body::RemoveAcl(acl.to_stored()),
            Request::IssueToken { hash, expires_at } => {
                Body::IssueToken(sent::IssueToken { secret_hash: hash.to_vec(), expires_at: expires_at.0 })
            }
            Request::RedeemToken { hash, redeemer } => Body::RedeemToken(sent::RedeemToken {
                secret_hash: hash.to_vec(),
                redeemer: redeemer.to_vec(),
            }),
            Request::SetAuthority { sealed } => Body::SetAuthority(sealed.to_vec()),
            Request::RevokeCertificate { serial } => Body::RevokeCertificate(serial.to_vec()),
        }
    }

    fn from_sent(body: Body) -> Result<Request, DecodeError> {
        Ok(match body {
            Body::RegisterBroker(sent) => Request::RegisterBroker(RegisterBroker::from_sent(sent)?),
            Body::FenceBroker(sent) => {
                Request::FenceBroker { broker: BrokerId(sent.broker_id), epoch: sent.broker_epoch }
            }
            Body::UnfenceBroker(sent) => {
                Request::UnfenceBroker { broker: BrokerId(sent.broker_id), epoch: sent.broker_epoch }
            }
            Body::DrainBroker(sent) => {
                Request::DrainBroker { broker: BrokerId(sent.broker_id), epoch: sent.broker_epoch }
            }
            Body::RemoveBroker(broker) => Request::RemoveBroker { broker: BrokerId(broker) },
            Body::ChangeInSync(sent) => Request::ChangeInSync(ChangeInSync::from_sent(sent)?),
            Body::ReportSuspect(sent) => {
                let broker = sent.broker.ok_or(DecodeError::Field("broker"))?;
                Request::ReportSuspect {
                    broker: BrokerId(broker.broker_id),
                    epoch: broker.broker_epoch,
                    partition: partition(sent.partition)?,
                }
            }
            Body::AllocateProducerIds(sent) => {
                Request::AllocateProducerIds { broker: BrokerId(sent.broker_id), epoch: sent.broker_epoch }
            }
            Body::Reassign(sent) => Request::Reassign(Reassign {
                partition: partition(sent.partition)?,
                replicas: (!sent.is_given_up).then(|| sent.replicas.into_iter().map(BrokerId).collect()),
            }),
            Body::ElectPreferred(sent) => Request::ElectPreferred {
                partitions: sent
                    .partitions
                    .into_iter()
                    .map(|id| partition(Some(id)))
                    .collect::<Result<_, _>>()?,
            },
            Body::ElectUnclean(sent) => Request::ElectUnclean { partition: partition(Some(sent))? },
            Body::CreateTopic(sent) => Request::CreateTopic(CreateTopic {
                name: sent.name,
                partitions: sent.partitions,
                replicas: sent.replicas,
                config: sent.config,
                validate_only: sent.validate_only,
            }),
            Body::AlterTopic(sent) => Request::AlterTopic(AlterTopic {
                name: sent.name,
                partitions: sent.partitions,
                set_config: sent.set_config,
                unset_config: sent.unset_config,
            }),
            Body::DeleteTopic(name) => Request::DeleteTopic { name },
            Body::ConfirmTopicDeletion(sent) => Request::ConfirmTopicDeletion {
                id: topic_id(&sent.topic_id)?,
                broker: BrokerId(sent.broker_id),
            },
            Body::HoldTopic(sent) => Request::HoldTopic {
                id: topic_id(&sent.topic_id)?,
                broker: BrokerId(sent.broker_id),
                partitions: sent.partitions,
                missing: sent.missing.into_iter().map(PartitionIndex).collect(),
            },
            Body::AddAcl(acl) => Request::AddAcl(Acl::from_stored(Some(acl))?),
            Body::RemoveAcl(acl) => Request::RemoveAcl(Acl::from_stored(Some(acl))?),
            Body::IssueToken(sent) => Request::IssueToken {
                hash: fixed(&sent.secret_hash, "secret hash")?,
                expires_at: Timestamp(sent.expires_at),
            },
            Body::RedeemToken(sent) => Request::RedeemToken {
                hash: fixed(&sent.secret_hash, "secret hash")?,
                redeemer: fixed(&sent.redeemer, "redeemer")?,
            },
            Body::SetAuthority(sealed) => Request::SetAuthority { sealed: sealed.into() },
            Body::RevokeCertificate(serial) => Request::RevokeCertificate { serial: serial.into() },
        })
    }
}

impl RegisterBroker {
    fn to_sent(&self) -> sent::RegisterBroker {
        sent::RegisterBroker {
            cluster_id: self.cluster_id.clone(),
            broker_id: self.broker.0,
            incarnation: self.incarnation.to_vec(),
            directory: self.directory.to_vec(),
            host: self.host.clone(),
            port: self.port.into(),
            peer_host: self.peer_host.clone(),
            peer_port: self.peer_port.into(),
            rack: self.rack.clone(),
            node: self.node,
            suspects: self.suspects.iter().copied().map(partition_id).collect(),
            is_alone: self.is_alone,
        }
    }

    fn from_sent(sent: sent::RegisterBroker) -> Result<RegisterBroker, DecodeError> {
        let port = |port, field| u16::try_from(port).map_err(|_| DecodeError::Field(field));
        let suspects = sent.suspects.into_iter().map(|id| partition(Some(id)));
        Ok(RegisterBroker {
            cluster_id: sent.cluster_id,
            broker: BrokerId(sent.broker_id),
            incarnation: fixed_or_zeros(&sent.incarnation, "incarnation")?,
            directory: fixed_or_zeros(&sent.directory, "directory")?,
            host: sent.host,
            port: port(sent.port, "port")?,
            peer_host: sent.peer_host,
            peer_port: port(sent.peer_port, "peer port")?,
            rack: sent.rack,
            node: sent.node,
            suspects: suspects.collect::<Result<_, _>>()?,
            is_alone: sent.is_alone,
        })
    }
}

impl ChangeInSync {
    fn to_sent(&self) -> sent::ChangeInSync {
        sent::ChangeInSync {
            partition: Some(partition_id(self.partition)),
            leader: self.leader.0,
            leader_epoch: self.leader_epoch.0,
            partition_epoch: self.partition_epoch,
            in_sync: self.in_sync.iter().map(|(broker, epoch)| broker_epoch(*broker, *epoch)).collect(),
        }
    }

    fn from_sent(sent: sent::ChangeInSync) -> Result<ChangeInSync, DecodeError> {
        let member = |sent: sent::BrokerEpoch| (BrokerId(sent.broker_id), sent.broker_epoch);
        Ok(ChangeInSync {
            partition: partition(sent.partition)?,
            leader: BrokerId(sent.leader),
            leader_epoch: LeaderEpoch(sent.leader_epoch),
            partition_epoch: sent.partition_epoch,
            in_sync: sent.in_sync.into_iter().map(member).collect(),
        })
    }
}

impl Response {
    /// The answer as it is sent.
    pub fn encode(&self) -> Vec<u8> {
        let body = match self {
            Response::Done => Answer::Done(sent::Done {}),
            Response::BrokerRegistered { epoch } => Answer::BrokerRegistered(*epoch),
            Response::Draining { leaderships } => Answer::Draining(*leaderships),
            Response::Partition { id, state } => Answer::Partition(sent::PartitionState {
                topic_id: id.topic.0.to_vec(),
                state: Some(state.to_stored()),
            }),
            Response::Elected { partitions } => Answer::Elected(*partitions),
            Response::ProducerIds { first, count } => {
                Answer::ProducerIds(sent::ProducerIds { first: *first, count: *count })
            }
            Response::TokenRedeemed { broker } => Answer::TokenRedeemed(broker.0),
            Response::Topic(topic) => Answer::Topic(topic.to_stored()),
            Response::TopicDeleted { id } => Answer::TopicDeleted(id.0.to_vec()),
            Response::DeletionConfirmed => Answer::DeletionConfirmed(sent::Done {}),
            Response::TopicHeld => Answer::TopicHeld(sent::Done {}),
        };
        sent::Response { body: Some(body) }.encode_to_vec()
    }

    /// Reads an answer.
    ///
    /// # Errors
    /// If the bytes are none.
    pub fn decode(bytes: &[u8]) -> Result<Response, WireError> {
        check_length(bytes)?;
        let body = sent::Response::decode(bytes)?.body.ok_or(DecodeError::Unknown)?;
        Ok(match body {
            Answer::Done(_) => Response::Done,
            Answer::BrokerRegistered(epoch) => Response::BrokerRegistered { epoch },
            Answer::Draining(leaderships) => Response::Draining { leaderships },
            Answer::Partition(sent) => {
                let state = Partition::from_stored(sent.state.ok_or(DecodeError::Field("partition"))?);
                let id = TopicPartition { topic: topic_id(&sent.topic_id)?, partition: state.index };
                Response::Partition { id, state: Arc::new(state) }
            }
            Answer::Elected(partitions) => Response::Elected { partitions },
            Answer::ProducerIds(sent) => Response::ProducerIds { first: sent.first, count: sent.count },
            Answer::TokenRedeemed(broker) => Response::TokenRedeemed { broker: BrokerId(broker) },
            Answer::Topic(topic) => Response::Topic(Arc::new(Topic::from_stored(topic)?)),
            Answer::TopicDeleted(id) => Response::TopicDeleted { id: topic_id(&id)? },
            Answer::DeletionConfirmed(_) => Response::DeletionConfirmed,
            Answer::TopicHeld(_) => Response::TopicHeld,
        })
    }
}

impl Refusal {
    /// The refusal as it is sent.
    pub fn encode(&self) -> Vec<u8> {
        let mut sentence = self.to_string();
        if sentence.len() > limits::ERROR_TEXT_BYTES_MAX {
            let end = (0..=limits::ERROR_TEXT_BYTES_MAX).rev().find(|at| sentence.is_char_boundary(*at));
            sentence.truncate(end.unwrap_or_default());
        }
        sent::Refusal { code: self.code().number().into(), sentence }.encode_to_vec()
    }

    /// Reads a refusal. A code that this version does not know counts as a request that it does not understand.
    ///
    /// # Errors
    /// If the bytes are none.
    pub fn decode(bytes: &[u8]) -> Result<Refusal, WireError> {
        check_length(bytes)?;
        let sent = sent::Refusal::decode(bytes)?;
        let code = u16::try_from(sent.code).ok().and_then(ErrorCode::from_number);
        Ok(Refusal::Elsewhere { code: code.unwrap_or(ErrorCode::InvalidRequest), sentence: sent.sentence })
    }
}

fn check_length(bytes: &[u8]) -> Result<(), WireError> {
    if bytes.len() > limits::RPC_BYTES_MAX { Err(WireError::TooLong(bytes.len())) } else { Ok(()) }
}

fn broker_epoch(broker: BrokerId, epoch: u64) -> sent::BrokerEpoch {
    sent::BrokerEpoch { broker_id: broker.0, broker_epoch: epoch }
}

fn partition_id(id: TopicPartition) -> sent::PartitionId {
    sent::PartitionId { topic_id: id.topic.0.to_vec(), partition: id.partition.0 }
}

fn partition(sent: Option<sent::PartitionId>) -> Result<TopicPartition, DecodeError> {
    let sent = sent.ok_or(DecodeError::Field("partition"))?;
    let topic = topic_id(&sent.topic_id)?;
    Ok(TopicPartition { topic, partition: PartitionIndex(sent.partition) })
}
