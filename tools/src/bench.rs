//! `quire bench`: load made on a schedule, measured without flattery.
//!
//! ```text
//! args ─► plans ─► for each: broker ─► repetitions (memory, run) ─► summary ─► report ─► table, JSON, page
//!                                                     │
//!                              producers, consumers (load) ──meters──► sampler (timeline)
//! ```

pub mod args;
pub mod broker;
pub mod compare;
pub mod figure;
pub mod html;
pub mod load;
pub mod machine;
pub mod measure;
pub mod pacer;
pub mod payload;
pub mod probe;
pub mod process;
pub mod progress;
pub mod quantity;
pub mod random;
pub mod remark;
pub mod report;
pub mod run;
pub mod schedule;
pub mod setting;
pub mod size;
pub mod summary;
pub mod table;
pub mod timeline;
pub mod title;
pub mod verify;
pub mod warm_up;

#[cfg(test)]
mod sample;

use std::io::{self, IsTerminal};
use std::sync::Arc;

use clap::Subcommand;
use quire_client::{PROFILE_VARIABLE, Profile};

use crate::failure::{Exit, Failure};
use crate::output::{self, Palette};
use crate::signals::StopSignals;
use crate::time;

use args::{LoadArgs, Plan};
use broker::{ServeArgs, Target};
use measure::Clock;
use payload::Contents;
use probe::{BrokerProbe, Probe};
use progress::{Goal, ProgressLine};
use report::{FORMAT, Report, Scenario, Settings};
use run::{Bench, Stage};
use warm_up::HoldArgs;

const EXAMPLES: &str = "\
Examples:
  quire bench produce                                      1 KiB records, flat out, all on disk
  quire bench produce --rate 10000 --in-flight 1000        on schedule: lateness counts as latency
  quire bench produce --producers 16 --in-flight 1         one record at a time, sharing syncs
  quire bench end-to-end --rate 10000 --verify             to a consumer's hands, all checked
  quire bench consume --partitions 8 --consumers 8
  quire bench produce --replicas 3                         on a cluster of three brokers
  quire bench produce --matrix --sync always,interval --record-size 100,1KiB,64KiB --json

It starts a broker of its own, or with --replicas as many, keeps their data in a temporary folder, and removes it all
at the end; --cluster loads brokers that run.";

/// Measure throughput and latency.
#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// producers alone: throughput and acknowledgement latency
    #[command(after_help = EXAMPLES)]
    Produce(Box<LoadArgs>),
    /// consumers alone, over records written before
    #[command(after_help = EXAMPLES)]
    Consume(Box<LoadArgs>),
    /// producers, and consumers that wait for what is produced
    #[command(after_help = EXAMPLES)]
    EndToEnd(Box<LoadArgs>),
    /// producers, and consumers that read from the beginning meanwhile
    #[command(after_help = EXAMPLES)]
    Mixed(Box<LoadArgs>),
    /// reports beside each other; no difference is claimed that their spreads do not show
    Compare(compare::CompareArgs),
    /// the broker that a benchmark starts for itself
    #[command(hide = true)]
    Serve(ServeArgs),
    /// the process that has memory ready for a benchmark
    #[command(hide = true)]
    Hold(HoldArgs),
}

/// Does what the command says.
///
/// # Errors
/// If what was given does not go together, or the broker can not be started, reached or read.
pub async fn run(profile: Option<&str>, command: &BenchCommand) -> Result<Exit, Failure> {
    let (scenario, args) = match command {
        BenchCommand::Produce(args) => (Scenario::Produce, args),
        BenchCommand::Consume(args) => (Scenario::Consume, args),
        BenchCommand::EndToEnd(args) => (Scenario::EndToEnd, args),
        BenchCommand::Mixed(args) => (Scenario::Mixed, args),
        BenchCommand::Compare(args) => return compare::run(args),
        BenchCommand::Serve(args) => return broker::serve(args).await,
        BenchCommand::Hold(args) => return warm_up::hold(args).await,
    };
    let profile = running_profile(profile, args)?;
    let address = profile.as_ref().map(|profile| profile.address().to_owned());
    let plans = args.plans(scenario, address)?;
    let mut stop = StopSignals::listen()?;
    let mut session = Session::new(args, profile);
    let outcome = tokio::select! {
        outcome = session.run(&plans) => outcome.map(|()| Exit::Done),
        () = stop.stop() => Ok(Exit::Interrupted),
    };
    stop.force_on_next();
    session.end(&plans).await;
    // What was measured is shown, whatever ended it.
    let shown = session.show(plans.len());
    match outcome? {
        Exit::Done => shown.map(|()| session.verdict()),
        interrupted => Ok(interrupted),
    }
}

