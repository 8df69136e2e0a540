//! Patterns of tensor names.

use globset::{GlobBuilder, GlobMatcher};

use crate::error::{Error, ErrorKind, Result};

/// Patterns, any of which may match; none match nothing. Dots are characters like any other.
#[derive(Debug, Clone, Default)]
pub(crate) struct Globs(Vec<GlobMatcher>);

impl Globs {
    /// `field` is what users call the list.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] that names the pattern.
    pub(crate) fn new(field: &str, patterns: &[String]) -> Result<Self> {
        let compiled = patterns.iter().map(|pattern| {
            let bad = |why: String| {
                let message = format!("{field}: pattern `{pattern}` {why}");
                Error::new(ErrorKind::InvalidInput, message)
            };
            if pattern.is_empty() {
                return Err(bad("is empty, and would match nothing".to_owned()));
            }
            let glob = GlobBuilder::new(pattern).backslash_escape(true).build();
            let glob = glob.map_err(|e| bad(format!("cannot be read: {}", e.kind())))?;
            Ok(glob.compile_matcher())
        });
        compiled.collect::<Result<_>>().map(Self)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn matches(&self, name: &str) -> bool {
        self.0.iter().any(|glob| glob.is_match(name))
    }

    /// The patterns that match none of `names`.
    pub(crate) fn idle<'g>(&'g self, names: &[&str]) -> Vec<&'g str> {
        let idle = self.0.iter().filter(|glob| !names.iter().any(|name| glob.is_match(name)));
        idle.map(|glob| glob.glob().glob()).collect()
    }
}
