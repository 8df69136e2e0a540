//! [`NNHandler`]: a training loop over ranks that saves and resumes by itself.

use std::collections::HashSet;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use tch::{Device, Tensor, nn};

use crate::autosave::Every;
use crate::error::{Error, ErrorKind, Result};
use crate::group::ProcessGroup;
use crate::state::Values;
use crate::storage::Storage;
use crate::torch::{Optimizer, OptimizerSpec, ParamGroupConfig};

mod alike;
mod auto_save;
mod begin_anew;
mod builder;
mod callbacks;
mod checkpoint;
mod code;
mod data;
mod ddp;
mod destination;
mod device;
mod forms;
mod history;
mod in_epoch;
mod model;
mod parts;
mod preempt;
mod progress;
mod random;
mod resume_check;
mod setup;
mod train;
mod weights;

pub(crate) use self::builder::seed_of_rank;
use self::code::KeptCode;
pub use crate::autosave::{KeepBest, Retention};
pub use crate::checkpointer::{AsyncMode, InFlight};
pub use auto_save::AutoSaver;
use auto_save::{Beside, Line};
pub use builder::HandlerBuilder;
use callbacks::Callbacks;
pub use callbacks::{
    Callback, CallbackContext, CallbackReport, CallbackState, EarlyStopping, HistoryLogger,
    LearningRateLogger, Mode, ModelCheckpoint, Origin, SaveRequest, TensorBoardLogger,
};
pub use checkpoint::LoadOptions;
pub use data::{Dataset, Loader, TensorDataset, epoch_order, shard};
#[cfg(feature = "nccl")]
pub use ddp::check_nccl;
pub use ddp::{average_gradients, broadcast_tensors};
pub use device::choose_device;
pub use forms::InitOptions;
pub use history::History;
pub use model::Model;
pub use resume_check::{Difference, check_resume};

use in_epoch::InEpoch;
use parts::Parts;
use preempt::Preemption;
use random::RandomNow;
use train::StepSettings;

/// Loss of a batch: output and target to a scalar, the mean over the samples of the batch.
pub type LossFn = Box<dyn Fn(&Tensor, &Tensor) -> Tensor>;
/// Metric of a batch: output and target to a number, the mean over the samples of the batch.
pub type MetricFn = Box<dyn Fn(&Tensor, &Tensor) -> f64>;

/// A data set with the way in which it is cut into batches.
#[derive(Clone)]
struct Feed {
    dataset: Rc<dyn Dataset>,
    loader: Loader,
}

/// A model under training on this rank, with everything that a checkpoint has to hold.
///
/// One per rank; the model is replicated (DDP): parameters start equal and gradients are averaged
/// at every step. Methods that say *collective* must be called by every rank in the same order.
///
/// ```no_run
/// use tch_checkpoint::handler::{LoadOptions, Loader, Model, NNHandler, TensorDataset};
/// use tch_checkpoint::torch::AdamW;
/// use tch_checkpoint::{ProcessGroup, Result};
/// use tch::{nn, nn::Module, Tensor};
///
/// struct Linear(nn::Linear);
/// impl Model for Linear {
///     type Config = i64;
///     fn new(path: &nn::Path<'_>, classes: &i64) -> Self {
///         Self(nn::linear(path / "linear", 64, *classes, Default::default()))
///     }
///     fn forward(&self, input: &Tensor, _train: bool) -> Tensor {
///         self.0.forward(input)
///     }
/// }
///
/// fn train(images: Tensor, labels: Tensor) -> Result<()> {
///     let group = ProcessGroup::from_env()?;
///     let mut handler = NNHandler::<Linear>::builder(10).process_group(&group).build()?;
///     handler.set_optimizer(AdamW { lr: 1e-3, ..Default::default() })?;
///     handler.set_loss_fn(|output, target| output.cross_entropy_for_logits(target));
///     let data = TensorDataset::new(images, labels)?;
///     handler.set_train_loader(data, Loader { shuffle: true, ..Default::default() });
///     handler.auto_save(5, "checkpoints", "epoch{epoch:02d}_loss{loss:.4f}")?.overwrite(true);
///     handler.train(30)?;
///     handler.save("models/final")?;
///     let _again = NNHandler::<Linear>::load("models/final", LoadOptions::default())?;
///     Ok(())
/// }
/// ```
pub struct NNHandler<M: Model> {
    group: ProcessGroup,
    storage: Arc<dyn Storage>,
    device: Device,
    one_gpu_each: bool,
    seed: u64,
    config: M::Config,
    vars: nn::VarStore,
    model: M,
    optimizer: Option<Optimizer>,
    parts: Parts,
    loss_fn: Option<LossFn>,
    metrics: Vec<(String, MetricFn)>,
    train_feed: Option<Feed>,
    val_feed: Option<Feed>,
    validate_every: u64,
    auto_saver: Option<AutoSaver>,
    beside: Beside,
    line: Line,
    preemption: Preemption,
    callbacks: Callbacks,
    /// Epochs completed, over all runs.
    epoch: u64,
    /// Training steps completed, over all runs.
    step: u64,
    /// How far the epoch under way has come.
    in_epoch: InEpoch,
    steps: StepSettings,
    history: History,
    user_values: Values,
    quiet: bool,
    code: KeptCode,
    /// Whether saves compare replicas first.
    audit: bool,
    copy_unchanged: bool,
    /// The generator's state when a load had ended, until training begins.
    loaded_random: Option<RandomNow>,
    /// Set when a load or a training step failed after it began to change the model.
    poisoned: bool,
}

