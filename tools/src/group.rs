//! `quire group`: list, describe, explain, reset, delete.

mod away;
pub mod explain;
mod reset;
mod table;

use std::collections::BTreeSet;
use std::io::{self, BufRead, IsTerminal};
use std::time::Duration;

use clap::{Args, Subcommand};
use quire_client::{Client, Error, ErrorCode, GroupState, GroupSummary, Groups};
use serde::Serialize;

use crate::args::JsonArg;
use crate::connect;
use crate::failure::{Exit, Failure};
use crate::output::{self, Align, Palette, Table, counted, thousands};
use crate::time;

use explain::{Finding, Look, Weight};

/// Between the two looks of an explanation.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// What to do with groups.
#[derive(Debug, Subcommand)]
pub enum GroupCommand {
    /// List the groups there are
    List(JsonArg),
    /// Show a group's members, what they read, and how far they are
    Describe(DescribeArgs),
    /// Say why a group is stuck or slow, and what to do
    Explain(ExplainArgs),
    /// Move a group that has no members to another position
    Reset(reset::ResetArgs),
    /// Delete groups that have no members, and what they have committed
    Delete(DeleteArgs),
}

/// Groups to describe.
#[derive(Debug, Args)]
pub struct DescribeArgs {
    /// Their names
    #[arg(required = true)]
    groups: Vec<String>,
    #[command(flatten)]
    output: JsonArg,
}

/// A group to explain.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// Its name
    group: String,
    #[command(flatten)]
    output: JsonArg,
}

/// Groups to delete.
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// Their names
    #[arg(required = true)]
    groups: Vec<String>,
    /// Do not ask (nobody is asked where standard input is no terminal)
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    output: JsonArg,
}

/// Reads the name of a group that may come to be: one that breaks no line.
///
/// # Errors
/// If it is empty or has control characters.
pub(crate) fn name(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("a group needs a name".to_owned());
    }
    match text.chars().any(char::is_control) {
        true => Err("a group's name has no line breaks or other control characters".to_owned()),
        false => Ok(text.to_owned()),
    }
}

/// Does it.
///
/// # Errors
/// If no broker can be reached, not every one of them answers for its groups, there is no such group, or the answer can not be written.
pub async fn run(profile: Option<&str>, command: &GroupCommand) -> Result<Exit, Failure> {
    let work = async |client: &Client| match command {
        GroupCommand::List(args) => list(client, args.json).await,
        GroupCommand::Describe(args) => describe(client, args).await,
        GroupCommand::Explain(args) => explain_group(client, args).await,
        GroupCommand::Reset(args) => reset::run(client, args).await,
        GroupCommand::Delete(args) => delete(client, args).await,
    };
    connect::with_client(profile, work).await.map(|()| Exit::Done)
}

async fn list(client: &Client, json: bool) -> Result<(), Failure> {
    let groups = client.admin().list_groups().await?;
    match json {
        true => groups.groups.iter().try_for_each(|group| output::print_json(&SummaryJson::from(group)))?,
        false => print_list(&groups)?,
    }
    if groups.unknown.is_empty() {
        return Ok(());
    }
    let missing = Failure::failed("groups may be missing: not every broker says which it has");
    let missing = groups.unknown.iter().fold(missing, |missing, why| missing.hint(why));
    Err(missing.hint("see which brokers are there: quire cluster status"))
}

fn print_list(groups: &Groups) -> Result<(), Failure> {
    if groups.groups.is_empty() {
        if groups.unknown.is_empty() {
            output::note("no groups yet, or none that you may join   next: quire consume TOPIC --group NAME");
        }
        return Ok(());
    }
    let mut table = Table::new(&[
        ("GROUP", Align::Left),
        ("STATE", Align::Left),
        ("MEMBERS", Align::Right),
        ("GENERATION", Align::Right),
        ("TOPICS", Align::Left),
    ]);
    for group in &groups.groups {
        table.row(vec![
            output::one_line(&group.name),
            state_name(group.state).to_owned(),
            thousands(group.members.into()),
            group.generation.to_string(),
            output::list(&group.topics),
        ]);
    }
    output::print(&table.render(Palette::stdout()))
}

async fn describe(client: &Client, args: &DescribeArgs) -> Result<(), Failure> {
    for (index, name) in args.groups.iter().enumerate() {
        let look = look(client, name).await?;
        if args.output.json {
            output::print_json(&table::json(&look))?;
            continue;
        }
        let compacted = compacted(client, &look).await;
        let gap = if index == 0 { "" } else { "\n" };
        output::print(&format!("{gap}{}", table::page(&look, &compacted, Palette::stdout())))?;
    }
    Ok(())
}

/// The topics of a group that are compacted: of which not every offset holds a record.
async fn compacted(client: &Client, look: &Look) -> BTreeSet<String> {
    let topics: BTreeSet<&str> = look.progress.iter().map(|progress| progress.topic.as_str()).collect();
    let mut compacted = BTreeSet::new();
    for topic in topics {
        // Where nobody says, the lag is shown as it is.
        let Ok(described) = client.admin().describe_topic_metadata(topic).await else { continue };
        if described.config.get("cleanup.policy").is_some_and(|policy| policy.contains("compact")) {
            compacted.insert(topic.to_owned());
        }
    }
    compacted
}

