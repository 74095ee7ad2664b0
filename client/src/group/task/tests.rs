use quire_protocol::{PartitionIndex, TopicId};

use super::*;
use crate::group::membership;
use crate::group::membership::Settings;
use crate::metadata::tests::led_by;

fn id(partition: u32) -> TopicPartition {
    TopicPartition { topic: TopicId([7; 16]), partition: PartitionIndex(partition) }
}

fn named(partitions: &[u32]) -> Partitions {
    partitions.iter().map(|partition| (id(*partition), "t".into())).collect()
}

fn additions(partitions: &[u32]) -> Vec<Addition> {
    let topic = Arc::new(led_by(7, &[None, None]));
    let addition = |partition: &u32| Addition {
        topic: Arc::clone(&topic),
        partition: PartitionIndex(*partition),
        offset: Offset(3),
        high_watermark: Offset(9),
    };
    partitions.iter().map(addition).collect()
}

fn assigned(partitions: &[u32]) -> Input {
    let assigned = membership::write(partitions.iter().copied().map(id));
    Input::Answered(Ok(GroupHeartbeatResponse {
        member_epoch: 1,
        heartbeat_interval_ms: 1000,
        has_assignment: true,
        assignment: assigned,
        revision: 1,
        ..GroupHeartbeatResponse::default()
    }))
}

/// One that has asked to join, and whose requests are never sent: nothing of it is polled.
struct Rig {
    task: Task,
    events: mpsc::UnboundedReceiver<Event>,
}

impl Rig {
    fn new() -> Rig {
        let now = Instant::now();
        let client = Client::of_nobody();
        let settings = Settings {
            group: "g".into(),
            topics: vec!["t".into()],
            assignor: "sticky".into(),
            instance_id: String::new(),
            rack: String::new(),
            client_name: "test".into(),
            session_timeout: Duration::from_secs(45),
            rebalance_timeout: Duration::from_secs(60),
        };
        let options = Options {
            from: Position::Beginning,
            retry_timeout: Duration::from_secs(60),
            poll_interval: Duration::from_secs(300),
        };
        let (events, shown) = mpsc::unbounded_channel();
        let mut task = Task::new(
            client.clone(),
            Arc::new(Coordinator::new(client, "g".into())),
            Membership::new(now, settings, "m".into()),
            options,
            events,
            Arc::new(Busy::new(now)),
        );
        task.tell(Input::TimePassed);
        Rig { task, events: shown }
    }

    fn shown(&mut self) -> Vec<String> {
        let mut shown = Vec::new();
        while let Ok(event) = self.events.try_recv() {
            shown.push(match event {
                Event::Take(life, additions) => format!("take {} in {life}", additions.len()),
                Event::Release(life, ids) => format!("release {} in {life}", ids.len()),
                Event::Lose(ids) => format!("lose {}", ids.len()),
                Event::Fail(error) => format!("fail: {error}"),
            });
        }
        shown
    }
}

/// Where to read from was found out after the member had been fenced, and two members read the same partition.
#[test]
fn what_was_prepared_before_it_was_fenced_is_not_read() {
    let mut rig = Rig::new();
    rig.task.tell(assigned(&[0, 1]));
    assert_eq!(rig.task.preparing.len(), 1);
    rig.task.tell(Input::Abandoned);
    assert!(rig.task.preparing.is_empty(), "nobody needs it any more");
    rig.task.tell(Input::Returned);
    rig.task.tell(assigned(&[1]));
    let prepared = |life, partitions: &[u32]| Prepared {
        life,
        partitions: named(partitions),
        found: Ok(additions(partitions)),
    };
    rig.task.prepared(prepared(0, &[0, 1]));
    rig.task.prepared(prepared(1, &[1]));
    assert_eq!(rig.shown(), ["lose 2", "take 1 in 1"]);
}
