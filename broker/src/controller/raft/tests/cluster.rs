//! Three nodes, and what happens to them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use quire_engine::controller::image::BrokerState;
use quire_engine::controller::{Image, RegisterBroker, Request};
use quire_protocol::BrokerId;
use quire_storage::disk::Fault;

use super::mesh::{Cluster, Host, create, create_surely, registration, timing};
use crate::controller::raft::{Heartbeat, HeartbeatAnswer, RaftMetadata, Timing};
use crate::controller::{Metadata, ProposeError};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_node_has_changes_made_and_sees_them_when_it_is_answered() {
    let cluster = Cluster::start(1, timing()).await;
    for (position, node) in cluster.nodes.iter().enumerate() {
        let name = format!("t-{position}");
        node.propose(create(&name)).await.expect("the quorum is whole");
        assert!(node.image().topic_named(&name).is_some(), "who is answered sees it");
        let refused = node.propose(create(&name)).await;
        assert!(matches!(refused, Err(ProposeError::Refused(_))), "{refused:?}");
    }
    cluster.agree().await;
    let quorum = cluster.nodes[2].quorum();
    assert_eq!(quorum.voters.keys().copied().collect::<Vec<_>>(), [101, 102, 103]);
    assert_eq!(quorum.leader.map(|(node, broker)| (node, broker.0)), Some((101, 1)));
    assert!(quorum.learners.is_empty() && quorum.applied > 6, "{quorum:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_others_go_on_without_a_leader_that_was_killed() {
    let mut cluster = Cluster::start(2, timing()).await;
    cluster.hosts[0].kill(&cluster.mesh).await;
    let killed = Instant::now();
    create_surely(&cluster.nodes[1], "flights").await;
    println!("a change was made {:?} after the leader was killed", killed.elapsed());
    cluster.active(&[1, 2]).await;
    cluster.reopen(0).await;
    cluster.agree().await;
    assert_eq!(cluster.names(0), ["flights"]);
}

/// Its broker goes on, and would be taken to be there for as long as it sent heartbeats.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_log_failed_follows_nobody_and_the_others_go_on() {
    let cluster = Cluster::start(15, timing()).await;
    cluster.hosts[1].disk.inject(Fault::SyncFails { nth: 1 });
    create_surely(&cluster.nodes[2], "flights").await;
    let failed = &cluster.nodes[1];
    cluster.until("its log does not fail", || failed.quorum().has_failed).await;
    assert_eq!(failed.quorum().leader, None, "it would send heartbeats");
    let refused = failed.propose(create("late")).await;
    assert!(matches!(refused, Err(ProposeError::Failed { .. })), "{refused:?}");
    create_surely(&cluster.nodes[2], "later").await;
    assert!(!cluster.nodes[2].quorum().has_failed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minority_decides_nothing_and_what_it_decided_is_told_apart() {
    let timing = Timing { propose: Duration::from_secs(2), ..timing() };
    let cluster = Cluster::start(3, timing).await;
    cluster.mesh.isolate(1);
    let (lost, kept) =
        tokio::join!(cluster.nodes[0].propose(create("lost")), create_surely(&cluster.nodes[1], "kept"));
    let () = kept;
    assert!(matches!(lost, Err(ProposeError::Unknown { .. })), "{lost:?}");
    assert_eq!(cluster.names(0), Vec::<String>::new(), "nothing uncommitted is shown");
    let refused = cluster.nodes[0].propose(create("later")).await;
    assert!(
        matches!(refused, Err(ProposeError::Unavailable { .. } | ProposeError::Unknown { .. })),
        "{refused:?}"
    );
    let active = cluster.active(&[1, 2]).await;
    let term = cluster.nodes[active].quorum().term;
    cluster.mesh.heal();
    cluster.agree().await;
    assert_eq!(cluster.names(0), ["kept"]);
    assert_eq!(cluster.nodes[active].quorum().term, term, "who comes back disturbs nobody");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_away_catches_up_by_the_log() {
    let mut cluster = Cluster::start(4, timing()).await;
    cluster.hosts[2].kill(&cluster.mesh).await;
    for number in 0..20 {
        cluster.nodes[0].propose(create(&format!("t-{number}"))).await.expect("two are a quorum");
    }
    cluster.reopen(2).await;
    cluster.agree().await;
    assert_eq!(cluster.names(2).len(), 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_away_for_long_catches_up_by_a_snapshot() {
    let timing = Timing { snapshot_entries: 8, ..timing() };
    let mut cluster = Cluster::start(5, timing).await;
    cluster.hosts[2].kill(&cluster.mesh).await;
    for number in 0..60 {
        cluster.nodes[0].propose(create(&format!("t-{number}"))).await.expect("two are a quorum");
    }
    cluster.reopen(2).await;
    assert!(cluster.names(2).len() < 60);
    cluster.agree().await;
    assert_eq!(cluster.names(2).len(), 60);
    // And it has it for good.
    cluster.hosts[2].kill(&cluster.mesh).await;
    cluster.hosts[2].lose_power();
    cluster.reopen(2).await;
    cluster.agree().await;
    assert_eq!(cluster.names(2).len(), 60);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_acknowledged_survives_when_all_lose_power_at_once() {
    let timing = Timing { snapshot_entries: 16, ..timing() };
    let mut cluster = Cluster::start(6, timing).await;
    let mut made = Vec::new();
    for round in 0..4 {
        for number in 0..8 {
            let name = format!("t-{round}-{number}");
            create_surely(&cluster.nodes[number % 3], &name).await;
            made.push(name);
        }
        let terms: Vec<_> = cluster.nodes.iter().map(|node| node.quorum().term).collect();
        for host in &cluster.hosts {
            host.lose_power();
        }
        for host in &cluster.hosts {
            host.kill(&cluster.mesh).await;
        }
        for position in [2, 0, 1] {
            cluster.reopen(position).await;
        }
        cluster.active(&[0, 1, 2]).await;
        cluster.agree().await;
        assert_eq!(cluster.names(0), made);
        for (node, term) in cluster.nodes.iter().zip(terms) {
            assert!(node.quorum().term >= term, "a vote was forgotten");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_are_made_once_over_a_network_that_loses_messages() {
    let timing = Timing { propose: Duration::from_secs(1), ..timing() };
    let cluster = Cluster::start(7, timing).await;
    cluster.mesh.set_loss(8);
    let ask = async |position: usize| {
        for number in 0..15 {
            create_surely(&cluster.nodes[position], &format!("t-{position}-{number:02}")).await;
        }
    };
    tokio::join!(ask(0), ask(1), ask(2));
    cluster.mesh.heal();
    cluster.agree().await;
    assert_eq!(cluster.names(0).len(), 45);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_resigns_hands_over_at_once() {
    let cluster = Cluster::start(8, timing()).await;
    let begun = Instant::now();
    cluster.nodes[0].resign(Duration::from_secs(5)).await;
    let active = cluster.active(&[1, 2]).await;
    println!("the leadership was handed over in {:?}", begun.elapsed());
    assert!(!cluster.nodes[0].is_active());
    cluster.nodes[0].propose(create("flights")).await.expect("there is a leader");
    cluster.nodes[active].close().await.expect("nothing failed");
}

/// One heartbeat to whoever is the active controller among the first node's peers.
async fn beat(
    controller: &RaftMetadata,
    of: &RaftMetadata,
    broker: u32,
    wants_drain: bool,
) -> HeartbeatAnswer {
    let image = of.image();
    let epoch = image.broker(BrokerId(broker)).map_or(0, |broker| broker.epoch);
    let applied = *of.applied().borrow();
    controller.heartbeat(Heartbeat { broker: BrokerId(broker), epoch, applied, wants_drain }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn brokers_that_are_heard_are_unfenced_and_those_that_fall_silent_are_fenced() {
    let cluster = Cluster::start(9, timing()).await;
    let state = |broker| cluster.nodes[1].image().broker(BrokerId(broker)).map(|broker| broker.state);
    assert_eq!(state(1), Some(BrokerState::Fenced), "nobody heard of it yet");
    let elsewhere = beat(&cluster.nodes[1], &cluster.nodes[1], 2, false).await;
    assert_eq!(elsewhere, HeartbeatAnswer::Elsewhere(Some(BrokerId(1))));
    let stale = Heartbeat { broker: BrokerId(1), epoch: 77, applied: 0, wants_drain: false };
    assert_eq!(cluster.nodes[0].heartbeat(stale).await, HeartbeatAnswer::Stale);
    let behind = Heartbeat { epoch: 1, ..stale };
    let heard = cluster.nodes[0].heartbeat(behind).await;
    assert_eq!(heard, HeartbeatAnswer::Heard { is_fenced: true, may_stop: false });

    let beating = async {
        loop {
            for (node, broker) in cluster.nodes.iter().zip(1..=2) {
                beat(&cluster.nodes[0], node, broker, false).await;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let unfenced = Some(BrokerState::Unfenced);
    tokio::select! {
        () = beating => {}
        () = cluster.until("both are unfenced", || state(1) == unfenced && state(2) == unfenced) => {}
    }
    assert_eq!(state(3), Some(BrokerState::Fenced));
    let fenced = Some(BrokerState::Fenced);
    cluster.until("silence is noticed", || state(1) == fenced && state(2) == fenced).await;
}

/// It takes itself for the leader until it hears of another. A broker that went on to be heard by it would take itself for
/// alive, and its metadata for new, while the others have long fenced it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_from_its_quorum_hears_nobody() {
    let cluster = Cluster::start(11, timing()).await;
    let is_heard = async |position: usize| {
        let answer = beat(&cluster.nodes[position], &cluster.nodes[0], 1, false).await;
        matches!(answer, HeartbeatAnswer::Heard { .. })
    };
    let until_heard = async |position: usize| {
        let heard = async {
            while !is_heard(position).await {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), heard).await.expect("there is a quorum");
    };
    // The founder, unless the machine was busy.
    let cut = cluster.active(&[0, 1, 2]).await;
    until_heard(cut).await;
    cluster.mesh.isolate(cut as u32 + 1);
    cluster.until("it notices", || !cluster.nodes[cut].has_quorum()).await;
    assert!(cluster.nodes[cut].is_active(), "nobody told it that another leads");
    let answer = beat(&cluster.nodes[cut], &cluster.nodes[cut], 1, false).await;
    assert_eq!(answer, HeartbeatAnswer::Elsewhere(None));
    let others: Vec<_> = (0..3).filter(|position| *position != cut).collect();
    let active = cluster.active(&others).await;
    let has_quorum = |position: &usize| cluster.nodes[*position].has_quorum();
    cluster.until("the others are a quorum", || others.iter().all(has_quorum)).await;
    until_heard(active).await;
    cluster.mesh.heal();
    cluster.until("it follows", || has_quorum(&cut)).await;
    assert!(!is_heard(cut).await, "another leads");
}

/// Whoever replaces a controller has waited for it to be heard of: its broker need not be waited for from the beginning.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_that_was_replaced_is_fenced_a_session_after_it_was_last_heard() {
    let timing = Timing {
        election_min: Duration::from_millis(700),
        election_max: Duration::from_millis(800),
        ..timing()
    };
    let session = Duration::from_secs(2);
    let mut cluster = Cluster::start_patiently(12, timing, session).await;
    let image = |cluster: &Cluster, at: usize| cluster.nodes[at].image();
    let is_fenced =
        |image: &Image| image.broker(BrokerId(1)).is_none_or(|broker| broker.state == BrokerState::Fenced);
    let beating = async {
        loop {
            beat(&cluster.nodes[0], &cluster.nodes[0], 1, false).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = beating => {}
        () = cluster.until("it is unfenced", || (1..3).all(|at| !is_fenced(&image(&cluster, at)))) => {}
    }
    cluster.hosts[0].kill(&cluster.mesh).await;
    let active = cluster.active(&[1, 2]).await;
    let elected = Instant::now();
    cluster.until("it is fenced", || is_fenced(&image(&cluster, active))).await;
    // Voters waited for it 1.5 s at least before they elected another.
    assert!(elected.elapsed() < session - Duration::from_millis(400), "{:?}", elected.elapsed());
    cluster.reopen(0).await;
    cluster.agree().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_lost_its_disk_comes_back_as_another_node() {
    let mut cluster = Cluster::start(10, timing()).await;
    cluster.hosts[2].kill(&cluster.mesh).await;
    cluster.hosts[2] = Host::with_node(3, 999);
    cluster.reopen(2).await;
    let seeds = [cluster.hosts[1].member()];
    cluster.nodes[2].join(&seeds, Duration::from_secs(10)).await.expect("there is a leader");
    let request = Request::RegisterBroker(RegisterBroker {
        incarnation: [7; 16],
        directory: [8; 16],
        node: 999,
        ..registration(3)
    });
    cluster.nodes[2].propose(request).await.expect("there is a leader");
    let voters = |position: usize| cluster.nodes[position].quorum().voters;
    let are_right = |voters: BTreeMap<u64, BrokerId>| voters.keys().eq([101, 102, 999].iter());
    cluster
        .until("it votes in place of the old one", || (0..3).all(|position| are_right(voters(position))))
        .await;
}
