//! `quire topic`: create, list, describe, alter, delete, reassign.

use std::collections::BTreeMap;
use std::io::{self, BufRead, IsTerminal};
use std::time::Duration;

use clap::{Args, Subcommand};
use quire_client::{Client, NewTopic, PartitionDescription, TopicAlteration, TopicDescription, TopicSummary};
use quire_protocol::{BrokerId, PartitionIndex};
use serde::Serialize;

use crate::args::JsonArg;
use crate::connect;
use crate::failure::{Exit, Failure};
use crate::output::{self, Align, Palette, Table, counted, thousands};
use crate::time;

/// The setting that says how old records go.
const CLEANUP: &str = "cleanup.policy";

/// What to do with topics.
#[derive(Debug, Subcommand)]
pub enum TopicCommand {
    /// Create a topic
    Create(CreateArgs),
    /// List all topics
    List(JsonArg),
    /// Show a topic's partitions: leader, log start, high watermark, size
    Describe(DescribeArgs),
    /// Change a topic's configuration, or add partitions
    Alter(AlterArgs),
    /// Delete a topic and all its records
    Delete(DeleteArgs),
    /// Give a partition other replicas
    Reassign(ReassignArgs),
    /// Have preferred leaders lead; or, where nobody can without loss, whoever is there
    Elect(ElectArgs),
}

/// A new topic.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// 1 to 249 letters, digits, '.', '_' or '-'
    topic: String,
    /// How many partitions; they can be added later, not taken away
    #[arg(short, long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    partitions: u32,
    /// How many brokers hold each partition [default: the cluster's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    replicas: Option<u32>,
    /// A setting, e.g. retention.ms=3600000 or sync=interval; may be repeated
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = setting)]
    config: Vec<(String, String)>,
    /// Only check whether it could be created
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    output: JsonArg,
}

/// Topics to describe.
#[derive(Debug, Args)]
pub struct DescribeArgs {
    /// Their names
    #[arg(required = true)]
    topics: Vec<String>,
    /// Also show every setting with its effective value (--json always has them)
    #[arg(long)]
    settings: bool,
    #[command(flatten)]
    output: JsonArg,
}

/// Changes to a topic.
#[derive(Debug, Args)]
#[group(id = "change", required = true, multiple = true, args = ["partitions", "config", "unset"])]
pub struct AlterArgs {
    /// Its name
    topic: String,
    /// Grow to so many partitions; keys map to other partitions from then on
    #[arg(short, long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    partitions: Option<u32>,
    /// A setting to change; may be repeated
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = setting)]
    config: Vec<(String, String)>,
    /// A setting to return to its default; may be repeated
    #[arg(long, value_name = "KEY")]
    unset: Vec<String>,
    #[command(flatten)]
    output: JsonArg,
}

/// A topic to delete.
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// Its name
    topic: String,
    /// Do not ask (nobody is asked where standard input is no terminal)
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    output: JsonArg,
}

/// Other replicas for a partition.
#[derive(Debug, Args)]
#[group(id = "target", required = true, multiple = false, args = ["replicas", "cancel"])]
pub struct ReassignArgs {
    /// The topic's name
    topic: String,
    /// The partition's number
    partition: u32,
    /// The brokers that are to hold it, the preferred leader first, e.g. 1,2,3
    #[arg(long, value_name = "BROKERS", value_delimiter = ',')]
    replicas: Vec<u32>,
    /// Give up the reassignment under way
    #[arg(long)]
    cancel: bool,
    #[command(flatten)]
    output: JsonArg,
}

/// Leaders to be elected.
#[derive(Debug, Args)]
pub struct ElectArgs {
    /// The topic's name
    topic: String,
    /// Acknowledged records are lost: have any broker lead this partition, which has no leader
    #[arg(long, value_name = "PARTITION")]
    unclean: Option<u32>,
    /// Do not ask (nobody is asked where standard input is no terminal)
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    output: JsonArg,
}

/// Reads `key=value`.
pub fn setting(text: &str) -> Result<(String, String), String> {
    let parted = text.split_once('=').filter(|(key, _)| !key.is_empty());
    let (key, value) = parted.ok_or("write KEY=VALUE, e.g. retention.ms=3600000")?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}

