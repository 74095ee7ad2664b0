//! `quire cluster`, `quire acl`, `quire topic reassign`: against a cluster of one, and of three.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::cluster::Three;
use crate::support::{Dev, Home, path};

#[test]
fn an_operator_sees_the_cluster_and_who_may_do_what() {
    let dev = Dev::start();
    let home = &dev.home;
    home.stdout(&["topic", "create", "flights", "--partitions", "3"]);

    let status = home.stdout(&["cluster", "status"]);
    assert!(status.contains("1 broker   controller 1\n") && status.contains("serving"), "{status}");
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

#[test]
fn a_right_to_join_is_of_groups() {
    let dev = Dev::start();
    let home = &dev.home;
    let added = home.stdout(&["acl", "add", "billing-service", "join", "--group", "billing"]);
    assert_eq!(added, "billing-service may join groups that begin with \"billing\"\n");
    home.stdout(&["acl", "add", "ops", "join"]);
    home.stdout(&["acl", "add", "ops", "administer"]);
    home.stdout(&["acl", "add", "ops", "consume"]);
    let listed = home.json(&["acl", "list", "--json"]);
    assert_eq!((&listed[0]["operation"], &listed[0]["group_prefix"]), (&"join".into(), &"billing".into()));
    assert_eq!(listed[0]["topic_prefix"], Value::Null);
    let page = home.stdout(&["acl", "list"]);
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(
        page.lines().map(words).collect::<Vec<_>>(),
        [
            "PRINCIPAL MAY WITH",
            "billing-service join groups billing*",
            "ops consume all topics",
            "ops join all groups",
            "ops administer everything",
        ]
    );
    for (line, todo) in [
        ("billing-service join --prefix billing", "--group billing"),
        ("billing-service consume --group billing", "--prefix billing"),
        ("billing-service administer --group billing", "leave --group away"),
    ] {
        for verb in ["add", "remove"] {
            let args: Vec<&str> = ["acl", verb].into_iter().chain(line.split(' ')).collect();
            let refused = home.failure(&args, 2);
            assert!(refused.contains(todo), "{refused}");
        }
    }
    let odd = home.failure(&["acl", "add", "billing-service", "join", "--group", "two\nlines"], 1);
    assert!(odd.contains("control characters"), "{odd}");
    let remove = ["acl", "remove", "billing-service", "join", "--group", "billing"];
    let removed = home.quire(&remove).assert().success().get_output().clone();
    let told = crate::support::text(&removed.stdout);
    assert_eq!(told, "taken away: billing-service may join groups that begin with \"billing\"\n");
    assert!(crate::support::text(&removed.stderr).contains("at their next heartbeat"));
    assert_eq!(home.json(&["acl", "list", "--json"]).len(), 3);
}

fn numbers(value: &Value) -> Vec<u64> {
    value.as_array().into_iter().flatten().filter_map(Value::as_u64).collect()
}

#[test]
fn whoever_is_asked_names_the_controller_and_what_a_dead_broker_leaves() {
    let mut three = Three::start();
    three.home.stdout(&["topic", "create", "flights", "--replicas", "3", "--partitions", "6"]);
    let records: String = (0..600).map(|number| format!("{number}\n")).collect();
    three.home.pipe(&["produce", "flights"], records);

    let vote = |status: &Value| numbers(&status["voters"]) == [1, 2, 3] && status["controller"].is_u64();
    let told = [1, 2, 3].map(|broker| three.wait_for_status(broker, "all of them vote", vote));
    let controller = told[0]["controller"].as_u64().expect("there is one");
    for status in &told {
        assert_eq!(status["controller"], controller, "alike whoever answers");
        assert_eq!((&status["suspect"], &status["not_asked"]), (&0.into(), &Value::Array(Vec::new())));
        let leads: u64 = (0..3).filter_map(|at| status["brokers"][at]["leads"].as_u64()).sum();
        assert_eq!(leads, 6);
    }
    // Every log is looked at where it is, not only what the one that answers leads.
    let topic = &three.home.json(&["topic", "describe", "flights", "--json"])[0];
    let partitions = topic["partitions"].as_array().expect("a list");
    let total: u64 = partitions.iter().filter_map(|p| p["high_watermark"].as_u64()).sum();
    assert_eq!(total, 600, "{topic}");
    for partition in partitions {
        assert_eq!((&partition["error"], numbers(&partition["in_sync_replicas"]).len()), (&Value::Null, 3));
        assert_eq!(partition["logs"].as_array().map(Vec::len), Some(3), "{partition}");
    }

    let dead = u32::try_from(controller).expect("small");
    three.kill(dead);
    let other = if dead == 1 { 2 } else { 1 };
    let status = three.wait_for_status(other, "another controller, and the dead broker fenced", |status| {
        let next = status["controller"].as_u64();
        let states: Vec<_> = (0..3).map(|at| &status["brokers"][at]["state"]).collect();
        next.is_some_and(|next| next != controller) && states.iter().any(|state| **state == "fenced")
    });
    assert_eq!((&status["under_replicated"], &status["offline"]), (&6.into(), &0.into()), "{status}");
    assert_eq!(numbers(&status["not_asked"]), [controller]);
    let profile = format!("broker-{other}");
    let page = three.home.stdout(&["--profile", &profile, "cluster", "status"]);
    assert!(page.contains("! not heard of") && page.contains("6 under-replicated"), "{page}");
    let page = three.home.stdout(&["--profile", &profile, "topic", "describe", "flights"]);
    assert!(page.contains(&format!("! broker {dead} does not answer")), "{page}");
    assert!(page.contains("600 records   6 under-replicated   0 offline"), "{page}");
}

/// Leaderships by broker, 1 to 3.
fn leads(status: &Value) -> Vec<u64> {
    (0..3).filter_map(|at| status["brokers"][at]["leads"].as_u64()).collect()
}

#[test]
fn a_broker_that_came_back_leads_again_by_itself() {
    let soon = [("QUIRE_CLUSTER_LEADER_RETURN_MS", "500")];
    let mut three = Three::start_with(&soon);
    three.home.stdout(&["topic", "create", "flights", "--replicas", "3", "--partitions", "6"]);
    three.wait_for_status(1, "leaderships are even", |status| leads(status) == [2, 2, 2]);
    three.kill(3);
    three.wait_for_status(1, "the dead broker leads nothing", |status| {
        leads(status)[2] == 0 && status["offline"] == 0
    });
    three.restart(3, &soon);
    let status = three.wait_for_status(1, "it leads what it did", |status| leads(status) == [2, 2, 2]);
    assert_eq!((&status["not_on_preferred_leader"], &status["under_replicated"]), (&0.into(), &0.into()));
}

#[test]
fn a_rebalancing_is_shown_first_and_moves_everything_off_a_broker_that_is_to_leave() {
    let mut three = Three::start();
    let home = &three.home;
    home.stdout(&["topic", "create", "flights", "--replicas", "2", "--partitions", "6"]);
    let records: String = (0..600).map(|number| format!("{number}\n")).collect();
    home.pipe(&["produce", "flights"], records);
    assert_eq!(home.stdout(&["cluster", "rebalance"]), "balanced: nothing to move\n");

    let plan = home.stdout(&["cluster", "rebalance", "--without", "3"]);
    assert!(plan.contains("moves, 4 copied"), "each broker holds four of twelve replicas: {plan}");
    let status = three.status(1);
    assert_eq!(status["brokers"][2]["replicas"], 4, "a plan changes nothing");
    home.failure(&["cluster", "rebalance", "--pace", "1MB"], 2);
    let in_use = home.failure(&["cluster", "remove", "3"], 1);
    assert!(in_use.contains("4"), "{in_use}");

    let moving = ["cluster", "rebalance", "--without", "3", "--execute", "--at-once", "2", "--pace", "1GB"];
    let moved = home.quire(&moving).assert().success().get_output().stderr.clone();
    let moved = crate::support::text(&moved);
    assert!(moved.contains("moved: flights partition"), "{moved}");
    let status = three.status(1);
    assert_eq!(status["brokers"][2]["replicas"], 0, "{status}");
    assert_eq!((&status["under_replicated"], &status["reassigning"]), (&0.into(), &0.into()), "{status}");
    let consumed = home.stdout(&["consume", "flights", "--from", "beginning", "--until", "end"]);
    assert_eq!(consumed.lines().count(), 600);

    assert!(home.stdout(&["cluster", "remove", "3"]).contains("its number is not given again"));
    // It is told so, now and when it is started again.
    three.kill(3);
    three.restart(3, &[]);
    let ended = three.brokers[2].take().expect("it was started").end();
    let why = crate::support::text(&ended.stderr);
    assert!(!ended.status.success(), "{why}");
    assert!(why.contains("was removed from the cluster") && why.contains("quire cluster token"), "{why}");
}

#[test]
fn a_consumer_reads_in_its_rack_and_elsewhere_once_the_broker_there_is_dead() {
    let mut three = Three::start();
    let home = &three.home;
    home.stdout(&["topic", "create", "flights", "--replicas", "3", "--partitions", "3"]);
    let records: String = (0..300).map(|number| format!("{number}\n")).collect();
    home.pipe(&["produce", "flights"], records);
    for rack in ["rack-2", "nowhere"] {
        let consumed = home.stdout(&["consume", "flights", "--rack", rack, "--no-follow"]);
        assert_eq!(consumed.lines().count(), 300, "{rack}");
    }
    let mut following = home.spawn(&["consume", "flights", "--rack", "rack-2", "--follow"]);
    let mut read: BTreeSet<String> = (0..300).map(|_| following.line()).collect();
    three.kill(2);
    let records: String = (300..330).map(|number| format!("{number}\n")).collect();
    three.home.pipe(&["produce", "flights"], records);
    read.extend((300..330).map(|_| following.line()));
    assert_eq!(read, (0..330).map(|number| number.to_string()).collect(), "each once, none left out");
}

#[test]
fn a_replica_whose_log_is_gone_is_shown_as_suspect() {
    let data = Home::new();
    let dev = Dev::start_in(Home::new(), &["--data", path(data.path())]);
    dev.home.stdout(&["topic", "create", "flights", "--partitions", "2"]);
    dev.home.pipe(&["produce", "flights"], "1\n2\n3\n");
    let (home, _) = dev.stop();
    let topics = std::fs::read_dir(data.path().join("topics")).expect("there are topics");
    let topic = topics.map(|entry| entry.expect("it can be listed").path()).next().expect("there is one");
    std::fs::remove_dir_all(topic.join("0")).expect("it was there");

    let dev = Dev::start_in(home, &["--data", path(data.path())]);
    let status = &dev.home.json(&["cluster", "status", "--json"])[0];
    let suspects = &status["suspect_replicas"];
    assert_eq!((&status["suspect"], suspects.as_array().map(Vec::len)), (&1.into(), Some(1)), "{status}");
    assert_eq!((&suspects[0]["topic"], &suspects[0]["partition"]), (&"flights".into(), &0.into()));
    let page = dev.home.stdout(&["cluster", "status"]);
    assert!(page.contains("1 suspect") && page.contains("flights partition 0 is suspect: "), "{page}");
}
