//! An optimizer as part of a checkpoint.

use std::collections::HashMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tch::{Tensor, nn};

use super::{Optimizer, OptimizerConfig, ParamGroup, Parameter};
use crate::error::{Error, ErrorKind, Result};
use crate::group::ProcessGroup;
use crate::state::{LoadTargets, StateDict, Stateful, Value, Values};
use crate::tensor::Component;
use crate::torch::{TchSink, TchSource, join, tensor_name};

/// Values besides the tensors: `config` (JSON), `lr` and `weight_decay` (one number per group);
/// with several groups `groups` (JSON: their names and parameters); with shared state `sharded`.
impl Stateful for Optimizer {
    fn save_state(&self, prefix: &str, state: &mut StateDict) -> Result<()> {
        let component = Component::optimizer();
        for parameter in self.groups.iter().flat_map(|group| &group.parameters) {
            for (slot, tensor) in self.slots_of(parameter) {
                let name = tensor_name(prefix, &join(&parameter.name, slot))?;
                let source = TchSource::new(tensor).map_err(|e| e.with_tensor(name.as_str()))?;
                let Some((spec, own)) = parameter.place()? else { continue };
                state.add_slice(&component, name, spec, own, Arc::new(source.steady()))?;
            }
            if let Some(step) = self.step_of(parameter) {
                let name = tensor_name(prefix, &join(&parameter.name, "step"))?;
                let source = TchSource::new(step).map_err(|e| e.with_tensor(name.as_str()))?;
                state.add(&component, name, source.spec().clone(), Arc::new(source.steady()))?;
            }
        }
        self.save_values(prefix, &mut state.values)
    }

    fn load_targets<'a>(&'a mut self, prefix: &str, targets: &mut LoadTargets<'a>) -> Result<()> {
        for parameter in self.groups.iter().flat_map(|group| &group.parameters) {
            for (slot, tensor) in self.slots_of(parameter) {
                let name = tensor_name(prefix, &join(&parameter.name, slot))?;
                let sink = TchSink::new(tensor).map_err(|e| e.with_tensor(name.as_str()))?;
                let Some((spec, own)) = parameter.place()? else { continue };
                targets.add_slice(name, spec, own, Box::new(sink))?;
            }
            if let Some(step) = self.step_of(parameter) {
                let name = tensor_name(prefix, &join(&parameter.name, "step"))?;
                let sink = TchSink::new(step).map_err(|e| e.with_tensor(name.as_str()))?;
                targets.add(name, sink.spec().clone(), Box::new(sink))?;
            }
        }
        Ok(())
    }

    fn check_values(&self, prefix: &str, values: &Values, _rank_values: &Values) -> Result<()> {
        Optimizer::check_values(self, prefix, values)
    }

    /// Settings, learning rates and weight decays become those of the checkpoint, as in PyTorch.
    fn load_values(&mut self, prefix: &str, values: &Values, _rank_values: &Values) -> Result<()> {
        let Settings { config, lr, weight_decay } = self.settings(prefix, values)?;
        self.config = config;
        for (group, (lr, weight_decay)) in self.groups.iter_mut().zip(lr.iter().zip(weight_decay)) {
            (group.lr, group.weight_decay) = (*lr, weight_decay);
        }
        Ok(())
    }
}

/// What an optimizer stores besides its tensors.
struct Settings {
    config: OptimizerConfig,
    lr: Vec<f64>,
    weight_decay: Vec<f64>,
}

/// Which parameters a group has.
#[derive(Serialize, Deserialize)]
struct StoredGroup {
    /// The names by which it was asked for.
    names: Vec<String>,
    parameters: Vec<String>,
}

/// The groups as stored; `None` for a single one, and for checkpoints older than this value.
fn stored_groups(prefix: &str, values: &Values) -> Result<Option<Vec<StoredGroup>>> {
    let name = join(prefix, "groups");
    values.find(&name).map(|_| values.json(&name)).transpose()
}

/// The group of each parameter.
fn members(groups: &[StoredGroup]) -> Result<HashMap<String, usize>> {
    let mut members = HashMap::new();
    for (index, group) in groups.iter().enumerate() {
        for name in &group.parameters {
            if members.insert(name.clone(), index).is_some() {
                let message = "in two parameter groups of the checkpoint";
                return Err(Error::new(ErrorKind::Mismatch, message).with_tensor(name.as_str()));
            }
        }
    }
    Ok(members)
}

impl Optimizer {
    /// The optimizer that these values describe, with fresh state.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`], [`ErrorKind::Mismatch`] for values that describe none; as
    /// [`Optimizer::new`].
    pub(crate) fn of_values(
        prefix: &str,
        values: &Values,
        store: &nn::VarStore,
        ranks: &ProcessGroup,
    ) -> Result<Self> {
        let config: OptimizerConfig = values.json(&join(prefix, "config"))?;
        config.validate().map_err(|e| e.with_kind(ErrorKind::Mismatch))?;
        let name = join(prefix, "sharded");
        let is_sharded = values.find(&name).is_some() && values.bool(&name)?;
        let stored = stored_groups(prefix, values)?.unwrap_or_default();
        let placed = members(&stored)?;
        let group = |group: StoredGroup| ParamGroup::new(&config, group.names);
        let groups = stored.into_iter().map(group).collect();
        let mut made =
            Self { config, groups, sharers: is_sharded.then(|| ranks.clone()), widens: false };
        made.add_placed(store, &placed)?;
        Ok(made)
    }

