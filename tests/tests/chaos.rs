//! Acceptance tests by their row in the list of faults: real processes on loopback, killed, paused, cut off, slowed down
//! and restarted under load, and the verdict over everything that clients saw and replicas hold.
//!
//! Every run of the tests does a part of it; `QUIRE_CHAOS=full cargo test -p quire-tests --test chaos` does all.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use quire::drill::availability::percentile;
use quire::drill::cluster::Node;
use quire::drill::relay::Conditions;
use quire_client::{BrokerId, ErrorCode, NewTopic, PartitionDescription, PartitionIndex, Record};
use quire_tests::chaos::{Trial, rounds};
use quire_tests::power_loss::{LossyDisk, SmallDisk, unavailable};
use quire_tests::process::{FailingSyncs, can_trace};
use tokio::time::{Instant, sleep};

const MIB: u64 = 1024 * 1024;
const BROKERS: [BrokerId; 3] = [BrokerId(1), BrokerId(2), BrokerId(3)];
/// Longer than a broker's session, in which it is not missed.
const BEYOND_THE_SESSION: Duration = Duration::from_millis(2500);

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Whether file systems can be made here; says why the test is skipped if not.
fn has_file_systems(test: &str) -> bool {
    let why = unavailable();
    if let Some(why) = &why {
        println!("skipped: {test} ({why})");
    }
    why.is_none()
}

/// Cuts everything that one broker sends to the others, or lets it through again.
fn set_outwards(trial: &Trial, broker: BrokerId, conditions: Conditions) {
    let others = BROKERS.into_iter().filter(|other| *other != broker);
    others.for_each(|other| trial.cluster.set_link(broker, other, conditions));
}

/// Cuts everything that the others send to one broker, or lets it through again.
fn set_inwards(trial: &Trial, broker: BrokerId, conditions: Conditions) {
    let others = BROKERS.into_iter().filter(|other| *other != broker);
    others.for_each(|other| trial.cluster.set_link(other, broker, conditions));
}

/// Row 5: kill -9 of random brokers, also of all at once, again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_05_kill_random_brokers() -> Result<()> {
    let mut trial = Trial::start("kill -9", 5, |_, _| {}).await?;
    let (kills, mut killed, mut round) = (rounds(75, 300), 0, 0);
    let mut restarts = Vec::new();
    while killed < kills {
        // One bit for each.
        let drawn = 1 + trial.draw(7);
        let subset: Vec<BrokerId> =
            BROKERS.into_iter().filter(|broker| drawn & (1 << (broker.0 - 1)) != 0).collect();
        trial.fault(&format!("kill -9 {subset:?}"));
        for broker in &subset {
            trial.node(*broker)?.kill()?;
            killed += 1;
        }
        let away = trial.draw_time(ms(0), ms(500));
        sleep(away).await;
        for broker in &subset {
            trial.node(*broker)?.start()?;
        }
        // Every other time the next kill comes whether they serve, and writes have resumed, or not.
        match round % 2 {
            0 => {
                for broker in &subset {
                    restarts.push(trial.node(*broker)?.ready().await?);
                }
                trial.resumed().await?;
            }
            _ => {
                let pause = trial.draw_time(ms(500), ms(1500));
                sleep(pause).await;
                trial.fault_goes_over();
            }
        }
        round += 1;
    }
    restarts.sort_unstable();
    let restart = quire::drill::availability::percentile(&restarts, 0.99).unwrap_or_default();
    trial.finish().await?;
    println!("kill -9: {killed} kills in {round} rounds; a broker serves again after {restart:?} (p99)");
    Ok(())
}

/// Row 5, by itself: how long writes stand still when a leader is killed and everything else is well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_05_failover_time() -> Result<()> {
    let mut trial = Trial::start("failover", 0x50, |_, _| {}).await?;
    for _ in 0..rounds(1, 50) {
        let partition = trial.draw(8) as usize;
        let leader = trial.leader(partition).await?;
        trial.fault(&format!("kill -9 broker {leader}"));
        trial.node(leader)?.kill()?;
        trial.resumed().await?;
        trial.cluster.heal().await?;
        trial.whole().await?;
        trial.client.admin().elect_preferred_leaders(None).await?;
        let pause = trial.draw_time(ms(200), ms(700));
        sleep(pause).await;
    }
    trial.finish().await?;
    Ok(())
}

