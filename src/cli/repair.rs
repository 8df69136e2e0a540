//! `repair`: what of a checkpoint, or of a directory of them, can be saved.

mod directory;

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::format::bytes;
use super::reshard::{check, facts};
use super::{DAMAGED, Output, Stop, progress, verdict};
use crate::autosave::Mode;
use crate::catalog::{self, CheckpointPath, Found, Wanted, find};
use crate::error::{Error, ErrorKind, Result};
use crate::group::ProcessGroup;
use crate::layout;
use crate::manifest::LOST;
use crate::repair::{Assessment, assess, salvage};
use crate::reshard::ReshardOptions;
use crate::save::Checkpoint;
use crate::shown::{self, line};
use crate::storage::{LocalStorage, Storage};

/// How many damaged places, and lost tensors, are lines of text.
const LISTED_MAX: usize = 20;

#[derive(Args)]
pub(super) struct Repair {
    /// A checkpoint, or a directory of them; `DIR/latest` is the newest of DIR.
    path: PathBuf,
    /// Write what is whole of a checkpoint as a new one; where tensors are missing, strict loads
    /// refuse it, it is marked, and it is never the latest.
    #[arg(long, value_name = "NEW")]
    out: Option<PathBuf>,
    /// Point `latest` of a directory to its newest good checkpoint, and `best` to the best good one
    /// by --monitor; without that `best` is only removed if what it names is gone.
    #[arg(long, conflicts_with = "out")]
    pointers: bool,
    /// The metric by which `best` is found.
    #[arg(long, value_name = "METRIC", requires = "mode", requires = "pointers")]
    monitor: Option<String>,
    /// Which way that metric is to go.
    #[arg(long, value_name = "min|max", requires = "monitor", value_parser = super::mode)]
    mode: Option<Mode>,
    /// JSON objects instead of text: one for each checkpoint.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(out: &mut Output<'_>, arguments: &Repair) -> Result<u8, Stop> {
    let storage = LocalStorage::new();
    if is_directory_of_checkpoints(&storage, &arguments.path)? {
        if arguments.out.is_some() {
            return Err(Error::new(ErrorKind::InvalidInput, "--out is for one checkpoint")
                .with_path(&arguments.path)
                .with_help("name one of its checkpoints, or DIR/latest")
                .into());
        }
        return directory::run(out, &storage, arguments);
    }
    if arguments.pointers {
        return Err(Error::new(ErrorKind::InvalidInput, "--pointers is for a directory")
            .with_path(&arguments.path)
            .with_help("name the directory in which the checkpoint lies")
            .into());
    }
    one(out, &storage, arguments)
}

/// Whether there is a directory that is itself no checkpoint, not even a damaged one.
fn is_directory_of_checkpoints(storage: &LocalStorage, path: &Path) -> Result<bool> {
    // `latest` and `best` may be links, but name a checkpoint.
    let is_pointer = |name: &std::ffi::OsStr| name == layout::LATEST || name == layout::BEST;
    if path.file_name().is_some_and(is_pointer) {
        return Ok(false);
    }
    let dir = match storage.open_dir(path) {
        Ok(dir) => dir,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(e),
    };
    let has_manifest = dir.list()?.iter().any(|entry| entry.name == layout::MANIFEST);
    Ok(!has_manifest && !catalog::holds_our_files(dir.as_ref())?)
}

fn one(out: &mut Output<'_>, storage: &LocalStorage, arguments: &Repair) -> Result<u8, Stop> {
    let found = match find(storage, &Wanted::parse(&arguments.path)?) {
        Err(e) if e.kind() == ErrorKind::Corrupt => return without_manifest(out, arguments, &e),
        Err(e) if e.kind() == ErrorKind::NotFound && arguments.path.is_dir() => {
            return without_manifest(out, arguments, &e);
        }
        found => found?,
    };
    let assessment = looked_at(&found)?;
    let made = match &arguments.out {
        Some(to) => Some(write(storage, &found, &assessment, to)?),
        None => None,
    };
    let others = if assessment.has_lost() { good_beside(storage, &found)? } else { None };
    let said = if arguments.json {
        out.json(&as_json(&found, &assessment, made.as_ref(), others.as_deref()))
    } else {
        text(out, &found, &assessment, made.as_ref(), others.as_deref())
    };
    verdict(if assessment.has_lost() { DAMAGED } else { 0 }, said)
}

/// All of it is read.
fn looked_at(found: &Found) -> Result<Assessment> {
    let bar = progress::bytes("looking at", found.manifest.tensor_bytes());
    let assessment = assess(found, &mut |bytes| bar.inc(bytes))?;
    bar.finish_and_clear();
    Ok(assessment)
}

/// Nothing says what belongs to it, so nothing can be verified.
fn without_manifest(out: &mut Output<'_>, arguments: &Repair, error: &Error) -> Result<u8, Stop> {
    if arguments.out.is_some() {
        return Err(error.clone().with_kind(ErrorKind::Corrupt).into());
    }
    let at = shown::path(&arguments.path);
    let said = if arguments.json {
        out.json(&json!({
            "path": arguments.path.display().to_string(), "manifest": false, "ok": false,
            "fault": error.to_string(), "lost_everything": true,
        }))
    } else {
        out.line(error.to_string()).and_then(|()| {
            out.line(format!(
                "lost: {at}: without its manifest nothing says what belongs to it, and nothing can \
                 be verified; its .safetensors files are plain ones that other tools may still open"
            ))
        })
    };
    verdict(DAMAGED, said)
}

