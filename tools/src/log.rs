//! `quire log`: inspect or verify a data directory, offline.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::args::JsonArg;
use crate::failure::{Exit, Failure};

/// What to do with logs on this machine's disk. The broker need not run.
#[derive(Debug, Subcommand)]
pub enum LogCommand {
    /// Show manifest, segments, indexes and positions
    Inspect(LogArgs),
    /// Check every byte: the first bad one, and what it means
    Verify(LogArgs),
}

/// Where the logs are.
#[derive(Debug, Args)]
pub struct LogArgs {
    /// A broker's data directory, or one partition's
    dir: PathBuf,
    #[command(flatten)]
    output: JsonArg,
}

/// Does it.
pub fn run(_command: &LogCommand) -> Result<Exit, Failure> {
    Ok(Exit::Done)
}
