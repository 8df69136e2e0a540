//! Beginning with some tensors of another run, or of another program.

use std::path::Path;

use super::look::wanted_by_all;
use super::resume::Whole;
use super::{Checkpointer, Parts};
use crate::error::Result;
use crate::load::{Destination, PartialLoaded, PartialOptions, load_partial};
use crate::select::Selection;
use crate::state::LoadTargets;

impl Checkpointer {
    /// Fills those tensors of `parts` that `selection` names from what lies at `path`, and leaves
    /// all else as it is: values, counters, and the run itself, which neither goes on from there
    /// nor is changed. What a fine-tuning run does before its first step.
    ///
    /// `path` is a checkpoint in any form, or files of another program: a directory as Hugging Face
    /// tools write it, a safetensors file, what `torch.save` or `torch.distributed.checkpoint` of
    /// PyTorch wrote. `selection` has the rename rules; without any it takes the model.
    ///
    /// ```
    /// # use std::sync::Arc;
    /// # use tch_checkpoint::catalog::CheckpointPath;
    /// # use tch_checkpoint::checkpointer::{Checkpointer, CheckpointerConfig, Location, Parts};
    /// # use tch_checkpoint::state::{LoadTargets, StateDict, Stateful, Values};
    /// # use tch_checkpoint::storage::LocalStorage;
    /// # use tch_checkpoint::tensor::{Component, Dtype, TensorName, TensorSpec};
    /// # use tch_checkpoint::{ProcessGroup, Result, SaveOptions, save};
    /// use tch_checkpoint::load::PartialOptions;
    /// use tch_checkpoint::select::{Rename, Selection, SelectionRules};
    /// # struct Model([u8; 2]);
    /// # fn weight() -> Result<TensorName> { TensorName::new("weight") }
    /// # impl Stateful for Model {
    /// #     fn save_state(&self, _: &str, _: &mut StateDict) -> Result<()> { Ok(()) }
    /// #     fn load_targets<'a>(&'a mut self, _: &str, targets: &mut LoadTargets<'a>) -> Result<()> {
    /// #         targets.add(weight()?, TensorSpec::new(Dtype::U8, [2])?, Box::new(&mut self.0[..]))
    /// #     }
    /// #     fn check_values(&self, _: &str, _: &Values, _: &Values) -> Result<()> { Ok(()) }
    /// #     fn load_values(&mut self, _: &str, _: &Values, _: &Values) -> Result<()> { Ok(()) }
    /// # }
    /// # let scratch = tempfile::tempdir().unwrap();
    /// # let pretrained = scratch.path().join("pretrained");
    /// # let group = ProcessGroup::solo();
    /// # let (spec, name) = (TensorSpec::new(Dtype::U8, [2])?, TensorName::new("module.weight")?);
    /// # let mut state = StateDict::new();
    /// # state.add(&Component::model(), name, spec, Arc::new([1u8, 2]))?;
    /// # let path = CheckpointPath::parse(&pretrained)?;
    /// # save(&group, &LocalStorage::new(), &path, &state, &SaveOptions::default())?;
    /// # let location = Location::Path(scratch.path().to_path_buf());
    /// # let config = CheckpointerConfig { location, ..CheckpointerConfig::default() };
    /// # let mut checkpointer = Checkpointer::new(&group, config)?;
    /// # let mut model = Model([0; 2]);
    ///
    /// let rename = vec![Rename::new("module.*", "*")];
    /// let selection = Selection::new(SelectionRules { rename, ..SelectionRules::default() })?;
    /// let strict = PartialOptions { strict: true, ..PartialOptions::default() };
    /// let mut parts = Parts::new().model(&mut model);
    /// let done = checkpointer.load_partial(&pretrained, &mut parts, &selection, &strict)?;
    /// assert_eq!(done.report.filled[0].to_string(), "weight from module.weight");
    /// # assert_eq!(model.0, [1, 2]);
    /// # Ok::<(), tch_checkpoint::Error>(())
    /// ```
    ///
    /// # Collective
    /// Every rank, with the same `path`, `selection` and `options`.
    ///
    /// # Errors
    /// As [`load_partial`]. If a load fails that had begun to change the
    /// parts, nothing is saved until one succeeds that finds all it looks for
    /// ([`ErrorKind::Poisoned`](crate::ErrorKind::Poisoned)).
    pub fn load_partial(
        &mut self,
        path: impl AsRef<Path>,
        parts: &mut Parts<'_>,
        selection: &Selection,
        options: &PartialOptions,
    ) -> Result<PartialLoaded> {
        self.wait()?;
        let wanted = wanted_by_all(&self.group, path.as_ref())?.or_unverified();
        let mut tensors = Tensors(Whole::new(parts, true, self.group.rank()));
        let storage = self.storage.as_ref();
        let done = load_partial(&self.group, storage, &wanted, &mut tensors, selection, options);
        self.poisoned |= done.is_err() && tensors.0.is_touched();
        done
    }
}

/// The tensors of all parts; their values stay.
struct Tensors<'a, 'b>(Whole<'a, 'b>);

impl Destination for Tensors<'_, '_> {
    fn targets(&mut self) -> Result<LoadTargets<'_>> {
        self.0.targets()
    }

    fn begin_change(&mut self) {
        self.0.begin_change();
    }
}
