//! Row 16: a record whose answer was lost is sent again, and stands once, in its place, at the offset that its answer tells.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use quire::drill::relay::{Conditions, Direction};
use quire_client::BrokerId;
use quire_tests::chaos::{Trial, rounds};
use tokio::time::sleep;

/// The share of a broker's datagrams that is lost on its way to clients.
const LOSS: f64 = 0.3;
/// How long answers are dropped before their broker dies: enough for batches to reach every replica.
const UNANSWERED: Duration = Duration::from_millis(300);

/// The batches that each broker knew it had taken before, as it counts since its start.
#[derive(Default)]
struct Duplicates {
    counted: BTreeMap<BrokerId, f64>,
    all: f64,
}

impl Duplicates {
    async fn count(&mut self, trial: &Trial) -> Result<()> {
        for node in trial.cluster.nodes() {
            let now = node.metric("quire_produce_duplicates_total").await?;
            let before = self.counted.insert(node.id(), now).unwrap_or_default();
            self.all += if now >= before { now - before } else { now };
        }
        Ok(())
    }
}

/// Sets what becomes of everything that brokers answer clients.
fn set_answers(trial: &Trial, broker: Option<BrokerId>, conditions: Conditions) {
    let nodes = trial.cluster.nodes().iter().filter(|node| broker.is_none_or(|broker| node.id() == broker));
    for relay in nodes.filter_map(|node| node.relay()) {
        relay.weather().set(Direction::FromTarget, conditions);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_16_answers_are_lost_and_leaders_killed_with_batches_in_flight() -> Result<()> {
    let mut trial = Trial::start("retries", 16, |setup, load| {
        setup.relays = Some(16);
        load.rate = 1000.0;
    })
    .await?;
    let mut duplicates = Duplicates::default();
    for _ in 0..rounds(3, 50) {
        trial.fault("three answers of ten are lost");
        set_answers(&trial, None, Conditions { loss: LOSS, ..Conditions::default() });
        let pause = trial.draw_time(Duration::from_millis(500), Duration::from_secs(1));
        sleep(pause).await;
        set_answers(&trial, None, Conditions::default());
        trial.resumed().await?;

        let partition = trial.draw(8) as usize;
        let leader = trial.leader(partition).await?;
        trial.fault(&format!("no answer of broker {leader} arrives, and it is killed"));
        set_answers(&trial, Some(leader), Conditions::CUT);
        sleep(UNANSWERED).await;
        trial.node(leader)?.kill()?;
        set_answers(&trial, Some(leader), Conditions::default());
        trial.node(leader)?.start()?;
        trial.resumed().await?;
        trial.cluster.heal().await?;
        trial.whole().await?;
        duplicates.count(&trial).await?;
    }
    trial.finish().await?;
    println!("retries: {} batches were sent again that had been taken before", duplicates.all);
    ensure!(duplicates.all > 0.0, "nothing was sent again that had been taken: this shows nothing");
    Ok(())
}
