//! Evening out who holds and leads what: looked at first, then carried out a few copies at a time.

use std::time::{Duration, Instant};

use clap::Args;
use quire_client::{BrokerId, Client, ErrorCode, PartitionDescription, PartitionMove};
use serde::Serialize;

use crate::args::JsonArg;
use crate::bench::size;
use crate::failure::Failure;
use crate::output::{self, Align, Palette, Table, counted, thousands};

/// How often progress is looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// How often progress is told.
const TELL_INTERVAL: Duration = Duration::from_secs(5);

/// How to rebalance.
#[derive(Debug, Args)]
#[command(after_help = "\
Without --execute it only shows the plan. With it, --at-once bounds how many partitions are copied at the same time: how
much disk and network other work can lose at any moment. A single copy runs as fast as disks and network let it, or as the
topic lets it: 'quire topic alter TOPIC --config catch.up.bytes.per.second=50000000' counts from then on, also for copies
under way. --pace adds pauses between copies, so that it bounds the average over the whole rebalancing.
Interrupted, it leaves what is under way to finish, and begins nothing more; run it again for the rest.")]
pub struct RebalanceArgs {
    /// Leave nothing on this broker; may be repeated
    #[arg(long, value_name = "BROKER")]
    without: Vec<u32>,
    /// Carry the plan out, and wait until it is done
    #[arg(long)]
    execute: bool,
    /// Partitions whose records are copied at the same time
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    at_once: u32,
    /// Bytes copied a second on average, e.g. 50MB, by pauses between copies [default: no pauses]
    #[arg(long, value_name = "BYTES", requires = "execute", value_parser = size::bytes)]
    pace: Option<u64>,
    #[command(flatten)]
    output: JsonArg,
}

pub(super) async fn run(client: &Client, args: &RebalanceArgs) -> Result<(), Failure> {
    let without: Vec<_> = args.without.iter().map(|id| BrokerId(*id)).collect();
    let plan = client.admin().plan_rebalance(&without).await?;
    if args.output.json {
        plan.iter().try_for_each(|planned| output::print_json(&MoveJson::from(planned)))?;
    } else if plan.is_empty() {
        output::print("balanced: nothing to move\n")?;
    } else {
        output::print(&plan_page(&plan, Palette::stdout()))?;
    }
    if args.execute {
        return execute(client, &plan, args).await;
    }
    if !plan.is_empty() {
        output::note("nothing moved yet   to do it: the same command with --execute");
    }
    Ok(())
}

/// So many moves at a time: each copies all records of a partition, beside what producers write meanwhile.
async fn execute(client: &Client, plan: &[PartitionMove], args: &RebalanceArgs) -> Result<(), Failure> {
    let admin = client.admin();
    let mut done = Done { of: plan.len(), ..Done::default() };
    let began = Instant::now();
    let mut waiting = plan.iter();
    let mut under_way: Vec<Copying<'_>> = Vec::new();
    let mut told = Instant::now();
    loop {
        let pause = args.pace.map_or(Duration::ZERO, |pace| pause(done.bytes, pace, began.elapsed()));
        while pause.is_zero() && under_way.len() < args.at_once as usize {
            let Some(planned) = waiting.next() else { break };
            match admin.reassign(&planned.topic, planned.partition, Some(&planned.to)).await {
                Ok(_) => under_way.push(Copying { planned, bytes: 0, of: 0 }),
                // Deleted since it was planned: nothing is left to move.
                Err(error) if error.code() == Some(ErrorCode::UnknownTopic) => done.moves += 1,
                Err(error) => return Err(error.into()),
            }
        }
        if under_way.is_empty() && waiting.len() == 0 {
            break;
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
        let mut still = Vec::new();
        for mut copying in under_way {
            match copying.look(client).await? {
                true => still.push(copying),
                false => done.note(&copying),
            }
        }
        under_way = still;
        if told.elapsed() >= TELL_INTERVAL {
            told = Instant::now();
            under_way.iter().for_each(|copying| output::note(&copying.line()));
        }
    }
    let elected = admin.elect_preferred_leaders(None).await?;
    if elected > 0 {
        output::note(&format!(
            "{} led by their preferred leader again",
            counted(elected.into(), "partition")
        ));
    }
    if done.bytes > 0 {
        let time = began.elapsed().as_secs_f64();
        output::note(&format!("{} copied in {time:.1} s", output::bytes(done.bytes)));
    }
    Ok(())
}

/// How long nothing new begins, after so many bytes in so long a time.
fn pause(bytes: u64, bytes_a_second: u64, taken: Duration) -> Duration {
    let needed = Duration::from_secs_f64(bytes as f64 / bytes_a_second.max(1) as f64);
    needed.saturating_sub(taken)
}

#[derive(Debug, Default)]
struct Done {
    moves: usize,
    of: usize,
    bytes: u64,
}

impl Done {
    fn note(&mut self, copying: &Copying<'_>) {
        self.moves += 1;
        self.bytes += copying.bytes;
        let PartitionMove { topic, partition, .. } = copying.planned;
        let copied =
            if copying.bytes == 0 { String::new() } else { format!(", {}", output::bytes(copying.bytes)) };
        output::note(&format!("{} of {} moved: {topic} partition {partition}{copied}", self.moves, self.of));
    }
}

/// A move under way.
#[derive(Debug)]
struct Copying<'a> {
    planned: &'a PartitionMove,
    /// What new replicas have, and what they are to have, as last seen (bytes).
    bytes: u64,
    of: u64,
}

