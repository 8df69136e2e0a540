//! Scaling of the loss, so that small gradients survive half precision; as PyTorch's GradScaler.

use std::borrow::Borrow;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::{gradients, join, torch_error};
use crate::error::{Error, ErrorKind, Result};
use crate::state::{Value, Values};

#[cfg(test)]
mod tests;

/// The scale stays between 2^-126 and 2^126, so that it and its reciprocal are normal f32.
const SCALE_MIN: f32 = f32::MIN_POSITIVE;
const SCALE_MAX: f32 = 1.0 / f32::MIN_POSITIVE;

/// Settings of a [`GradScaler`]. Defaults are PyTorch's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct GradScalerConfig {
    /// Scale to begin with, 2^-126 to 2^126. Default = 65536.
    pub init_scale: f64,
    /// What the scale is multiplied by after enough good steps, above 1. Default = 2.
    pub growth_factor: f64,
    /// What the scale is multiplied by after a bad step, between 0 and 1. Default = 0.5.
    pub backoff_factor: f64,
    /// Good steps in a row before the scale grows, at least 1. Default = 2000.
    pub growth_interval: u32,
}

impl Default for GradScalerConfig {
    fn default() -> Self {
        Self { init_scale: 65536.0, growth_factor: 2.0, backoff_factor: 0.5, growth_interval: 2000 }
    }
}

impl GradScalerConfig {
    fn validate(&self) -> Result<()> {
        let growth = self.growth_factor.is_finite() && self.growth_factor > 1.0;
        let backoff = self.backoff_factor > 0.0 && self.backoff_factor < 1.0;
        if growth && backoff && self.growth_interval > 0 && in_range(self.init_scale) {
            return Ok(());
        }
        let message = format!("settings of a gradient scaler that cannot work: {self:?}");
        Err(Error::new(ErrorKind::InvalidInput, message))
    }
}

/// Multiplies the loss by a scale, divides the gradients by it again, and finds the scale: as large
/// as it can be without overflow.
///
/// One step: [`scale_loss`](Self::scale_loss), backward pass, (average gradients),
/// [`unscale`](Self::unscale), (clip), the optimizer's step unless `unscale` found something on
/// *any* rank, [`update`](Self::update) with the same answer on every rank.
///
/// # Example
/// ```
/// use tch::{Device, Kind, nn};
/// use tch_checkpoint::torch::{GradScaler, GradScalerConfig, Optimizer, Sgd};
///
/// let store = nn::VarStore::new(Device::Cpu);
/// let weight = store.root().zeros("weight", &[3]);
/// let mut optimizer = Optimizer::new(Sgd::default(), &store)?;
/// let mut scaler = GradScaler::new(GradScalerConfig::default())?;
/// let loss = (&weight - 1.0).square().sum(Kind::Float);
/// scaler.scale_loss(&loss)?.backward();
/// let found_inf = scaler.unscale(&[&weight])?;
/// if !found_inf {
///     optimizer.step()?;
/// }
/// scaler.update(found_inf);
/// # Ok::<(), tch_checkpoint::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct GradScaler {
    config: GradScalerConfig,
    scale: f32,
    growth_tracker: u32,
}

impl GradScaler {
    /// # Errors
    /// [`ErrorKind::InvalidInput`] for settings that can never work.
    pub fn new(config: GradScalerConfig) -> Result<Self> {
        config.validate()?;
        Ok(Self { config, scale: to_f32(config.init_scale), growth_tracker: 0 })
    }

    /// `loss * scale`, for the backward pass. A scalar loss in half precision becomes f32 first,
    /// so that it does not overflow.
    ///
    /// # Errors
    /// [`ErrorKind::Device`] if libtorch fails.
    pub fn scale_loss(&self, loss: &Tensor) -> Result<Tensor> {
        let scaled = || loss.f_mul(&scalar(self.scale.into(), loss)?);
        scaled().map_err(|e| torch_error("scaling a loss", &e))
    }

