//! Which variables an optimizer updates, and in which group.

use std::collections::HashMap;
use std::sync::PoisonError;

use serde::{Deserialize, Serialize};
use tch::{Tensor, nn};

use super::{OptimizerConfig, Parameter};
use crate::error::{Error, ErrorKind, Result};
use crate::torch::{ffi, var_store};

#[cfg(test)]
mod tests;

/// Parameters with a learning rate and a weight decay of their own.
#[derive(Debug)]
pub struct ParamGroup {
    /// Learning rate in use.
    pub lr: f64,
    /// Weight decay in use.
    pub weight_decay: f64,
    /// What puts a parameter here; empty for the group of the rest.
    pub(super) patterns: Vec<String>,
    pub(super) parameters: Vec<Parameter>,
}

impl ParamGroup {
    pub(super) fn new(config: &OptimizerConfig, patterns: Vec<String>) -> Self {
        let (lr, weight_decay) = (config.lr(), config.weight_decay());
        Self { lr, weight_decay, patterns, parameters: Vec::new() }
    }

    /// The parameters with their names, in the order of their names.
    pub fn parameters(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.parameters.iter().map(|p| (p.name.as_str(), &p.tensor))
    }

    pub(super) fn insert(&mut self, parameter: Parameter) {
        let place = self.parameters.partition_point(|p| p.name < parameter.name);
        self.parameters.insert(place, parameter);
    }

    fn takes(&self, name: &str) -> bool {
        self.patterns.iter().any(|pattern| is_match(pattern, name))
    }
}

/// A parameter group by the names of its parameters, with settings that differ from the
/// optimizer's; what no group asks for is in group 0, with the optimizer's own.
///
/// ```
/// use tch_checkpoint::torch::ParamGroupConfig;
///
/// // Biases and norms are not decayed.
/// let plain = ParamGroupConfig {
///     names: vec!["*.bias".to_owned(), "*norm*".to_owned()],
///     weight_decay: Some(0.0),
///     ..ParamGroupConfig::default()
/// };
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ParamGroupConfig {
    /// Names of parameters, in which `*` stands for any text, also none and also dots. A tied
    /// parameter counts by its first name in byte order.
    pub names: Vec<String>,
    /// Learning rate. Default = the optimizer's.
    pub lr: Option<f64>,
    /// Weight decay. Default = the optimizer's.
    pub weight_decay: Option<f64>,
}

/// Whether `name` fits `pattern`, in which `*` stands for any text.
fn is_match(pattern: &str, name: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut name) = name.strip_prefix(first) else { return false };
    let (middle, last) = rest.rsplit_once('*').unwrap_or(("", rest));
    for part in middle.split('*') {
        // The earliest place leaves the most to the parts after it.
        let Some((_, after)) = name.split_once(part) else { return false };
        name = after;
    }
    name.ends_with(last)
}

/// Group 0 and the given ones, without parameters.
pub(super) fn empty(
    config: &OptimizerConfig,
    given: &[ParamGroupConfig],
) -> Result<Vec<ParamGroup>> {
    let mut groups = vec![ParamGroup::new(config, Vec::new())];
    for (number, settings) in (1..).zip(given) {
        let mut group = ParamGroup::new(config, settings.names.clone());
        group.lr = settings.lr.unwrap_or(group.lr);
        group.weight_decay = settings.weight_decay.unwrap_or(group.weight_decay);
        let rate = |value: f64| value.is_finite() && value >= 0.0;
        if !rate(group.lr) || !rate(group.weight_decay) {
            let (lr, decay) = (group.lr, group.weight_decay);
            let message = format!("learning rate {lr} or weight decay {decay}");
            return Err(refused(number, &message));
        }
        if group.patterns.is_empty() {
            return Err(refused(number, "no names"));
        }
        groups.push(group);
    }
    Ok(groups)
}

/// Whether every name that groups were asked for by means a parameter, and every group has one.
pub(super) fn check_filled(groups: &[ParamGroup]) -> Result<()> {
    let all = || groups.iter().flat_map(|group| &group.parameters);
    for (number, group) in groups.iter().enumerate().skip(1) {
        let unmatched = |pattern: &&String| !all().any(|p| is_match(pattern, &p.name));
        if let Some(pattern) = group.patterns.iter().find(unmatched) {
            return Err(refused(number, &format!("no trainable variable is named `{pattern}`")));
        }
        if group.parameters.is_empty() {
            return Err(refused(number, "all that its names match is in groups before it"));
        }
    }
    Ok(())
}

fn refused(number: usize, why: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, format!("parameter group {number}: {why}"))
        .with_help("a parameter goes to the first group that names it; the rest is group 0")
}

/// Where a parameter belongs: by the groups' names for it, else where `tch` has put it.
pub(super) fn place(groups: &[ParamGroup], found: &Trainable) -> Result<usize> {
    if groups.iter().all(|group| group.patterns.is_empty()) {
        return Ok(found.group);
    }
    if found.group != 0 {
        let message = format!("group {} of `tch`, beside groups by name", found.group);
        return Err(Error::new(ErrorKind::InvalidInput, message)
            .with_tensor(found.name.as_str())
            .with_help("use `Path::set_group` or `ParamGroupConfig`, not both"));
    }
    Ok(groups.iter().position(|group| group.takes(&found.name)).unwrap_or(0))
}

/// A trainable variable, and the group that `tch` put it in.
pub(in crate::torch) struct Trainable {
    pub(in crate::torch) identity: u64,
    pub(in crate::torch) name: String,
    pub(in crate::torch) tensor: Tensor,
    pub(in crate::torch) group: usize,
}

/// The trainable variables of a store, each under its first name and with its group.
pub(in crate::torch) fn trainable(store: &nn::VarStore) -> Result<Vec<Trainable>> {
    let mut groups = HashMap::new();
    {
        let variables = store.variables_.lock().unwrap_or_else(PoisonError::into_inner);
        for variable in &variables.trainable_variables {
            groups.insert(ffi::describe(&variable.tensor)?.identity, variable.group);
        }
    }
    let mut found = Vec::with_capacity(groups.len());
    for (name, tensor) in var_store::named(store) {
        let identity = ffi::describe(&tensor)?.identity;
        found.extend(groups.remove(&identity).map(|group| Trainable {
            identity,
            name,
            tensor,
            group,
        }));
    }
    if groups.is_empty() {
        return Ok(found);
    }
    let message = format!("{} trainable variables have no name in the VarStore", groups.len());
    Err(Error::new(ErrorKind::InvalidInput, message))
}
