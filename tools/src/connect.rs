//! The way to a broker, and what its refusals mean for the user and the exit code: the one place that decides.

use quire_client::{Client, ConsumeError, Error, Profile, ProfileError, SendError};
use quire_protocol::ErrorCode;

use crate::failure::{Exit, Failure};

/// Connects with the profile named, or the default one, does the work, and takes leave of the broker however the work
/// went: a broker that was not told waits for the client when it stops.
///
/// # Errors
/// If there is no such profile, or its broker can not be reached or refuses; and those of the work.
pub async fn with_client<T>(
    profile: Option<&str>,
    work: impl AsyncFnOnce(&Client) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let profile = Profile::load(profile)?;
    let connected = Client::connect_with(profile.clone()).await;
    let client = connected.map_err(|error| about_profile(&profile, error))?;
    let outcome = work(&client).await;
    client.close().await;
    outcome
}

/// An error at connecting with this profile: where nobody answers, how there could be one who does.
pub fn about_profile(profile: &Profile, error: Error) -> Failure {
    if !matches!(error, Error::Unreachable { .. }) {
        return error.into();
    }
    let address = profile.address();
    if address.contains(',') {
        let hints = vec![format!("the profile names {address}: check that one of them runs")];
        return Failure::Told { exit: exit(&error), what: error.to_string(), hints };
    }
    Failure::from(error).hint(
        "'quire dev' starts one on this machine; if it is one of a cluster, 'quire cluster profile --data DIR' names the \
         others too",
    )
}

impl From<ProfileError> for Failure {
    fn from(error: ProfileError) -> Failure {
        Failure::from(Error::from(error))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Told { exit: exit(&error), what: error.to_string(), hints: vec![hint(&error.advice())] }
    }
}

impl From<SendError> for Failure {
    fn from(error: SendError) -> Failure {
        let what = with_code(error.to_string(), error.code());
        let hints = vec![hint(&error.advice())];
        Failure::Told { exit: exit(&error.into()), what, hints }
    }
}

impl From<ConsumeError> for Failure {
    fn from(error: ConsumeError) -> Failure {
        let what = with_code(error.to_string(), error.code());
        let hints = vec![hint(&error.advice())];
        Failure::Told { exit: exit(&error.into()), what, hints }
    }
}

/// What the client found out by itself is called by the same names as what a broker answers.
fn with_code(what: String, code: Option<ErrorCode>) -> String {
    match code.filter(|code| !what.contains(code.name())) {
        Some(code) if code.is_retriable() => format!("{what} ({code}, retriable)"),
        Some(code) => format!("{what} ({code}, not retriable)"),
        None => what,
    }
}

fn exit(error: &Error) -> Exit {
    match error {
        Error::CertificateRefused { .. } | Error::CertificateName { .. } => Exit::Refused,
        Error::Address { .. } | Error::Profile(_) => Exit::Usage,
        error if error.code() == Some(ErrorCode::NotAuthorized) => Exit::Refused,
        error if error.is_unreachable() => Exit::Unreachable,
        _ => Exit::Failed,
    }
}

/// A sentence of advice in the form of a hint: no capital, no full stop.
pub fn hint(advice: &str) -> String {
    let advice = advice.strip_suffix('.').unwrap_or(advice);
    let mut chars = advice.chars();
    match chars.next() {
        Some(first) => first.to_lowercase().chain(chars).collect(),
        None => String::new(),
    }
}

const SEE_TOPICS: &str = "see what there is: quire topic list";

/// An error about a topic that the user named: where there is none, the nearest name and how to create it.
pub fn about_topic(topic: &str, error: Error) -> Failure {
    let create = format!("quire topic create {topic}");
    unless_unknown(topic, error, |nearest| match nearest {
        Some(nearest) => format!("did you mean \"{nearest}\"?   or: {create}"),
        None => format!("create it: {create}   or {SEE_TOPICS}"),
    })
}

/// The same where creating it is nothing that the user can have wanted.
pub fn about_unwanted_topic(topic: &str, error: Error) -> Failure {
    unless_unknown(topic, error, |nearest| match nearest {
        Some(nearest) => format!("did you mean \"{nearest}\"?   or {SEE_TOPICS}"),
        None => SEE_TOPICS.to_owned(),
    })
}

