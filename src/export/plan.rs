//! Which tensor goes where in which file: pure.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::cast::is_castable;
use crate::error::{Error, ErrorKind, Result};
use crate::export::options::{Rules, file_of};
use crate::export::pytorch::{self, PyTorchPlan};
use crate::export::{ExportedTensor, hugging_face};
use crate::layout::{EXPORT_EPOCH, EXPORT_SAVE_ID, EXPORT_STEP};
use crate::manifest::{Manifest, TensorRecord};
use crate::plan::load::list;
use crate::shard::{HeaderTensor, plain_header};
use crate::tensor::{Component, Dtype, TensorName, TensorSpec};

/// What is to be written.
pub(super) struct Plan {
    pub(super) files: Vec<FilePlan>,
    /// Small files beside those of tensors, each with its name.
    pub(super) documents: Vec<(String, Vec<u8>)>,
    /// Instead of both.
    pub(super) pytorch: Option<PyTorchPlan>,
}

impl Plan {
    /// Of all files.
    pub(super) fn lengths(&self) -> impl Iterator<Item = u64> {
        let documents = self.documents.iter().map(|(_, bytes)| bytes.len() as u64);
        let pytorch = self.pytorch.iter().map(PyTorchPlan::bytes);
        self.files.iter().map(FilePlan::len).chain(documents).chain(pytorch)
    }
}

/// One file, byte by byte, but for its data.
#[derive(Debug)]
pub(super) struct FilePlan {
    /// Its name in the directory of the export; `None` if it is the export.
    pub(super) name: Option<String>,
    pub(super) header: Vec<u8>,
    /// In file order, one after the other.
    pub(super) tensors: Vec<PlannedTensor>,
    pub(super) data_bytes: u64,
}

/// One tensor of a file.
#[derive(Debug, Clone)]
pub(super) struct PlannedTensor {
    pub(super) name: TensorName,
    pub(super) stored: TensorName,
    /// In the checkpoint.
    pub(super) from: TensorSpec,
    /// In the file.
    pub(super) spec: TensorSpec,
}

impl PlannedTensor {
    /// What is said of it before it is written.
    pub(super) fn exported(&self) -> ExportedTensor {
        let (from, to) = (self.from.dtype(), self.spec.dtype());
        ExportedTensor {
            name: self.name.clone(),
            stored: self.stored.clone(),
            spec: self.spec.clone(),
            cast_from: (from != to).then_some(from),
            overflowed: 0,
        }
    }
}

impl FilePlan {
    /// Length of the file.
    pub(super) fn len(&self) -> u64 {
        self.header.len() as u64 + self.data_bytes
    }
}

/// What is exported under which name, before it is spread over files.
pub(super) type Names<'m> = BTreeMap<String, Source<'m>>;

/// A tensor under one of its names.
#[derive(Clone, Copy)]
pub(super) struct Source<'m> {
    pub(super) record: &'m TensorRecord,
    pub(super) is_alias: bool,
}

/// # Errors
/// [`ErrorKind::NotFound`] if an option names nothing, [`ErrorKind::InvalidInput`] for a prefix
/// that some names do not have, [`ErrorKind::Unsupported`] for a cast that is not known.
pub(super) fn plan(manifest: &Manifest, rules: &Rules<'_>) -> Result<Plan> {
    let names = chosen(manifest, rules)?;
    if let Some(form) = &rules.options.hugging_face {
        return hugging_face::plan(manifest, rules, form, &names);
    }
    if let Some(asked) = &rules.options.pytorch {
        let plan = pytorch::plan(manifest, rules, asked, &names)?;
        return Ok(Plan { files: Vec::new(), documents: Vec::new(), pytorch: Some(plan) });
    }
    let files = match rules.options.submodules.is_empty() {
        true => vec![file(manifest, rules, None, &names, BTreeMap::new())?],
        false => parts(manifest, rules, &names)?,
    };
    Ok(Plan { files, documents: Vec::new(), pytorch: None })
}

/// A file for each part of the model.
fn parts(manifest: &Manifest, rules: &Rules<'_>, names: &Names<'_>) -> Result<Vec<FilePlan>> {
    let mut files = Vec::new();
    for part in &rules.options.submodules {
        let prefix = format!("{part}.");
        let keep = rules.options.keep_submodule_prefix;
        let own = names.iter().filter_map(|(name, source)| {
            let short = name.strip_prefix(&prefix)?;
            Some((if keep { name.clone() } else { short.to_owned() }, *source))
        });
        let own: Names<'_> = own.collect();
        if own.is_empty() {
            return Err(no_such_part(part, names));
        }
        files.push(file(manifest, rules, Some(file_of(part)), &own, BTreeMap::new())?);
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

/// All names of the components, aliases included, that the patterns let through.
fn chosen<'m>(manifest: &'m Manifest, rules: &Rules<'_>) -> Result<Names<'m>> {
    let components = rules.options.components.as_ref();
    let is_asked = |t: &TensorRecord| components.is_none_or(|list| list.contains(&t.component));
    let source = |name: &TensorName, is_alias| {
        let record = manifest.tensor(name.as_str()).filter(|record| is_asked(record))?;
        Some((name.to_string(), Source { record, is_alias }))
    };
    let stored = manifest.tensors().iter().filter_map(|tensor| source(&tensor.name, false));
    let aliases = manifest.aliases().iter().filter_map(|(alias, _)| source(alias, true));
    let all: Names<'m> = stored.chain(aliases).collect();
    let is_there = |c: &Component| all.values().any(|source| source.record.component == *c);
    if all.is_empty() || !components.iter().all(|asked| asked.iter().all(is_there)) {
        let mut components: Vec<_> = manifest.tensors().iter().map(|t| &t.component).collect();
        components.sort();
        components.dedup();
        return Err(nothing(
            "the checkpoint has no tensor of these components",
            "stored",
            &components,
        ));
    }
    let names = strip(all, rules.options.strip_prefix.as_deref())?;
    let every: Vec<&str> = names.keys().map(String::as_str).collect();
    for (field, globs) in [("include", &rules.include), ("exclude", &rules.exclude)] {
        if let Some(pattern) = globs.idle(&every).first() {
            return Err(nothing(
                &format!("{field}: `{pattern}` matches nothing"),
                "stored",
                &every,
            ));
        }
    }
    let is_chosen = |name: &str| {
        (rules.include.is_empty() || rules.include.matches(name)) && !rules.exclude.matches(name)
    };
    let chosen: Names<'m> = names.clone().into_iter().filter(|(name, _)| is_chosen(name)).collect();
    if chosen.is_empty() {
        return Err(nothing("everything is excluded", "stored", &every));
    }
    Ok(chosen)
}

fn strip<'m>(names: Names<'m>, prefix: Option<&str>) -> Result<Names<'m>> {
    let Some(prefix) = prefix else { return Ok(names) };
    let without: Vec<_> =
        names.keys().filter(|n| n.len() == prefix.len() || !n.starts_with(prefix)).collect();
    if !without.is_empty() {
        let mut text = format!("strip_prefix: not every name begins with `{prefix}`");
        list(&mut text, "do not", &without);
        return Err(Error::new(ErrorKind::InvalidInput, text));
    }
    let short = |(name, record): (String, _)| Some((name.strip_prefix(prefix)?.to_owned(), record));
    Ok(names.into_iter().filter_map(short).collect())
}

