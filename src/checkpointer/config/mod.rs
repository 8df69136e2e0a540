//! Everything that can be set, in one value.

mod check;
mod decode;
mod differences;
mod environment;
mod policies;
#[cfg(test)]
mod tests;
mod text;
mod toml_text;
mod tree;
mod yaml_text;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use check::METRIC_FIELD;
pub use differences::{FieldDifference, differences};
pub use environment::CONFIG_PREFIX;
pub use text::CONFIG_BYTES_MAX;
#[cfg(feature = "torch")]
pub(crate) use text::read_table;

use super::location::ColabDrive;
use crate::autosave::{Mode, names};
use crate::plan::OnExisting;

/// Everything that a [`Checkpointer`](super::Checkpointer) can be told.
///
/// It is built in code (`CheckpointerConfig::new("digits").every_steps(100)`), read from TOML or
/// YAML, or written as a literal with `..Default::default()`, and checked. Variables of the
/// environment override what is read from a file. The defaults are what is written at each field.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointerConfig {
    /// Whether there are checkpoints at all. Default: yes.
    pub enabled: bool,
    /// Name of the run: one component, under which its checkpoints lie. Default: `baseline`.
    pub experiment: String,
    /// Where experiments lie. Default: [`Location::Auto`].
    pub location: Location,
    /// Save after every so many epochs, counted over all resumes. Default: not.
    pub save_every_epochs: Option<u64>,
    /// Save after every so many training steps, counted over all resumes. Default: not.
    pub save_every_steps: Option<u64>,
    /// Save after so many minutes since the last save, by the coordinator's clock. Default: not.
    pub save_every_minutes: Option<f64>,
    /// Save whenever `monitor` is better than ever before; ranks then vote at every step.
    /// Default: no.
    pub save_on_best: bool,
    /// Save when training ends, unless that step is saved already. Default: yes.
    pub save_at_end: bool,
    /// Save at SIGUSR1 and SIGTERM, and end with exit code 75. Default: yes.
    pub save_on_signal: bool,
    /// Save before the job's time ends (`SLURM_JOB_END_TIME`), and end with exit code 75.
    /// Default: yes.
    pub save_before_time_limit: bool,
    /// How long before the end, in seconds; twice the longest save so far, if that is more.
    /// Default: 120.
    pub time_limit_margin_seconds: f64,
    /// Template of names, see [`NameTemplate`](crate::autosave::NameTemplate); beside the known
    /// fields there is `metric`, the monitored one. Default: `checkpoint_step_{step:08d}`.
    pub name: String,
    /// Metrics that the template may mention, beside the monitored one. Default: none.
    pub metrics: Vec<String>,
    /// What happens to an existing checkpoint of that name. Default: the new one is numbered.
    pub on_existing: OnExisting,
    /// The metric that tells the best. Default: none, and then nothing is the best.
    pub monitor: Option<String>,
    /// Which way it is to go. Default: `min`.
    pub mode: Mode,
    /// Keep the newest so many. Default: all, unless another rule is given.
    pub keep_last: Option<u64>,
    /// Keep the best so many by `monitor`. Default: no rule.
    pub keep_best: Option<u64>,
    /// Keep those whose step is a multiple. Default: no rule.
    pub keep_every_steps: Option<u64>,
    /// Keep those whose epoch is a multiple. Default: no rule.
    pub keep_every_epochs: Option<u64>,
    /// Keep those whose names match one of these globs, whatever the other rules say; alone it
    /// removes nothing. Default: none.
    pub keep_pinned: Vec<String>,
    /// Whether saves go on beside training. Default: `disabled`.
    pub save_mode: AsyncMode,
    /// What happens when a save is due while one is still going on. Default: `wait`.
    pub in_flight: InFlight,
    /// What [`Checkpointer::resume`](super::Checkpointer::resume) begins with. Default: `latest`.
    pub resume: Resume,
    /// Whether there need not be anything to resume from, for `latest` and `best`: a step or path
    /// that is not there is always an error. Default: yes.
    pub resume_if_any: bool,
    /// Whether a damaged checkpoint makes `resume` take the one before it. Default: no.
    pub resume_fall_back: bool,
    /// Warn when less than this, in MiB, would be left after a save; on Drive, what
    /// [`ColabDrive::space_warning_mib`] says if that is more. Default: 500.
    pub space_warning_mib: u64,
    /// Whether a save that seems not to fit is tried all the same, with a warning, see
    /// [`SaveOptions::ignore_space`](crate::SaveOptions::ignore_space). Default: no.
    pub ignore_space: bool,
    /// Whether names on one side only, checkpoint or parts, are errors. Default: yes.
    pub resume_strict: bool,
    /// Whether data loaders are loaded: no for a run that goes on with other data. Default: yes.
    pub resume_data: bool,
    /// Whether replicas are compared before each save, see
    /// [`SaveOptions::audit`](crate::SaveOptions::audit). Default: no.
    pub audit: bool,
    /// Whether components are written again that have not changed since an earlier checkpoint, see
    /// [`SaveOptions::copy_unchanged`](crate::SaveOptions::copy_unchanged). Default: no, their
    /// files are linked.
    pub copy_unchanged: bool,
    /// The directory that `tensorboard --logdir` is given: what is measured and what saves take is
    /// written into event files in `<directory>/<experiment>`. Default: none.
    pub tensorboard: Option<PathBuf>,
}

