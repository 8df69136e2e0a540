//! Importing: safetensors files of other tools as a checkpoint, verified from then on.

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::agree::{agree, unlike};
use crate::catalog::{self, CheckpointPath};
use crate::error::{Error, ErrorKind, Result};
use crate::files::{self, Parts};
use crate::group::{Channel, ProcessGroup};
use crate::load::stored_state;
use crate::manifest::Manifest;
use crate::plan::OnExisting;
use crate::save::{Checkpoint, SaveOptions, save};
use crate::shard::ShardReader;
use crate::state::StateDict;
use crate::storage::{Directory, Storage};

/// What an imported checkpoint is to be. By default the steps and epochs that an export has noted,
/// else zero, and never in place of an existing checkpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImportOptions {
    /// Training steps completed; by default what an export has noted, else 0.
    pub step: Option<u64>,
    /// Epochs completed; by default what an export has noted, else 0.
    pub epoch: Option<u64>,
    /// Whether a checkpoint of this name is replaced. Default: no.
    pub overwrite: bool,
}

/// Makes a checkpoint of a safetensors file of another tool, or of a directory as Hugging Face tools
/// write it: an index and its files, or `model.safetensors`.
///
/// Tensors keep names and dtypes, and second names of tied tensors, where the metadata names them,
/// become aliases. Of a directory that an [export](crate::export::export()) wrote all components
/// are taken. `config.json` becomes the value `model.config`, from which
/// `NNHandler::initialize_from_checkpoint` builds the model. To read weights
/// without making a checkpoint, load them as they are:
/// [`Wanted::or_unverified`](crate::catalog::Wanted::or_unverified).
///
/// Files of other tools have no sums: headers and index are checked, what the data should have been
/// nobody knows. Memory: some tens of MiB, whatever the size of a tensor.
///
/// # Collective
/// Every rank of the group, with the same arguments; each reads and writes its share. One process
/// alone passes [`ProcessGroup::solo`].
///
/// # Durability
/// As [`save`](fn@crate::save::save).
///
/// # Errors
/// [`ErrorKind::NotFound`] if there is nothing of the kind; [`ErrorKind::InvalidInput`] for what is
/// a checkpoint already; [`ErrorKind::Incompatible`], with tensor and dtype, for a dtype that is not
/// known; [`ErrorKind::Corrupt`] for a malformed header or index, files that are missing, links, and
/// tensors that are not where the index says; [`ErrorKind::Disagreement`] if ranks import from
/// different places; as [`save`](fn@crate::save::save).
pub fn import(
    group: &ProcessGroup,
    storage: &dyn Storage,
    from: impl AsRef<Path>,
    to: &CheckpointPath,
    options: &ImportOptions,
) -> Result<Checkpoint> {
    let mut found = None;
    let look = || {
        found = Some(Foreign::open(storage, from.as_ref(), options)?);
        Ok(from.as_ref().to_string_lossy().into_owned())
    };
    let decide = |from: Vec<String>| {
        let difference = |ours: &String, theirs: &String| unlike(FROM, ours, theirs);
        agree(&from, difference, "nothing was imported; every rank must import alike").map(drop)
    };
    group.phase_all(Channel::Save, "import", look, decide)?;
    let Some(Foreign { state, options }) = found else {
        return Err(Error::new(ErrorKind::Disagreement, "nothing was found, and nobody said so"));
    };
    save(group, storage, to, &state, &options)
}

/// The argument that no later phase compares.
const FROM: &str = "what is to be imported";

/// What is to be imported, and as what.
struct Foreign {
    state: StateDict,
    options: SaveOptions,
}

impl Foreign {
    fn open(storage: &dyn Storage, from: &Path, options: &ImportOptions) -> Result<Self> {
        let (dir, manifest) = open(storage, from)?;
        let reader = ShardReader::of(dir.clone(), &manifest);
        reader.check_lengths()?;
        let mut state = stored_state(&Arc::new(reader), &manifest, &mut |_| true)?;
        for (alias, kept) in manifest.aliases() {
            state.add_alias(alias.clone(), kept.clone())?;
        }
        state.values = manifest.values().clone();
        let on_existing = if options.overwrite { OnExisting::Replace } else { OnExisting::Refuse };
        let options = SaveOptions {
            step: options.step.unwrap_or(manifest.step()),
            epoch: options.epoch.unwrap_or(manifest.epoch()),
            on_existing,
            ..SaveOptions::default()
        };
        Ok(Self { state, options })
    }
}

fn open(storage: &dyn Storage, from: &Path) -> Result<(Arc<dyn Directory>, Manifest)> {
    let at = |e: Error| if e.path().is_some() { e } else { e.with_path(from) };
    match storage.open_dir(from) {
        Ok(dir) => {
            refuse_checkpoint(dir.as_ref())?;
            let opened = files::open_directory(dir.as_ref(), Parts::All).map_err(at)?;
            let manifest = opened.ok_or_else(|| nothing(from))?;
            Ok((dir, manifest))
        }
        Err(e) if e.kind() == ErrorKind::NotFound => open_file(storage, from).map_err(at),
        Err(e) => Err(e),
    }
}

fn open_file(storage: &dyn Storage, from: &Path) -> Result<(Arc<dyn Directory>, Manifest)> {
    let path = CheckpointPath::parse(from)?;
    let dir = storage.open_dir(path.directory()).map_err(|e| match e.kind() {
        ErrorKind::NotFound => nothing(from),
        _ => e,
    })?;
    let manifest = files::open_plain(dir.as_ref(), path.name())?.ok_or_else(|| nothing(from))?;
    Ok((dir, manifest))
}

fn nothing(from: &Path) -> Error {
    Error::new(ErrorKind::NotFound, "no safetensors file, and no directory of a model")
        .with_path(from)
        .with_help(
            "a directory holds `model.safetensors`, or `model.safetensors.index.json` and the \
             files that it names",
        )
}

fn refuse_checkpoint(dir: &dyn Directory) -> Result<()> {
    match catalog::read_manifest(dir) {
        Err(e) if e.kind() == ErrorKind::Storage => Err(e),
        Err(_) if !catalog::holds_our_files(dir)? => Ok(()),
        _ => Err(files::is_ours(dir.path())),
    }
}
