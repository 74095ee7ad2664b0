//! What groups may be called: any text that breaks no line and no terminal.

use crate::limits;

/// Why a text is no group's name. The sentences are for users.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum GroupNameError {
    /// There is none.
    #[error("a group's name is empty; it has 1 to {max} bytes", max = limits::GROUP_ID_BYTES_MAX)]
    Empty,
    /// It has so many bytes.
    #[error("a group's name of {0} bytes; at most {max} are allowed", max = limits::GROUP_ID_BYTES_MAX)]
    TooLong(usize),
    /// This is in it.
    #[error("a group's name has {0:?}; all characters are allowed but control characters")]
    ControlCharacter(char),
}

/// Refuses what no group that comes to be is called.
///
/// # Errors
/// If it is empty, longer than [`limits::GROUP_ID_BYTES_MAX`], or has a control character.
pub fn check(name: &str) -> Result<(), GroupNameError> {
    if name.is_empty() {
        return Err(GroupNameError::Empty);
    }
    if name.len() > limits::GROUP_ID_BYTES_MAX {
        return Err(GroupNameError::TooLong(name.len()));
    }
    control_character(name).map_or(Ok(()), |control| Err(GroupNameError::ControlCharacter(control)))
}

/// The first control character of a text, if it has one: line breaks and whatever else a terminal would obey.
pub fn control_character(text: &str) -> Option<char> {
    text.chars().find(|c| c.is_control())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_text_that_breaks_no_line_is_a_groups_name() {
        for name in
            ["billing", "a b", "caf\u{e9}", "it's \"quoted\"", &"g".repeat(limits::GROUP_ID_BYTES_MAX)]
        {
            assert_eq!(check(name), Ok(()), "{name}");
        }
        assert_eq!(check(""), Err(GroupNameError::Empty));
        let long = limits::GROUP_ID_BYTES_MAX + 1;
        assert_eq!(check(&"g".repeat(long)), Err(GroupNameError::TooLong(long)));
        for control in ['\n', '\t', '\0', '\u{1b}', '\u{7f}', '\u{85}'] {
            let error = check(&format!("bill{control}ing")).expect_err("it breaks lines or terminals");
            assert_eq!(error, GroupNameError::ControlCharacter(control));
        }
        assert_eq!(
            GroupNameError::ControlCharacter('\n').to_string(),
            "a group's name has '\\n'; all characters are allowed but control characters"
        );
    }
}
