//! The `quire` binary.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = quire::args::parse();
    quire::run(cli).into()
}
