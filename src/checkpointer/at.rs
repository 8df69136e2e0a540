//! Where training is, as its loop says it.

use std::collections::BTreeMap;

use crate::autosave::Counters;

/// Where training is: how many steps and epochs are completed, and what was measured.
///
/// ```
/// use tch_checkpoint::checkpointer::At;
///
/// let at = At::step(1200).epoch(3).metric("val_loss", 0.25);
/// assert_eq!(at.metrics()["val_loss"], 0.25);
/// ```
#[derive(Debug, Clone, Default, PartialEq)]
pub struct At {
    counters: Counters,
    metrics: BTreeMap<String, f64>,
}

impl At {
    /// So many training steps completed, over all resumes; 0 before the first.
    #[must_use]
    pub fn step(step: u64) -> Self {
        Self { counters: Counters { step, epoch: 0 }, metrics: BTreeMap::new() }
    }

    /// So many epochs completed, over all resumes. Default 0.
    #[must_use]
    pub fn epoch(mut self, epoch: u64) -> Self {
        self.counters.epoch = epoch;
        self
    }

    /// A number measured since the last call; it is stored, and can be the monitored one. The mean
    /// over the ranks that give it counts.
    #[must_use]
    pub fn metric(mut self, name: &str, value: f64) -> Self {
        self.metrics.insert(name.to_owned(), value);
        self
    }

    /// How far training has come.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The numbers, by name.
    #[must_use]
    pub fn metrics(&self) -> &BTreeMap<String, f64> {
        &self.metrics
    }
}
