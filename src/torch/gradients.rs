//! The gradients of parameters, for what changes them between the backward pass and the step.

use std::borrow::Borrow;
use std::collections::HashSet;

use tch::Tensor;

use super::ffi::{self, Form};
use super::torch_error;
use crate::error::{Error, ErrorKind, Result};

/// Handles of the gradients that exist; what is done to them in place is done to the parameters'
/// own. A parameter given twice (tied) counts once.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for a sparse gradient, and for gradients on several devices.
pub(super) fn of<T: Borrow<Tensor>>(parameters: &[T]) -> Result<Vec<Tensor>> {
    let mut found: Vec<Tensor> = Vec::with_capacity(parameters.len());
    let mut seen = HashSet::new();
    for (index, parameter) in parameters.iter().enumerate() {
        let gradient = parameter.borrow().f_grad();
        let gradient = gradient.map_err(|e| torch_error("taking a gradient", &e))?;
        let described = ffi::describe(&gradient)?;
        if described.form == Form::Undefined || !seen.insert(described.identity) {
            continue;
        }
        if described.form != Form::Dense {
            return Err(unsupported(&format!("the gradient of parameter {index} is not dense"))
                .with_help("build embeddings with `sparse: false`"));
        }
        if found.first().is_some_and(|first| first.device() != gradient.device()) {
            return Err(unsupported("gradients lie on several devices"));
        }
        found.push(gradient);
    }
    Ok(found)
}

/// What handles of one variable have in common, and those of no two.
pub(crate) fn identity(tensor: &Tensor) -> Result<u64> {
    Ok(ffi::describe(tensor)?.identity)
}

/// Makes the gradient of `tensor` undefined.
pub(crate) fn clear(tensor: &Tensor) -> Result<()> {
    ffi::clear_grad(&mut tensor.shallow_clone())
}

fn unsupported(message: &str) -> Error {
    Error::new(ErrorKind::Unsupported, message)
}