impl<M: Model> NNHandler<M> {
    /// Starts building a handler for a new model.
    pub fn builder(config: M::Config) -> HandlerBuilder<M> {
        HandlerBuilder::new(config)
    }

    /// Sets the optimizer, with fresh state, over all trainable variables. With
    /// [`Sharded`](crate::torch::Sharded) every rank keeps a share of its state. A schedule of the
    /// learning rate goes with the former optimizer: set it anew afterwards.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for hyperparameters out of range.
    pub fn set_optimizer(&mut self, optimizer: impl Into<OptimizerSpec>) -> Result<()> {
        self.set_optimizer_groups(optimizer, &[])
    }

    /// The same with a learning rate or weight decay of its own for some parameters, by name.
    /// Group 0 is what no group names; then come the given ones. The groups, with what is in
    /// them, are stored and come back with [`NNHandler::load`].
    ///
    /// # Errors
    /// As [`Optimizer::with_groups`].
    pub fn set_optimizer_groups(
        &mut self,
        optimizer: impl Into<OptimizerSpec>,
        groups: &[ParamGroupConfig],
    ) -> Result<()> {
        self.optimizer = Some(Optimizer::shared(optimizer, &self.vars, groups, &self.group)?);
        self.parts.scheduler = None;
        Ok(())
    }

    /// Sets the loss, a mean over the samples of a batch.
    pub fn set_loss_fn(&mut self, loss: impl Fn(&Tensor, &Tensor) -> Tensor + 'static) {
        self.loss_fn = Some(Box::new(loss));
    }

    /// Adds a metric, a mean over the samples of a batch; it appears in logs, history and names
    /// of checkpoints as `name` and `val_name`, which no other number may have ([`Self::train`]
    /// refuses it). A second metric of the name replaces the first.
    pub fn add_metric(
        &mut self,
        name: impl Into<String>,
        metric: impl Fn(&Tensor, &Tensor) -> f64 + 'static,
    ) {
        let name = name.into();
        self.metrics.retain(|(other, _)| *other != name);
        self.metrics.push((name, Box::new(metric)));
    }

    /// Sets the training data: the same samples on every rank.
    pub fn set_train_loader(&mut self, dataset: impl Dataset + 'static, loader: Loader) {
        self.train_feed = Some(Feed { dataset: Rc::new(dataset), loader });
    }

    /// Sets the validation data: the same samples on every rank.
    pub fn set_val_loader(&mut self, dataset: impl Dataset + 'static, loader: Loader) {
        self.val_feed = Some(Feed { dataset: Rc::new(dataset), loader });
    }

    /// Validates after every `epochs` epochs, and after the last of each `train`. Default 1;
    /// 0 means never. Not stored in checkpoints.
    pub fn validate_every(&mut self, epochs: u64) {
        self.validate_every = epochs;
    }