/// Row 6: the leader is out, a second broker loses power, the third stops, the first two come back: the second one has all
/// that was acknowledged, and leads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_06_power_loss_of_one() -> Result<()> {
    if !has_file_systems("row_06_power_loss_of_one") {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let mut disk = LossyDisk::new(folder.path(), 512 * MIB)?;
    let [first, second, third] = BROKERS;
    let mut trial = Trial::start("power loss of one", 6, |setup, _| {
        setup.data.insert(second, disk.path().join("broker"));
    })
    .await?;
    for _ in 0..rounds(2, 30) {
        trial.fault("broker 1 stands still");
        trial.node(first)?.pause()?;
        trial.resumed().await?;
        trial.fault("broker 2 loses power, broker 3 stands still; 1 and 2 come back");
        disk.cut_power()?;
        trial.node(second)?.kill()?;
        disk.restore_power()?;
        trial.node(third)?.pause()?;
        trial.node(first)?.resume()?;
        trial.node(second)?.start()?;
        trial.resumed().await?;
        trial.node(third)?.resume()?;
        trial.cluster.heal().await?;
        trial.whole().await?;
    }
    trial.finish().await?;
    Ok(())
}

/// Row 7: all lose power at one instant, and start again in a random order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_07_power_loss_of_all() -> Result<()> {
    if !has_file_systems("row_07_power_loss_of_all") {
        return Ok(());
    }
    let folders = [tempfile::tempdir()?, tempfile::tempdir()?, tempfile::tempdir()?];
    let mut disks = Vec::new();
    for folder in &folders {
        disks.push(LossyDisk::new(folder.path(), 512 * MIB)?);
    }
    let mut trial = Trial::start("power loss of all", 7, |setup, _| {
        setup.data =
            BROKERS.into_iter().zip(&disks).map(|(id, disk)| (id, disk.path().join("broker"))).collect();
    })
    .await?;
    for _ in 0..rounds(8, 30) {
        let pause = trial.draw_time(ms(100), ms(1000));
        sleep(pause).await;
        trial.fault("all lose power");
        for disk in &disks {
            disk.cut_power()?;
        }
        for broker in BROKERS {
            trial.node(broker)?.kill()?;
        }
        for disk in &mut disks {
            disk.restore_power()?;
        }
        let begin = trial.draw(3) as u32;
        let step = 1 + trial.draw(2) as u32;
        for place in 0..3 {
            let broker = BrokerId((begin + place * step) % 3 + 1);
            trial.node(broker)?.start()?;
            let pause = trial.draw_time(ms(0), ms(300));
            sleep(pause).await;
        }
        trial.cluster.heal().await?;
        trial.resumed().await?;
    }
    trial.finish().await?;
    Ok(())
}

/// Row 8: syncs of one broker fail while it leads. Nothing is acknowledged on them, others lead what failed, and it is fetched
/// again; then the broker is killed, started, and loses power.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_08_failed_syncs() -> Result<()> {
    if !has_file_systems("row_08_failed_syncs") {
        return Ok(());
    }
    if !can_trace() {
        println!("skipped: row_08_failed_syncs (strace can not trace here)");
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let mut disk = LossyDisk::new(folder.path(), 512 * MIB)?;
    let failing = BROKERS[1];
    let mut trial = Trial::start("failed syncs", 8, |setup, _| {
        setup.data.insert(failing, disk.path().join("broker"));
    })
    .await?;
    let mut failed = 0;
    for _ in 0..rounds(1, 10) {
        let leads = trial.partitions().await?.iter().filter(|found| found.leader == Some(failing)).count();
        ensure!(leads > 0, "broker {failing} leads nothing: this shows nothing");
        trial.fault("a sync of each of broker 2's threads fails");
        let process = trial.node(failing)?.process().context("it runs")?;
        let before = trial.logged("a write or sync failed");
        let syncs = FailingSyncs::of(process)?;
        let end = Instant::now() + Duration::from_secs(10);
        while trial.logged("a write or sync failed") == before {
            ensure!(Instant::now() < end, "no sync failed: this shows nothing");
            sleep(ms(20)).await;
        }
        trial.resumed().await?;
        drop(syncs);
        failed += trial.logged("a write or sync failed") - before;

        trial.fault("broker 2 is killed, starts, and loses power");
        trial.node(failing)?.kill()?;
        trial.node(failing)?.start()?;
        trial.node(failing)?.ready().await?;
        let served = trial.draw_time(ms(0), ms(1000));
        sleep(served).await;
        disk.cut_power()?;
        trial.node(failing)?.kill()?;
        disk.restore_power()?;
        trial.node(failing)?.start()?;
        trial.resumed().await?;
        trial.cluster.heal().await?;
        trial.whole().await?;
        trial.client.admin().elect_preferred_leaders(None).await?;
    }
    trial.finish().await?;
    println!("failed syncs: {failed} logs failed and were fetched again");
    Ok(())
}

