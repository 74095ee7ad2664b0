//! A cluster that runs in one thread and virtual time, from one seed.
//!
//! Here the replication machines of the engine, every one of them, meet hostile networks, disks, processes and
//! controllers. [`world`] takes what happens next and carries out what follows; `broker` is what surrounds a broker's
//! machines, `control` what the controllers decide, `quorum` the log they decide on, `network` and `model_log` what is lost
//! on the way and on the disk, `invariants` what must hold all the same. [`mutants`]
//! leaves out one rule of the machines at a time, to see it missed. `tests/sim.rs` runs it, and `bin/sweep.rs` runs it
//! for as long as one likes.

mod broker;
mod control;
mod dice;
mod invariants;
mod model_log;
pub mod mutants;
mod network;
mod quorum;
mod schedule;
mod trace;
pub mod world;
