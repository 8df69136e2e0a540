//! Settings said one after the other.

use std::path::PathBuf;

use super::{AsyncMode, CheckpointerConfig, InFlight, Location, Resume};
use crate::autosave::Mode;
use crate::plan::OnExisting;

/// Each sets what it says and leaves the rest. Nothing is checked before
/// [`CheckpointerConfig::check`].
///
/// ```
/// use tch_checkpoint::autosave::Mode;
/// use tch_checkpoint::checkpointer::CheckpointerConfig;
///
/// let config = CheckpointerConfig::new("digits")
///     .in_directory("runs")
///     .every_steps(100)
///     .every_minutes(10.0)
///     .keep_last(3)
///     .keep_best(2, "val_loss", Mode::Min);
/// config.check()?;
/// # Ok::<(), tch_checkpoint::Error>(())
/// ```
impl CheckpointerConfig {
    /// The defaults, for an experiment of this name.
    #[must_use]
    pub fn new(experiment: impl Into<String>) -> Self {
        Self { experiment: experiment.into(), ..Self::default() }
    }

    /// Whether there are checkpoints at all.
    #[must_use]
    pub fn enabled(self, enabled: bool) -> Self {
        Self { enabled, ..self }
    }

    /// Checkpoints lie in `<directory>/<experiment>`.
    #[must_use]
    pub fn in_directory(self, directory: impl Into<PathBuf>) -> Self {
        Self { location: Location::Path(directory.into()), ..self }
    }

    /// Where experiments lie.
    #[must_use]
    pub fn at(self, location: Location) -> Self {
        Self { location, ..self }
    }

    /// Save after every `n` epochs, counted over all resumes.
    #[must_use]
    pub fn every_epochs(self, n: u64) -> Self {
        Self { save_every_epochs: Some(n), ..self }
    }

    /// Save after every `n` training steps, counted over all resumes.
    #[must_use]
    pub fn every_steps(self, n: u64) -> Self {
        Self { save_every_steps: Some(n), ..self }
    }

    /// Save after so many minutes since the last save.
    #[must_use]
    pub fn every_minutes(self, minutes: f64) -> Self {
        Self { save_every_minutes: Some(minutes), ..self }
    }

    /// Whether to save when training ends.
    #[must_use]
    pub fn at_end(self, save_at_end: bool) -> Self {
        Self { save_at_end, ..self }
    }

    /// Whether to save and end at SIGUSR1 and SIGTERM.
    #[must_use]
    pub fn on_signal(self, save_on_signal: bool) -> Self {
        Self { save_on_signal, ..self }
    }

    /// Save and end so many seconds before the job's time ends.
    #[must_use]
    pub fn before_time_limit(self, margin_seconds: f64) -> Self {
        Self { save_before_time_limit: true, time_limit_margin_seconds: margin_seconds, ..self }
    }

    /// Run into the job's time limit as if there were none.
    #[must_use]
    pub fn ignore_time_limit(self) -> Self {
        Self { save_before_time_limit: false, ..self }
    }

    /// Template of names, such as those of [`names`](crate::autosave::names).
    #[must_use]
    pub fn named(self, template: impl Into<String>) -> Self {
        Self { name: template.into(), ..self }
    }

    /// Metrics that the template may mention, beside the monitored one.
    #[must_use]
    pub fn metrics<I>(self, names: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        Self { metrics: names.into_iter().map(Into::into).collect(), ..self }
    }

    /// What happens to an existing checkpoint of the same name.
    #[must_use]
    pub fn on_existing(self, on_existing: OnExisting) -> Self {
        Self { on_existing, ..self }
    }

    /// The metric that tells the best, and which way it is to go.
    #[must_use]
    pub fn monitor(self, metric: impl Into<String>, mode: Mode) -> Self {
        Self { monitor: Some(metric.into()), mode, ..self }
    }

    /// Keep the newest `n`.
    #[must_use]
    pub fn keep_last(self, n: u64) -> Self {
        Self { keep_last: Some(n), ..self }
    }

    /// Keep the best `n` by `metric`, which is monitored.
    #[must_use]
    pub fn keep_best(self, n: u64, metric: impl Into<String>, mode: Mode) -> Self {
        Self { keep_best: Some(n), ..self }.monitor(metric, mode)
    }

    /// Keep those whose step is a multiple of `n`.
    #[must_use]
    pub fn keep_every_steps(self, n: u64) -> Self {
        Self { keep_every_steps: Some(n), ..self }
    }

    /// Keep those whose epoch is a multiple of `n`.
    #[must_use]
    pub fn keep_every_epochs(self, n: u64) -> Self {
        Self { keep_every_epochs: Some(n), ..self }
    }

    /// Keep those whose names match one of these globs.
    #[must_use]
    pub fn keep_pinned<I>(self, globs: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        Self { keep_pinned: globs.into_iter().map(Into::into).collect(), ..self }
    }

    /// Whether saves go on beside training, and what a save does that is due meanwhile.
    #[must_use]
    pub fn save_mode(self, save_mode: AsyncMode, in_flight: InFlight) -> Self {
        Self { save_mode, in_flight, ..self }
    }

    /// What to begin with.
    #[must_use]
    pub fn resume(self, resume: Resume) -> Self {
        Self { resume, ..self }
    }

    /// Having nothing to resume from is an error.
    #[must_use]
    pub fn must_resume(self) -> Self {
        Self { resume_if_any: false, ..self }
    }

    /// A damaged checkpoint makes `resume` take the one before it.
    #[must_use]
    pub fn fall_back(self) -> Self {
        Self { resume_fall_back: true, ..self }
    }

    /// Warn when less than this, in MiB, would be left after a save.
    #[must_use]
    pub fn space_warning(self, mib: u64) -> Self {
        Self { space_warning_mib: mib, ..self }
    }

    /// Whether a save that seems not to fit is tried all the same.
    #[must_use]
    pub fn ignore_space(self, ignore_space: bool) -> Self {
        Self { ignore_space, ..self }
    }

    /// Whether replicas are compared before each save.
    #[must_use]
    pub fn audit(self, audit: bool) -> Self {
        Self { audit, ..self }
    }

    /// Whether what has not changed since an earlier checkpoint is written again.
    #[must_use]
    pub fn copy_unchanged(self, copy_unchanged: bool) -> Self {
        Self { copy_unchanged, ..self }
    }

    /// Event files for TensorBoard in this directory, one folder for each experiment.
    #[must_use]
    pub fn tensorboard(self, directory: impl Into<PathBuf>) -> Self {
        Self { tensorboard: Some(directory.into()), ..self }
    }
}
