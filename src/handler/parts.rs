//! The optional parts of training: schedule of the learning rate, averaged parameters, mixed
//! precision, clipping. Each is part of every checkpoint.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use crate::error::{Error, ErrorKind, Result};
use crate::handler::{LoadOptions, Model, NNHandler};
use crate::manifest::Manifest;
use crate::state::{LoadTargets, StateDict, Stateful, Values};
use crate::tensor::TensorName;
use crate::torch::{
    Clip, Ema, EmaConfig, GradScaler, GradScalerConfig, Optimizer, Precision, Scheduler,
    SchedulerConfig, SchedulerUnit,
};

const SCHEDULER: &str = "scheduler";
const SCALER: &str = "scaler";
const EMA: &str = "ema";

/// The parts that a handler may have or not.
#[derive(Debug, Default)]
pub(super) struct Parts {
    pub(super) scheduler: Option<Scheduler>,
    pub(super) scaler: Option<GradScaler>,
    pub(super) ema: Option<Ema>,
}

impl Parts {
    /// Each part that the checkpoint holds and that `options` want, to be filled by the load.
    pub(super) fn from_values<M: Model>(
        handler: &NNHandler<M>,
        options: &LoadOptions,
        values: &Values,
    ) -> Result<Self> {
        let wanted = |part: &str, skip: bool| !skip && is_stored(values, part);
        let mut parts = Self::default();
        if let Some(optimizer) = &handler.optimizer {
            if wanted(SCHEDULER, options.skip_scheduler) {
                parts.scheduler = Some(Scheduler::from_values(SCHEDULER, values, optimizer)?);
            }
            if wanted(SCALER, options.skip_scaler) {
                parts.scaler = Some(GradScaler::from_values(SCALER, values)?);
            }
        }
        if wanted(EMA, options.skip_ema) {
            parts.ema = Some(Ema::from_values(EMA, values, &handler.vars)?);
        }
        Ok(parts)
    }

    /// One epoch or step is done.
    pub(super) fn advance(
        &mut self,
        unit: SchedulerUnit,
        optimizer: &mut Optimizer,
        metric: Option<f64>,
    ) -> Result<()> {
        match &mut self.scheduler {
            Some(scheduler) if scheduler.unit() == unit => scheduler.advance(optimizer, metric),
            _ => Ok(()),
        }
    }

    pub(super) fn save(&self, state: &mut StateDict) -> Result<()> {
        if let Some(scheduler) = &self.scheduler {
            scheduler.save_values(SCHEDULER, &mut state.values)?;
        }
        if let Some(scaler) = &self.scaler {
            scaler.save_values(SCALER, &mut state.values)?;
        }
        self.ema.as_ref().map_or(Ok(()), |ema| ema.save_state(EMA, state))
    }

    /// After a lenient load: an average that was not found begins as its parameter is now.
    pub(super) fn begin_missing(&mut self, missing: &[TensorName]) -> Result<()> {
        self.ema.as_mut().map_or(Ok(()), |ema| ema.begin_missing(EMA, missing))
    }

    pub(super) fn targets<'a>(&'a mut self, targets: &mut LoadTargets<'a>) -> Result<()> {
        self.ema.as_mut().map_or(Ok(()), |ema| ema.load_targets(EMA, targets))
    }

    /// Whether [`Parts::load_values`] would take these values; changes nothing.
    pub(super) fn check_values(&self, values: &Values) -> Result<()> {
        if let Some(scheduler) = &self.scheduler {
            scheduler.check_values(SCHEDULER, values)?;
        }
        if let Some(scaler) = &self.scaler {
            scaler.check_values(SCALER, values)?;
        }
        self.ema.as_ref().map_or(Ok(()), |ema| ema.check_values(EMA, values))
    }

    pub(super) fn load_values(&mut self, values: &Values) -> Result<()> {
        if let Some(scheduler) = &mut self.scheduler {
            scheduler.load_values(SCHEDULER, values)?;
        }
        if let Some(scaler) = &mut self.scaler {
            scaler.load_values(SCALER, values)?;
        }
        let Some(ema) = &mut self.ema else { return Ok(()) };
        ema.load_values(EMA, values, &Values::new())
    }

    /// A live handler and a checkpoint must have the same parts: one that is missing would stay as
    /// it is, one that is left over would be lost, both without a word.
    pub(super) fn check_same(&self, manifest: &Manifest) -> Result<()> {
        let here = [
            (SCHEDULER, self.scheduler.is_some()),
            (SCALER, self.scaler.is_some()),
            (EMA, self.ema.is_some()),
        ];
        let one_sided = here.into_iter().filter_map(|(part, here)| {
            match (here, is_stored(manifest.values(), part)) {
                (true, false) => Some(format!("`{part}` only in the handler")),
                (false, true) => Some(format!("`{part}` only in the checkpoint")),
                _ => None,
            }
        });
        let one_sided: Vec<String> = one_sided.collect();
        if one_sided.is_empty() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Mismatch, one_sided.join(", "))
            .with_help("set up the handler like the one that saved, or use `NNHandler::load`"))
    }
}

