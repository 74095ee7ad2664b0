//! Threads and tasks that the broker can not do without.
//!
//! If one of them panics, what waits for it waits for ever, while everything else looks alive. So the process ends at
//! once: the next start recovers, and nothing that was acknowledged is lost.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::{Builder, JoinHandle};

use futures_util::FutureExt;

/// Starts a thread whose panic ends the process.
///
/// # Errors
/// If the operating system gives no more threads.
pub(crate) fn spawn(name: String, body: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    let guarded = {
        let name = name.clone();
        move || {
            // Nothing is looked at after the panic, so nothing half-changed is seen.
            if let Err(panic) = catch_unwind(AssertUnwindSafe(body)) {
                end_process(&name, &*panic);
            }
        }
    };
    Builder::new().name(name).spawn(guarded)
}

/// Starts a task whose panic ends the process. Must be called on a tokio runtime.
pub(crate) fn spawn_task(
    name: &'static str,
    body: impl Future<Output = ()> + Send + 'static,
) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move {
        if let Err(panic) = AssertUnwindSafe(body).catch_unwind().await {
            end_process(name, &*panic);
        }
    })
}

fn end_process(name: &str, panic: &(dyn Any + Send)) -> ! {
    tracing::error!(name, what = message(panic), "the broker panicked and ends at once: this is a defect");
    std::process::abort();
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};

    use super::*;

    const SIGABRT: i32 = 6;

    /// Runs one of the ignored tests below in a process of its own; the signal that ended it.
    fn signal_of(test: &str) -> Option<i32> {
        let mut child = Command::new(std::env::current_exe().expect("this test is a program"));
        let name = format!("threads::tests::{test}");
        let status = child.args([&name, "--exact", "--ignored"]).stdout(Stdio::null()).stderr(Stdio::null());
        status.status().expect("it runs").signal()
    }

    #[test]
    fn a_panic_ends_the_process() {
        assert_eq!(signal_of("a_thread_panics"), Some(SIGABRT));
        assert_eq!(signal_of("a_task_panics"), Some(SIGABRT));
    }

    #[test]
    #[ignore = "ends the process: run by another test"]
    fn a_thread_panics() {
        let thread = spawn("doomed".to_owned(), || panic!("on purpose")).expect("threads can be had");
        let _ = thread.join();
    }

    #[tokio::test]
    #[ignore = "ends the process: run by another test"]
    async fn a_task_panics() {
        let _ = spawn_task("doomed", async { panic!("on purpose") }).await;
    }

    #[test]
    fn what_ends_in_order_ends_alone() {
        let thread = spawn("orderly".to_owned(), || {}).expect("threads can be had");
        thread.join().expect("it did not panic");
    }
}
