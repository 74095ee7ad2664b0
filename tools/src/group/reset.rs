//! `quire group reset`: where a group goes on.

use std::collections::{BTreeMap, BTreeSet};

use clap::Args;
use quire_client::{
    Client, ErrorCode, GroupDescription, Offset, PartitionIndex, PartitionOffset, Position, TopicPartition,
};
use serde::Serialize;

use crate::args::JsonArg;
use crate::connect;
use crate::failure::Failure;
use crate::output::{self, Align, Palette, Table, counted, thousands};
use crate::position::PositionArg;

use super::{about_group, away, confirmed, name};

/// Where a group is to go on.
#[derive(Debug, Args)]
#[group(id = "target", required = true, multiple = false, args = ["to", "shift"])]
#[command(after_help = "\
Positions: beginning, end, an offset (18422), -100 (the last hundred records of each partition),
a time (2013-06-13T08:00Z; UTC unless it says otherwise), a date (2013-06-13), an age (2h).

Examples:
  quire group reset billing --to beginning --dry-run
  quire group reset billing --topic flights --to 2013-06-13
  quire group reset billing --shift -1000")]
pub struct ResetArgs {
    /// Its name; a group that does not exist yet is made
    #[arg(value_parser = name)]
    group: String,
    /// Only this topic; may be repeated [default: every topic that it has committed]
    #[arg(short, long, value_name = "TOPIC")]
    topic: Vec<String>,
    /// Only these partitions; may be repeated, or listed with commas
    #[arg(short, long, value_name = "N", value_delimiter = ',')]
    partition: Vec<u32>,
    /// The position to go on at; partitions that have no such offset go to their beginning or end
    #[arg(long, value_name = "POSITION", allow_hyphen_values = true)]
    to: Option<PositionArg>,
    /// So many records forward (+100) or back (-100) of what is committed, as far as there are any
    #[arg(long, value_name = "±N", allow_hyphen_values = true, value_parser = shift)]
    shift: Option<i64>,
    /// Only show what it would do
    #[arg(long)]
    dry_run: bool,
    /// Do not ask (nobody is asked where standard input is no terminal)
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    output: JsonArg,
}

fn shift(text: &str) -> Result<i64, String> {
    let digits = text.strip_prefix('+').unwrap_or(text);
    digits.parse().map_err(|_| "write a number of records, e.g. -1000 or +1".to_owned())
}

/// One partition's way.
struct Move {
    topic: String,
    id: TopicPartition,
    from: Option<Offset>,
    to: Offset,
    /// The offset that was asked for, where the partition does not have it.
    asked: Option<Offset>,
}

pub(super) async fn run(client: &Client, args: &ResetArgs) -> Result<(), Failure> {
    let group = match client.admin().describe_group(&args.group).await {
        Ok(group) => Some(group),
        Err(error) if error.code() == Some(ErrorCode::UnknownGroup) => None,
        Err(error) => return Err(error.into()),
    };
    if let Some(group) = group.as_ref().filter(|group| !group.members.is_empty()) {
        return Err(away::has_members(group, "reset it"));
    }
    let moves = plan(client, args, group.as_ref()).await?;
    show(args, &moves)?;
    if args.dry_run {
        output::note("nothing changed: a dry run");
        return Ok(());
    }
    let question = format!("move {} of group {}?", counted(moves.len() as u64, "partition"), args.group);
    if !args.yes && !confirmed(&question) {
        return Err(Failure::failed("nothing changed: not confirmed"));
    }
    let offsets: BTreeMap<_, _> = moves.iter().map(|to| (to.id, to.to)).collect();
    let reset = client.admin().reset_group(&args.group, &offsets, &BTreeSet::new()).await;
    reset.map_err(|error| about_group(&args.group, error))?;
    output::note(&format!("group {} goes on there", args.group));
    Ok(())
}

async fn plan(
    client: &Client,
    args: &ResetArgs,
    group: Option<&GroupDescription>,
) -> Result<Vec<Move>, Failure> {
    let committed: BTreeMap<TopicPartition, Offset> =
        group.iter().flat_map(|group| &group.offsets).map(|offset| (offset.id, offset.offset)).collect();
    let mut topics: BTreeSet<String> = args.topic.iter().cloned().collect();
    if topics.is_empty() {
        topics = group.iter().flat_map(|group| &group.offsets).map(|offset| offset.topic.clone()).collect();
    }
    if topics.is_empty() {
        let what = format!("group \"{}\" has committed nothing yet", args.group);
        return Err(Failure::usage(what).hint("say which topic it is to consume: --topic TOPIC"));
    }
    let mut moves = Vec::new();
    for topic in topics {
        moves.extend(plan_topic(client, args, &topic, &committed).await?);
    }
    Ok(moves)
}

