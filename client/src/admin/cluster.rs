//! What operators ask: how the cluster is, who is to leave, what is to move, who may do what.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use quire_protocol::rpc::control::{self, request, response};
use quire_protocol::{BrokerId, PartitionIndex};
use tokio::time::timeout;

use super::{Admin, Broker, PartitionDescription, describe_broker, describe_partition, other_answer};
use crate::connection::Connection;
use crate::error::Error;

/// How long each broker is waited for that is asked about its own replicas.
pub(super) const EACH_BROKER_TIME: Duration = Duration::from_secs(2);

/// How a cluster is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClusterStatus {
    /// Its id.
    pub cluster_id: String,
    /// The broker that decides about the cluster; `None` while there is none, or nobody asked knows it.
    pub controller: Option<BrokerId>,
    /// Counts the controllers' leaderships; 0 for a broker that is its own controller.
    pub controller_term: u64,
    /// The brokers that elect the controller.
    pub voters: Vec<BrokerId>,
    /// The brokers that only follow the metadata.
    pub learners: Vec<BrokerId>,
    /// Its brokers, by number.
    pub brokers: Vec<BrokerStatus>,
    /// How many partitions there are.
    pub partitions: u32,
    /// Of these, how many lack an in-sync replica.
    pub under_replicated: u32,
    /// How many have no leader.
    pub offline: u32,
    /// How many have a leader that may lack acknowledged records, and that nobody has followed yet.
    pub recovering: u32,
    /// How many are getting other replicas.
    pub reassigning: u32,
    /// How many are not led by their preferred leader, although it is in sync.
    pub unbalanced: u32,
    /// How many replicas may lack what was acknowledged, on the brokers that could be asked.
    pub suspect_count: u32,
    /// The first of them, of each broker.
    pub suspects: Vec<SuspectReplica>,
    /// The brokers that were not asked about their replicas, or did not answer.
    pub unasked: Vec<BrokerId>,
}

/// A replica that may lack what was acknowledged: it leads nothing until it caught up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SuspectReplica {
    /// The broker that holds it.
    pub broker: BrokerId,
    /// The topic's name.
    pub topic: String,
    /// The partition.
    pub partition: PartitionIndex,
    /// What happened to it.
    pub why: String,
}

/// How a broker is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerStatus {
    /// Which one.
    pub broker: Broker,
    /// Counts its starts.
    pub epoch: u64,
    /// Whether it is heard of.
    pub state: BrokerState,
    /// How many partitions it leads.
    pub leads: u32,
    /// Of how many it is the preferred leader.
    pub preferred: u32,
    /// How many replicas it holds.
    pub replicas: u32,
    /// How many of them are in sync.
    pub in_sync: u32,
}

/// Whether a broker is heard of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BrokerState {
    /// It is, and may lead.
    Unfenced,
    /// It is, and leads only what nobody else can.
    Draining,
    /// It is not, or knows too little yet.
    Fenced,
}

/// A partition's move, planned and not begun.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionMove {
    /// The topic's name.
    pub topic: String,
    /// The partition.
    pub partition: PartitionIndex,
    /// The replicas it has, the preferred leader first.
    pub from: Vec<BrokerId>,
    /// The replicas it is to have.
    pub to: Vec<BrokerId>,
}

impl PartitionMove {
    /// Whether records have to be copied; if not, only the preferred leader changes.
    pub fn copies(&self) -> bool {
        self.to.iter().any(|id| !self.from.contains(id))
    }
}

/// A right: who may do what with which topics, or groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acl {
    /// A certificate's name, or `*` for everybody who is authenticated.
    pub principal: String,
    /// What it allows.
    pub operation: AclOperation,
    /// The names of topics, with [`AclOperation::Join`] of groups, begin with this; empty is all of them. At most 249 bytes
    /// for topics, 255 for groups.
    pub prefix: String,
}

