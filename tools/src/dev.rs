//! `quire dev`: a broker on this machine with everything made for it, so that the next command needs no flags.

mod profile;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};

use clap::Args;
use quire_broker::{Broker, ShutdownReport};
use quire_client::{DEFAULT_PORT, Profile};
use serde::Serialize;

use crate::args::JsonArg;
use crate::embedded;
use crate::failure::{Exit, Failure};
use crate::output::{self, Palette, counted};
use crate::signals::{self, StopSignals};
use crate::time;

const ADMIN_PORT: u16 = 9644;
/// Ports that others of ours have by default: peers, and Kafka's clients.
const PORTS_SPOKEN_FOR: &[u16] = &[9441, 9092];
/// How far the next free port is looked for.
const PORTS_TRIED: u16 = 100;
/// The profile that is written unless another is named, and the folder that data is kept in.
const NAME: &str = "dev";

/// Run a broker on this machine, everything made for you.
#[derive(Debug, Args)]
#[command(after_help = "\
It listens on 127.0.0.1:9440/udp and serves metrics on 127.0.0.1:9644, or on the next free ports; makes a certificate
authority and certificates in its data folder; and writes the profile \"dev\", or the one named, which is then used by
default. It leaves alone the profile of another broker that runs, and that one the default: without a name it writes
\"dev-2\" then.
Ctrl-C stops it cleanly.")]
pub struct DevArgs {
    /// Keep data here [default: quire/dev in your data folder]
    #[arg(long, value_name = "DIR", conflicts_with = "ephemeral")]
    data: Option<PathBuf>,
    /// Keep data in a temporary folder that is removed at the end
    #[arg(long)]
    ephemeral: bool,
    /// Listen for clients here; port 0 takes any free one [default: 127.0.0.1:9440 or the next free port]
    #[arg(long, value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// Serve metrics and health here; port 0 takes any free one [default: 127.0.0.1:9644 or the next free port]
    #[arg(long, value_name = "ADDRESS:PORT")]
    admin: Option<SocketAddr>,
    #[command(flatten)]
    output: JsonArg,
}

/// Runs until Ctrl-C or SIGTERM, then stops cleanly.
///
/// # Errors
/// If the data folder or a port can not be used, or the profile not be written.
pub async fn run(name: Option<&str>, args: &DevArgs) -> Result<Exit, Failure> {
    let mut stop = StopSignals::listen()?;
    signals::ignore_hangup()?;
    let data = DataFolder::of(args)?;
    let builder = Broker::builder()
        .data_dir(data.path())
        .listen(args.listen.map_or_else(|| next_free(DEFAULT_PORT, is_free_udp), Ok)?)
        .admin(Some(args.admin.map_or_else(|| next_free(ADMIN_PORT, is_free_tcp), Ok)?));
    let Some(broker) = embedded::start(builder.start(), &mut stop).await? else { return Ok(Exit::Done) };
    let profile = WrittenProfile::of(name, &broker)?;
    announce(args, &broker, data.path(), profile)?;
    stop.stop().await;
    stop.force_on_next();
    let report = broker.shutdown().await;
    output::note(&stopping(&report));
    Ok(if report.clean { Exit::Done } else { Exit::Failed })
}

/// How clients reach the broker.
struct WrittenProfile {
    name: String,
    path: PathBuf,
    is_default: bool,
}

impl WrittenProfile {
    fn of(name: Option<&str>, broker: &Broker) -> Result<WrittenProfile, Failure> {
        let ours = embedded::from_here(broker.address());
        let name = profile::name(name, ours)?;
        let is_default = profile::becomes_default(&name, ours)?;
        let path = embedded::profile(broker).save_as(&name)?;
        if is_default {
            Profile::make_default(&name)?;
        }
        Ok(WrittenProfile { name, path, is_default })
    }

    fn how_to_use(&self) -> String {
        match self.is_default {
            true => "used by default".to_owned(),
            false => format!("use it with --profile {}; the default stays what it is", self.name),
        }
    }
}

/// Where data is kept; a temporary folder goes with it.
enum DataFolder {
    Kept(PathBuf),
    Temporary(tempfile::TempDir),
}

impl DataFolder {
    fn of(args: &DevArgs) -> Result<DataFolder, Failure> {
        if args.ephemeral {
            return embedded::temporary_folder().map(DataFolder::Temporary);
        }
        let path = match &args.data {
            Some(path) => path.clone(),
            None => directories::BaseDirs::new()
                .map(|folders| folders.data_dir().join("quire").join(NAME))
                .ok_or_else(|| {
                Failure::failed("this user has no data folder (HOME is not set)")
                    .hint("choose one with --data DIR")
            })?,
        };
        std::fs::create_dir_all(&path).map_err(|error| Failure::file(&path, &error))?;
        Ok(DataFolder::Kept(path))
    }

