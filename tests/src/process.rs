//! Brokers as processes of their own, started from the built binary, for tests that kill and trace them.

use std::ffi::OsStr;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use quire_client::{Client, Profile};
use rustix::process::{Pid, Signal, kill_process};

/// How long a broker may take until it serves.
const START_TIME_MAX: Duration = Duration::from_secs(30);

/// A running `quire broker`. Killed when dropped.
#[derive(Debug)]
pub struct BrokerProcess {
    child: Child,
    address: SocketAddr,
    data: PathBuf,
}

/// The `quire` binary that this test run built.
///
/// # Errors
/// If it is not there: the test was not run with the whole workspace.
pub fn quire_binary() -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let profile = test.ancestors().nth(2).context("a test runs from its build folder")?;
    let binary = profile.join(format!("quire{}", std::env::consts::EXE_SUFFIX));
    if !binary.exists() {
        bail!("{} is not built; run: cargo build -p quire", binary.display());
    }
    Ok(binary)
}

/// A loopback address whose UDP port is free now.
///
/// # Errors
/// If no socket can be bound.
pub fn free_address() -> Result<SocketAddr> {
    Ok(UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?)
}

/// Whether `strace` is there and may trace.
pub fn can_trace() -> bool {
    let mut command = Command::new("strace");
    command.args(["-o", "/dev/null", "true"]).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// The next `fdatasync` of every thread of a process fails with EIO, while this is held.
#[derive(Debug)]
pub struct FailingSyncs {
    tracer: Child,
}

impl FailingSyncs {
    /// Begins with the process of this number.
    ///
    /// # Errors
    /// If it can not be traced.
    pub fn of(process: u32) -> Result<FailingSyncs> {
        let tracer = Command::new("strace")
            .args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync"])
            .args(["-e", "inject=fdatasync:error=EIO:when=1", "-p", &process.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        Ok(FailingSyncs { tracer })
    }
}

impl Drop for FailingSyncs {
    fn drop(&mut self) {
        // It lets go of the process when it is asked to end, and has ended already if the process has.
        if let Some(tracer) = Pid::from_raw(self.tracer.id().cast_signed()) {
            let _ended = kill_process(tracer, Signal::TERM);
        }
        drop(self.tracer.wait());
    }
}

impl BrokerProcess {
    /// Starts a broker on `data` that listens on `address`, behind the command words of `wrapper` if there are any
    /// (`strace …`). Its log goes to `broker.log` beside the data.
    ///
    /// # Errors
    /// If the binary is missing or can not be started.
    pub fn start<W: AsRef<OsStr>>(data: &Path, address: SocketAddr, wrapper: &[W]) -> Result<BrokerProcess> {
        let config = data.with_extension("toml");
        let text = format!(
            "[broker]\ndata_dir = {data:?}\n[network]\nlisten = \"{address}\"\n[admin]\nenabled = false\n"
        );
        fs::write(&config, text)?;
        let log = fs::OpenOptions::new().create(true).append(true).open(data.with_extension("log"))?;
        let mut words = wrapper.iter().map(|word| word.as_ref().to_owned()).collect::<Vec<_>>();
        words.push(quire_binary()?.into_os_string());
        let child = Command::new(&words[0])
            .args(&words[1..])
            .args(["broker".as_ref(), "--config".as_ref(), config.as_os_str()])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        Ok(BrokerProcess { child, address, data: data.to_owned() })
    }

    /// A client of this broker, as soon as it answers.
    ///
    /// # Errors
    /// If it ended, or does not answer within half a minute.
    pub async fn client(&mut self) -> Result<Client> {
        let deadline = Instant::now() + START_TIME_MAX;
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("the broker ended with {status}:\n{}", self.log());
            }
            let connected = match self.profile() {
                Ok(profile) => Client::connect_with(profile).await.map_err(anyhow::Error::from),
                Err(error) => Err(error),
            };
            match connected {
                Ok(client) => return Ok(client),
                Err(error) if Instant::now() > deadline => return Err(error.context(self.log())),
                // The broker offers no event to a stranger; this waits for another process, not for our own code.
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// Ends it as a crash would: SIGKILL, and reaped.
    ///
    /// # Errors
    /// If the process can not be signalled.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Ends it as an operator would, SIGTERM, and waits for it to drain.
    ///
    /// # Errors
    /// If it does not end well.
    pub fn stop(&mut self) -> Result<()> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let status = self.child.wait()?;
        if !status.success() {
            bail!("the broker ended with {status}:\n{}", self.log());
        }
        Ok(())
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.data.with_extension("log")).unwrap_or_else(|error| format!("no log: {error}"))
    }

    fn profile(&self) -> Result<Profile> {
        let tls = self.data.join("tls");
        let read = |name: &str| fs::read_to_string(tls.join(name)).with_context(|| format!("no {name} yet"));
        Ok(Profile::new(self.address.to_string())
            .authority_pem(read("authority.pem")?)
            .identity_pem(read("client.pem")?, read("client.key")?))
    }
}

impl Drop for BrokerProcess {
    fn drop(&mut self) {
        // It may have ended already; there is nobody left to tell.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
