//! A cluster that runs in one thread and virtual time, from one seed.

pub mod dice;
pub mod network;
pub mod quorum;
pub mod schedule;
pub mod trace;
