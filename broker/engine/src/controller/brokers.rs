//! Decisions about the cluster's brokers.

use super::image::{Broker, Image};
use super::records::Record;
use super::{Refusal, RegisterBroker};

/// Decides a registration: the cluster is created with its first broker.
pub(super) fn register(image: &Image, request: RegisterBroker) -> Result<(u64, Vec<Record>), Refusal> {
    let mut records = Vec::new();
    match image.cluster_id() {
        None => records.push(Record::ClusterCreated { cluster_id: request.cluster_id.into() }),
        Some(have) if have != request.cluster_id => {
            return Err(Refusal::OtherCluster { have: have.to_owned(), given: request.cluster_id });
        }
        Some(_) => {}
    }
    let epoch = image.broker(request.broker).map_or(0, |known| known.epoch) + 1;
    records.push(Record::BrokerRegistered(Broker {
        id: request.broker,
        epoch,
        host: request.host,
        port: request.port,
        rack: request.rack,
    }));
    Ok((epoch, records))
}