fn nothing<T: std::fmt::Display>(what: &str, have: &str, names: &[T]) -> Error {
    let mut text = what.to_owned();
    list(&mut text, have, names);
    Error::new(ErrorKind::NotFound, text).with_help("nothing was written")
}

fn no_such_part(part: &str, names: &Names<'_>) -> Error {
    let mut parts: Vec<&str> = names.keys().filter_map(|n| Some(n.split_once('.')?.0)).collect();
    parts.dedup();
    nothing(&format!("submodules: nothing is below `{part}`"), "at the top", &parts)
}

/// A file of these tensors; `metadata` are texts besides those that say where they come from.
pub(super) fn file(
    manifest: &Manifest,
    rules: &Rules<'_>,
    name: Option<String>,
    names: &Names<'_>,
    mut metadata: BTreeMap<String, String>,
) -> Result<FilePlan> {
    let mut kept: BTreeMap<&TensorName, &str> = BTreeMap::new();
    let mut order: Vec<_> = names.iter().collect();
    order.sort_by_key(|(_, source)| source.is_alias);
    metadata.extend(provenance(manifest));
    let mut tensors = Vec::new();
    for (name, Source { record, .. }) in order {
        let first = *kept.entry(&record.name).or_insert(name);
        if first == name || rules.options.repeat_tied {
            tensors.push(planned(name, record, rules.options.cast)?);
        } else {
            metadata.entry(name.clone()).or_insert_with(|| first.to_owned());
        }
    }
    // Larger elements first, so that all are aligned.
    tensors.sort_by(|a, b| {
        let key = |t: &PlannedTensor| Reverse(t.spec.dtype().size_bytes());
        key(a).cmp(&key(b)).then_with(|| a.name.cmp(&b.name))
    });
    let placed = place(&tensors)?;
    let data_bytes = placed.last().map_or(0, |tensor| tensor.end);
    let header = plain_header(metadata, placed)?;
    Ok(FilePlan { name, header, tensors, data_bytes })
}

pub(super) fn planned(
    name: &str,
    record: &TensorRecord,
    cast: Option<Dtype>,
) -> Result<PlannedTensor> {
    let from = record.spec.clone();
    let dtype = match (from.dtype(), cast) {
        (Dtype::F8E4M3 | Dtype::F8E5M2, Some(to)) => {
            let message = format!("a cast from {} to {to} is not known", from.dtype());
            return Err(Error::new(ErrorKind::Unsupported, message)
                .with_tensor(name)
                .with_help("export it as it is, without a cast, or leave it out"));
        }
        (dtype, Some(to)) if is_castable(dtype) => to,
        (dtype, _) => dtype,
    };
    let spec = TensorSpec::new(dtype, from.shape()).map_err(|e| e.with_tensor(name))?;
    let name = TensorName::new(name)?;
    Ok(PlannedTensor { name, stored: record.name.clone(), from, spec })
}

fn place(tensors: &[PlannedTensor]) -> Result<Vec<HeaderTensor>> {
    let mut end = 0u64;
    let place = |tensor: &PlannedTensor| {
        let begin = end;
        let sum = begin.checked_add(tensor.spec.size_bytes());
        let sum = sum.filter(|end| i64::try_from(*end).is_ok());
        end = sum.ok_or_else(|| Error::new(ErrorKind::InvalidInput, "the file would overflow"))?;
        Ok(HeaderTensor { name: tensor.name.clone(), spec: tensor.spec.clone(), begin, end })
    };
    tensors.iter().map(place).collect()
}

/// Texts that say where the tensors come from.
fn provenance(manifest: &Manifest) -> BTreeMap<String, String> {
    let pairs = [
        ("format", "pt".to_owned()),
        (EXPORT_SAVE_ID, manifest.save_id().to_string()),
        (EXPORT_STEP, manifest.step().to_string()),
        (EXPORT_EPOCH, manifest.epoch().to_string()),
        ("tch_checkpoint.version", env!("CARGO_PKG_VERSION").to_owned()),
    ];
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}
