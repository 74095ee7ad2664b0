//! Why a group coordinator refuses, in a sentence for users and a code for programs.

use std::sync::Arc;

use quire_protocol::ErrorCode;
use quire_protocol::group_name::GroupNameError;

use super::records::{DecodeError, Generation};
use super::request::CommitOutcome;

/// Why a request is refused. But for [`GroupRefusal::Unknown`], nothing changed. The sentences are for users.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GroupRefusal {
    /// This node does not coordinate the group.
    #[error("this broker does not coordinate the group")]
    NotCoordinator,
    /// It does, and has not read the group's log yet.
    #[error("this broker has just become the group's coordinator, and reads its log")]
    Loading,
    /// More is waiting for the log than it takes.
    #[error("the group's coordinator waits for its log; more is not taken meanwhile")]
    Busy,
    /// The log takes nothing.
    #[error("the group's log takes nothing at the moment ({code}), and nothing was changed")]
    NotAppended {
        /// Why.
        code: ErrorCode,
    },
    /// It was decided, and may have been made or not.
    #[error("it is not known whether the change was made")]
    Unknown,
    /// The log can not be read.
    #[error("the group's log can not be read: {0}")]
    Unreadable(#[from] DecodeError),
    /// No such group.
    #[error("no group \"{group}\"")]
    UnknownGroup {
        /// Its id.
        group: Arc<str>,
    },
    /// No such member.
    #[error("group \"{group}\" has no member \"{member}\"")]
    UnknownMember {
        /// The group.
        group: Arc<str>,
        /// The member's id.
        member: Arc<str>,
    },
    /// Somebody speaks for a member who is not the one that it joined as.
    #[error("member \"{member}\" of group \"{group}\" is another principal's")]
    NotItsPrincipal {
        /// The group.
        group: Arc<str>,
        /// The member's id.
        member: Arc<str>,
    },
    /// A heartbeat of another epoch: whoever sends it has lost what it had, and joins anew.
    #[error("member \"{member}\" is in epoch {have}, not in {given}")]
    FencedMemberEpoch {
        /// The member's id.
        member: Arc<str>,
        /// Its epoch.
        have: Generation,
        /// The epoch given.
        given: Generation,
    },
    /// A commit or a fetch of another epoch.
    #[error("member \"{member}\" is in epoch {have}, and asks in {given}")]
    StaleMemberEpoch {
        /// The member's id.
        member: Arc<str>,
        /// Its epoch.
        have: Generation,
        /// The epoch given.
        given: Generation,
    },
    /// Something that is only done without members.
    #[error("group \"{group}\" has {members} member{}", if *members == 1 { "" } else { "s" })]
    GroupNotEmpty {
        /// The group.
        group: Arc<str>,
        /// How many.
        members: usize,
    },
    /// Another member has the instance id.
    #[error("instance \"{instance}\" is member \"{member}\" of the group")]
    InstanceInUse {
        /// The instance id.
        instance: Arc<str>,
        /// The member that has it.
        member: Arc<str>,
    },
    /// A request that makes no sense.
    #[error("{0}")]
    Invalid(&'static str),
    /// A name that no group can have.
    #[error(transparent)]
    InvalidName(#[from] GroupNameError),
    /// A text that breaks lines where it is shown.
    #[error("the {what} has {control:?}; all characters are allowed but control characters")]
    ControlCharacter {
        /// Of what.
        what: &'static str,
        /// What is in it.
        control: char,
    },
    /// A text that is longer than is kept.
    #[error("the {what} has {given} bytes, at most {max} are allowed")]
    TooLong {
        /// Of what.
        what: &'static str,
        /// Its length.
        given: usize,
        /// The limit.
        max: usize,
    },
    /// More than is kept.
    #[error("{given} {what}, at most {max} are allowed")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there would be.
        given: usize,
        /// The limit.
        max: usize,
    },
}

impl GroupRefusal {
    /// The code that users see, and that tells programs what to do.
    pub fn code(&self) -> ErrorCode {
        match self {
            GroupRefusal::NotCoordinator => ErrorCode::NotCoordinator,
            GroupRefusal::Loading | GroupRefusal::Busy => ErrorCode::CoordinatorLoading,
            GroupRefusal::NotAppended { code } => *code,
            GroupRefusal::Unknown => ErrorCode::TimedOut,
            GroupRefusal::Unreadable(_) => ErrorCode::CorruptLog,
            GroupRefusal::UnknownGroup { .. } => ErrorCode::UnknownGroup,
            GroupRefusal::UnknownMember { .. } => ErrorCode::UnknownMember,
            GroupRefusal::NotItsPrincipal { .. } => ErrorCode::NotAuthorized,
            GroupRefusal::FencedMemberEpoch { .. } => ErrorCode::FencedMemberEpoch,
            GroupRefusal::StaleMemberEpoch { .. } => ErrorCode::StaleMemberEpoch,
            GroupRefusal::GroupNotEmpty { .. } => ErrorCode::GroupNotEmpty,
            GroupRefusal::InstanceInUse { .. } => ErrorCode::InstanceInUse,
            GroupRefusal::Invalid(_)
            | GroupRefusal::InvalidName(_)
            | GroupRefusal::ControlCharacter { .. }
            | GroupRefusal::TooLong { .. } => ErrorCode::InvalidRequest,
            GroupRefusal::TooMany { .. } => ErrorCode::LimitExceeded,
        }
    }
}

impl CommitOutcome {
    /// The code of an offset that was not taken; `None` for one that was.
    pub fn code(self) -> Option<ErrorCode> {
        match self {
            CommitOutcome::Taken => None,
            CommitOutcome::Behind { .. } => Some(ErrorCode::OffsetGoesBack),
            CommitOutcome::NotOwned => Some(ErrorCode::StaleMemberEpoch),
            CommitOutcome::UnknownPartition => Some(ErrorCode::UnknownPartition),
            CommitOutcome::BeyondAll | CommitOutcome::MetadataTooLong => Some(ErrorCode::InvalidRequest),
            CommitOutcome::TooMany => Some(ErrorCode::LimitExceeded),
        }
    }
}
