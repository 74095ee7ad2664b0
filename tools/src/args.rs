//! The command line as a whole: its commands in groups, and what every command takes.

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::{bench, broker, completions, consume, demo, dev, log, produce, topic};

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
    /// The profile to connect with: an address and certificates [default: what 'quire dev' wrote]
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
    /// create, list, describe, alter, delete
    #[command(subcommand)]
    Topic(topic::TopicCommand),
    /// run a broker from a config file
    Broker(broker::BrokerArgs),
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
    ("Events", &["produce", "consume", "topic"]),
    ("Operations", &["broker", "completions"]),
    ("Proof", &["bench", "log"]),
];

/// The command line with its grouped help.
pub fn command() -> clap::Command {
    let command = Cli::command();
    let help = grouped_help(&command);
    command.override_help(help)
}

/// Reads the process's arguments; ends the process on a usage error, `--help` or `--version`.
pub fn parse() -> Cli {
    let matches = command().get_matches();
    Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
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
    fn positions_may_be_negative() {
        let line = "quire consume flights --from -100 --until -5";
        let matches = command().try_get_matches_from(line.split(' ')).expect("valid");
        let cli = Cli::from_arg_matches(&matches).expect("valid");
        let Command::Consume(args) = cli.command else { panic!("it says consume") };
        assert_eq!(args.from.0, quire_client::Position::BeforeEnd(100));
    }
}
