//! One call to save, one to load.

use std::path::Path;

use super::{At, Checkpointer, CheckpointerConfig, Location, Parts, Resumed};
use crate::error::Result;
use crate::group::ProcessGroup;
use crate::save::Checkpoint;

/// Saves `parts` into `./checkpoints/<experiment>`, as `checkpoint_step_<step>`, and returns when
/// it is committed. Touches nothing else there: a name that is taken gets a number appended, no
/// rule removes anything, and no rule will ever remove this one.
///
/// ```no_run
/// use tch_checkpoint::ProcessGroup;
/// use tch_checkpoint::checkpointer::{At, Parts, save_checkpoint};
/// use tch_checkpoint::state::Shared;
///
/// let mut weight = 0.5;
/// let mut model = Shared(&mut weight);
/// save_checkpoint(&ProcessGroup::solo(), "baseline", &At::step(3), &mut Parts::new().model(&mut model))?;
/// # Ok::<(), tch_checkpoint::Error>(())
/// ```
///
/// # Collective
/// Every rank, with the same arguments.
///
/// # Errors
/// As [`Checkpointer::save`].
pub fn save_checkpoint(
    group: &ProcessGroup,
    experiment: &str,
    at: &At,
    parts: &mut Parts<'_>,
) -> Result<Checkpoint> {
    save_checkpoint_in(group, Location::Local, experiment, at, parts)
}

/// The same at another location.
///
/// # Collective
/// Every rank, with the same arguments.
///
/// # Errors
/// As [`Checkpointer::save`].
pub fn save_checkpoint_in(
    group: &ProcessGroup,
    location: Location,
    experiment: &str,
    at: &At,
    parts: &mut Parts<'_>,
) -> Result<Checkpoint> {
    let config = CheckpointerConfig {
        experiment: experiment.to_owned(),
        location,
        save_on_signal: false,
        save_before_time_limit: false,
        ..CheckpointerConfig::default()
    };
    Checkpointer::new(group, config)?.save_aside(at, parts)
}

/// Loads the checkpoint at `path`, wherever it lies, into `parts`.
///
/// # Collective
/// Every rank, with the same `path`.
///
/// # Errors
/// As [`Checkpointer::load`].
pub fn load_checkpoint(
    group: &ProcessGroup,
    path: impl AsRef<Path>,
    parts: &mut Parts<'_>,
) -> Result<Resumed> {
    super::resume::load_path(group, path.as_ref(), parts)
}