fn unless_unknown(topic: &str, error: Error, next: impl FnOnce(Option<&str>) -> String) -> Failure {
    let Error::Broker { code: ErrorCode::UnknownTopic, suggestion, .. } = &error else { return error.into() };
    let next = next(suggestion.as_deref());
    // The broker's sentence may carry the suggestion too, which is said once.
    Failure::failed(with_code(format!("no topic \"{topic}\""), error.code())).hint(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: ErrorCode, suggestion: Option<&str>) -> Error {
        let message = "no topic \"fligths\"; did you mean \"flights\"?".to_owned();
        Error::Broker { code, message, suggestion: suggestion.map(Into::into) }
    }

    #[test]
    fn an_unknown_topic_gets_its_nearest_and_the_way_to_create_it() {
        let failure = about_topic("fligths", refused(ErrorCode::UnknownTopic, Some("flights")));
        assert_eq!(
            failure.to_string(),
            "error: no topic \"fligths\" (UNKNOWN_TOPIC, not retriable)\n  \
             did you mean \"flights\"?   or: quire topic create fligths"
        );
        let failure = about_topic("fligths", refused(ErrorCode::UnknownTopic, None));
        assert!(
            failure
                .to_string()
                .ends_with("create it: quire topic create fligths   or see what there is: quire topic list")
        );
    }

    #[test]
    fn nobody_who_deletes_a_topic_is_told_to_create_it() {
        for (suggestion, hint) in [
            (None, "see what there is: quire topic list"),
            (Some("flights"), "did you mean \"flights\"?   or see what there is: quire topic list"),
        ] {
            let failure = about_unwanted_topic("fligths", refused(ErrorCode::UnknownTopic, suggestion));
            assert_eq!(
                failure.to_string(),
                format!("error: no topic \"fligths\" (UNKNOWN_TOPIC, not retriable)\n  {hint}")
            );
        }
    }

    #[test]
    fn exit_codes_tell_unreachable_from_refused_from_failed() {
        let address = String::from("127.0.0.1:9440");
        let why = String::from("it is so");
        let unreachable = Error::Unreachable { address: address.clone(), why: why.clone() };
        assert_eq!(Failure::from(unreachable).exit(), Exit::Unreachable);
        assert_eq!(Failure::from(Error::CertificateRefused { address, why }).exit(), Exit::Refused);
        assert_eq!(Failure::from(refused(ErrorCode::NotAuthorized, None)).exit(), Exit::Refused);
        assert_eq!(Failure::from(refused(ErrorCode::DiskFull, None)).exit(), Exit::Failed);
        assert_eq!(Failure::from(ProfileError::NoConfigFolder).exit(), Exit::Usage);
    }

    #[test]
    fn nobody_who_has_a_cluster_is_told_to_start_a_broker_of_his_own() {
        let unreachable = || Error::Unreachable { address: "a:1".into(), why: "gone".into() };
        let one = about_profile(&Profile::new("quire://a:1"), unreachable()).to_string();
        assert!(
            one.contains("'quire dev' starts one") && one.contains("quire cluster profile --data"),
            "{one}"
        );
        let all = about_profile(&Profile::new("quire://a:1,b:1"), unreachable()).to_string();
        assert!(all.contains("names quire://a:1,b:1: check") && !all.contains("quire dev"), "{all}");
    }

    #[test]
    fn what_the_client_refuses_has_the_protocols_name_too() {
        let failure = Failure::from(SendError::RecordTooLarge { bytes: 9, limit: 8 });
        assert!(failure.to_string().contains("(RECORD_TOO_LARGE, not retriable)\n  send smaller records"));
        let broker = SendError::Broker(refused(ErrorCode::DiskFull, None));
        assert_eq!(Failure::from(broker).to_string().matches("DISK_FULL").count(), 1);
    }

    #[test]
    fn advice_becomes_a_hint() {
        assert_eq!(hint("Check the name, or create the topic."), "check the name, or create the topic");
        assert_eq!(hint(""), "");
    }
}
