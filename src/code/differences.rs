//! What differs between the code of a checkpoint and that of the running program.

use std::collections::BTreeSet;
use std::fmt;

use super::ModelCode;
use crate::error::printable;

/// Longest text of a fact that is shown.
const SHOWN_CHARS_MAX: usize = 200;

/// One difference between the code that a checkpoint was saved with and the running program's.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CodeDifference {
    /// A file that only the running program has.
    FileAdded(String),
    /// A file that only the checkpoint has.
    FileRemoved(String),
    /// A file whose text differs.
    FileChanged(String),
    /// Another package.
    Package {
        /// The one that saved.
        saved: String,
        /// The one that runs.
        running: String,
    },
    /// Another version of the package.
    Version {
        /// The one that saved.
        saved: String,
        /// The one that runs.
        running: String,
    },
    /// Another git revision; `None` where none was recorded.
    GitRevision {
        /// The one that saved.
        saved: Option<String>,
        /// The one that runs.
        running: Option<String>,
    },
    /// Other features.
    Features {
        /// Features that only the running program has.
        added: BTreeSet<String>,
        /// Features that only the program that saved had.
        removed: BTreeSet<String>,
    },
}

impl ModelCode {
    /// What differs between the code of a checkpoint and this, the running program's: files in
    /// order of their paths, then facts.
    #[must_use]
    pub fn differences(&self, saved: &Self) -> Vec<CodeDifference> {
        let paths: BTreeSet<&String> = self.files.keys().chain(saved.files.keys()).collect();
        let compare = |path: &String| match (self.files.get(path), saved.files.get(path)) {
            (Some(_), None) => Some(CodeDifference::FileAdded(path.clone())),
            (None, Some(_)) => Some(CodeDifference::FileRemoved(path.clone())),
            (running, saved) if running == saved => None,
            _ => Some(CodeDifference::FileChanged(path.clone())),
        };
        let mut found: Vec<CodeDifference> = paths.into_iter().filter_map(compare).collect();
        let (old, new) = (&saved.facts, &self.facts);
        if old.package != new.package {
            let (saved, running) = (old.package.clone(), new.package.clone());
            found.push(CodeDifference::Package { saved, running });
        }
        if old.version != new.version {
            let (saved, running) = (old.version.clone(), new.version.clone());
            found.push(CodeDifference::Version { saved, running });
        }
        if old.git_revision != new.git_revision {
            let (saved, running) = (old.git_revision.clone(), new.git_revision.clone());
            found.push(CodeDifference::GitRevision { saved, running });
        }
        if old.features != new.features {
            let only = |a: &BTreeSet<String>, b| a.difference(b).cloned().collect();
            let (added, removed) =
                (only(&new.features, &old.features), only(&old.features, &new.features));
            found.push(CodeDifference::Features { added, removed });
        }
        found
    }
}

/// Paths in full, facts up to a length: half of it comes out of a file.
impl fmt::Display for CodeDifference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let change = |f: &mut fmt::Formatter<'_>, what, saved: &str, running: &str| {
            write!(f, "{what} `{}`, now `{}`", short(saved), short(running))
        };
        let revision = |revision: &Option<String>| match revision {
            Some(revision) => format!("`{}`", short(revision)),
            None => "unknown".to_owned(),
        };
        match self {
            Self::FileAdded(path) => write!(f, "`{}` is not in the checkpoint", printable(path)),
            Self::FileRemoved(path) => {
                write!(f, "`{}` is only in the checkpoint", printable(path))
            }
            Self::FileChanged(path) => write!(f, "`{}` has changed", printable(path)),
            Self::Package { saved, running } => change(f, "package", saved, running),
            Self::Version { saved, running } => change(f, "version", saved, running),
            Self::GitRevision { saved, running } => {
                write!(f, "git revision {}, now {}", revision(saved), revision(running))
            }
            Self::Features { added, removed } => {
                write!(f, "features added: [{}], removed: [{}]", list(added), list(removed))
            }
        }
    }
}

fn list(features: &BTreeSet<String>) -> String {
    // Each takes two characters at least, so no more than these would be shown.
    let some = features.iter().take(SHOWN_CHARS_MAX).map(String::as_str);
    short(&some.collect::<Vec<_>>().join(", "))
}

/// The beginning of a text, on one line.
fn short(text: &str) -> String {
    let more = if text.chars().nth(SHOWN_CHARS_MAX).is_some() { "…" } else { "" };
    let begin: String = text.chars().take(SHOWN_CHARS_MAX).collect();
    printable(&begin).replace('\n', "\\n") + more
}
