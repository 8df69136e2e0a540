//! From the names of a destination back to stored names.

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::tensor::TensorName;

/// What is stored as `from` is `to` in the destination: two names, or two prefixes that end in
/// `*` (`old.*` → `new.*`; `module.*` → `*` strips a prefix).
///
/// A destination's name goes through the first rule whose `to` fits it. Without such a rule its
/// stored name is its own, unless a rule's `from` fits it: what moved is no longer under its old
/// name. So two rules may fill two places from one (`layer.0.*` → `layer.0.*`, `layer.0.*` →
/// `layer.1.*`), and two rules that swap names do that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rename {
    /// The stored name, or prefix and `*`.
    pub from: String,
    /// The destination's name, or prefix and `*`.
    pub to: String,
}

impl Rename {
    /// A rule; whether it is one is checked by [`Selection::new`](super::Selection::new).
    #[must_use]
    pub fn new(from: impl Into<String>, to: impl Into<String>) -> Self {
        Self { from: from.into(), to: to.into() }
    }
}

impl std::fmt::Display for Rename {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "`{}` -> `{}`", self.from, self.to)
    }
}

/// Rules of which each can apply.
#[derive(Debug, Clone, Default)]
pub(super) struct RenameMap(Vec<Rule>);

#[derive(Debug, Clone)]
enum Rule {
    Name { from: String, to: String },
    Prefix { from: String, to: String },
}

impl RenameMap {
    pub(super) fn new(rules: &[Rename]) -> Result<Self> {
        let mut parsed: Vec<Rule> = Vec::with_capacity(rules.len());
        for rule in rules {
            let new = Rule::parse(rule)?;
            if let Some((before, _)) = rules.iter().zip(&parsed).find(|(_, old)| old.hides(&new)) {
                let message = format!("rename rule {rule} never applies: {before} comes first");
                return Err(Error::new(ErrorKind::InvalidInput, message).with_help(
                    "a name has one source; remove one rule, or put the more special one first",
                ));
            }
            parsed.push(new);
        }
        Ok(Self(parsed))
    }

    pub(super) fn stored_name(&self, name: &str) -> Option<String> {
        if let Some(stored) = self.0.iter().find_map(|rule| rule.back(name)) {
            return Some(stored);
        }
        let has_moved = self.0.iter().any(|rule| rule.takes(name));
        (!has_moved).then(|| name.to_owned())
    }
}

impl Rule {
    fn parse(rule: &Rename) -> Result<Self> {
        let bad = |why: &str| {
            let message = format!("rename rule {rule}: {why}");
            Error::new(ErrorKind::InvalidInput, message)
                .with_help("a rule is two names, or two prefixes that end in `*`")
        };
        let prefixes = (rule.from.strip_suffix('*'), rule.to.strip_suffix('*'));
        let (from, to) = match prefixes {
            (Some(from), Some(to)) => (from, to),
            (None, None) => (rule.from.as_str(), rule.to.as_str()),
            _ => return Err(bad("a name and a prefix")),
        };
        if from.contains('*') || to.contains('*') {
            return Err(bad("`*` can only be at the end"));
        }
        let (from, to) = (from.to_owned(), to.to_owned());
        if prefixes.0.is_some() {
            return Ok(Self::Prefix { from, to });
        }
        for name in [&from, &to] {
            TensorName::new(name.as_str()).map_err(|e| bad(e.message()))?;
        }
        Ok(Self::Name { from, to })
    }

    /// The stored name of a destination's name.
    fn back(&self, name: &str) -> Option<String> {
        match self {
            Self::Name { from, to } => (to == name).then(|| from.clone()),
            Self::Prefix { from, to } => name.strip_prefix(to).map(|rest| format!("{from}{rest}")),
        }
    }

    /// Whether it moves what is stored under `name`.
    fn takes(&self, name: &str) -> bool {
        match self {
            Self::Name { from, .. } => from == name,
            Self::Prefix { from, .. } => name.starts_with(from),
        }
    }

    /// Whether nothing is left for `later`.
    fn hides(&self, later: &Rule) -> bool {
        match (self, later) {
            (Self::Name { to, .. }, Self::Name { to: other, .. }) => to == other,
            (Self::Name { .. }, Self::Prefix { .. }) => false,
            (
                Self::Prefix { to, .. },
                Self::Name { to: other, .. } | Self::Prefix { to: other, .. },
            ) => other.starts_with(to),
        }
    }
}
