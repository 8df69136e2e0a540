//! Earlier checkpoints of a directory, as far as a save may take something over out of them.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use super::compare::{Depth, are_same};
use crate::catalog;
use crate::error::{ErrorKind, Result};
use crate::group::{ProcessGroup, Progress};
use crate::layout::CheckpointName;
use crate::plan::LinkedComponent;
use crate::plan::unchanged::{CHECKPOINTS_MAX, Seen};
use crate::state::StateDict;
use crate::storage::{Directory, Storage};
use crate::tensor::Component;

/// A component that may be unchanged, and the checkpoint of which it is.
pub(super) struct Candidate {
    pub(super) checkpoint: String,
    pub(super) part: LinkedComponent,
}

/// Coordinator: for each component the newest checkpoint of which it could be, as far as this rank
/// can tell by the first block of each piece.
///
/// # Errors
/// Those of reading the state. A storage that fails has no candidates.
pub(super) fn candidates(
    group: &ProcessGroup,
    storage: &dyn Storage,
    directory: &Path,
    state: &StateDict,
) -> Result<Vec<Candidate>> {
    if !group.earlier().can_link(directory) {
        return Ok(Vec::new());
    }
    let Ok(parent) = storage.open_dir(directory) else {
        // So that the checkpoints of another storage of this name are not taken for its own.
        group.earlier().keep_seen(directory, Vec::new());
        return Ok(Vec::new());
    };
    let remembered = group.earlier().seen(directory);
    // That it is the same is known when it is linked: names of files state the save.
    let is_there = |seen: &Seen| parent.open_dir(&seen.name).is_ok();
    let mut seen: Vec<Seen> = remembered.into_iter().flatten().filter(is_there).collect();
    if seen.is_empty() {
        seen = look(parent.as_ref(), &group.progress());
    }
    let components: BTreeSet<&Component> =
        seen.iter().flat_map(|seen| seen.manifest.data_files()).map(|f| &f.component).collect();
    let mut found = Vec::new();
    for component in components {
        for Seen { name, manifest } in &seen {
            let Some(part) = LinkedComponent::of(manifest, component) else { continue };
            if could_be(group, parent.as_ref(), name, &part, state)? {
                found.push(Candidate { checkpoint: name.clone(), part });
                break;
            }
        }
    }
    group.earlier().keep_seen(directory, seen);
    Ok(found)
}

/// Whether a component may be the same, by what this rank holds of it.
fn could_be(
    group: &ProcessGroup,
    parent: &dyn Directory,
    name: &str,
    part: &LinkedComponent,
    state: &StateDict,
) -> Result<bool> {
    let Some(dir) = parent.open_dir(name).ok().filter(|_| part.could_hold(state)) else {
        return Ok(false);
    };
    let pieces = part.pieces(group.world_size());
    let held = |name: &str| !state.boxes(name).is_empty();
    let held: Vec<_> = pieces
        .iter()
        .filter(|piece| {
            held(piece.tensor.name.as_str())
                && piece.planned(state.boxes(piece.tensor.name.as_str())).is_some()
        })
        .collect();
    are_same(&dir, part, &held, state, Depth::FirstBlocks, &group.progress())
}

/// The newest checkpoints of a directory, the newest first. What cannot be read is passed over: it
/// is for others to report.
fn look(parent: &dyn Directory, progress: &Progress) -> Vec<Seen> {
    let mut seen = Vec::new();
    let mut keep = |name: &CheckpointName, found: Result<catalog::Found>| {
        progress.add(1);
        let Ok(found) = found else { return };
        // Under any other name a sweep may take it away at any time.
        if found.entry == name.as_str() {
            seen.push(Seen { name: name.to_string(), manifest: Arc::new(found.manifest) });
        }
        if seen.len() > 2 * CHECKPOINTS_MAX {
            newest(&mut seen);
        }
    };
    if let Err(error) = catalog::visit(parent, &mut keep) {
        if error.kind() != ErrorKind::NotFound {
            tracing::debug!(%error, "earlier checkpoints are not looked into");
        }
        return Vec::new();
    }
    newest(&mut seen);
    seen
}

fn newest(seen: &mut Vec<Seen>) {
    let age = |seen: &Seen| (seen.manifest.created_unix_ms(), seen.manifest.step());
    seen.sort_by(|a, b| age(b).cmp(&age(a)).then_with(|| a.name.cmp(&b.name)));
    seen.truncate(CHECKPOINTS_MAX);
}
