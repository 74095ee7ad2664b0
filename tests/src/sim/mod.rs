//! A cluster that runs in one thread and virtual time, from one seed.
//!
//! Here the decisions of the product, all of them, meet hostile networks, disks, processes and operators. Real are the shards
//! with their logs and everything that replication says and understands, the controllers with what they decide on and whom
//! they watch, and the producers' pipelines; modelled are the network, the metadata's consensus, the disk, and the tasks that
//! carry words from one to the other. [`world`] takes what happens next and carries out what follows; `broker` is what
//! surrounds a shard, `quorum` the log that controllers decide on, `network` what is lost on the way, `invariants` what must
//! hold all the same. [`mutants`] leaves out one rule at a time, to see it missed. `tests/sim.rs` runs it, and `bin/sweep.rs`
//! runs it for as long as one likes.

mod broker;
mod desk;
mod dice;
mod invariants;
mod ledger;
mod member;
pub mod mutants;
mod network;
mod quorum;
mod schedule;
mod trace;
pub mod world;
