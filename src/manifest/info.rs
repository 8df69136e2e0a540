//! What a listing says of a checkpoint.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Manifest;
use crate::layout::SaveId;
use crate::sabotage::{self, Defect};
use crate::state::{Value, Values};

/// Prefix of the names of values that hold metrics.
pub const METRICS: &str = "metrics.";
/// Name of the value that says that a policy saved this, and that a policy may remove it.
pub const AUTOMATIC: &str = "checkpoint.automatic";
/// Name of the value that says that no policy may remove this.
pub const PINNED: &str = "checkpoint.pinned";

/// Name of the value that says which beginning of the run this follows: newer is a higher
/// generation first, then a higher step.
pub const GENERATION: &str = "checkpoint.generation";
/// Name of the value that says to which fresh start this goes back: a number drawn there.
pub const LINE: &str = "checkpoint.line";

/// Name of the value that says that this was saved beside a run and is no part of it: it counts
/// as older than everything else.
pub const ASIDE: &str = "checkpoint.aside";

/// Name of the value that says how many ranks saved a checkpoint that was written anew as those of
/// another number: what ranks have of their own is not complete then.
pub const RESHARDED_FROM: &str = "reshard.world_size";

/// Name of the value that lists the tensors that are missing, because they were damaged when the
/// rest was saved.
pub const LOST: &str = "repair.lost";

/// Whether a checkpoint can be loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckpointState {
    /// Its manifest parses, and its files have the lengths that it states. Content is verified by
    /// the load itself.
    Committed,
    /// An attempt that was not committed, or that is under way.
    Partial,
    /// Its manifest does not parse, or a file is missing or of another length.
    Damaged,
}

/// What a listing says of a checkpoint; what it cannot know of one that is not committed is zero
/// or empty.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckpointInfo {
    /// Its name in the directory; that of the attempt's checkpoint if it is partial.
    pub name: String,
    /// Whether it can be loaded.
    pub state: CheckpointState,
    /// The save that wrote it.
    pub save_id: Option<SaveId>,
    /// Which beginning of the run it follows; 0 for the first, and for what knows of none.
    pub generation: u64,
    /// What one fresh start led to has the same number here; 0 for what knows of none.
    pub line: u64,
    /// Training steps completed.
    pub step: u64,
    /// Epochs completed.
    pub epoch: u64,
    /// Its metrics: the values `metrics.<name>`.
    pub metrics: BTreeMap<String, f64>,
    /// When it was sealed, in milliseconds since 1970, by the coordinator's clock.
    pub created_unix_ms: u64,
    /// How many ranks saved it.
    pub world_size: u32,
    /// Bytes of all its tensors, each counted once.
    pub tensor_bytes: u64,
    /// Whether a policy saved it, so that a policy may remove it.
    pub automatic: bool,
    /// Whether it is pinned: by a value of its own, or by a pin beside it.
    pub pinned: bool,
    /// Whether it was saved beside a run and is no part of it.
    pub aside: bool,
    /// What is wrong with it, if it is damaged.
    pub fault: Option<String>,
}

impl CheckpointInfo {
    /// What the manifest of a committed checkpoint says.
    #[must_use]
    pub fn of(name: &str, manifest: &Manifest) -> Self {
        let values = manifest.values();
        let flag = |name| matches!(values.find(name), Some(Value::Bool(true)));
        Self {
            state: CheckpointState::Committed,
            save_id: Some(manifest.save_id()),
            generation: count_of(values, GENERATION),
            line: count_of(values, LINE),
            step: manifest.step(),
            epoch: manifest.epoch(),
            metrics: floats_of(values, METRICS),
            created_unix_ms: manifest.created_unix_ms(),
            world_size: manifest.world_size().get(),
            tensor_bytes: manifest.tensor_bytes(),
            automatic: flag(AUTOMATIC),
            pinned: flag(PINNED),
            aside: flag(ASIDE),
            ..Self::unknown(name, CheckpointState::Committed)
        }
    }

    /// One of which nothing but the name is known.
    #[must_use]
    pub fn unknown(name: &str, state: CheckpointState) -> Self {
        Self {
            name: name.to_owned(),
            state,
            save_id: None,
            generation: 0,
            line: 0,
            step: 0,
            epoch: 0,
            metrics: BTreeMap::new(),
            created_unix_ms: 0,
            world_size: 0,
            tensor_bytes: 0,
            automatic: false,
            pinned: false,
            aside: false,
            fault: None,
        }
    }

    /// A metric, if it can be the best: finite.
    #[must_use]
    pub fn finite_metric(&self, name: &str) -> Option<f64> {
        self.metrics.get(name).copied().filter(|value| value.is_finite())
    }

    /// Whether it counts: nothing but a committed one does.
    #[must_use]
    pub fn is_committed(&self) -> bool {
        self.state == CheckpointState::Committed
    }

    /// The order of age: newer is greater. What is part of a run, then generation, step, epoch,
    /// time of saving, name.
    #[must_use]
    pub fn age_key(&self) -> (bool, u64, u64, u64, u64, &str) {
        let counted = |n: u64| if sabotage::is_on(Defect::Trusting) { 0 } else { n };
        let [generation, step, epoch] = [self.generation, self.step, self.epoch].map(counted);
        (!self.aside, generation, step, epoch, self.created_unix_ms, &self.name)
    }
}

/// A counter among values; 0 if it is absent or none.
pub(crate) fn count_of(values: &Values, name: &str) -> u64 {
    match values.find(name) {
        Some(Value::Int(count)) => u64::try_from(*count).unwrap_or(0),
        _ => 0,
    }
}

/// The numbers among values whose names begin with `prefix`, by the rest of their names.
pub(crate) fn floats_of(values: &Values, prefix: &str) -> BTreeMap<String, f64> {
    let number = |(name, value): (&str, &Value)| match value {
        Value::Float(number) => Some((name.strip_prefix(prefix)?.to_owned(), *number)),
        _ => None,
    };
    values.iter().filter_map(number).collect()
}

/// Metrics as values of a checkpoint.
pub(crate) fn save_metrics(metrics: &BTreeMap<String, f64>, values: &mut Values) {
    for (name, value) in metrics {
        values.set(format!("{METRICS}{name}"), Value::Float(*value));
    }
}
