//! Optimizers whose state can be read and restored. They compute what libtorch's own compute, but
//! keep their moments as named tensors, which `tch::nn::Optimizer` does not give out.
//!
//! State is named as PyTorch names it and keyed by parameter: `<prefix>.<parameter>.exp_avg`. It
//! exists from the start, so a fresh optimizer offers every destination of a load.

mod adam;
mod config;
mod groups;
mod rmsprop;
mod sgd;
mod state;
#[cfg(test)]
mod tests;

use std::collections::HashSet;

use tch::{Device, Kind, Tensor, nn};

pub use adam::{Adam, AdamW};
pub use config::OptimizerConfig;
pub use groups::ParamGroup;
pub use rmsprop::RmsProp;
pub use sgd::Sgd;

pub(super) use self::groups::{Trainable, trainable};
use super::{convert, ffi, torch_error};
use crate::error::{Error, ErrorKind, Result};

/// Steps the trainable variables of a [`nn::VarStore`] against their gradients.
///
/// Parameters are in the order of their names; tied ones appear once, under their first name.
/// `tch`'s variable groups ([`nn::Path::set_group`]) become parameter groups.
#[derive(Debug)]
pub struct Optimizer {
    config: OptimizerConfig,
    groups: Vec<ParamGroup>,
}

/// A parameter with its state, one tensor per slot of the algorithm.
#[derive(Debug)]
struct Parameter {
    name: String,
    tensor: Tensor,
    identity: u64,
    /// Updates so far, as a scalar on the host, like PyTorch's.
    step: Tensor,
    slots: Vec<Tensor>,
}

/// What an algorithm gets to update one parameter.
struct Update<'a> {
    parameter: &'a mut Tensor,
    gradient: &'a Tensor,
    slots: &'a mut [Tensor],
    /// 1 in the first update.
    step: f64,
    lr: f64,
    weight_decay: f64,
}

impl Optimizer {
    /// An optimizer for the trainable variables that `store` has now.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for settings that can never work; [`ErrorKind::Unsupported`]
    /// for parameters that cannot be stored.
    pub fn new(config: impl Into<OptimizerConfig>, store: &nn::VarStore) -> Result<Self> {
        let config = config.into();
        config.validate()?;
        let mut made = Self { config, groups: Vec::new() };
        made.add_parameters(store)?;
        Ok(made)
    }

    /// Takes in the trainable variables of `store` that were created since (a model that grew);
    /// returns how many.
    ///
    /// # Errors
    /// As [`Optimizer::new`].
    pub fn add_parameters(&mut self, store: &nn::VarStore) -> Result<usize> {
        let mut added = 0;
        let known: HashSet<u64> = self.all_mut().map(|p| p.identity).collect();
        for Trainable { identity, name, tensor, group } in trainable(store)? {
            if !known.contains(&identity) {
                let parameter = Parameter::new(identity, name, tensor, &self.config.slots())?;
                self.group_at(group).insert(parameter);
                added += 1;
            }
        }
        // A store without variables still has a learning rate.
        self.group_at(0);
        Ok(added)
    }

    /// Makes every gradient undefined, as PyTorch does by default: a parameter that takes no part
    /// in the next backward pass is not updated.
    ///
    /// # Errors
    /// [`ErrorKind::Device`] if libtorch fails.
    pub fn zero_grad(&mut self) -> Result<()> {
        self.all_mut().try_for_each(|parameter| ffi::clear_grad(&mut parameter.tensor))
    }

    /// Updates every parameter that has a gradient, without autograd.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for a sparse gradient, [`ErrorKind::Device`] if libtorch fails;
    /// the parameters before the one named are then updated already.
    pub fn step(&mut self) -> Result<()> {
        let Self { config, groups } = self;
        tch::no_grad(|| {
            for group in groups {
                let (lr, weight_decay) = (group.lr, group.weight_decay);
                for parameter in &mut group.parameters {
                    let stepped = parameter.step(config, lr, weight_decay);
                    stepped.map_err(|e| e.with_tensor(parameter.name.as_str()))?;
                }
            }
            Ok(())
        })
    }

