//! A handler as a checkpoint: what is saved, and loading it back, fresh or into a live handler.

use std::any::type_name;
use std::path::Path;
use std::sync::Arc;

use tch::Device;

use crate::catalog::{CheckpointPath, Wanted};
use crate::error::{Error, ErrorKind, Result};
use crate::group::ProcessGroup;
use crate::handler::auto_save::AutoSaverState;
use crate::handler::builder::seed_of_rank;
use crate::handler::{AutoSaver, HandlerBuilder, History, Model, NNHandler};
use crate::load::{Atomicity, Destination, Loaded, load};
use crate::manifest::Manifest;
use crate::plan::OnExisting;
use crate::plan::load::LoadRules;
use crate::save::{Checkpoint, SaveOptions, save};
use crate::state::{LoadTargets, StateDict, Stateful, Value, Values};
use crate::storage::Storage;
use crate::tensor::Component;
use crate::torch::{self, Optimizer, OptimizerConfig};

/// Prefix of the names of optimizer tensors and values.
const OPTIMIZER: &str = "optimizer";

/// How a checkpoint is loaded. `Default` is a strict load of everything, on the device of each
/// rank, by the ranks of this process's launcher.
#[derive(Default)]
pub struct LoadOptions {
    /// The ranks that load together. Default: [`ProcessGroup::from_env`]; with
    /// [`ProcessGroup::solo`] one rank loads alone.
    pub group: Option<ProcessGroup>,
    /// The device of this rank. Default: `cuda:(local rank mod visible devices)`, else the CPU.
    pub device: Option<Device>,
    /// Where checkpoints are kept. Default: the file system.
    pub storage: Option<Arc<dyn Storage>>,
    /// Accept names on one side only: tensors that the checkpoint lacks keep their initial
    /// values, others are ignored; both are logged. Shapes and dtypes must match in any case.
    /// Default: no.
    pub lenient: bool,
    /// Leave the optimizer out: it gets fresh state when set. Default: no.
    pub skip_optimizer: bool,
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
    /// As [`save`](fn@crate::save::save); [`ErrorKind::Poisoned`]; [`ErrorKind::Unsupported`] for
    /// tensors that cannot be stored, before anything is written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<Checkpoint> {
        let path = CheckpointPath::parse(path)?;
        self.save_as(&path, OnExisting::Replace)
    }

    pub(super) fn save_as(
        &self,
        path: &CheckpointPath,
        on_existing: OnExisting,
    ) -> Result<Checkpoint> {
        self.refuse_if_poisoned()?;
        let options = SaveOptions {
            step: self.step,
            epoch: self.epoch,
            on_existing,
            libtorch_version: torch::libtorch_version(),
        };
        save(&self.group, self.storage.as_ref(), path, &self.state_dict()?, &options)
    }

    /// Model, optimizer, counters, history, auto-saver, and this rank's random state. No tensor
    /// is copied.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for tensors that cannot be stored.
    pub fn state_dict(&self) -> Result<StateDict> {
        let mut state = StateDict::new();
        torch::add_var_store(&mut state, &Component::model(), "", &self.vars)?;
        if let Some(optimizer) = &self.optimizer {
            optimizer.save_state(OPTIMIZER, &mut state)?;
        }
        let values = &mut state.values;
        values.set("model.type", type_name::<M>());
        values.set("model.config", Value::json(&self.config)?);
        values.set("trainer.epoch", counter(self.epoch)?);
        values.set("trainer.step", counter(self.step)?);
        // A seed uses all 64 bits, which no integer of JSON readers is sure to keep.
        values.set("trainer.seed", format!("{:016x}", self.seed));
        self.history.save(values);
        if let Some(saver) = &self.auto_saver {
            values.set("auto_saver", Value::json(&saver.state())?);
        }
        state.rank_values.set("rng.cpu", torch::cpu_rng_state()?);
        if let Some(index) = cuda_index(self.device) {
            state.rank_values.set("rng.cuda", torch::cuda_rng_state(index)?);
        }
        Ok(state)
    }

    /// BLAKE3 over parameters, buffers, optimizer state and counters: equal exactly if training
    /// would go on equally, bit for bit, up to random state. Reads every tensor.
    ///
    /// # Errors
    /// [`ErrorKind::Device`] if a copy from the device fails.
    pub fn state_hash(&self) -> Result<String> {
        let state = self.state_dict()?;
        let mut hasher = blake3::Hasher::new();
        for (name, boxes) in state.tensors() {
            for entry in boxes {
                hasher.update(format!("{name}\0{}\0", entry.spec).as_bytes());
                let len = usize::try_from(entry.spec.size_bytes()).unwrap_or(usize::MAX);
                let mut bytes = crate::catalog::zeroed(len)?;
                entry.source.read_into(0, &mut bytes)?;
                hasher.update(&bytes);
            }
        }
        hasher.update(&self.epoch.to_le_bytes()).update(&self.step.to_le_bytes());
        Ok(hasher.finalize().to_hex().to_string())
    }

    /// Builds a handler from a checkpoint: model, optimizer, counters, history, auto-saver and
    /// random state. Loss, metrics and data are not stored; set them before training on.
    ///
    /// # Collective
    /// Every rank of the group, which may have another world size than the one that saved. Then
    /// random state is seeded anew, from the seed, the rank and the step.
    ///
    /// # Errors
    /// As [`load`](fn@crate::load::load); [`ErrorKind::Mismatch`] lists every difference.
    pub fn load(path: impl AsRef<Path>, options: LoadOptions) -> Result<Self> {
        let wanted = Wanted::parse(path)?;
        let group = match &options.group {
            Some(group) => group.clone(),
            None => ProcessGroup::from_env()?,
        };
        let storage = options.storage.clone().unwrap_or_else(super::builder::default_storage);
        let mut fresh = Fresh::<M> { group: group.clone(), options: &options, handler: None };
        let rules = rules(options.lenient, options.skip_optimizer);
        let loaded = load(&group, &*storage, &wanted, &mut fresh, &rules, Atomicity::InPlace)?;
        report(&loaded);
        let mut handler = fresh.handler.ok_or_else(|| {
            Error::new(ErrorKind::Mismatch, "the load passed without building a handler")
        })?;
        handler.adopt(&loaded);
        Ok(handler)
    }

    /// Loads a checkpoint of the same model into this handler. On an error up to the last vote
    /// the handler is unchanged; should placing itself fail, or with [`Atomicity::InPlace`], the
    /// handler is poisoned: it refuses to train or save until a load succeeds.
    ///
    /// # Collective
    /// Every rank.
    ///
    /// # Errors
    /// As [`load`](fn@crate::load::load).
    pub fn restore(&mut self, path: impl AsRef<Path>, atomicity: Atomicity) -> Result<Loaded> {
        let wanted = Wanted::parse(path)?;
        let (group, storage) = (self.group.clone(), self.storage.clone());
        let rules = rules(false, self.optimizer.is_none());
        let restored = load(&group, &*storage, &wanted, &mut Live(self), &rules, atomicity);
        match &restored {
            Ok(loaded) => {
                self.poisoned = false;
                self.adopt(loaded);
            }
            Err(error) => {
                let changed = atomicity == Atomicity::InPlace || error.phase() == Some("place");
                self.poisoned |= changed;
            }
        }
        restored
    }

    fn adopt(&mut self, loaded: &Loaded) {
        if let Some(saver) = &mut self.auto_saver {
            saver.adopt(loaded);
        }
    }

    fn targets(&mut self) -> Result<LoadTargets<'_>> {
        let mut targets = LoadTargets::new();
        torch::var_store_targets(&mut targets, "", &self.vars)?;
        if let Some(optimizer) = &mut self.optimizer {
            optimizer.load_targets(OPTIMIZER, &mut targets)?;
        }
        Ok(targets)
    }

    fn take_values(&mut self, manifest: &Manifest, rank_values: Option<&Values>) -> Result<()> {
        let values = manifest.values();
        let counters = Counters::parse(values)?;
        let saver = saver_state(values)?.map(AutoSaver::from_state).transpose()?;
        let history = History::load(values, usize::try_from(counters.epoch).unwrap_or(0))?;
        if let Some(optimizer) = &mut self.optimizer {
            optimizer.load_values(OPTIMIZER, values, &Values::new())?;
        }
        match rank_values.filter(|_| manifest.world_size() == self.group.world_size()) {
            Some(own) => {
                torch::set_cpu_rng_state(&own.bytes("rng.cpu")?)?;
                // Saved without CUDA: there is no state to restore.
                let saved = own.find("rng.cuda").and_then(|_| cuda_index(self.device));
                if let Some(index) = saved {
                    torch::set_cuda_rng_state(index, &own.bytes("rng.cuda")?)?;
                }
            }
            None => {
                let seed = seed_of_rank(counters.seed, Some(self.group.rank()));
                tch::manual_seed(seed.wrapping_add(i64::try_from(counters.step).unwrap_or(0)));
            }
        }
        (self.epoch, self.step, self.seed) = (counters.epoch, counters.step, counters.seed);
        self.history = history;
        self.auto_saver = saver.or(self.auto_saver.take());
        Ok(())
    }
}

