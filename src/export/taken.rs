//! What is under the name of an export: only what an export wrote is ever replaced.

use std::collections::BTreeSet;

use crate::error::{ErrorKind, Result};
use crate::files::{CONFIG_BYTES_MAX, read_index, read_small};
use crate::layout::{self, EXPORT_CONFIG, EXPORT_SAVE_ID};
use crate::manifest::hash16;
use crate::pickle::PICKLE_BYTES_MAX;
use crate::pytorch::dcp::{DISTCP, METADATA, is_ours};
use crate::pytorch::{Archive, Source};
use crate::shard::read_header;
use crate::storage::{Directory, EntryKind};

/// Descriptions of models and of adapters.
const CONFIGS: [&str; 2] = [layout::HF_CONFIG, layout::PEFT_CONFIG];

/// What is under the name of an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Taken {
    Nothing,
    EmptyDirectory,
    ExportedFile,
    ExportedDirectory,
    /// A directory with this in it, which no export wrote: never touched.
    Beside(String),
    /// Something that no export made: never touched.
    Other,
}

/// # Errors
/// [`ErrorKind::Storage`].
pub(super) fn taken(parent: &dyn Directory, name: &str) -> Result<Taken> {
    let Some(entry) = parent.list()?.into_iter().find(|entry| entry.name == name) else {
        return Ok(Taken::Nothing);
    };
    match entry.kind {
        EntryKind::File if marks(parent, name)?.is_some() => Ok(Taken::ExportedFile),
        EntryKind::File if is_our_archive(parent, name)? => Ok(Taken::ExportedFile),
        EntryKind::Directory => of_directory(parent.open_dir(name)?.as_ref()),
        _ => Ok(Taken::Other),
    }
}

fn of_directory(dir: &dyn Directory) -> Result<Taken> {
    let mut entries = dir.list()?;
    if entries.is_empty() {
        return Ok(Taken::EmptyDirectory);
    }
    // The same one is named each time.
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    if is_our_metadata(dir)? {
        let is_part = |name: &str| name == METADATA || name.ends_with(DISTCP);
        let other = entries.into_iter().find(|e| e.kind != EntryKind::File || !is_part(&e.name));
        return Ok(other.map_or(Taken::ExportedDirectory, |entry| Taken::Beside(entry.name)));
    }
    let (mut configs, mut has_tensors) = (BTreeSet::new(), false);
    let is_document = |name: &str| CONFIGS.contains(&name) || layout::is_hf_index(name);
    let (documents, others): (Vec<_>, Vec<_>) =
        entries.into_iter().partition(|entry| is_document(&entry.name));
    for entry in others {
        let marks = match entry.kind {
            EntryKind::File => marks(dir, &entry.name)?,
            _ => None,
        };
        let Some(config) = marks else { return Ok(Taken::Beside(entry.name)) };
        configs.extend(config);
        has_tensors = true;
    }
    for entry in documents {
        let is_ours = match CONFIGS.contains(&entry.name.as_str()) {
            true => config_hash(dir, &entry.name)?.is_some_and(|hash| configs.contains(&hash)),
            false => unless_broken(read_index(dir, &entry.name))?
                .is_some_and(|index| index.is_some_and(|index| index.is_ours())),
        };
        if !is_ours {
            return Ok(Taken::Beside(entry.name));
        }
    }
    Ok(if has_tensors { Taken::ExportedDirectory } else { Taken::Other })
}

/// Whether an export wrote this archive of PyTorch, as a member of it says.
fn is_our_archive(dir: &dyn Directory, name: &str) -> Result<bool> {
    let look = || {
        let file = dir.open_file(name)?;
        let mut source = Source::new(file.as_ref());
        let archive = Archive::open(&mut source, 0, file.len())?;
        archive.member(&mut source, &format!(".data/{EXPORT_SAVE_ID}")).map(drop)
    };
    Ok(unless_broken(look())?.is_some())
}

/// Whether an export wrote the metadata of this distributed checkpoint.
fn is_our_metadata(dir: &dyn Directory) -> Result<bool> {
    let what = "the metadata of a distributed checkpoint";
    let read = read_small(dir, METADATA, PICKLE_BYTES_MAX, what);
    Ok(unless_broken(read)?.flatten().is_some_and(|bytes| is_ours(&bytes)))
}

/// If an export wrote this file, as its header says: the hash of the description beside it, if
/// there is to be one.
fn marks(dir: &dyn Directory, name: &str) -> Result<Option<Option<String>>> {
    let header = unless_broken(dir.open_file(name).and_then(|file| read_header(file.as_ref())))?;
    Ok(header.and_then(|mut header| {
        let config = header.metadata.remove(EXPORT_CONFIG);
        header.metadata.contains_key(EXPORT_SAVE_ID).then_some(config)
    }))
}

/// The hash of the description of a model, as files beside it state it.
fn config_hash(dir: &dyn Directory, name: &str) -> Result<Option<String>> {
    let read = read_small(dir, name, CONFIG_BYTES_MAX, "a description of a model");
    Ok(unless_broken(read)?.flatten().map(|bytes| hash_text(&bytes)))
}

/// The hash of a description, as text.
pub(crate) fn hash_text(bytes: &[u8]) -> String {
    layout::SaveId::from_bytes(hash16(bytes)).to_string()
}

/// What cannot be read for what it is, and not for the storage's sake, is none of ours.
fn unless_broken<T>(read: Result<T>) -> Result<Option<T>> {
    match read {
        Err(e) if e.kind() == ErrorKind::Storage => Err(e),
        read => Ok(read.ok()),
    }
}
