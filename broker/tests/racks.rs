//! Three brokers in racks of their own: what a follower serves to consumers, and what it never does.

mod support;

use std::io::{self, IoSlice};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use quire_broker::Broker;
use quire_broker::config::{FirstStart, HostPort};
use quire_protocol::rpc::control::{
    BrokerState, CreateTopicRequest, DescribeClusterRequest, DescribeTopicsRequest, Partition, request,
    response,
};
use quire_protocol::stream::{Answer, Opened, Start};
use quire_protocol::{ErrorCode, Offset, PartitionIndex, TopicId, TopicPartition, limits};
use quire_storage::disk::{Disk, DiskFile, Mapping, OpenMode, OsDisk};

use support::{PATIENCE, RawClient, Stream, batch, failure};

/// The operating system's disk, on which syncs of logs can be made to wait.
#[derive(Debug, Clone, Default)]
struct Gated(Arc<Gate>);

#[derive(Debug, Default)]
struct Gate {
    is_shut: Mutex<bool>,
    opened: Condvar,
}

impl Gated {
    fn shut(&self, is_shut: bool) {
        *self.0.is_shut.lock().unwrap_or_else(PoisonError::into_inner) = is_shut;
        self.0.opened.notify_all();
    }
}

impl Drop for Opener<'_> {
    fn drop(&mut self) {
        self.0.shut(false);
    }
}

/// A test that fails must not leave a broker waiting for its disk.
struct Opener<'a>(&'a Gated);

