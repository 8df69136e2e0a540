//! Building a handler: what must be decided before the model exists.

use std::sync::Arc;

use tch::{Device, Tensor, nn};

use crate::error::{Error, ErrorKind, Result};
use crate::group::{Channel, ProcessGroup};
use crate::handler::auto_save::{Beside, Line};
use crate::handler::device::{Placed, agree_on_device};
use crate::handler::{
    Callbacks, History, InEpoch, KeptCode, Model, NNHandler, Parts, Preemption, StepSettings, ddp,
};
use crate::rank::Rank;
use crate::state::Values;
use crate::storage::{LocalStorage, Storage};

/// Builds an [`NNHandler`].
#[must_use]
pub struct HandlerBuilder<M: Model> {
    config: M::Config,
    group: Option<ProcessGroup>,
    device: Option<Device>,
    storage: Option<Arc<dyn Storage>>,
    seed: u64,
}

impl<M: Model> HandlerBuilder<M> {
    pub(super) fn new(config: M::Config) -> Self {
        Self { config, group: None, device: None, storage: None, seed: 0 }
    }

    /// The ranks that train together. Default: those of this process's launcher
    /// ([`ProcessGroup::from_env`]).
    pub fn process_group(mut self, group: &ProcessGroup) -> Self {
        self.group = Some(group.clone());
        self
    }

    /// The device of this rank. Default: `cuda:(local rank mod visible devices)`, else the CPU.
    pub fn device(mut self, device: Device) -> Self {
        self.device = Some(device);
        self
    }

    /// Where checkpoints are kept. Default: the file system.
    pub fn storage(mut self, storage: Arc<dyn Storage>) -> Self {
        self.storage = Some(storage);
        self
    }

    /// Seed of initial values, data order and dropout. Default 0.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Builds the model on this rank's device and gives every rank the coordinator's parameters.
    ///
    /// Seeds libtorch's generator of this process: with the seed while the model is built, then
    /// with one that also depends on the rank.
    ///
    /// # Collective
    /// Every rank.
    ///
    /// # Errors
    /// From joining the process group, and from the broadcast; [`ErrorKind::InvalidInput`] for a
    /// CUDA device beyond those that there are, and for one that another rank has as well, unless
    /// `TCH_CHECKPOINT_SHARE_GPU` is 1 on all ranks; [`ErrorKind::Device`] if only some ranks have
    /// one; [`ErrorKind::Unsupported`] for variables that cannot be sent to other ranks.
    pub fn build(mut self) -> Result<NNHandler<M>> {
        let group = match self.group.take() {
            Some(group) => group,
            None => ProcessGroup::from_env()?,
        };
        self.group = Some(group.clone());
        let placed = agree_on_device(&group, self.device)?;
        let mut built = None;
        let build = || {
            let handler = self.build_local(placed)?;
            let variables = handler.describe_variables();
            built = Some(handler);
            Ok(variables)
        };
        group.phase_all(Channel::Training, "build", build, |all| same_variables(&all))?;
        let handler = built.ok_or_else(|| {
            Error::new(ErrorKind::Disagreement, "phase build passed without a handler")
        })?;
        ddp::broadcast_tensors(&group, &handler.variables(|_| true))?;
        Ok(handler)
    }

    /// The handler with this rank's own initial parameters, on the device that all have agreed on.
    pub(super) fn build_local(self, placed: Placed) -> Result<NNHandler<M>> {
        let group = match self.group {
            Some(group) => group,
            None => ProcessGroup::from_env()?,
        };
        let Placed { device, one_gpu_each } = placed;
        tch::manual_seed(seed_of_rank(self.seed, None));
        let vars = nn::VarStore::new(device);
        let model = M::new(&vars.root(), &self.config);
        tch::manual_seed(seed_of_rank(self.seed, Some(group.rank())));
        Ok(NNHandler {
            storage: self.storage.unwrap_or_else(default_storage),
            group,
            device,
            one_gpu_each,
            seed: self.seed,
            config: self.config,
            vars,
            model,
            optimizer: None,
            parts: Parts::default(),
            loss_fn: None,
            metrics: Vec::new(),
            train_feed: None,
            val_feed: None,
            validate_every: 1,
            auto_saver: None,
            beside: Beside::default(),
            line: Line::default(),
            preemption: Preemption::default(),
            callbacks: Callbacks::default(),
            epoch: 0,
            step: 0,
            in_epoch: InEpoch::default(),
            steps: StepSettings::default(),
            history: History::default(),
            user_values: Values::new(),
            quiet: false,
            code: KeptCode::default(),
            audit: false,
            copy_unchanged: false,
            loaded_random: None,
            poisoned: false,
        })
    }
}

/// Name of a variable, with kind and shape.
type Variable = (String, String);

impl<M: Model> NNHandler<M> {
    /// What this rank's model consists of, in order of name.
    fn describe_variables(&self) -> Vec<Variable> {
        let describe = |tensor: &Tensor| format!("{:?} {:?}", tensor.kind(), tensor.size());
        let named = self.vars.variables().into_iter();
        let mut described: Vec<_> = named.map(|(name, t)| (name, describe(&t))).collect();
        described.sort();
        described
    }
}

/// Coordinator: whether every rank has built the same model.
fn same_variables(all: &[Vec<Variable>]) -> Result<()> {
    let Some(ours) = all.first() else { return Ok(()) };
    let Some((theirs, rank)) = all.iter().zip(0..).find(|(theirs, _)| *theirs != ours) else {
        return Ok(());
    };
    let differing = theirs.iter().find(|variable| !ours.contains(variable));
    let differing = differing.or_else(|| ours.iter().find(|variable| !theirs.contains(variable)));
    let message = match differing {
        Some((name, form)) => format!("not every rank has the variable `{name}`, {form}"),
        None => "variables differ in order".to_owned(),
    };
    Err(Error::new(ErrorKind::Disagreement, message)
        .at_rank(Rank::new(rank))
        .with_help("give every rank the same configuration"))
}

/// Seeds for libtorch: one for building the model (`None`, equal on every rank), one per rank for
/// everything random afterwards.
pub(crate) fn seed_of_rank(seed: u64, rank: Option<Rank>) -> i64 {
    let mut hasher = blake3::Hasher::new_derive_key("tch-checkpoint 2026 seed of a rank");
    hasher.update(&seed.to_le_bytes());
    hasher.update(&rank.map_or(u64::MAX, |r| u64::from(r.get())).to_le_bytes());
    let mut bytes = [0; 8];
    hasher.finalize_xof().fill(&mut bytes);
    i64::from_le_bytes(bytes)
}

pub(super) fn default_storage() -> Arc<dyn Storage> {
    Arc::new(LocalStorage::new())
}