    fn path(&self) -> &Path {
        match self {
            DataFolder::Kept(path) => path,
            DataFolder::Temporary(folder) => folder.path(),
        }
    }
}

/// The first free port from `first` on, on loopback. Somebody may take it before the broker does, which then says so.
fn next_free(first: u16, is_free: fn(SocketAddr) -> io::Result<()>) -> Result<SocketAddr, Failure> {
    let ports = (first..first.saturating_add(PORTS_TRIED)).filter(|port| !PORTS_SPOKEN_FOR.contains(port));
    let mut addresses = ports.map(|port| SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port));
    addresses.find(|address| is_free(*address).is_ok()).ok_or_else(|| {
        Failure::failed(format!("no free port from {first} on"))
            .hint("choose one with --listen or --admin ADDRESS:PORT")
    })
}

fn is_free_udp(address: SocketAddr) -> io::Result<()> {
    UdpSocket::bind(address).map(drop)
}

fn is_free_tcp(address: SocketAddr) -> io::Result<()> {
    TcpListener::bind(address).map(drop)
}

#[derive(Serialize)]
struct ReadyJson {
    address: String,
    admin: Option<String>,
    data: PathBuf,
    ephemeral: bool,
    profile: PathBuf,
    is_default: bool,
    ready_ms: u64,
}

fn announce(args: &DevArgs, broker: &Broker, data: &Path, profile: WrittenProfile) -> Result<(), Failure> {
    let address = format!("quire://{}", embedded::from_here(broker.address()));
    let admin = broker.admin_address().map(|address| format!("http://{address}"));
    if args.output.json {
        let data = data.to_owned();
        let ready_ms = broker.ready_in().as_millis() as u64;
        return output::print_json(&ReadyJson {
            address,
            admin,
            data,
            ephemeral: args.ephemeral,
            profile: profile.path,
            is_default: profile.is_default,
            ready_ms,
        });
    }
    let palette = Palette::stderr();
    let admin = admin.map(|admin| format!("   admin {admin}")).unwrap_or_default();
    let ready = palette.good(&format!("ready in {}", time::show_took(broker.ready_in()))).into_owned();
    output::note(&format!("{ready}   {} (TLS 1.3){admin}", palette.bold(&address)));
    let kept = if args.ephemeral { " (removed at the end)" } else { "" };
    let (how_to_use, path) = (profile.how_to_use(), short(&profile.path));
    output::note(&format!("data {}{kept}   profile {path} ({how_to_use})", short(data)));
    let named = if profile.is_default { String::new() } else { format!(" --profile {}", profile.name) };
    output::note(&format!("next: quire topic create flights --partitions 8{named}     Ctrl-C stops"));
    Ok(())
}

/// A path with the user's home as `~`.
fn short(path: &Path) -> String {
    let home = directories::BaseDirs::new().map(|folders| folders.home_dir().to_owned());
    match home.and_then(|home| path.strip_prefix(home).ok().map(Path::to_owned)) {
        Some(rest) => format!("~/{}", rest.display()),
        None => path.display().to_string(),
    }
}

/// `stopping: 2 clients told, 8 partitions synced, clean (41 ms)`
pub fn stopping(report: &ShutdownReport) -> String {
    format!(
        "stopping: {} told, {} synced, {} ({})",
        counted(report.connections as u64, "client"),
        counted(report.partitions as u64, "partition"),
        if report.clean { "clean" } else { "NOT clean: the next start recovers" },
        time::show_took(report.took)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_taken_port_is_passed_over() {
        let taken = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        let address = taken.local_addr().expect("it is bound");
        let next = next_free(address.port(), is_free_udp).expect("one of a hundred is free");
        assert!(next.port() > address.port());
    }

    #[test]
    fn ports_of_others_are_left_to_them() {
        let free = |_| Ok(());
        assert_eq!(next_free(9441, free).map(|address| address.port()), Ok(9442));
        assert!(next_free(9440, |_| Err(io::ErrorKind::AddrInUse.into())).is_err());
    }

    #[test]
    fn the_last_line_says_what_was_stopped() {
        let report =
            ShutdownReport { connections: 2, partitions: 1, clean: true, took: Duration::from_millis(41) };
        assert_eq!(stopping(&report), "stopping: 2 clients told, 1 partition synced, clean (41 ms)");
    }
}
