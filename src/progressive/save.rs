//! Racks and stacks as checkpoints of their own, by the same engine as everything else.

use std::path::Path;

use super::architecture::Architecture;
use super::described::StackInfo;
use super::rack::{Rack, adapters_component, stack_component};
use super::state::{self, Granularity, add_part};
use crate::catalog::CheckpointPath;
use crate::error::{Error, ErrorKind, Result};
use crate::group::{Channel, ProcessGroup};
use crate::plan::OnExisting;
use crate::save::{Checkpoint, SaveOptions, save};
use crate::state::{StateDict, Value};
use crate::storage::{LocalStorage, Storage};
use crate::torch::libtorch_version;

impl<A: Architecture> Rack<A> {
    /// Saves all of it, with its structure, as the checkpoint `path`; one that is there is
    /// replaced. Parts that have not changed since an earlier checkpoint of the directory are
    /// linked.
    ///
    /// # Collective
    /// Every rank, each with the same rack and `path`.
    ///
    /// # Errors
    /// As [`save`](crate::save()).
    pub fn save_rack(&self, group: &ProcessGroup, path: impl AsRef<Path>) -> Result<Checkpoint> {
        self.save_rack_on(group, &LocalStorage::new(), path.as_ref())
    }

    pub(crate) fn save_rack_on(
        &self,
        group: &ProcessGroup,
        storage: &dyn Storage,
        path: &Path,
    ) -> Result<Checkpoint> {
        save_state(group, storage, path, || {
            let mut state = StateDict::new();
            self.save_into(Granularity::Rack, &mut state)?;
            Ok(state)
        })
    }

    /// Saves the stack at `index` alone, with its adapters, precision and freeze flag, as the
    /// checkpoint `path`; one that is there is replaced.
    ///
    /// # Collective
    /// As [`Rack::save_rack`].
    ///
    /// # Errors
    /// As [`Rack::save_rack`]; [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) for an
    /// index that is out of range, on every rank.
    pub fn save_stack(
        &self,
        group: &ProcessGroup,
        index: usize,
        path: impl AsRef<Path>,
    ) -> Result<Checkpoint> {
        self.save_stack_on(group, &LocalStorage::new(), index, path.as_ref())
    }

    pub(crate) fn save_stack_on(
        &self,
        group: &ProcessGroup,
        storage: &dyn Storage,
        index: usize,
        path: &Path,
    ) -> Result<Checkpoint> {
        save_state(group, storage, path, || self.stack_state(index))
    }

    fn stack_state(&self, index: usize) -> Result<StateDict> {
        let (stack, mut state) = (self.stack(index)?, StateDict::new());
        let own = [stack_component(stack.id())?, adapters_component(stack.id())?];
        for part in self.parts()?.iter().filter(|part| own.contains(&part.component)) {
            add_part(part, &mut state)?;
        }
        let info: StackInfo = stack.info(self.store(), index);
        state.values.set(state::KIND, Granularity::Stack.as_str());
        state.values.set(state::CONFIG, Value::json(self.config())?);
        state.values.set(state::STACK, Value::json(&info)?);
        state.values.set(state::SEED, format!("{:x}", self.seed));
        Ok(state)
    }
}

/// Phase "state", so that a rank that cannot say what is to be saved is an error on all, then the
/// save.
fn save_state(
    group: &ProcessGroup,
    storage: &dyn Storage,
    path: &Path,
    make: impl FnOnce() -> Result<StateDict>,
) -> Result<Checkpoint> {
    let mut made = None;
    let vote = || {
        made = Some((make()?, CheckpointPath::parse(path)?));
        Ok(())
    };
    group.phase_all(Channel::Save, "state", vote, |_| Ok(()))?;
    let passed = || Error::new(ErrorKind::Disagreement, "phase state passed without a state");
    let (state, path) = made.ok_or_else(passed)?;
    let options = SaveOptions {
        on_existing: OnExisting::Replace,
        libtorch_version: libtorch_version(),
        ..SaveOptions::default()
    };
    save(group, storage, &path, &state, &options)
}
