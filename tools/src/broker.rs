//! `quire broker`: a broker from a configuration file, for real.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Args;
use quire_broker::config::{FirstStart, HostPort};
use quire_broker::{Broker, ClientAddresses, Config, JoinToken};
use quire_client::{Profile, ProfileError};
use quire_protocol::limits;
use sd_notify::NotifyState;

use crate::cluster;
use crate::dev;
use crate::embedded;
use crate::failure::{Exit, Failure};
use crate::output;
use crate::secret_file;
use crate::signals::{self, StopSignals};

/// The file in a data directory with the token for the second broker of a cluster.
const JOIN_TOKEN: &str = "join-token";
/// The file in a data directory with what clients need.
pub(crate) const CLIENT_PROFILE: &str = "client-profile.toml";

/// Run a broker, of its own or of a cluster.
#[derive(Debug, Args)]
#[command(after_help = "\
A cluster in three commands: 'quire broker --init --data DIR' founds it and prints a join token, then 'quire broker
--join HOST:PORT --token TOKEN --data DIR' twice, each on its own machine. HOST:PORT is where clients connect to a broker of
the cluster. A token lets one broker in; 'quire cluster token' makes more. Both flags act at the first start only: later
starts know from the data directory.

The file overrides the defaults, environment variables QUIRE_<SECTION>_<KEY> override the file, flags override both.
config/quire.toml in the sources lists every option. SIGTERM and Ctrl-C stop the broker cleanly; systemd is told when
it is ready and when it stops (Type=notify).")]
pub struct BrokerArgs {
    /// The configuration file [default: the defaults, with --data]
    #[arg(short, long, value_name = "FILE", required_unless_present = "data")]
    config: Option<PathBuf>,
    /// Keep data here, whatever the file says
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Listen for clients here, whatever the file says
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// Serve metrics and health here, whatever the file says
    #[arg(long, value_name = "ADDRESS:PORT")]
    admin: Option<SocketAddr>,
    /// Listen for the other brokers of a cluster here, whatever the file says
    #[arg(long, value_name = "ADDRESS:PORT")]
    peer_listen: Option<SocketAddr>,
    /// Serve no metrics and health
    #[arg(long, conflicts_with = "admin")]
    no_admin: bool,
    /// Found a cluster; prints a join token and writes it to the file join-token in the data directory
    #[arg(long, conflicts_with = "join")]
    init: bool,
    /// Join the cluster of the broker that clients reach here
    #[arg(long, value_name = "HOST:PORT", requires = "token")]
    join: Option<HostPort>,
    /// The token to join with
    #[arg(long, env = "QUIRE_JOIN_TOKEN", hide_env_values = true, value_name = "TOKEN")]
    token: Option<JoinToken>,
    /// Only check the configuration
    #[arg(long)]
    check: bool,
    /// Log in JSON, one object a line
    #[arg(long)]
    pub(crate) log_json: bool,
    /// Stop cleanly when standard input ends as well: whoever started the broker is gone then, however it went
    #[arg(long, hide = true)]
    stop_on_eof: bool,
}

impl BrokerArgs {
    fn config(&self) -> Result<Config, Failure> {
        let loaded = match &self.config {
            Some(file) => Config::load(file),
            None => Config::from_env(),
        };
        let mut config = loaded.map_err(|error| {
            Failure::usage(error.to_string())
                .hint("config/quire.toml in the sources lists every option with its default")
        })?;
        if let Some(data) = &self.data {
            config.data_dir.clone_from(data);
        }
        if let Some(listen) = self.listen {
            config.network.listen = listen;
        }
        if let Some(listen) = self.peer_listen {
            config.cluster.peer_listen = listen;
            config.cluster.is_expected = true;
        }
        config.admin_listen = self.admin.or(config.admin_listen).filter(|_| !self.no_admin);
        config.first_start = match (self.init, &self.join, &self.token) {
            (true, ..) => FirstStart::Found,
            (false, Some(at), Some(token)) => FirstStart::Join { at: at.clone(), token: token.clone() },
            _ => FirstStart::Alone,
        };
        Ok(config)
    }
}

/// Runs until SIGTERM or Ctrl-C, then drains.
///
/// # Errors
/// If the configuration makes no sense, or the broker can not start.
pub async fn run(args: &BrokerArgs) -> Result<Exit, Failure> {
    let config = args.config()?;
    if args.check {
        let checked = args.config.as_ref().map_or("the environment".into(), |file| file.to_string_lossy());
        output::note(&format!("{checked}: fine"));
        return Ok(Exit::Done);
    }
    let mut stop = StopSignals::listen()?;
    signals::ignore_hangup()?;
    let (data, listens_as_told) = (config.data_dir.clone(), config.network.advertise.clone());
    let starting = Broker::from_config(config);
    let Some(broker) = embedded::start(starting, &mut stop).await? else { return Ok(Exit::Done) };
    let mut profile = None;
    if broker.peer_address().is_some() {
        let address = listens_as_told
            .map_or_else(|| embedded::from_here(broker.address()).to_string(), |at| at.to_string());
        profile = Some(KeptProfile::save(&broker, &data, &address)?);
        announce(args, &broker, &data, &address).await?;
    }
    tell_service_manager(NotifyState::Ready);
    tokio::select! {
        () = stop.stop() => {}
        () = end_of_input(), if args.stop_on_eof => {}
        () = KeptProfile::keep(profile) => {}
    }
    tell_service_manager(NotifyState::Stopping);
    stop.force_on_next();
    let report = broker.shutdown().await;
    output::note(&dev::stopping(&report));
    Ok(if report.clean { Exit::Done } else { Exit::Failed })
}