impl Copying<'_> {
    /// Answers whether it is still under way. A topic that was deleted meanwhile has nothing left to move.
    async fn look(&mut self, client: &Client) -> Result<bool, Failure> {
        let topic = match client.admin().describe_topic(&self.planned.topic).await {
            Ok(topic) => topic,
            Err(error) if error.code() == Some(ErrorCode::UnknownTopic) => return Ok(false),
            // A leader that moves, a broker that restarts: the copy goes on without this command.
            Err(error) if error.is_retriable() => return Ok(true),
            Err(error) => return Err(error.into()),
        };
        let Some(partition) = topic.partitions.iter().find(|p| p.partition == self.planned.partition) else {
            return Ok(false);
        };
        self.measure(partition);
        Ok(!partition.adding_replicas.is_empty() || !partition.removing_replicas.is_empty())
    }

    fn measure(&mut self, partition: &PartitionDescription) {
        let is_new =
            |broker: &BrokerId| self.planned.to.contains(broker) && !self.planned.from.contains(broker);
        let new: Vec<_> = partition.logs.iter().filter(|log| is_new(&log.broker)).collect();
        self.bytes = self.bytes.max(new.iter().map(|log| log.size_bytes).sum());
        let copies = self.planned.to.iter().filter(|id| is_new(id)).count() as u64;
        self.of = partition.size_bytes * copies;
    }

    fn line(&self) -> String {
        let PartitionMove { topic, partition, .. } = self.planned;
        let (bytes, of) = (output::bytes(self.bytes), output::bytes(self.of));
        format!("copying {topic} partition {partition}: {bytes} of {of}")
    }
}

fn plan_page(plan: &[PartitionMove], palette: Palette) -> String {
    let mut table = Table::new(&[
        ("TOPIC", Align::Left),
        ("PART", Align::Right),
        ("REPLICAS", Align::Left),
        ("TO", Align::Left),
    ]);
    for planned in plan {
        let to = output::list(&planned.to);
        let what = if planned.copies() { to } else { format!("{to}  (leader only)") };
        table.row(vec![
            planned.topic.clone(),
            planned.partition.to_string(),
            output::list(&planned.from),
            what,
        ]);
    }
    let copies = plan.iter().filter(|planned| planned.copies()).count() as u64;
    format!(
        "{} {}, {} copied\n",
        table.render(palette),
        counted(plan.len() as u64, "move"),
        thousands(copies)
    )
}

#[derive(Serialize)]
struct MoveJson<'a> {
    topic: &'a str,
    partition: u32,
    from: Vec<u32>,
    to: Vec<u32>,
}

impl<'a> From<&'a PartitionMove> for MoveJson<'a> {
    fn from(planned: &'a PartitionMove) -> MoveJson<'a> {
        let numbers = |ids: &[BrokerId]| ids.iter().map(|id| id.0).collect();
        MoveJson {
            topic: &planned.topic,
            partition: planned.partition.0,
            from: numbers(&planned.from),
            to: numbers(&planned.to),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quire_client::PartitionIndex;

    #[test]
    fn pauses_bring_the_average_down_to_the_pace() {
        let seconds = Duration::from_secs;
        assert_eq!(pause(1000, 100, seconds(4)), seconds(6));
        assert_eq!(pause(1000, 100, seconds(10)), Duration::ZERO);
        assert_eq!(pause(0, 100, Duration::ZERO), Duration::ZERO);
    }

    #[test]
    fn a_plan_tells_copies_from_moves_of_the_leader() {
        let planned = |to: &[u32]| PartitionMove {
            topic: "flights".into(),
            partition: PartitionIndex(3),
            from: vec![BrokerId(1), BrokerId(2)],
            to: to.iter().map(|id| BrokerId(*id)).collect(),
        };
        assert_eq!(
            plan_page(&[planned(&[1, 3]), planned(&[2, 1])], Palette::PLAIN),
            " TOPIC    PART  REPLICAS  TO\n \
             flights     3  1,2       1,3\n \
             flights     3  1,2       2,1  (leader only)\n \
             2 moves, 1 copied\n"
        );
    }
}
