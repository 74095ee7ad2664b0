//! `quire cluster`: what concerns the brokers rather than the records.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use quire_client::{Client, Profile};
use quire_protocol::limits;
use serde::Serialize;

use crate::args::JsonArg;
use crate::broker::CLIENT_PROFILE;
use crate::connect;
use crate::failure::{Exit, Failure};
use crate::output;

/// The profile that is written unless another is named.
const NAME: &str = "cluster";

/// What to do with the cluster.
#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Make a token with which one broker can join
    Token(TokenArgs),
    /// Write a profile that reaches the cluster, from the data directory of one of its brokers
    Profile(ProfileArgs),
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
    match command {
        ClusterCommand::Token(args) => token(profile, args).await,
        ClusterCommand::Profile(args) => write_profile(profile, args),
    }
}

#[derive(Serialize)]
struct TokenJson {
    token: String,
    expires_in_seconds: u64,
}

async fn token(profile: Option<&str>, args: &TokenArgs) -> Result<Exit, Failure> {
    let age = args.hours.map_or(limits::TOKEN_AGE_DEFAULT, |hours| Duration::from_secs(hours * 3600));
    let ask = async |client: &Client| Ok(client.admin().create_join_token(age).await?);
    let token = connect::with_client(profile, ask).await?;
    match args.output.json {
        true => output::print_json(&TokenJson { token, expires_in_seconds: age.as_secs() })?,
        false => output::print(&format!("{token}\n"))?,
    }
    Ok(Exit::Done)
}

fn write_profile(name: Option<&str>, args: &ProfileArgs) -> Result<Exit, Failure> {
    let profile = read_profile(&args.data)?;
    let profile = match &args.address {
        Some(address) => profile.at(format!("quire://{}", address.trim_start_matches("quire://"))),
        None => profile,
    };
    let name = name.unwrap_or(NAME);
    let path = profile.save_as(name)?;
    Profile::make_default(name)?;
    output::note(&format!("profile {} reaches {} and is used by default", path.display(), profile.address()));
    Ok(Exit::Done)
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