/// Row 11: the followers are gone until the leader alone is in sync; it refuses, and then it is killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_11_shrink_then_lose_the_leader() -> Result<()> {
    // Brokers 1 and 2 hold nothing and, with 3, decide about the metadata.
    let [leader, one, other] = [BrokerId(3), BrokerId(4), BrokerId(5)];
    let mut trial = Trial::start("shrink, then lose the leader", 11, |setup, load| {
        setup.brokers = 5;
        load.partitions = 2;
    })
    .await?;
    trial.place(&[leader, one, other]).await?;
    let probe = NewTopic::new("probe").partitions(1).replicas(3).config("min.insync.replicas", "2");
    trial.client.admin().create_topic(probe).await?;
    trial.client.admin().reassign("probe", PartitionIndex(0), Some(&[leader, one, other])).await?;
    trial
        .wait_for_topic("probe", "it did not move", |found| {
            found[0].in_sync_replicas.len() == 3 && found[0].replicas == [leader, one, other]
        })
        .await?;
    trial.client.admin().elect_preferred_leaders(None).await?;
    for _ in 0..rounds(1, 10) {
        trial.fault("the followers stand still");
        trial.node(one)?.pause()?;
        trial.node(other)?.pause()?;
        trial
            .wait_for("more are in sync than run", |found| {
                found.iter().all(|found| found.in_sync_replicas == [leader])
            })
            .await?;
        let producer = trial.client.producer().delivery_timeout(Duration::from_secs(1)).build();
        let sent = producer.send_to("probe", PartitionIndex(0), Record::default()).await;
        let code = sent.as_ref().err().and_then(quire_client::SendError::code);
        ensure!(code == Some(ErrorCode::NotEnoughReplicas), "one replica alone answered {sent:?}");
        let before = trial.record.counts().acknowledged;
        sleep(ms(300)).await;
        ensure!(trial.record.counts().acknowledged == before, "one replica alone acknowledged");
        trial.node(leader)?.kill()?;
        trial.node(one)?.resume()?;
        trial.node(other)?.resume()?;
        sleep(BEYOND_THE_SESSION).await;
        trial.cluster.heal().await?;
        trial.resumed().await?;
        trial.whole().await?;
        trial.client.admin().elect_preferred_leaders(None).await?;
    }
    trial.finish().await?;
    Ok(())
}

/// Row 12: two replicas go, the last one writes on alone and dies; the two come back first, and do not lead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_12_the_last_replica_standing() -> Result<()> {
    let replicas = [BrokerId(3), BrokerId(4), BrokerId(5)];
    let [first, second, last] = replicas;
    let mut trial = Trial::start("last replica standing", 12, |setup, load| {
        setup.brokers = 5;
        load.partitions = 2;
        // So that the last one acknowledges alone: what the two others lack then is acknowledged.
        load.in_sync_min = 1;
    })
    .await?;
    trial.place(&replicas).await?;
    for _ in 0..rounds(1, 10) {
        trial.fault("kill -9 two of three");
        trial.node(first)?.kill()?;
        trial.node(second)?.kill()?;
        trial
            .wait_for("more are in sync than run", |found| {
                found.iter().all(|found| found.in_sync_replicas == [last])
            })
            .await?;
        trial.resumed().await?;
        trial.fault("kill -9 the last one; the two others come back");
        trial.node(last)?.kill()?;
        for broker in [first, second] {
            trial.node(broker)?.start()?;
        }
        for broker in [first, second] {
            trial.node(broker)?.ready().await?;
        }
        let end = Instant::now() + BEYOND_THE_SESSION;
        while Instant::now() < end {
            let partitions = trial.partitions().await?;
            let led = partitions.iter().find(|found| found.leader.is_some_and(|leader| leader != last));
            ensure!(led.is_none(), "who lacks acknowledged records leads: {led:?}");
            sleep(ms(50)).await;
        }
        trial
            .wait_for("the last one still counts as leader", |found| {
                found.iter().all(|found| found.leader.is_none())
            })
            .await?;
        trial.node(last)?.start()?;
        trial.resumed().await?;
        trial.whole().await?;
    }
    trial.finish().await?;
    Ok(())
}