    /// Settings as given, or as loaded; learning rate and weight decay in use are in
    /// [`Optimizer::groups`].
    #[must_use]
    pub fn config(&self) -> &OptimizerConfig {
        &self.config
    }

    /// The parameter groups; never empty.
    #[must_use]
    pub fn groups(&self) -> &[ParamGroup] {
        &self.groups
    }

    /// The parameter groups, to change learning rate or weight decay of one.
    pub fn groups_mut(&mut self) -> &mut [ParamGroup] {
        &mut self.groups
    }

    /// Learning rate of the first group.
    #[must_use]
    pub fn lr(&self) -> f64 {
        self.groups.first().map_or(self.config.lr(), |group| group.lr)
    }

    /// Sets the learning rate of every group.
    pub fn set_lr(&mut self, lr: f64) {
        self.groups.iter_mut().for_each(|group| group.lr = lr);
    }

    /// The parameters with their names, group by group.
    pub fn parameters(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.groups.iter().flat_map(ParamGroup::parameters)
    }

    fn all_mut(&mut self) -> impl Iterator<Item = &mut Parameter> {
        self.groups.iter_mut().flat_map(|group| &mut group.parameters)
    }

    fn group_at(&mut self, index: usize) -> &mut ParamGroup {
        let (lr, weight_decay) = (self.config.lr(), self.config.weight_decay());
        while self.groups.len() <= index {
            self.groups.push(ParamGroup { lr, weight_decay, parameters: Vec::new() });
        }
        &mut self.groups[index]
    }
}

impl Parameter {
    fn new(identity: u64, name: String, tensor: Tensor, slots: &[&str]) -> Result<Self> {
        convert::spec_of(&tensor).map_err(|e| e.with_tensor(name.as_str()))?;
        let zeros = || tensor.f_detach()?.f_zeros_like();
        let state = || {
            let slots = slots.iter().map(|_| zeros()).collect::<Result<Vec<_>, _>>()?;
            Ok((slots, Tensor::f_zeros([0i64; 0], (Kind::Float, Device::Cpu))?))
        };
        let state = state().map_err(|e| torch_error("allocating optimizer state", &e));
        let (slots, step) = state.map_err(|e| e.with_tensor(name.as_str()))?;
        Ok(Self { name, tensor, identity, step, slots })
    }

    fn step(&mut self, config: &OptimizerConfig, lr: f64, weight_decay: f64) -> Result<()> {
        let gradient = self.tensor.f_grad().map_err(|e| torch_error("taking a gradient", &e))?;
        match ffi::describe(&gradient)?.form {
            ffi::Form::Undefined => return Ok(()),
            ffi::Form::Sparse => {
                let message = "sparse gradients are not supported";
                return Err(Error::new(ErrorKind::Unsupported, message)
                    .with_help("build the embedding with `sparse: false`"));
            }
            _ => {}
        }
        let mut count = || {
            let _same = self.step.f_add_scalar_(1.0)?;
            self.step.f_double_value(&[])
        };
        let step = count().map_err(|e| torch_error("counting a step", &e))?;
        let (parameter, slots) = (&mut self.tensor, self.slots.as_mut_slice());
        config.apply(Update { parameter, gradient: &gradient, slots, step, lr, weight_decay })
    }
}

/// `tensor *= factor`
fn scale(tensor: &mut Tensor, factor: f64) -> Result<()> {
    let scaled = tensor.f_mul_scalar_(factor);
    scaled.map(drop).map_err(|e| torch_error("scaling in place", &e))
}

fn copy(tensor: &Tensor) -> Result<Tensor> {
    let copied = tensor.f_empty_like().and_then(|mut made| made.f_copy_(tensor).map(|()| made));
    copied.map_err(|e| torch_error("copying a tensor", &e))
}

fn missing_slot() -> Error {
    Error::new(ErrorKind::Mismatch, "the optimizer has no state for this parameter")
}
