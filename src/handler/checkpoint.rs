//! A handler as a checkpoint: what is saved, and loading it back, fresh or into a live handler.

use std::any::type_name;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use tch::Device;

use crate::catalog::CheckpointPath;
use crate::checkpointer::AsyncMode;
use crate::code::ModelCode;
use crate::error::{Error, ErrorKind, Result};
use crate::group::{Channel, ProcessGroup};
use crate::handler::alike::agree_on_load;
use crate::handler::auto_save::Marks;
use crate::handler::callbacks::{self, agree_on_values, replace_values, values_of_callbacks};
use crate::handler::destination::{Fresh, Live};
use crate::handler::device::agree_on_mapped;
use crate::handler::random::RandomNow;
use crate::handler::{History, KeptCode, Model, NNHandler, ddp};
use crate::load::{Atomicity, Loaded, load, wanted_of};
use crate::plan::OnExisting;
use crate::plan::load::{LoadRules, Replicas};
use crate::save::{AfterCommit, Checkpoint, PendingSave, save, save_async, save_async_overlapped};
use crate::state::{StateDict, Stateful, TensorEntry, Value};
use crate::storage::Storage;
use crate::tensor::Component;
use crate::torch;

/// Prefix of the names of optimizer tensors and values.
pub(super) const OPTIMIZER: &str = "optimizer";
/// Name of the auto-saver's value.
pub(super) const AUTO_SAVER: &str = "auto_saver";
/// Prefix of the names of values that the user adds.
pub(super) const USER: &str = "user.";

/// How a checkpoint is loaded. `Default` is a strict load of everything, on the device of each
/// rank, by the ranks of this process's launcher.
#[derive(Default)]
pub struct LoadOptions {
    /// The ranks that load together. Default: [`ProcessGroup::from_env`]; with
    /// [`ProcessGroup::solo`] one rank loads alone.
    pub group: Option<ProcessGroup>,
    /// The device of this rank. Default: `cuda:(local rank mod visible devices)`, else the CPU.
    pub device: Option<Device>,
    /// Other devices in place of some: where this rank's device is the first of a pair, it is the
    /// second instead. `(Cuda(0), Cuda(1))` leaves the first GPU to others, `(Cuda(0), Cpu)` loads
    /// without it. Checkpoints name no devices: what was saved on a GPU loads anywhere. Default: none.
    pub device_map: Vec<(Device, Device)>,
    /// How ranks that want the same tensors get them. Default: each reads all.
    pub replicas: Replicas,
    /// Where checkpoints are kept. Default: the file system.
    pub storage: Option<Arc<dyn Storage>>,
    /// Accept names on one side only: tensors that the checkpoint lacks keep their initial
    /// values, others are ignored; both are logged. Shapes and dtypes must match in any case.
    /// Default: no.
    pub lenient: bool,
    /// Leave the optimizer out, with its schedule and gradient scaler: it gets fresh state when
    /// set. Default: no.
    pub skip_optimizer: bool,
    /// Leave the schedule of the learning rate out; the rates stay where they were. Default: no.
    pub skip_scheduler: bool,
    /// Leave the gradient scaler out. Default: no.
    pub skip_scaler: bool,
    /// Leave the averages of parameters out. Default: no.
    pub skip_ema: bool,
    /// Leave the history out: series begin anew, with NaN for the epochs before. Epochs and steps
    /// go on being counted. Default: no.
    pub skip_history: bool,
    /// Go on saving automatically where the checkpoint says, even if it was loaded from elsewhere:
    /// only if you trust it, since it then chooses where this program writes and removes
    /// checkpoints. Default: no.
    pub keep_auto_saver: bool,
    /// The code of the running program, from [`model_code!`](crate::model_code): compared with
    /// that of the checkpoint ([`NNHandler::code_differences`]), and saved with every checkpoint
    /// from then on. Default: none.
    pub model_code: Option<ModelCode>,
    /// Leave the states of callbacks out: those that are added begin anew. Default: no.
    pub skip_callbacks: bool,
}