/// Does it.
///
/// # Errors
/// If the broker can not be reached or refuses, or the answer can not be written.
pub async fn run(profile: Option<&str>, command: &TopicCommand) -> Result<Exit, Failure> {
    let work = async |client: &Client| match command {
        TopicCommand::Create(args) => create(client, args).await,
        TopicCommand::List(args) => list(client, args.json).await,
        TopicCommand::Describe(args) => describe(client, args).await,
        TopicCommand::Alter(args) => alter(client, args).await,
        TopicCommand::Delete(args) => delete(client, args).await,
        TopicCommand::Reassign(args) => reassign(client, args).await,
        TopicCommand::Elect(args) => elect(client, args).await,
    };
    connect::with_client(profile, work).await.map(|()| Exit::Done)
}

async fn create(client: &Client, args: &CreateArgs) -> Result<(), Failure> {
    let mut topic = NewTopic::new(&args.topic).partitions(args.partitions).validate_only(args.dry_run);
    if let Some(replicas) = args.replicas {
        topic = topic.replicas(replicas);
    }
    for (key, value) in &args.config {
        topic = topic.config(key, value);
    }
    let created = client.admin().create_topic(topic).await?;
    if args.output.json {
        return output::print_json(&TopicJson::from(&created));
    }
    let verb = if args.dry_run { "could create" } else { "created" };
    output::print(&format!("{verb} {}\n", headline(&created, Palette::stdout())))
}

async fn list(client: &Client, json: bool) -> Result<(), Failure> {
    let topics = client.admin().list_topics().await?;
    if json {
        return topics.iter().try_for_each(|topic| output::print_json(&SummaryJson::from(topic)));
    }
    if topics.is_empty() {
        output::note("no topics yet   next: quire topic create NAME --partitions 8");
        return Ok(());
    }
    let mut table =
        Table::new(&[("TOPIC", Align::Left), ("PARTITIONS", Align::Right), ("REPLICAS", Align::Right)]);
    for topic in &topics {
        table.row(vec![topic.name.clone(), thousands(topic.partitions.into()), topic.replicas.to_string()]);
    }
    output::print(&table.render(Palette::stdout()))
}

async fn describe(client: &Client, args: &DescribeArgs) -> Result<(), Failure> {
    for (index, name) in args.topics.iter().enumerate() {
        let described = client.admin().describe_topic(name).await;
        let topic = described.map_err(|error| connect::about_topic(name, error))?;
        if args.output.json {
            output::print_json(&TopicJson::from(&topic))?;
            continue;
        }
        let gap = if index == 0 { "" } else { "\n" };
        output::print(&format!("{gap}{}", page(&topic, Palette::stdout())))?;
        if args.settings {
            output::print(&format!("\n{}", settings(&topic, Palette::stdout())))?;
        }
    }
    Ok(())
}

async fn alter(client: &Client, args: &AlterArgs) -> Result<(), Failure> {
    let mut alteration = TopicAlteration::new(&args.topic);
    if let Some(partitions) = args.partitions {
        alteration = alteration.partitions(partitions);
    }
    for (key, value) in &args.config {
        alteration = alteration.set(key, value);
    }
    for key in &args.unset {
        alteration = alteration.unset(key);
    }
    let altered = client.admin().alter_topic(alteration).await;
    let altered = altered.map_err(|error| connect::about_topic(&args.topic, error))?;
    if args.output.json {
        return output::print_json(&TopicJson::from(&altered));
    }
    output::print(&format!("altered {}\n", headline(&altered, Palette::stdout())))
}

async fn delete(client: &Client, args: &DeleteArgs) -> Result<(), Failure> {
    if !args.yes && io::stdin().is_terminal() && io::stderr().is_terminal() {
        let described = client.admin().describe_topic(&args.topic).await;
        let topic = described.map_err(|error| connect::about_unwanted_topic(&args.topic, error))?;
        if !confirmed(&format!("delete {} and its {}?", topic.name, told_records(&topic))) {
            return Err(Failure::failed("nothing deleted: not confirmed"));
        }
    }
    let deleted = client.admin().delete_topic(&args.topic).await;
    deleted.map_err(|error| connect::about_unwanted_topic(&args.topic, error))?;
    if args.output.json {
        return output::print_json(&DeletedJson { name: &args.topic, deleted: true });
    }
    output::print(&format!("deleted {}\n", args.topic))?;
    output::note("its files are removed after the broker's grace period, 60 s by default");
    Ok(())
}