    /// Whether [`Stateful::load_values`] would take these values; changes nothing.
    pub(crate) fn check_values(&self, prefix: &str, values: &Values) -> Result<()> {
        self.settings(prefix, values).map(drop)
    }

    /// Adds as whole tensors, copied, the state that ranks share; nothing if they share none.
    ///
    /// # Collective
    /// If they do, every rank.
    ///
    /// # Errors
    /// As [`ProcessGroup::all_gather`].
    pub(crate) fn gather_shared(&self, prefix: &str, state: &mut StateDict) -> Result<()> {
        let Some(ranks) = &self.sharers else { return Ok(()) };
        for parameter in self.groups.iter().flat_map(|group| &group.parameters) {
            for (index, slot) in self.config.slots().into_iter().enumerate() {
                let name = tensor_name(prefix, &join(&parameter.name, slot))?;
                let whole = parameter.share.gather(ranks, parameter.slots.get(index));
                let (spec, bytes) = whole.map_err(|e| e.with_tensor(name.as_str()))?;
                state.add(&Component::optimizer(), name, spec, Arc::new(bytes))?;
            }
        }
        Ok(())
    }

    fn save_values(&self, prefix: &str, values: &mut Values) -> Result<()> {
        values.set(join(prefix, "config"), Value::json(&self.config)?);
        let numbers =
            |of: fn(&ParamGroup) -> f64| -> Vec<f64> { self.groups.iter().map(of).collect() };
        values.set(join(prefix, "lr"), numbers(|group| group.lr));
        values.set(join(prefix, "weight_decay"), numbers(|group| group.weight_decay));
        if self.is_sharded() {
            values.set(join(prefix, "sharded"), true);
        }
        if self.groups.len() > 1 {
            let stored = |group: &ParamGroup| StoredGroup {
                names: group.patterns.clone(),
                parameters: group.parameters.iter().map(|p| p.name.clone()).collect(),
            };
            let groups: Vec<_> = self.groups.iter().map(stored).collect();
            values.set(join(prefix, "groups"), Value::json(&groups)?);
        }
        Ok(())
    }

    fn settings(&self, prefix: &str, values: &Values) -> Result<Settings> {
        let config: OptimizerConfig = values.json(&join(prefix, "config"))?;
        let lr = values.floats(&join(prefix, "lr"))?;
        let weight_decay = values.floats(&join(prefix, "weight_decay"))?;
        let mismatch = |message: String| Err(Error::new(ErrorKind::Mismatch, message));
        if config.algorithm() != self.config.algorithm() || config.slots() != self.config.slots() {
            return mismatch(format!(
                "the checkpoint's optimizer is {config:?}, this one is {:?}",
                self.config
            ));
        }
        let groups = self.groups.len();
        if lr.len() != groups || weight_decay.len() != groups {
            let saved = lr.len();
            return mismatch(format!("{saved} parameter groups in the checkpoint, {groups} here"));
        }
        if let Some(number) = lr.iter().chain(&weight_decay).find(|number| !number.is_finite()) {
            return mismatch(format!("a learning rate or weight decay of {number}"));
        }
        config.validate().map_err(|e| e.with_kind(ErrorKind::Mismatch))?;
        let stored = stored_groups(prefix, values)?;
        stored.iter().try_for_each(|stored| self.check_members(stored))?;
        Ok(Settings { config, lr, weight_decay })
    }

    /// Whether every parameter that both sides have is in the same group on both.
    fn check_members(&self, stored: &[StoredGroup]) -> Result<()> {
        if stored.len() != self.groups.len() {
            let (saved, here) = (stored.len(), self.groups.len());
            let message = format!("{saved} parameter groups in the checkpoint, {here} here");
            return Err(Error::new(ErrorKind::Mismatch, message));
        }
        let stored = members(stored)?;
        for (here, group) in self.groups.iter().enumerate() {
            for (name, _) in group.parameters() {
                let Some(saved) = stored.get(name).filter(|saved| **saved != here) else {
                    continue;
                };
                let message =
                    format!("in parameter group {saved} of the checkpoint, in group {here} here");
                return Err(Error::new(ErrorKind::Mismatch, message).with_tensor(name));
            }
        }
        Ok(())
    }

    /// This rank's part of the state of a parameter by PyTorch's names.
    fn slots_of<'a>(
        &self,
        parameter: &'a Parameter,
    ) -> impl Iterator<Item = (&'static str, &'a Tensor)> {
        self.config.slots().into_iter().zip(&parameter.slots)
    }

    /// Plain SGD, which has no other state, stores no count either.
    fn step_of<'a>(&self, parameter: &'a Parameter) -> Option<&'a Tensor> {
        (!self.config.slots().is_empty()).then_some(&parameter.step)
    }
}
