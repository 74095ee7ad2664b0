//! Replication of one partition: who has what, and what is therefore committed.
//!
//! `message` lists what can happen to a leader, `action` what it can want done; `progress` computes the high watermark
//! from the ends of the in-sync replicas; `leader` is the machine.

pub mod action;
pub mod leader;
pub mod message;
pub mod progress;

pub use action::{Action, ResignReason};
pub use leader::{Leader, LeaderStart};
pub use message::Input;
pub use progress::Progress;
