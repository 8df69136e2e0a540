//! What a checkpoint says of itself, beside the state that it holds.

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::Result;
use crate::handler::{Model, NNHandler};
use crate::manifest::{AUTOMATIC, save_metrics};
use crate::state::StateDict;

/// Nothing by default, as for a save by hand.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::handler) struct Marks<'a> {
    /// The auto-saver saves it, so that its rules may remove it.
    pub(in crate::handler) automatic: bool,
    /// The numbers of the epoch with which the state was reached. None inside an epoch: those of
    /// the epoch before say nothing of it.
    pub(in crate::handler) metrics: Option<&'a BTreeMap<String, f64>>,
}

impl<M: Model> NNHandler<M> {
    /// A state for a checkpoint in `directory`, if every rank has one, after what goes on beside
    /// training.
    pub(in crate::handler) fn marked_state(
        &self,
        directory: &Path,
        marks: &Marks<'_>,
        make: impl FnOnce() -> Result<StateDict>,
    ) -> Result<StateDict> {
        self.end_save()?;
        let mut state = self.agreed_state(make)?;
        if marks.automatic {
            state.values.set(AUTOMATIC, true);
        }
        if let Some(metrics) = marks.metrics {
            save_metrics(metrics, &mut state.values);
        }
        if let Some(lineage) = self.line.of(directory) {
            lineage.save(&mut state.values)?;
        }
        Ok(state)
    }
}
