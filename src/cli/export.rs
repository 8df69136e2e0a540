//! `export`: a checkpoint for other programs.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::json;

use super::format::bytes;
use super::{Output, Stop, progress};
use crate::catalog::{Found, Wanted, find};
use crate::error::{Error, ErrorKind, Result};
use crate::export::{
    ExportOptions, Exported, HuggingFace, PyTorch, PyTorchForm, export, parse_bytes,
};
use crate::group::ProcessGroup;
use crate::shown::{line, path};
use crate::storage::LocalStorage;
use crate::tensor::{Component, Dtype};

/// Longest description of a model that is read.
const CONFIG_BYTES_MAX: u64 = 16 << 20;

#[derive(Args)]
pub(super) struct Export {
    /// The checkpoint; `DIR/latest` is the newest of DIR, `DIR/best` what its link names.
    path: PathBuf,
    /// What is written.
    #[arg(long, value_enum, default_value_t = Format::Hf)]
    format: Format,
    /// The directory (hf, dcp) or file (safetensors, pt) that is written.
    #[arg(short, long = "out", value_name = "OUT", visible_alias = "output")]
    out: PathBuf,
    /// Only this component, such as `model`; can be given several times. Default: all.
    #[arg(long = "component", value_name = "C", value_parser = component)]
    components: Vec<Component>,
    /// Most bytes of tensors in one file of a hf directory: 5GB, 200MB, 1GiB.
    #[arg(long, value_name = "SIZE", value_parser = size, default_value = "5GB")]
    max_shard_size: u64,
    /// Cast floating tensors: f64, f32, f16 or bf16. Others stay as they are.
    #[arg(long, value_parser = dtype)]
    dtype: Option<Dtype>,
    /// Names of the model's parameters in the order of `model.parameters()`, one in a line: the
    /// optimizer of a pt file or dcp directory is numbered by them, as torch.optim does it. Without,
    /// it goes by names.
    #[arg(long, value_name = "FILE")]
    parameters: Option<PathBuf>,
    /// The config.json of a hf directory; by default what the checkpoint holds.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Only tensors of these names; `*` matches any run of characters.
    #[arg(long, value_name = "PATTERN", conflicts_with = "exclude")]
    include: Vec<String>,
    /// All but tensors of these names.
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<String>,
    /// Take this off the names, all of which have to begin with it: `module.`
    #[arg(long, value_name = "PREFIX")]
    strip_prefix: Option<String>,
    /// Write tied tensors under each of their names, not once.
    #[arg(long)]
    repeat_tied: bool,
    /// Replace an earlier export of this name; other files are never replaced.
    #[arg(long)]
    force: bool,
    /// One JSON object instead of text.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A directory that Hugging Face tools open: shards, an index, config.json.
    Hf,
    /// One safetensors file.
    Safetensors,
    /// A file that torch.load opens, also with weights_only=True.
    Pt,
    /// A directory that torch.distributed.checkpoint.load opens.
    Dcp,
}

impl Format {
    const fn name(self) -> &'static str {
        match self {
            Self::Hf => "hf",
            Self::Safetensors => "safetensors",
            Self::Pt => "pt",
            Self::Dcp => "dcp",
        }
    }
}

pub(super) fn run(out: &mut Output<'_>, arguments: &Export) -> Result<u8, Stop> {
    let options = arguments.options()?;
    let wanted = Wanted::parse(&arguments.path)?;
    let (storage, solo) = (LocalStorage::new(), ProcessGroup::solo());
    // What is read, and written; what goes wrong here goes wrong there as well.
    let total =
        || find(&storage, &wanted).map_or(0, |found| arguments.bytes_of(&found).saturating_mul(2));
    let work = || export(&solo, &storage, &wanted, &arguments.out, &options);
    let exported = progress::shown("exporting", total, &solo.progress(), work)?;
    if arguments.json {
        out.json(&as_json(&exported, arguments.format))?;
    } else {
        text(out, &exported)?;
    }
    Ok(0)
}

