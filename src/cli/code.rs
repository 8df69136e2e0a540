//! `code`: the source that a model was trained with, as text.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::format::{bytes, table};
use super::{Output, Stop};
use crate::catalog::{Found, Wanted, find, read_other};
use crate::code::ModelCode;
use crate::code::read::{code_files, code_values, read_open};
use crate::error::{Error, ErrorKind};
use crate::layout::CODE_DIR;
use crate::storage::LocalStorage;

#[derive(Args)]
pub(super) struct Code {
    /// The checkpoint; `DIR/latest` is the newest of DIR, `DIR/best` what its link names.
    path: PathBuf,
    /// A file to print, by its name in the list.
    file: Option<String>,
    /// One JSON object instead of a list.
    #[arg(long, conflicts_with = "file")]
    json: bool,
}

pub(super) fn run(out: &mut Output<'_>, arguments: &Code) -> Result<u8, Stop> {
    let found = find(&LocalStorage::new(), &Wanted::parse(&arguments.path)?)?;
    match &arguments.file {
        Some(file) => print(out, &found, file)?,
        None => list(out, &found, arguments.json)?,
    }
    Ok(0)
}

/// The bytes of one file, as they were saved.
fn print(out: &mut Output<'_>, found: &Found, file: &str) -> Result<(), Stop> {
    let full = format!("{CODE_DIR}/{file}");
    if let Some(text) = code_values(&found.manifest).get(&full) {
        return out.text(text);
    }
    let record = code_files(&found.manifest).find(|r| r.name == file || r.name == full);
    let record = record.ok_or_else(|| {
        Error::new(ErrorKind::NotFound, format!("no file `{file}` was saved with it"))
            .with_path(found.dir.path())
            .with_help("`tch-checkpoint code` without a file lists those that were")
    })?;
    out.text(&read_other(&found.dir, record)?)
}

fn list(out: &mut Output<'_>, found: &Found, json: bool) -> Result<(), Stop> {
    let code = read_open(&found.dir, &found.manifest)?.ok_or_else(|| {
        Error::new(ErrorKind::NotFound, "no code was saved with this checkpoint")
            .with_path(found.dir.path())
    })?;
    if json {
        return out.json(&as_json(&code));
    }
    facts(out, &code)?;
    let mut shown = table(&["file", "lines", "size"]);
    for (path, text) in code.files() {
        let size = bytes(text.len() as u64);
        shown.add_row([path.clone(), text.lines().count().to_string(), size]);
    }
    out.table(&shown)
}

fn as_json(code: &ModelCode) -> serde_json::Value {
    let files = code.files().iter().map(
        |(path, text)| json!({ "name": path, "lines": text.lines().count(), "bytes": text.len() }),
    );
    json!({
        "package": code.package(), "version": code.version(),
        "git_revision": code.git_revision(), "features": code.features(),
        "files": files.collect::<Vec<_>>(),
    })
}

fn facts(out: &mut Output<'_>, code: &ModelCode) -> Result<(), Stop> {
    let or = |text: &str| if text.is_empty() { "unknown".to_owned() } else { one_line(text) };
    let features: Vec<&str> = code.features().iter().map(String::as_str).collect();
    out.line(format!("package       {}", or(code.package())))?;
    out.line(format!("version       {}", or(code.version())))?;
    out.line(format!("git revision  {}", or(code.git_revision().unwrap_or_default())))?;
    out.line(format!("features      {}", or(&features.join(", "))))
}

fn one_line(text: &str) -> String {
    text.replace('\n', " ")
}
