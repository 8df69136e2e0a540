use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use super::config::is_rate;

/// Half a cosine from the base learning rate down to `eta_min`:
/// `eta_min + (base − eta_min) · (1 + cos(π · position / t_max)) / 2` (PyTorch's
/// `CosineAnnealingLR`).
///
/// As there, the rate rises again after `t_max` and is back at the base at `2 · t_max`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct CosineLr {
    /// Position of the minimum, at least 1. Default = 0, which is refused: set it.
    pub t_max: u64,
    /// Learning rate at the minimum, not negative. Default = 0.
    pub eta_min: f64,
}

impl CosineLr {
    pub(super) fn is_valid(&self) -> bool {
        self.t_max > 0 && is_rate(self.eta_min)
    }

    pub(super) fn lr_at(&self, base: f64, position: u64) -> f64 {
        let position = position % self.t_max.saturating_mul(2);
        anneal(base, self.eta_min, position, self.t_max)
    }
}

/// The cosine of [`CosineLr`] again and again, each time from the base learning rate (PyTorch's
/// `CosineAnnealingWarmRestarts`, advanced in whole positions).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CosineRestarts {
    /// Length of the first cycle, at least 1. Default = 0, which is refused: set it.
    pub t_0: u64,
    /// How many times longer each cycle is than the one before it, at least 1. Default = 1.
    pub t_mult: u64,
    /// Learning rate that a cycle approaches, not negative. Default = 0.
    pub eta_min: f64,
}

impl Default for CosineRestarts {
    fn default() -> Self {
        Self { t_0: 0, t_mult: 1, eta_min: 0.0 }
    }
}

impl CosineRestarts {
    pub(super) fn is_valid(&self) -> bool {
        self.t_0 > 0 && self.t_mult > 0 && is_rate(self.eta_min)
    }

    pub(super) fn lr_at(&self, base: f64, position: u64) -> f64 {
        let (since_restart, length) = self.cycle(position);
        anneal(base, self.eta_min, since_restart, length)
    }

    /// Positions since the last restart, and the length of the cycle that began there.
    fn cycle(&self, position: u64) -> (u64, u64) {
        if self.t_mult == 1 {
            return (position % self.t_0, self.t_0);
        }
        // Lengths at least double, so that this ends after 64 rounds.
        let (mut rest, mut length) = (position, self.t_0);
        while rest >= length {
            rest -= length;
            length = length.saturating_mul(self.t_mult);
        }
        (rest, length)
    }
}

fn anneal(base: f64, eta_min: f64, position: u64, length: u64) -> f64 {
    let angle = PI * position as f64 / length as f64;
    eta_min + (base - eta_min) * (1.0 + angle.cos()) / 2.0
}
