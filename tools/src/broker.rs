//! `quire broker`: a broker from a configuration file, for real.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use quire_broker::{Broker, Config};
use sd_notify::NotifyState;

use crate::dev;
use crate::embedded;
use crate::failure::{Exit, Failure};
use crate::output;
use crate::signals::{self, StopSignals};

/// Run a broker from a config file.
#[derive(Debug, Args)]
#[command(after_help = "\
The file overrides the defaults, environment variables QUIRE_<SECTION>_<KEY> override the file, flags override both.
config/quire.toml in the sources lists every option. SIGTERM and Ctrl-C stop the broker cleanly; systemd is told when
it is ready and when it stops (Type=notify).")]
pub struct BrokerArgs {
    /// The configuration file
    #[arg(short, long, value_name = "FILE")]
    config: PathBuf,
    /// Keep data here, whatever the file says
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Listen for clients here, whatever the file says
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// Serve metrics and health here, whatever the file says
    #[arg(long, value_name = "ADDRESS:PORT")]
    admin: Option<SocketAddr>,
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
        let mut config = Config::load(&self.config).map_err(|error| {
            Failure::usage(error.to_string())
                .hint("config/quire.toml in the sources lists every option with its default")
        })?;
        if let Some(data) = &self.data {
            config.data_dir.clone_from(data);
        }
        if let Some(listen) = self.listen {
            config.network.listen = listen;
        }
        config.admin_listen = self.admin.or(config.admin_listen);
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
        output::note(&format!("{}: fine", args.config.display()));
        return Ok(Exit::Done);
    }
    let mut stop = StopSignals::listen()?;
    signals::ignore_hangup()?;
    let starting = Broker::from_config(config);
    let Some(broker) = embedded::start(starting, &mut stop).await? else { return Ok(Exit::Done) };
    tell_service_manager(NotifyState::Ready);
    tokio::select! {
        () = stop.stop() => {}
        () = end_of_input(), if args.stop_on_eof => {}
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
