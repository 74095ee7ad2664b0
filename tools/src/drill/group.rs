//! A group under a drill's load: its members come and go, and every record is given to one of them at least once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quire_client::{Client, ConsumedRecord, GroupConsumer, Offset, PartitionIndex};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

/// A member that is cut off is taken for dead after this.
const SESSION: Duration = Duration::from_secs(5);
const COMMIT_INTERVAL: Duration = Duration::from_millis(200);
/// A member stays for so long, and one step longer for each member before it, so that they do not leave together.
const STAY: Duration = Duration::from_secs(4);
const STAY_STEP: Duration = Duration::from_millis(1300);
/// How often it is looked at what is committed.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// A group under way.
#[derive(Debug)]
pub struct GroupLoad {
    name: String,
    client: Client,
    seen: Arc<Mutex<Seen>>,
    tasks: JoinSet<()>,
}

/// What its members were given, and what was seen to be committed.
#[derive(Debug, Default)]
struct Seen {
    given: BTreeMap<PartitionIndex, BTreeSet<u64>>,
    again: u64,
    joined: u64,
    committed: BTreeMap<PartitionIndex, Offset>,
    problems: Vec<String>,
}

/// What a group came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupReport {
    /// Records that were given to a member.
    pub given: u64,
    /// How often one was given that had been given before.
    pub again: u64,
    /// How often a member joined.
    pub joined: u64,
    /// What must not be.
    pub problems: Vec<String>,
}

impl fmt::Display for GroupReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let GroupReport { given, again, joined, problems } = self;
        write!(f, "group: {given} records given, {again} again, {joined} joins")?;
        problems.iter().try_for_each(|problem| write!(f, "; {problem}"))
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

impl GroupLoad {
    /// Starts so many members.
    pub fn start(client: Client, topic: &str, members: u32) -> GroupLoad {
        let name = format!("{topic}-group");
        let seen = Arc::<Mutex<Seen>>::default();
        let mut tasks = JoinSet::new();
        for number in 0..members {
            let stay = STAY + STAY_STEP * number;
            tasks.spawn(be_a_member(client.clone(), name.clone(), topic.to_owned(), stay, Arc::clone(&seen)));
        }
        tasks.spawn(watch(client.clone(), name.clone(), Arc::clone(&seen)));
        GroupLoad { name, client, seen, tasks }
    }

    /// Waits until everything before these ends was given to a member and is committed, and ends the group.
    pub async fn finish(mut self, ends: &BTreeMap<PartitionIndex, Offset>, time: Duration) -> GroupReport {
        let deadline = Instant::now() + time;
        while !self.has_all(ends) && Instant::now() < deadline {
            sleep(LOOK_INTERVAL).await;
        }
        self.tasks.shutdown().await;
        let state = match self.has_all(ends) {
            true => String::new(),
            false => format!("{:?}", self.client.admin().describe_group(&self.name).await),
        };
        let mut seen = lock(&self.seen);
        let mut problems = std::mem::take(&mut seen.problems);
        for (partition, end) in ends {
            let given = seen.given.get(partition).map_or(0, |given| given.range(..end.0).count() as u64);
            if given < end.0 {
                problems.push(format!(
                    "partition {partition}: {} of {end} records were given to no member",
                    end.0 - given
                ));
            }
            let committed = seen.committed.get(partition).copied().unwrap_or_default();
            if committed < *end {
                problems
                    .push(format!("partition {partition}: committed up to {committed} of {end}: {state}"));
            }
        }
        let given = seen.given.values().map(|given| given.len() as u64).sum();
        GroupReport { given, again: seen.again, joined: seen.joined, problems }
    }

    fn has_all(&self, ends: &BTreeMap<PartitionIndex, Offset>) -> bool {
        let seen = lock(&self.seen);
        ends.iter().all(|(partition, end)| {
            let given = seen.given.get(partition).map_or(0, |given| given.range(..end.0).count() as u64);
            given == end.0 && seen.committed.get(partition).copied().unwrap_or_default() >= *end
        })
    }
}

/// One member after the other: every second one leaves, the others are dropped.
async fn be_a_member(client: Client, group: String, topic: String, stay: Duration, seen: Arc<Mutex<Seen>>) {
    for life in 0u64.. {
        let builder = client.consumer().group(&group).topics([&topic]);
        let built = builder.session_timeout(SESSION).commit_interval(COMMIT_INTERVAL).build();
        let mut consumer = match built {
            Ok(consumer) => consumer,
            Err(error) => return lock(&seen).problems.push(format!("a member could not be built: {error}")),
        };
        lock(&seen).joined += 1;
        consume(&mut consumer, stay, &seen).await;
        if life % 2 == 0 {
            let _ = consumer.leave().await;
        }
    }
}

async fn consume(consumer: &mut GroupConsumer, stay: Duration, seen: &Mutex<Seen>) {
    let until = Instant::now() + stay;
    loop {
        let next = tokio::select! {
            next = consumer.next() => next,
            () = sleep_until(until) => return,
        };
        match next {
            Ok(record) => note(seen, &record),
            // Brokers come back; whatever else it is, the group will lack records.
            Err(error) => {
                tracing::debug!(%error, "a member goes on");
                return sleep(LOOK_INTERVAL).await;
            }
        }
    }
}

fn note(seen: &Mutex<Seen>, record: &ConsumedRecord) {
    let mut seen = lock(seen);
    if !seen.given.entry(record.partition).or_default().insert(record.offset.0) {
        seen.again += 1;
    }
}

/// Looks at what is committed: it never goes back.
async fn watch(client: Client, group: String, seen: Arc<Mutex<Seen>>) {
    loop {
        // There is none yet, or its coordinator is away.
        if let Ok(described) = client.admin().describe_group(&group).await {
            let mut seen = lock(&seen);
            for offset in described.offsets {
                let partition = offset.id.partition;
                let known = seen.committed.get(&partition).copied().unwrap_or_default();
                if offset.offset < known {
                    let problem = format!(
                        "partition {partition}: committed went back from {known} to {}",
                        offset.offset
                    );
                    seen.problems.push(problem);
                }
                seen.committed.insert(partition, offset.offset);
            }
        }
        sleep(LOOK_INTERVAL).await;
    }
}