/// What a right allows. All but [`AclOperation::Join`] are of topics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AclOperation {
    /// Append records.
    Produce,
    /// Read records.
    Consume,
    /// Join groups, commit their offsets, look at them, reset and delete them; what a group consumes takes
    /// [`AclOperation::Consume`] as well.
    Join,
    /// Create, alter and delete topics.
    Manage,
    /// Everything, also with the cluster itself.
    Administer,
}

/// Asks, and takes the answer of its kind.
macro_rules! ask {
    ($admin:expr, $what:literal, $kind:ident, $request:expr) => {{
        let connection = $admin.client.brokers().any().await?;
        match connection.rpc($what, request::Body::$kind($request)).await? {
            response::Body::$kind(answer) => (answer, connection),
            _ => return Err(other_answer(&connection, $what)),
        }
    }};
}

impl Admin {
    /// How the cluster is. One broker says what the metadata holds; each that is heard of is asked for its own replicas,
    /// for at most two seconds.
    ///
    /// # Errors
    /// If the principal is no administrator, or as every request.
    pub async fn cluster_status(&self) -> Result<ClusterStatus, Error> {
        let (answer, connection) =
            ask!(self, "cluster status", ClusterStatus, control::ClusterStatusRequest {});
        let answered_by = BrokerId(answer.answered_by);
        let ids = |ids: &[u32]| ids.iter().copied().map(BrokerId).collect();
        let mut status = ClusterStatus {
            controller: answer.controller_id.map(BrokerId),
            controller_term: answer.controller_term,
            voters: ids(&answer.voters),
            learners: ids(&answer.learners),
            partitions: answer.partitions,
            under_replicated: answer.under_replicated,
            offline: answer.offline,
            recovering: answer.recovering,
            reassigning: answer.reassigning,
            unbalanced: answer.unbalanced,
            suspect_count: 0,
            suspects: Vec::new(),
            unasked: Vec::new(),
            cluster_id: answer.cluster_id.clone(),
            brokers: answer
                .brokers
                .iter()
                .map(|broker| status_of(&connection, broker.clone()))
                .collect::<Result<_, _>>()?,
        };
        status.take_suspects(answered_by, answer);
        self.ask_the_others(&mut status, answered_by).await;
        Ok(status)
    }

    /// A replica's state is known where it is. A broker that does not answer is named, and fails nothing.
    async fn ask_the_others(&self, status: &mut ClusterStatus, answered_by: BrokerId) {
        let others: Vec<_> = status.brokers.iter().filter(|other| other.broker.id != answered_by).collect();
        let mut asked: FuturesUnordered<_> = others
            .into_iter()
            .map(|other| {
                let (id, is_there) = (other.broker.id, other.state != BrokerState::Fenced);
                async move {
                    let answer = async {
                        let connection = self.client.metadata().broker(id).await.ok()?;
                        let body = request::Body::ClusterStatus(control::ClusterStatusRequest {});
                        match connection.rpc("cluster status", body).await.ok()? {
                            response::Body::ClusterStatus(answer) => Some(answer),
                            _ => None,
                        }
                    };
                    let answer = async { if is_there { answer.await } else { None } };
                    (id, timeout(EACH_BROKER_TIME, answer).await.ok().flatten())
                }
            })
            .collect();
        let mut answers = Vec::new();
        while let Some(answer) = asked.next().await {
            answers.push(answer);
        }
        drop(asked);
        answers.sort_by_key(|(id, _)| *id);
        for (id, answer) in answers {
            match answer {
                Some(answer) => status.take_suspects(id, answer),
                None => status.unasked.push(id),
            }
        }
    }

    /// Moves leaderships away from a broker; answers how many nobody else can take yet.
    ///
    /// # Errors
    /// If the principal is no administrator, there is no such broker, or as every request.
    pub async fn drain_broker(&self, broker: BrokerId) -> Result<u32, Error> {
        let request = control::DrainBrokerRequest { broker_id: broker.0, undo: false };
        let (answer, _) = ask!(self, "drain broker", DrainBroker, request);
        Ok(answer.leaderships)
    }

