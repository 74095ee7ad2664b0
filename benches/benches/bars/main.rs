//! Every bar that Quire is held to, each beside the bare operation that bounds it. README.md of this crate explains.

mod append;
mod client_cpu;
mod consume;
mod end_to_end;
mod lone;
mod many_partitions;
mod produce;
mod transport;

use anyhow::Result;
use quire_benches::{child, runner};

/// As the `quire` binary has it; for the bare operations too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<()> {
    if child::serve_if_child()? {
        return Ok(());
    }
    let measurements: Vec<_> = [
        append::measurements(),
        transport::measurements(),
        produce::measurements(),
        consume::measurements(),
        lone::measurements(),
        many_partitions::measurements(),
        end_to_end::measurements(),
        client_cpu::measurements(),
    ]
    .into_iter()
    .flatten()
    .collect();
    runner::run(&measurements)
}
