//! Schedulers of the learning rate. They give what PyTorch's give, from the learning rates of the
//! start and a position, so that a resumed run continues bit for bit.

mod config;
mod cosine;
mod decay;
mod one_cycle;
mod plateau;
mod state;
#[cfg(test)]
mod tests;
mod warmup;

pub use config::{SchedulerConfig, SchedulerUnit};
pub use cosine::{CosineLr, CosineRestarts};
pub use decay::{ExponentialLr, MultiStepLr, StepLr};
pub use one_cycle::{Anneal, OneCycle};
pub use plateau::{PlateauMode, ReduceOnPlateau, ThresholdMode};
pub use warmup::Warmup;

use self::config::is_rate;
use self::plateau::Seen;
use super::Optimizer;
use crate::error::{Error, ErrorKind, Result};

/// Sets the learning rates of an [`Optimizer`] as training goes on.
///
/// Every parameter group has the base learning rate that it had at [`Scheduler::new`]; weights are
/// trained at position `p` (0 first) with what the settings make of base and `p`. A learning rate
/// set by hand therefore lasts until the next [`Scheduler::advance`] (a new scheduler starts from
/// it), except under [`ReduceOnPlateau`], which scales the learning rate that it finds.
///
/// # Example
/// ```
/// use tch::{Device, nn};
/// use tch_checkpoint::torch::{CosineLr, Optimizer, Scheduler, SchedulerUnit, Sgd, Warmup};
///
/// let store = nn::VarStore::new(Device::Cpu);
/// let mut optimizer = Optimizer::new(Sgd { lr: 0.1, ..Sgd::default() }, &store)?;
/// let cosine = CosineLr { t_max: 8, ..CosineLr::default() };
/// let config = Warmup { start_factor: 0.5, steps: 2, then: Some(Box::new(cosine.into())) };
/// let mut scheduler = Scheduler::new(config, SchedulerUnit::Epoch, &mut optimizer)?;
/// let mut used = Vec::new();
/// for _epoch in 0..10 {
///     used.push(optimizer.lr());
///     scheduler.advance(&mut optimizer, None)?;
/// }
/// assert_eq!(used[..3], [0.05, 0.1 * 0.75, 0.1]);
/// assert_eq!(optimizer.lr(), 0.0);
/// # Ok::<(), tch_checkpoint::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Scheduler {
    config: SchedulerConfig,
    unit: SchedulerUnit,
    /// One per parameter group.
    base_lrs: Vec<f64>,
    steps_done: u64,
    /// Exactly where the settings contain a [`ReduceOnPlateau`].
    seen: Option<Seen>,
}

impl Scheduler {
    /// A scheduler at position 0, whose learning rates it sets (warm-up and one-cycle do not begin
    /// with the base).
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for settings that can never work, such as [`ReduceOnPlateau`]
    /// with [`SchedulerUnit::Step`], and for learning rates that are negative or not finite.
    pub fn new(
        config: impl Into<SchedulerConfig>,
        unit: SchedulerUnit,
        optimizer: &mut Optimizer,
    ) -> Result<Self> {
        let config = config.into();
        config.validate(unit)?;
        let base_lrs: Vec<f64> = optimizer.groups().iter().map(|group| group.lr).collect();
        if let Some(lr) = base_lrs.iter().find(|lr| !is_rate(**lr)) {
            let message = format!("a scheduler cannot start from a learning rate of {lr}");
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        let seen = config.plateau().map(Seen::nothing);
        let made = Self { config, unit, base_lrs, steps_done: 0, seen };
        made.set_lrs(optimizer, 0)?;
        Ok(made)
    }

    /// One epoch or step is done: sets the learning rates of the next. `metric` is for
    /// [`ReduceOnPlateau`] alone, which ignores `None` and NaN.
    ///
    /// The same metric on every rank gives the same learning rates on every rank.
    ///
    /// # Errors
    /// [`ErrorKind::Mismatch`] if the optimizer has another number of parameter groups than at the
    /// start, [`ErrorKind::InvalidInput`] if a learning rate would not be finite (growth without
    /// end). Nothing has changed then.
    pub fn advance(&mut self, optimizer: &mut Optimizer, metric: Option<f64>) -> Result<()> {
        let position = self.steps_done.saturating_add(1);
        if !self.set_lrs(optimizer, position)?
            && let (Some(settings), Some(seen), Some(metric)) =
                (self.config.plateau(), &mut self.seen, metric)
        {
            seen.take(settings, metric, optimizer.groups_mut());
        }
        self.steps_done = position;
        Ok(())
    }

    /// Settings as given, or as loaded.
    #[must_use]
    pub fn config(&self) -> &SchedulerConfig {
        &self.config
    }

    /// What is counted.
    #[must_use]
    pub fn unit(&self) -> SchedulerUnit {
        self.unit
    }

    /// The position: how often [`Scheduler::advance`] succeeded, with a metric or without.
    #[must_use]
    pub fn steps_done(&self) -> u64 {
        self.steps_done
    }

    /// The learning rates that positions count from, one per parameter group.
    #[must_use]
    pub fn base_lrs(&self) -> &[f64] {
        &self.base_lrs
    }

    /// Gives every group its learning rate at `position`; false where metrics decide it.
    fn set_lrs(&self, optimizer: &mut Optimizer, position: u64) -> Result<bool> {
        self.same_groups(optimizer)?;
        let lr_at = |base: &f64| self.config.lr_at(*base, position);
        let Some(lrs) = self.base_lrs.iter().map(lr_at).collect::<Option<Vec<f64>>>() else {
            return Ok(false);
        };
        if let Some(lr) = lrs.iter().find(|lr| !lr.is_finite()) {
            let message = format!(
                "{} makes the learning rate {lr} at position {position}",
                self.config.name()
            );
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        for (group, lr) in optimizer.groups_mut().iter_mut().zip(lrs) {
            group.lr = lr;
        }
        Ok(true)
    }

    fn same_groups(&self, optimizer: &Optimizer) -> Result<()> {
        let (ours, theirs) = (self.base_lrs.len(), optimizer.groups().len());
        if ours == theirs {
            return Ok(());
        }
        let message = format!("the scheduler has {ours} parameter groups, the optimizer {theirs}");
        Err(Error::new(ErrorKind::Mismatch, message)
            .with_help("create the scheduler when the optimizer has all its parameters"))
    }
}
