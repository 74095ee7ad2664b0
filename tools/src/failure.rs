//! How a command ends when it does not succeed: an exit code, what was wrong and where, and what to do next.
//!
//! ```text
//! error: no topic "fligths" (UNKNOWN_TOPIC, not retriable)
//!   did you mean "flights"?   or: quire topic create fligths
//! ```

use std::fmt;
use std::io;
use std::process::ExitCode;

/// What the process tells its caller. The numbers are stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Everything asked for was done.
    Done = 0,
    /// Something failed, or a check gave an unclean verdict.
    Failed = 1,
    /// The command line or a configuration makes no sense.
    Usage = 2,
    /// No broker could be reached.
    Unreachable = 3,
    /// A broker refused who was asking.
    Refused = 4,
    /// Ctrl-C.
    Interrupted = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// Why a command ended early.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// Something to tell the user, and the exit code.
    Told {
        /// The process's exit code.
        exit: Exit,
        /// One sentence: what was wrong, and where.
        what: String,
        /// What to do next, one line each.
        hints: Vec<String>,
    },
    /// Whoever read standard output has gone (`| head`): nothing is wrong and nobody is listening.
    OutputClosed,
}

impl Failure {
    /// A failure of the work itself (exit code 1).
    pub fn failed(what: impl Into<String>) -> Failure {
        Failure::Told { exit: Exit::Failed, what: what.into(), hints: Vec::new() }
    }

    /// A command line or configuration that makes no sense (exit code 2).
    pub fn usage(what: impl Into<String>) -> Failure {
        Failure::Told { exit: Exit::Usage, what: what.into(), hints: Vec::new() }
    }

    /// The same with one more line of what to do next.
    pub fn hint(mut self, hint: impl Into<String>) -> Failure {
        if let Failure::Told { hints, .. } = &mut self {
            hints.push(hint.into());
        }
        self
    }

    /// The same with `context` before what was wrong.
    pub fn context(mut self, context: &str) -> Failure {
        if let Failure::Told { what, .. } = &mut self {
            *what = format!("{context}: {what}");
        }
        self
    }

    /// A failed read or write of `path`.
    pub fn file(path: &std::path::Path, error: &io::Error) -> Failure {
        let failure = Failure::failed(format!("{}: {}", path.display(), describe_io(error)));
        match error.kind() {
            io::ErrorKind::NotFound => failure.hint("check the path"),
            io::ErrorKind::PermissionDenied => failure.hint("run as a user who may read it"),
            _ => failure,
        }
    }

    /// The process's exit code.
    pub fn exit(&self) -> Exit {
        match self {
            Failure::Told { exit, .. } => *exit,
            Failure::OutputClosed => Exit::Done,
        }
    }
}

/// An I/O error in words, without Rust's "(os error 2)".
pub fn describe_io(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(at) => text[..at].to_lowercase(),
        None => text,
    }
}

/// A failed write to standard output; every writer of data goes through this.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Failure::OutputClosed,
            _ => Failure::failed(format!("standard output: {}", describe_io(&error))),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Failure::Told { what, hints, .. } = self else { return Ok(()) };
        write!(f, "error: {what}")?;
        hints.iter().try_for_each(|hint| write!(f, "\n  {hint}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_output_is_silent_and_no_failure() {
        let failure = Failure::from(io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!(failure, Failure::OutputClosed);
        assert_eq!(failure.exit(), Exit::Done);
        assert_eq!(failure.to_string(), "");
    }

    #[test]
    fn what_was_wrong_comes_first_then_what_to_do() {
        let failure = Failure::usage("too odd").hint("be even").hint("or leave it").context("--number");
        assert_eq!(failure.to_string(), "error: --number: too odd\n  be even\n  or leave it");
        assert_eq!(failure.exit(), Exit::Usage);
    }

    #[test]
    fn a_missing_file_is_named_without_the_systems_numbers() {
        let error = io::Error::from_raw_os_error(2);
        let failure = Failure::file(std::path::Path::new("/nowhere"), &error);
        assert_eq!(failure.to_string(), "error: /nowhere: no such file or directory\n  check the path");
    }
}