/// The profile of the broker to load, if it is one that runs already.
fn running_profile(name: Option<&str>, args: &LoadArgs) -> Result<Option<Profile>, Failure> {
    if args.cluster {
        return Ok(Some(Profile::load(name)?));
    }
    let is_from_environment = std::env::var(PROFILE_VARIABLE).is_ok_and(|variable| Some(&*variable) == name);
    match name {
        Some(_) if !is_from_environment => {
            Err(Failure::usage("--profile names a running broker, and the benchmark starts one of its own")
                .hint("to load the running one, add --cluster"))
        }
        _ => Ok(None),
    }
}

/// A combination of a matrix that could not be measured.
#[derive(Debug)]
pub struct Missing {
    /// What was asked for.
    pub settings: Settings,
    /// Why there is no report of it.
    pub why: String,
}

/// A benchmark under way: what was measured so far, and what has to be put away at its end, however it ends.
struct Session<'a> {
    args: &'a LoadArgs,
    profile: Option<Profile>,
    target: Option<Target>,
    topic: Option<String>,
    reports: Vec<Report>,
    missing: Vec<Missing>,
}

impl<'a> Session<'a> {
    fn new(args: &'a LoadArgs, profile: Option<Profile>) -> Session<'a> {
        let (reports, missing) = (Vec::new(), Vec::new());
        Session { args, profile, target: None, topic: None, reports, missing }
    }

    /// Runs every plan. One of a matrix that fails leaves the others their turn, unless they would fail alike.
    async fn run(&mut self, plans: &[Plan]) -> Result<(), Failure> {
        for plan in plans {
            let measured = self.report(plan).await;
            self.put_away(plan).await;
            match measured {
                Ok(report) => self.take(report)?,
                Err(Failure::Told { exit: Exit::Failed, what, hints }) if self.args.matrix => {
                    self.missing.push(Missing { settings: plan.settings.clone(), why: what.clone() });
                    output::report(&Failure::Told { exit: Exit::Failed, what, hints });
                }
                Err(failure) => return Err(failure),
            }
        }
        Ok(())
    }

    /// Shows a report, unless a table is to show them all.
    fn take(&mut self, report: Report) -> Result<(), Failure> {
        if self.args.json {
            output::print_json(&report)?;
        } else if !self.args.matrix {
            let palette = Palette::stdout();
            // On a terminal it stands above the repetitions already.
            if !(io::stdout().is_terminal() && io::stderr().is_terminal()) {
                output::print(&format!("{}\n", palette.bold(&report.title)))?;
            }
            output::print(&table::summary(&report, palette))?;
        }
        self.reports.push(report);
        Ok(())
    }

    /// Shows what was measured of so many plans: the table of a matrix, and the page.
    fn show(&self, plans: usize) -> Result<(), Failure> {
        let ended = self.reports.len() + self.missing.len();
        if self.args.matrix && ended < plans {
            output::note(&format!("ended after {ended} of {plans} combinations"));
        }
        if self.args.matrix && !self.args.json && ended > 0 {
            output::print(&table::matrix(&self.reports, &self.missing, Palette::stdout()))?;
        }
        if let Some(page) = self.args.report.as_ref().filter(|_| !self.reports.is_empty()) {
            html::write(page, &self.reports, &self.missing)?;
            output::note(&format!("report: {}", page.display()));
        }
        Ok(())
    }

    /// A record that failed, a check that found something, or a combination that could not be measured is a failure of
    /// the whole.
    fn verdict(&self) -> Exit {
        let is_fine = |report: &Report| report.summary.failed == 0 && report.summary.is_clean != Some(false);
        let is_done = self.missing.is_empty() && self.reports.iter().all(is_fine);
        if is_done { Exit::Done } else { Exit::Failed }
    }

    /// Runs one plan on a broker of its own, or on the one that runs.
    async fn report(&mut self, plan: &Plan) -> Result<Report, Failure> {
        let is_here = self.is_on_this_machine();
        let target = match &self.profile {
            Some(profile) => {
                let broker = BrokerProbe { process: None, admin: self.args.admin.clone() };
                Target::running(profile.clone(), Probe::new(vec![broker]))
            }
            None => Target::start(self.args.data.as_deref(), plan.settings.replicas).await?,
        };
        let target = self.target.insert(target);
        let settings = &plan.settings;
        let title = title::of(settings);
        output::note(&Palette::stderr().bold(&title));
        let bench =
            Bench { plan, target, contents: Arc::new(Contents::new(&plan.contents)), clock: Clock::start() };
        let started_at = time::now().0;
        let machine = machine::describe(target.data.as_deref(), is_here);
        let runs = repetitions(&bench, &mut self.topic).await?;
        Ok(Report {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at,
            title,
            settings: settings.clone(),
            machine,
            summary: summary::of(&runs),
            runs,
        })
    }

    fn is_on_this_machine(&self) -> bool {
        let Some(profile) = &self.profile else { return true };
        ["127.0.0.1", "localhost", "[::1]"].iter().any(|host| profile.address().contains(host))
    }

    /// Ends the broker, or leaves the running one as it was.
    async fn put_away(&mut self, plan: &Plan) {
        let Some(target) = self.target.take() else { return };
        if let Some(topic) = self.topic.take().filter(|_| !target.is_embedded()) {
            let contents = Arc::new(Contents::new(&plan.contents));
            let bench = Bench { plan, target: &target, contents, clock: Clock::start() };
            bench.delete_topic(&topic).await;
        }
        target.end().await;
    }

    async fn end(&mut self, plans: &[Plan]) {
        if let Some(plan) = plans.first() {
            self.put_away(plan).await;
        }
    }
}

/// Every repetition, each on a topic of its own unless it only reads. `topic` is the one that is there.
async fn repetitions(bench: &Bench<'_>, topic: &mut Option<String>) -> Result<Vec<report::Run>, Failure> {
    let settings = &bench.plan.settings;
    let mut runs = Vec::with_capacity(settings.repeat as usize);
    let mut stage: Option<Stage> = None;
    for number in 1..=settings.repeat as usize {
        let line = ProgressLine::new(&format!("{number:>3}/{}", settings.repeat), goal(bench.plan));
        let _memory = match settings.page_cache_warm_up_bytes {
            0 => None,
            bytes => {
                line.say(&format!("making {} of memory ready", output::bytes(bytes)));
                Some(warm_up::memory(bytes).await?)
            }
        };
        let mut current = match stage.take() {
            Some(stage) => stage,
            None => {
                let name = topic.insert(format!("quire-bench-{:x}-{number}", time::now().0));
                bench.prepare(name, &line).await?
            }
        };
        let run = bench.repeat(&mut current, &line).await?;
        drop(line);
        output::note(&table::repetition(number, settings.repeat, &run));
        runs.push(run);
        if settings.scenario == Scenario::Consume && number < settings.repeat as usize {
            stage = Some(current);
        } else {
            bench.clear(current).await;
            *topic = None;
        }
    }
    Ok(runs)
}

fn goal(plan: &Plan) -> Goal {
    match plan.duration {
        Some(duration) => Goal::Time(duration),
        None => Goal::Records(plan.settings.count.unwrap_or(0)),
    }
}

#[cfg(test)]
mod tests {
    use clap::FromArgMatches;