async fn reassign(client: &Client, args: &ReassignArgs) -> Result<(), Failure> {
    let replicas: Vec<_> = args.replicas.iter().map(|id| BrokerId(*id)).collect();
    let replicas = (!args.cancel).then_some(replicas.as_slice());
    let reassigned = client.admin().reassign(&args.topic, PartitionIndex(args.partition), replicas).await;
    let partition = reassigned.map_err(|error| connect::about_topic(&args.topic, error))?;
    if args.output.json {
        return output::print_json(&PartitionJson::from(&partition));
    }
    let (topic, index) = (&args.topic, args.partition);
    if partition.adding_replicas.is_empty() && partition.removing_replicas.is_empty() {
        let held = output::list(&partition.replicas);
        return output::print(&format!("{topic} partition {index} is held by {held}\n"));
    }
    output::print(&format!(
        "{topic} partition {index} moves: adding {}, then removing {}\n",
        output::list(&partition.adding_replicas),
        output::list(&partition.removing_replicas)
    ))?;
    output::note(&format!("to follow it: quire topic describe {topic}"));
    Ok(())
}

async fn elect(client: &Client, args: &ElectArgs) -> Result<(), Failure> {
    let elected = match args.unclean {
        Some(partition) => {
            let question = format!("lose acknowledged records of {} partition {partition}?", args.topic);
            if !args.yes && io::stdin().is_terminal() && io::stderr().is_terminal() && !confirmed(&question) {
                return Err(Failure::failed("nobody elected: not confirmed"));
            }
            let elected = client.admin().elect_unclean_leader(&args.topic, PartitionIndex(partition)).await;
            elected.map(|()| 1)
        }
        None => client.admin().elect_preferred_leaders(Some(&args.topic)).await,
    };
    let elected = elected.map_err(|error| connect::about_topic(&args.topic, error))?;
    if args.output.json {
        return output::print_json(&ElectedJson { name: &args.topic, elected });
    }
    output::print(&format!("{}: {} with another leader\n", args.topic, counted(elected.into(), "partition")))
}

fn confirmed(question: &str) -> bool {
    eprint!("{question} [y/N] ");
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    read.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes")
}

/// `flights   8 partitions   1 replica   sync always   retention 7d`, and what else was set.
fn headline(topic: &TopicDescription, palette: Palette) -> String {
    let partitions = counted(topic.partitions.len() as u64, "partition");
    let mut parts =
        vec![palette.bold(&topic.name).into_owned(), partitions, counted(topic.replicas.into(), "replica")];
    if topic.replicas > 1 {
        parts.push(format!("min.insync.replicas {}", setting_of(topic, "min.insync.replicas")));
    }
    parts.push(format!("sync {}", setting_of(topic, "sync")));
    let policy = setting_of(topic, CLEANUP);
    if is_compacted(topic) {
        parts.push("compacted".to_owned());
    }
    if policy != "compact" {
        parts.push(format!("retention {}", retention(topic)));
    }
    let shown = ["min.insync.replicas", "sync", "retention.ms", CLEANUP];
    let others = topic.overrides.iter().filter(|(key, _)| !shown.contains(&key.as_str()));
    parts.extend(others.map(|(key, value)| format!("{key} {value}")));
    parts.join("   ")
}

/// Whether not every offset holds a record.
fn is_compacted(topic: &TopicDescription) -> bool {
    setting_of(topic, CLEANUP).contains("compact")
}

fn setting_of<'a>(topic: &'a TopicDescription, key: &str) -> &'a str {
    topic.config.get(key).map_or("-", String::as_str)
}

fn retention(topic: &TopicDescription) -> String {
    match setting_of(topic, "retention.ms") {
        "-1" => "for ever".to_owned(),
        text => text
            .parse()
            .map_or_else(|_| text.to_owned(), |millis| time::show_span(Duration::from_millis(millis))),
    }
}

