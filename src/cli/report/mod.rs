//! `report`: a directory of checkpoints as one page that needs nothing else: no network, no script.

mod curve;
mod data;
mod html;
mod page;
mod saves;
mod svg;
mod timeline;
mod trace;
mod treemap;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use serde_json::json;

use super::{Output, Stop, ls};
use crate::autosave::Mode;
use crate::clock;
use crate::error::{Error, ErrorKind, Result};
use crate::layout::SaveId;
use crate::shown;
use crate::storage::{Directory, LocalStorage, Rename, Storage};
use data::Data;

#[derive(Args)]
pub(super) struct Report {
    /// Directory of checkpoints.
    dir: PathBuf,
    /// The file to write.
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// Traces of the job, as it writes them with TCH_CHECKPOINT_TRACE set: one for each rank.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    trace: Vec<PathBuf>,
    /// The metric whose curve is drawn; default: as in `ls`.
    #[arg(long, value_name = "METRIC")]
    monitor: Option<String>,
    /// Which way that metric is to go: `best` is marked by it, and not by the link.
    #[arg(long, value_name = "min|max", requires = "monitor", value_parser = super::mode)]
    mode: Option<Mode>,
    /// Replace the file if it is there.
    #[arg(long)]
    force: bool,
    /// One JSON object instead of text.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(out: &mut Output<'_>, arguments: &Report) -> std::result::Result<u8, Stop> {
    let place = Place::of(&arguments.output, arguments.force)?;
    let data = Data::gather(arguments)?;
    let page = page::page(&arguments.dir, &data, clock::unix_time());
    place.write(page.as_bytes())?;
    let (checkpoints, saves) = (data.kept.len(), data.saves.len());
    if arguments.json {
        let path = arguments.output.to_string_lossy();
        out.json(&json!({
            "path": path, "bytes": page.len(), "checkpoints": checkpoints, "saves": saves,
        }))?;
    } else {
        let path = shown::path(&arguments.output);
        out.line(format!("{path}: {checkpoints} checkpoints, {saves} saves in traces"))?;
    }
    Ok(0)
}

/// Where a page is to be.
struct Place {
    parent: Arc<dyn Directory>,
    name: String,
    mode: Rename,
}

impl Place {
    /// Before anything is looked at, so that nobody waits for a page that cannot be written.
    fn of(path: &Path, force: bool) -> Result<Self> {
        let name = path.file_name().and_then(|name| name.to_str()).ok_or_else(|| {
            Error::new(ErrorKind::InvalidInput, "this is no name of a file").with_path(path)
        })?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = LocalStorage::new().open_dir(parent.unwrap_or(Path::new(".")))?;
        let mode = if force { Rename::Replace } else { Rename::NoReplace };
        if !force && path.symlink_metadata().is_ok() {
            return Err(taken(path));
        }
        Ok(Self { parent, name: name.to_owned(), mode })
    }

    /// Under a hidden name first: whoever opens the name sees a whole page.
    fn write(&self, page: &[u8]) -> Result<()> {
        let hidden = format!(".report-{}", SaveId::random()?);
        let written = self.write_hidden(&hidden, page);
        if written.is_err() {
            // It may not be there at all.
            drop(self.parent.remove_file(&hidden));
        }
        written
    }

    fn write_hidden(&self, hidden: &str, page: &[u8]) -> Result<()> {
        let file = self.parent.create_file(hidden)?;
        file.write_at(0, page)?;
        file.finish()?;
        self.parent.rename(hidden, &self.name, self.mode).map_err(|e| match e.kind() {
            ErrorKind::AlreadyExists => taken(&self.parent.path().join(&self.name)),
            _ => e,
        })?;
        self.parent.sync()
    }
}

fn taken(path: &Path) -> Error {
    Error::new(ErrorKind::AlreadyExists, "a file of that name is there; nothing was changed")
        .with_path(path)
        .with_help("choose another name, or replace it with --force")
}
