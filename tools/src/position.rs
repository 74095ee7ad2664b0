//! Positions, the same everywhere a command takes one: the client's, with an answer for slips of the finger.

use std::str::FromStr;

use quire_client::Position;

use crate::time;

/// A position from the command line. Ages count back from when the command line was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PositionArg(pub Position);

/// A text that is no position.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PositionError {
    /// Close to a known word.
    #[error("not a position; did you mean \"{0}\"?")]
    DidYouMean(&'static str),
    /// It begins like a date but is none.
    #[error("not a time; write 2013-06-13, 2013-06-13T08:00Z or 2013-06-13T08:00:00+02:00")]
    BadTime,
    /// Nothing that is known.
    #[error(
        "use beginning, end, an offset (18422), -100 (the last hundred records of each partition), \
         a time (2013-06-13T08:00Z; UTC unless it says otherwise), a date (2013-06-13) or an age (2h, 2h ago)"
    )]
    Unknown,
}

impl FromStr for PositionArg {
    type Err = PositionError;

    fn from_str(text: &str) -> Result<PositionArg, PositionError> {
        if let Ok(position) = Position::parse(text, time::now()) {
            return Ok(PositionArg(position));
        }
        if begins_like_a_date(text) {
            return Err(PositionError::BadTime);
        }
        Err(nearest_word(text).map_or(PositionError::Unknown, PositionError::DidYouMean))
    }
}

fn begins_like_a_date(text: &str) -> bool {
    text.len() > 4
        && text.bytes().take(4).all(|byte| byte.is_ascii_digit())
        && text.as_bytes().get(4) == Some(&b'-')
}

/// Words that other tools use, and slips of the finger.
fn nearest_word(text: &str) -> Option<&'static str> {
    match text {
        "start" | "earliest" | "oldest" | "first" => return Some("beginning"),
        "latest" | "newest" | "last" | "now" => return Some("end"),
        _ => {}
    }
    if text.len() > 32 {
        return None;
    }
    ["beginning", "end"].into_iter().find(|word| strsim::damerau_levenshtein(word, text) <= word.len() / 3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use quire_protocol::{Offset, Timestamp};

    fn parsed(text: &str) -> Result<Position, PositionError> {
        text.parse().map(|position: PositionArg| position.0)
    }

    #[test]
    fn every_form_is_understood() {
        assert_eq!(parsed("beginning"), Ok(Position::Beginning));
        assert_eq!(parsed("end"), Ok(Position::End));
        assert_eq!(parsed("18422"), Ok(Position::Offset(Offset(18422))));
        assert_eq!(parsed("-100"), Ok(Position::BeforeEnd(100)));
        let midnight = Ok(Position::Timestamp(Timestamp(1_371_081_600_000)));
        assert_eq!(parsed("2013-06-13"), midnight);
        assert_eq!(parsed("2013-06-13T00:00Z"), midnight);
        assert_eq!(parsed("2013-06-13T02:00:00+02:00"), midnight);
    }

    #[test]
    fn an_age_counts_back_from_now() {
        let before = time::now().0 - 7_200_000;
        let Ok(Position::Timestamp(moment)) = parsed("2h") else { panic!("2h is an age") };
        assert!((before..=time::now().0 - 7_200_000).contains(&moment.0));
    }

    #[test]
    fn a_slip_gets_the_nearest_word_and_nonsense_gets_the_forms() {
        assert_eq!(parsed("begining"), Err(PositionError::DidYouMean("beginning")));
        assert_eq!(parsed("earliest"), Err(PositionError::DidYouMean("beginning")));
        assert_eq!(parsed("latest"), Err(PositionError::DidYouMean("end")));
        assert_eq!(parsed("2013-13-13"), Err(PositionError::BadTime));
        for text in ["tuesday", "-x", "", "99999999999999999999"] {
            assert_eq!(parsed(text), Err(PositionError::Unknown), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC{0,40}") {
            let _ = parsed(&text);
        }
    }
}
