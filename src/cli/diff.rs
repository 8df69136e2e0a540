//! `diff`: how one checkpoint differs from another.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::format::{finite, number, plain, value};
use super::grid::{Column, Grid};
use super::{DIFFERENT, Output, Stop, progress, verdict};
use crate::catalog::{Wanted, find};
use crate::difference::{
    Change, Difference, Distance, TensorDifference, ValueDifference, difference,
};
use crate::shown::{line, path};
use crate::storage::LocalStorage;
use crate::tensor::TensorSpec;

#[derive(Args)]
pub(super) struct Diff {
    /// The first checkpoint; `DIR/latest` is the newest of DIR, `DIR/best` what its link names.
    a: PathBuf,
    /// The second one.
    b: PathBuf,
    /// One JSON object for each difference, and one for the whole, instead of text.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(out: &mut Output<'_>, arguments: &Diff) -> Result<u8, Stop> {
    let storage = LocalStorage::new();
    let a = find(&storage, &Wanted::parse(&arguments.a)?.or_unverified())?;
    let b = find(&storage, &Wanted::parse(&arguments.b)?.or_unverified())?;
    let bar = progress::bytes("comparing", a.manifest.tensor_bytes());
    let found = difference(&a, &b, &mut |bytes| bar.inc(bytes))?;
    bar.finish_and_clear();
    let said = if arguments.json {
        json(out, &found)
    } else {
        text(out, &found, [&a.path(), &b.path()].map(|at| path(at)))
    };
    verdict(if found.is_equal() { 0 } else { DIFFERENT }, said)
}

fn text(out: &mut Output<'_>, found: &Difference, [a, b]: [String; 2]) -> Result<(), Stop> {
    out.line(format!("--- {a}"))?;
    out.line(format!("+++ {b}"))?;
    let counts = [("step", found.step), ("epoch", found.epoch)];
    for (what, (old, new)) in counts.into_iter().filter_map(|(what, pair)| Some((what, pair?))) {
        out.line(format!("{what}  {old} -> {new}"))?;
    }
    if let Some((old, new)) = found.world_size {
        out.line(format!("ranks  {old} -> {new} (no difference of the state)"))?;
    }
    if !found.tensors.is_empty() {
        out.line("")?;
        tensors(found).write(out)?;
    }
    if !found.values.is_empty() {
        out.line("")?;
        values(found).write(out)?;
    }
    found.files.iter().try_for_each(|file| out.line(format!("file `{}` differs", line(file))))?;
    out.line("")?;
    out.line(summary(found))
}

fn summary(found: &Difference) -> String {
    if found.is_equal() {
        return format!("equal: {} tensors", found.equal_tensors);
    }
    let of = |is_it: fn(&Change) -> bool| found.tensors.iter().filter(|t| is_it(&t.change)).count();
    let counts = [
        (found.equal_tensors, "equal"),
        (of(|change| matches!(change, Change::Changed(..))), "changed"),
        (of(|change| matches!(change, Change::Retyped(..))), "of another dtype"),
        (of(|change| matches!(change, Change::Reshaped(..))), "reshaped"),
        (of(|change| matches!(change, Change::Added(_))), "added"),
        (of(|change| matches!(change, Change::Removed(_))), "removed"),
    ];
    let tensors = counts.into_iter().filter(|(count, what)| *count > 0 || *what == "equal");
    let tensors: Vec<_> = tensors.map(|(count, what)| format!("{count} {what}")).collect();
    let (values, files) = (found.values.len(), found.files.len());
    format!("different: tensors {}; {values} values, {files} files", tensors.join(", "))
}

fn tensors(found: &Difference) -> Grid {
    let mut grid = Grid::new([
        ("", Column::Left),
        ("tensor", Column::Middle(20)),
        ("dtype and shape", Column::End(12)),
        ("changed", Column::Right),
        ("relative L2", Column::Right),
        ("max abs", Column::Right),
    ]);
    for tensor in &found.tensors {
        let (change, spec) = (word(&tensor.change), specs(&tensor.change));
        let distance = distance(&tensor.change);
        let cell = |text: &dyn Fn(&Distance) -> String| distance.map_or(String::new(), text);
        grid.row([
            change.to_owned(),
            line(tensor.name.as_str()),
            spec,
            cell(&share),
            cell(&|distance| number(distance.relative_l2)),
            cell(&|distance| number(distance.max_abs)),
        ]);
    }
    grid
}

