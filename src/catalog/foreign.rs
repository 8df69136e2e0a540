//! What lies in the directory of a checkpoint and does not belong to it.

use std::collections::BTreeSet;

use crate::error::Result;
use crate::layout;
use crate::manifest::Manifest;
use crate::storage::{Directory, EntryKind};

/// Whatever lies in `dir` and is not listed in its manifest, sorted; folders of listed files are
/// looked into.
pub(crate) fn foreign_files(dir: &dyn Directory, manifest: &Manifest) -> Result<Vec<String>> {
    let data = manifest.data_files().iter().map(|f| f.name.as_str());
    let others = manifest.sums_files().iter().chain(manifest.other_files());
    let own: BTreeSet<&str> =
        data.chain(others.flat_map(|f| with_folders(&f.name))).chain([layout::MANIFEST]).collect();
    let mut foreign = Vec::new();
    look(dir, "", &own, &mut foreign)?;
    foreign.sort();
    Ok(foreign)
}

/// `code/a/b` and its folders `code/a` and `code`.
fn with_folders(name: &str) -> impl Iterator<Item = &str> {
    let folders = name.match_indices('/').filter_map(|(at, _)| name.get(..at));
    folders.chain([name])
}

fn look(
    dir: &dyn Directory,
    folder: &str,
    own: &BTreeSet<&str>,
    foreign: &mut Vec<String>,
) -> Result<()> {
    for entry in dir.list()? {
        let name = format!("{folder}{}", entry.name);
        if !own.contains(name.as_str()) {
            foreign.push(name);
        } else if entry.kind == EntryKind::Directory {
            look(dir.open_dir(&entry.name)?.as_ref(), &format!("{name}/"), own, foreign)?;
        }
    }
    Ok(())
}
