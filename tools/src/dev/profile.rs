//! Which profile `quire dev` writes, and whether it becomes the default: never in the place of one that leads to another
//! broker in use.

use std::net::SocketAddr;

use quire_client::{Profile, ProfileError};

use super::{NAME, is_free_udp};
use crate::failure::Failure;

/// Names tried where no name was given and the first are in use.
const NAMES_TRIED: u32 = 100;

/// What the profile of a name leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    /// Nothing that it would be a loss to replace: no profile, or one of a broker here that does not run.
    Free,
    /// Another broker on this machine, which runs.
    Running(String),
    /// A broker that is not on this machine.
    Elsewhere(String),
}

/// The name to write, if the broker is at `ours` and `given` was asked for.
///
/// # Errors
/// If the profile asked for leads to another broker in use.
pub(super) fn name(given: Option<&str>, ours: SocketAddr) -> Result<String, Failure> {
    choose(given, |name| standing(name, ours))
}

/// Whether a profile of this name becomes the default.
///
/// # Errors
/// If what is the default can not be read.
pub(super) fn becomes_default(name: &str, ours: SocketAddr) -> Result<bool, Failure> {
    match Profile::default_name() {
        Ok(default) => Ok(default == name || standing(&default, ours) == Standing::Free),
        Err(ProfileError::NoDefault { .. }) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

fn choose(given: Option<&str>, standing: impl Fn(&str) -> Standing) -> Result<String, Failure> {
    let Some(name) = given else {
        let numbered = (2..NAMES_TRIED).map(|number| format!("{NAME}-{number}"));
        let mut names = std::iter::once(NAME.to_owned()).chain(numbered);
        return names.find(|name| standing(name) == Standing::Free).ok_or_else(|| {
            Failure::failed(format!("every profile from {NAME} to {NAME}-{} is in use", NAMES_TRIED - 1))
                .hint("choose a name with --profile NAME")
        });
    };
    let in_use = match standing(name) {
        Standing::Free => return Ok(name.to_owned()),
        Standing::Running(address) => format!("the broker at {address}, which runs"),
        Standing::Elsewhere(address) => format!("{address}, which is not on this machine"),
    };
    Err(Failure::usage(format!("profile {name} leads to {in_use}"))
        .hint("choose another name with --profile NAME: it would be replaced"))
}

fn standing(name: &str, ours: SocketAddr) -> Standing {
    // A profile that can not be used is no loss.
    let Ok(profile) = Profile::load(Some(name)) else { return Standing::Free };
    let address = profile.address().to_owned();
    let place = address.strip_prefix("quire://").unwrap_or(&address).parse::<SocketAddr>();
    match place {
        Ok(place) if place == ours => Standing::Free,
        Ok(place) if place.ip().is_loopback() => match is_free_udp(place) {
            Ok(()) => Standing::Free,
            Err(_) => Standing::Running(address),
        },
        _ => Standing::Elsewhere(address),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Exit;

    #[test]
    fn a_name_that_is_free_is_taken() {
        assert_eq!(choose(None, |_| Standing::Free), Ok("dev".to_owned()));
        assert_eq!(choose(Some("mine"), |_| Standing::Free), Ok("mine".to_owned()));
    }

    #[test]
    fn a_second_broker_gets_a_profile_of_its_own() {
        let running = |name: &str| match name {
            "dev" | "dev-2" => Standing::Running("quire://127.0.0.1:9440".to_owned()),
            _ => Standing::Free,
        };
        assert_eq!(choose(None, running), Ok("dev-3".to_owned()));
        assert!(choose(None, |_| Standing::Running(String::new())).is_err());
    }

    #[test]
    fn a_profile_asked_for_by_name_is_not_taken_from_a_broker_in_use() {
        let running = choose(Some("mine"), |_| Standing::Running("quire://127.0.0.1:9440".to_owned()));
        assert_eq!(running.expect_err("it runs").exit(), Exit::Usage);
        let elsewhere = choose(Some("production"), |_| Standing::Elsewhere("quire://far:9440".to_owned()));
        assert!(format!("{:?}", elsewhere.expect_err("it is another's")).contains("quire://far:9440"));
    }
}
