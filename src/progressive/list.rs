//! What manifests say of checkpoints of racks, without reading a tensor.

use std::path::{Path, PathBuf};

use super::described::{RackInfo, StackInfo};
use super::state::{self, Granularity};
use super::training::{TRAINING, TrainingInfo};
use crate::catalog::{self, Wanted};
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::Manifest;
use crate::state::Values;
use crate::storage::{LocalStorage, Storage};

/// A checkpoint of a rack, a stack, or a run, as its manifest describes it.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ProgressiveCheckpoint {
    /// Where it is.
    pub path: PathBuf,
    /// Its name.
    pub name: String,
    /// When it was committed, in milliseconds since 1970.
    pub created_unix_ms: u64,
    /// Training steps completed.
    pub step: u64,
    /// What it holds.
    pub contents: Contents,
}

/// What a checkpoint holds.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Contents {
    /// A run: a rack with what trains it.
    Training {
        /// The rack.
        rack: RackInfo,
        /// How far training has come.
        training: TrainingInfo,
    },
    /// A rack.
    Rack(RackInfo),
    /// One stack.
    Stack(StackInfo),
}

impl ProgressiveCheckpoint {
    fn of(path: PathBuf, name: &str, manifest: &Manifest) -> Result<Option<Self>> {
        let values = manifest.values();
        let contents = match Granularity::of(values) {
            None => return Ok(None),
            Some(Granularity::Training) => Contents::Training {
                rack: values.json(state::RACK)?,
                training: values.json(TRAINING)?,
            },
            Some(Granularity::Rack) => Contents::Rack(values.json(state::RACK)?),
            Some(Granularity::Stack) => Contents::Stack(values.json(state::STACK)?),
        };
        let (created_unix_ms, step) = (manifest.created_unix_ms(), manifest.step());
        Ok(Some(Self { path, name: name.to_owned(), created_unix_ms, step, contents }))
    }
}

/// All checkpoints of racks, stacks and runs in a directory, the newest first. What is damaged or of
/// something else is left out, damage with a warning in the log. Reads manifests alone, on this
/// rank.
///
/// # Errors
/// [`ErrorKind::NotFound`] if there is no such directory, [`ErrorKind::Storage`].
pub fn list_checkpoints(directory: impl AsRef<Path>) -> Result<Vec<ProgressiveCheckpoint>> {
    list_on(&LocalStorage::new(), directory.as_ref())
}

pub(crate) fn list_on(
    storage: &dyn Storage,
    directory: &Path,
) -> Result<Vec<ProgressiveCheckpoint>> {
    let parent = storage.open_dir(directory)?;
    let mut found = Vec::new();
    catalog::visit(parent.as_ref(), &mut |name, opened| {
        let read = opened.and_then(|opened| {
            ProgressiveCheckpoint::of(
                directory.join(name.as_str()),
                name.as_str(),
                &opened.manifest,
            )
        });
        match read {
            Ok(checkpoint) => found.extend(checkpoint),
            Err(error) => tracing::warn!(%error, %name, "a checkpoint is left out of the list"),
        }
    })?;
    found.sort_by(|a, b| {
        (b.created_unix_ms, b.step, &b.name).cmp(&(a.created_unix_ms, a.step, &a.name))
    });
    Ok(found)
}

/// What the checkpoint at `path` holds, of a run: the rack and how far training has come. Reads its
/// manifest alone, on this rank; [`ProgressiveTrainer::restore_from_checkpoint`] takes it.
///
/// [`ProgressiveTrainer::restore_from_checkpoint`]: super::ProgressiveTrainer::restore_from_checkpoint
///
/// # Errors
/// As [`find`](crate::catalog::find); [`ErrorKind::Mismatch`] for a checkpoint of something else.
pub fn load_progressive_checkpoint(path: impl AsRef<Path>) -> Result<ProgressiveCheckpoint> {
    let found = catalog::find(&LocalStorage::new(), &Wanted::parse(path.as_ref())?)?;
    state::check_kind(found.manifest.values(), &[Granularity::Training])?;
    let read = ProgressiveCheckpoint::of(found.path(), found.name.as_str(), &found.manifest)?;
    read.ok_or_else(|| Error::new(ErrorKind::Mismatch, "no checkpoint of a run"))
}

/// How far the run had come that saved the checkpoint at `path`. Reads its manifest alone.
///
/// # Errors
/// As [`load_progressive_checkpoint`].
pub fn get_training_info(path: impl AsRef<Path>) -> Result<TrainingInfo> {
    let values = values_of(path.as_ref())?;
    state::check_kind(&values, &[Granularity::Training])?;
    values.json(TRAINING)
}

/// What a rack of the checkpoint `path` consists of. Reads its manifest alone, on this rank.
///
/// # Errors
/// As [`find`](crate::catalog::find); [`ErrorKind::Mismatch`] for a
/// checkpoint of something else.
pub fn get_rack_info(path: impl AsRef<Path>) -> Result<RackInfo> {
    let values = values_of(path.as_ref())?;
    state::check_kind(&values, &[Granularity::Training, Granularity::Rack])?;
    values.json(state::RACK)
}

/// What stack `index` of the checkpoint `path` consists of; 0 for one of a stack alone. Reads its
/// manifest alone, on this rank.
///
/// # Errors
/// As [`get_rack_info`]; [`ErrorKind::InvalidInput`] for an index
/// that is out of range.
pub fn get_stack_info(path: impl AsRef<Path>, index: usize) -> Result<StackInfo> {
    let values = values_of(path.as_ref())?;
    let all = match Granularity::of(&values) {
        Some(Granularity::Stack) => vec![values.json::<StackInfo>(state::STACK)?],
        _ => {
            state::check_kind(&values, &[Granularity::Training, Granularity::Rack])?;
            values.json::<RackInfo>(state::RACK)?.stack_info
        }
    };
    let count = all.len();
    all.into_iter().nth(index).ok_or_else(|| {
        Error::new(ErrorKind::InvalidInput, format!("stack {index} of {count}"))
            .with_help("stacks are counted from 0")
    })
}

fn values_of(path: &Path) -> Result<Values> {
    let found = catalog::find(&LocalStorage::new(), &Wanted::parse(path)?)?;
    Ok(found.manifest.values().clone())
}
