//! `import`: files of other programs as a checkpoint.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::format::bytes;
use super::{Output, Stop, progress};
use crate::catalog::{CheckpointPath, Wanted, find};
use crate::group::ProcessGroup;
use crate::import::{ImportOptions, import};
use crate::shown::path;
use crate::storage::LocalStorage;

#[derive(Args)]
pub(super) struct Import {
    /// A directory with model.safetensors, or with an index and the files that it names; or one
    /// safetensors file.
    from: PathBuf,
    /// The checkpoint that is made.
    #[arg(short, long = "out", value_name = "OUT", visible_alias = "output")]
    out: PathBuf,
    /// Training steps completed; by default what an export has noted, else 0.
    #[arg(long)]
    step: Option<u64>,
    /// Epochs completed; by default what an export has noted, else 0.
    #[arg(long)]
    epoch: Option<u64>,
    /// Replace a checkpoint of this name; other files are never replaced.
    #[arg(long)]
    force: bool,
    /// One JSON object instead of text.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(out: &mut Output<'_>, arguments: &Import) -> Result<u8, Stop> {
    let to = CheckpointPath::parse(&arguments.out)?;
    let (storage, solo) = (LocalStorage::new(), ProcessGroup::solo());
    let options =
        ImportOptions { step: arguments.step, epoch: arguments.epoch, overwrite: arguments.force };
    // What goes wrong here goes wrong there as well.
    let total = || {
        let found = Wanted::parse(&arguments.from).and_then(|w| find(&storage, &w.or_unverified()));
        found.map_or(0, |found| found.manifest.tensor_bytes())
    };
    let work = || import(&solo, &storage, &arguments.from, &to, &options);
    let imported = progress::shown("importing", total, &solo.progress(), work)?;
    let found = find(&storage, &Wanted::from(to))?;
    let manifest = &found.manifest;
    let (at, tensors) = (imported.path, manifest.tensors().len());
    if arguments.json {
        out.json(&json!({
            "path": at.display().to_string(), "source": arguments.from.display().to_string(),
            "save_id": imported.save_id.to_string(), "step": manifest.step(),
            "epoch": manifest.epoch(), "tensors": tensors, "bytes": manifest.tensor_bytes(),
        }))?;
    } else {
        let (step, size) = (manifest.step(), bytes(manifest.tensor_bytes()));
        out.line(format!("imported: {}: step {step}, {tensors} tensors, {size}", path(&at)))?;
    }
    Ok(0)
}