/// What comes is nothing to anybody, and a failure to read is an end as well.
async fn end_of_input() {
    let _ = tokio::io::copy(&mut tokio::io::stdin(), &mut tokio::io::sink()).await;
}

/// The profile in a data directory, with which tools on this machine reach this broker and the others.
struct KeptProfile {
    file: PathBuf,
    profile: Profile,
    /// This broker's.
    address: String,
    addresses: ClientAddresses,
    written: Vec<HostPort>,
}

impl KeptProfile {
    fn save(broker: &Broker, data: &Path, address: &str) -> Result<KeptProfile, Failure> {
        let addresses = broker.client_addresses();
        let kept = KeptProfile {
            file: data.join(CLIENT_PROFILE),
            profile: embedded::profile(broker),
            address: address.to_owned(),
            written: addresses.now(),
            addresses,
        };
        kept.write()?;
        Ok(kept)
    }

    fn write(&self) -> Result<(), ProfileError> {
        let others = self.written.iter().map(ToString::to_string);
        let profile = self.profile.clone().at(cluster::address_of(&self.address, others));
        profile.save(&self.file)
    }

    /// Writes it again whenever brokers come or go, for ever.
    async fn keep(kept: Option<KeptProfile>) {
        let Some(mut kept) = kept else { return std::future::pending().await };
        loop {
            kept.written = kept.addresses.others_than(&kept.written).await;
            if let Err(error) = kept.write() {
                tracing::warn!(%error, "the profile in the data directory lacks brokers");
            }
        }
    }
}

/// Says what the broker of a cluster is and how to go on, and keeps the token for the second.
async fn announce(args: &BrokerArgs, broker: &Broker, data: &Path, address: &str) -> Result<(), Failure> {
    let (id, cluster) = (broker.id(), broker.cluster_id());
    output::note(&format!("broker {id} of cluster {cluster} serves clients on {address}"));
    if !args.init {
        return Ok(());
    }
    let file = data.join(JOIN_TOKEN);
    if file.exists() {
        output::note("--init did its work at the first start; 'quire cluster token' makes a join token");
        return Ok(());
    }
    let token = broker.join_token(limits::TOKEN_AGE_DEFAULT).await.map_err(|error| {
        Failure::failed(error.to_string()).hint("'quire cluster token' makes one once the cluster is well")
    })?;
    secret_file::write(&file, &format!("{token}\n"))?;
    output::note(&format!(
        "the next broker joins within {} hours with: quire broker --join {address} --token {token} --data DIR",
        limits::TOKEN_AGE_DEFAULT.as_secs() / 3600
    ));
    output::note(&format!("clients: quire cluster profile --data {}", data.display()));
    Ok(())
}

/// Nobody may be listening, which is no failure.
fn tell_service_manager(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "the service manager could not be told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(config: &str, flags: &[&str]) -> (tempfile::TempDir, BrokerArgs) {
        #[derive(clap::Parser)]
        struct Wrapper {
            #[command(flatten)]
            args: BrokerArgs,
        }
        let dir = tempfile::tempdir().expect("a temporary folder");
        let file = dir.path().join("quire.toml");
        std::fs::write(&file, config).expect("it can be written");
        let line = ["broker", "--config"].map(Into::into).into_iter().chain([file.into_os_string()]);
        let args = <Wrapper as clap::Parser>::parse_from(line.chain(flags.iter().map(Into::into))).args;
        (dir, args)
    }

    #[test]
    fn flags_override_the_file() {
        let (_dir, args) =
            args("[network]\nlisten = \"127.0.0.1:1\"\n", &["--listen", "127.0.0.1:2", "--data", "/x"]);
        let config = args.config().expect("valid");
        assert_eq!(config.network.listen.port(), 2);
        assert_eq!(config.data_dir, PathBuf::from("/x"));
    }

    #[test]
    fn a_mistyped_option_is_a_usage_error_with_the_nearest() {
        let (_dir, args) = args("[network]\nlissten = \"127.0.0.1:1\"\n", &[]);
        let failure = args.config().expect_err("mistyped");
        assert_eq!(failure.exit(), Exit::Usage);
        assert!(failure.to_string().contains("did you mean \"network.listen\"?"), "{failure}");
    }
}
