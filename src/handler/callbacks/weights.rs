//! Values of a model's variables, kept on the host and put back.

use std::collections::BTreeMap;

use tch::{Device, Tensor, nn, no_grad};

use crate::error::{Error, ErrorKind, Result};
use crate::torch::{spec_of, torch_error};

/// A copy of every variable, trainable or not, in host memory.
pub(super) fn snapshot(vars: &nn::VarStore) -> Result<BTreeMap<String, Tensor>> {
    let copy = |tensor: &Tensor| -> Result<Tensor> {
        spec_of(tensor)?;
        let copied = Tensor::f_empty(tensor.size(), (tensor.kind(), Device::Cpu))
            .and_then(|mut host| no_grad(|| host.f_copy_(tensor)).map(|()| host));
        copied.map_err(|e| torch_error("copying a variable to the host", &e))
    };
    let named = vars.variables().into_iter();
    named
        .map(|(name, tensor)| match copy(&tensor) {
            Ok(copied) => Ok((name, copied)),
            Err(error) => Err(error.with_tensor(name)),
        })
        .collect()
}

/// Whether `values` are exactly the variables, with their shapes and kinds.
pub(super) fn check(vars: &nn::VarStore, values: &BTreeMap<String, Tensor>) -> Result<()> {
    let variables = vars.variables();
    let unfit =
        |name: &str, fault: String| Err(Error::new(ErrorKind::Mismatch, fault).with_tensor(name));
    if let Some(name) = values.keys().find(|name| !variables.contains_key(*name)) {
        return unfit(name, "weights of a variable that the model lacks".to_owned());
    }
    for (name, variable) in &variables {
        let Some(value) = values.get(name) else {
            return unfit(name, "no weights for a variable of the model".to_owned());
        };
        let (have, want) = (spec_of(value)?, spec_of(variable)?);
        if have != want {
            return unfit(name, format!("weights are {have}, the variable is {want}"));
        }
    }
    Ok(())
}

/// Puts values that [`check`] passed into the variables, in place.
pub(super) fn put(vars: &nn::VarStore, values: &BTreeMap<String, Tensor>) -> Result<()> {
    for (name, mut variable) in vars.variables() {
        let Some(value) = values.get(&name) else { continue };
        no_grad(|| variable.f_copy_(value))
            .map_err(|e| torch_error("putting weights into the model", &e).with_tensor(name))?;
    }
    Ok(())
}
