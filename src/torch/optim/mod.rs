//! Optimizers whose state can be read and restored. They compute what libtorch's own compute, but
//! keep their moments as named tensors, which `tch::nn::Optimizer` does not give out.
//!
//! State is named as PyTorch names it and keyed by parameter: `<prefix>.<parameter>.exp_avg`. It
//! exists from the start, so a fresh optimizer offers every destination of a load. It may be kept
//! whole by every rank, or a share of it by each ([`Sharded`]); stored it is the same.

mod adam;
mod config;
mod groups;
mod rmsprop;
mod sgd;
mod sharded;
mod state;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};

use tch::{Device, Kind, Tensor, nn};

pub use adam::{Adam, AdamW};
pub use config::{OptimizerConfig, OptimizerSpec};
pub use groups::{ParamGroup, ParamGroupConfig};
pub use rmsprop::RmsProp;
pub use sgd::Sgd;
pub use sharded::Sharded;

pub(super) use self::groups::{Trainable, trainable};
use self::sharded::Share;
use super::{ffi, spec_of, torch_error};
use crate::error::{Error, ErrorKind, Result};
use crate::group::ProcessGroup;
use crate::slice::Slice;
use crate::tensor::TensorSpec;

/// Steps the trainable variables of a [`nn::VarStore`] against their gradients.
///
/// Parameters are in the order of their names; tied ones appear once, under their first name.
/// `tch`'s variable groups ([`nn::Path::set_group`]) become parameter groups, unless groups are
/// given by names.
#[derive(Debug)]
pub struct Optimizer {
    config: OptimizerConfig,
    groups: Vec<ParamGroup>,
    /// The ranks that share the state; absent if every rank keeps all of it.
    sharers: Option<ProcessGroup>,
    /// Whether parameters of 16 bits have state of 32.
    widens: bool,
}