fn write(
    storage: &LocalStorage,
    found: &Found,
    assessment: &Assessment,
    to: &Path,
) -> Result<Checkpoint, Stop> {
    let (to, solo) = (CheckpointPath::parse(to)?, ProcessGroup::solo());
    let options = ReshardOptions { world_size: found.manifest.world_size(), overwrite: false };
    let total = || assessment.whole_bytes;
    let work = || salvage(&solo, storage, found, assessment, &to, &options);
    let made = progress::shown("writing", total, &solo.progress(), work)?;
    match check(storage, &made)? {
        Some(fault) => Err(Error::new(ErrorKind::Corrupt, format!("what was written: {fault}"))
            .with_path(&made.path)
            .into()),
        None => Ok(made),
    }
}

/// The newest checkpoint beside this one of which every byte is right.
fn good_beside(storage: &LocalStorage, found: &Found) -> Result<Option<String>> {
    let path = found.path();
    let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) else {
        return Ok(None);
    };
    directory::newest_good(storage, parent, Some(&found.manifest.save_id()))
}

fn text(
    out: &mut Output<'_>,
    found: &Found,
    assessment: &Assessment,
    made: Option<&Checkpoint>,
    good: Option<&str>,
) -> Result<(), Stop> {
    let at = shown::path(&found.path());
    listed(out, assessment.damage.iter().map(ToString::to_string), "damaged places")?;
    let lost = assessment.lost.keys().map(|name| format!("lost: {name}"));
    listed(out, lost, "lost tensors")?;
    let aliases = assessment.lost_aliases.iter();
    let aliases = aliases.map(|(name, of)| format!("lost: {name}, a second name of {of}"));
    listed(out, aliases, "lost names")?;
    let files = assessment.lost_files.keys().map(|name| format!("lost: file {}", line(name)));
    listed(out, files, "lost files")?;
    let (whole, lost) = (assessment.whole.len(), assessment.lost.len());
    let (have, all) = (bytes(assessment.whole_bytes), bytes(assessment.tensor_bytes));
    let state = state_of(found, assessment);
    let count = whole + lost;
    out.line(format!("{state}: {at}: {whole} of {count} tensors are whole, {have} of {all}"))?;
    if let Some(made) = made {
        let partial = if assessment.has_lost() { ", marked as partial" } else { "" };
        return out.line(format!("written: {}{partial}", shown::path(&made.path)));
    }
    if let Some(good) = good {
        out.line(format!("good: {} is the newest checkpoint here that is whole", line(good)))?;
    }
    if assessment.damage.is_empty() || assessment.whole.is_empty() {
        return Ok(());
    }
    out.line("nothing was changed; --out NEW writes what is whole as a new checkpoint")
}

/// Whether it is what was left of another one.
fn is_partial(found: &Found) -> bool {
    found.manifest.values().find(LOST).is_some()
}

/// In one word or two.
fn state_of(found: &Found, assessment: &Assessment) -> &'static str {
    match (assessment.has_lost(), assessment.is_intact()) {
        (true, _) => "damaged",
        (false, false) => "damaged, nothing lost",
        (false, true) if is_partial(found) => "partial",
        (false, true) => "ok",
    }
}

/// So many lines, and how many more there would be.
fn listed(
    out: &mut Output<'_>,
    lines: impl Iterator<Item = String>,
    what: &str,
) -> Result<(), Stop> {
    let mut count = 0usize;
    for text in lines {
        count += 1;
        if count <= LISTED_MAX {
            out.line(text)?;
        }
    }
    match count.saturating_sub(LISTED_MAX) {
        0 => Ok(()),
        more => out.line(format!("… and {more} more {what}; --json has all")),
    }
}

fn as_json(
    found: &Found,
    assessment: &Assessment,
    made: Option<&Checkpoint>,
    good: Option<&str>,
) -> serde_json::Value {
    let place = |error: &Error| {
        json!({
            "file": error.path(), "tensor": error.tensor(), "offset": error.offset(),
            "fault": error.message(),
        })
    };
    let world_size = found.manifest.world_size();
    json!({
        "path": found.path().display().to_string(), "manifest": true,
        "ok": assessment.is_intact(), "partial": is_partial(found), "whole": assessment.whole.len(),
        "whole_bytes": assessment.whole_bytes, "bytes": assessment.tensor_bytes,
        "lost": assessment.lost.keys().map(|name| name.as_str()).collect::<Vec<_>>(),
        "lost_aliases": assessment.lost_aliases.keys().map(|name| name.as_str()).collect::<Vec<_>>(),
        "lost_files": assessment.lost_files.keys().collect::<Vec<_>>(),
        "damage": assessment.damage.iter().map(place).collect::<Vec<_>>(),
        "good": good, "written": made.map(|made| facts(made, &found.manifest, world_size)),
    })
}
