//! Patterns of module names, as far as they are plain: PEFT takes them for regular expressions.

use crate::error::{Error, ErrorKind, Result};
use crate::shown::short;

/// Longest pattern.
const PATTERN_MAX: usize = 1024;

/// A pattern that stands for a name, or for the end of one that begins after a dot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern {
    /// Whether it stands for a whole name only.
    is_whole: bool,
    /// `None` for any character.
    parts: Vec<Option<char>>,
}

impl Pattern {
    /// # Errors
    /// [`ErrorKind::Unsupported`] for anything but characters, dots, and a `^` in front.
    pub(super) fn parse(field: &str, text: &str) -> Result<Self> {
        let refuse = || {
            let message = format!("{field}: the pattern `{}` is not a plain name", short(text));
            Error::new(ErrorKind::Unsupported, message)
                .with_help("patterns may have a `^` in front and escaped dots, no more")
        };
        if text.len() > PATTERN_MAX {
            return Err(refuse());
        }
        let rest = text.strip_prefix('^');
        let mut parts = Vec::new();
        let mut characters = rest.unwrap_or(text).chars();
        while let Some(next) = characters.next() {
            parts.push(match next {
                '\\' => match characters.next() {
                    Some('.') => Some('.'),
                    _ => return Err(refuse()),
                },
                '.' => None,
                '*' | '+' | '?' | '|' | '$' | '^' | '(' | ')' | '[' | ']' | '{' | '}' => {
                    return Err(refuse());
                }
                plain => Some(plain),
            });
        }
        Ok(Self { is_whole: rest.is_some(), parts })
    }

    /// The pattern of this name alone.
    pub(super) fn text_of(name: &str) -> String {
        format!("^{}", name.replace('.', "\\."))
    }

    pub(super) fn matches(&self, name: &str) -> bool {
        if self.is_here(name) {
            return true;
        }
        let ends = name.match_indices('.').filter_map(|(at, _)| name.get(at + 1..));
        !self.is_whole && ends.into_iter().any(|end| self.is_here(end))
    }

    fn is_here(&self, name: &str) -> bool {
        let mut characters = name.chars();
        let fits = |part: &Option<char>| match (part, characters.next()) {
            (Some(wanted), Some(found)) => *wanted == found,
            (None, found) => found.is_some(),
            (Some(_), None) => false,
        };
        self.parts.iter().all(fits) && characters.next().is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, name: &str) -> bool {
        Pattern::parse("rank_pattern", pattern).unwrap().matches(name)
    }

    #[test]
    fn a_pattern_stands_for_a_name_or_its_end_after_a_dot() {
        assert!(matches("fc", "fc") && matches("fc", "stacks.0.fc"));
        assert!(!matches("fc", "stacks.0.afc") && !matches("fc", "stacks.0.fc2"));
        assert!(matches("a.b", "a.b") && matches("a.b", "x.a.b") && matches("a.b", "aXb"));
        assert!(matches("a\\.b", "x.a.b") && !matches("a\\.b", "aXb"));
        assert!(matches("^a\\.b", "a.b") && !matches("^a\\.b", "x.a.b"));
        assert!(!matches("1.fc", "11.fcx"));
    }

    #[test]
    fn the_pattern_of_a_name_stands_for_it_alone() {
        let text = Pattern::text_of("stacks.1.blocks.0.fc");
        assert!(matches(&text, "stacks.1.blocks.0.fc"));
        for other in ["stacks.11.blocks.0.fc", "x.stacks.1.blocks.0.fc", "stacksX1.blocks.0.fc"] {
            assert!(!matches(&text, other), "{other}");
        }
    }

    #[test]
    fn a_pattern_that_is_more_than_a_name_is_refused() {
        for text in [".*fc", "f+", "fc|out", "[fc]", "(a)", "a{2}", "a$", "a^", "\\d", "\\", "a?"] {
            let error = Pattern::parse("alpha_pattern", text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{text}");
            assert!(error.message().contains("alpha_pattern"), "{text}");
        }
        assert!(Pattern::parse("alpha_pattern", &"a".repeat(2000)).is_err());
    }
}
