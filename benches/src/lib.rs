//! What the benches share: pairs of measurements, and the bare limits that Quire's figures stand beside.
//!
//! A figure alone says little on a noisy machine. Every bench here runs Quire and the bare operation under it in turn,
//! A B A B …, and prints the ratio of their medians.
#![forbid(unsafe_code)]

pub mod bare_disk;
pub mod bare_quic;
pub mod pair;
pub mod payload;