/// Row 13: a leader that stood still, or is not heard, believes that it leads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_13_zombie_leader() -> Result<()> {
    let mut trial = Trial::start("zombie leader", 13, |setup, _| setup.peer_relays = Some(13)).await?;
    for _ in 0..rounds(1, 10) {
        let leader = trial.leader(0).await?;
        trial.fault(&format!("SIGSTOP broker {leader}"));
        trial.node(leader)?.pause()?;
        sleep(BEYOND_THE_SESSION).await;
        trial.node(leader)?.resume()?;
        trial.resumed().await?;
        trial.whole().await?;

        // What it says does not arrive, but it hears the others, and its clients.
        let leader = trial.leader(0).await?;
        trial.fault(&format!("broker {leader} is not heard by the others"));
        set_outwards(&trial, leader, Conditions::CUT);
        trial.moved_away(leader).await?;
        trial.resumed().await?;
        set_outwards(&trial, leader, Conditions::default());
        trial.whole().await?;

        // It is heard, and hears nothing.
        let leader = trial.leader(0).await?;
        trial.fault(&format!("broker {leader} does not hear the others"));
        set_inwards(&trial, leader, Conditions::CUT);
        trial.moved_away(leader).await?;
        trial.resumed().await?;
        set_inwards(&trial, leader, Conditions::default());
        trial.whole().await?;
    }
    trial.finish().await?;
    Ok(())
}

/// Row 14: leaders change every 50 to 300 ms, of partitions that are written to and of one that is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_14_failover_storm() -> Result<()> {
    const UNWRITTEN: &str = "unwritten";
    let mut trial = Trial::start("failover storm", 14, |_, _| {}).await?;
    let topic = NewTopic::new(UNWRITTEN).partitions(2).replicas(3).config("min.insync.replicas", "2");
    trial.client.admin().create_topic(topic).await?;
    let written = trial.topic().to_owned();
    let epochs = |found: &[PartitionDescription]| found.iter().map(|found| found.leader_epoch.0).sum::<u32>();
    let mut changed = 0;
    for _ in 0..rounds(1, 10) {
        let before = epochs(&trial.partitions().await?);
        trial.fault("leaders change every 50 to 300 ms");
        let end = Instant::now() + Duration::from_secs(10);
        while Instant::now() < end {
            let (topic, partitions) = if trial.draw(4) == 0 { (UNWRITTEN, 2) } else { (written.as_str(), 8) };
            let partition = PartitionIndex(trial.draw(partitions) as u32);
            let mut order = BROKERS;
            order.rotate_left(trial.draw(3) as usize);
            // The same replicas, of which another is preferred.
            let admin = trial.client.admin();
            admin.reassign(topic, partition, Some(&order)).await?;
            admin.elect_preferred_leaders(Some(topic)).await?;
            let pause = trial.draw_time(ms(50), ms(300));
            sleep(pause).await;
        }
        trial.resumed().await?;
        changed += epochs(&trial.partitions().await?) - before;
        trial.whole().await?;
    }
    ensure!(changed > 10 * rounds(1, 10), "leaders changed {changed} times: no storm");
    trial.finish().await?;
    println!("failover storm: {changed} changes of leader");
    Ok(())
}

