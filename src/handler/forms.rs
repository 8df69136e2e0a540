//! A handler as plain files, and a model that begins with the weights of a checkpoint.

use std::path::Path;
use std::sync::Arc;

use tch::Device;

use crate::catalog::CheckpointPath;
use crate::error::{Error, ErrorKind, Result};
use crate::group::{Channel, ProcessGroup};
use crate::handler::alike::agree_on_config;
use crate::handler::auto_save::Marks;
use crate::handler::builder::default_storage;
use crate::handler::checkpoint::report;
use crate::handler::device::agree_on_device;
use crate::handler::weights::{LiveWeights, NewWeights};
use crate::handler::{Model, NNHandler, ddp};
use crate::load::{Atomicity, Loaded, load, wanted_of};
use crate::manifest::Form;
use crate::plan::OnExisting;
use crate::plan::load::LoadRules;
use crate::save::{Checkpoint, SaveOptions};
use crate::select::Rename;
use crate::shown;
use crate::single;
use crate::storage::Storage;
use crate::tensor::Component;
use crate::torch;

/// How [`NNHandler::initialize_from_checkpoint`] loads weights. `Default` is strict.
pub struct InitOptions {
    /// The ranks that load together. Default: [`ProcessGroup::from_env`].
    pub group: Option<ProcessGroup>,
    /// The device of this rank. Default: `cuda:(local rank mod visible devices)`, else the CPU.
    pub device: Option<Device>,
    /// Where checkpoints are kept. Default: the file system.
    pub storage: Option<Arc<dyn Storage>>,
    /// Refuse names that only one side has. Default: yes. Shapes and dtypes must match in any
    /// case.
    pub strict: bool,
    /// Where stored names are not those of the model: `old.*` → `new.*`. Default: none. With rules,
    /// prefixes of wrappers are not looked through: `module.*` → `*` does it.
    pub rename: Vec<Rename>,
}

impl Default for InitOptions {
    fn default() -> Self {
        Self { group: None, device: None, storage: None, strict: true, rename: Vec::new() }
    }
}

impl<M: Model> NNHandler<M> {
    /// Saves everything that training needs as one safetensors file `path`, replacing one that
    /// was saved so. Missing directories are made; no extension is added.
    /// [`NNHandler::load`] takes it like a directory.
    ///
    /// # Collective
    /// Every rank; each writes its share into the one file.
    ///
    /// # Errors
    /// As [`save_single_file`](single::save_single_file); [`ErrorKind::Poisoned`],
    /// [`ErrorKind::Unsupported`] for tensors that cannot be stored.
    pub fn save_single_file(&self, path: impl AsRef<Path>) -> Result<Checkpoint> {
        let path = self.path_of(path.as_ref())?;
        let state = self.marked_state(path.directory(), &Marks::default(), || self.state_dict())?;
        let options = self.options(OnExisting::Replace);
        single::save_single_file(&self.group, self.storage.as_ref(), &path, &state, &options)
    }

    /// Saves everything that training needs as one file per component,
    /// `{path}_{component}.safetensors` (an extension `.safetensors` of `path` is left out).
    /// [`NNHandler::load`] takes `path`, or the `model` file.
    ///
    /// # Collective
    /// Every rank.
    ///
    /// # Errors
    /// As [`save_multi_files`](single::save_multi_files), which replaces nothing; as
    /// [`NNHandler::save_single_file`].
    pub fn save_multi_files(&self, path: impl AsRef<Path>) -> Result<Checkpoint> {
        let path = self.path_of(path.as_ref())?;
        let state = self.marked_state(path.directory(), &Marks::default(), || self.state_dict())?;
        let options = self.options(OnExisting::Refuse);
        single::save_multi_files(&self.group, self.storage.as_ref(), &path, &state, &options)
    }

    /// Splits a file that [`NNHandler::save_single_file`] wrote into one per component beside it,
    /// by default all of them. Needs no model and no ranks: one process does it.
    ///
    /// # Errors
    /// As [`save_multi_from_single`](single::save_multi_from_single).
    pub fn save_multi_from_single(
        path: impl AsRef<Path>,
        components: Option<&[Component]>,
    ) -> Result<Checkpoint> {
        let path = CheckpointPath::parse(path)?;
        single::save_multi_from_single(default_storage().as_ref(), &path, components)
    }

    pub(super) fn options(&self, on_existing: OnExisting) -> SaveOptions {
        SaveOptions {
            step: self.step,
            epoch: self.epoch,
            on_existing,
            audit: self.audit,
            space_reserve: 0,
            ignore_space: false,
            copy_unchanged: self.copy_unchanged,
            libtorch_version: torch::libtorch_version(),
        }
    }

