//! Where to read assigned partitions from: where the group has committed, or else where it is to begin.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, FuturesUnordered};
use quire_protocol::rpc::control::{self, request, response};
use quire_protocol::{ErrorCode, Offset, PartitionIndex, TopicId, TopicPartition};

use crate::Client;
use crate::admin::PartitionOffset;
use crate::consumer::Addition;
use crate::error::Error;
use crate::metadata::TopicMetadata;
use crate::offsets::{self, Refused, Waiting};
use crate::position::Position;

use super::coordinator::{Coordinator, unexpected};
use super::membership::{self, Life, Partitions};

/// How long the partitions that can be read wait for those of their topic that can not yet.
const SPARED_AFTER: Duration = Duration::from_secs(1);

/// Assigned partitions, and from where to read them: those that are not among what was found can not be read yet.
#[derive(Debug)]
pub(super) struct Prepared {
    pub life: Life,
    pub partitions: Partitions,
    pub found: Result<Vec<Addition>, Error>,
}

/// What is needed to find out.
#[derive(Debug, Clone)]
pub(super) struct Preparation {
    pub client: Client,
    pub coordinator: Arc<Coordinator>,
    /// Where a partition is begun of which nothing is committed.
    pub from: Position,
    /// How long it is tried.
    pub time_max: Duration,
}

/// What the group has committed.
type Committed = Arc<BTreeMap<TopicPartition, Offset>>;

impl Preparation {
    /// Finds out, after this pause. Each topic comes by itself, as soon as it is known: one whose leaders are away holds up no
    /// other.
    pub(super) fn begin(
        self,
        pause: Duration,
        life: Life,
        partitions: Partitions,
    ) -> BoxStream<'static, Prepared> {
        let found = async move {
            tokio::time::sleep(pause).await;
            match self.committed(&partitions).await {
                Ok(committed) => {
                    let committed = Arc::new(committed);
                    let find = |topic, of_it: &Partitions| -> BoxFuture<'static, _> {
                        let (preparation, committed, of_it) =
                            (self.clone(), Arc::clone(&committed), of_it.clone());
                        Box::pin(async move { preparation.find(topic, of_it, committed).await })
                    };
                    each_topic(life, partitions, find).left_stream()
                }
                Err(error) => stream::iter([Prepared { life, partitions, found: Err(error) }]).right_stream(),
            }
        };
        stream::once(found).flatten().boxed()
    }

    async fn committed(&self, partitions: &Partitions) -> Result<BTreeMap<TopicPartition, Offset>, Error> {
        let body = request::Body::FetchOffsets(control::FetchOffsetsRequest {
            group: self.coordinator.group().to_owned(),
            partitions: membership::write(partitions.keys().copied()),
        });
        let answer = self.coordinator.ask_within(self.time_max, "fetch offsets", body).await?;
        let response::Body::FetchOffsets(answer) = answer else { return Err(unexpected("fetch offsets")) };
        Ok(answer.offsets.iter().filter_map(id_and_offset).collect())
    }

    /// Of partitions of this topic.
    async fn find(
        self,
        topic: TopicId,
        partitions: Partitions,
        committed: Committed,
    ) -> Result<Vec<Addition>, Error> {
        let Some(name) = partitions.values().next() else { return Ok(Vec::new()) };
        let position = |id: &TopicPartition| {
            (id.partition, if committed.contains_key(id) { Position::Beginning } else { self.from })
        };
        let asked: Vec<_> = partitions.keys().map(position).collect();
        // One partition without a leader holds up no other.
        let waiting = Waiting { time_max: self.time_max, spared_after: Some(SPARED_AFTER) };
        let (known, answers) = offsets::list_within(waiting, &self.client, name, &asked).await?;
        if known.id != topic {
            return Err(Error::Broker {
                code: ErrorCode::UnknownTopic,
                message: format!("\"{name}\" was deleted and created again; the group will hear of it"),
                suggestion: None,
            });
        }
        let group = self.coordinator.group();
        Ok(answers.into_iter().filter_map(|answer| addition(group, &known, answer, &committed)).collect())
    }
}

