use serde::{Deserialize, Serialize};

use super::config::is_rate;
use crate::torch::optim::ParamGroup;

/// Whether a metric should fall or rise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PlateauMode {
    /// Lower is better.
    #[default]
    Min,
    /// Higher is better.
    Max,
}

/// How [`ReduceOnPlateau::threshold`] is meant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ThresholdMode {
    /// As a share of the best metric.
    #[default]
    Rel,
    /// As a distance from the best metric.
    Abs,
}

/// `lr · factor`, not below `min_lr`, when a metric has not become better in more than `patience`
/// epochs (PyTorch's `ReduceLROnPlateau`). Counts epochs, never steps.
///
/// An epoch without a metric, or with NaN, changes nothing; PyTorch counts NaN as not better. It
/// scales the learning rate that it finds, so a change made by hand stays.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ReduceOnPlateau {
    /// Which way is better. Default = [`PlateauMode::Min`].
    pub mode: PlateauMode,
    /// Factor of a reduction, above 0 and below 1. Default = 0.1.
    pub factor: f64,
    /// Epochs that may be no better; the next one reduces. Default = 10.
    pub patience: u64,
    /// What a metric must gain to be better, not negative; as a share, below 1. Default = 1e-4.
    pub threshold: f64,
    /// How the threshold is meant. Default = [`ThresholdMode::Rel`].
    pub threshold_mode: ThresholdMode,
    /// Epochs after a reduction in which none counts as bad. Default = 0.
    pub cooldown: u64,
    /// Lowest learning rate to reduce to, not negative. Default = 0.
    pub min_lr: f64,
    /// A reduction by no more than this is not made. Default = 1e-8.
    pub eps: f64,
}

impl Default for ReduceOnPlateau {
    fn default() -> Self {
        Self {
            mode: PlateauMode::Min,
            factor: 0.1,
            patience: 10,
            threshold: 1e-4,
            threshold_mode: ThresholdMode::Rel,
            cooldown: 0,
            min_lr: 0.0,
            eps: 1e-8,
        }
    }
}

impl ReduceOnPlateau {
    pub(super) fn is_valid(&self) -> bool {
        let factor = self.factor > 0.0 && self.factor < 1.0;
        // A share of 1 or more could never be gained.
        let threshold = self.threshold_mode == ThresholdMode::Abs || self.threshold < 1.0;
        factor && threshold && [self.threshold, self.min_lr, self.eps].into_iter().all(is_rate)
    }

    fn is_better(&self, metric: f64, best: f64) -> bool {
        match (self.mode, self.threshold_mode) {
            (PlateauMode::Min, ThresholdMode::Rel) => metric < best * (1.0 - self.threshold),
            (PlateauMode::Min, ThresholdMode::Abs) => metric < best - self.threshold,
            (PlateauMode::Max, ThresholdMode::Rel) => metric > best * (self.threshold + 1.0),
            (PlateauMode::Max, ThresholdMode::Abs) => metric > best + self.threshold,
        }
    }

    fn reduce(&self, group: &mut ParamGroup) {
        let reduced = (group.lr * self.factor).max(self.min_lr);
        if group.lr - reduced > self.eps {
            group.lr = reduced;
        }
    }
}

/// What a [`ReduceOnPlateau`] has seen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Seen {
    /// Infinite before the first metric; never NaN.
    pub(super) best: f64,
    pub(super) bad_epochs: u64,
    pub(super) cooldown_left: u64,
}

impl Seen {
    pub(super) fn nothing(config: &ReduceOnPlateau) -> Self {
        let best = match config.mode {
            PlateauMode::Min => f64::INFINITY,
            PlateauMode::Max => f64::NEG_INFINITY,
        };
        Self { best, bad_epochs: 0, cooldown_left: 0 }
    }

    /// Whether a scheduler with these settings can have seen this.
    pub(super) fn fits(&self, config: &ReduceOnPlateau) -> bool {
        let counters = self.bad_epochs <= config.patience && self.cooldown_left <= config.cooldown;
        counters && !self.best.is_nan()
    }

    pub(super) fn take(&mut self, config: &ReduceOnPlateau, metric: f64, all: &mut [ParamGroup]) {
        if metric.is_nan() {
            return;
        }
        if config.is_better(metric, self.best) {
            (self.best, self.bad_epochs) = (metric, 0);
        } else {
            self.bad_epochs = self.bad_epochs.saturating_add(1);
        }
        if self.cooldown_left > 0 {
            (self.cooldown_left, self.bad_epochs) = (self.cooldown_left - 1, 0);
        }
        if self.bad_epochs > config.patience {
            all.iter_mut().for_each(|group| config.reduce(group));
            (self.cooldown_left, self.bad_epochs) = (config.cooldown, 0);
        }
    }
}
