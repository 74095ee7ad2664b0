//! Help and completions.

use crate::support::{Home, text};

const HELP: &str = "\
Quire: an event log whose acknowledgements are on disk.

Usage: quire <COMMAND>

Start here
  demo         produce, consume and replay 11,045 real departures on a throwaway broker
  dev          run a broker on this machine, everything made for you

Events
  produce      write records from standard input or a file
  consume      read from any offset or time
  topic        create, list, describe, alter, delete

Operations
  broker       run a broker from a config file
  completions  print completions for a shell

Proof
  log          inspect or verify a data directory, offline

Everywhere: --profile NAME, -v, --help; --json where the answer is data
Exit codes: 0 done, 1 failed, 2 usage, 3 unreachable, 4 refused, 130 interrupted

New here?  quire demo
";

#[test]
fn the_help_is_one_page_in_groups() {
    for flag in ["--help", "-h"] {
        assert_eq!(Home::new().stdout(&[flag]), HELP);
    }
}

#[test]
fn every_command_has_help_and_says_what_it_takes() {
    for command in ["demo", "dev", "produce", "consume", "topic", "broker", "log", "completions"] {
        let help = Home::new().stdout(&[command, "--help"]);
        assert!(help.contains("Usage: quire") && help.contains("--profile"), "{command}: {help}");
    }
    let topics = Home::new().stdout(&["topic", "create", "--help"]);
    assert!(topics.contains("retention.ms=3600000"), "{topics}");
}

#[test]
fn without_a_command_the_help_is_a_usage_error() {
    let ran = Home::new().quire(&[]).assert().failure().code(2);
    let err = text(&ran.get_output().stderr);
    assert!(err.contains("quire demo"), "{err}");
}

#[test]
fn completions_name_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let script = Home::new().stdout(&["completions", shell]);
        for command in ["demo", "produce", "consume", "topic", "verify"] {
            assert!(script.contains(command), "{shell}: {command}");
        }
    }
}

#[test]
fn the_version_is_the_packages() {
    assert_eq!(Home::new().stdout(&["--version"]), format!("quire {}\n", env!("CARGO_PKG_VERSION")));
}
