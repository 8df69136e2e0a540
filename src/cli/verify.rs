//! `verify`: every byte, every file.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::format::bytes;
use super::{DAMAGED, Output, Stop, directory, progress, verdict};
use crate::catalog::{Wanted, find, list};
use crate::error::{Error, ErrorKind, Result};
use crate::shown::line;
use crate::storage::{LocalStorage, Storage};
use crate::verify::{Verified, verify as verify_all};

#[derive(Args)]
pub(super) struct Verify {
    /// The checkpoint; `DIR/latest` is the newest of DIR, `DIR/best` what its link names. A directory
    /// of checkpoints is verified as with --dir.
    #[arg(required_unless_present = "dir", conflicts_with = "dir")]
    path: Option<PathBuf>,
    /// Instead of a path: the newest of this directory, and those before it until one is good;
    /// ends with `LATEST <step> <save id>` of that, or `LATEST none`.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// With --dir: all checkpoints, not the newest alone.
    #[arg(long, requires = "dir", conflicts_with = "path")]
    all: bool,
    /// One JSON object instead of text.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(out: &mut Output<'_>, arguments: &Verify) -> Result<u8, Stop> {
    let Verify { path, dir, all, json } = arguments;
    match (path, dir) {
        (Some(path), _) => one(out, path, *json),
        (None, Some(dir)) => directory::verify(out, dir, *all, *json),
        // The parser asks for one of the two.
        _ => Err(Error::new(ErrorKind::InvalidInput, "give a checkpoint, or --dir").into()),
    }
}

fn one(out: &mut Output<'_>, path: &Path, json: bool) -> Result<u8, Stop> {
    let wanted = Wanted::parse(path);
    let found = match wanted.and_then(|wanted| find(&LocalStorage::new(), &wanted)) {
        // A directory of checkpoints may have a name that none of these may have.
        Err(e) if is_no_checkpoint(&e) && holds_checkpoints(path) => {
            return directory::verify(out, path, false, json);
        }
        found => found?,
    };
    let bar = progress::bytes("verifying", found.manifest.total_bytes());
    let verified = verify_all(&found, &mut |bytes| bar.inc(bytes))?;
    bar.finish_and_clear();
    let shown = found.path().display().to_string();
    let said =
        if json { out.json(&as_json(&shown, &verified)) } else { text(out, &shown, &verified) };
    verdict(if verified.damage.is_empty() { 0 } else { DAMAGED }, said)
}

fn is_no_checkpoint(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidInput)
}

/// Whether this is no checkpoint but a directory of some; a link is not followed.
fn holds_checkpoints(path: &Path) -> bool {
    let look = || -> Result<bool> {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = LocalStorage::new().open_dir(parent.unwrap_or(Path::new(".")))?;
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return Ok(false) };
        Ok(!list(parent.open_dir(name)?.as_ref(), &mut || {})?.is_empty())
    };
    look().unwrap_or(false)
}

pub(super) fn text(out: &mut Output<'_>, path: &str, verified: &Verified) -> Result<(), Stop> {
    let path = line(path);
    for error in &verified.damage {
        out.line(error.to_string())?;
    }
    for name in &verified.foreign {
        out.line(format!("note: `{}` does not belong to the checkpoint", line(name)))?;
    }
    let (files, size) = (verified.files, bytes(verified.bytes));
    match verified.damage.len() {
        0 => out.line(format!("ok: {path}: {files} files, {size}")),
        1 => out.line(format!("damaged: {path}: 1 place in {files} files")),
        places => out.line(format!("damaged: {path}: {places} places in {files} files")),
    }
}

pub(super) fn as_json(path: &str, verified: &Verified) -> serde_json::Value {
    let place = |e: &Error| {
        json!({
            "file": e.path(), "tensor": e.tensor(), "offset": e.offset(), "fault": e.message(),
        })
    };
    json!({
        "path": path, "ok": verified.damage.is_empty(), "files": verified.files,
        "bytes": verified.bytes, "foreign": verified.foreign,
        "damage": verified.damage.iter().map(place).collect::<Vec<_>>(),
    })
}