/// How many numbers changed, and how many of these are not finite.
fn share(distance: &Distance) -> String {
    match distance.not_finite {
        0 => format!("{}/{}", distance.changed, distance.numbers),
        count => format!("{}/{} ({count} not finite)", distance.changed, distance.numbers),
    }
}

fn values(found: &Difference) -> Grid {
    let columns = [("value", Column::Middle(20)), ("", Column::End(10)), ("", Column::End(10))];
    let mut grid = Grid::new(columns);
    for found in &found.values {
        let name = match found.rank {
            Some(rank) => format!("{} (rank {rank})", line(&found.name)),
            None => line(&found.name),
        };
        let side = |side: &Option<_>| side.as_ref().map_or("-".to_owned(), value);
        grid.row([name, side(&found.old), format!("-> {}", side(&found.new))]);
    }
    grid
}

fn word(change: &Change) -> &'static str {
    match change {
        Change::Added(_) => "added",
        Change::Removed(_) => "removed",
        Change::Reshaped(..) => "reshaped",
        Change::Retyped(..) => "retyped",
        Change::Changed(..) => "changed",
    }
}

fn specs(change: &Change) -> String {
    match change {
        Change::Added(spec) | Change::Removed(spec) | Change::Changed(spec, _) => shown(spec),
        Change::Reshaped(old, new) => format!("{} -> {}", shown(old), shown(new)),
        Change::Retyped(old, new, _) => {
            format!("{} -> {} {:?}", old.dtype(), new.dtype(), new.shape())
        }
    }
}

fn shown(spec: &TensorSpec) -> String {
    format!("{} {:?}", spec.dtype(), spec.shape())
}

fn distance(change: &Change) -> Option<&Distance> {
    match change {
        Change::Retyped(_, _, distance) | Change::Changed(_, distance) => Some(distance),
        _ => None,
    }
}

fn json(out: &mut Output<'_>, found: &Difference) -> Result<(), Stop> {
    found.tensors.iter().try_for_each(|tensor| out.json(&tensor_json(tensor)))?;
    found.values.iter().try_for_each(|value| out.json(&value_json(value)))?;
    let file = |file: &String| out.json(&json!({ "kind": "file", "name": file }));
    found.files.iter().try_for_each(file)?;
    out.json(&json!({
        "kind": "summary", "equal": found.is_equal(), "equal_tensors": found.equal_tensors,
        "tensors": found.tensors.len(), "values": found.values.len(), "files": found.files.len(),
        "step": found.step, "epoch": found.epoch, "world_size": found.world_size,
    }))
}

fn tensor_json(tensor: &TensorDifference) -> serde_json::Value {
    let spec = |spec: &TensorSpec| json!({ "dtype": spec.dtype().as_str(), "shape": spec.shape() });
    let (old, new) = match &tensor.change {
        Change::Added(new) => (None, Some(new)),
        Change::Removed(old) => (Some(old), None),
        Change::Reshaped(old, new) | Change::Retyped(old, new, _) => (Some(old), Some(new)),
        Change::Changed(both, _) => (Some(both), Some(both)),
    };
    let mut object = json!({
        "kind": "tensor", "change": word(&tensor.change), "name": tensor.name.as_str(),
        "old": old.map(spec), "new": new.map(spec),
    });
    if let (Some(distance), Some(object)) = (distance(&tensor.change), object.as_object_mut()) {
        object.insert("numbers".to_owned(), json!(distance.numbers));
        object.insert("changed".to_owned(), json!(distance.changed));
        object.insert("not_finite".to_owned(), json!(distance.not_finite));
        object.insert("relative_l2".to_owned(), finite(distance.relative_l2));
        object.insert("max_abs".to_owned(), finite(distance.max_abs));
    }
    object
}

fn value_json(found: &ValueDifference) -> serde_json::Value {
    json!({
        "kind": "value", "name": found.name, "rank": found.rank.map(|rank| rank.get()),
        "old": found.old.as_ref().map(plain), "new": found.new.as_ref().map(plain),
    })
}
