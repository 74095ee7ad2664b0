//! The `quire` binary.
#![forbid(unsafe_code)]

use std::process::ExitCode;

/// Batches and datagrams come and go by the hundred kilobytes: the system's allocator gives such memory back to the
/// kernel and faults it in again, for a sixth of the time of a stream.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = quire::args::parse();
    quire::run(cli).into()
}