/// What a checkpoint of a handler must state; parsed before anything changes.
struct Counters {
    epoch: u64,
    step: u64,
    seed: u64,
}

impl Counters {
    fn parse(values: &Values) -> Result<Self> {
        let count = |name: &str| -> Result<u64> {
            u64::try_from(values.int(name)?).map_err(|_| unfit(name, "is negative"))
        };
        let seed = values.text("trainer.seed")?;
        let seed =
            u64::from_str_radix(&seed, 16).map_err(|_| unfit("trainer.seed", "is no seed"))?;
        Ok(Self { epoch: count("trainer.epoch")?, step: count("trainer.step")?, seed })
    }
}

fn saver_state(values: &Values) -> Result<Option<AutoSaverState>> {
    values.find("auto_saver").map(|_| values.json("auto_saver")).transpose()
}

fn cuda_index(device: Device) -> Option<u16> {
    match device {
        Device::Cuda(index) => u16::try_from(index).ok(),
        _ => None,
    }
}

fn counter(count: u64) -> Result<i64> {
    i64::try_from(count).map_err(|_| unfit("trainer", "counts beyond 63 bits"))
}

fn unfit(name: &str, fault: &str) -> Error {
    Error::new(ErrorKind::Mismatch, format!("value `{name}` {fault}"))
}