async fn explain_group(client: &Client, args: &ExplainArgs) -> Result<(), Failure> {
    let earlier = look(client, &args.group).await?;
    // Pace is seen in two looks, and is no matter where nothing waits.
    let has_lag = earlier.progress.iter().any(|progress| progress.log.as_ref().is_ok_and(|log| log.lag > 0));
    let now = match has_lag && !earlier.group.members.is_empty() {
        true => {
            tokio::time::sleep(LOOK_INTERVAL).await;
            look(client, &args.group).await?
        }
        false => earlier.clone(),
    };
    let findings = explain::explain(&earlier, &now);
    if args.output.json {
        return output::print_json(&ExplanationJson::new(&now, &findings));
    }
    output::print(&explanation(&now, &findings, Palette::stdout()))
}

/// One look at a group.
async fn look(client: &Client, name: &str) -> Result<Look, Failure> {
    let admin = client.admin();
    let group = admin.describe_group(name).await.map_err(|error| about_group(name, error))?;
    let progress = admin.group_progress(&group).await?;
    Ok(Look { group, progress, at: time::now() })
}

async fn delete(client: &Client, args: &DeleteArgs) -> Result<(), Failure> {
    let question = match args.groups.as_slice() {
        [group] => format!("delete group {} and what it has committed?", output::one_line(group)),
        groups => format!("delete groups {} and what they have committed?", output::list(groups)),
    };
    if !args.yes && !confirmed(&question) {
        return Err(Failure::failed("nothing deleted: not confirmed"));
    }
    for name in &args.groups {
        if let Err(error) = client.admin().delete_group(name).await {
            return Err(not_deleted(client, name, error).await);
        }
        match args.output.json {
            true => output::print_json(&DeletedJson { name, deleted: true })?,
            false => output::print(&format!("deleted group {}\n", output::one_line(name)))?,
        }
    }
    Ok(())
}

/// Why a group is still there, with the members that keep it.
async fn not_deleted(client: &Client, name: &str, error: Error) -> Failure {
    if error.code() == Some(ErrorCode::GroupNotEmpty)
        && let Ok(group) = client.admin().describe_group(name).await
        && !group.members.is_empty()
    {
        return away::has_members(&group, "delete it");
    }
    about_group(name, error)
}

/// Whether the user says yes; nobody is asked where nobody can answer.
fn confirmed(question: &str) -> bool {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return true;
    }
    eprint!("{question} [y/N] ");
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    read.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes")
}

/// An error about a group that the user named.
fn about_group(group: &str, error: Error) -> Failure {
    match error.code() {
        Some(ErrorCode::UnknownGroup) => {
            Failure::failed(format!("no group \"{group}\" (UNKNOWN_GROUP, not retriable)"))
                .hint("see what there is: quire group list")
        }
        _ => error.into(),
    }
}

fn state_name(state: GroupState) -> &'static str {
    match state {
        GroupState::Empty => "empty",
        GroupState::Reconciling => "reconciling",
        GroupState::Stable => "stable",
    }
}

fn explanation(look: &Look, findings: &[Finding], palette: Palette) -> String {
    let mut text = format!("{}\n", table::headline(look, palette));
    if findings.is_empty() {
        text.push_str(&format!("{}\n", palette.good("nothing is wrong")));
        return text;
    }
    for finding in findings {
        let mark = match finding.weight {
            Weight::Stuck => palette.bad("✗"),
            Weight::Slow => palette.warning("!"),
            Weight::Note => palette.dim("·"),
        };
        text.push_str(&format!("{mark} {}\n    → {}\n", finding.what, finding.todo));
    }
    text
}

/// The total of what waits; of compacted topics there may be less.
fn total_lag(look: &Look, compacted: &BTreeSet<String>) -> String {
    if look.progress.is_empty() {
        return "lag unknown: it has committed nothing".to_owned();
    }
    let logs = || look.progress.iter().filter_map(|progress| progress.log.as_ref().ok());
    let lag: u64 = logs().map(|log| log.lag).sum();
    let is_exact = look.progress.iter().all(|progress| !compacted.contains(&progress.topic));
    let at_most = if is_exact || lag == 0 { "" } else { "at most " };
    let mut text = format!("lag {at_most}{}", counted(lag, "record"));
    if let Some(behind) = logs().filter_map(|log| log.behind).max() {
        text.push_str(&format!(", {}", time::show_took(behind)));
    }
    text
}

#[derive(Serialize)]
struct SummaryJson<'a> {
    name: &'a str,
    state: &'static str,
    generation: u32,
    members: u32,
    topics: &'a [String],
}

impl<'a> From<&'a GroupSummary> for SummaryJson<'a> {
    fn from(group: &'a GroupSummary) -> SummaryJson<'a> {
        SummaryJson {
            name: &group.name,
            state: state_name(group.state),
            generation: group.generation,
            members: group.members,
            topics: &group.topics,
        }
    }
}

#[derive(Serialize)]
struct ExplanationJson<'a> {
    name: &'a str,
    state: &'static str,
    findings: Vec<FindingJson<'a>>,
}

#[derive(Serialize)]
struct FindingJson<'a> {
    weight: &'static str,
    what: &'a str,
    todo: &'a str,
}

impl<'a> ExplanationJson<'a> {
    fn new(look: &'a Look, findings: &'a [Finding]) -> ExplanationJson<'a> {
        let finding = |finding: &'a Finding| FindingJson {
            weight: finding.weight.name(),
            what: &finding.what,
            todo: &finding.todo,
        };
        ExplanationJson {
            name: &look.group.summary.name,
            state: state_name(look.group.summary.state),
            findings: findings.iter().map(finding).collect(),
        }
    }
}

#[derive(Serialize)]
struct DeletedJson<'a> {
    name: &'a str,
    deleted: bool,
}