/// Asks for each topic's partitions by themselves.
fn each_topic(
    life: Life,
    partitions: Partitions,
    find: impl Fn(TopicId, &Partitions) -> BoxFuture<'static, Result<Vec<Addition>, Error>>,
) -> FuturesUnordered<BoxFuture<'static, Prepared>> {
    let mut by_topic: BTreeMap<TopicId, Partitions> = BTreeMap::new();
    for (id, name) in partitions {
        by_topic.entry(id.topic).or_default().insert(id, name);
    }
    let prepared = |(topic, partitions)| -> BoxFuture<'static, Prepared> {
        let finding = find(topic, &partitions);
        Box::pin(async move { Prepared { life, partitions, found: finding.await } })
    };
    by_topic.into_iter().map(prepared).collect()
}

/// Where a partition is read from; `None` if that is not known yet. Whoever is to begin where the log has nothing begins as
/// near to it as possible.
fn addition(
    group: &str,
    topic: &Arc<TopicMetadata>,
    answer: Result<PartitionOffset, Refused>,
    committed: &BTreeMap<TopicPartition, Offset>,
) -> Option<Addition> {
    let (partition, offset, high_watermark) = match answer {
        Ok(answer) => (answer.partition, answer.offset, answer.high_watermark),
        Err(Refused::OutOfRange { partition, offset, log_start, high_watermark }) => {
            let nearest = if offset < log_start { log_start } else { high_watermark };
            tracing::warn!(
                group, topic = %topic.name, %partition,
                "it was to begin at offset {offset}, and the log holds {log_start} up to, but not including, \
                 {high_watermark}: beginning at {nearest}"
            );
            (partition, nearest, high_watermark)
        }
        Err(refused) => {
            let error = refused.into_error(topic);
            tracing::info!(group, %error, "a partition is taken up later");
            return None;
        }
    };
    let offset = committed.get(&topic.partition(partition)).copied().unwrap_or(offset);
    Some(Addition { topic: Arc::clone(topic), partition, offset, high_watermark })
}

fn id_and_offset(committed: &control::CommittedOffset) -> Option<(TopicPartition, Offset)> {
    let topic = TopicId::from_slice(&committed.topic_id)?;
    let partition = PartitionIndex(committed.partition);
    Some((TopicPartition { topic, partition }, Offset(committed.offset)))
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::metadata::tests::led_by;

    fn id(topic: u8) -> TopicPartition {
        TopicPartition { topic: TopicId([topic; 16]), partition: PartitionIndex(0) }
    }

    /// Topics were asked about one after another, and the first one's leaders were away for a minute.
    #[test]
    fn a_topic_that_waits_for_its_leaders_holds_up_no_other() {
        let partitions: Partitions = [1, 2, 3].map(|topic| (id(topic), "t".into())).into();
        let find = |topic, _: &Partitions| -> BoxFuture<'static, Result<Vec<Addition>, Error>> {
            match topic == TopicId([1; 16]) {
                true => Box::pin(std::future::pending()),
                false => Box::pin(std::future::ready(Ok(Vec::new()))),
            }
        };
        let mut preparing = each_topic(4, partitions, find);
        let mut came = Vec::new();
        while let Some(Some(prepared)) = preparing.next().now_or_never() {
            assert!(prepared.life == 4 && prepared.found.is_ok());
            came.extend(prepared.partitions.into_keys());
        }
        came.sort();
        assert_eq!((came, preparing.len()), (vec![id(2), id(3)], 1));
    }

    /// It was asked for again and again, never read, and nobody was told.
    #[test]
    fn a_partition_that_lacks_the_offset_to_begin_at_is_begun_as_near_as_possible() {
        let topic = Arc::new(led_by(7, &[None]));
        let (partition, log_start, high_watermark) = (PartitionIndex(0), Offset(10), Offset(20));
        let begun = |offset, committed: &BTreeMap<_, _>| {
            let refused =
                Refused::OutOfRange { partition, offset: Offset(offset), log_start, high_watermark };
            addition("g", &topic, Err(refused), committed)
                .map(|begun| (begun.offset.0, begun.high_watermark.0))
        };
        assert_eq!(begun(3, &BTreeMap::new()), Some((10, 20)));
        assert_eq!(begun(70, &BTreeMap::new()), Some((20, 20)));
        let unknown = Err(Refused::UnknownPartition(partition));
        assert!(addition("g", &topic, unknown, &BTreeMap::new()).is_none(), "it may come");
        // What is committed counts.
        let answer =
            PartitionOffset { partition, offset: log_start, timestamp: None, log_start, high_watermark };
        let committed = BTreeMap::from([(id(7), Offset(15))]);
        let begun = addition("g", &topic, Ok(answer), &committed).expect("it can be read");
        assert_eq!(begun.offset, Offset(15));
    }
}
