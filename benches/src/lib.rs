//! What the benches share: paired measurements, the bare limits that Quire's figures stand beside, and the processes
//! they run in.
//!
//! A figure alone says little on a noisy machine. Every bar is measured in turn with the bare operation under it,
//! A B A B …, and judged by the median over the pairs. README.md beside this crate says how to run them and what each
//! compares.
#![forbid(unsafe_code)]

pub mod bare_disk;
pub mod bare_quic;
pub mod broker;
pub mod child;
pub mod cpu;
pub mod latency;
pub mod page_cache;
pub mod payload;
pub mod row;
pub mod runner;
pub mod series;
pub mod unit;
