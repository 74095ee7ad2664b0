//! `quire bench`: load made on a schedule, measured without flattery.

pub mod compare;
pub mod figure;
pub mod html;
pub mod quantity;
pub mod report;
pub mod setting;

#[cfg(test)]
mod sample;

use clap::Subcommand;

use crate::failure::{Exit, Failure};

/// What to do with benchmarks.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// reports beside each other; no difference is claimed that their spreads do not show
    Compare(compare::CompareArgs),
}

/// Does it.
///
/// # Errors
/// If a report can not be read, or a page not be written.
pub fn run(command: &BenchCommand) -> Result<Exit, Failure> {
    match command {
        BenchCommand::Compare(args) => compare::run(args),
    }
}