/// Row 15: shapes of partitions between three brokers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_15_partition_shapes() -> Result<()> {
    let mut trial = Trial::start("partition shapes", 15, |setup, _| setup.peer_relays = Some(15)).await?;
    for round in 0..rounds(1, 10) {
        let alone = BROKERS[(round % 3) as usize];
        trial.fault(&format!("minority: broker {alone} and the others do not reach each other"));
        set_outwards(&trial, alone, Conditions::CUT);
        set_inwards(&trial, alone, Conditions::CUT);
        trial.moved_away(alone).await?;
        trial.resumed().await?;
        set_outwards(&trial, alone, Conditions::default());
        set_inwards(&trial, alone, Conditions::default());
        trial.whole().await?;

        let (one, other) = (BROKERS[((round + 1) % 3) as usize], BROKERS[((round + 2) % 3) as usize]);
        trial.fault(&format!("bridge: brokers {one} and {other} reach each other only over {alone}"));
        trial.cluster.set_link(one, other, Conditions::CUT);
        trial.cluster.set_link(other, one, Conditions::CUT);
        trial.resumed().await?;
        sleep(BEYOND_THE_SESSION).await;
        trial.cluster.heal().await?;
        trial.whole().await?;

        trial.fault(&format!("one way: broker {one} is not heard by {other}"));
        trial.cluster.set_link(one, other, Conditions::CUT);
        trial.resumed().await?;
        sleep(BEYOND_THE_SESSION).await;
        trial.cluster.heal().await?;
        trial.whole().await?;

        trial.fault("flapping: links are cut and come back");
        let end = Instant::now() + Duration::from_secs(3);
        while Instant::now() < end {
            let (from, to) = (trial.draw(3) as usize, trial.draw(3) as usize);
            trial.cluster.set_link(BROKERS[from], BROKERS[to], Conditions::CUT);
            let pause = trial.draw_time(ms(50), ms(400));
            sleep(pause).await;
            if trial.draw(2) == 0 {
                trial.cluster.heal().await?;
            }
        }
        trial.cluster.heal().await?;
        trial.resumed().await?;
        trial.whole().await?;
    }
    trial.finish().await?;
    Ok(())
}

/// Row 17: one broker's disk is full; it stays up, and goes on by itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_17_disk_full_on_one_broker() -> Result<()> {
    if !has_file_systems("row_17_disk_full_on_one_broker") {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let disk = SmallDisk::new(folder.path(), 192 * MIB)?;
    let full = BROKERS[1];
    let mut trial = Trial::start("disk full on one broker", 17, |setup, load| {
        setup.data.insert(full, disk.path().join("broker"));
        // What is allocated ahead is soon used up.
        load.rate = 800.0;
    })
    .await?;
    for _ in 0..rounds(1, 10) {
        trial.fault("the disk of broker 2 is full");
        let filler = disk.fill()?;
        let end = Instant::now() + Duration::from_secs(7);
        while Instant::now() < end {
            trial.node(full)?.still_runs()?;
            sleep(ms(100)).await;
        }
        drop(filler);
        trial.resumed().await?;
        trial.whole().await?;
    }
    trial.finish().await?;
    Ok(())
}

/// Row 22: every broker is stopped in order and started again, one after the other: no write is given up, and nothing has
/// to be recovered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_22_rolling_restart() -> Result<()> {
    let mut trial = Trial::start("rolling restart", 22, |_, _| {}).await?;
    for _ in 0..rounds(1, 10) {
        for broker in BROKERS {
            trial.fault(&format!("SIGTERM broker {broker}"));
            trial.node(broker)?.terminate().await?;
            trial.node(broker)?.start()?;
            trial.node(broker)?.ready().await?;
            trial.resumed().await?;
            trial.whole().await?;
        }
    }
    let finished = trial.finish().await?;
    let given_up = finished.verdict.unknown + finished.verdict.refused;
    ensure!(given_up == 0, "{given_up} writes met an error that may not be retried: {}", finished.verdict);
    ensure!(finished.recoveries == 0, "{} logs had to be recovered", finished.recoveries);
    Ok(())
}

/// A topic that the slow broker of row 23 has no replica of.
const ELSEWHERE: &str = "elsewhere";

