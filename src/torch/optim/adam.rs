use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{Update, missing_slot, scale};
use crate::error::Result;
use crate::torch::{ffi, torch_error};

/// Adam. Defaults are PyTorch's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Adam {
    /// Learning rate. Default = 1e-3.
    pub lr: f64,
    /// Decay of the mean of gradients and of their squares. Default = (0.9, 0.999).
    pub betas: (f64, f64),
    /// Added to the denominator. Default = 1e-8.
    pub eps: f64,
    /// L2 penalty, added to the gradient. Default = 0.
    pub weight_decay: f64,
    /// Divides by the largest mean square seen so far. Default = false.
    pub amsgrad: bool,
}

impl Default for Adam {
    fn default() -> Self {
        Self { lr: 1e-3, betas: (0.9, 0.999), eps: 1e-8, weight_decay: 0.0, amsgrad: false }
    }
}

/// Adam with decoupled weight decay. Defaults are PyTorch's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct AdamW {
    /// Learning rate. Default = 1e-3.
    pub lr: f64,
    /// Decay of the mean of gradients and of their squares. Default = (0.9, 0.999).
    pub betas: (f64, f64),
    /// Added to the denominator. Default = 1e-8.
    pub eps: f64,
    /// Share of the parameter taken away per step, times the learning rate. Default = 0.01.
    pub weight_decay: f64,
    /// Divides by the largest mean square seen so far. Default = false.
    pub amsgrad: bool,
}

impl Default for AdamW {
    fn default() -> Self {
        Self { lr: 1e-3, betas: (0.9, 0.999), eps: 1e-8, weight_decay: 1e-2, amsgrad: false }
    }
}

/// What both have in common.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moments {
    betas: (f64, f64),
    eps: f64,
    amsgrad: bool,
}

impl From<Adam> for Moments {
    fn from(Adam { betas, eps, amsgrad, .. }: Adam) -> Self {
        Self { betas, eps, amsgrad }
    }
}

impl From<AdamW> for Moments {
    fn from(AdamW { betas, eps, amsgrad, .. }: AdamW) -> Self {
        Self { betas, eps, amsgrad }
    }
}

impl Moments {
    pub(super) fn slots(self) -> Vec<&'static str> {
        let mut slots = vec!["exp_avg", "exp_avg_sq"];
        slots.extend(self.amsgrad.then_some("max_exp_avg_sq"));
        slots
    }

    pub(super) fn is_valid(self) -> bool {
        let beta = |b: f64| (0.0..1.0).contains(&b);
        beta(self.betas.0) && beta(self.betas.1) && self.eps >= 0.0
    }

    pub(super) fn apply(self, update: Update<'_>) -> Result<()> {
        let Update { parameter, gradient, slots, step, lr, .. } = update;
        let [mean, square, rest @ ..] = slots else { return Err(missing_slot()) };
        let (beta1, beta2) = self.betas;
        scale(mean, beta1)?;
        ffi::add(mean, gradient, 1.0 - beta1)?;
        scale(square, beta2)?;
        ffi::addcmul(square, gradient, gradient, 1.0 - beta2)?;
        let largest = match rest.first_mut() {
            Some(largest) => raise(largest, square)?,
            None => square,
        };
        let correction1 = 1.0 - beta1.powf(step);
        let correction2 = 1.0 - beta2.powf(step);
        let denominator = self.denominator(largest, correction2.sqrt());
        let denominator = denominator.map_err(|e| torch_error("dividing by the moments", &e))?;
        ffi::addcdiv(parameter, mean, &denominator, -(lr / correction1))
    }

    fn denominator(self, square: &Tensor, correction: f64) -> Result<Tensor, tch::TchError> {
        square.f_sqrt()?.f_div_scalar_(correction)?.f_add_scalar_(self.eps)
    }
}

/// Decoupled decay, before the step itself.
pub(super) fn decay(parameter: &mut Tensor, lr: f64, weight_decay: f64) -> Result<()> {
    if weight_decay == 0.0 { Ok(()) } else { scale(parameter, 1.0 - lr * weight_decay) }
}

fn raise<'a>(largest: &'a mut Tensor, square: &Tensor) -> Result<&'a mut Tensor> {
    let maximum = largest.f_maximum_out(largest, square);
    let _same = maximum.map_err(|e| torch_error("taking the largest moment", &e))?;
    Ok(largest)
}