    /// Lets a broker that was drained lead again.
    ///
    /// # Errors
    /// As [`Admin::drain_broker`].
    pub async fn undrain_broker(&self, broker: BrokerId) -> Result<(), Error> {
        let request = control::DrainBrokerRequest { broker_id: broker.0, undo: true };
        ask!(self, "drain broker", DrainBroker, request);
        Ok(())
    }

    /// Removes a broker that holds no replica from the cluster, for good.
    ///
    /// # Errors
    /// If the principal is no administrator, the broker holds replicas, there is no such broker, or as every request.
    pub async fn remove_broker(&self, broker: BrokerId) -> Result<(), Error> {
        ask!(self, "remove broker", RemoveBroker, control::RemoveBrokerRequest { broker_id: broker.0 });
        Ok(())
    }

    /// What would have to move for brokers to hold and lead equally much, those in `without` nothing. Changes nothing.
    ///
    /// # Errors
    /// If the principal is no administrator, a broker does not exist, or as every request.
    pub async fn plan_rebalance(&self, without: &[BrokerId]) -> Result<Vec<PartitionMove>, Error> {
        let request = control::PlanRebalanceRequest { without: without.iter().map(|id| id.0).collect() };
        let (answer, _) = ask!(self, "plan rebalance", PlanRebalance, request);
        let ids = |ids: Vec<u32>| ids.into_iter().map(BrokerId).collect();
        let planned = |planned: control::PartitionMove| PartitionMove {
            topic: planned.topic,
            partition: PartitionIndex(planned.partition),
            from: ids(planned.from),
            to: ids(planned.to),
        };
        Ok(answer.moves.into_iter().map(planned).collect())
    }

    /// Gives a partition other replicas, the preferred leader first; `None` gives up a reassignment under way. Answers
    /// the partition as it is then, without the state of its log.
    ///
    /// # Errors
    /// If the principal is no administrator, the replicas can not be those, or as every request.
    pub async fn reassign(
        &self,
        topic: &str,
        partition: PartitionIndex,
        replicas: Option<&[BrokerId]>,
    ) -> Result<PartitionDescription, Error> {
        let request = control::ReassignRequest {
            topic: topic.to_owned(),
            partition: partition.0,
            replicas: replicas.into_iter().flatten().map(|id| id.0).collect(),
            give_up: replicas.is_none(),
        };
        let (answer, connection) = ask!(self, "reassign", Reassign, request);
        let partition =
            answer.partition.ok_or_else(|| connection.protocol("its answer lacks the partition"))?;
        Ok(describe_partition(partition))
    }

    /// Has preferred leaders lead where they are in sync: of one topic, or of all. Answers how many leaders changed.
    ///
    /// # Errors
    /// If the principal is no administrator, there is no such topic, or as every request.
    pub async fn elect_preferred_leaders(&self, topic: Option<&str>) -> Result<u32, Error> {
        let topic = topic.unwrap_or_default().to_owned();
        let request = control::ElectLeadersRequest { topic, unclean_partition: None };
        let (answer, _) = ask!(self, "elect leaders", ElectLeaders, request);
        Ok(answer.elected)
    }

    /// Has somebody lead a partition that nobody can lead without loss. **Acknowledged records are lost.**
    ///
    /// # Errors
    /// If the principal is no administrator, the partition has a leader, no broker that holds it is there, or as every
    /// request.
    pub async fn elect_unclean_leader(&self, topic: &str, partition: PartitionIndex) -> Result<(), Error> {
        let request =
            control::ElectLeadersRequest { topic: topic.to_owned(), unclean_partition: Some(partition.0) };
        ask!(self, "elect leaders", ElectLeaders, request);
        Ok(())
    }

