//! Which checkpoints of a directory follow one another.
//!
//! A run that resumes from an older checkpoint, or begins anew beside older ones, counts its steps
//! anew; by steps alone, what it saves would be older than what it left behind. So each such
//! beginning raises the *generation*: newer is a higher generation first, then a higher step. A
//! *line* is what one fresh start led to; the rules of a run remove nothing of another line. Its
//! number is drawn, not counted: two jobs may begin at the same time, and checkpoints are copied
//! from directory to directory.

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::layout::SaveId;
use crate::manifest::{CheckpointInfo, CheckpointState, GENERATION, LINE, Manifest, count_of};
use crate::state::Values;

/// Where in the history of its directory a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Lineage {
    /// Raised by each resume from a checkpoint that is not the newest, and by each fresh start.
    pub(crate) generation: u64,
    /// What one fresh start led to; 0 for what knows of none.
    pub(crate) line: u64,
}

/// The highest generation of what a directory holds. Damaged ones count: they may be made whole
/// again, and are then what they were.
pub(crate) fn top_of(found: &[CheckpointInfo]) -> Option<u64> {
    let saved = found.iter().filter(|info| info.state != CheckpointState::Partial);
    saved.map(|info| info.generation).max()
}

/// Whether it is known where this stands among others.
pub(crate) fn is_placed(info: &CheckpointInfo) -> bool {
    info.state != CheckpointState::Partial && info.save_id.is_some()
}

impl Lineage {
    /// Of a run that begins anew, beside checkpoints of which `top` is the highest generation: the
    /// coordinator draws it for all ranks.
    pub(crate) fn fresh(top: Option<u64>) -> Result<Self> {
        let [a, b, c, d, e, f, g, h, ..] = *SaveId::random()?.as_bytes();
        // Values of checkpoints have a sign.
        let line = u64::from_le_bytes([a, b, c, d, e, f, g, h]) >> 1;
        Ok(Self { generation: top.map_or(0, |top| top.saturating_add(1)), line })
    }

    /// Of a checkpoint.
    pub(crate) fn of(manifest: &Manifest) -> Self {
        let values = manifest.values();
        Self { generation: count_of(values, GENERATION), line: count_of(values, LINE) }
    }

    /// Of a run that goes on from a checkpoint of this lineage; `fresh` is that of one that would
    /// begin anew there.
    pub(crate) fn followed(self, fresh: Self, has_newer_beside: bool) -> Self {
        match has_newer_beside {
            true => Self { generation: fresh.generation, ..self },
            false => self,
        }
    }

    pub(crate) fn save(self, values: &mut Values) -> Result<()> {
        for (name, count) in [(GENERATION, self.generation), (LINE, self.line)] {
            let count = i64::try_from(count)
                .map_err(|_| Error::new(ErrorKind::InvalidInput, format!("`{name}` is {count}")))?;
            values.set(name, count);
        }
        Ok(())
    }
}
