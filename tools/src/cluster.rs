//! `quire cluster`: what concerns the brokers rather than the records.

pub mod operations;
pub mod rebalance;

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use quire_client::{Client, Profile};
use quire_protocol::limits;
use serde::Serialize;
use tokio::time::timeout;

use crate::args::JsonArg;
use crate::broker::CLIENT_PROFILE;
use crate::connect;
use crate::failure::{Exit, Failure};
use crate::output;

/// The profile that is written unless another is named.
const NAME: &str = "cluster";

/// How long a new profile waits for the cluster to name its brokers.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(3);

/// What to do with the cluster.
#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Show brokers, and how partitions stand
    Status(JsonArg),
    /// Make a token with which one broker can join
    Token(TokenArgs),
    /// Write a profile that reaches the cluster, from the data directory of one of its brokers
    Profile(ProfileArgs),
    /// Move leaderships away from a broker
    Drain(operations::DrainArgs),
    /// Remove a broker that holds nothing, for good
    Remove(operations::RemoveArgs),
    /// Even out who holds and leads what; shows the plan unless told to carry it out
    Rebalance(rebalance::RebalanceArgs),
}

/// A new token.
#[derive(Debug, Args)]
pub struct TokenArgs {
    /// How long it can be used (hours)
    #[arg(long, value_name = "HOURS", value_parser = clap::value_parser!(u64).range(1..=720))]
    hours: Option<u64>,
    #[command(flatten)]
    output: JsonArg,
}

/// A profile from a data directory.
#[derive(Debug, Args)]
#[command(after_help = "\
It is named \"cluster\", or as --profile says, and used by default from then on. Who has it is an administrator of the
cluster: on other machines keep it as you keep a key.")]
pub struct ProfileArgs {
    /// The data directory of a broker on this machine, which has been started once
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Where clients reach a broker of the cluster, if not where that broker says
    #[arg(long, value_name = "HOST:PORT")]
    address: Option<String>,
}

/// Does it.
///
/// # Errors
/// If the cluster can not be reached or refuses, or a file not be read or written.
pub async fn run(profile: Option<&str>, command: &ClusterCommand) -> Result<Exit, Failure> {
    let work = async |client: &Client| match command {
        ClusterCommand::Token(args) => token(client, args).await,
        ClusterCommand::Profile(_) => Ok(()),
        ClusterCommand::Status(args) => operations::status(client, args.json).await,
        ClusterCommand::Drain(args) => operations::drain(client, args).await,
        ClusterCommand::Remove(args) => operations::remove(client, args).await,
        ClusterCommand::Rebalance(args) => rebalance::run(client, args).await,
    };
    if let ClusterCommand::Profile(args) = command {
        return write_profile(profile, args).await.map(|()| Exit::Done);
    }
    connect::with_client(profile, work).await.map(|()| Exit::Done)
}

#[derive(Serialize)]
struct TokenJson {
    token: String,
    expires_in_seconds: u64,
}

async fn token(client: &Client, args: &TokenArgs) -> Result<(), Failure> {
    let age = args.hours.map_or(limits::TOKEN_AGE_DEFAULT, |hours| Duration::from_secs(hours * 3600));
    let token = client.admin().create_join_token(age).await?;
    match args.output.json {
        true => output::print_json(&TokenJson { token, expires_in_seconds: age.as_secs() }),
        false => output::print(&format!("{token}\n")),
    }
}

async fn write_profile(name: Option<&str>, args: &ProfileArgs) -> Result<(), Failure> {
    let profile = read_profile(&args.data)?;
    let profile = match &args.address {
        Some(address) => profile.at(format!("quire://{}", address.trim_start_matches("quire://"))),
        None => profile,
    };
    let profile = match timeout(ANSWER_TIME_MAX, brokers_of(&profile)).await {
        Ok(Ok(address)) => profile.at(address),
        _ => {
            output::note("the cluster does not answer: the profile names the one broker");
            profile
        }
    };
    let name = name.unwrap_or(NAME);
    let path = profile.save_as(name)?;
    Profile::make_default(name)?;
    output::note(&format!("profile {} reaches {} and is used by default", path.display(), profile.address()));
    Ok(())
}

/// The address that the profile has, and behind it those of the cluster's other brokers: one that is gone is in nobody's
/// way.
async fn brokers_of(profile: &Profile) -> Result<String, quire_client::Error> {
    let client = Client::connect_with(profile.clone()).await?;
    let described = client.admin().describe_cluster().await;
    client.close().await;
    let known = profile.address().trim_start_matches("quire://").to_owned();
    let mut addresses = vec![known];
    for broker in described?.brokers {
        let host = if broker.host.contains(':') { format!("[{}]", broker.host) } else { broker.host };
        let address = format!("{host}:{}", broker.port);
        if !addresses.iter().any(|known| known.split(',').any(|known| known == address)) {
            addresses.push(address);
        }
    }
    Ok(format!("quire://{}", addresses.join(",")))
}

fn read_profile(data: &Path) -> Result<Profile, Failure> {
    let file = data.join(CLIENT_PROFILE);
    if !file.exists() {
        return Err(Failure::failed(format!("{} is not there", file.display())).hint(
            "name the data directory of a broker of the cluster that was started on this machine with --init or --join",
        ));
    }
    Ok(Profile::load_file(&file)?)
}