fn page(topic: &TopicDescription, palette: Palette) -> String {
    let mut table = Table::new(&[
        ("PART", Align::Right),
        ("LEADER", Align::Right),
        ("ISR", Align::Left),
        ("ELR", Align::Left),
        ("EPOCH", Align::Right),
        ("PART EPOCH", Align::Right),
        ("LOG START", Align::Right),
        ("HIGH WATERMARK", Align::Right),
        ("SIZE", Align::Right),
    ]);
    for partition in &topic.partitions {
        table.row(row(partition, palette));
    }
    let under_replicated =
        topic.partitions.iter().filter(|p| p.in_sync_replicas.len() < p.replicas.len()).count() as u64;
    let offline = topic.partitions.iter().filter(|p| p.leader.is_none()).count() as u64;
    format!(
        "{}\n{} {}   {} under-replicated   {} offline\n",
        headline(topic, palette),
        table.render(palette),
        told_records(topic),
        thousands(under_replicated),
        thousands(offline),
    )
}

fn settings(topic: &TopicDescription, palette: Palette) -> String {
    let mut table = Table::new(&[("SETTING", Align::Left), ("VALUE", Align::Left), ("", Align::Left)]);
    for (key, value) in &topic.config {
        let origin = if topic.overrides.contains_key(key) { "set for this topic" } else { "" };
        table.row(vec![key.clone(), value.clone(), origin.to_owned()]);
    }
    table.render(palette)
}

fn row(partition: &PartitionDescription, palette: Palette) -> Vec<String> {
    let mut cells = vec![
        partition.partition.to_string(),
        partition.leader.map_or_else(|| "-".to_owned(), |leader| leader.to_string()),
        output::list(&partition.in_sync_replicas),
        output::list(&partition.eligible_leader_replicas),
        partition.leader_epoch.to_string(),
        partition.partition_epoch.to_string(),
        thousands(partition.log_start.0),
        thousands(partition.high_watermark.0),
        output::bytes(partition.size_bytes),
    ];
    let out_of_sync = partition.replicas.iter().filter(|id| !partition.in_sync_replicas.contains(id));
    let behind = out_of_sync.map(|id| behind(partition, *id)).collect::<Vec<_>>().join(", ");
    match &partition.error {
        Some(error) => cells.push(palette.warning(&format!("! {error}")).into_owned()),
        None if partition.leader.is_none() => cells.push(palette.warning("! no leader").into_owned()),
        None if partition.is_recovering => {
            cells.push(
                palette.warning("! records may be lost: nobody has followed its leader yet").into_owned(),
            );
        }
        None if !partition.adding_replicas.is_empty() || !partition.removing_replicas.is_empty() => {
            let (adding, removing) = (&partition.adding_replicas, &partition.removing_replicas);
            let moves = format!("adding {}, removing {}", output::list(adding), output::list(removing));
            cells.push(if behind.is_empty() { moves } else { format!("{moves}: {behind}") });
        }
        None if !behind.is_empty() => cells.push(palette.warning(&format!("! {behind}")).into_owned()),
        None => {}
    }
    cells
}

/// What is known of a replica that is not in sync.
fn behind(partition: &PartitionDescription, broker: BrokerId) -> String {
    match partition.behind(broker) {
        Some(records) => format!("broker {broker} is {} behind", thousands(records)),
        None => format!("broker {broker} does not answer"),
    }
}

fn records(topic: &TopicDescription) -> u64 {
    topic.partitions.iter().map(|partition| partition.high_watermark.since(partition.log_start)).sum()
}

/// `78,504 records`, or that there are at most so many.
fn told_records(topic: &TopicDescription) -> String {
    let records = records(topic);
    let at_most = if is_compacted(topic) && records > 0 { "at most " } else { "" };
    format!("{at_most}{}", counted(records, "record"))
}

#[derive(Serialize)]
struct SummaryJson<'a> {
    name: &'a str,
    id: String,
    partitions: u32,
    replicas: u32,
}

impl<'a> From<&'a TopicSummary> for SummaryJson<'a> {
    fn from(topic: &'a TopicSummary) -> SummaryJson<'a> {
        SummaryJson {
            name: &topic.name,
            id: topic.id.to_string(),
            partitions: topic.partitions,
            replicas: topic.replicas,
        }
    }
}

#[derive(Serialize)]
struct DeletedJson<'a> {
    name: &'a str,
    deleted: bool,
}

