//! `import`: files of other programs as a checkpoint.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::json;

use super::format::bytes;
use super::{Output, Stop, progress};
use crate::catalog::{CheckpointPath, Wanted, find};
use crate::group::ProcessGroup;
use crate::import::{Algorithm, ImportFormat, ImportOptions, import};
use crate::shown::path;
use crate::storage::LocalStorage;

#[derive(Args)]
pub(super) struct Import {
    /// A file of torch.save, a directory of torch.distributed.checkpoint, a safetensors file, or a
    /// directory with model.safetensors, or with an index and the files that it names.
    from: PathBuf,
    /// What is expected there.
    #[arg(long, value_enum, default_value_t = Format::Auto)]
    format: Format,
    /// The checkpoint that is made.
    #[arg(short, long = "out", value_name = "OUT", visible_alias = "output")]
    out: PathBuf,
    /// Training steps completed; by default what an export has noted, else 0.
    #[arg(long)]
    step: Option<u64>,
    /// Epochs completed; by default what an export has noted, else 0.
    #[arg(long)]
    epoch: Option<u64>,
    /// Which optimizer it is, where a file of an older PyTorch does not say.
    #[arg(long, value_enum)]
    optimizer: Option<Optimizer>,
    /// Leave out an optimizer of PyTorch that is not understood.
    #[arg(long)]
    lenient: bool,
    /// Replace a checkpoint of this name; other files are never replaced.
    #[arg(long)]
    force: bool,
    /// One JSON object instead of text.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Whatever is there.
    Auto,
    /// Safetensors: a directory of Hugging Face, or one file.
    Hf,
    /// A file of torch.save.
    Pt,
    /// A directory of torch.distributed.checkpoint.
    Dcp,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Optimizer {
    Adam,
    Adamw,
}

impl Import {
    fn options(&self) -> ImportOptions {
        ImportOptions {
            step: self.step,
            epoch: self.epoch,
            overwrite: self.force,
            format: match self.format {
                Format::Auto => None,
                Format::Hf => Some(ImportFormat::HuggingFace),
                Format::Pt => Some(ImportFormat::Pt),
                Format::Dcp => Some(ImportFormat::Dcp),
            },
            algorithm: self.optimizer.map(|optimizer| match optimizer {
                Optimizer::Adam => Algorithm::Adam,
                Optimizer::Adamw => Algorithm::AdamW,
            }),
            lenient: self.lenient,
        }
    }
}

pub(super) fn run(out: &mut Output<'_>, arguments: &Import) -> Result<u8, Stop> {
    let to = CheckpointPath::parse(&arguments.out)?;
    let (storage, solo) = (LocalStorage::new(), ProcessGroup::solo());
    let options = arguments.options();
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
