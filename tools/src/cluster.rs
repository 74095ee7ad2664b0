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
    /// Write a profile that reaches the cluster through any of its brokers
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

/// A profile from a data directory, or one that there is.
#[derive(Debug, Args)]
#[command(after_help = "\
With --data it is named \"cluster\", or as --profile says, and used by default from then on. Who has it is an administrator
of the cluster: on other machines keep it as you keep a key.

Without --data the profile in use is brought up to date: it names the brokers that the cluster has now. Do that when
brokers have joined or left; with only one of them in the profile nothing is reached while that one is down.

Examples:
  quire cluster profile --data /var/lib/quire
  quire cluster profile")]
pub struct ProfileArgs {
    /// The data directory of a broker on this machine, which has been started once [default: the profile in use]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Where clients reach a broker of the cluster, if not where that broker says
    #[arg(long, value_name = "HOST:PORT", requires = "data")]
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
        let written = match &args.data {
            Some(data) => write_profile(profile, data, args).await,
            None => renew_profile(profile).await,
        };
        return written.map(|()| Exit::Done);
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
        true => output::print_json(&TokenJson { token, expires_in_seconds: age.as_secs() })?,
        false => output::print(&format!("{token}\n"))?,
    }
    output::note("once the broker has joined: quire cluster profile   (the profile then names it too)");
    Ok(())
}

async fn write_profile(name: Option<&str>, data: &Path, args: &ProfileArgs) -> Result<(), Failure> {
    let profile = read_profile(data)?;
    let profile = match &args.address {
        Some(address) => profile.at(format!("quire://{}", address.trim_start_matches("quire://"))),
        None => profile,
    };
    let profile = match timeout(ANSWER_TIME_MAX, brokers_of(&profile)).await {
        Ok(Ok(brokers)) => {
            let address = address_of(profile.address(), brokers);
            profile.at(address)
        }
        _ => {
            output::note("the cluster does not answer: the profile names the brokers that were known");
            profile
        }
    };
    let name = name.unwrap_or(NAME);
    let path = profile.save_as(name)?;
    Profile::make_default(name)?;
    output::note(&format!("profile {} reaches {} and is used by default", path.display(), profile.address()));
    Ok(())
}

/// Brings the profile in use up to date.
async fn renew_profile(name: Option<&str>) -> Result<(), Failure> {
    let name = name.map_or_else(Profile::default_name, |name| Ok(name.to_owned()))?;
    let profile = Profile::load(Some(&name))?;
    let brokers = brokers_of(&profile).await.map_err(|error| connect::about_profile(&profile, error))?;
    let address = renewed(profile.address(), &brokers);
    let profile = profile.at(address);
    let path = profile.save_as(&name)?;
    output::note(&format!("profile {} reaches {}", path.display(), profile.address()));
    Ok(())
}

/// Where clients reach each of the cluster's brokers.
async fn brokers_of(profile: &Profile) -> Result<Vec<String>, quire_client::Error> {
    let client = Client::connect_with(profile.clone()).await?;
    let described = client.admin().describe_cluster().await;
    client.close().await;
    let address = |broker: quire_client::Broker| {
        let host = if broker.host.contains(':') { format!("[{}]", broker.host) } else { broker.host };
        format!("{host}:{}", broker.port)
    };
    Ok(described?.brokers.into_iter().map(address).collect())
}

/// The address of a cluster that has these brokers now. What no broker has any more is left out, except where the profile
/// calls all brokers by other addresses than they do themselves, of which nothing is known then.
fn renewed(known: &str, brokers: &[String]) -> String {
    let is_there = |address: &&str| brokers.iter().any(|broker| broker == address);
    let kept: Vec<_> = addresses(known).filter(is_there).collect();
    let known = if kept.is_empty() { known.to_owned() } else { kept.join(",") };
    address_of(&known, brokers.iter().cloned())
}

/// The address of a cluster: those known, with commas between them, then the others, none twice.
pub(crate) fn address_of(known: &str, others: impl IntoIterator<Item = String>) -> String {
    let mut all: Vec<String> = Vec::new();
    for address in addresses(known).map(str::to_owned).chain(others) {
        if !all.contains(&address) {
            all.push(address);
        }
    }
    format!("quire://{}", all.join(","))
}

/// The addresses of which a profile's consists.
fn addresses(address: &str) -> impl Iterator<Item = &str> {
    address.trim_start_matches("quire://").split(',').map(str::trim)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn brokers(all: &[&str]) -> Vec<String> {
        all.iter().map(|address| (*address).to_owned()).collect()
    }

    #[test]
    fn an_address_has_every_broker_once() {
        let all = address_of("quire://a:1, b:1", brokers(&["b:1", "c:1"]));
        assert_eq!(all, "quire://a:1,b:1,c:1");
    }

    #[test]
    fn a_profile_brought_up_to_date_has_the_brokers_that_there_are() {
        assert_eq!(renewed("quire://b:1,gone:1", &brokers(&["a:1", "b:1", "c:1"])), "quire://b:1,a:1,c:1");
        // From outside, where brokers have other names, what is known stays.
        assert_eq!(renewed("quire://outside:1", &brokers(&["a:1"])), "quire://outside:1,a:1");
    }
}
