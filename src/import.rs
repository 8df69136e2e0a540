//! Importing: safetensors files of other tools as a checkpoint, verified from then on.

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::agree::{agree, unlike};
use crate::catalog::{self, CheckpointPath};
use crate::error::{Error, ErrorKind, Result};
use crate::files::{self, ExtentDirectory, Foreign, Parts};
use crate::group::{Channel, ProcessGroup};
use crate::load::stored_state;
use crate::plan::OnExisting;
pub use crate::pytorch::Algorithm;
use crate::pytorch::NameRules;
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
    /// What is expected. Default: whatever is there.
    pub format: Option<ImportFormat>,
    /// Which algorithm an optimizer of PyTorch is, where its settings do not tell Adam and AdamW
    /// apart.
    pub algorithm: Option<Algorithm>,
    /// Whether an optimizer of PyTorch that is not understood is left out, with a log line.
    /// Default: no, it is an error.
    pub lenient: bool,
}

/// What other tools write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ImportFormat {
    /// A directory as Hugging Face tools write it, or one safetensors file.
    HuggingFace,
    /// A file of `torch.save`.
    Pt,
    /// A directory of `torch.distributed.checkpoint`.
    Dcp,
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
        found = Some(Source::open(storage, from.as_ref(), options)?);
        Ok((from.as_ref().to_string_lossy().into_owned(), options.clone()))
    };
    let decide = |asked: Vec<(String, ImportOptions)>| {
        agree(&asked, difference, "nothing was imported; every rank must import alike").map(drop)
    };
    group.phase_all(Channel::Save, "import", look, decide)?;
    let Some(Source { state, options, summed }) = found else {
        return Err(Error::new(ErrorKind::Disagreement, "nothing was found, and nobody said so"));
    };
    let check = || match &summed {
        Some(summed) => summed.check_members(group.rank().index(), group.world_size().len()),
        None => Ok(()),
    };
    group.phase_all(Channel::Save, "sums", check, |_: Vec<()>| Ok(()))?;
    save(group, storage, to, &state, &options)
}

/// The first thing that another rank asks for otherwise, and that no later phase compares.
fn difference(ours: &(String, ImportOptions), theirs: &(String, ImportOptions)) -> Option<String> {
    let (from, ImportOptions { format, algorithm, lenient, .. }) = ours;
    let other = &theirs.1;
    unlike("what is to be imported", from, &theirs.0)
        .or_else(|| unlike("`format`", format, &other.format))
        .or_else(|| unlike("`algorithm`", algorithm, &other.algorithm))
        .or_else(|| unlike("`lenient`", lenient, &other.lenient))
}

/// What is to be imported, and as what.
struct Source {
    state: StateDict,
    options: SaveOptions,
    /// Files whose sums are checked before anything is saved.
    summed: Option<Arc<ExtentDirectory>>,
}

impl Source {
    fn open(storage: &dyn Storage, from: &Path, options: &ImportOptions) -> Result<Self> {
        let Foreign { dir, manifest, summed, .. } = open(storage, from, options)?;
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
        Ok(Self { state, options, summed })
    }
}

fn open(storage: &dyn Storage, from: &Path, options: &ImportOptions) -> Result<Foreign> {
    let at = |e: Error| if e.path().is_some() { e } else { e.with_path(from) };
    let found = of_pytorch(storage, from, options).map_err(at)?;
    let expected = options.format.is_none_or(|format| match format {
        ImportFormat::HuggingFace => found.is_none(),
        ImportFormat::Pt => found.as_ref().is_some_and(|found| !found.is_distributed),
        ImportFormat::Dcp => found.as_ref().is_some_and(|found| found.is_distributed),
    });
    if !expected {
        let message = "it is there, but of another format than the one that is asked for";
        return Err(Error::new(ErrorKind::Incompatible, message).with_path(from));
    }
    if let Some(found) = found {
        return Ok(found);
    }
    match storage.open_dir(from) {
        Ok(dir) => {
            refuse_checkpoint(dir.as_ref())?;
            let opened = files::open_directory(dir.as_ref(), Parts::All).map_err(at)?;
            let manifest = opened.ok_or_else(|| nothing(from))?;
            Ok(Foreign { dir, manifest, summed: None, is_distributed: false })
        }
        Err(e) if e.kind() == ErrorKind::NotFound => open_file(storage, from).map_err(at),
        Err(e) => Err(e),
    }
}

fn of_pytorch(
    storage: &dyn Storage,
    from: &Path,
    options: &ImportOptions,
) -> Result<Option<Foreign>> {
    let path = CheckpointPath::parse(from)?;
    let parent = match storage.open_dir(path.directory()) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let rules = NameRules { algorithm: options.algorithm, is_lenient: options.lenient };
    files::open_pytorch(&parent, path.name().as_str(), rules)
}

fn open_file(storage: &dyn Storage, from: &Path) -> Result<Foreign> {
    let path = CheckpointPath::parse(from)?;
    let dir = storage.open_dir(path.directory()).map_err(|e| match e.kind() {
        ErrorKind::NotFound => nothing(from),
        _ => e,
    })?;
    let manifest = files::open_plain(dir.as_ref(), path.name())?.ok_or_else(|| nothing(from))?;
    Ok(Foreign { dir, manifest, summed: None, is_distributed: false })
}

fn nothing(from: &Path) -> Error {
    Error::new(ErrorKind::NotFound, "nothing that can be imported").with_path(from).with_help(
        "known are safetensors files, files of `torch.save`, directories of \
             `torch.distributed.checkpoint` (`.metadata`), and those of Hugging Face \
             (`model.safetensors`, or `model.safetensors.index.json` and the files that it names)",
    )
}

fn refuse_checkpoint(dir: &dyn Directory) -> Result<()> {
    match catalog::read_manifest(dir) {
        Err(e) if e.kind() == ErrorKind::Storage => Err(e),
        Err(_) if !catalog::holds_our_files(dir)? => Ok(()),
        _ => Err(files::is_ours(dir.path())),
    }
}