impl Disk for Gated {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        OsDisk.create_dir_all(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        OsDisk.list(dir)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let file = OsDisk.open(path, mode)?;
        // The metadata's files are not what waits.
        let is_log = path.components().any(|part| part.as_os_str() == "topics");
        let gate = is_log.then(|| Arc::clone(&self.0));
        Ok(Arc::new(GatedFile { file, gate }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        OsDisk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        OsDisk.remove(path)
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        OsDisk.remove_dir(dir)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        OsDisk.sync_dir(dir)
    }

    fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        OsDisk.free_bytes(dir)
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Send + Sync>> {
        OsDisk.lock(path)
    }
}

#[derive(Debug)]
struct GatedFile {
    file: Arc<dyn DiskFile>,
    gate: Option<Arc<Gate>>,
}

impl DiskFile for GatedFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read_at(&self, position: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.file.read_at(position, buf)
    }

    fn write_at(&self, position: u64, slices: &[IoSlice<'_>]) -> io::Result<()> {
        self.file.write_at(position, slices)
    }

    fn allocate(&self, end: u64) -> io::Result<()> {
        self.file.allocate(end)
    }

    fn sync_data(&self) -> io::Result<()> {
        if let Some(gate) = &self.gate {
            let is_shut = gate.is_shut.lock().unwrap_or_else(PoisonError::into_inner);
            drop(gate.opened.wait_while(is_shut, |is_shut| *is_shut));
        }
        self.file.sync_data()
    }

    fn will_need(&self, range: Range<u64>) {
        self.file.will_need(range);
    }

    fn map(&self, len: u64) -> io::Result<Option<Mapping>> {
        self.file.map(len)
    }
}

/// Brokers 1, 2 and 3 in racks a, b and c, and a topic that all of them hold.
struct Racks {
    brokers: Vec<Broker>,
    disks: Vec<Gated>,
    partition: TopicPartition,
    leader: usize,
    _dirs: Vec<tempfile::TempDir>,
}

impl Racks {
    async fn start() -> Result<Racks> {
        let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir()).collect::<Result<_, _>>()?;
        let disks: Vec<_> = (0..3).map(|_| Gated::default()).collect();
        let mut brokers: Vec<Broker> = Vec::new();
        for (at, rack) in ["a", "b", "c"].into_iter().enumerate() {
            let first_start = match brokers.first() {
                None => FirstStart::Found,
                Some(founder) => FirstStart::Join {
                    at: HostPort { host: founder.address().ip().to_string(), port: founder.address().port() },
                    token: founder.join_token(Duration::from_secs(3600)).await?,
                },
            };
            let builder = Broker::builder().data_dir(dirs[at].path()).shards(1).rack(rack);
            let builder = builder.disk(Arc::new(disks[at].clone())).first_start(first_start);
            brokers.push(builder.start().await?);
        }
        let (partition, leader) = create(&brokers[0]).await?;
        let leader =
            brokers.iter().position(|broker| broker.id().0 == leader).context("it is one of them")?;
        for broker in &brokers {
            let client = RawClient::connect(broker).await?;
            wait_for(&client, "its log is open", |partition| partition.error.is_none()).await?;
        }
        Ok(Racks { brokers, disks, partition, leader, _dirs: dirs })
    }

    fn followers(&self) -> impl Iterator<Item = usize> {
        let leader = self.leader;
        (0..3).filter(move |at| *at != leader)
    }
}

async fn create(broker: &Broker) -> Result<(TopicPartition, u32)> {
    let client = RawClient::connect(broker).await?;
    let asked = async {
        loop {
            let create = CreateTopicRequest {
                name: "flights".into(),
                partitions: 1,
                replicas: 3,
                ..Default::default()
            };
            match client.rpc(request::Body::CreateTopic(create)).await? {
                response::Body::CreateTopic(created) => {
                    let topic = created.topic.context("a topic")?;
                    let id = TopicId::from_slice(&topic.id).context("an id")?;
                    let leader = topic.partitions.first().and_then(|p| p.leader).context("a leader")?;
                    return Ok((TopicPartition { topic: id, partition: PartitionIndex(0) }, leader));
                }
                // Not all of them are unfenced yet.
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.context("the topic is not created")?
}

/// The partition as this broker has it, once it is so.
async fn wait_for(client: &RawClient, what: &str, is_so: impl Fn(&Partition) -> bool) -> Result<Partition> {
    let seen = async {
        loop {
            let asked = DescribeTopicsRequest { names: vec!["flights".into()], with_log_state: true };
            let response::Body::DescribeTopics(described) =
                client.rpc(request::Body::DescribeTopics(asked)).await?
            else {
                bail!("topics are described")
            };
            let partition =
                described.topics.into_iter().next().context("a topic")?.partitions.into_iter().next();
            match partition {
                Some(partition) if is_so(&partition) => return Ok(partition),
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, seen).await.with_context(|| format!("not in time: {what}"))?
}

async fn opened(client: &RawClient, partition: TopicPartition, start: Start) -> Result<(Stream, Opened)> {
    match client.consume(partition, start, 1 << 20).await? {
        (stream, Answer::Opened(opened)) => Ok((stream, opened)),
        (_, other) => bail!("answered {other:?}"),
    }
}

/// Reads until here; nothing that is sent lies beyond what is said to be committed.
async fn read_to(stream: &mut Stream, partition: TopicPartition, from: u64, to: u64) -> Result<()> {
    let mut next = Offset(from);
    while next < Offset(to) {
        let Answer::Frames(announced) = stream.answer().await? else { bail!("no frames") };
        for header in stream.frames(partition, announced).await? {
            ensure!(header.base_offset == next, "{header:?} where {next} comes next");
            next = header.next_offset();
        }
        ensure!(next <= announced.high_watermark, "{next} is beyond {announced:?}");
    }
    ensure!(next == Offset(to), "read to {next}, and only {to} is committed");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_in_sync_serves_what_is_committed_and_nothing_else() -> Result<()> {
    let racks = Racks::start().await?;
    let partition = racks.partition;
    let leader = RawClient::connect(&racks.brokers[racks.leader]).await?;
    let near = racks.followers().next().context("there are two")?;
    let follower = RawClient::connect(&racks.brokers[near]).await?;

    let (mut producer, answer) = leader.produce(partition).await?;
    ensure!(matches!(answer, Answer::Opened(_)), "{answer:?}");
    producer.send.write_all(&batch(&["a", "b"])?).await?;
    ensure!(producer.ack().await? == Offset(0));
    wait_for(&follower, "the follower knows what is committed", |p| p.high_watermark == 2).await?;

    // From here on the leader has nothing more on its disk, and so nothing more is committed.
    let gate = Opener(&racks.disks[racks.leader]);
    gate.0.shut(true);
    producer.send.write_all(&batch(&["c", "d"])?).await?;
    let state = wait_for(&follower, "the follower has it", |p| p.log_end_offset == 4).await?;
    ensure!(state.high_watermark == 2 && state.error.is_none(), "{state:?}");

    let (mut consumer, start) = opened(&follower, partition, Start::Beginning).await?;
    ensure!((start.next_offset, start.high_watermark) == (Offset(0), Offset(2)), "{start:?}");
    read_to(&mut consumer, partition, 0, 2).await?;
    // Who read further at the leader than the follower knows of goes on here.
    let (mut ahead, start) = opened(&follower, partition, Start::Offset(Offset(4))).await?;
    ensure!((start.next_offset, start.high_watermark) == (Offset(4), Offset(2)), "{start:?}");
    // What lies beyond its end, or is about the end itself, is the leader's to say.
    for start in [Start::Offset(Offset(5)), Start::End] {
        let refused = failure(follower.consume(partition, start, 1024).await?.1)?;
        ensure!(
            refused.code == ErrorCode::NotLeader && refused.code.is_retriable(),
            "{start:?}: {refused:?}"
        );
    }

    drop(gate);
    ensure!(producer.ack().await? == Offset(2));
    read_to(&mut consumer, partition, 2, 4).await?;
    producer.send.write_all(&batch(&["e"])?).await?;
    read_to(&mut ahead, partition, 4, 5).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_leaves_the_in_sync_replicas_sends_its_consumers_away() -> Result<()> {
    let racks = Racks::start().await?;
    let partition = racks.partition;
    let leader = RawClient::connect(&racks.brokers[racks.leader]).await?;
    let near = racks.followers().next().context("there are two")?;
    let follower = RawClient::connect(&racks.brokers[near]).await?;
    let (mut producer, answer) = leader.produce(partition).await?;
    ensure!(matches!(answer, Answer::Opened(_)), "{answer:?}");
    producer.send.write_all(&batch(&["a"])?).await?;
    ensure!(producer.ack().await? == Offset(0));
    let (mut consumer, _) = opened(&follower, partition, Start::Beginning).await?;
    read_to(&mut consumer, partition, 0, 1).await?;

    // More than a shard syncs on its own thread: it goes on, and its flushers wait.
    let gate = Opener(&racks.disks[near]);
    gate.0.shut(true);
    let large = "x".repeat(2 * limits::LONE_SYNC_BYTES_MAX as usize);
    producer.send.write_all(&batch(&[&large])?).await?;
    ensure!(producer.ack().await? == Offset(1), "committed without it");
    let sent_away = async {
        loop {
            match consumer.answer().await? {
                Answer::Failure(failure) => return Ok::<_, anyhow::Error>(failure),
                // What is committed can be read before it knows that it is not in sync.
                Answer::Frames(announced) => drop(consumer.frames(partition, announced).await?),
                other => bail!("answered {other:?}"),
            }
        }
    };
    let refused = tokio::time::timeout(PATIENCE, sent_away).await.context("its readers wait")??;
    ensure!(refused.code == ErrorCode::NotLeader && refused.code.is_retriable(), "{refused:?}");
    let refused = failure(follower.consume(partition, Start::Offset(Offset(1)), 1024).await?.1)?;
    ensure!(refused.code == ErrorCode::NotLeader, "{refused:?}");

    drop(gate);
    let served = async {
        loop {
            let (stream, answer) = follower.consume(partition, Start::Offset(Offset(1)), 1 << 20).await?;
            if matches!(answer, Answer::Opened(_)) {
                return Ok::<_, anyhow::Error>(stream);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let mut consumer = tokio::time::timeout(PATIENCE, served).await.context("it is in sync again")??;
    read_to(&mut consumer, partition, 1, 2).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_no_controller_hears_sends_its_consumers_away() -> Result<()> {
    let mut racks = Racks::start().await?;
    let partition = racks.partition;
    // Of the two, one that does not hear itself.
    let client = RawClient::connect(&racks.brokers[racks.leader]).await?;
    let cluster = client.rpc(request::Body::DescribeCluster(DescribeClusterRequest {})).await?;
    let response::Body::DescribeCluster(cluster) = cluster else { bail!("answered {cluster:?}") };
    let places: Vec<_> = cluster.brokers.iter().map(|b| (b.rack.as_str(), b.state())).collect();
    let there = BrokerState::Unfenced;
    ensure!(places == [("a", there), ("b", there), ("c", there)], "{places:?}");
    let is_heard = |at: &usize| racks.brokers[*at].id().0 != cluster.controller_id;
    let near = racks.followers().find(is_heard).context("one of two is no controller")?;
    let follower = RawClient::connect(&racks.brokers[near]).await?;
    let (mut consumer, _) = opened(&follower, partition, Start::Beginning).await?;

    // Nobody is left who could tell it anything: not that it is in sync no more, and not that another leads.
    let alone = racks.brokers.swap_remove(near);
    racks.brokers.clear();
    let sent_away = async {
        loop {
            match consumer.answer().await? {
                Answer::Failure(failure) => return Ok::<_, anyhow::Error>(failure),
                Answer::Frames(announced) if announced.length == 0 => {}
                other => bail!("served {other:?}"),
            }
        }
    };
    let refused = tokio::time::timeout(PATIENCE, sent_away).await.context("its readers wait")??;
    ensure!(refused.code == ErrorCode::NotLeader && refused.code.is_retriable(), "{refused:?}");
    let refused = failure(follower.consume(partition, Start::Beginning, 1024).await?.1)?;
    ensure!(refused.code == ErrorCode::NotLeader, "{refused:?}");
    drop(alone);
    Ok(())
}
