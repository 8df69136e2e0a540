use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::{Update, copy, missing_slot, scale};
use crate::error::Result;
use crate::torch::{ffi, torch_error};

/// RMSprop. Defaults are PyTorch's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RmsProp {
    /// Learning rate. Default = 1e-2.
    pub lr: f64,
    /// Decay of the mean of squares. Default = 0.99.
    pub alpha: f64,
    /// Added to the denominator. Default = 1e-8.
    pub eps: f64,
    /// L2 penalty. Default = 0.
    pub weight_decay: f64,
    /// Share of the last direction that is kept. Default = 0.
    pub momentum: f64,
    /// Divides by an estimate of the variance instead of the mean square. Default = false.
    pub centered: bool,
}

impl Default for RmsProp {
    fn default() -> Self {
        Self { lr: 1e-2, alpha: 0.99, eps: 1e-8, weight_decay: 0.0, momentum: 0.0, centered: false }
    }
}

impl RmsProp {
    pub(super) fn slots(&self) -> Vec<&'static str> {
        let mut slots = vec!["square_avg"];
        slots.extend(self.centered.then_some("grad_avg"));
        slots.extend((self.momentum > 0.0).then_some("momentum_buffer"));
        slots
    }

    pub(super) fn is_valid(&self) -> bool {
        self.alpha >= 0.0 && self.eps >= 0.0 && self.momentum >= 0.0
    }

    pub(super) fn apply(&self, update: Update<'_>) -> Result<()> {
        let Update { parameter, gradient, slots, lr, .. } = update;
        let [square, rest @ ..] = slots else { return Err(missing_slot()) };
        scale(square, self.alpha)?;
        ffi::addcmul(square, gradient, gradient, 1.0 - self.alpha)?;
        let (variance, rest) = match rest {
            [mean, rest @ ..] if self.centered => {
                scale(mean, self.alpha)?;
                ffi::add(mean, gradient, 1.0 - self.alpha)?;
                let mut variance = copy(square)?;
                ffi::addcmul(&mut variance, mean, mean, -1.0)?;
                (variance, rest)
            }
            rest => (square.shallow_clone(), rest),
        };
        let denominator = self.denominator(&variance);
        let denominator = denominator.map_err(|e| torch_error("dividing by the mean", &e))?;
        match rest.first_mut() {
            Some(buffer) => {
                scale(buffer, self.momentum)?;
                ffi::addcdiv(buffer, gradient, &denominator, 1.0)?;
                ffi::add(parameter, buffer, -lr)
            }
            None => ffi::addcdiv(parameter, gradient, &denominator, -lr),
        }
    }

    fn denominator(&self, variance: &Tensor) -> Result<Tensor, tch::TchError> {
        variance.f_sqrt()?.f_add_scalar_(self.eps)
    }
}
