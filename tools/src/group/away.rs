//! Why what can only be done to a group without members can not be done, and when it can: static members that left keep a
//! group for the rest of their session.

use std::time::Duration;

use quire_client::{GroupDescription, GroupMember};

use crate::failure::Failure;
use crate::output::{self, counted};
use crate::time;

use super::explain::member_name;

/// How long a member that left is still waited for.
pub(super) fn left(member: &GroupMember) -> Duration {
    member.session_timeout.saturating_sub(member.silent_for.unwrap_or_default())
}

/// The failure of what was to be done to a group that has members: `then` says what that was, as in "stop its consumers,
/// then reset it".
pub(super) fn has_members(group: &GroupDescription, then: &str) -> Failure {
    let name = output::one_line(&group.summary.name);
    let (away, present): (Vec<_>, Vec<_>) = group.members.iter().partition(|member| member.is_away);
    let mut failure = Failure::failed(format!(
        "group \"{name}\" has {}; its offsets are theirs",
        counted(group.members.len() as u64, "member")
    ));
    if !present.is_empty() {
        failure = failure.hint(format!("stop its consumers first, then {then}"));
    }
    for member in &away {
        failure = failure.hint(format!(
            "static member {} left, and its partitions are kept for it for another {}",
            member_name(member),
            time::show_took(left(member))
        ));
    }
    match away.iter().map(|member| left(member)).max() {
        Some(left) if present.is_empty() => {
            failure.hint(format!("wait {}, then {then}", time::show_took(left)))
        }
        _ => failure,
    }
}

#[cfg(test)]
mod tests {
    use quire_client::{BrokerId, GroupState, GroupSummary};

    use super::*;

    fn member(instance: &str, is_away: bool) -> GroupMember {
        GroupMember {
            id: format!("id-of-{instance}"),
            instance_id: Some(instance.to_owned()),
            rack: None,
            client_name: "quire".into(),
            host: "127.0.0.1".into(),
            epoch: 1,
            topics: vec!["t".into()],
            assigned: Vec::new(),
            target: Vec::new(),
            awaited: Vec::new(),
            revoking: Vec::new(),
            revoking_for: None,
            silent_for: Some(Duration::from_secs(3)),
            is_away,
            session_timeout: Duration::from_secs(45),
            rebalance_timeout: Duration::from_secs(60),
        }
    }

    fn group(members: Vec<GroupMember>) -> GroupDescription {
        GroupDescription {
            summary: GroupSummary {
                name: "billing".into(),
                state: GroupState::Stable,
                generation: 1,
                members: members.len() as u32,
                topics: vec!["t".into()],
            },
            coordinator: BrokerId(1),
            assignor: "sticky".into(),
            protocol: "native".into(),
            members,
            offsets: Vec::new(),
            since: None,
        }
    }

    #[test]
    fn a_member_that_left_is_named_with_the_time_it_is_waited_for() {
        let failure = has_members(&group(vec![member("k", true)]), "reset it");
        assert_eq!(
            failure.to_string(),
            "error: group \"billing\" has 1 member; its offsets are theirs\n  \
             static member k left, and its partitions are kept for it for another 42.0 s\n  \
             wait 42.0 s, then reset it"
        );
    }

    #[test]
    fn one_that_runs_is_to_be_stopped() {
        let failure = has_members(&group(vec![member("k", true), member("l", false)]), "delete it");
        let told = failure.to_string();
        assert!(told.contains("has 2 members") && told.contains("stop its consumers first, then delete it"));
        assert!(told.contains("static member k left") && !told.contains("\n  wait"), "{told}");
    }
}
