//! Which checkpoints of a directory follow one another.
//!
//! A run that resumes from an older checkpoint, or begins anew beside older ones, counts its steps
//! anew; by steps alone, what it saves would be older than what it left behind. So each such
//! beginning raises the *generation*: newer is a higher generation first, then a higher step. A
//! *line* is what one fresh start led to; the rules of a run remove nothing of another line.

use crate::error::{Error, ErrorKind, Result};
use crate::manifest::{CheckpointInfo, CheckpointState, GENERATION, LINE, Manifest, count_of};
use crate::state::Values;

/// Where in the history of its directory a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Lineage {
    /// Raised by each resume from a checkpoint that is not the newest, and by each fresh start.
    pub(super) generation: u64,
    /// The generation in which this line began anew.
    pub(super) line: u64,
}

/// The highest generation of what a directory holds. Damaged ones count: they may be made whole
/// again, and are then what they were.
pub(super) fn top_of(found: &[CheckpointInfo]) -> Option<u64> {
    let saved = found.iter().filter(|info| info.state != CheckpointState::Partial);
    saved.map(|info| info.generation).max()
}

impl Lineage {
    /// Of a run that begins anew, beside checkpoints of which `top` is the highest generation.
    pub(super) fn fresh(top: Option<u64>) -> Self {
        let generation = top.map_or(0, |top| top.saturating_add(1));
        Self { generation, line: generation }
    }

    /// Of a checkpoint.
    pub(super) fn of(manifest: &Manifest) -> Self {
        let values = manifest.values();
        Self { generation: count_of(values, GENERATION), line: count_of(values, LINE) }
    }

    pub(super) fn save(self, values: &mut Values) -> Result<()> {
        for (name, count) in [(GENERATION, self.generation), (LINE, self.line)] {
            let count = i64::try_from(count)
                .map_err(|_| Error::new(ErrorKind::InvalidInput, format!("`{name}` is {count}")))?;
            values.set(name, count);
        }
        Ok(())
    }
}
