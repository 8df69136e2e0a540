//! A [`nn::VarStore`] as state: all its variables, trainable or not, under the names that `tch`
//! gives them.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError};

use tch::{Tensor, nn};

use super::ffi::{self, Form};
use super::tensor_io::{TchSink, TchSource};
use super::{join, tensor_name};
use crate::error::Result;
use crate::state::{LoadTargets, StateDict};
use crate::tensor::{Component, TensorName};

#[cfg(test)]
mod tests;

/// Adds every variable of `store`, named `prefix.<name>` (or `<name>` without a prefix).
///
/// Tied variables (same memory, shape, strides and kind) are stored once, under the first of
/// their names in byte order; the others become aliases. Views that overlap only in part are
/// stored separately. Variables that require gradients are
/// [steady](crate::state::TensorSource::is_steady).
///
/// # Errors
/// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported) for a variable that cannot be stored
/// (see [`spec_of`](super::spec_of)), naming it; as [`StateDict::add`] for names already taken.
pub fn add_var_store(
    state: &mut StateDict,
    component: &Component,
    prefix: &str,
    store: &nn::VarStore,
) -> Result<()> {
    for variable in variables(store)? {
        let name = tensor_name(prefix, &variable.name)?;
        let source = TchSource::new(&variable.tensor).map_err(|e| e.with_tensor(name.as_str()))?;
        let spec = source.spec().clone();
        // Buffers change in the forward pass as well.
        let source = if variable.tensor.requires_grad() { source.steady() } else { source };
        state.add(component, name.clone(), spec, Arc::new(source))?;
        for alias in variable.aliases {
            state.add_alias(tensor_name(prefix, &alias)?, name.clone())?;
        }
    }
    Ok(())
}

/// Adds a destination for every variable of `store`, under the names of [`add_var_store`]; tied
/// variables get one, under their stored name. Nobody else may use the variables until the load
/// has returned.
///
/// # Errors
/// As [`TchSink::new`], naming the variable.
pub fn var_store_targets(
    targets: &mut LoadTargets<'_>,
    prefix: &str,
    store: &nn::VarStore,
) -> Result<()> {
    var_store_targets_as(targets, store, &|names| join(prefix, names.first().unwrap_or(&"")))
}

/// As [`var_store_targets`], each variable under the name that `choose` makes of its own names.
pub(crate) fn var_store_targets_as(
    targets: &mut LoadTargets<'_>,
    store: &nn::VarStore,
    choose: &dyn Fn(&[&str]) -> String,
) -> Result<()> {
    for variable in variables(store)? {
        let name = TensorName::new(choose(&variable.names()))?;
        let sink = TchSink::new(&variable.tensor).map_err(|e| e.with_tensor(name.as_str()))?;
        targets.add(name, sink.spec().clone(), Box::new(sink))?;
    }
    Ok(())
}

/// A variable under its first name, and the other names of the same memory.
struct Variable {
    name: String,
    tensor: Tensor,
    aliases: Vec<String>,
}

impl Variable {
    fn names(&self) -> Vec<&str> {
        std::iter::once(&self.name).chain(&self.aliases).map(String::as_str).collect()
    }
}

/// The names of each variable of `store`: several where variables are tied.
pub(crate) fn variable_names(store: &nn::VarStore) -> Result<Vec<Vec<String>>> {
    let owned = |variable: &Variable| variable.names().into_iter().map(str::to_owned).collect();
    Ok(variables(store)?.iter().map(owned).collect())
}

/// For each variable, by its first name, the first of its names (of tied ones there are several)
/// that is there; its first name if none is.
pub(crate) fn names_there(
    own: &[Vec<String>],
    is_there: impl Fn(&str) -> bool,
) -> BTreeMap<String, String> {
    let chosen = own.iter().filter_map(|names| {
        let first = names.first()?;
        let there = names.iter().find(|name| is_there(name));
        Some((first.clone(), there.unwrap_or(first).clone()))
    });
    chosen.collect()
}

/// What two handles of the same bytes have in common.
pub(crate) type Memory = (usize, Vec<i64>, Vec<i64>, tch::Kind, tch::Device);

fn variables(store: &nn::VarStore) -> Result<Vec<Variable>> {
    let mut found: Vec<Variable> = Vec::new();
    let mut seen: HashMap<Memory, usize> = HashMap::new();
    for (name, tensor) in named(store) {
        let memory = memory_of(&tensor).map_err(|e| e.with_tensor(&name))?;
        let first = memory.as_ref().and_then(|m| seen.get(m));
        if let Some(variable) = first.and_then(|index| found.get_mut(*index)) {
            variable.aliases.push(name);
            continue;
        }
        seen.extend(memory.map(|m| (m, found.len())));
        found.push(Variable { name, tensor, aliases: Vec::new() });
    }
    Ok(found)
}

/// All variables in the order of their names.
pub(super) fn named(store: &nn::VarStore) -> BTreeMap<String, Tensor> {
    let variables = store.variables_.lock().unwrap_or_else(PoisonError::into_inner);
    let named = variables.named_variables.iter();
    named.map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect()
}

/// `None` where there is no memory to share.
pub(crate) fn memory_of(tensor: &Tensor) -> Result<Option<Memory>> {
    if ffi::describe(tensor)?.form != Form::Dense || tensor.numel() == 0 {
        return Ok(None);
    }
    let Ok(kind) = tensor.f_kind() else { return Ok(None) };
    let address = tensor.data_ptr().addr();
    Ok(Some((address, tensor.size(), tensor.stride(), kind, tensor.device())))
}
