//! A rack as it was at a moment, in memory.

use tch::{Tensor, no_grad};

use super::architecture::Architecture;
use super::described::RackInfo;
use super::rack::Rack;
use crate::error::{Error, ErrorKind, Result};
use crate::torch::torch_error;

/// A rack as it was at a moment: structure and every value, in memory of its own.
#[derive(Debug)]
pub struct RackSnapshot {
    info: RackInfo,
    /// Of every part, by name.
    variables: Vec<(String, Tensor)>,
}

impl RackSnapshot {
    /// What the rack consisted of.
    #[must_use]
    pub fn info(&self) -> &RackInfo {
        &self.info
    }
}

impl<A: Architecture> Rack<A> {
    /// Copies structure and values. Any rank; needs no other.
    ///
    /// # Errors
    /// [`ErrorKind::Device`] if copying fails.
    pub fn get_model_state(&self) -> Result<RackSnapshot> {
        let mut variables = Vec::new();
        for (name, tensor) in self.parts()?.into_iter().flat_map(|part| part.variables) {
            let copy = no_grad(|| tensor.f_detach_copy());
            variables.push((name, copy.map_err(|e| torch_error("copying a variable", &e))?));
        }
        Ok(RackSnapshot { info: self.info(), variables })
    }

    /// Becomes the rack that it was, stacks that were added since removed and others made again. An
    /// optimizer is to be made anew: variables are new ones. Any rank; needs no other.
    ///
    /// # Errors
    /// [`ErrorKind::Mismatch`] for the state of a rack of another configuration;
    /// [`ErrorKind::Device`]. Nothing has changed then.
    pub fn load_model_state(&mut self, state: &RackSnapshot) -> Result<()> {
        let (config, device) = (self.config().clone(), self.device());
        let mut fresh = Self::from_info(config, &state.info, self.seed, device)?;
        let into: Vec<_> = fresh.parts()?.into_iter().flat_map(|part| part.variables).collect();
        let fits = |((name, into), (stored, from)): (&(String, Tensor), &(String, Tensor))| {
            name == stored && into.size() == from.size() && into.kind() == from.kind()
        };
        if into.len() != state.variables.len() || !into.iter().zip(&state.variables).all(fits) {
            let message = "the state is that of a rack of another configuration";
            return Err(Error::new(ErrorKind::Mismatch, message).with_help("nothing was changed"));
        }
        for ((name, into), (_, from)) in into.iter().zip(&state.variables) {
            no_grad(|| into.shallow_clone().f_copy_(from)).map_err(|e| {
                torch_error("taking over a variable", &e).with_tensor(name.as_str())
            })?;
        }
        fresh.merge_as(&state.info.stack_info)?;
        *self = fresh;
        Ok(())
    }
}