/// A parameter with its state, one tensor per slot of the algorithm.
#[derive(Debug)]
struct Parameter {
    name: String,
    tensor: Tensor,
    identity: u64,
    /// What this rank updates of it, and keeps in `slots`.
    share: Share,
    /// Updates so far, as a scalar on the host, like PyTorch's.
    step: Tensor,
    /// Empty if this rank has no share.
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
        Self::with_groups(config, store, &[])
    }

    /// The same with parameter groups by name: a parameter is in the first group that names it,
    /// what none names in group 0, which comes before the given ones. Without groups, those of
    /// `tch`.
    ///
    /// # Errors
    /// As [`Optimizer::new`]; [`ErrorKind::InvalidInput`] for a group without names or
    /// parameters, for a name that no parameter has, and beside groups of `tch`.
    pub fn with_groups(
        config: impl Into<OptimizerConfig>,
        store: &nn::VarStore,
        groups: &[ParamGroupConfig],
    ) -> Result<Self> {
        Self::assemble(config.into(), store, groups, None)
    }

    /// The optimizer that `spec` asks for, shared by `ranks` if it is [`Sharded`]; `groups` as in
    /// [`Optimizer::with_groups`]. Asks nothing of the other ranks, which must have the same
    /// parameters.
    ///
    /// # Errors
    /// As [`Optimizer::with_groups`]; [`ErrorKind::Unsupported`] for parameters that cannot be
    /// received from other ranks, such as expanded ones.
    pub fn shared(
        spec: impl Into<OptimizerSpec>,
        store: &nn::VarStore,
        groups: &[ParamGroupConfig],
        ranks: &ProcessGroup,
    ) -> Result<Self> {
        let OptimizerSpec { config, is_sharded } = spec.into();
        Self::assemble(config, store, groups, is_sharded.then(|| ranks.clone()))
    }

    fn assemble(
        config: OptimizerConfig,
        store: &nn::VarStore,
        groups: &[ParamGroupConfig],
        sharers: Option<ProcessGroup>,
    ) -> Result<Self> {
        config.validate()?;
        let groups = groups::empty(&config, groups)?;
        let mut made = Self { config, groups, sharers, widens: false };
        made.add_parameters(store)?;
        groups::check_filled(&made.groups)?;
        Ok(made)
    }

    /// Takes in the trainable variables of `store` that were created since (a model that grew);
    /// returns how many. With shared state every rank does so.
    ///
    /// # Errors
    /// As [`Optimizer::new`].
    pub fn add_parameters(&mut self, store: &nn::VarStore) -> Result<usize> {
        self.add_placed(store, &HashMap::new())
    }

    /// As [`Optimizer::new`], without the variables that are frozen now, that is, do not require
    /// gradients: they get no state. Of parameters of 16 bits the state has 32, and so has the
    /// arithmetic of an update: in 16 bits the square of a small gradient is 0.
    ///
    /// # Errors
    /// As [`Optimizer::new`].
    pub fn for_unfrozen(config: impl Into<OptimizerConfig>, store: &nn::VarStore) -> Result<Self> {
        Self::for_those(config.into(), store, &|found| found.tensor.requires_grad())
    }

    /// As [`Optimizer::for_unfrozen`], for the parameters of these names.
    ///
    /// # Errors
    /// As [`Optimizer::new`]; [`ErrorKind::Mismatch`] for a name that no parameter has.
    pub(crate) fn for_named(
        config: impl Into<OptimizerConfig>,
        store: &nn::VarStore,
        names: &[String],
    ) -> Result<Self> {
        let names: HashSet<&str> = names.iter().map(String::as_str).collect();
        let made =
            Self::for_those(config.into(), store, &|found| names.contains(found.name.as_str()))?;
        let there: HashSet<&str> = made.parameters().map(|(name, _)| name).collect();
        if let Some(absent) = names.iter().filter(|name| !there.contains(*name)).min() {
            let message = "the checkpoint has this parameter optimized, and here is none";
            return Err(Error::new(ErrorKind::Mismatch, message).with_tensor(*absent));
        }
        Ok(made)
    }

    fn for_those(
        config: OptimizerConfig,
        store: &nn::VarStore,
        is_wanted: &dyn Fn(&Trainable) -> bool,
    ) -> Result<Self> {
        config.validate()?;
        let groups = groups::empty(&config, &[])?;
        let mut made = Self { groups, config, sharers: None, widens: true };
        let mut found = groups::trainable(store)?;
        found.retain(is_wanted);
        made.add_found(found, &HashMap::new())?;
        Ok(made)
    }

    /// The same where the groups of some are known by name.
    fn add_placed(
        &mut self,
        store: &nn::VarStore,
        placed: &HashMap<String, usize>,
    ) -> Result<usize> {
        self.add_found(groups::trainable(store)?, placed)
    }

    fn add_found(
        &mut self,
        mut added: Vec<groups::Trainable>,
        placed: &HashMap<String, usize>,
    ) -> Result<usize> {
        let known: HashSet<u64> = self.all_mut().map(|p| p.identity).collect();
        added.retain(|found| !known.contains(&found.identity));
        let (count, slots) = (added.len(), self.config.slots());
        let shares = sharded::shares(self.sharers.as_ref(), &added)?;
        for (found, share) in added.into_iter().zip(shares) {
            let group = match placed.get(&found.name) {
                Some(group) => *group,
                None => groups::place(&self.groups, &found)?,
            };
            let parameter = Parameter::new(found, share, &slots, self.widens)?;
            self.group_at(group).insert(parameter);
        }
        // A store without variables still has a learning rate.
        self.group_at(0);
        Ok(count)
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
    /// # Collective
    /// With shared state every rank, each with the same gradients (averaged before): a rank
    /// updates its share, and gets what the others have updated.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for a sparse gradient, [`ErrorKind::Device`] if libtorch fails;
    /// the parameters before the one named are then updated already. With shared state also as
    /// [`ProcessGroup::all_reduce_or`]; the parameters are then undefined.
    pub fn step(&mut self) -> Result<()> {
        let Self { config, groups, sharers, .. } = self;
        tch::no_grad(|| {
            for group in &mut *groups {
                let (lr, weight_decay) = (group.lr, group.weight_decay);
                for parameter in &mut group.parameters {
                    let stepped = parameter.step(config, lr, weight_decay);
                    stepped.map_err(|e| e.with_tensor(parameter.name.as_str()))?;
                }
            }
            let Some(ranks) = sharers else { return Ok(()) };
            sharded::exchange(ranks, groups.iter().flat_map(|group| &group.parameters))
        })
    }

    /// Settings as given, or as loaded; learning rate and weight decay in use are in
    /// [`Optimizer::groups`].
    #[must_use]
    pub fn config(&self) -> &OptimizerConfig {
        &self.config
    }

    /// Whether each rank keeps a share of the state, as with [`Sharded`].
    #[must_use]
    pub fn is_sharded(&self) -> bool {
        self.sharers.is_some()
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
        while self.groups.len() <= index {
            self.groups.push(ParamGroup::new(&self.config, Vec::new()));
        }
        &mut self.groups[index]
    }
}

