//! The `quire` command: one binary that is the broker, the client and the offline inspector.
//!
//! [`args`] is the command line; each command family has a file of its own. What commands answer goes to standard
//! output, everything else to standard error ([`output`]); how they fail is [`failure`].
#![forbid(unsafe_code)]

pub mod args;
pub mod failure;
pub mod flights;
pub mod input_source;
pub mod output;
pub mod position;
pub mod progress;
pub mod record_format;
pub mod record_input;
pub mod secret_file;
pub mod signals;
pub mod time;

pub mod acl;
pub mod bench;
pub mod broker;
pub mod cluster;
pub mod completions;
pub mod consume;
pub mod demo;
pub mod dev;
pub mod drill;
pub mod group;
pub mod log;
pub mod produce;
pub mod replay;
pub mod topic;

mod connect;
mod embedded;
mod logging;
mod obstacles;
mod outlet;

use args::{Cli, Command};
use failure::{Exit, Failure};

/// Does what the command line says, and says how it went.
pub fn run(cli: Cli) -> Exit {
    logging::start(&cli);
    let outcome = match cli.command {
        Command::Completions(args) => completions::run(&args),
        Command::Log(command) => log::run(&command),
        command => block_on(dispatch(cli.common.profile.as_deref(), command)),
    };
    outcome.unwrap_or_else(|failure| {
        output::report(&failure);
        failure.exit()
    })
}

async fn dispatch(profile: Option<&str>, command: Command) -> Result<Exit, Failure> {
    match command {
        Command::Demo(args) => demo::run(&args).await,
        Command::Dev(args) => dev::run(profile, &args).await,
        Command::Broker(args) => broker::run(&args).await,
        Command::Cluster(command) => cluster::run(profile, &command).await,
        Command::Acl(command) => acl::run(profile, &command).await,
        Command::Topic(command) => topic::run(profile, &command).await,
        Command::Group(command) => group::run(profile, &command).await,
        Command::Produce(args) => produce::run(profile, &args).await,
        Command::Consume(args) => consume::run(profile, &args).await,
        Command::Replay(args) => replay::run(profile, &args).await,
        Command::Drill(args) => drill::run(profile, &args).await,
        Command::Bench(command) => bench::run(profile, &command).await,
        Command::Completions(args) => completions::run(&args),
        Command::Log(command) => log::run(&command),
    }
}

fn block_on(work: impl Future<Output = Result<Exit, Failure>>) -> Result<Exit, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(network_threads())
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("no threads to work with: {error}")))?;
    let outcome = runtime.block_on(work);
    // A read of standard input can not be called back; the process ends without waiting for it.
    runtime.shutdown_background();
    outcome
}

/// Half of the processors: a broker's shards have threads of their own, and a connection that moves between threads
/// leaves its data in the wrong cache.
fn network_threads() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    processors.div_ceil(2)
}