    /// Saves by itself while training: after every `interval` epochs (counted over all runs), 0 or
    /// `None` = off, -1 = only after the last epoch of each `train`, or as an [`Every`] says
    /// (steps, minutes); and, when on, after the last epoch too, also if training stops early.
    /// `path` is the directory of checkpoints, `name` a template in Python's format language over
    /// epoch, step, loss, val_loss, epoch_time, lr and the metrics. In a checkpoint saved inside
    /// an epoch, `epoch` is the one under way, `loss` its mean so far, and `val_loss` is `nan`.
    ///
    /// ```no_run
    /// # use tch_checkpoint::handler::{Model, NNHandler};
    /// # fn example<M: Model>(handler: &mut NNHandler<M>) -> tch_checkpoint::Result<()> {
    /// handler.auto_save(5, "checkpoints", "epoch{epoch:03d}_loss{val_loss:.4f}")?.overwrite(true);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for an interval below -1, and for a template with an unknown
    /// field, a bad format, `/` or `..`. Add metrics before, so that their names are known.
    pub fn auto_save(
        &mut self,
        interval: impl TryInto<Every, Error: Into<Error>>,
        path: impl AsRef<Path>,
        name: &str,
    ) -> Result<&mut AutoSaver> {
        let interval = interval.try_into().map_err(Into::into)?;
        let mut saver = AutoSaver::new(interval, path.as_ref(), name, &self.metric_names())?;
        self.land_save();
        if let Some(before) = &self.auto_saver {
            saver.inherit(before);
        }
        Ok(self.auto_saver.insert(saver))
    }

    /// The auto-saver, if one is set (also after a load).
    pub fn auto_saver(&mut self) -> Option<&mut AutoSaver> {
        self.auto_saver.as_mut()
    }

    /// Turns auto-saving off.
    pub fn disable_auto_save(&mut self) {
        self.land_save();
        self.auto_saver = None;
    }

    /// Output of the model for a batch, without gradients, in evaluation mode.
    pub fn predict(&self, input: &Tensor) -> Tensor {
        tch::no_grad(|| self.model.forward(&input.to_device(self.device), false))
    }

    /// The model.
    pub fn model(&self) -> &M {
        &self.model
    }

    /// Its variables.
    pub fn vars(&self) -> &nn::VarStore {
        &self.vars
    }

    /// The configuration that built it.
    pub fn config(&self) -> &M::Config {
        &self.config
    }

    /// The device of this rank.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The process group.
    pub fn process_group(&self) -> &ProcessGroup {
        &self.group
    }

    /// The optimizer, if set.
    pub fn optimizer(&self) -> Option<&Optimizer> {
        self.optimizer.as_ref()
    }

    /// Epochs completed, over all runs.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Training steps completed, over all runs.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Losses and metrics of all epochs, over all runs.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// Values of your own, stored with every checkpoint and there again after a load: a name of the
    /// run, a tokenizer's settings. They must be equal on every rank when saving.
    pub fn user_values(&self) -> &Values {
        &self.user_values
    }

    /// The same, to set some.
    pub fn user_values_mut(&mut self) -> &mut Values {
        &mut self.user_values
    }

    fn metric_names(&self) -> Vec<String> {
        self.metrics.iter().map(|(name, _)| name.clone()).collect()
    }

    /// Trainable variables in order of name, the order of everything that ranks exchange.
    fn parameters(&self) -> Vec<Tensor> {
        self.variables(|tensor| tensor.requires_grad())
    }

    /// The variables that were never to be trained (running statistics), in order of name. Frozen
    /// parameters are none of them: they do not change.
    fn buffers(&self) -> Vec<Tensor> {
        let trainable = self.vars.trainable_variables();
        let trainable: HashSet<_> = trainable.iter().map(|tensor| tensor.data_ptr()).collect();
        self.variables(|tensor| !trainable.contains(&tensor.data_ptr()))
    }

    fn variables(&self, wanted: impl Fn(&Tensor) -> bool) -> Vec<Tensor> {
        let mut named: Vec<_> = self.vars.variables().into_iter().collect();
        named.sort_by(|a, b| a.0.cmp(&b.0));
        named.into_iter().map(|(_, tensor)| tensor).filter(wanted).collect()
    }

    fn refuse_if_poisoned(&self) -> Result<()> {
        if !self.poisoned {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Poisoned, "an earlier load or training step failed half-way")
            .with_help("load a checkpoint successfully before training or saving"))
    }
}
