//! What to keep: a pure decision over what lies on disk.

use std::num::NonZeroU64;

use serde::{Deserialize, Serialize};

use crate::autosave::Mode;
use crate::layout::{CheckpointName, SaveId};
use crate::manifest::CheckpointInfo;

/// Which checkpoints of a directory stay: the union of its rules. Without any rule, all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retention {
    /// The newest so many: highest step, then epoch, then time of saving.
    pub last: Option<NonZeroU64>,
    /// The best so many.
    pub best: Option<KeepBest>,
    /// Those whose step is a multiple.
    pub every_steps: Option<NonZeroU64>,
    /// Those whose epoch is a multiple.
    pub every_epochs: Option<NonZeroU64>,
    /// Names, or globs of names, that stay whatever the other rules say.
    pub pinned: Vec<String>,
}

/// The best checkpoints by one number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeepBest {
    /// How many.
    pub count: NonZeroU64,
    /// Which number, as the manifest holds it.
    pub monitor: String,
    /// Which way it is to go.
    pub mode: Mode,
}

/// What a retention pass does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    /// What goes, oldest first.
    pub remove: Vec<(CheckpointName, SaveId)>,
}

impl Retention {
    /// What goes of `found`. `protected` stays whatever the rules say.
    #[must_use]
    pub fn decide(&self, found: &[CheckpointInfo], protected: &[SaveId]) -> Decision {
        let _ = (found, protected);
        Decision::default()
    }
}

/// The best of `found` by one number: finite; of equals the one of the lowest step, then the
/// oldest.
pub(crate) fn best_of<'a>(
    found: impl IntoIterator<Item = &'a CheckpointInfo>,
    monitor: &str,
    mode: Mode,
) -> Option<&'a CheckpointInfo> {
    let mut best: Option<(f64, &CheckpointInfo)> = None;
    for info in found {
        let Some(value) = info.metrics.get(monitor).copied().filter(|v| v.is_finite()) else {
            continue;
        };
        let better = best.is_none_or(|(than, older)| {
            mode.is_better(value, than)
                || (!mode.is_better(than, value) && info.age_key() < older.age_key())
        });
        if better {
            best = Some((value, info));
        }
    }
    best.map(|(_, info)| info)
}
