//! Some tensors of a checkpoint into the variables of a model.

use std::collections::BTreeMap;

use tch::nn::VarStore;

use crate::catalog::Wanted;
use crate::error::Result;
use crate::group::ProcessGroup;
use crate::load::{Destination, PartialLoaded, PartialOptions, load_partial};
use crate::manifest::Manifest;
use crate::select::Selection;
use crate::state::LoadTargets;
use crate::storage::Storage;
use crate::torch;

/// Fills those variables of `store` that `selection` names, as [`load_partial`] does. A variable
/// with several names (tied) is filled if one of them is selected and in the checkpoint. Nobody
/// else may use the variables until this has returned.
///
/// ```no_run
/// use tch::{Device, nn};
/// use tch_checkpoint::ProcessGroup;
/// use tch_checkpoint::catalog::Wanted;
/// use tch_checkpoint::load::PartialOptions;
/// use tch_checkpoint::select::{Rename, Selection, SelectionRules};
/// use tch_checkpoint::storage::LocalStorage;
/// use tch_checkpoint::torch::load_partial_into;
///
/// let store = nn::VarStore::new(Device::Cpu);
/// // … build a model with a new head …
/// let selection = Selection::new(SelectionRules {
///     exclude: vec!["head.*".into()],
///     rename: vec![Rename::new("module.*", "*")],
///     ..SelectionRules::default()
/// })?;
/// let wanted = Wanted::parse("pretrained/model.safetensors")?.or_unverified();
/// let (group, storage) = (ProcessGroup::from_env()?, LocalStorage::new());
/// let options = PartialOptions { strict: true, ..PartialOptions::default() };
/// let done = load_partial_into(&group, &storage, &wanted, &store, &selection, &options)?;
/// println!("{} filled, {} left", done.report.filled.len(), done.report.unselected.len());
/// # Ok::<(), tch_checkpoint::Error>(())
/// ```
///
/// # Collective
/// As [`load_partial`]. What is not filled stays as it is on each rank: if ranks began with
/// different values there, broadcast them.
///
/// # Errors
/// As [`load_partial`] and [`TchSink::new`](torch::TchSink::new).
pub fn load_partial_into(
    group: &ProcessGroup,
    storage: &dyn Storage,
    wanted: &Wanted,
    store: &VarStore,
    selection: &Selection,
    options: &PartialOptions,
) -> Result<PartialLoaded> {
    let mut variables = Variables { store, selection, names: BTreeMap::new() };
    load_partial(group, storage, wanted, &mut variables, selection, options)
}

/// The variables of a model, each under the name by which it can be filled.
struct Variables<'s> {
    store: &'s VarStore,
    selection: &'s Selection,
    names: BTreeMap<String, String>,
}

impl Destination for Variables<'_> {
    fn prepare(&mut self, manifest: &Manifest) -> Result<()> {
        let own = torch::variable_names(self.store)?;
        let is_there = |name: &str| self.selection.find(manifest, name).is_some();
        self.names = torch::names_there(&own, is_there);
        Ok(())
    }

    fn targets(&mut self) -> Result<LoadTargets<'_>> {
        let mut targets = LoadTargets::new();
        torch::var_store_targets_as(&mut targets, self.store, &|names| {
            let first = names.first().copied().unwrap_or_default();
            self.names.get(first).map_or(first, String::as_str).to_owned()
        })?;
        Ok(targets)
    }
}

#[cfg(test)]
mod tests;
