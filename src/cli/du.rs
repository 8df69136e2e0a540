//! `du`: what a directory of checkpoints takes.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::format::bytes;
use super::grid::{Column, Grid};
use super::{Output, Stop, progress};
use crate::catalog::open_parent;
use crate::shown::line;
use crate::storage::LocalStorage;
use crate::usage::{EntryUsage, Held, Usage, usage_of};

#[derive(Args)]
pub(super) struct Du {
    /// Directory of checkpoints.
    dir: PathBuf,
    /// One JSON object for each entry, and one for all of them, instead of a table.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(out: &mut Output<'_>, arguments: &Du) -> Result<u8, Stop> {
    let parent = open_parent(&LocalStorage::new(), &arguments.dir)?;
    let count = progress::count("looking at", "entries");
    let usage = usage_of(parent.as_ref(), &mut || count.inc(1))?;
    count.finish_and_clear();
    if arguments.json {
        json(out, &usage)?
    } else {
        text(out, &usage)?
    }
    Ok(0)
}

fn text(out: &mut Output<'_>, usage: &Usage) -> Result<(), Stop> {
    let mut grid = Grid::new([
        ("name", Column::Middle(16)),
        ("size", Column::Right),
        ("on disk", Column::Right),
        ("unique", Column::Right),
        ("shared", Column::Right),
        ("what", Column::End(12)),
    ]);
    let shown = |entry: &&EntryUsage| entry.what != Held::Own;
    for entry in usage.entries.iter().filter(shown) {
        let shared = if entry.shared > 0 { bytes(entry.shared) } else { String::new() };
        let (name, what) = (line(&entry.name), what(entry).to_owned());
        let [size, on_disk, unique] = [entry.bytes, entry.on_disk, entry.unique].map(bytes);
        grid.row([name, size, on_disk, unique, shared, what]);
    }
    if usage.entries.iter().any(|entry| shown(&entry)) {
        grid.write(out)?;
        out.line("")?;
    }
    let mut total = format!("{} on disk", bytes(usage.on_disk));
    if usage.unreferenced > 0 {
        let unreferenced = bytes(usage.unreferenced);
        total.push_str(&format!(", of which {unreferenced} no checkpoint refers to"));
    }
    if usage.foreign > 0 {
        total.push_str(&format!("; {} foreign entries, not measured", usage.foreign));
    }
    out.line(total)
}

fn what(entry: &EntryUsage) -> &'static str {
    match entry.what {
        Held::Committed => "committed",
        Held::Damaged => "damaged",
        Held::Unreferenced(other) => other.as_str(),
        Held::Own => "lock, links and pins",
    }
}

fn json(out: &mut Output<'_>, usage: &Usage) -> Result<(), Stop> {
    for entry in &usage.entries {
        out.json(&json!({
            "kind": "entry", "name": entry.name, "what": what(entry), "bytes": entry.bytes,
            "on_disk": entry.on_disk, "unique": entry.unique, "shared": entry.shared,
            "unreferenced": matches!(entry.what, Held::Unreferenced(_)),
        }))?;
    }
    out.json(&json!({
        "kind": "total", "on_disk": usage.on_disk, "unreferenced": usage.unreferenced,
        "foreign": usage.foreign,
    }))
}