impl<M: Model> NNHandler<M> {
    /// Saves everything that training needs as checkpoint `path`, replacing one of that name.
    ///
    /// # Collective
    /// Every rank; each writes its share. No rank returns before the verdict.
    ///
    /// # Durability
    /// On `Ok` the checkpoint survives a power cut. The replaced one is removed only then.
    ///
    /// # Errors
    /// As [`save`](fn@crate::save::save), also those of an automatic save that went on beside
    /// training; on every rank if on any, before anything is written: [`ErrorKind::Poisoned`],
    /// [`ErrorKind::Unsupported`] for tensors that cannot be stored.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<Checkpoint> {
        let path = self.path_of(path.as_ref())?;
        self.save_as(&path, OnExisting::Replace, &Marks::default())
    }

    pub(super) fn save_as(
        &self,
        path: &CheckpointPath,
        on_existing: OnExisting,
        marks: &Marks<'_>,
    ) -> Result<Checkpoint> {
        let state = self.marked_state(path.directory(), marks, || self.state_dict())?;
        save(&self.group, self.storage.as_ref(), path, &state, &self.options(on_existing))
    }

    /// The same beside training.
    pub(super) fn begin_save(
        &self,
        mode: AsyncMode,
        path: &CheckpointPath,
        on_existing: OnExisting,
        marks: &Marks<'_>,
        after: AfterCommit,
    ) -> Result<PendingSave> {
        let state = self.marked_state(path.directory(), marks, || self.state_dict())?;
        let begin = match mode {
            AsyncMode::AsyncOverlap => save_async_overlapped,
            AsyncMode::Async | AsyncMode::Disabled => save_async,
        };
        begin(&self.group, &self.storage, path, &state, &self.options(on_existing), after)
    }

    /// Only the model, as checkpoint `path`: its variables, under their own names, and its
    /// configuration. Collective, as [`NNHandler::save`].
    pub(super) fn save_weights_as(
        &self,
        path: &CheckpointPath,
        on_existing: OnExisting,
        marks: &Marks<'_>,
    ) -> Result<Checkpoint> {
        let state = self.marked_state(path.directory(), marks, || self.model_state())?;
        save(&self.group, self.storage.as_ref(), path, &state, &self.options(on_existing))
    }

    /// The state, if every rank has one: a rank that cannot say what it holds must not leave the
    /// others waiting in the save. Values of callbacks are the coordinator's.
    pub(super) fn agreed_state(
        &self,
        make: impl FnOnce() -> Result<StateDict>,
    ) -> Result<StateDict> {
        let mut state = None;
        let take = || {
            self.refuse_if_poisoned()?;
            let made = make()?;
            let of_callbacks = values_of_callbacks(&made.values);
            state = Some(made);
            Ok(of_callbacks)
        };
        let agreed = self.group.phase_all(Channel::Save, "state", take, agree_on_values)?;
        let mut state = state.ok_or_else(|| {
            Error::new(ErrorKind::Disagreement, "phase state passed without a state")
        })?;
        replace_values(&mut state.values, &agreed);
        Ok(state)
    }

    fn model_state(&self) -> Result<StateDict> {
        let mut state = StateDict::new();
        torch::add_var_store(&mut state, &Component::model(), "", &self.vars)?;
        state.values.set("model.type", type_name::<M>());
        state.values.set("model.config", Value::json(&self.config)?);
        Ok(state)
    }

    /// Model, optimizer, the optional parts, how steps are made, counters, how far the epoch under
    /// way has come, history, values of the user, auto-saver, callbacks, code if set, and this
    /// rank's random state. No tensor is copied.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for tensors that cannot be stored.
    pub fn state_dict(&self) -> Result<StateDict> {
        let mut state = self.model_state()?;
        if let Some(optimizer) = &self.optimizer {
            optimizer.save_state(OPTIMIZER, &mut state)?;
        }
        self.parts.save(&mut state)?;
        let values = &mut state.values;
        values.set("trainer.epoch", counter(self.epoch)?);
        values.set("trainer.step", counter(self.step)?);
        // A seed uses all 64 bits, which no integer of JSON readers is sure to keep.
        values.set("trainer.seed", format!("{:016x}", self.seed));
        values.set("trainer.settings", Value::json(&self.steps)?);
        self.history.save(values);
        self.in_epoch.save(&mut state)?;
        let values = &mut state.values;
        for (name, value) in self.user_values.iter() {
            values.set(format!("{USER}{name}"), value.clone());
        }
        if let Some(saver) = &self.auto_saver {
            values.set(AUTO_SAVER, Value::json(&saver.state_after(self.beside.landed()))?);
        }
        self.callbacks.save_state(self.group.rank(), &mut state)?;
        RandomNow::of(self.device)?.save(&mut state.rank_values);
        self.code.attach_to(&mut state)?;
        Ok(state)
    }

    /// BLAKE3 over parameters, buffers, optimizer and its schedule, scaler, averages, how steps are
    /// made, seed and counters: equal exactly if training on the same data would go on equally, bit
    /// for bit, up to random state. Callbacks do not count. Does not depend on how ranks share the
    /// optimizer's state. Reads every tensor.
    ///
    /// # Collective
    /// If the ranks share the optimizer's state, every rank, each of which then holds all of that
    /// state in host memory for a while.
    ///
    /// # Errors
    /// [`ErrorKind::Device`] if a copy from the device fails; as [`ProcessGroup::all_gather`].
    pub fn state_hash(&self) -> Result<String> {
        let state = self.state_dict()?;
        let mut shared = StateDict::new();
        if let Some(optimizer) = &self.optimizer {
            optimizer.gather_shared(OPTIMIZER, &mut shared)?;
        }
        // Whole tensors in place of the parts that this rank has.
        let tensors: BTreeMap<_, _> = state.tensors().chain(shared.tensors()).collect();
        let of_callbacks = |boxes: &[TensorEntry]| {
            boxes.iter().any(|entry| entry.component.as_str() == callbacks::COMPONENT)
        };
        let mut hasher = blake3::Hasher::new();
        for (name, boxes) in tensors.into_iter().filter(|(_, boxes)| !of_callbacks(boxes)) {
            for entry in boxes {
                hasher.update(format!("{name}\0{}\0", entry.spec).as_bytes());
                let mut bytes = crate::memory::zeroed(entry.spec.size_bytes())?;
                entry.source.read_into(0, &mut bytes)?;
                hasher.update(&bytes);
            }
        }
        let prefixes = ["trainer.", "optimizer.", "scheduler.", "scaler.", "ema."];
        let counts = |name: &str| {
            name != "optimizer.sharded" && prefixes.iter().any(|prefix| name.starts_with(prefix))
        };
        for (name, value) in state.values.iter().filter(|(name, _)| counts(name)) {
            hasher.update(&crate::codec::encode(&(name, value))?);
        }
        Ok(hasher.finalize().to_hex().to_string())
    }

    /// Builds a handler from a checkpoint in any form: all that [`NNHandler::state_dict`] lists but
    /// the code.
    ///
    /// Loss, metrics, data and [`NNHandler::validate_every`] are not stored; set them before
    /// training on. The auto-saver goes on if the checkpoint lies in the directory to which it
    /// saves; elsewhere it is off, with a warning, until [`NNHandler::auto_save`] is called, unless
    /// [`LoadOptions::keep_auto_saver`] says otherwise.
    ///
    /// # Collective
    /// Every rank of the group, which may have another world size than the one that saved. Then
    /// random state is seeded anew, from the seed, the rank and the step.
    ///
    /// # Errors
    /// As [`load`](fn@crate::load::load); [`ErrorKind::Mismatch`] lists every difference; of devices
    /// as [`HandlerBuilder::build`](crate::handler::HandlerBuilder::build).
    pub fn load(path: impl AsRef<Path>, options: LoadOptions) -> Result<Self> {
        let group = match &options.group {
            Some(group) => group.clone(),
            None => ProcessGroup::from_env()?,
        };
        let wanted = agree_on_load(&group, path.as_ref(), &options)?;
        let storage = options.storage.clone().unwrap_or_else(super::builder::default_storage);
        let placed = agree_on_mapped(&group, options.device, &options.device_map)?;
        let mut fresh =
            Fresh::<M> { group: group.clone(), options: &options, placed, handler: None };
        let skipped = [
            (options.skip_optimizer, Component::optimizer()),
            (options.skip_ema, Component::ema()),
            (options.skip_callbacks, Component::new(callbacks::COMPONENT)?),
        ];
        let rules = LoadRules { replicas: options.replicas, ..rules(options.lenient, &skipped)? };
        let loaded = load(&group, &*storage, &wanted, &mut fresh, &rules, Atomicity::InPlace)?;
        if group.is_coordinator() {
            report(&loaded);
        }
        let mut handler = fresh.handler.ok_or_else(|| {
            Error::new(ErrorKind::Mismatch, "the load passed without building a handler")
        })?;
        if options.lenient {
            // What the checkpoint lacks has each rank's own initial values.
            ddp::broadcast_tensors(&group, &handler.variables(|_| true))?;
            handler.parts.begin_missing(&loaded.report.missing)?;
        }
        handler.code = KeptCode::new(options.model_code);
        handler.adopt(&loaded);
        if !options.keep_auto_saver {
            handler.distrust_auto_saver(&loaded);
        }
        if options.skip_history {
            handler.history = History::begin_after(handler.epoch);
        }
        if options.skip_callbacks {
            handler.callbacks.skip();
        }
        Ok(handler)
    }

    /// Loads a checkpoint of the same model into this handler, whose auto-saver, if set, stays;
    /// where none is, that of the checkpoint goes on if the checkpoint lies in the directory to
    /// which it saves.
    ///
    /// With [`Atomicity::Atomic`] an error leaves the handler unchanged, unless placing the
    /// verified bytes itself fails; with [`Atomicity::InPlace`] unless reading had begun. Else the
    /// handler is poisoned: it refuses to train or save until a load succeeds.
    ///
    /// # Collective
    /// Every rank.
    ///
    /// # Errors
    /// As [`load`](fn@crate::load::load).
    pub fn restore(&mut self, path: impl AsRef<Path>, atomicity: Atomicity) -> Result<Loaded> {
        self.wait_for_save()?;
        let wanted = wanted_of(&self.group, path.as_ref())?;
        let (group, storage) = (self.group.clone(), self.storage.clone());
        let rules = rules(false, &[(self.optimizer.is_none(), Component::optimizer())])?;
        let has_auto_saver = self.auto_saver.is_some();
        let mut live = Live::new(self);
        let restored = load(&group, &*storage, &wanted, &mut live, &rules, atomicity);
        let touched = live.is_touched();
        match &restored {
            Ok(loaded) => {
                self.poisoned = false;
                self.adopt(loaded);
                if !has_auto_saver {
                    self.distrust_auto_saver(loaded);
                }
            }
            Err(_) => {
                self.poisoned |= touched;
                self.callbacks.forget_incoming();
            }
        }
        restored
    }

    /// A file must not choose where this program writes and removes: the stored auto-saver goes on
    /// only where it would save beside the checkpoint that was loaded.
    fn distrust_auto_saver(&mut self, loaded: &Loaded) {
        if self.auto_saver.as_ref().is_some_and(|saver| !saver.saves_beside(loaded)) {
            self.auto_saver = None;
            if self.group.is_coordinator() {
                tracing::warn!(
                    "the checkpoint was loaded from elsewhere than where its run saved \
                    automatically: call `auto_save` to go on saving"
                );
            }
        }
    }

    fn adopt(&mut self, loaded: &Loaded) {
        self.compare_code(loaded);
        self.line.adopt(loaded);
        if let Some(saver) = &mut self.auto_saver {
            saver.adopt(loaded);
        }
        self.callbacks.adopt(loaded, self.group.rank());
    }
}

fn counter(count: u64) -> Result<i64> {
    i64::try_from(count).map_err(|_| Error::new(ErrorKind::InvalidInput, "a count beyond 63 bits"))
}

/// How strictly names count, and those of which components.
fn rules(lenient: bool, skipped: &[(bool, Component)]) -> Result<LoadRules> {
    let is_wanted = |c: &Component| !skipped.iter().any(|(skip, other)| *skip && c == other);
    let callbacks = Component::new(callbacks::COMPONENT)?;
    let all = [Component::model(), Component::optimizer(), Component::ema(), callbacks];
    let any = skipped.iter().any(|(skip, _)| *skip);
    let components = any.then(|| all.into_iter().filter(is_wanted).collect());
    Ok(LoadRules { strict: !lenient, components, ..LoadRules::default() })
}

pub(super) fn report(loaded: &Loaded) {
    let report = &loaded.report;
    if !report.missing.is_empty() || !report.unexpected.is_empty() {
        tracing::warn!(missing = ?report.missing, unexpected = ?report.unexpected,
            "loaded with names on one side only");
    }
}
