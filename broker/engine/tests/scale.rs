//! What ten thousand partitions take: in a snapshot, and in the one decision that fences a broker.

use quire_engine::SplitMix64;
use quire_engine::controller::{Controller, CreateTopic, Image, Record, RegisterBroker, Request};
use quire_engine::machine::Replicated;
use quire_protocol::{BrokerId, Timestamp, limits};

const PARTITIONS: u32 = 10_000;
/// Bytes that each partition of three replicas may take in a snapshot.
const SNAPSHOT_BYTES_EACH: usize = 32;

fn commit(controller: &mut Controller, random: &mut SplitMix64, request: Request) -> Vec<Record> {
    let records = controller.decide(Timestamp(1_000), random, request).expect("it is not refused").records;
    for record in &records {
        controller.apply(record).expect("what was decided fits");
    }
    records
}

/// Three brokers that all hold every partition.
fn cluster() -> (Controller, SplitMix64) {
    let (mut controller, mut random) = (Controller::new(), SplitMix64::new(7));
    for broker in (1..=3).map(BrokerId) {
        let registration = RegisterBroker {
            cluster_id: "c".into(),
            broker,
            incarnation: [1; 16],
            host: "localhost".into(),
            port: 1,
            ..RegisterBroker::default()
        };
        commit(&mut controller, &mut random, Request::RegisterBroker(registration));
        commit(&mut controller, &mut random, Request::UnfenceBroker { broker, epoch: 1 });
    }
    let topic =
        CreateTopic { name: "t".into(), partitions: PARTITIONS, replicas: Some(3), ..CreateTopic::default() };
    commit(&mut controller, &mut random, Request::CreateTopic(topic));
    (controller, random)
}

fn led_by(image: &Image, broker: BrokerId) -> usize {
    image.topics().flat_map(|topic| &topic.partitions).filter(|p| p.leader == Some(broker)).count()
}

#[test]
fn a_snapshot_is_small_and_comes_back_the_same() {
    let (controller, _) = cluster();
    let bytes = controller.image().encode_snapshot();
    let most = SNAPSHOT_BYTES_EACH * PARTITIONS as usize;
    assert!(bytes.len() <= most, "{} bytes, at most {most}", bytes.len());
    let decoded = Image::decode_snapshot(&bytes).expect("it was just encoded");
    assert_eq!(decoded, **controller.image());
}

#[test]
fn fencing_a_broker_moves_all_it_leads_in_one_decision_that_fits_a_message() {
    let (mut controller, mut random) = cluster();
    let led = led_by(controller.image(), BrokerId(2));
    assert!(led.abs_diff(PARTITIONS as usize / 3) <= 1, "each leads a third, not {led}");
    let fence = Request::FenceBroker { broker: BrokerId(2), epoch: 1 };
    let records = commit(&mut controller, &mut random, fence);
    assert_eq!(led_by(controller.image(), BrokerId(2)), 0);
    assert!(controller.image().topics().flat_map(|t| &t.partitions).all(|p| p.leader.is_some()));
    let bytes: usize = records.iter().map(|record| record.encode().len()).sum();
    assert!(bytes <= limits::RAFT_APPEND_BYTES, "{bytes} bytes");
}