    /// Divides the gradients of `parameters` by the scale, in place and without autograd; once for
    /// each step. Gradients of fewer bits are divided in f32 and rounded once. A parameter without
    /// a gradient is left out, one given twice counts once.
    ///
    /// Returns whether any element on this rank is infinite or NaN: then no rank may step. Waits
    /// for the device once.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for gradients that are sparse or on several devices;
    /// [`ErrorKind::Device`] if libtorch fails.
    pub fn unscale<T: Borrow<Tensor>>(&self, parameters: &[T]) -> Result<bool> {
        let mut gradients = gradients::of(parameters)?;
        let Some(first) = gradients.first() else { return Ok(false) };
        let numbers = || Ok((scalar(0.0, first)?, scalar(1.0 / f64::from(self.scale), first)?));
        let numbers = numbers().map_err(|e| torch_error("unscaling gradients", &e));
        let (mut found, inverse) = numbers?;
        let unscaled = tch::no_grad(|| {
            for gradient in &mut gradients {
                gradient.f_internal_amp_non_finite_check_and_unscale(&mut found, &inverse)?;
            }
            found.f_double_value(&[])
        });
        let found = unscaled.map_err(|e| torch_error("unscaling gradients", &e))?;
        Ok(found != 0.0)
    }

    /// Ends a step: the scale backs off if `found_inf`, and grows after `growth_interval` steps in
    /// a row without. It never leaves 2^-126 to 2^126: a change that would is not made.
    /// `found_inf` must be the same on every rank.
    pub fn update(&mut self, found_inf: bool) {
        self.growth_tracker = if found_inf { 0 } else { self.growth_tracker + 1 };
        let factor = if found_inf {
            self.config.backoff_factor
        } else if self.growth_tracker >= self.config.growth_interval {
            self.growth_tracker = 0;
            self.config.growth_factor
        } else {
            return;
        };
        let next = f64::from(self.scale) * factor;
        if in_range(next) {
            self.scale = to_f32(next);
        }
    }

    /// Settings as given, or as loaded.
    #[must_use]
    pub fn config(&self) -> &GradScalerConfig {
        &self.config
    }

    /// The scale in use; a value of f32.
    #[must_use]
    pub fn scale(&self) -> f64 {
        self.scale.into()
    }

    /// Good steps since the scale last changed.
    #[must_use]
    pub fn growth_tracker(&self) -> u32 {
        self.growth_tracker
    }

    /// Stores `config` (JSON), `scale` and `growth_tracker` under `prefix`.
    ///
    /// # Errors
    /// None for valid settings.
    pub fn save_values(&self, prefix: &str, values: &mut Values) -> Result<()> {
        values.set(join(prefix, "config"), Value::json(&self.config)?);
        values.set(join(prefix, "scale"), self.scale);
        values.set(join(prefix, "growth_tracker"), self.growth_tracker);
        Ok(())
    }

    /// The scaler that [`save_values`](Self::save_values) stored.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] or [`ErrorKind::Mismatch`] for absent or unfit values: settings
    /// that cannot work, a scale out of range, a negative or too large count.
    pub fn from_values(prefix: &str, values: &Values) -> Result<Self> {
        let config: GradScalerConfig = values.json(&join(prefix, "config"))?;
        config.validate().map_err(|e| e.with_kind(ErrorKind::Mismatch))?;
        let scale = values.float(&join(prefix, "scale"))?;
        let count = values.int(&join(prefix, "growth_tracker"))?;
        let tracker = u32::try_from(count).ok().filter(|n| *n < config.growth_interval);
        let (true, Some(growth_tracker)) = (in_range(scale), tracker) else {
            let message = format!(
                "a gradient scaler cannot have scale {scale} after {count} good steps of {}",
                config.growth_interval
            );
            return Err(Error::new(ErrorKind::Mismatch, message));
        };
        Ok(Self { config, scale: to_f32(scale), growth_tracker })
    }

    /// Whether [`load_values`](Self::load_values) would take these values; changes nothing.
    ///
    /// # Errors
    /// As [`from_values`](Self::from_values).
    pub fn check_values(&self, prefix: &str, values: &Values) -> Result<()> {
        Self::from_values(prefix, values).map(drop)
    }

    /// Continues from stored values; settings become those of the checkpoint, as in PyTorch.
    ///
    /// # Errors
    /// As [`from_values`](Self::from_values); nothing is then changed.
    pub fn load_values(&mut self, prefix: &str, values: &Values) -> Result<()> {
        *self = Self::from_values(prefix, values)?;
        Ok(())
    }
}

/// One f32 on the device of `like`.
fn scalar(value: f64, like: &Tensor) -> Result<Tensor, tch::TchError> {
    Tensor::f_full([0i64; 0], value, (Kind::Float, like.device()))
}

fn in_range(scale: f64) -> bool {
    (f64::from(SCALE_MIN)..=f64::from(SCALE_MAX)).contains(&scale)
}

/// Rounds as libtorch does, which keeps the scale in f32.
#[allow(clippy::cast_possible_truncation)]
fn to_f32(value: f64) -> f32 {
    value as f32
}
