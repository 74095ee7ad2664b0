//! What libraries report on standard error: warnings, more with `-v`; a broker says what it does from the start.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::args::{Cli, Command};
use crate::output;

/// Starts logging to standard error as the command line and `RUST_LOG` say.
pub fn start(cli: &Cli) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default_level(cli)));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && output::Palette::stderr() != output::Palette::PLAIN);
    // Starting fails only if the process has a subscriber already, which then is the one to keep.
    let _ = match &cli.command {
        Command::Broker(args) if args.log_json => builder.json().try_init(),
        _ => builder.with_target(cli.common.verbose > 0).try_init(),
    };
}

fn default_level(cli: &Cli) -> &'static str {
    let is_broker = matches!(cli.command, Command::Broker(_));
    match cli.common.verbose {
        0 if is_broker => "info,openraft=off",
        0 => "warn",
        1 if is_broker => "debug,quinn=info,rustls=info,openraft=warn",
        1 => "info",
        2 => "debug,quinn=info,rustls=info,openraft=info",
        _ => "trace",
    }
}
