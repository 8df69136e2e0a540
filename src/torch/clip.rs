//! Clipping of gradients before an optimizer step.

use std::borrow::Borrow;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::{gradients, torch_error};
use crate::error::{Error, ErrorKind, Result};

#[cfg(test)]
mod tests;

/// PyTorch's, so that a small norm is not divided by zero.
const NORM_EPS: f64 = 1e-6;

/// How gradients are kept small. The bound must be finite and above zero.
///
/// With a [`GradScaler`](super::GradScaler), unscale before clipping.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Clip {
    /// Scales all gradients by `min(1, bound / (norm + 1e-6))`, where `norm` is the 2-norm of all
    /// of them together; as `clip_grad_norm_` of PyTorch with `error_if_nonfinite=False`. An
    /// infinite norm makes finite gradients 0 and infinite ones NaN, a NaN norm makes all NaN.
    Norm(f64),
    /// Limits every element to `-bound..=bound`; as `clip_grad_value_` of PyTorch. NaN stays.
    Value(f64),
}

impl Clip {
    /// Clips the gradients of `parameters` in place, without autograd, and returns their total
    /// 2-norm from before (0 where there are none; NaN or infinite if they are not finite). The
    /// norm is that of the norms of all gradients, in single precision (double where a gradient
    /// is). A parameter without a gradient is left out.
    ///
    /// Waits for the device once. Every rank clips alone: with equal gradients (after they were
    /// averaged) all do the same.
    ///
    /// # Errors
    /// As [`Clip::validate`]; [`ErrorKind::Unsupported`] for gradients that are sparse or on
    /// several devices; [`ErrorKind::Device`] if libtorch fails.
    pub fn apply<T: Borrow<Tensor>>(&self, parameters: &[T]) -> Result<f64> {
        self.validate()?;
        let mut gradients = gradients::of(parameters)?;
        if gradients.is_empty() {
            return Ok(0.0);
        }
        let clipped = tch::no_grad(|| {
            let norm = total_norm(&gradients)?;
            match *self {
                Self::Norm(bound) => scale_to(&mut gradients, &norm, bound)?,
                Self::Value(bound) => limit(&mut gradients, bound)?,
            }
            norm.f_double_value(&[])
        });
        clipped.map_err(|e| torch_error("clipping gradients", &e))
    }

    /// # Errors
    /// [`ErrorKind::InvalidInput`] for a bound that is not finite and above zero.
    pub fn validate(&self) -> Result<()> {
        let (Self::Norm(bound) | Self::Value(bound)) = *self;
        if bound.is_finite() && bound > 0.0 {
            return Ok(());
        }
        let message = format!("gradients cannot be clipped to {bound}");
        Err(Error::new(ErrorKind::InvalidInput, message)
            .with_help("give a finite bound above zero"))
    }
}

fn total_norm(gradients: &[Tensor]) -> Result<Tensor, tch::TchError> {
    let norm = |gradient: &Tensor| match gradient.f_kind()? {
        // The squares of a half overflow long before their sum would.
        Kind::Half | Kind::BFloat16 => gradient.f_norm_scalaropt_dtype(2, Kind::Float),
        _ => gradient.f_norm(),
    };
    let norms = gradients.iter().map(norm).collect::<Result<Vec<_>, _>>()?;
    Tensor::f_stack(&norms, 0)?.f_norm()
}

/// The factor stays on the device: nothing waits for it.
fn scale_to(gradients: &mut [Tensor], norm: &Tensor, bound: f64) -> Result<(), tch::TchError> {
    let factor = norm.f_add_scalar(NORM_EPS)?.f_reciprocal()?.f_mul_scalar(bound)?;
    let factor = factor.f_clamp_max(1.0)?;
    gradients.iter_mut().try_for_each(|gradient| gradient.f_mul_(&factor).map(drop))
}

fn limit(gradients: &mut [Tensor], bound: f64) -> Result<(), tch::TchError> {
    gradients.iter_mut().try_for_each(|gradient| gradient.f_clamp_(-bound, bound).map(drop))
}
