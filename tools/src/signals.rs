//! Ctrl-C and SIGTERM.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::failure::{Exit, Failure};

/// Waits for a wish to stop. The second Ctrl-C ends the process at once, whatever it is doing.
pub struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
}

impl StopSignals {
    /// From here on, signals are waited for and no longer end the process by themselves.
    ///
    /// # Errors
    /// If the system refuses the handlers.
    pub fn listen() -> Result<StopSignals, Failure> {
        let refused = |error| Failure::failed(format!("signals can not be handled: {error}"));
        Ok(StopSignals {
            interrupt: signal(SignalKind::interrupt()).map_err(refused)?,
            terminate: signal(SignalKind::terminate()).map_err(refused)?,
        })
    }

    /// Waits for the first Ctrl-C or SIGTERM. Dropping the future loses nothing.
    pub async fn stop(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// Lets a further Ctrl-C end the process at once while it drains.
    pub fn force_on_next(mut self) {
        tokio::spawn(async move {
            self.stop().await;
            std::process::exit(Exit::Interrupted as i32);
        });
    }
}

/// Keeps SIGHUP from ending the process: a broker that outlives its terminal goes on.
///
/// # Errors
/// If the system refuses the handler.
pub fn ignore_hangup() -> Result<(), Failure> {
    let mut hangup = signal(SignalKind::hangup())
        .map_err(|error| Failure::failed(format!("signals can not be handled: {error}")))?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            tracing::info!("SIGHUP ignored: the configuration is read at start only");
        }
    });
    Ok(())
}
