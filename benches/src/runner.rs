//! Chooses bars by name, runs them one after another, and prints what came out.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use bytesize::ByteSize;
use clap::Parser;
use tempfile::TempDir;

use crate::row::{Row, TABLE_HEAD};

/// Measures every bar beside the bare operation that bounds it.
///
/// Where a figure is bytes, a run moves --bytes; where it is a rate of syncs or a latency, a run takes --seconds, or a
/// part of --bytes. Nothing else should run on the machine meanwhile.
#[derive(Debug, Parser)]
pub struct Options {
    /// Only bars with one of these in their name
    filters: Vec<String>,
    /// Bytes that a run moves
    #[arg(long, default_value = "8GiB")]
    bytes: ByteSize,
    /// How long a run of a latency takes, in seconds
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Pairs of runs
    #[arg(long, default_value_t = 5)]
    pairs: usize,
    /// A folder on the disk to measure; needs three times --bytes [default: cargo's target folder]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// One JSON object a line, on standard output
    #[arg(long)]
    json: bool,
    /// Only name the bars
    #[arg(long)]
    list: bool,
    /// Only see that every bar can be measured, in small runs
    #[arg(long)]
    test: bool,
    /// Passed by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// What a run of a bar goes by.
#[derive(Debug)]
pub struct Settings {
    /// Where brokers and bare files are put.
    pub dir: TempDir,
    /// Bytes that a run moves.
    pub bytes: u64,
    /// How long a run takes whose figure is a latency or a rate of syncs.
    pub time: Duration,
    /// Pairs of runs.
    pub pairs: usize,
}

/// Bars that are measured together.
pub struct Measurement {
    /// The names of the rows that it gives.
    pub names: Vec<String>,
    run: Box<Measure>,
}

type Measure = dyn Fn(&Settings) -> Result<Vec<Row>>;

impl Measurement {
    /// One that gives rows with these names.
    pub fn new(
        names: impl IntoIterator<Item = impl Into<String>>,
        run: impl Fn(&Settings) -> Result<Vec<Row>> + 'static,
    ) -> Measurement {
        Measurement { names: names.into_iter().map(Into::into).collect(), run: Box::new(run) }
    }

    fn is_chosen(&self, filters: &[String]) -> bool {
        let matches = |filter: &String| self.names.iter().any(|name| name.contains(filter.as_str()));
        filters.is_empty() || filters.iter().any(matches)
    }
}

const TEST_BYTES: u64 = 8 << 20;
const TEST_TIME: Duration = Duration::from_millis(100);

/// Runs the measurements that the command line asks for.
///
/// # Errors
/// If one of them can not be made. A bar that is missed is a result, not an error.
pub fn run(measurements: &[Measurement]) -> Result<()> {
    let options = Options::parse();
    let chosen = || measurements.iter().filter(|measurement| measurement.is_chosen(&options.filters));
    if options.list {
        chosen().flat_map(|measurement| &measurement.names).for_each(|name| println!("{name}"));
        return Ok(());
    }
    let settings = settings(&options)?;
    let mut table = Vec::new();
    for measurement in chosen() {
        let names = measurement.names.join(", ");
        let rows = (measurement.run)(&settings).with_context(|| format!("measuring {names}"))?;
        for row in rows {
            match (options.test, options.json) {
                (true, _) => println!("{}: can be measured", row.name),
                (false, true) => println!("{}", row.json()),
                (false, false) => println!("{}\n", row.text()),
            }
            table.push(row.markdown());
        }
    }
    if !options.json && !options.test && !table.is_empty() {
        println!("{TABLE_HEAD}\n{}", table.join("\n"));
    }
    Ok(())
}

fn settings(options: &Options) -> Result<Settings> {
    let parent =
        options.dir.clone().unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../target"));
    std::fs::create_dir_all(&parent)?;
    let dir = tempfile::Builder::new().prefix("bench-").tempdir_in(parent)?;
    Ok(match options.test {
        true => Settings { dir, bytes: TEST_BYTES, time: TEST_TIME, pairs: 1 },
        false => Settings {
            dir,
            bytes: options.bytes.as_u64(),
            time: Duration::from_secs_f64(options.seconds),
            pairs: options.pairs,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_chosen_by_a_part_of_any_of_their_names() {
        let measurement = Measurement::new(["lone-p50", "lone-p99"], |_| Ok(Vec::new()));
        for (filters, is_chosen) in [
            (vec![], true),
            (vec!["lone"], true),
            (vec!["p99"], true),
            (vec!["produce"], false),
            (vec!["produce", "p50"], true),
        ] {
            let filters: Vec<_> = filters.into_iter().map(str::to_owned).collect();
            assert_eq!(measurement.is_chosen(&filters), is_chosen, "{filters:?}");
        }
    }

    #[test]
    fn what_cargo_passes_is_understood() {
        let options =
            Options::try_parse_from(["bars", "produce", "--bytes", "512MiB", "--bench"]).expect("valid");
        assert_eq!((options.bytes.as_u64(), options.pairs), (512 << 20, 5));
    }
}
