//! Patterns of names: of tensors, and of checkpoints.

use globset::{GlobBuilder, GlobSet};

use crate::error::{Error, ErrorKind, Result};

/// Longest pattern in bytes. What it becomes can be nested as deeply as it is long.
const PATTERN_BYTES_MAX: usize = 1024;

/// Patterns, any of which may match; none match nothing. Dots are characters like any other.
#[derive(Debug, Clone, Default)]
pub(crate) struct Globs(Vec<Pattern>);

#[derive(Debug, Clone)]
struct Pattern {
    text: String,
    /// Of this one alone. Other ways to compile a glob panic at one that is nested too deeply.
    glob: GlobSet,
}

impl Globs {
    /// `field` is what users call the list.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] that names the pattern.
    pub(crate) fn new(field: &str, patterns: &[String]) -> Result<Self> {
        let compiled = patterns.iter().map(|text| {
            let compiled = compile(text).map_err(|why| {
                let shown: String = text.chars().take(80).collect();
                let message = format!("{field}: pattern `{shown}` {why}");
                Error::new(ErrorKind::InvalidInput, message)
            });
            compiled.map(|glob| Pattern { text: text.clone(), glob })
        });
        compiled.collect::<Result<_>>().map(Self)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn matches(&self, name: &str) -> bool {
        self.0.iter().any(|pattern| pattern.glob.is_match(name))
    }

    /// The patterns that match none of `names`.
    pub(crate) fn idle<'g>(&'g self, names: &[&str]) -> Vec<&'g str> {
        let is_idle = |pattern: &&Pattern| !names.iter().any(|name| pattern.glob.is_match(name));
        self.0.iter().filter(is_idle).map(|pattern| pattern.text.as_str()).collect()
    }
}

/// Why there can be no pattern like this, in words.
pub(crate) fn glob_fault(pattern: &str) -> Option<String> {
    compile(pattern).err()
}

fn compile(pattern: &str) -> Result<GlobSet, String> {
    if pattern.is_empty() {
        return Err("is empty, and would match nothing".to_owned());
    }
    if pattern.len() > PATTERN_BYTES_MAX {
        return Err(format!("is longer than {PATTERN_BYTES_MAX} bytes"));
    }
    let unreadable = |error: globset::Error| {
        let why: String = error.kind().to_string().chars().take(200).collect();
        format!("cannot be read: {why}")
    };
    let glob = GlobBuilder::new(pattern).backslash_escape(true).build().map_err(unreadable)?;
    GlobSet::builder().add(glob).build().map_err(unreadable)
}
