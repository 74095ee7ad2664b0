//! What a rebalance costs: a hundred members over a thousand partitions, one that joins them and one that leaves. Time until
//! everybody has what it is to have, partitions that moved, bytes that the coordinator appended, and how long anybody was kept
//! from what it kept.
//!
//! Broker and members share one process. `cargo bench -p quire-benches --bench groups`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use quire_broker::Broker;
use quire_client::{Client, GroupPartition, GroupState, NewTopic, Profile, TopicPartition};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// As the `quire` binary has it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const TOPIC: &str = "many";
const GROUP: &str = "crowd";
const PARTITIONS: u32 = 1000;
const MEMBERS: usize = 100;
/// Members that share a client, and so a connection: each may read so many partitions.
const MEMBERS_PER_CLIENT: usize = 25;
const TIME_MAX: Duration = Duration::from_secs(120);

/// Who has what, and what was taken from anybody.
#[derive(Debug, Default)]
struct Seen {
    owners: BTreeMap<TopicPartition, usize>,
    moved: u64,
}

struct Member {
    stop: watch::Sender<bool>,
    task: JoinHandle<Result<()>>,
}

fn profile(broker: &Broker) -> Profile {
    let credentials = broker.credentials();
    Profile::new(format!("quire://{}", broker.address()))
        .authority_pem(credentials.authority_pem)
        .identity_pem(credentials.certificate_pem, credentials.key_pem)
}

fn join(client: &Client, number: usize, seen: &Arc<Mutex<Seen>>) -> Result<Member> {
    let (assigned, revoked) = (Arc::clone(seen), Arc::clone(seen));
    let mut consumer = client
        .consumer()
        .group(GROUP)
        .topics([TOPIC])
        .memory_bytes(1 << 20)
        .on_assigned(move |partitions: &[GroupPartition]| {
            let mut seen = assigned.lock().expect("no panics");
            for partition in partitions {
                seen.owners.insert(partition.id, number);
                seen.moved += 1;
            }
        })
        .on_revoked(move |partitions: &[GroupPartition]| {
            let mut seen = revoked.lock().expect("no panics");
            for partition in partitions {
                seen.owners.remove(&partition.id);
            }
        })
        .build()?;
    let (stop, mut stopped) = watch::channel(false);
    let task = tokio::spawn(async move {
        loop {
            tokio::select! {
                next = consumer.next() => drop(next?),
                _ = stopped.changed() => break,
            }
        }
        consumer.leave().await?;
        Ok(())
    });
    Ok(Member { stop, task })
}

/// Until the coordinator says that so many members are stable, and they say that they have everything.
async fn settled(client: &Client, members: usize, seen: &Mutex<Seen>) -> Result<()> {
    let wait = async {
        loop {
            let owned = seen.lock().expect("no panics").owners.len();
            if owned == PARTITIONS as usize
                && let Ok(described) = client.admin().describe_group(GROUP).await
                && described.summary.state == GroupState::Stable
                && described.members.len() == members
            {
                let counts: BTreeSet<_> =
                    described.members.iter().map(|member| member.assigned.len()).collect();
                ensure!(counts.last().zip(counts.first()).is_some_and(|(most, least)| most - least <= 1));
                return Ok(());
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(TIME_MAX, wait).await.context("it did not settle")?
}

async fn appended_bytes(client: &Client) -> Result<u64> {
    let topic = client.admin().describe_topic("__consumer_offsets").await?;
    Ok(topic.partitions.iter().map(|partition| partition.size_bytes).sum())
}

async fn run() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let broker = Broker::builder().data_dir(folder.path()).listen("127.0.0.1:0".parse()?).start().await?;
    let admin = Client::connect_with(profile(&broker)).await?;
    admin.admin().create_topic(NewTopic::new(TOPIC).partitions(PARTITIONS)).await?;
    let mut clients = Vec::new();
    for _ in 0..(MEMBERS + 1).div_ceil(MEMBERS_PER_CLIENT) {
        clients.push(Client::connect_with(profile(&broker)).await?);
    }
    let seen = Arc::<Mutex<Seen>>::default();
    let mut members = Vec::new();
    println!("{PARTITIONS} partitions, {MEMBERS} members, sticky, TLS, one broker in this process");
    println!("{:<32} {:>9} {:>10} {:>12}", "", "time", "moved", "appended");
    let report = |what: &str, took: Duration, moved: u64, bytes: u64| {
        println!("{what:<32} {:>7.2} s {moved:>10} {:>8.1} KiB", took.as_secs_f64(), bytes as f64 / 1024.0);
    };

    let began = Instant::now();
    for number in 0..MEMBERS {
        members.push(join(&clients[number / MEMBERS_PER_CLIENT], number, &seen)?);
    }
    settled(&admin, MEMBERS, &seen).await?;
    let bytes = appended_bytes(&admin).await?;
    let moved = std::mem::take(&mut seen.lock().expect("no panics").moved);
    report("all join at once", began.elapsed(), moved, bytes);

    let before = seen.lock().expect("no panics").owners.clone();
    let began = Instant::now();
    members.push(join(clients.last().context("there is one")?, MEMBERS, &seen)?);
    settled(&admin, MEMBERS + 1, &seen).await?;
    let took = began.elapsed();
    let after = appended_bytes(&admin).await?;
    let moved = std::mem::take(&mut seen.lock().expect("no panics").moved);
    let kept =
        seen.lock().expect("no panics").owners.iter().filter(|(id, owner)| before[*id] == **owner).count();
    ensure!(kept as u64 + moved == u64::from(PARTITIONS), "whoever kept a partition was not disturbed");
    report("one joins", took, moved, after.saturating_sub(bytes));

    let began = Instant::now();
    let leaving = members.pop().context("it joined")?;
    leaving.stop.send_replace(true);
    leaving.task.await??;
    settled(&admin, MEMBERS, &seen).await?;
    let moved = seen.lock().expect("no panics").moved;
    report("one leaves", began.elapsed(), moved, appended_bytes(&admin).await?.saturating_sub(after));

    for member in &members {
        member.stop.send_replace(true);
    }
    for member in members {
        member.task.await??;
    }
    broker.shutdown().await;
    Ok(())
}

fn main() -> Result<()> {
    // What cargo passes chooses nothing here.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(run())
}
