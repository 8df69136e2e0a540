//! A handler as what a load fills: one that is built from the checkpoint, or a live one.
//!
//! Whatever [`NNHandler::take_values`] may refuse is checked by [`NNHandler::check_values`] first,
//! while nothing has changed yet.

use crate::error::{Error, ErrorKind, Result};
use crate::group::ProcessGroup;
use crate::handler::auto_save::AutoSaverState;
use crate::handler::checkpoint::{AUTO_SAVER, OPTIMIZER, USER};
use crate::handler::device::Placed;
use crate::handler::random::RandomNow;
use crate::handler::{
    AutoSaver, HandlerBuilder, History, InEpoch, LoadOptions, Model, NNHandler, Parts, StepSettings,
};
use crate::load::Destination;
use crate::manifest::Manifest;
use crate::state::{LoadTargets, Stateful, Values};
use crate::torch::{self, Optimizer};

/// How training steps are made.
const SETTINGS: &str = "trainer.settings";

/// What a checkpoint of a handler must state besides tensors.
struct Stored {
    epoch: u64,
    step: u64,
    seed: u64,
    history: History,
    user_values: Values,
    steps: StepSettings,
    auto_saver: Option<AutoSaver>,
}

impl Stored {
    fn parse(values: &Values) -> Result<Self> {
        let count = |name: &str| -> Result<u64> {
            u64::try_from(values.int(name)?).map_err(|_| unfit(name, "is negative"))
        };
        let epoch = count("trainer.epoch")?;
        let saver = values.find(AUTO_SAVER).map(|_| values.json::<AutoSaverState>(AUTO_SAVER));
        let auto_saver = saver.transpose()?.map(AutoSaver::from_state).transpose();
        let steps: StepSettings =
            values.find(SETTINGS).map_or(Ok(StepSettings::default()), |_| values.json(SETTINGS))?;
        steps.validate().map_err(|e| e.with_kind(ErrorKind::Mismatch))?;
        Ok(Self {
            epoch,
            step: count("trainer.step")?,
            seed: seed_of(values)?,
            history: History::load(values, epoch)?,
            user_values: user_values(values),
            steps,
            auto_saver: auto_saver.map_err(|e| e.with_kind(ErrorKind::Mismatch))?,
        })
    }
}

fn user_values(values: &Values) -> Values {
    let mut own = Values::new();
    for (name, value) in values.iter() {
        if let Some(name) = name.strip_prefix(USER) {
            own.set(name, value.clone());
        }
    }
    own
}

fn seed_of(values: &Values) -> Result<u64> {
    let seed = values.text("trainer.seed")?;
    u64::from_str_radix(&seed, 16).map_err(|_| unfit("trainer.seed", "is no seed"))
}

fn unfit(name: &str, fault: &str) -> Error {
    Error::new(ErrorKind::Mismatch, format!("value `{name}` {fault}"))
}

/// A value that is not there means that something else was saved than a handler like this one.
fn of_a_handler<T>(parsed: Result<T>) -> Result<T> {
    parsed.map_err(|error| match error.kind() {
        ErrorKind::NotFound => error.with_kind(ErrorKind::Mismatch).with_help(
            "was it saved by a handler, with model and optimizer as here? \
             `tch_checkpoint::load` takes any checkpoint",
        ),
        _ => error,
    })
}

/// A checkpoint of the weights alone has the model's values and no counters.
fn refuse_weights_only(values: &Values) -> Result<()> {
    if values.find("model.config").is_none() || values.find("trainer.epoch").is_some() {
        return Ok(());
    }
    let message = "this checkpoint holds the weights of a model only";
    Err(Error::new(ErrorKind::Mismatch, message)
        .with_help("name one that was saved in full; weights alone cannot be resumed"))
}

