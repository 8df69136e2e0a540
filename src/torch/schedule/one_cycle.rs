use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use super::config::is_positive;

/// How a [`OneCycle`] goes from one learning rate to the next.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Anneal {
    /// Along half a cosine.
    #[default]
    Cosine,
    /// In a straight line.
    Linear,
}

/// From `max_lr / div_factor` up to `max_lr` and down to `max_lr / div_factor / final_div_factor`,
/// once (PyTorch's `OneCycleLR`).
///
/// The same for every parameter group, whatever learning rate it had. Only the learning rate:
/// momentum is not cycled, as with PyTorch's `cycle_momentum=False`. From position
/// `total_steps - 1` on the learning rate stays at its last value, where PyTorch raises.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct OneCycle {
    /// Highest learning rate, above 0. Default = 0, which is refused: set it.
    pub max_lr: f64,
    /// Length of the cycle in positions, at least 1. Default = 0, which is refused: set it.
    pub total_steps: u64,
    /// Share of the cycle in which the learning rate rises, from 0 to 1. Default = 0.3.
    pub pct_start: f64,
    /// Shape of rise and fall. Default = [`Anneal::Cosine`].
    pub anneal: Anneal,
    /// `max_lr` over the first learning rate, above 0. Default = 25.
    pub div_factor: f64,
    /// First learning rate over the last one, above 0. Default = 1e4.
    pub final_div_factor: f64,
    /// Fall to the first learning rate in as long as the rise took, and only then to the last.
    /// Default = false.
    pub three_phase: bool,
}

impl Default for OneCycle {
    fn default() -> Self {
        Self {
            max_lr: 0.0,
            total_steps: 0,
            pct_start: 0.3,
            anneal: Anneal::Cosine,
            div_factor: 25.0,
            final_div_factor: 1e4,
            three_phase: false,
        }
    }
}

/// A stretch of the cycle: its last position, the learning rates at its two ends.
struct Stretch {
    end: f64,
    from: f64,
    to: f64,
}

impl OneCycle {
    pub(super) fn is_valid(&self) -> bool {
        let factors = [self.max_lr, self.div_factor, self.final_div_factor];
        let ends = [self.first_lr(), self.last_lr()];
        self.total_steps > 0
            && (0.0..=1.0).contains(&self.pct_start)
            && factors.into_iter().all(is_positive)
            && ends.into_iter().all(f64::is_finite)
    }

    pub(super) fn lr_at(&self, position: u64) -> f64 {
        let position = position.min(self.total_steps.saturating_sub(1)) as f64;
        let mut start = 0.0;
        for Stretch { end, from, to } in self.stretches() {
            if position <= end {
                let length = end - start;
                // A stretch of one position is at its end at once (PyTorch divides by zero).
                let share = if length == 0.0 { 1.0 } else { (position - start) / length };
                return self.between(from, to, share);
            }
            start = end;
        }
        self.last_lr()
    }

    fn stretches(&self) -> Vec<Stretch> {
        let (first, last, total) = (self.first_lr(), self.last_lr(), self.total_steps as f64);
        let rise = Stretch { end: self.pct_start * total - 1.0, from: first, to: self.max_lr };
        let end = total - 1.0;
        if !self.three_phase {
            return vec![rise, Stretch { end, from: self.max_lr, to: last }];
        }
        let fallen = 2.0 * self.pct_start * total - 2.0;
        let fall = Stretch { end: fallen, from: self.max_lr, to: first };
        vec![rise, fall, Stretch { end, from: first, to: last }]
    }

    fn between(&self, from: f64, to: f64, share: f64) -> f64 {
        match self.anneal {
            Anneal::Cosine => to + (from - to) / 2.0 * ((PI * share).cos() + 1.0),
            Anneal::Linear => (to - from) * share + from,
        }
    }

    fn first_lr(&self) -> f64 {
        self.max_lr / self.div_factor
    }

    fn last_lr(&self) -> f64 {
        self.first_lr() / self.final_div_factor
    }
}