async fn plan_topic(
    client: &Client,
    args: &ResetArgs,
    topic: &str,
    committed: &BTreeMap<TopicPartition, Offset>,
) -> Result<Vec<Move>, Failure> {
    let about = |error| connect::about_unwanted_topic(topic, error);
    let described = client.admin().describe_topic_metadata(topic).await.map_err(about)?;
    let all = described.partitions.iter().map(|partition| partition.partition);
    let chosen: Vec<PartitionIndex> = match args.partition.is_empty() {
        true => all.collect(),
        false => args.partition.iter().copied().map(PartitionIndex).collect(),
    };
    // An offset that a partition does not have is no reason to move none of them: it goes as far as it can.
    let position = match (&args.to, args.shift) {
        (Some(PositionArg(Position::Offset(_))), _) | (None, _) => Position::End,
        (Some(PositionArg(position)), _) => *position,
    };
    let at = chosen.iter().map(|partition| (*partition, position));
    let found = client.admin().list_offsets(topic, at).await.map_err(about)?;
    let planned = found.iter().filter_map(|found| {
        let id = TopicPartition { topic: described.id, partition: found.partition };
        let from = committed.get(&id).copied();
        let asked = match (&args.to, args.shift) {
            (Some(PositionArg(Position::Offset(offset))), _) => Some(*offset),
            (Some(_), _) | (None, None) => None,
            (None, Some(shift)) => Some(Offset(from?.0.saturating_add_signed(shift))),
        };
        let to = asked.map_or(found.offset, |asked| within(asked, found));
        Some(Move { topic: topic.to_owned(), id, from, to, asked: asked.filter(|asked| *asked != to) })
    });
    let planned: Vec<_> = planned.collect();
    if planned.is_empty() {
        let (group, topic_name) = (output::quoted(&args.group), output::quoted(topic));
        return Err(Failure::failed(format!("group \"{}\" has committed nothing in {topic}", args.group))
            .hint(format!("use --to: quire group reset {group} --topic {topic_name} --to beginning")));
    }
    if planned.len() < found.len() {
        let left = counted((found.len() - planned.len()) as u64, "partition");
        output::note(&format!("nothing is committed in {left} of {topic}: not moved; --to does"));
    }
    Ok(planned)
}

/// The offset, or the nearest that the partition has.
fn within(offset: Offset, partition: &PartitionOffset) -> Offset {
    Offset(offset.0.clamp(partition.log_start.0, partition.high_watermark.0.max(partition.log_start.0)))
}

fn show(args: &ResetArgs, moves: &[Move]) -> Result<(), Failure> {
    if args.output.json {
        return moves.iter().try_for_each(|to| {
            output::print_json(&MoveJson {
                group: &args.group,
                topic: &to.topic,
                partition: to.id.partition.0,
                from: to.from.map(|offset| offset.0),
                to: to.to.0,
                asked: to.asked.map(|offset| offset.0),
                dry_run: args.dry_run,
            })
        });
    }
    let mut table = Table::new(&[
        ("TOPIC", Align::Left),
        ("PART", Align::Right),
        ("COMMITTED", Align::Right),
        ("TO", Align::Right),
        ("RECORDS", Align::Right),
    ]);
    for to in moves {
        let from = to.from.map_or_else(|| "-".to_owned(), |offset| thousands(offset.0));
        let by = to.from.map_or_else(String::new, |from| {
            let sign = if to.to >= from { "+" } else { "-" };
            format!("{sign}{}", thousands(to.to.0.abs_diff(from.0)))
        });
        let mut cells = vec![to.topic.clone(), to.id.partition.to_string(), from, thousands(to.to.0), by];
        if let Some(asked) = to.asked {
            let side = if asked > to.to { "beyond the end" } else { "before the beginning" };
            cells.push(format!("! {} is {side}", thousands(asked.0)));
        }
        table.row(cells);
    }
    output::print(&table.render(Palette::stdout()))
}

#[derive(Serialize)]
struct MoveJson<'a> {
    group: &'a str,
    topic: &'a str,
    partition: u32,
    from: Option<u64>,
    to: u64,
    asked: Option<u64>,
    dry_run: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_that_a_partition_lacks_becomes_the_nearest_that_it_has() {
        let partition = PartitionOffset {
            partition: PartitionIndex(0),
            offset: Offset(3),
            timestamp: None,
            log_start: Offset(2),
            high_watermark: Offset(9),
        };
        assert_eq!([0, 5, 9, 50].map(|at| within(Offset(at), &partition).0), [2, 5, 9, 9]);
    }
}