/// Which names count, and how strictly.
fn rules(lenient: bool, skip_optimizer: bool) -> LoadRules {
    let components = skip_optimizer.then(|| vec![Component::model()]);
    LoadRules { strict: !lenient, components }
}

fn report(loaded: &Loaded) {
    let report = &loaded.report;
    if !report.missing.is_empty() || !report.unexpected.is_empty() {
        tracing::warn!(missing = ?report.missing, unexpected = ?report.unexpected,
            "loaded with names on one side only");
    }
}

/// What can be checked of a checkpoint's values before a handler changes.
fn check_values(manifest: &Manifest, rank_values: Option<&Values>) -> Result<()> {
    Counters::parse(manifest.values())?;
    saver_state(manifest.values())?.map(AutoSaver::from_state).transpose()?;
    if let Some(own) = rank_values {
        own.bytes("rng.cpu")?;
    }
    Ok(())
}

/// A handler that does not exist until the checkpoint's configuration is known.
struct Fresh<'o, M: Model> {
    group: ProcessGroup,
    options: &'o LoadOptions,
    handler: Option<NNHandler<M>>,
}

impl<M: Model> Destination for Fresh<'_, M> {
    fn prepare(&mut self, manifest: &Manifest) -> Result<()> {
        let values = manifest.values();
        let seed = Counters::parse(values)?.seed;
        let config: M::Config = values.json("model.config")?;
        let mut builder = HandlerBuilder::<M>::new(config).process_group(&self.group).seed(seed);
        if let Some(device) = self.options.device {
            builder = builder.device(device);
        }
        if let Some(storage) = &self.options.storage {
            builder = builder.storage(storage.clone());
        }
        let mut handler = builder.build_local()?;
        if !self.options.skip_optimizer && values.find("optimizer.config").is_some() {
            let config: OptimizerConfig = values.json("optimizer.config")?;
            handler.optimizer = Some(Optimizer::new(config, &handler.vars)?);
        }
        self.handler = Some(handler);
        Ok(())
    }

    fn targets(&mut self) -> Result<LoadTargets<'_>> {
        match &mut self.handler {
            Some(handler) => handler.targets(),
            None => Ok(LoadTargets::new()),
        }
    }

    fn check_values(&self, manifest: &Manifest, rank_values: Option<&Values>) -> Result<()> {
        check_values(manifest, rank_values)
    }

    fn take_values(&mut self, manifest: &Manifest, rank_values: Option<&Values>) -> Result<()> {
        match &mut self.handler {
            Some(handler) => handler.take_values(manifest, rank_values),
            None => Ok(()),
        }
    }
}

/// A handler that exists and is to become what the checkpoint holds.
struct Live<'h, M: Model>(&'h mut NNHandler<M>);

impl<M: Model> Destination for Live<'_, M> {
    fn targets(&mut self) -> Result<LoadTargets<'_>> {
        self.0.targets()
    }

    fn check_values(&self, manifest: &Manifest, rank_values: Option<&Values>) -> Result<()> {
        check_values(manifest, rank_values)
    }

    fn take_values(&mut self, manifest: &Manifest, rank_values: Option<&Values>) -> Result<()> {
        self.0.take_values(manifest, rank_values)
    }
}
