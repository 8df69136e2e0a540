//! Exporting: whole tensors of a checkpoint as ordinary safetensors files for other programs.
//!
//! A checkpoint is for going on with; an export is for using a model elsewhere. It has no manifest
//! and no block sums, only what every safetensors reader knows, and texts in the header's
//! `__metadata__` that say which save it came from.
//!
//! - **Tied tensors** are written once, under their stored name (or the first of their names that
//!   is exported). As `safetensors.torch.save_model` does, the metadata names each other name with
//!   the one that was kept; `load_model` there ties them again. For readers that want every name,
//!   [`ExportOptions::repeat_tied`] writes the bytes once for each.
//! - **Frozen parameters** cannot be left out as such: checkpoints do not say which parameters
//!   were trained. Exclude them by name.
//! - **Casting** is for floating tensors; integers, booleans and complex numbers stay as they are.

mod asked;
mod draft;
#[cfg(feature = "torch")]
mod files;
mod hugging_face;
mod options;
mod plan;
mod pytorch;
mod taken;
mod write;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::agree::agree;
use crate::catalog::{self, CheckpointPath, Found, Wanted};
use crate::error::{Error, ErrorKind, Result};
use crate::group::{Channel, ProcessGroup};
use crate::layout::SaveId;
use crate::shown;
use crate::storage::Storage;
use crate::sweep::Pace;
use crate::tensor::{Dtype, TensorName, TensorSpec};

use asked::Asked;
use draft::Draft;
#[cfg(feature = "torch")]
pub(crate) use files::{NewFile, hash_text, write_directory};
pub use hugging_face::{HuggingFace, parse_bytes};
pub use options::ExportOptions;
use plan::FilePlan;
pub use pytorch::{PyTorch, PyTorchForm};
use write::Writer;

/// What an export wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exported {
    /// The file, or the directory of the files.
    pub path: PathBuf,
    /// Where the checkpoint lay.
    pub source: PathBuf,
    /// The save that wrote the checkpoint; zeros for files of other tools.
    pub save_id: SaveId,
    /// Its training steps.
    pub step: u64,
    /// The files of tensors: in order of their names, or, of a Hugging Face directory, of the
    /// components and their shards.
    pub files: Vec<ExportedFile>,
    /// What else was written: indices, and the description of the model.
    pub documents: Vec<PathBuf>,
}

/// One file of an export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportedFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// Its tensors, in file order.
    pub tensors: Vec<ExportedTensor>,
}

/// One tensor of an export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportedTensor {
    /// Its name in the file.
    pub name: TensorName,
    /// Its name in the checkpoint.
    pub stored: TensorName,
    /// Dtype and shape in the file.
    pub spec: TensorSpec,
    /// Its dtype in the checkpoint, if that is another one.
    pub cast_from: Option<Dtype>,
    /// How many finite elements became infinite by the cast.
    pub overflowed: u64,
}

/// Writes whole tensors of checkpoint `wanted` to `out`: one safetensors file, or, with
/// [`ExportOptions::submodules`], a directory with a file for each of them. By default the weights
/// of the model. The checkpoint may be of any form and any world size, and of other tools if
/// `wanted` is [`or_unverified`](Wanted::or_unverified).
///
/// Every block is verified on its way. Memory: some tens of MiB, whatever the size of a tensor.
///
/// ```
/// # use std::sync::Arc;
/// # use tch_checkpoint::catalog::CheckpointPath;
/// # use tch_checkpoint::state::StateDict;
/// # use tch_checkpoint::storage::MemoryStorage;
/// # use tch_checkpoint::tensor::{Component, TensorName, TensorSpec};
/// # use tch_checkpoint::{SaveOptions, save};
/// # let (group, storage) = (tch_checkpoint::ProcessGroup::solo(), MemoryStorage::new());
/// # let mut state = StateDict::new();
/// # for name in ["encoder.w", "decoder.w"] {
/// #     let (spec, bytes) = (TensorSpec::new(Dtype::F32, [2])?, Arc::new([0u8; 8]));
/// #     state.add(&Component::model(), TensorName::new(name)?, spec, bytes)?;
/// # }
/// # save(&group, &storage, &CheckpointPath::parse("runs/e3")?, &state, &SaveOptions::default())?;
/// use tch_checkpoint::catalog::Wanted;
/// use tch_checkpoint::export::{ExportOptions, export};
/// use tch_checkpoint::tensor::Dtype;
///
/// let wanted = Wanted::parse("runs/latest")?;
/// let half = ExportOptions { cast: Some(Dtype::BF16), ..ExportOptions::default() };
/// let exported = export(&group, &storage, &wanted, "out/model.safetensors", &half)?;
/// assert_eq!(exported.files[0].tensors.len(), 2);
///
/// let submodules = vec!["encoder".into(), "decoder".into()];
/// let parts = ExportOptions { submodules, ..ExportOptions::default() };
/// let exported = export(&group, &storage, &wanted, "out/parts", &parts)?;
/// assert_eq!(exported.files[0].path.to_str(), Some("out/parts/decoder.safetensors"));
/// assert_eq!(exported.files[0].tensors[0].name.as_str(), "w");
/// # Ok::<(), tch_checkpoint::Error>(())
/// ```
///
/// # Collective
/// Every rank, with the same `wanted`, `out` and `options`; the coordinator does it, and all get what
/// came of it. One process alone passes [`ProcessGroup::solo`].
///
/// # Durability
/// Once this returns, the export survives a power cut. A crash before leaves nothing under the
/// name, or what was there before: file or directory appear whole, by one rename. Hidden debris of
/// a crash is removed by the next export or save into the same directory.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] for options that contradict each other, and for a place inside a
/// checkpoint; [`ErrorKind::Disagreement`] if ranks ask for different exports;
/// [`ErrorKind::NotFound`],
/// with what there is, if there is no such checkpoint, or an option names nothing in it;
/// [`ErrorKind::AlreadyExists`] if the name is taken (by anything that is no export, also with
/// [`ExportOptions::overwrite`]); [`ErrorKind::Unsupported`] for a cast of an 8-bit float;
/// [`ErrorKind::Corrupt`], [`ErrorKind::Superseded`] if the checkpoint was replaced meanwhile,
/// [`ErrorKind::Storage`]. Nothing is visible then, and what was there before still is; but with
/// [`ErrorKind::DurabilityUncertain`] the export is visible and complete.
pub fn export(
    group: &ProcessGroup,
    storage: &dyn Storage,
    wanted: &Wanted,
    out: impl AsRef<Path>,
    options: &ExportOptions,
) -> Result<Exported> {
    let out = out.as_ref();
    let ask = || Asked::of(wanted, out, options);
    group.phase_all(Channel::Save, "export", ask, |asked: Vec<Asked>| {
        agree(&asked, Asked::difference, "nothing was exported; every rank must export alike")?;
        export_alone(storage, wanted, out, options, &Pace::of(group))
    })
}

