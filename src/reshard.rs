//! Resharding: the same checkpoint in files of another number of ranks.
//!
//! A load needs none of this, it reads into any world size. It is for directories that are to have
//! fewer files, or one for each rank of the next job.

use std::sync::Arc;

use crate::catalog::{CheckpointPath, Found, read_other};
use crate::error::{Error, ErrorKind, Result};
use crate::group::ProcessGroup;
use crate::layout::CODE_DIR;
use crate::load::stored_state;
use crate::manifest::{AUTOMATIC, Form, Manifest, OtherFile, RESHARDED_FROM, TensorRecord};
use crate::plan::OnExisting;
use crate::rank::{Rank, WorldSize};
use crate::save::{Checkpoint, SaveOptions, save_as_ranks};
use crate::shard::ShardReader;
use crate::state::{StateDict, Values};
use crate::storage::Storage;

/// How a checkpoint is written anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReshardOptions {
    /// As how many ranks it is written.
    pub world_size: WorldSize,
    /// Whether a checkpoint of that name is replaced.
    pub overwrite: bool,
}

/// Writes checkpoint `found` to `to` as so many ranks would that all hold it: the same tensors, bit
/// by bit, second names, values, step, epoch and attached files. Every block is verified as it is
/// read; memory: some tens of MiB and the block sums of a few files, whatever the size of a tensor.
///
/// What ranks have saved of their own stays with the ranks that there still are. Where there is such
/// and their number changes, value `reshard.world_size` says how many there were.
///
/// Not collective: one process does it; `group` is [solo](ProcessGroup::solo) and counts what was
/// written.
///
/// # Durability
/// As [`save`](fn@crate::save::save).
///
/// # Errors
/// [`ErrorKind::Corrupt`] with path, tensor and offset: nothing is visible then;
/// [`ErrorKind::Unsupported`] for files of other tools; as [`save`](fn@crate::save::save).
pub fn reshard(
    group: &ProcessGroup,
    storage: &dyn Storage,
    found: &Found,
    to: &CheckpointPath,
    options: &ReshardOptions,
) -> Result<Checkpoint> {
    let reader = ShardReader::of(found.dir.clone(), &found.manifest);
    reader.check_lengths()?;
    for index in 0..found.manifest.data_files().len() {
        reader.verify_header(index)?;
    }
    let mut state = state_of(found, reader, &mut |_| true)?;
    attach(found, &mut state, &mut |_, error| Err(error))?;
    rewrite(group, storage, found, state, to, options)
}

/// All of a checkpoint but its attached files: those tensors that are `wanted`.
pub(crate) fn state_of(
    found: &Found,
    reader: ShardReader,
    wanted: &mut dyn FnMut(&TensorRecord) -> bool,
) -> Result<StateDict> {
    let manifest = &found.manifest;
    if *manifest.form() == Form::Plain {
        return Err(Error::new(ErrorKind::Unsupported, "files of another tool have no ranks")
            .with_path(found.path()));
    }
    let mut state = stored_state(&Arc::new(reader), manifest, wanted)?;
    for (alias, kept) in manifest.aliases() {
        if !state.boxes(kept.as_str()).is_empty() {
            state.add_alias(alias.clone(), kept.clone())?;
        }
    }
    state.values = manifest.values().clone();
    Ok(state)
}

/// Whether a save was given this file.
pub(crate) fn is_attached(other: &OtherFile) -> bool {
    other.name.split_once('/').is_some_and(|(dir, _)| dir == CODE_DIR)
}

/// Attaches the files that a save has attached. `bad` says what becomes of one that is damaged.
pub(crate) fn attach(
    found: &Found,
    state: &mut StateDict,
    bad: &mut dyn FnMut(&str, Error) -> Result<()>,
) -> Result<()> {
    for record in found.manifest.other_files().iter().filter(|other| is_attached(other)) {
        match read_other(&found.dir, record) {
            Ok(bytes) => state.attach_file(record.name.clone(), bytes)?,
            Err(error) => bad(&record.name, error)?,
        }
    }
    Ok(())
}

/// Saves `state`, which is of `found`, with its values of ranks, step and epoch.
pub(crate) fn rewrite(
    group: &ProcessGroup,
    storage: &dyn Storage,
    found: &Found,
    mut state: StateDict,
    to: &CheckpointPath,
    options: &ReshardOptions,
) -> Result<Checkpoint> {
    let manifest = &found.manifest;
    let (from, into) = (manifest.world_size(), options.world_size);
    let has_own = |rank| manifest.rank_values(rank).is_some_and(|own| !own.is_empty());
    // Of several times the first: it is those ranks that have saved.
    if from != into && !manifest.is_resharded() && from.ranks().any(has_own) {
        state.values.set(RESHARDED_FROM, i64::from(from.get()));
    }
    // Somebody has asked for it: no rule may count or remove it.
    if state.values.find(AUTOMATIC).is_some() {
        state.values.set(AUTOMATIC, false);
    }
    let own = |rank: Rank| manifest.rank_values(rank).cloned().unwrap_or_default();
    let rank_values: Vec<Values> = into.ranks().map(own).collect();
    let save_options = SaveOptions {
        step: manifest.step(),
        epoch: manifest.epoch(),
        on_existing: if options.overwrite { OnExisting::Replace } else { OnExisting::Refuse },
        libtorch_version: manifest.libtorch_version().to_owned(),
        ..SaveOptions::default()
    };
    save_as_ranks(group, storage, to, &state, &rank_values, &save_options)
}

/// The values of ranks that a checkpoint of fewer ranks has no place for, by name.
#[must_use]
pub fn left_out(manifest: &Manifest, world_size: WorldSize) -> Vec<String> {
    let gone = manifest.world_size().ranks().skip(world_size.len());
    let values = gone.filter_map(|rank| manifest.rank_values(rank));
    let mut names: Vec<String> =
        values.flat_map(|values| values.iter().map(|(name, _)| name.to_owned())).collect();
    names.sort_unstable();
    names.dedup();
    names
}
