//! In which order checkpoints are listed, and by which one of several is chosen.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};

use crate::autosave::{Mode, better_first};
use crate::manifest::{CheckpointInfo, CheckpointState};

/// In which order checkpoints are listed. Damaged and then partial ones come after all committed
/// ones, newest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Order {
    /// Newest first: what is part of a run, then highest generation, step, epoch, time of saving,
    /// name.
    #[default]
    Latest,
    /// Best first by a metric; of equals the one of the lowest step, then the oldest. Those without
    /// a finite value last, newest first.
    Best {
        /// Which number.
        monitor: String,
        /// Which way it is to go.
        mode: Mode,
    },
}

impl Order {
    /// What comes first is less. No two of different name and age are equal.
    #[must_use]
    pub fn compare(&self, a: &CheckpointInfo, b: &CheckpointInfo) -> Ordering {
        let newest_first = || b.age_key().cmp(&a.age_key());
        let committed_first = rank(a.state).cmp(&rank(b.state));
        committed_first.then_with(|| match self {
            Self::Latest => newest_first(),
            Self::Best { .. } if !a.is_committed() => newest_first(),
            Self::Best { monitor, mode } => {
                match (a.finite_metric(monitor), b.finite_metric(monitor)) {
                    (Some(x), Some(y)) => better_first(*mode, (x, a), (y, b)),
                    (Some(_), None) => Ordering::Less,
                    (None, Some(_)) => Ordering::Greater,
                    (None, None) => newest_first(),
                }
            }
        })
    }
}

const fn rank(state: CheckpointState) -> u8 {
    match state {
        CheckpointState::Committed => 0,
        CheckpointState::Damaged => 1,
        CheckpointState::Partial => 2,
    }
}