impl Parameter {
    fn new(found: Trainable, share: Share, slots: &[&str], widens: bool) -> Result<Self> {
        let Trainable { identity, name, tensor, .. } = found;
        let state = || {
            let own = share.view(&tensor)?;
            let zeros = |own: &Tensor| match own.kind() {
                Kind::Half | Kind::BFloat16 if widens => {
                    Tensor::f_zeros(own.size(), (Kind::Float, own.device()))
                }
                _ => own.f_detach()?.f_zeros_like(),
            };
            let slots = own.iter().flat_map(|own| slots.iter().map(move |_| zeros(own)));
            let slots = slots.collect::<Result<Vec<_>, _>>()?;
            Ok((slots, Tensor::f_zeros([0i64; 0], (Kind::Float, Device::Cpu))?))
        };
        let state = state().map_err(|e| torch_error("allocating optimizer state", &e));
        let (slots, step) = state.map_err(|e| e.with_tensor(name.as_str()))?;
        Ok(Self { name, tensor, identity, share, step, slots })
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
        let own = |of: &Tensor| {
            self.share.view(of).map_err(|e| torch_error("taking a share of a parameter", &e))
        };
        let Some((mut parameter, gradient)) = own(&self.tensor)?.zip(own(&gradient)?) else {
            return Ok(());
        };
        let is_wide = self.is_wide();
        let (parameter, slots) = (&mut parameter, self.slots.as_mut_slice());
        if !is_wide {
            let gradient = &gradient;
            return config.apply(Update { parameter, gradient, slots, step, lr, weight_decay });
        }
        let widened = |tensor: &Tensor| tensor.f_to_kind(Kind::Float);
        let wide = widened(parameter).and_then(|wide| Ok((wide, widened(&gradient)?)));
        let (mut wide, gradient) = wide.map_err(|e| torch_error("widening a parameter", &e))?;
        let update =
            Update { parameter: &mut wide, gradient: &gradient, slots, step, lr, weight_decay };
        config.apply(update)?;
        let rounded = parameter.f_copy_(&wide);
        rounded.map_err(|e| torch_error("rounding a parameter", &e))
    }

    /// Whether its state has more bits than it has.
    fn is_wide(&self) -> bool {
        self.slots.first().is_some_and(|slot| slot.kind() != self.tensor.kind())
    }

    /// Of which whole the slots of this rank are which box.
    fn place(&self) -> Result<Option<(TensorSpec, Slice)>> {
        let Some((spec, own)) = self.share.place() else { return Ok(None) };
        match self.slots.first() {
            Some(slot) if self.is_wide() => Ok(Some((spec_of(slot)?, own))),
            _ => Ok(Some((spec, own))),
        }
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
