//! A run as part of a checkpoint: the rack, the optimizer of what is trained, how far it has come.

use super::architecture::Architecture;
use super::cache::ActivationCache;
use super::described::RackInfo;
use super::rack::Rack;
use super::state::{self, Granularity, check_kind};
use super::training::{Stage, TRAINING, TrainingConfig, TrainingInfo};
use crate::error::{Error, ErrorKind, Result};
use crate::state::{LoadTargets, StateDict, Stateful, Value, Values};
use crate::torch::Optimizer;

const OPTIMIZER: &str = "optimizer";
const CACHE: &str = "cache";
/// Names of the parameters that the optimizer has, as JSON: which are trained has changed since if
/// a stack was frozen or its adapters were merged.
const OPTIMIZED: &str = "progressive.optimized";

/// What trains a rack.
pub(super) struct Training {
    pub(super) info: TrainingInfo,
    /// Of what is trained at present.
    pub(super) optimizer: Option<Optimizer>,
    pub(super) cache: ActivationCache,
}

impl Training {
    pub(super) fn new(config: &TrainingConfig) -> Self {
        let bytes = config.activation_cache_mib.saturating_mul(1 << 20);
        let cache = ActivationCache::new(bytes);
        Self { info: TrainingInfo::default(), optimizer: None, cache }
    }
}

/// A rack and what trains it, as one part. A load makes both anew beside those that are there, and
/// they change places when everything has come.
pub(super) struct RunState<'r, A: Architecture> {
    pub(super) config: &'r TrainingConfig,
    pub(super) rack: &'r mut Rack<A>,
    pub(super) training: &'r mut Training,
    fresh: Option<(Rack<A>, Training)>,
}

impl<'r, A: Architecture> RunState<'r, A> {
    pub(super) fn new(
        config: &'r TrainingConfig,
        rack: &'r mut Rack<A>,
        training: &'r mut Training,
    ) -> Self {
        Self { config, rack, training, fresh: None }
    }
}

fn not_prepared() -> Error {
    Error::new(ErrorKind::InvalidInput, "a rack with its training is loaded whole, or not at all")
}

impl<A: Architecture> Stateful for RunState<'_, A> {
    fn save_state(&self, _prefix: &str, state: &mut StateDict) -> Result<()> {
        self.rack.save_into(Granularity::Training, state)?;
        state.values.set(TRAINING, Value::json(&self.training.info)?);
        if let Some(optimizer) = &self.training.optimizer {
            let names: Vec<&str> = optimizer.parameters().map(|(name, _)| name).collect();
            state.values.set(OPTIMIZED, Value::json(&names)?);
            optimizer.save_state(OPTIMIZER, state)?;
        }
        self.training.cache.save_state(CACHE, state)
    }

    fn prepare(&mut self, _prefix: &str, values: &Values, own: &Values) -> Result<()> {
        check_kind(values, &[Granularity::Training])?;
        let rack = self.rack.fresh_of(values)?;
        let mut training = Training::new(self.config);
        training.info = values.json(TRAINING)?;
        if training.info.stage != Stage::Idle {
            let names: Vec<String> = values.json(OPTIMIZED)?;
            let optimizer = Optimizer::for_named(self.config.optimizer, rack.store(), &names)?;
            training.optimizer = Some(optimizer);
        }
        training.cache.prepare(CACHE, values, own)?;
        self.fresh = Some((rack, training));
        Ok(())
    }

    fn load_targets<'a>(&'a mut self, _prefix: &str, targets: &mut LoadTargets<'a>) -> Result<()> {
        let (rack, training) = self.fresh.as_mut().ok_or_else(not_prepared)?;
        rack.targets_into(targets)?;
        if let Some(optimizer) = &mut training.optimizer {
            optimizer.load_targets(OPTIMIZER, targets)?;
        }
        training.cache.load_targets(CACHE, targets)
    }

    fn check_values(&self, _prefix: &str, values: &Values, own: &Values) -> Result<()> {
        let (_, training) = self.fresh.as_ref().ok_or_else(not_prepared)?;
        if let Some(optimizer) = &training.optimizer {
            Stateful::check_values(optimizer, OPTIMIZER, values, own)?;
        }
        training.cache.check_values(CACHE, values, own)
    }

    fn load_values(&mut self, _prefix: &str, values: &Values, own: &Values) -> Result<()> {
        let (mut rack, mut training) = self.fresh.take().ok_or_else(not_prepared)?;
        let info: RackInfo = values.json(state::RACK)?;
        rack.merge_as(&info.stack_info)?;
        if let Some(optimizer) = &mut training.optimizer {
            optimizer.load_values(OPTIMIZER, values, own)?;
        }
        training.cache.load_values(CACHE, values, own)?;
        let prefix = rack.frozen_prefix();
        if !training.cache.is_empty() {
            let trunk = rack.trunk_hash(prefix)?;
            training.cache.expect(trunk);
        }
        (*self.rack, *self.training) = (rack, training);
        Ok(())
    }
}
