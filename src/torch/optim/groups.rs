//! Which variables an optimizer updates.

use std::collections::HashMap;
use std::sync::PoisonError;

use tch::{Tensor, nn};

use super::Parameter;
use crate::error::{Error, ErrorKind, Result};
use crate::torch::{ffi, var_store};

/// Parameters with a learning rate and a weight decay of their own.
#[derive(Debug)]
pub struct ParamGroup {
    /// Learning rate in use.
    pub lr: f64,
    /// Weight decay in use.
    pub weight_decay: f64,
    pub(super) parameters: Vec<Parameter>,
}

impl ParamGroup {
    /// The parameters with their names, in the order of their names.
    pub fn parameters(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.parameters.iter().map(|p| (p.name.as_str(), &p.tensor))
    }

    pub(super) fn insert(&mut self, parameter: Parameter) {
        let place = self.parameters.partition_point(|p| p.name < parameter.name);
        self.parameters.insert(place, parameter);
    }
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