/// The 99th percentile of the time until a record of [`ELSEWHERE`] is acknowledged, one in flight, over 5 s.
async fn acknowledged_within(trial: &Trial) -> Result<Duration> {
    let producer = trial.client.producer().build();
    let end = Instant::now() + Duration::from_secs(5);
    let mut times = Vec::new();
    while Instant::now() < end {
        let begun = Instant::now();
        let record = Record { value: Some("elsewhere".into()), ..Record::default() };
        producer.send_to(ELSEWHERE, PartitionIndex(0), record).await?;
        times.push(begun.elapsed());
        sleep(ms(5)).await;
    }
    producer.close().await?;
    times.sort_unstable();
    percentile(&times, 0.99).context("something was sent")
}

/// The longest time in which the broker of this admin address says that it lives, over 5 s.
async fn slowest_answer(node: &Node) -> Result<Duration> {
    let end = Instant::now() + Duration::from_secs(5);
    let mut slowest = Duration::ZERO;
    while Instant::now() < end {
        let begun = Instant::now();
        node.metric("quire_produce_duplicates_total").await?;
        slowest = slowest.max(begun.elapsed());
        sleep(ms(20)).await;
    }
    Ok(slowest)
}

/// Row 23: one broker's syncs take long; it leaves the in-sync replicas, and the others go on as before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_23_slow_disk() -> Result<()> {
    if !can_trace() {
        println!("skipped: row_23_slow_disk (strace can not trace here)");
        return Ok(());
    }
    let slow = BROKERS[2];
    let mut trial = Trial::start("slow disk", 23, |_, load| load.partitions = 2).await?;
    trial.client.admin().drain_broker(slow).await?;
    trial
        .wait_for("the slow broker still leads", |found| {
            found.iter().all(|found| found.leader.is_some_and(|leader| leader != slow))
        })
        .await?;
    // What the slow broker has no replica of is not to notice.
    let elsewhere = NewTopic::new(ELSEWHERE).partitions(1).replicas(2).config("min.insync.replicas", "2");
    trial.client.admin().create_topic(elsewhere).await?;
    trial.client.admin().reassign(ELSEWHERE, PartitionIndex(0), Some(&BROKERS[..2])).await?;
    trial
        .wait_for_topic(ELSEWHERE, "it is not where it should be", |found| {
            found.iter().all(|found| found.in_sync_replicas.len() == 2 && found.replicas == BROKERS[..2])
        })
        .await?;
    let usual = acknowledged_within(&trial).await?;
    trial.fault("syncs of broker 3 take 7 s");
    trial.node(slow)?.terminate().await?;
    let inject = "inject=fdatasync:delay_exit=7s";
    let strace = ["strace", "-D", "-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync", "-e", inject];
    trial.node(slow)?.set_wrapper(strace.map(str::to_owned).into());
    trial.node(slow)?.start()?;
    trial.resumed().await?;
    trial
        .wait_for("the slow broker is still in sync", |found| {
            found.iter().all(|found| !found.in_sync_replicas.contains(&slow))
        })
        .await?;
    trial.node(slow)?.ready().await?;
    trial.fault("the others go on");
    // Its own threads go on too: whoever waits for its disk is no worker that serves.
    let (answer, now) = tokio::join!(
        slowest_answer(
            trial.cluster.nodes().iter().find(|node| node.id() == slow).context("it is one of three")?
        ),
        acknowledged_within(&trial)
    );
    let (answer, now) = (answer?, now?);
    let gap = trial.resumed().await?;
    ensure!(gap < Duration::from_secs(1), "a slow follower that is not in sync held writes back for {gap:?}");
    trial.node(slow)?.kill()?;
    trial.node(slow)?.set_wrapper(Vec::new());
    trial.client.admin().undrain_broker(slow).await?;
    trial.cluster.heal().await?;
    trial.whole().await?;
    trial.finish().await?;
    println!("slow disk: p99 elsewhere {now:?}, before {usual:?}; its slowest answer took {answer:?}");
    let p99_max = usual * 3 + ms(50);
    ensure!(
        now < p99_max,
        "acknowledged within {now:?} at the 99th percentile elsewhere, and {usual:?} before"
    );
    ensure!(answer < Duration::from_secs(1), "a broker whose disk is slow took {answer:?} to answer");
    Ok(())
}
