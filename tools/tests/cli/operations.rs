//! `quire cluster`, `quire acl`, `quire topic reassign`: against a cluster of one.

use crate::support::Dev;

#[test]
fn an_operator_sees_the_cluster_and_who_may_do_what() {
    let dev = Dev::start();
    let home = &dev.home;
    home.stdout(&["topic", "create", "flights", "--partitions", "3"]);

    let status = home.stdout(&["cluster", "status"]);
    assert!(status.contains("1 broker\n") && status.contains("serving"), "{status}");
    let status = &home.json(&["cluster", "status", "--json"])[0];
    assert_eq!(status["partitions"], 3);
    assert_eq!(status["brokers"][0]["leads"], 3);
    assert_eq!(status["brokers"][0]["state"], "serving");
    let broker = status["brokers"][0]["broker"].to_string();

    assert_eq!(home.stdout(&["cluster", "rebalance"]), "balanced: nothing to move\n");
    let drained = home.stdout(&["cluster", "drain", &broker]);
    assert_eq!(drained, format!("broker {broker} still leads 3 partitions\n"));
    assert!(home.stdout(&["cluster", "status"]).contains("draining"));
    let undone = home.stdout(&["cluster", "drain", &broker, "--undo"]);
    assert_eq!(undone, format!("broker {broker} may lead again\n"));
    let unknown = home.failure(&["cluster", "drain", "77"], 1);
    assert!(unknown.contains("no broker 77 in this cluster (UNKNOWN_BROKER, not retriable)"), "{unknown}");
    let own = home.failure(&["cluster", "remove", &broker], 1);
    assert!(own.contains("ask another one to remove it"), "{own}");

    let same = home.stdout(&["topic", "reassign", "flights", "1", "--replicas", &broker]);
    assert_eq!(same, format!("flights partition 1 is held by {broker}\n"));
    let unknown = home.failure(&["topic", "reassign", "flights", "1", "--replicas", "77"], 1);
    assert!(unknown.contains("no broker 77"), "{unknown}");
    let elected = home.stdout(&["topic", "elect", "flights"]);
    assert_eq!(elected, "flights: 0 partitions with another leader\n");

    assert_eq!(home.stdout(&["acl", "list"]), "");
    let added = home.stdout(&["acl", "add", "billing", "produce", "--prefix", "bill."]);
    assert_eq!(added, "billing may produce to topics that begin with \"bill.\"\n");
    let listed = &home.json(&["acl", "list", "--json"])[0];
    assert_eq!(listed["principal"], "billing");
    assert_eq!(listed["operation"], "produce");
    assert_eq!(listed["topic_prefix"], "bill.");
    assert!(home.stdout(&["acl", "list"]).contains("bill.*"));
    home.stdout(&["acl", "remove", "billing", "produce", "--prefix", "bill."]);
    let again = home.failure(&["acl", "remove", "billing", "produce", "--prefix", "bill."], 1);
    assert!(again.contains("no such right was given"), "{again}");
}
