//! The `quire` binary as users run it, against real brokers on ports that the system picks, each with a home of its own.
#![cfg(unix)]

mod bench;
mod bench_compare;
mod broker;
mod cluster;
mod demo;
mod drill;
mod errors;
mod groups;
mod help;
mod logs;
mod operations;
mod records;
mod replay;
mod replay_terminal;
mod signals;
mod support;
mod topics;
mod waiting;
mod year;
