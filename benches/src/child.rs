//! Processes of the benches' own: the other side of every connection, as users have it.
//!
//! A bench starts its own program again with a [`Role`]. The child says in one line of JSON on its standard output how
//! it is reached, and serves until its standard input ends, so that none outlives its parent.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::runtime::Runtime;

use crate::bare_quic::{self, Tuning};
use crate::{broker, cpu, page_cache};

/// Set in a child, to its role as JSON.
const ROLE_VARIABLE: &str = "QUIRE_BENCH_ROLE";

/// What a child does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// A broker with its data there.
    Broker(PathBuf),
    /// The listening end of bare QUIC connections.
    BareQuic(Tuning),
    /// The holder of so many bytes of memory, which lets go of them as others take memory.
    Memory(u64),
}

/// A child that said it is ready. Dropping it ends it, and waits until it has.
#[derive(Debug)]
pub struct Child {
    process: std::process::Child,
}

impl Child {
    /// Starts a child; returns when it is ready, with what it said.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start<T: DeserializeOwned>(role: &Role) -> Result<(Child, T)> {
        let process = Command::new(std::env::current_exe()?)
            .env(ROLE_VARIABLE, serde_json::to_string(role)?)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut child = Child { process };
        let stdout = child.process.stdout.take().context("it was asked for")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        let said = serde_json::from_str(&line).with_context(|| format!("{role:?} did not start"))?;
        Ok((child, said))
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Processor time it has used so far, in ticks of 10 ms mostly.
    ///
    /// # Errors
    /// If it has ended.
    pub fn cpu(&self) -> Result<Duration> {
        cpu::of_process(self.pid())
    }

    /// Ends it, and waits until it has.
    ///
    /// # Errors
    /// If it did not end well.
    pub fn stop(mut self) -> Result<()> {
        drop(self.process.stdin.take());
        let status = self.process.wait()?;
        ensure!(status.success(), "a child ended with {status}");
        Ok(())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        // Whether it ended well was asked by `stop`; here an error is on its way already.
        let _ = self.process.wait();
    }
}

/// In a child, serves in its role and returns `true`; elsewhere returns `false` at once. To be called first in `main`.
///
/// # Errors
/// If the child can not serve.
pub fn serve_if_child() -> Result<bool> {
    let Ok(role) = std::env::var(ROLE_VARIABLE) else { return Ok(false) };
    match serde_json::from_str(&role)? {
        Role::Broker(data) => broker_runtime()?.block_on(broker::serve(&data))?,
        Role::BareQuic(tuning) => runtime(tuning.single_thread)?.block_on(bare_quic::serve(&tuning))?,
        Role::Memory(bytes) => runtime(true)?.block_on(page_cache::hold(bytes))?,
    }
    Ok(true)
}

/// Tells the parent how to reach this child, and waits until the parent wants no more of it.
pub(crate) async fn ready(how: &impl Serialize) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(how)?)?;
    drop(out);
    let until_end = || std::io::stdin().lock().read_to_end(&mut Vec::new());
    tokio::task::spawn_blocking(until_end).await??;
    Ok(())
}

/// The runtime of the `quire` binary: on half of the processors.
fn broker_runtime() -> Result<Runtime> {
    let processors = std::thread::available_parallelism()?.get();
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    Ok(builder.worker_threads(processors.div_ceil(2)).enable_all().build()?)
}

/// The runtime that `#[tokio::main]` makes for users; or one of a single thread.
///
/// # Errors
/// If the system gives no threads.
pub fn runtime(single_thread: bool) -> Result<Runtime> {
    let mut builder = match single_thread {
        true => tokio::runtime::Builder::new_current_thread(),
        false => tokio::runtime::Builder::new_multi_thread(),
    };
    Ok(builder.enable_all().build()?)
}
