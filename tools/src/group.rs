//! `quire group`: list, describe, explain, reset, delete.

pub mod explain;
mod reset;
mod table;

use std::io::{self, BufRead, IsTerminal};
use std::time::Duration;

use clap::{Args, Subcommand};
use quire_client::{Client, Error, ErrorCode, GroupState, GroupSummary};
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
    /// Delete a group that has no members, and what it has committed
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

/// A group to delete.
#[derive(Debug, Args)]
pub struct DeleteArgs {
    /// Its name
    group: String,
    /// Do not ask (nobody is asked where standard input is no terminal)
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    output: JsonArg,
}

/// Does it.
///
/// # Errors
/// If no broker can be reached, there is no such group, or the answer can not be written.
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
    for why in &groups.unknown {
        output::note(&format!("groups may be missing: {why}"));
    }
    if json {
        return groups.groups.iter().try_for_each(|group| output::print_json(&SummaryJson::from(group)));
    }
    if groups.groups.is_empty() {
        output::note("no groups yet   next: quire consume TOPIC --group NAME");
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
            group.name.clone(),
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
        let gap = if index == 0 { "" } else { "\n" };
        output::print(&format!("{gap}{}", table::page(&look, Palette::stdout())))?;
    }
    Ok(())
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
    let question = format!("delete group {} and what it has committed?", args.group);
    if !args.yes && !confirmed(&question) {
        return Err(Failure::failed("nothing deleted: not confirmed"));
    }
    client.admin().delete_group(&args.group).await.map_err(|error| about_group(&args.group, error))?;
    if args.output.json {
        return output::print_json(&DeletedJson { name: &args.group, deleted: true });
    }
    output::print(&format!("deleted group {}\n", args.group))
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

/// The total of what waits.
fn total_lag(look: &Look) -> String {
    let logs = || look.progress.iter().filter_map(|progress| progress.log.as_ref().ok());
    let lag: u64 = logs().map(|log| log.lag).sum();
    let mut text = format!("lag {}", counted(lag, "record"));
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
