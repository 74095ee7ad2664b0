//! `quire log`: inspect or verify a data directory, offline.

mod directory;
mod inspect;
mod verify;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use quire_protocol::frame::Chain;
use quire_storage::disk::OsDisk;
use quire_storage::inspect::InspectError;

use crate::args::JsonArg;
use crate::failure::{Exit, Failure, describe_io};
use crate::output;

/// What to do with logs on this machine's disk. The broker need not run.
#[derive(Debug, Subcommand)]
pub enum LogCommand {
    /// Show the manifest, segments, indexes and positions of each log
    Inspect(LogArgs),
    /// Read every frame of each log: checksums, offsets, chain; says the first bad byte and what it means
    Verify(LogArgs),
}

/// Where the logs are.
#[derive(Debug, Args)]
#[command(after_help = "\
Nothing is changed. Exit code 1 if a log is damaged; a torn tail is not proven to be damage, and may be.
Stop the broker first: the end that a running one is just writing looks torn.")]
pub struct LogArgs {
    /// A broker's data directory, or the directory of one partition in it
    dir: PathBuf,
    #[command(flatten)]
    output: JsonArg,
}

/// Does it.
///
/// # Errors
/// If there is no log there, or it can not be read. Damage is an answer, with exit code 1.
pub fn run(command: &LogCommand) -> Result<Exit, Failure> {
    let args = match command {
        LogCommand::Inspect(args) | LogCommand::Verify(args) => args,
    };
    let disk = OsDisk;
    let logs = directory::find(&disk, &args.dir)?;
    if logs.in_use {
        output::note("a broker has this directory open: what it is just writing may look torn");
    }
    match command {
        LogCommand::Inspect(args) => inspect::run(&disk, &logs.found, args.output.json),
        LogCommand::Verify(args) => verify::run(&disk, &logs.found, args.output.json),
    }
}

impl From<InspectError> for Failure {
    fn from(error: InspectError) -> Failure {
        match error {
            InspectError::Io { path, source } => Failure::file(&path, &source),
            InspectError::NoLog(path) => Failure::failed(format!(
                "{} holds no log: it has no manifest and no segments",
                path.display()
            ))
            .hint("give a broker's data directory, or the directory of one partition in it"),
        }
    }
}

/// A partition that was made and never opened, among others that are whole.
fn never_written(name: &str) -> String {
    format!("{name}: no log yet: it was made and never written\n")
}

/// Whether the log is not there at all.
fn is_absent(error: &InspectError) -> bool {
    match error {
        InspectError::NoLog(_) => true,
        InspectError::Io { source, .. } => source.kind() == std::io::ErrorKind::NotFound,
    }
}

/// A partition that the metadata knows, and whose log the broker had on disk.
fn missing(log: &directory::FoundLog) -> String {
    format!(
        "{}: its log is missing\n  The broker noted that it has this partition on disk, and {} holds no log. The broker \
         does not serve the partition rather than begin it again: restore the directory from a replica or a backup.\n",
        log.title(),
        log.path.display()
    )
}

/// A directory that the metadata knows nothing of.
fn orphan(log: &directory::FoundLog) -> String {
    format!(
        "{}: no topic owns this directory: its topic was deleted, or the metadata is not that of this data\n",
        log.name
    )
}

fn hex(chain: &Chain) -> String {
    chain.0.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// As much of a chain as tells two apart by eye.
fn short_hex(chain: &Chain) -> String {
    hex(chain).chars().take(12).collect()
}

fn unreadable(path: &std::path::Path, error: &std::io::Error) -> Failure {
    Failure::failed(format!("{}: {}", path.display(), describe_io(error)))
        .hint("give a broker's data directory, or the directory of one partition in it")
}
