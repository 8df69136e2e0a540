//! Proof, for one's own model, that a resumed run is the run that was not interrupted.

use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::group::{Channel, ProcessGroup};
use crate::handler::auto_save::AutoSaverState;
use crate::handler::checkpoint::AUTO_SAVER;
use crate::handler::{LoadOptions, Model, NNHandler};
use crate::layout::{CheckpointName, SaveId};
use crate::rank::Rank;
use crate::state::{StateDict, TensorEntry, Values};

/// Times differ between any two runs.
const TIMES: [&str; 2] = ["history.epoch_time", "epoch.seconds"];

/// The first thing that differs between a run that was resumed and one that was not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// Where.
    pub rank: Rank,
    /// Name of the tensor or value.
    pub name: String,
    /// How it differs: `resumed … , uninterrupted …`.
    pub what: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` on rank {}: {}", self.name, self.rank, self.what)
    }
}

/// Trains 2 × `steps` steps at a stretch; then `steps` steps, saves as `path` (replacing what is
/// there), loads, and trains `steps` more, unless a callback has ended training. Compares every
/// tensor and value of the two, bit for bit, but for times and which checkpoints were saved; `None`
/// if all are equal.
///
/// `make` gives a new handler with its optimizer and whatever else a checkpoint holds; `equip` adds
/// what none holds (loss, data, callbacks), to new handlers and to the loaded one. What the two do
/// must be the same each time, random numbers included: [`HandlerBuilder::build`] seeds libtorch.
/// Nothing is saved automatically meanwhile.
///
/// Each call to train ends with a validation, so with [`NNHandler::validate_every`] above 1 cut
/// inside an epoch, or after one that is validated in any case.
///
/// # Collective
/// Every rank, each with handlers of the same group; all get the same answer.
///
/// # Errors
/// Those of training, saving and loading.
///
/// [`HandlerBuilder::build`]: crate::handler::HandlerBuilder::build
pub fn check_resume<M: Model>(
    steps: u64,
    path: impl AsRef<Path>,
    make: impl Fn() -> Result<NNHandler<M>>,
    equip: impl Fn(&mut NNHandler<M>) -> Result<()>,
) -> Result<Option<Difference>> {
    let new = || {
        let mut handler = make()?;
        equip(&mut handler)?;
        // Its checkpoints have other ids, and may have other names, in each run.
        handler.disable_auto_save();
        Ok::<_, Error>(handler)
    };
    let mut whole = new()?;
    whole.train_steps(steps.saturating_mul(2))?;
    // Before another handler draws from the generators, which belong to the process.
    let expected = whole.state_dict();

    let mut first = new()?;
    first.train_steps(steps)?;
    first.save(&path)?;
    let is_over = first.stop_reason().is_some();
    let options = LoadOptions {
        group: Some(first.group.clone()),
        device: Some(first.device),
        storage: Some(first.storage.clone()),
        ..LoadOptions::default()
    };
    drop(first);
    let mut resumed = NNHandler::<M>::load(&path, options)?;
    equip(&mut resumed)?;
    resumed.disable_auto_save();
    if !is_over {
        resumed.train_steps(steps)?;
    }
    first_difference(&whole.group, resumed.state_dict(), expected)
}

fn first_difference(
    group: &ProcessGroup,
    resumed: Result<StateDict>,
    whole: Result<StateDict>,
) -> Result<Option<Difference>> {
    let compare = || {
        let differing = compare(&resumed?, &whole?)?;
        Ok(differing.map(|(name, what)| Difference { rank: group.rank(), name, what }))
    };
    let first = |all: Vec<Option<Difference>>| Ok(all.into_iter().flatten().next());
    group.phase_all(Channel::Save, "compare", compare, first)
}

fn compare(resumed: &StateDict, whole: &StateDict) -> Result<Option<(String, String)>> {
    let names = resumed.tensors().chain(whole.tensors()).map(|(name, _)| name.clone());
    let names: std::collections::BTreeSet<_> = names.collect();
    for name in names {
        let (ours, theirs) = (resumed.boxes(name.as_str()), whole.boxes(name.as_str()));
        if let Some(what) = differing_boxes(ours, theirs)? {
            return Ok(Some((name.to_string(), what)));
        }
    }
    let values = differing_value(&resumed.values, &whole.values);
    Ok(values.or_else(|| differing_value(&resumed.rank_values, &whole.rank_values)))
}

fn differing_boxes(ours: &[TensorEntry], theirs: &[TensorEntry]) -> Result<Option<String>> {
    if ours.len() != theirs.len() {
        return Ok(Some(format!(
            "resumed has {} boxes, uninterrupted {}",
            ours.len(),
            theirs.len()
        )));
    }
    for (ours, theirs) in ours.iter().zip(theirs) {
        if (&ours.spec, &ours.slice) != (&theirs.spec, &theirs.slice) {
            return Ok(Some(format!(
                "resumed {} {}, uninterrupted {} {}",
                ours.spec, ours.slice, theirs.spec, theirs.slice
            )));
        }
        let (a, b) = (bytes_of(ours)?, bytes_of(theirs)?);
        let width = usize::try_from(ours.spec.dtype().size_bytes()).unwrap_or(1);
        let pairs = a.chunks(width).zip(b.chunks(width)).enumerate();
        if let Some((index, (a, b))) = pairs.into_iter().find(|(_, (a, b))| a != b) {
            return Ok(Some(format!(
                "element {index}: resumed {}, uninterrupted {}",
                shown(a),
                shown(b)
            )));
        }
    }
    Ok(None)
}

fn bytes_of(entry: &TensorEntry) -> Result<Vec<u8>> {
    let mut bytes =
        crate::memory::zeroed(entry.slice.elements() * entry.spec.dtype().size_bytes())?;
    entry.source.read_into(0, &mut bytes)?;
    Ok(bytes)
}

/// An element, as the number that four or eight bytes mostly are.
fn shown(element: &[u8]) -> String {
    let hex: String = element.iter().rev().map(|byte| format!("{byte:02x}")).collect();
    if let Ok(bytes) = <[u8; 4]>::try_from(element) {
        return format!("{:e} (0x{hex})", f32::from_le_bytes(bytes));
    }
    match <[u8; 8]>::try_from(element) {
        Ok(bytes) => format!("{:e} (0x{hex})", f64::from_le_bytes(bytes)),
        Err(_) => format!("0x{hex}"),
    }
}

fn differing_value(ours: &Values, theirs: &Values) -> Option<(String, String)> {
    let names = ours.iter().chain(theirs.iter()).map(|(name, _)| name);
    let mut names = names.filter(|name| !TIMES.contains(name));
    let same = |name: &&str| match (ours.find(name), theirs.find(name)) {
        (Some(a), Some(b)) => a.same(b) || differ_in_saves_only(name, ours, theirs),
        (a, b) => a.is_none() && b.is_none(),
    };
    let name = names.find(|name| !same(name))?;
    let of = |values: &Values| match values.find(name) {
        Some(value) => format!("{value:?}").chars().take(100).collect(),
        None => "none".to_owned(),
    };
    Some((name.to_owned(), format!("resumed {}, uninterrupted {}", of(ours), of(theirs))))
}

/// Whether two values of a name are the same but for which checkpoints were saved before: every
/// save has an id of its own.
fn differ_in_saves_only(name: &str, ours: &Values, theirs: &Values) -> bool {
    if name == AUTO_SAVER {
        let settings = |values: &Values| Some(values.json::<AutoSaverState>(name).ok()?.settings());
        return settings(ours).is_some_and(|ours| Some(ours) == settings(theirs));
    }
    let lists_saves = |values: &Values| values.json::<Vec<(CheckpointName, SaveId)>>(name).is_ok();
    lists_saves(ours) && lists_saves(theirs)
}

/// Turns a difference into an error that stops a program.
impl From<Difference> for Error {
    fn from(difference: Difference) -> Self {
        let message = format!("the resumed run differs from the uninterrupted one: {difference}");
        Error::new(ErrorKind::Mismatch, message).at_rank(difference.rank)
    }
}