impl Export {
    fn options(&self) -> Result<ExportOptions> {
        let is_hf = self.format == Format::Hf;
        if !is_hf && self.config.is_some() {
            return Err(Error::new(ErrorKind::InvalidInput, "--config is for --format hf"));
        }
        let pytorch = match self.format {
            Format::Pt => Some(PyTorchForm::Pt),
            Format::Dcp => Some(PyTorchForm::Dcp),
            Format::Hf | Format::Safetensors => None,
        };
        if pytorch.is_none() && self.parameters.is_some() {
            let message = "--parameters is for --format pt and dcp";
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        let names = self.parameters.as_deref().map(read_text).transpose()?;
        let lines = |text: String| {
            let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
            lines.map(str::to_owned).collect()
        };
        let parameters: Option<Vec<String>> = names.map(lines);
        let config = self.config.as_deref().map(read_text).transpose()?;
        let form = HuggingFace { max_shard_bytes: self.max_shard_size, config };
        Ok(ExportOptions {
            include: self.include.clone(),
            exclude: self.exclude.clone(),
            components: Some(self.components.clone()).filter(|list| !list.is_empty()),
            strip_prefix: self.strip_prefix.clone(),
            hugging_face: is_hf.then_some(form),
            pytorch: pytorch.map(|form| PyTorch {
                form,
                parameters,
                max_file_bytes: self.max_shard_size,
            }),
            repeat_tied: self.repeat_tied,
            cast: self.dtype,
            overwrite: self.force,
            ..ExportOptions::default()
        })
    }

    /// About what is going to be read.
    fn bytes_of(&self, found: &Found) -> u64 {
        let is_asked = |c: &Component| self.components.is_empty() || self.components.contains(c);
        let tensors = found.manifest.tensors().iter().filter(|t| is_asked(&t.component));
        tensors.fold(0u64, |sum, tensor| sum.saturating_add(tensor.spec.size_bytes()))
    }
}

fn read_text(file: &Path) -> Result<String> {
    let failed = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound => {
            Error::new(ErrorKind::NotFound, "no such file").with_path(file)
        }
        _ => Error::io(&e, "reading", file),
    };
    let len = fs::metadata(file).map_err(failed)?.len();
    if len > CONFIG_BYTES_MAX {
        let message = format!("a text of {len} bytes, at most {CONFIG_BYTES_MAX}");
        return Err(Error::new(ErrorKind::InvalidInput, message).with_path(file));
    }
    let bytes = fs::read(file).map_err(failed)?;
    String::from_utf8(bytes)
        .map_err(|e| Error::new(ErrorKind::InvalidInput, e.to_string()).with_path(file))
}

fn component(text: &str) -> Result<Component, String> {
    Component::new(text).map_err(|e| e.message().to_owned())
}

fn size(text: &str) -> Result<u64, String> {
    parse_bytes(text).map_err(|e| e.message().to_owned())
}

fn dtype(text: &str) -> Result<Dtype, String> {
    match text.to_ascii_lowercase().as_str() {
        "f64" | "float64" => Ok(Dtype::F64),
        "f32" | "float32" => Ok(Dtype::F32),
        "f16" | "float16" => Ok(Dtype::F16),
        "bf16" | "bfloat16" => Ok(Dtype::BF16),
        _ => Err("give f64, f32, f16 or bf16".to_owned()),
    }
}

fn text(out: &mut Output<'_>, exported: &Exported) -> Result<(), Stop> {
    for file in &exported.files {
        let name = file.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let tensors = match file.tensors.len() {
            1 => "1 tensor".to_owned(),
            many => format!("{many} tensors"),
        };
        out.line(format!("{}  {}, {tensors}", line(&name), bytes(file.bytes)))?;
    }
    let names = exported.documents.iter().filter_map(|document| document.file_name());
    for name in names {
        out.line(line(&name.to_string_lossy()))?;
    }
    let overflowed = overflowed(exported);
    if overflowed > 0 {
        out.line(format!("note: {overflowed} finite values became infinite by the cast"))?;
    }
    let total = exported.files.iter().map(|file| file.bytes).sum();
    let (to, step) = (path(&exported.path), exported.step);
    out.line(format!("exported: {to}: step {step}, {} files, {}", count(exported), bytes(total)))
}

fn count(exported: &Exported) -> usize {
    exported.files.len() + exported.documents.len()
}

fn overflowed(exported: &Exported) -> u64 {
    let tensors = exported.files.iter().flat_map(|file| &file.tensors);
    tensors.map(|tensor| tensor.overflowed).sum()
}

fn as_json(exported: &Exported, format: Format) -> serde_json::Value {
    let files = exported.files.iter().map(|file| {
        json!({
            "path": file.path.display().to_string(), "bytes": file.bytes,
            "tensors": file.tensors.iter().map(|t| t.name.as_str()).collect::<Vec<_>>(),
        })
    });
    let documents = exported.documents.iter().map(|document| document.display().to_string());
    json!({
        "path": exported.path.display().to_string(),
        "format": format.name(),
        "source": exported.source.display().to_string(),
        "save_id": exported.save_id.to_string(), "step": exported.step,
        "bytes": exported.files.iter().map(|file| file.bytes).sum::<u64>(),
        "files": files.collect::<Vec<_>>(), "documents": documents.collect::<Vec<_>>(),
        "overflowed": overflowed(exported),
    })
}
