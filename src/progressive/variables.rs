//! Variables of a store by their full names: found, added, removed, cast.

use std::collections::HashSet;
use std::sync::PoisonError;

use tch::nn::{self, VarStore};
use tch::{Kind, Tensor, no_grad};

use crate::error::{Error, ErrorKind, Result};
use crate::torch::{identity, torch_error};

/// The variables whose names begin with `prefix` and a dot, by name. Tied ones are among them under
/// each of their names.
pub(super) fn below(store: &VarStore, prefix: &str) -> Vec<(String, Tensor)> {
    let variables = store.variables_.lock().unwrap_or_else(PoisonError::into_inner);
    let is_below =
        |name: &String| name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('.'));
    let found = variables.named_variables.iter().filter(|(name, _)| is_below(name));
    let mut found: Vec<_> = found.map(|(name, t)| (name.clone(), t.shallow_clone())).collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

/// The same, each once, under the first of its names, with whether it is a parameter and no buffer.
pub(super) fn once_below(store: &VarStore, prefix: &str) -> Result<Vec<Variable>> {
    let parameters = parameters(store)?;
    let mut seen = HashSet::new();
    let mut found = Vec::new();
    for (name, tensor) in below(store, prefix) {
        let identity = identity(&tensor)?;
        if seen.insert(identity) {
            let is_parameter = parameters.contains(&identity);
            found.push(Variable { name, tensor, is_parameter });
        }
    }
    Ok(found)
}

/// A variable of a store.
pub(super) struct Variable {
    pub(super) name: String,
    pub(super) tensor: Tensor,
    /// Made to be trained, whether it is at present or not.
    pub(super) is_parameter: bool,
}

fn parameters(store: &VarStore) -> Result<HashSet<u64>> {
    let variables = store.variables_.lock().unwrap_or_else(PoisonError::into_inner);
    variables.trainable_variables.iter().map(|variable| identity(&variable.tensor)).collect()
}

pub(super) fn find(store: &VarStore, name: &str) -> Option<Tensor> {
    let variables = store.variables_.lock().unwrap_or_else(PoisonError::into_inner);
    variables.named_variables.get(name).map(Tensor::shallow_clone)
}

/// Adds `tensor` under a name that must be free. A second name of a variable `is_tied`.
pub(super) fn add(store: &VarStore, name: &str, tensor: &Tensor, is_tied: bool) -> Result<()> {
    if find(store, name).is_some() {
        let message = "there is a variable of this name already";
        return Err(Error::new(ErrorKind::InvalidInput, message).with_tensor(name));
    }
    let (prefix, last) = name.rsplit_once('.').unwrap_or(("", name));
    drop(path(store, prefix).add(last, tensor.shallow_clone(), !is_tied));
    Ok(())
}

/// Removes the variables of these names.
pub(super) fn remove(store: &VarStore, names: &[String]) -> Result<()> {
    let mut variables = store.variables_.lock().unwrap_or_else(PoisonError::into_inner);
    for name in names {
        variables.named_variables.remove(name);
    }
    let named: Result<HashSet<u64>> = variables.named_variables.values().map(identity).collect();
    let named = named?;
    // What a tie still names stays.
    variables.trainable_variables.retain(|variable| {
        identity(&variable.tensor).is_ok_and(|identity| named.contains(&identity))
    });
    Ok(())
}

/// Whether [`cast`] can be done without harm to training.
pub(super) fn check_castable(name: &str, tensor: &Tensor, kind: Kind) -> Result<()> {
    if !tensor.is_floating_point() || tensor.kind() == kind || !tensor.grad().defined() {
        return Ok(());
    }
    let message = "it has a gradient, which would be of another kind";
    Err(Error::new(ErrorKind::InvalidInput, message)
        .with_tensor(name)
        .with_help("nothing was changed; change the precision before training"))
}

/// Casts a variable where it is, so that everybody who has it has it cast.
pub(super) fn cast(name: &str, tensor: &Tensor, kind: Kind) -> Result<()> {
    if !tensor.is_floating_point() || tensor.kind() == kind {
        return Ok(());
    }
    let mut variable = tensor.shallow_clone();
    let cast = no_grad(|| variable.detach().f_to_kind(kind));
    let cast = cast.and_then(|data| variable.f_set_data(&data));
    cast.map_err(|e| torch_error("casting a variable", &e).with_tensor(name))
}

/// The place in a store where variables of this prefix are made.
pub(super) fn path<'a>(store: &'a VarStore, prefix: &str) -> nn::Path<'a> {
    let names = prefix.split('.').filter(|name| !name.is_empty());
    names.fold(store.root(), |path, name| path / name)
}
