//! What a checkpointer itself keeps of a run, beside its parts.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::autosave::{Counters, Mode};
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::{METRICS, Manifest, floats_of};
use crate::state::Values;

/// What a checkpointer itself keeps of a run; in every checkpoint of it.
///
/// Stored as `trainer.step`, `trainer.epoch`, `trainer.experiment`, `trainer.best`,
/// `trainer.best_step`, `trainer.best_saved`, `trainer.metrics.<name>`, `history.train_loss` and
/// `history.val_loss`; beside them are as `metrics.<name>` those that were given to the save.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct TrainerState {
    /// Training steps completed.
    pub step: u64,
    /// Epochs completed.
    pub epoch: u64,
    /// Name of the run.
    pub experiment: String,
    /// The best value of the monitored metric so far, of those given to `update_state` and to
    /// saves; `None` before the first finite one.
    pub best: Option<f64>,
    /// The step at which it was measured: for `update_state` the last one that was told.
    pub best_step: u64,
    /// The best value of the monitored metric that a checkpoint was saved with.
    pub best_saved: Option<f64>,
    /// Training losses, as given to `update_state`.
    pub train_losses: Vec<f64>,
    /// Validation losses, as given to `update_state`.
    pub val_losses: Vec<f64>,
    /// The newest value of each metric.
    pub metrics: BTreeMap<String, f64>,
    /// When the checkpoint was saved that this comes from, in milliseconds since 1970; `None` in
    /// a run that began anew.
    pub saved_unix_ms: Option<u64>,
}

const STEP: &str = "trainer.step";
const EPOCH: &str = "trainer.epoch";
const EXPERIMENT: &str = "trainer.experiment";
const BEST: &str = "trainer.best";
const BEST_STEP: &str = "trainer.best_step";
const BEST_SAVED: &str = "trainer.best_saved";
/// Prefix of the newest value of each metric.
const NEWEST: &str = "trainer.metrics.";
const TRAIN_LOSSES: &str = "history.train_loss";
const VAL_LOSSES: &str = "history.val_loss";

impl TrainerState {
    /// How far training had come.
    #[must_use]
    pub fn counters(&self) -> Counters {
        Counters { step: self.step, epoch: self.epoch }
    }

    /// A checkpoint is saved with these metrics.
    pub(super) fn save_with(
        &mut self,
        metrics: &BTreeMap<String, f64>,
        monitor: Option<(&str, Mode)>,
    ) {
        self.measure(metrics, monitor, self.step);
        let Some((name, mode)) = monitor else { return };
        let value = metrics.get(name).copied().filter(|value| value.is_finite());
        let better = |value: &f64| self.best_saved.is_none_or(|best| mode.is_better(*value, best));
        if let Some(value) = value.filter(better) {
            self.best_saved = Some(value);
        }
    }

    /// Takes note of metrics; the monitored one becomes the best if it is finite and strictly
    /// better than the best so far.
    pub(super) fn measure(
        &mut self,
        metrics: &BTreeMap<String, f64>,
        monitor: Option<(&str, Mode)>,
        step: u64,
    ) {
        self.metrics.extend(metrics.iter().map(|(name, value)| (name.clone(), *value)));
        let Some((name, mode)) = monitor else { return };
        let Some(value) = metrics.get(name).copied().filter(|value| value.is_finite()) else {
            return;
        };
        if self.best.is_none_or(|best| mode.is_better(value, best)) {
            (self.best, self.best_step) = (Some(value), step);
        }
    }

    /// All of it. Which metrics the checkpoint itself is listed with is the caller's to say.
    pub(super) fn save(&self, values: &mut Values) -> Result<()> {
        values.set(STEP, count(STEP, self.step)?);
        values.set(EPOCH, count(EPOCH, self.epoch)?);
        values.set(EXPERIMENT, self.experiment.as_str());
        if let Some(best) = self.best {
            values.set(BEST, best);
            values.set(BEST_STEP, count(BEST_STEP, self.best_step)?);
        }
        if let Some(best) = self.best_saved {
            values.set(BEST_SAVED, best);
        }
        for (name, value) in &self.metrics {
            values.set(format!("{NEWEST}{name}"), *value);
        }
        values.set(TRAIN_LOSSES, self.train_losses.clone());
        values.set(VAL_LOSSES, self.val_losses.clone());
        Ok(())
    }

    /// From the checkpoint of a checkpointer, or of anything else that counts steps: what it does
    /// not hold takes its default.
    pub(super) fn load(manifest: &Manifest) -> Result<Self> {
        let values = manifest.values();
        let floats = |name: &str| match values.find(name) {
            Some(_) => values.floats(name),
            None => Ok(Vec::new()),
        };
        let float = |name: &str| -> Result<Option<f64>> {
            let stored = values.find(name).map(|_| values.float(name)).transpose()?;
            Ok(stored.filter(|number| number.is_finite()))
        };
        let best_step = values.find(BEST_STEP).map(|_| values.int(BEST_STEP)).transpose()?;
        Ok(Self {
            step: manifest.step(),
            epoch: manifest.epoch(),
            experiment: values
                .find(EXPERIMENT)
                .map_or(Ok(String::new()), |_| values.text(EXPERIMENT))?,
            best: float(BEST)?,
            best_saved: float(BEST_SAVED)?,
            best_step: u64::try_from(best_step.unwrap_or(0)).map_err(|_| {
                Error::new(ErrorKind::Mismatch, format!("value `{BEST_STEP}` is negative"))
            })?,
            train_losses: floats(TRAIN_LOSSES)?,
            val_losses: floats(VAL_LOSSES)?,
            metrics: [NEWEST, METRICS].into_iter().flat_map(|p| floats_of(values, p)).collect(),
            saved_unix_ms: Some(manifest.created_unix_ms()),
        })
    }
}

fn count(name: &str, count: u64) -> Result<i64> {
    i64::try_from(count).map_err(|_| {
        Error::new(ErrorKind::InvalidInput, format!("{name} is {count}, too large to be stored"))
    })
}
