//! Elections without a replica that holds everything.

use super::*;

#[test]
fn an_unclean_leader_is_chosen_only_if_that_is_asked_for() {
    let (mut cluster, id) = Cluster::of_three("1");
    for broker in [0, 1, 2] {
        cluster.fence(broker);
    }
    cluster.unfence(0);
    assert!(cluster.show(id).starts_with("-@"), "{}", cluster.show(id));
    cluster.ask(Request::ElectUnclean { partition: id });
    assert!(cluster.show(id).ends_with(" 0 () recovering"), "{}", cluster.show(id));
    cluster.unfence(1);
    cluster.change_in_sync(id, &[0, 1]);
    assert!(cluster.show(id).ends_with(" 0,1 ()"), "somebody has what it has: {}", cluster.show(id));
    let again = cluster.try_ask(Request::ElectUnclean { partition: id });
    assert!(matches!(again, Err(Refusal::HasLeader { .. })), "{again:?}");

    cluster.fence(0);
    cluster.fence(1);
    cluster.unfence(2);
    let set_config = BTreeMap::from([("unclean.leader.election.enable".to_owned(), "true".to_owned())]);
    let alter = AlterTopic { name: "flights".into(), set_config, ..AlterTopic::default() };
    cluster.ask(Request::AlterTopic(alter));
    assert!(cluster.show(id).ends_with(" 2 () recovering"), "{}", cluster.show(id));
}

/// Whether a replica is damaged was forgotten once it was out of sync: it was elected for being the first, did not lead, said
/// so, and was elected again.
#[test]
fn an_unclean_leader_is_an_intact_one_or_else_each_suspect_in_its_turn() {
    let (mut cluster, id) = Cluster::of_three("1");
    for broker in [2, 1, 0] {
        cluster.fence(broker);
    }
    for broker in [0, 1, 2] {
        let registration = RegisterBroker { suspects: vec![id], ..cluster.registration(broker) };
        let suspect = if broker < 2 { registration } else { cluster.registration(broker) };
        cluster.ask(Request::RegisterBroker(suspect));
    }
    assert_eq!(cluster.partition(id).suspects, ids(&[0, 1]));
    let elect = |cluster: &mut Cluster| cluster.ask(Request::ElectUnclean { partition: id });
    let report = |cluster: &mut Cluster, broker| {
        let epoch = cluster.epoch(broker);
        cluster.ask(Request::ReportSuspect { broker: BrokerId(broker), epoch, partition: id });
    };
    for broker in [0, 1, 2] {
        cluster.unfence(broker);
    }
    elect(&mut cluster);
    assert!(
        cluster.show(id).ends_with(" 2 () recovering"),
        "nothing is held against it: {}",
        cluster.show(id)
    );

    cluster.fence(2);
    report(&mut cluster, 2);
    assert_eq!(cluster.partition(id).suspects, ids(&[0, 1, 2]));
    for leader in [0, 1, 0] {
        elect(&mut cluster);
        assert!(cluster.show(id).ends_with(&format!(" {leader} () recovering")), "{}", cluster.show(id));
        report(&mut cluster, leader);
        assert!(cluster.show(id).starts_with("-@"), "it is damaged: {}", cluster.show(id));
    }
    // Who leads is what the others have to be like, and who caught up with it is.
    elect(&mut cluster);
    cluster.change_in_sync(id, &[0, 1]);
    assert_eq!(cluster.partition(id).suspects, ids(&[2]));
}