fn export_alone(
    storage: &dyn Storage,
    wanted: &Wanted,
    out: &Path,
    options: &ExportOptions,
    pace: &Pace,
) -> Result<Exported> {
    let rules = options.check()?;
    let path = CheckpointPath::parse(out)?;
    let found = catalog::find_counting(storage, wanted, &mut || pace.progress.add(1))?;
    let at = |e: Error| if e.path().is_some() { e } else { e.with_path(found.path()) };
    let plan = plan::plan(&found.manifest, &rules).map_err(at)?;
    let mut draft = Draft::begin(storage, &path, options.is_directory(), options.overwrite, pace)?;
    draft.check_space(plan.lengths())?;
    let explained = |e: Error| explain(storage, wanted, &found, e);
    let (files, documents) = match &plan.pytorch {
        Some(plan) => plan.write(&found, &mut draft, pace).map_err(explained)?,
        None => {
            let files = write_files(&found, &mut draft, &plan.files, pace).map_err(explained)?;
            (files, write_documents(&mut draft, &plan.documents)?)
        }
    };
    draft.publish()?;
    let exported = Exported {
        path: path.full(),
        source: found.path(),
        save_id: found.manifest.save_id(),
        step: found.manifest.step(),
        files,
        documents,
    };
    tell(&exported);
    Ok(exported)
}

fn write_files(
    found: &Found,
    draft: &mut Draft,
    plans: &[FilePlan],
    pace: &Pace,
) -> Result<Vec<ExportedFile>> {
    let mut writer = Writer::open(found, pace)?;
    let write = |plan: &FilePlan| {
        let file = draft.create(plan.name.as_deref())?;
        let tensors = writer.write(plan, file)?;
        let path = draft.path_of(plan.name.as_deref());
        Ok(ExportedFile { path, bytes: plan.len(), tensors })
    };
    plans.iter().map(write).collect()
}

fn write_documents(draft: &mut Draft, documents: &[(String, Vec<u8>)]) -> Result<Vec<PathBuf>> {
    let write = |(name, bytes): &(String, Vec<u8>)| {
        let file = draft.create(Some(name))?;
        file.write_at(0, bytes)?;
        file.finish()?;
        Ok(draft.path_of(Some(name)))
    };
    documents.iter().map(write).collect()
}

/// Files that are gone, or differ from what the manifest says, may be those of another save by
/// now.
fn explain(storage: &dyn Storage, wanted: &Wanted, found: &Found, error: Error) -> Error {
    if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Corrupt) {
        return error;
    }
    match catalog::find(storage, wanted) {
        Ok(now) if now.manifest.save_id() == found.manifest.save_id() => {
            error.with_kind(ErrorKind::Corrupt)
        }
        Ok(_) => error
            .with_kind(ErrorKind::Superseded)
            .with_help("the checkpoint was replaced while it was being exported; export again"),
        Err(_) => error,
    }
}

fn tell(exported: &Exported) {
    let tensors = exported.files.iter().flat_map(|file| &file.tensors);
    for tensor in tensors.filter(|tensor| tensor.overflowed > 0) {
        tracing::warn!(
            tensor = tensor.name.as_str(),
            elements = tensor.overflowed,
            "finite values became infinite in {}",
            tensor.spec.dtype()
        );
    }
    let files = exported.files.len();
    tracing::info!(path = %shown::path(&exported.path), files, step = exported.step, "exported");
}