#[derive(Serialize)]
struct ElectedJson<'a> {
    name: &'a str,
    elected: u32,
}

#[derive(Serialize)]
struct TopicJson<'a> {
    name: &'a str,
    id: String,
    replicas: u32,
    overrides: &'a BTreeMap<String, String>,
    config: &'a BTreeMap<String, String>,
    partitions: Vec<PartitionJson>,
}

#[derive(Serialize)]
struct PartitionJson {
    partition: u32,
    leader: Option<u32>,
    leader_epoch: u32,
    replicas: Vec<u32>,
    in_sync_replicas: Vec<u32>,
    eligible_leader_replicas: Vec<u32>,
    partition_epoch: u32,
    adding_replicas: Vec<u32>,
    removing_replicas: Vec<u32>,
    recovering: bool,
    log_start: u64,
    high_watermark: u64,
    log_end: u64,
    size_bytes: u64,
    error: Option<String>,
    /// Of each replica whose broker answered.
    logs: Vec<LogJson>,
}

#[derive(Serialize)]
struct LogJson {
    broker: u32,
    log_start: u64,
    high_watermark: u64,
    log_end: u64,
    /// Records that the leader has beyond its end; null if the leader did not answer.
    behind: Option<u64>,
    size_bytes: u64,
    error: Option<String>,
}

impl<'a> From<&'a TopicDescription> for TopicJson<'a> {
    fn from(topic: &'a TopicDescription) -> TopicJson<'a> {
        TopicJson {
            name: &topic.name,
            id: topic.id.to_string(),
            replicas: topic.replicas,
            overrides: &topic.overrides,
            config: &topic.config,
            partitions: topic.partitions.iter().map(PartitionJson::from).collect(),
        }
    }
}

