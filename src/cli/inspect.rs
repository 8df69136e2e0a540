//! `inspect`: what a checkpoint holds, read from its manifest alone.

mod tensor;
mod tree;

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::format::{bytes, plain, table, value};
use super::grid::{Column, Grid, short_id};
use super::{Output, Stop};
use crate::catalog::{Found, Wanted, find};
use crate::layout::{SaveId, parse_sums_file};
use crate::manifest::Manifest;
use crate::shown::{line, path};
use crate::storage::LocalStorage;

#[derive(Args)]
pub(super) struct Inspect {
    /// The checkpoint; `DIR/latest` is the newest of DIR, `DIR/best` what its link names.
    path: PathBuf,
    /// Of one tensor, by its name: least, greatest and mean number, NaN, and a histogram. Reads it.
    #[arg(long, value_name = "NAME")]
    tensor: Option<String>,
    /// Tensors by their full names, one by one, instead of as a tree of modules.
    #[arg(long, conflicts_with = "tensor")]
    list: bool,
    /// One JSON object instead of tables.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(out: &mut Output<'_>, arguments: &Inspect) -> Result<u8, Stop> {
    let found = find(&LocalStorage::new(), &Wanted::parse(&arguments.path)?)?;
    if let Some(name) = &arguments.tensor {
        tensor::show(out, &found, name, arguments.json)?;
    } else if arguments.json {
        out.json(&as_json(&found))?;
    } else {
        summary(out, &found)?;
        if arguments.list {
            tensors(out, &found)?;
        } else {
            out.line("")?;
            tree::grid(&found.manifest).write(out)?;
        }
        files(out, &found, arguments.list)?;
        values(out, &found)?;
    }
    Ok(0)
}

fn summary(out: &mut Output<'_>, found: &Found) -> Result<(), Stop> {
    let m = &found.manifest;
    out.line(format!("checkpoint  {}", path(&found.path())))?;
    out.line(format!("save id     {}", m.save_id()))?;
    out.line(format!("step        {}   epoch {}", m.step(), m.epoch()))?;
    out.line(format!("saved by    {} ranks", m.world_size()))?;
    out.line(format!("tensors     {}   {}", m.tensors().len(), bytes(m.tensor_bytes())))?;
    let libtorch = match m.libtorch_version() {
        "" => String::new(),
        version => format!(", libtorch {}", line(version)),
    };
    out.line(format!("written by  tch-checkpoint {}{libtorch}", line(m.library_version())))
}

fn tensors(out: &mut Output<'_>, found: &Found) -> Result<(), Stop> {
    let mut shown = table(&["tensor", "component", "dtype", "shape", "size", "pieces"]);
    for tensor in found.manifest.tensors() {
        shown.add_row([
            tensor.name.to_string(),
            tensor.component.to_string(),
            tensor.spec.dtype().to_string(),
            format!("{:?}", tensor.spec.shape()),
            bytes(tensor.spec.size_bytes()),
            tensor.pieces.len().to_string(),
        ]);
    }
    for (name, target) in found.manifest.aliases() {
        shown.add_row([name.to_string(), String::new(), String::new(), format!("= {target}")]);
    }
    out.table(&shown)
}

/// A file of a checkpoint.
struct Listed<'m> {
    name: &'m str,
    len: u64,
    /// The save that wrote it, of data and sums files.
    save_id: Option<SaveId>,
}

/// Data files, sums files, others.
fn listed(m: &Manifest) -> impl Iterator<Item = Listed<'_>> {
    let data = m.data_files().iter().map(|f| (f, Some(f.save_id)));
    let data = data.map(|(f, save_id)| Listed { name: &f.name, len: f.len, save_id });
    let sums = m.sums_files().iter().map(|f| (f, parse_sums_file(&f.name)));
    let others = sums.chain(m.other_files().iter().map(|f| (f, None)));
    data.chain(others.map(|(f, save_id)| Listed { name: &f.name, len: f.len, save_id }))
}

impl Listed<'_> {
    /// The earlier save that wrote it; this one has only given it another name.
    fn linked_from(&self, m: &Manifest) -> Option<SaveId> {
        self.save_id.filter(|save_id| *save_id != m.save_id())
    }

    fn as_json(&self, m: &Manifest) -> serde_json::Value {
        let mut file = json!({"name": self.name, "bytes": self.len});
        if let (Some(save_id), Some(fields)) = (self.save_id, file.as_object_mut()) {
            fields.insert("save_id".to_owned(), save_id.to_string().into());
            fields.insert("linked".to_owned(), self.linked_from(m).is_some().into());
        }
        file
    }
}

/// Ids in names are shortened, unless full names are asked for.
fn files(out: &mut Output<'_>, found: &Found, has_full_names: bool) -> Result<(), Stop> {
    let m = &found.manifest;
    let columns = [("file", Column::Middle(24)), ("size", Column::Right), ("", Column::Left)];
    let mut shown = Grid::new(columns);
    for file in listed(m) {
        let name = if has_full_names { file.name.to_owned() } else { with_short_ids(file.name) };
        let linked =
            file.linked_from(m).map(|id| format!("linked from {}", short_id(&id.to_string())));
        shown.row([name, bytes(file.len), linked.unwrap_or_default()]);
    }
    out.line("")?;
    shown.write(out)
}

/// `model-00001-of-00002.5a2ededf….safetensors`.
fn with_short_ids(name: &str) -> String {
    let part = |part: &str| match SaveId::parse(part) {
        Ok(_) => format!("{}…", short_id(part)),
        Err(_) => part.to_owned(),
    };
    name.split('.').map(part).collect::<Vec<_>>().join(".")
}

fn values(out: &mut Output<'_>, found: &Found) -> Result<(), Stop> {
    let mut shown = Grid::new([("value", Column::Middle(24)), ("", Column::End(20))]);
    for (name, stored) in found.manifest.values().iter() {
        shown.row([line(name), value(stored)]);
    }
    for rank in found.manifest.world_size().ranks() {
        for (name, stored) in found.manifest.rank_values(rank).into_iter().flat_map(|v| v.iter()) {
            shown.row([format!("{} (rank {rank})", line(name)), value(stored)]);
        }
    }
    out.line("")?;
    shown.write(out)
}

fn as_json(found: &Found) -> serde_json::Value {
    let m = &found.manifest;
    let tensors: Vec<_> = m
        .tensors()
        .iter()
        .map(|t| {
            json!({
                "name": t.name.as_str(), "component": t.component.as_str(),
                "dtype": t.spec.dtype().as_str(), "shape": t.spec.shape(),
                "bytes": t.spec.size_bytes(), "pieces": t.pieces.len(),
            })
        })
        .collect();
    let files: Vec<_> = listed(m).map(|file| file.as_json(m)).collect();
    let values: serde_json::Map<_, _> =
        m.values().iter().map(|(name, stored)| (name.to_owned(), plain(stored))).collect();
    json!({
        "path": found.path().display().to_string(), "save_id": m.save_id().to_string(),
        "step": m.step(), "epoch": m.epoch(), "world_size": m.world_size().get(),
        "created_unix_ms": m.created_unix_ms(), "tensor_bytes": m.tensor_bytes(),
        "library_version": m.library_version(), "libtorch_version": m.libtorch_version(),
        "tensors": tensors, "files": files, "values": values,
        "aliases": m.aliases().iter().map(|(a, b)| (a.as_str(), b.as_str()))
            .collect::<std::collections::BTreeMap<_, _>>(),
    })
}
