//! Checkpoints for a training loop of one's own: when to save, what to keep, where to resume.
//!
//! A [`Checkpointer`] is told after each training step where training is ([`At`]) and what it
//! consists of ([`Parts`]); it decides with all ranks together whether to save, saves, removes what
//! its rules do not keep, and moves the links `latest` and `best`. It knows no training loop.
//!
//! # Example
//! ```
//! use tch_checkpoint::ProcessGroup;
//! use tch_checkpoint::checkpointer::{At, Checkpointer, CheckpointerConfig, Location, Parts};
//! use tch_checkpoint::state::Shared;
//!
//! # let scratch = tempfile::tempdir().unwrap();
//! # let directory = scratch.path().to_path_buf();
//! let config = CheckpointerConfig {
//!     location: Location::Path(directory),
//!     experiment: "try".to_owned(),
//!     save_every_steps: Some(10),
//!     keep_last: Some(2),
//!     ..CheckpointerConfig::default()
//! };
//! let group = ProcessGroup::solo();
//! let mut checkpointer = Checkpointer::new(&group, config)?;
//! let mut weight = 0_i64;
//!
//! let resumed = checkpointer.resume(&mut Parts::new().model(&mut Shared(&mut weight)))?;
//! let first = resumed.map_or(0, |resumed| resumed.state.step);
//! for step in first + 1..=45 {
//!     weight += 1;
//!     let mut model = Shared(&mut weight);
//!     let stepped = checkpointer.step_callback(&At::step(step), &mut Parts::new().model(&mut model))?;
//!     if stepped.stop.is_some() {
//!         break;
//!     }
//! }
//! checkpointer.finish(&At::step(45), &mut Parts::new().model(&mut Shared(&mut weight)))?;
//! let names: Vec<_> = checkpointer.find_checkpoints()?.into_iter().map(|c| c.name).collect();
//! assert_eq!(names, ["checkpoint_step_00000045", "checkpoint_step_00000040"]);
//! # Ok::<(), tch_checkpoint::Error>(())
//! ```

mod agree;
mod ask;
mod at;
mod builder;
mod choose;
mod config;
mod in_flight;
mod location;
mod look;
mod metrics;
mod one_line;
mod partial;
mod parts;
mod resume;
mod save;
mod set_up;
mod state;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

pub use at::At;
#[cfg(feature = "torch")]
pub(crate) use config::read_table;
pub use config::{
    AsyncMode, CONFIG_BYTES_MAX, CONFIG_PREFIX, CheckpointerConfig, FieldDifference, InFlight,
    Location, METRIC_FIELD, Resume, differences,
};
pub use location::{ColabDrive, Environment, Place, PlaceKind, ThisMachine};
pub use one_line::{load_checkpoint, save_checkpoint, save_checkpoint_in};
pub use parts::Parts;
pub use resume::Resumed;
use save::Beside;
#[cfg(feature = "torch")]
pub(crate) use save::surface;
pub use save::{Outcome, Reason, Stepped};
pub use set_up::create_checkpointer_from_config;
pub use state::TrainerState;

use crate::autosave::{Counters, NameTemplate, Retention, Triggers};
use crate::group::ProcessGroup;
use crate::layout::SaveId;
use crate::lineage::Lineage;
use crate::preempt::{Poll, Preempted, Watch};
use crate::storage::Storage;
use crate::tensorboard::EventLog;
use crate::tidy::Pointed;

/// Asked where training is, says whether to save.
pub type Predicate = Box<dyn FnMut(&At) -> bool>;

/// Saves, keeps and resumes the checkpoints of one run; see the [module](self).
///
/// # Collective
/// Every rank of the group has one, made of the same configuration, and calls its methods in the
/// same order, but for those that say otherwise.
pub struct Checkpointer {
    group: ProcessGroup,
    storage: Arc<dyn Storage>,
    config: CheckpointerConfig,
    directory: PathBuf,
    /// A warning is due if less than this, in bytes, would be left after a save.
    space_reserve: u64,
    template: NameTemplate,
    triggers: Triggers,
    retention: Retention,
    predicate: Option<Predicate>,
    watch: Watch,
    poll: Poll,
    state: TrainerState,
    /// Where training was at the last call: what is due is counted from here.
    before: Counters,
    /// The step of the last save, or of the checkpoint that was loaded: never saved twice.
    saved_step: Option<u64>,
    /// Minutes count from here: the last save, or the beginning.
    clock: Instant,
    /// The longest save so far, also beside training; there the coordinator alone knows.
    save_takes: ask::Longest,
    /// The checkpoint that was loaded: never removed by this run.
    resumed: Option<SaveId>,
    /// Those that proved to be damaged when they were loaded: for somebody to look at.
    passed_over: Vec<SaveId>,
    /// A load failed half-way, and none has succeeded since: the parts are not to be saved.
    poisoned: bool,
    /// Whether it has said that the monitored metric is not among those measured.
    has_warned: bool,
    lineage: Lineage,
    pointed: Pointed,
    pending: Option<Beside>,
    /// The coordinator's, if the configuration asks for one.
    events: Option<Arc<EventLog>>,
    stop: Option<Preempted>,
}

impl Checkpointer {
    /// Where its checkpoints lie. Any rank.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What it was told. Any rank.
    #[must_use]
    pub fn config(&self) -> &CheckpointerConfig {
        &self.config
    }

    /// What it keeps of the run itself. Any rank.
    #[must_use]
    pub fn state(&self) -> &TrainerState {
        &self.state
    }

    /// Adds to the losses and metrics that every checkpoint from now on holds. Any rank; those of
    /// the coordinator are saved.
    pub fn update_state(
        &mut self,
        train_loss: Option<f64>,
        val_loss: Option<f64>,
        metrics: &[(&str, f64)],
    ) {
        self.state.train_losses.extend(train_loss);
        self.state.val_losses.extend(val_loss);
        let mut all: BTreeMap<_, _> =
            metrics.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        let losses = [("train_loss", train_loss), ("val_loss", val_loss)];
        all.extend(losses.into_iter().filter_map(|(n, v)| Some((n.to_owned(), v?))));
        self.state.measure(&all, set_up::monitor(&self.config), self.before.step);
    }

    /// Writes numbers of a step into the event file for TensorBoard: losses, learning rates,
    /// whatever a loop measures. Those of the coordinator are written, each at once; without
    /// [`tensorboard`](CheckpointerConfig::tensorboard) in the configuration nothing is. A name's
    /// first part, up to `/`, groups it. Any rank; needs no other.
    pub fn log_scalars(&self, step: u64, scalars: &[(&str, f64)]) {
        if let Some(events) = &self.events {
            events.scalars(step, scalars.iter().copied());
        }
    }

    /// Saves at each call of [`Checkpointer::step_callback`] for which `predicate` is true, beside
    /// the other rules, unless one of them says so already. All ranks set one at the same place, or
    /// none does: each asks its own, the coordinator's answer counts, and ranks then vote at every
    /// step. It must not ask other ranks for anything; one that panics is an error on every rank.
    pub fn save_when(&mut self, predicate: impl FnMut(&At) -> bool + 'static) -> &mut Self {
        self.predicate = Some(Box::new(predicate));
        self
    }

    /// Why this run is to end, if it has been told to: then leave the loop, and end with
    /// [`Preempted::exit_code`]. The same on every rank.
    #[must_use]
    pub fn preempted(&self) -> Option<Preempted> {
        self.stop
    }
}

impl std::fmt::Debug for Checkpointer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checkpointer")
            .field("directory", &self.directory)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}
