//! Replication of one partition: who has what, and what is therefore committed.
//!
//! ```text
//!   leader                                                  follower
//!   Follow ◄──────── leader epoch, last epoch, end ──────── start, link up
//!   Diverging ─────── epoch, end ─────────────────────────► truncate, follow again
//!   Accepted ──────── from, high watermark, log start ────► append what comes
//!   Progress ◄─────── log end, durable end ──────────────── after each flush
//! ```
//! `message` lists what can happen to either machine, `action` what it can want done; `membership` is what the metadata
//! says of a partition, `epochs` the comparison of two histories, `progress` the rule by which offsets are committed,
//! `in_sync` who is in sync; `leader` and `follower` are the machines.

pub mod action;
pub mod epochs;
pub mod follower;
mod in_sync;
pub mod leader;
pub mod membership;
pub mod message;
pub mod progress;

pub use action::{FollowAnswer, FollowRefusal, FollowerAction, LeaderAction, Proposal, ResignReason};
pub use epochs::EpochEnd;
pub use follower::{Follower, FollowerStart};
pub use leader::{Leader, LeaderStart};
pub use membership::{Membership, Replica};
pub use message::{Follow, FollowerInput, LeaderInput, ProposalOutcome};
pub use progress::Progress;
