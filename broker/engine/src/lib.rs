//! Decides; does nothing itself.
//!
//! Pure, synchronous state machines: no clock, no thread, no file, no socket, no randomness of the operating system,
//! no map with a random order. What a machine needs of these is handed to it, so that a seed replays a run exactly.
//! [`machine`] names the two shapes, [`replication`] is one partition's leader and its followers, [`producer`] what a partition
//! knows of who writes to it, [`controller`] the cluster's metadata,
//! [`group`] who consumes what and up to where.
#![forbid(unsafe_code)]

pub mod controller;
pub mod group;
pub mod machine;
pub mod mutant;
pub mod producer;
pub mod replication;
pub mod rng;
pub mod time;

pub use rng::{Random, SplitMix64};
pub use time::Time;
