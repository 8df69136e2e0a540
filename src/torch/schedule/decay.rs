use serde::{Deserialize, Serialize};

use super::config::{is_positive, power};

/// Most milestones a [`MultiStepLr`] may have.
const MAX_MILESTONES: usize = 10_000;

/// Decay by a factor at equal distances: `base · gamma^⌊position / step_size⌋` (PyTorch's
/// `StepLR`).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct StepLr {
    /// Positions between two decays, at least 1. Default = 0, which is refused: set it.
    pub step_size: u64,
    /// Factor of a decay, above 0. Default = 0.1.
    pub gamma: f64,
}

impl Default for StepLr {
    fn default() -> Self {
        Self { step_size: 0, gamma: 0.1 }
    }
}

impl StepLr {
    pub(super) fn is_valid(&self) -> bool {
        self.step_size > 0 && is_positive(self.gamma)
    }

    pub(super) fn lr_at(&self, base: f64, position: u64) -> f64 {
        base * power(self.gamma, position / self.step_size)
    }
}

/// Decay by a factor at given positions: `base · gamma^(milestones ≤ position)` (PyTorch's
/// `MultiStepLR`). A milestone given twice counts twice.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MultiStepLr {
    /// Positions of the decays, ascending, at most 10 000. Default = none, which is refused: set
    /// them.
    pub milestones: Vec<u64>,
    /// Factor of a decay, above 0. Default = 0.1.
    pub gamma: f64,
}

impl Default for MultiStepLr {
    fn default() -> Self {
        Self { milestones: Vec::new(), gamma: 0.1 }
    }
}

impl MultiStepLr {
    pub(super) fn is_valid(&self) -> bool {
        let count = (1..=MAX_MILESTONES).contains(&self.milestones.len());
        count && self.milestones.is_sorted() && is_positive(self.gamma)
    }

    pub(super) fn lr_at(&self, base: f64, position: u64) -> f64 {
        let passed = self.milestones.partition_point(|&milestone| milestone <= position);
        base * power(self.gamma, passed as u64)
    }
}

/// Decay at every position: `base · gamma^position` (PyTorch's `ExponentialLR`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct ExponentialLr {
    /// Factor of a decay, above 0. Default = 0, which is refused: set it.
    pub gamma: f64,
}

impl ExponentialLr {
    pub(super) fn is_valid(&self) -> bool {
        is_positive(self.gamma)
    }

    pub(super) fn lr_at(&self, base: f64, position: u64) -> f64 {
        base * power(self.gamma, position)
    }
}