impl From<&PartitionDescription> for PartitionJson {
    fn from(partition: &PartitionDescription) -> PartitionJson {
        let numbers = |brokers: &[quire_protocol::BrokerId]| brokers.iter().map(|broker| broker.0).collect();
        PartitionJson {
            partition: partition.partition.0,
            leader: partition.leader.map(|leader| leader.0),
            leader_epoch: partition.leader_epoch.0,
            replicas: numbers(&partition.replicas),
            in_sync_replicas: numbers(&partition.in_sync_replicas),
            eligible_leader_replicas: numbers(&partition.eligible_leader_replicas),
            partition_epoch: partition.partition_epoch,
            adding_replicas: numbers(&partition.adding_replicas),
            removing_replicas: numbers(&partition.removing_replicas),
            recovering: partition.is_recovering,
            log_start: partition.log_start.0,
            high_watermark: partition.high_watermark.0,
            log_end: partition.log_end.0,
            size_bytes: partition.size_bytes,
            error: partition.error.as_ref().map(ToString::to_string),
            logs: partition
                .logs
                .iter()
                .map(|log| LogJson {
                    broker: log.broker.0,
                    log_start: log.log_start.0,
                    high_watermark: log.high_watermark.0,
                    log_end: log.log_end.0,
                    behind: partition.behind(log.broker),
                    size_bytes: log.size_bytes,
                    error: log.error.as_ref().map(ToString::to_string),
                })
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quire_client::ReplicaLog;
    use quire_protocol::topic_config::TopicConfig;
    use quire_protocol::{LeaderEpoch, Offset, TopicId};

    fn partition(index: u32, leader: Option<u32>) -> PartitionDescription {
        PartitionDescription {
            partition: PartitionIndex(index),
            leader: leader.map(BrokerId),
            leader_epoch: LeaderEpoch(4),
            replicas: vec![BrokerId(1), BrokerId(2), BrokerId(3)],
            in_sync_replicas: leader.map_or_else(Vec::new, |_| vec![BrokerId(1), BrokerId(2), BrokerId(3)]),
            eligible_leader_replicas: Vec::new(),
            partition_epoch: 5,
            adding_replicas: Vec::new(),
            removing_replicas: Vec::new(),
            is_recovering: false,
            log_start: Offset(10),
            high_watermark: Offset(39_262),
            log_end: Offset(39_262),
            size_bytes: 8_493_466,
            error: None,
            logs: Vec::new(),
        }
    }

    fn topic() -> TopicDescription {
        TopicDescription {
            name: "flights".into(),
            id: TopicId([7; 16]),
            replicas: 3,
            partitions: vec![partition(0, Some(1)), partition(1, None)],
            overrides: BTreeMap::from([("segment.bytes".to_owned(), "65536".to_owned())]),
            config: TopicConfig::default().entries().map(|(key, value)| (key.to_owned(), value)).collect(),
        }
    }

    #[test]
    fn a_description_is_one_page() {
        assert_eq!(
            page(&topic(), Palette::PLAIN),
            "flights   2 partitions   3 replicas   min.insync.replicas 1   sync always   retention 7d   segment.bytes 65536\n \
             PART  LEADER  ISR    ELR  EPOCH  PART EPOCH  LOG START  HIGH WATERMARK     SIZE\n    \
             0       1  1,2,3  -        4           5         10          39,262  8.1 MiB\n    \
             1       -  -      -        4           5         10          39,262  8.1 MiB  ! no leader\n \
             78,504 records   1 under-replicated   1 offline\n"
        );
    }

    #[test]
    fn what_is_compacted_has_at_most_so_many_records() {
        let with = |policy: &str| {
            let mut topic = topic();
            topic.overrides = BTreeMap::from([(CLEANUP.to_owned(), policy.to_owned())]);
            topic.config.insert(CLEANUP.to_owned(), policy.to_owned());
            (headline(&topic, Palette::PLAIN), told_records(&topic))
        };
        let (compacted, records) = with("compact");
        assert!(compacted.ends_with("   sync always   compacted"), "{compacted}");
        assert_eq!(records, "at most 78,504 records");
        let (both, _) = with("compact,delete");
        assert!(both.ends_with("   sync always   compacted   retention 7d"), "{both}");
        assert_eq!(with("delete").1, "78,504 records");
    }

    #[test]
    fn a_replica_out_of_sync_is_named_with_what_it_lacks() {
        let log = |broker: u32, end: u64| ReplicaLog {
            broker: BrokerId(broker),
            log_start: Offset(10),
            high_watermark: Offset(end),
            log_end: Offset(end),
            size_bytes: 1,
            error: None,
        };
        let mut lagging = partition(0, Some(1));
        lagging.in_sync_replicas = vec![BrokerId(1)];
        lagging.logs = vec![log(1, 39_262), log(2, 38_850)];
        let cells = row(&lagging, Palette::PLAIN);
        let last = cells.last().map(String::as_str);
        assert_eq!(last, Some("! broker 2 is 412 behind, broker 3 does not answer"));
        let moving = PartitionDescription {
            in_sync_replicas: vec![BrokerId(1), BrokerId(3)],
            adding_replicas: vec![BrokerId(2)],
            removing_replicas: vec![BrokerId(3)],
            ..lagging.clone()
        };
        let cells = row(&moving, Palette::PLAIN);
        let last = cells.last().map(String::as_str);
        assert_eq!(last, Some("adding 2, removing 3: broker 2 is 412 behind"));
        let json = serde_json::to_value(PartitionJson::from(&lagging)).expect("it serialises");
        assert_eq!((&json["logs"][1]["broker"], &json["logs"][1]["behind"]), (&2.into(), &412.into()));
    }

    #[test]
    fn settings_tell_what_was_set_from_defaults() {
        let shown = settings(&topic(), Palette::PLAIN);
        assert!(shown.contains(" segment.ms                      604800000\n"), "{shown}");
        assert!(
            shown.contains(" segment.bytes                   134217728   set for this topic\n"),
            "{shown}"
        );
    }

    #[test]
    fn settings_are_a_key_and_a_value() {
        assert_eq!(setting("sync=interval"), Ok(("sync".into(), "interval".into())));
        assert_eq!(setting("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert!(setting("sync").is_err());
        assert!(setting("=x").is_err());
    }

    #[test]
    fn json_has_every_number_bare() {
        let json = serde_json::to_value(TopicJson::from(&topic())).expect("it serialises");
        assert_eq!(json["id"], "07".repeat(16));
        assert_eq!(json["partitions"][0]["high_watermark"], 39_262);
        assert_eq!(json["partitions"][1]["leader"], serde_json::Value::Null);
        assert_eq!(json["config"]["sync"], "always");
    }
}
