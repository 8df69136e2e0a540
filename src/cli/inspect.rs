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
use crate::layout::SaveId;
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

/// Ids in names are shortened, unless full names are asked for.
fn files(out: &mut Output<'_>, found: &Found, has_full_names: bool) -> Result<(), Stop> {
    let m = &found.manifest;
    let mut shown = Grid::new([("file", Column::Middle(24)), ("size", Column::Right)]);
    let data = m.data_files().iter().map(|f| (&f.name, f.len));
    let others = m.sums_files().iter().chain(m.other_files()).map(|f| (&f.name, f.len));
    for (name, len) in data.chain(others) {
        let name = if has_full_names { name.clone() } else { with_short_ids(name) };
        shown.row([name, bytes(len)]);
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
    let data = m.data_files().iter().map(|f| json!({"name": f.name, "bytes": f.len}));
    let others = m.sums_files().iter().chain(m.other_files());
    let files: Vec<_> =
        data.chain(others.map(|f| json!({"name": f.name, "bytes": f.len}))).collect();
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
