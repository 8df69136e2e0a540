use serde::{Deserialize, Serialize};

use super::SchedulerConfig;

/// A linear rise to the base learning rate, and what comes after it:
/// `base · (start_factor + (1 − start_factor) · position / steps)` (PyTorch's `LinearLR` with
/// `end_factor=1`, and `SequentialLR` with one milestone at `steps`).
///
/// At position `steps` the follower begins at its own position 0, from the base learning rate; its
/// positions are counted from there. Without a follower the base learning rate stays. A
/// [`ReduceOnPlateau`](super::ReduceOnPlateau) may follow (in PyTorch it may not): it does not see
/// the metrics of the positions before `steps`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Warmup {
    /// Share of the base learning rate to begin with, above 0, at most 1. Default = 1/3.
    pub start_factor: f64,
    /// Length of the warm-up in positions, at least 1. Default = 5.
    pub steps: u64,
    /// What follows; at most three in a chain. Default = none.
    pub then: Option<Box<SchedulerConfig>>,
}

impl Default for Warmup {
    fn default() -> Self {
        Self { start_factor: 1.0 / 3.0, steps: 5, then: None }
    }
}

impl Warmup {
    pub(super) fn is_valid(&self) -> bool {
        self.steps > 0 && self.start_factor > 0.0 && self.start_factor <= 1.0
    }

    /// The learning rate at a position before `steps`.
    pub(super) fn lr_at(&self, base: f64, position: u64) -> f64 {
        let start = self.start_factor;
        base * (start + (1.0 - start) * position as f64 / self.steps as f64)
    }
}
