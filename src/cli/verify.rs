//! `verify`: every byte, every file.

use std::path::Path;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use super::format::bytes;
use super::{Output, Stop, verdict};
use crate::catalog::{Wanted, find};
use crate::error::Error;
use crate::shown::line;
use crate::storage::LocalStorage;
use crate::verify::{Verified, verify as verify_all};

/// Exit code of a damaged checkpoint.
pub(super) const DAMAGED: u8 = 3;

pub(super) fn verify(out: &mut Output<'_>, path: &Path, json: bool) -> Result<u8, Stop> {
    let found = find(&LocalStorage::new(), &Wanted::parse(path)?)?;
    let bar = bar(found.manifest.total_bytes());
    let verified = verify_all(&found, &mut |bytes| bar.inc(bytes))?;
    bar.finish_and_clear();
    let shown = found.path().display().to_string();
    let said =
        if json { out.json(&as_json(&shown, &verified)) } else { text(out, &shown, &verified) };
    verdict(if verified.damage.is_empty() { 0 } else { DAMAGED }, said)
}

/// Drawn on a terminal only.
pub(super) fn bar(total: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
    let form = "verifying [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    if let Ok(style) = ProgressStyle::with_template(form) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
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