    /// Gives a right.
    ///
    /// # Errors
    /// If the principal is no administrator, the right makes no sense, or as every request.
    pub async fn add_acl(&self, acl: Acl) -> Result<(), Error> {
        ask!(
            self,
            "add right",
            ChangeAcl,
            control::ChangeAclRequest { acl: Some(acl.into()), remove: false }
        );
        Ok(())
    }

    /// Takes a right away.
    ///
    /// # Errors
    /// If the principal is no administrator, there is no such right, or as every request.
    pub async fn remove_acl(&self, acl: Acl) -> Result<(), Error> {
        ask!(
            self,
            "remove right",
            ChangeAcl,
            control::ChangeAclRequest { acl: Some(acl.into()), remove: true }
        );
        Ok(())
    }

    /// Every right that was given.
    ///
    /// # Errors
    /// If the principal is no administrator, or as every request.
    pub async fn list_acls(&self) -> Result<Vec<Acl>, Error> {
        let (answer, _) = ask!(self, "list rights", ListAcls, control::ListAclsRequest {});
        // A right that this version does not know is none that it can show.
        Ok(answer.acls.into_iter().filter_map(known_acl).collect())
    }
}

impl ClusterStatus {
    fn take_suspects(&mut self, broker: BrokerId, answer: control::ClusterStatusResponse) {
        self.suspect_count += answer.suspect_count;
        self.suspects.extend(answer.suspects.into_iter().map(|suspect| SuspectReplica {
            broker,
            topic: suspect.topic,
            partition: PartitionIndex(suspect.partition),
            why: suspect.why,
        }));
        // Whoever asks the controller itself hears of it first.
        if answer.controller_id == Some(broker.0) && answer.controller_term >= self.controller_term {
            self.controller = Some(broker);
            self.controller_term = answer.controller_term;
        }
    }
}

fn status_of(connection: &Connection, status: control::BrokerStatus) -> Result<BrokerStatus, Error> {
    let state = match status.state() {
        control::BrokerState::Unfenced => BrokerState::Unfenced,
        control::BrokerState::Draining => BrokerState::Draining,
        control::BrokerState::Fenced => BrokerState::Fenced,
    };
    let broker = status.broker.ok_or_else(|| connection.protocol("its answer lacks a broker"))?;
    Ok(BrokerStatus {
        broker: describe_broker(broker),
        epoch: status.epoch,
        state,
        leads: status.leads,
        preferred: status.preferred,
        replicas: status.replicas,
        in_sync: status.in_sync,
    })
}

impl From<Acl> for control::Acl {
    fn from(acl: Acl) -> control::Acl {
        let operation = match acl.operation {
            AclOperation::Produce => control::AclOperation::Produce,
            AclOperation::Consume => control::AclOperation::Consume,
            AclOperation::Join => control::AclOperation::Join,
            AclOperation::Manage => control::AclOperation::Manage,
            AclOperation::Administer => control::AclOperation::Administer,
        };
        let (topic_prefix, group_prefix) = match acl.operation {
            AclOperation::Join => (String::new(), acl.prefix),
            _ => (acl.prefix, String::new()),
        };
        control::Acl { principal: acl.principal, operation: operation.into(), topic_prefix, group_prefix }
    }
}

fn known_acl(acl: control::Acl) -> Option<Acl> {
    let operation = match acl.operation() {
        control::AclOperation::Produce => AclOperation::Produce,
        control::AclOperation::Consume => AclOperation::Consume,
        control::AclOperation::Join => AclOperation::Join,
        control::AclOperation::Manage => AclOperation::Manage,
        control::AclOperation::Administer => AclOperation::Administer,
        control::AclOperation::None => return None,
    };
    let prefix = if operation == AclOperation::Join { acl.group_prefix } else { acl.topic_prefix };
    Some(Acl { principal: acl.principal, operation, prefix })
}