    use super::*;

    #[test]
    fn one_failed_record_unclean_check_or_missing_combination_fails_the_whole() {
        let report = |failed, is_clean| {
            let mut report = sample::report("t", &[1.0]);
            (report.summary.failed, report.summary.is_clean) = (failed, is_clean);
            report
        };
        let cli = crate::args::command().get_matches_from(["quire", "bench", "produce"]);
        let cli = crate::args::Cli::from_arg_matches(&cli).expect("valid");
        let crate::args::Command::Bench(BenchCommand::Produce(args)) = cli.command else {
            panic!("it says so")
        };
        let verdict = |reports: Vec<Report>, missing| {
            let mut session = Session::new(&args, None);
            (session.reports, session.missing) = (reports, missing);
            session.verdict()
        };
        let fine = || vec![report(0, None), report(0, Some(true))];
        assert_eq!(verdict(fine(), vec![]), Exit::Done);
        assert_eq!(verdict(vec![report(0, None), report(1, None)], vec![]), Exit::Failed);
        assert_eq!(verdict(vec![report(0, Some(false))], vec![]), Exit::Failed);
        let missing = Missing { settings: sample::settings(), why: "no room".to_owned() };
        assert_eq!(verdict(fine(), vec![missing]), Exit::Failed);
    }
}
