use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::Update;
use crate::error::Result;
use crate::torch::{ffi, torch_error};

/// Stochastic gradient descent. Defaults are PyTorch's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sgd {
    /// Learning rate. Default = 1e-3.
    pub lr: f64,
    /// Share of the last direction that is kept. Default = 0.
    pub momentum: f64,
    /// Damping of the gradient's part in the momentum. Default = 0.
    pub dampening: f64,
    /// L2 penalty. Default = 0.
    pub weight_decay: f64,
    /// Nesterov momentum; needs momentum and no dampening. Default = false.
    pub nesterov: bool,
}

impl Default for Sgd {
    fn default() -> Self {
        Self { lr: 1e-3, momentum: 0.0, dampening: 0.0, weight_decay: 0.0, nesterov: false }
    }
}

impl Sgd {
    pub(super) fn slots(&self) -> Vec<&'static str> {
        if self.momentum == 0.0 { Vec::new() } else { vec!["momentum_buffer"] }
    }

    pub(super) fn is_valid(&self) -> bool {
        let nesterov = !self.nesterov || (self.momentum > 0.0 && self.dampening == 0.0);
        nesterov && self.momentum >= 0.0 && self.dampening.is_finite()
    }

    pub(super) fn apply(&self, update: Update<'_>) -> Result<()> {
        let Update { parameter, gradient, slots, step, lr, .. } = update;
        let Some(buffer) = slots.first_mut() else {
            return ffi::add(parameter, gradient, -lr);
        };
        if step == 1.0 {
            // The first direction is the gradient itself, without dampening.
            buffer.f_copy_(gradient).map_err(|e| torch_error("starting the momentum", &e))?;
        } else {
            super::scale(buffer, self.momentum)?;
            ffi::add(buffer, gradient, 1.0 - self.dampening)?;
        }
        if !self.nesterov {
            return ffi::add(parameter, buffer, -lr);
        }
        let mut direction: Tensor = super::copy(gradient)?;
        ffi::add(&mut direction, buffer, self.momentum)?;
        ffi::add(parameter, &direction, -lr)
    }
}
