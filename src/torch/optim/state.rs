//! An optimizer as part of a checkpoint.

use std::sync::Arc;

use tch::Tensor;

use super::{Optimizer, OptimizerConfig, Parameter};
use crate::error::{Error, ErrorKind, Result};
use crate::state::{LoadTargets, StateDict, Stateful, Value, Values};
use crate::tensor::Component;
use crate::torch::{TchSink, TchSource, join, tensor_name};

/// Values besides the tensors: `config` (JSON), `lr` and `weight_decay` (one number per group).
impl Stateful for Optimizer {
    fn save_state(&self, prefix: &str, state: &mut StateDict) -> Result<()> {
        for parameter in self.groups.iter().flat_map(|group| &group.parameters) {
            for (slot, tensor) in self.tensors_of(parameter) {
                let name = tensor_name(prefix, &join(&parameter.name, slot))?;
                let source = TchSource::new(tensor).map_err(|e| e.with_tensor(name.as_str()))?;
                let spec = source.spec().clone();
                state.add(&Component::optimizer(), name, spec, Arc::new(source))?;
            }
        }
        let values = &mut state.values;
        values.set(join(prefix, "config"), Value::json(&self.config)?);
        let numbers = |of: fn(&super::ParamGroup) -> f64| -> Vec<f64> {
            self.groups.iter().map(of).collect()
        };
        values.set(join(prefix, "lr"), numbers(|group| group.lr));
        values.set(join(prefix, "weight_decay"), numbers(|group| group.weight_decay));
        Ok(())
    }

    fn load_targets<'a>(&'a mut self, prefix: &str, targets: &mut LoadTargets<'a>) -> Result<()> {
        for parameter in self.groups.iter().flat_map(|group| &group.parameters) {
            for (slot, tensor) in self.tensors_of(parameter) {
                let name = tensor_name(prefix, &join(&parameter.name, slot))?;
                let sink = TchSink::new(tensor).map_err(|e| e.with_tensor(name.as_str()))?;
                targets.add(name, sink.spec().clone(), Box::new(sink))?;
            }
        }
        Ok(())
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

impl Optimizer {
    /// Whether [`Stateful::load_values`] would take these values; changes nothing.
    pub(crate) fn check_values(&self, prefix: &str, values: &Values) -> Result<()> {
        self.settings(prefix, values).map(drop)
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
        config.validate().map_err(|e| e.with_kind(ErrorKind::Mismatch))?;
        Ok(Settings { config, lr, weight_decay })
    }

    /// The state of a parameter by PyTorch's names. Plain SGD has none.
    fn tensors_of<'a>(&self, parameter: &'a Parameter) -> Vec<(&'static str, &'a Tensor)> {
        let mut tensors: Vec<_> = self.config.slots().into_iter().zip(&parameter.slots).collect();
        if !tensors.is_empty() {
            tensors.push(("step", &parameter.step));
        }
        tensors
    }
}