impl Default for CheckpointerConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            experiment: "baseline".to_owned(),
            location: Location::Auto,
            save_every_epochs: None,
            save_every_steps: None,
            save_every_minutes: None,
            save_on_best: false,
            save_at_end: true,
            save_on_signal: true,
            save_before_time_limit: true,
            time_limit_margin_seconds: 120.0,
            name: names::TORCHLINGO.to_owned(),
            metrics: Vec::new(),
            on_existing: OnExisting::Number,
            monitor: None,
            mode: Mode::Min,
            keep_last: None,
            keep_best: None,
            keep_every_steps: None,
            keep_every_epochs: None,
            keep_pinned: Vec::new(),
            save_mode: AsyncMode::Disabled,
            in_flight: InFlight::Wait,
            resume: Resume::Latest,
            resume_if_any: true,
            resume_fall_back: false,
            space_warning_mib: 500,
            ignore_space: false,
            resume_strict: true,
            resume_data: true,
            audit: false,
            copy_unchanged: false,
            tensorboard: None,
        }
    }
}

/// Where experiments lie; checkpoints lie in `<place>/<experiment>`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Location {
    /// Google Drive on Colab, else [`Location::Local`].
    #[default]
    Auto,
    /// `./checkpoints`.
    Local,
    /// This directory.
    Path(PathBuf),
    /// Google Drive, mounted on Colab, with the settings of [`ColabDrive::default`].
    ColabDrive,
    /// Google Drive, mounted on Colab, with these settings.
    ColabDriveAt(ColabDrive),
}

/// Whether saves go on beside training.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AsyncMode {
    /// A save returns once it is committed.
    #[default]
    Disabled,
    /// A save returns once the state is copied; writing and commit go on beside training.
    Async,
    /// A save returns at once; copying goes on beside the next forward and backward pass, and the
    /// optimizer's step has to wait for it.
    AsyncOverlap,
}

/// What happens when a save is due while one is still going on; the coordinator's answer counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InFlight {
    /// The new one waits for it.
    #[default]
    Wait,
    /// The new one is left out.
    Skip,
    /// The new one is an error.
    Error,
}

/// Which checkpoint a run goes on from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resume {
    /// The newest: highest generation (raised by each resume from an older one and by each fresh
    /// start), then step, epoch, time of saving.
    #[default]
    Latest,
    /// The best by the monitored metric.
    Best,
    /// The one of this step.
    Step(u64),
    /// This one, wherever it lies.
    Path(PathBuf),
    /// None: begin anew.
    Fresh,
}