fn is_stored(values: &Values, part: &str) -> bool {
    values.find(&format!("{part}.config")).is_some()
}

impl<M: Model> NNHandler<M> {
    /// Lets a schedule set the learning rates from now on, advancing after each epoch (after
    /// validation, whose `val_loss` [`ReduceOnPlateau`](crate::torch::ReduceOnPlateau) looks at)
    /// or each training step whose update was not skipped. The learning rates that the optimizer
    /// has now are the base.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] without an optimizer, and for settings that can never work.
    pub fn set_scheduler(
        &mut self,
        config: impl Into<SchedulerConfig>,
        unit: SchedulerUnit,
    ) -> Result<()> {
        let Some(optimizer) = &mut self.optimizer else {
            let message = "`set_scheduler` was called before `set_optimizer`";
            return Err(Error::new(ErrorKind::InvalidInput, message));
        };
        self.parts.scheduler = Some(Scheduler::new(config, unit, optimizer)?);
        Ok(())
    }

    /// The schedule of the learning rate, if set.
    pub fn scheduler(&self) -> Option<&Scheduler> {
        self.parts.scheduler.as_ref()
    }

    /// Keeps averages of the parameters from now on, updated after each training step. Validation
    /// sees them in place of the parameters; training and checkpoints keep both.
    ///
    /// # Errors
    /// As [`Ema::new`].
    pub fn set_ema(&mut self, config: EmaConfig) -> Result<()> {
        self.parts.ema = Some(Ema::new(config, &self.vars)?);
        Ok(())
    }

    /// The averages of the parameters, if kept.
    pub fn ema(&self) -> Option<&Ema> {
        self.parts.ema.as_ref()
    }

    /// Runs `work` with the averages in place of the parameters (with the parameters, if no
    /// averages are kept), which come back bit for bit, also if `work` panics.
    ///
    /// # Errors
    /// [`ErrorKind::Device`] if libtorch fails to exchange them.
    pub fn with_ema<T>(&mut self, work: impl FnOnce(&Self) -> T) -> Result<T> {
        self.swap_ema()?;
        let done = catch_unwind(AssertUnwindSafe(|| work(self)));
        let back = self.swap_ema();
        let done = done.unwrap_or_else(|panic| resume_unwind(panic));
        back.map(|()| done)
    }

    /// Makes the averages the parameters, for good: for inference after training. Training on
    /// would continue from them.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if no averages are kept.
    pub fn copy_ema_to_model(&mut self) -> Result<()> {
        let missing = || Error::new(ErrorKind::InvalidInput, "no averages of parameters are kept");
        self.before_update();
        self.parts.ema.as_mut().ok_or_else(missing)?.copy_to_model()
    }

    fn swap_ema(&mut self) -> Result<()> {
        if self.parts.ema.is_some() {
            self.before_update();
        }
        self.parts.ema.as_mut().map_or(Ok(()), Ema::swap)
    }

    /// Runs the forward pass and the loss in this precision. Default: full. Half precision also
    /// wants [`NNHandler::set_grad_scaler`]. Stored in checkpoints.
    pub fn set_precision(&mut self, precision: Precision) {
        self.steps.precision = precision;
    }

    /// Scales the loss so that gradients in half precision do not vanish; a step with an infinite
    /// or undefined gradient on any rank is skipped on all.
    ///
    /// # Errors
    /// As [`GradScaler::new`].
    pub fn set_grad_scaler(&mut self, config: GradScalerConfig) -> Result<()> {
        self.parts.scaler = Some(GradScaler::new(config)?);
        Ok(())
    }

    /// The gradient scaler, if set.
    pub fn grad_scaler(&self) -> Option<&GradScaler> {
        self.parts.scaler.as_ref()
    }

    /// Clips the averaged gradients of each step. Stored in checkpoints.
    ///
    /// # Errors
    /// As [`Clip::validate`].
    pub fn clip_gradients(&mut self, clip: Clip) -> Result<()> {
        clip.validate()?;
        self.steps.clip = Some(clip);
        Ok(())
    }
}
