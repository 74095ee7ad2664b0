//! Old bugs, to be put back one at a time: a simulator that finds none of them proves nothing.
//!
//! Each is one rule of the machines left out. Without the feature `mutants`, which only tests switch on, [`is_on`] is
//! always false and costs nothing.

/// A rule that can be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mutant {
    /// A follower is admitted whatever registration it follows under.
    BrokerEpochOnFollow,
    /// A follower is admitted whatever leadership it believes in.
    LeaderEpochOnFollow,
    /// A leader forgets what followers told it in an earlier leadership.
    ProgressReset,
    /// Only who followed in this leadership joins the in-sync replicas, or counts as one.
    FollowedInEpoch,
    /// Only who has everything committed joins the in-sync replicas.
    CaughtUpToHighWatermark,
    /// Only who has everything that was there when the leadership began joins the in-sync replicas.
    CaughtUpToEpochStart,
    /// A change of the in-sync replicas names the registrations it is about.
    BrokerEpochInProposal,
    /// A change of the in-sync replicas applies to the partition epoch it was made for.
    PartitionEpochCompared,
    /// Nothing is committed while too few replicas are in sync.
    MinIsrGate,
    /// What is committed is safe on the proposed in-sync replicas too.
    MaximalIsr,
    /// A follower truncates before it publishes a high watermark.
    TruncateBeforeHighWatermark,
    /// Only what is synced is acknowledged.
    SyncBeforeAcknowledging,
    /// A batch that was appended before is answered and not appended again.
    DedupeWindow,
    /// A suspect replica stays out of leadership and in-sync replicas until it caught up.
    SuspectRule,
    /// A controller decides on what is pending too, not on what is applied alone.
    DecideOnPending,
    /// A controller decides only once the first entry of its own term is applied.
    DecideAfterOwnTerm,
    /// A member commits in its current epoch only.
    MemberEpochOnCommit,
    /// A partition gets a new owner once the old one has given it up.
    RevokeBeforeAssign,
    /// A group coordinator answers once what it decided on is committed.
    AnswerWhenCommitted,
    /// A group coordinator answers once it knows that it still led when it was asked.
    ConfirmBeforeAnswer,
    /// A group coordinator that loads begins with nothing.
    GroupsFromTheLog,
    /// Commits move offsets forwards only.
    CommitForwards,
}

impl Mutant {
    /// The rules of groups.
    pub const OF_GROUPS: &'static [Mutant] = &[
        Mutant::MemberEpochOnCommit,
        Mutant::RevokeBeforeAssign,
        Mutant::AnswerWhenCommitted,
        Mutant::ConfirmBeforeAnswer,
        Mutant::GroupsFromTheLog,
        Mutant::CommitForwards,
    ];

    /// The rules of replication and of the controller.
    pub const ALL: &'static [Mutant] = &[
        Mutant::BrokerEpochOnFollow,
        Mutant::LeaderEpochOnFollow,
        Mutant::ProgressReset,
        Mutant::FollowedInEpoch,
        Mutant::CaughtUpToHighWatermark,
        Mutant::CaughtUpToEpochStart,
        Mutant::BrokerEpochInProposal,
        Mutant::PartitionEpochCompared,
        Mutant::MinIsrGate,
        Mutant::MaximalIsr,
        Mutant::TruncateBeforeHighWatermark,
        Mutant::SyncBeforeAcknowledging,
        Mutant::DedupeWindow,
        Mutant::SuspectRule,
        Mutant::DecideOnPending,
        Mutant::DecideAfterOwnTerm,
    ];
}

#[cfg(feature = "mutants")]
mod switch {
    use std::cell::Cell;

    use super::Mutant;

    std::thread_local! {
        static ON: Cell<Option<Mutant>> = const { Cell::new(None) };
    }

    /// Leaves out this rule, or none, in every machine that this thread drives.
    pub fn set(mutant: Option<Mutant>) {
        ON.set(mutant);
    }

    /// Whether this rule is left out.
    pub fn is_on(mutant: Mutant) -> bool {
        ON.get() == Some(mutant)
    }
}

#[cfg(feature = "mutants")]
pub use switch::{is_on, set};

/// Whether this rule is left out.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
pub const fn is_on(_: Mutant) -> bool {
    false
}