    /// A new handler whose model has the weights of a checkpoint, and nothing else of it: no
    /// optimizer, counters at zero. Takes a checkpoint in any form, and safetensors files of other
    /// tools (also a directory with a Hugging Face index), which cannot be verified: that is
    /// logged once.
    ///
    /// The model is built with `config`, else with that of the checkpoint. Prefixes that wrappers
    /// add to names (`module.`, `_orig_mod.`) are looked through if every name has them and the
    /// model's own names do not fit as they are.
    ///
    /// # Collective
    /// Every rank of the group.
    ///
    /// # Errors
    /// As [`load`](fn@crate::load::load): [`ErrorKind::Mismatch`] lists every name, shape and dtype
    /// that does not fit; [`ErrorKind::InvalidInput`] if there is no configuration anywhere;
    /// [`ErrorKind::Disagreement`] if ranks give different ones, or other rename rules; of devices
    /// as [`HandlerBuilder::build`](crate::handler::HandlerBuilder::build).
    pub fn initialize_from_checkpoint(
        path: impl AsRef<Path>,
        config: Option<M::Config>,
        options: InitOptions,
    ) -> Result<Self> {
        let group = match &options.group {
            Some(group) => group.clone(),
            None => ProcessGroup::from_env()?,
        };
        let storage = options.storage.clone().unwrap_or_else(default_storage);
        let asked = agree_on_config(&group, path.as_ref(), config.as_ref(), &options.rename)?;
        let (wanted, names) = (asked.wanted.or_unverified(), asked.names);
        let placed = agree_on_device(&group, options.device)?;
        let mut new = NewWeights::<M>::new(&group, placed, &options, names, config);
        let rules = rules(options.strict);
        let loaded = load(&group, &*storage, &wanted, &mut new, &rules, Atomicity::InPlace)?;
        let handler = new.into_handler().ok_or_else(|| {
            Error::new(ErrorKind::Mismatch, "the load passed without building a handler")
        })?;
        tell(&group, &loaded);
        if !options.strict {
            // What the checkpoint lacks has each rank's own initial values.
            ddp::broadcast_tensors(&group, &handler.variables(|_| true))?;
        }
        Ok(handler)
    }

    /// Gives this handler's model the weights of a checkpoint, as
    /// [`NNHandler::initialize_from_checkpoint`] does, and begins anew with them: optimizer,
    /// schedule, gradient scaler and averages get fresh state (learning rates those at the begin of
    /// a schedule), counters and history are empty. Callbacks keep what they have seen. Without
    /// `strict`, variables that the checkpoint lacks keep their values. On an error nothing has
    /// changed, unless what came after verifying all bytes failed; then the handler is poisoned.
    ///
    /// # Collective
    /// Every rank.
    ///
    /// # Errors
    /// As [`NNHandler::initialize_from_checkpoint`].
    pub fn initialize_weights(&mut self, path: impl AsRef<Path>, strict: bool) -> Result<Loaded> {
        self.wait_for_save()?;
        let wanted = wanted_of(&self.group, path.as_ref())?.or_unverified();
        let (group, storage) = (self.group.clone(), self.storage.clone());
        let mut live = LiveWeights::new(&self.vars);
        let rules = rules(strict);
        let loaded = load(&group, &*storage, &wanted, &mut live, &rules, Atomicity::Atomic);
        let is_touched = live.is_touched();
        let loaded = loaded.inspect_err(|_| self.poisoned |= is_touched)?;
        tell(&group, &loaded);
        let begun = group.phase_all(Channel::Save, "begin", || self.begin_anew(), |_| Ok(()));
        begun.inspect_err(|_| self.poisoned = true)?;
        // What was left half-way by an earlier load is whole again only if all of it came anew.
        self.poisoned &= !loaded.report.missing.is_empty();
        Ok(loaded)
    }
}

/// Of the checkpoint only the model counts.
fn rules(strict: bool) -> LoadRules {
    LoadRules { strict, components: Some(vec![Component::model()]), ..LoadRules::default() }
}

fn tell(group: &ProcessGroup, loaded: &Loaded) {
    if !group.is_coordinator() {
        return;
    }
    if *loaded.manifest.form() == Form::Plain {
        tracing::warn!(
            path = %shown::path(&loaded.path),
            "weights of another tool: not all of it has checksums that could be verified"
        );
    }
    report(loaded);
}
