//! The command line as a whole: its commands in groups, and what every command takes.

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::{
    acl, bench, broker, cluster, completions, consume, demo, dev, drill, group, log, produce, replay, topic,
};

/// Quire: an event log whose acknowledgements are on disk.
#[derive(Debug, Parser)]
#[command(name = "quire", version, propagate_version = true, subcommand_required = true)]
#[command(disable_help_subcommand = true, infer_subcommands = false, max_term_width = 110)]
pub struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub common: Common,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What every command takes.
#[derive(Debug, Clone, Args)]
pub struct Common {
    /// The profile to connect with, or that 'quire dev' writes: an address and certificates [default: what 'quire dev'
    /// wrote last]
    #[arg(long, global = true, env = "QUIRE_PROFILE", hide_env_values = true, value_name = "NAME")]
    pub profile: Option<String>,
    /// Say more on standard error; twice for everything (RUST_LOG chooses in detail)
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// Answers as JSON.
#[derive(Debug, Clone, Copy, Args)]
pub struct JsonArg {
    /// Answer in JSON, one object a line
    #[arg(long)]
    pub json: bool,
}

/// Every command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// produce, consume and replay 11,045 real departures on a throwaway broker
    Demo(demo::DemoArgs),
    /// run a broker on this machine, everything made for you
    Dev(dev::DevArgs),
    /// write records from standard input or a file
    Produce(produce::ProduceArgs),
    /// read from any offset or time
    Consume(Box<consume::ConsumeArgs>),
    /// play history again: as recorded, N times faster, or flat out
    Replay(Box<replay::ReplayArgs>),
    /// create, list, describe, alter, delete, reassign
    #[command(subcommand)]
    Topic(topic::TopicCommand),
    /// list, describe, explain, reset, delete
    #[command(subcommand)]
    Group(group::GroupCommand),
    /// run a broker from a config file
    Broker(broker::BrokerArgs),
    /// kill leaders under load, then account for every record
    Drill(drill::DrillArgs),
    /// status, token, profile, drain, remove, rebalance
    #[command(subcommand)]
    Cluster(cluster::ClusterCommand),
    /// who may do what
    #[command(subcommand)]
    Acl(acl::AclCommand),
    /// measure throughput and latency
    #[command(subcommand)]
    Bench(bench::BenchCommand),
    /// inspect or verify a data directory, offline
    #[command(subcommand)]
    Log(log::LogCommand),
    /// print completions for a shell
    Completions(completions::CompletionsArgs),
}

/// The order in which the help shows the commands.
const GROUPS: &[(&str, &[&str])] = &[
    ("Start here", &["demo", "dev"]),
    ("Events", &["produce", "consume", "replay", "topic", "group"]),
    ("Operations", &["broker", "cluster", "acl", "completions"]),
    ("Proof", &["drill", "bench", "log"]),
];

/// The command line with its grouped help.
pub fn command() -> clap::Command {
    let command = Cli::command();
    let help = grouped_help(&command);
    command.override_help(help)
}

/// Commands that connect to no broker by a profile, and write none.
const WITHOUT_PROFILE: &[&str] = &["demo", "broker", "log", "completions"];

/// Reads the process's arguments; ends the process on a usage error, `--help` or `--version`.
pub fn parse() -> Cli {
    let matches = command().get_matches();
    if let Some(name) = ignoring_profile(&matches) {
        let what = format!("'quire {name}' uses no profile: leave out --profile");
        command().error(ErrorKind::ArgumentConflict, what).exit();
    }
    Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

/// The command that was told a profile on the command line and has no use for it. One in the environment is for others.
fn ignoring_profile(matches: &ArgMatches) -> Option<&str> {
    let is_given = matches.value_source("profile") == Some(ValueSource::CommandLine);
    matches.subcommand_name().filter(|name| is_given && WITHOUT_PROFILE.contains(name))
}

fn grouped_help(command: &clap::Command) -> String {
    let mut help =
        String::from("Quire: an event log whose acknowledgements are on disk.\n\nUsage: quire <COMMAND>\n");
    for (title, names) in GROUPS {
        help.push_str(&format!("\n{title}\n"));
        for name in *names {
            let about = command.find_subcommand(name).and_then(|found| found.get_about());
            let about = about.map(ToString::to_string).unwrap_or_default();
            help.push_str(&format!("  {name:<12} {about}\n"));
        }
    }
    help.push_str(
        "\nEverywhere: --profile NAME, -v, --help; --json where the answer is data\n\
         Exit codes: 0 done, 1 failed, 2 usage, 3 unreachable, 4 refused, 130 interrupted\n\n\
         New here?  quire demo\n",
    );
    help
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn every_command_stands_in_one_group() {
        let mut grouped: Vec<&str> = GROUPS.iter().flat_map(|(_, names)| names.iter().copied()).collect();
        grouped.sort_unstable();
        let command = command();
        let mut known: Vec<&str> = command.get_subcommands().map(clap::Command::get_name).collect();
        known.sort_unstable();
        assert_eq!(grouped, known);
    }

    #[test]
    fn the_help_begins_with_where_to_start() {
        let help = grouped_help(&Cli::command());
        assert!(help.starts_with(
            "Quire: an event log whose acknowledgements are on disk.\n\n\
             Usage: quire <COMMAND>\n\n\
             Start here\n  \
             demo         produce, consume and replay 11,045 real departures on a throwaway broker\n"
        ));
        assert!(help.ends_with("New here?  quire demo\n"));
        assert!(help.lines().all(|line| line.chars().count() <= 90), "{help}");
    }

    #[test]
    fn a_mistyped_command_or_flag_is_answered_with_the_nearest() {
        for (line, nearest) in [
            ("quire prodce", "produce"),
            ("quire topic lst", "list"),
            ("quire consume flights --form end", "--from"),
        ] {
            let error =
                command().try_get_matches_from(line.split(' ')).expect_err("no such thing").to_string();
            assert!(error.contains(nearest), "{error}");
        }
    }

    #[test]
    fn a_profile_is_refused_where_it_means_nothing() {
        let ignoring = |line: &str| {
            let matches = command().try_get_matches_from(line.split(' ')).expect("valid");
            ignoring_profile(&matches).map(str::to_owned)
        };
        for line in [
            "quire log verify /data --profile p",
            "quire --profile p demo",
            "quire completions bash --profile p",
        ] {
            assert!(ignoring(line).is_some(), "{line}");
        }
        for line in ["quire topic list --profile p", "quire dev --profile p", "quire log verify /data"] {
            assert_eq!(ignoring(line), None, "{line}");
        }
    }

    #[test]
    fn positions_may_be_negative() {
        let line = "quire consume flights --from -100 --until -5";
        let matches = command().try_get_matches_from(line.split(' ')).expect("valid");
        let cli = Cli::from_arg_matches(&matches).expect("valid");
        let Command::Consume(args) = cli.command else { panic!("it says consume") };
        assert_eq!(args.from.0, quire_client::Position::BeforeEnd(100));
    }
}