impl<M: Model> NNHandler<M> {
    fn targets(&mut self) -> Result<LoadTargets<'_>> {
        let mut targets = LoadTargets::new();
        torch::var_store_targets(&mut targets, "", &self.vars)?;
        if let Some(optimizer) = &mut self.optimizer {
            optimizer.load_targets(OPTIMIZER, &mut targets)?;
        }
        self.parts.targets(&mut targets)?;
        self.callbacks.targets(&mut targets)?;
        Ok(targets)
    }

    fn check_values(&self, manifest: &Manifest, rank_values: Option<&Values>) -> Result<()> {
        let values = manifest.values();
        of_a_handler(Stored::parse(values))?;
        of_a_handler(self.position(manifest))?;
        if let Some(optimizer) = &self.optimizer {
            of_a_handler(optimizer.check_values(OPTIMIZER, values))?;
        }
        of_a_handler(self.parts.check_values(values))?;
        self.callbacks.check_incoming()?;
        let Some(own) = self.own_random(manifest, rank_values) else { return Ok(()) };
        of_a_handler(self.check_random(own))
    }

    fn take_values(&mut self, manifest: &Manifest, rank_values: Option<&Values>) -> Result<()> {
        let stored = Stored::parse(manifest.values())?;
        if let Some(optimizer) = &mut self.optimizer {
            optimizer.load_values(OPTIMIZER, manifest.values(), &Values::new())?;
        }
        self.parts.load_values(manifest.values())?;
        self.continue_random(stored.seed, stored.step, self.own_random(manifest, rank_values))?;
        self.loaded_random = Some(RandomNow::of(self.device)?);
        self.in_epoch = self.position(manifest)?;
        (self.epoch, self.step, self.seed) = (stored.epoch, stored.step, stored.seed);
        self.steps = stored.steps;
        self.history = stored.history;
        self.user_values = stored.user_values;
        self.auto_saver = match (self.auto_saver.take(), stored.auto_saver) {
            (Some(mut live), Some(stored)) => {
                live.inherit(&stored);
                Some(live)
            }
            (live, stored) => live.or(stored),
        };
        Ok(())
    }

    /// How far the epoch under way had come.
    fn position(&self, manifest: &Manifest) -> Result<InEpoch> {
        InEpoch::load(manifest, self.group.rank(), self.is_same_world(manifest))
    }

    /// Whether each rank finds what it has saved. A checkpoint that was written anew as one of as
    /// many ranks was saved by others.
    fn is_same_world(&self, manifest: &Manifest) -> bool {
        manifest.world_size() == self.group.world_size() && !manifest.is_resharded()
    }

    /// Random state goes on only where each rank finds its own, and none is left over.
    fn own_random<'v>(
        &self,
        manifest: &Manifest,
        rank_values: Option<&'v Values>,
    ) -> Option<&'v Values> {
        rank_values.filter(|_| self.is_same_world(manifest))
    }
}

/// A handler that does not exist until the checkpoint's configuration is known.
pub(super) struct Fresh<'o, M: Model> {
    pub(super) group: ProcessGroup,
    pub(super) options: &'o LoadOptions,
    pub(super) placed: Placed,
    pub(super) handler: Option<NNHandler<M>>,
}

impl<M: Model> Fresh<'_, M> {
    fn build(&self, values: &Values) -> Result<NNHandler<M>> {
        let config: M::Config = values.json("model.config")?;
        let seed = seed_of(values)?;
        let mut builder = HandlerBuilder::<M>::new(config).process_group(&self.group).seed(seed);
        if let Some(storage) = &self.options.storage {
            builder = builder.storage(storage.clone());
        }
        let mut handler = builder.build_local(self.placed)?;
        if !self.options.skip_optimizer && values.find("optimizer.config").is_some() {
            let optimizer = Optimizer::of_values(OPTIMIZER, values, &handler.vars, &self.group)?;
            handler.optimizer = Some(optimizer);
        }
        handler.parts = Parts::from_values(&handler, self.options, values)?;
        Ok(handler)
    }
}

fn not_built() -> Error {
    Error::new(ErrorKind::Mismatch, "no handler was built from the checkpoint")
}

impl<M: Model> Destination for Fresh<'_, M> {
    fn prepare(&mut self, manifest: &Manifest) -> Result<()> {
        refuse_weights_only(manifest.values())?;
        let handler = self.handler.insert(of_a_handler(self.build(manifest.values()))?);
        if self.options.skip_callbacks {
            return Ok(());
        }
        handler.callbacks.expect(manifest)
    }

    fn targets(&mut self) -> Result<LoadTargets<'_>> {
        self.handler.as_mut().ok_or_else(not_built)?.targets()
    }

    fn check_values(&self, manifest: &Manifest, rank_values: Option<&Values>) -> Result<()> {
        self.handler.as_ref().ok_or_else(not_built)?.check_values(manifest, rank_values)
    }

    fn take_values(&mut self, manifest: &Manifest, rank_values: Option<&Values>) -> Result<()> {
        self.handler.as_mut().ok_or_else(not_built)?.take_values(manifest, rank_values)
    }
}

/// A handler that exists and is to become what the checkpoint holds.
pub(super) struct Live<'h, M: Model> {
    handler: &'h mut NNHandler<M>,
    is_touched: bool,
}

impl<'h, M: Model> Live<'h, M> {
    pub(super) fn new(handler: &'h mut NNHandler<M>) -> Self {
        Self { handler, is_touched: false }
    }

    /// Whether any attempt began to change the handler.
    pub(super) fn is_touched(&self) -> bool {
        self.is_touched
    }
}

impl<M: Model> Destination for Live<'_, M> {
    fn prepare(&mut self, manifest: &Manifest) -> Result<()> {
        refuse_weights_only(manifest.values())?;
        self.handler.callbacks.expect(manifest)
    }

    fn targets(&mut self) -> Result<LoadTargets<'_>> {
        self.handler.targets()
    }

    fn begin_change(&mut self) {
        self.is_touched = true;
    }

    fn check_values(&self, manifest: &Manifest, rank_values: Option<&Values>) -> Result<()> {
        if self.handler.optimizer.is_some() {
            self.handler.parts.check_same(manifest)?;
        }
        self.handler.check_values(manifest, rank_values)
    }

    fn take_values(&mut self, manifest: &Manifest, rank_values: Option<&Values>) -> Result<()> {
        self.handler.take_values(manifest, rank_values)
    }
}
