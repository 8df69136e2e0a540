//! What need not be written again: components whose tensors have the sums that they had in an
//! earlier checkpoint of the same directory.
//!
//! ```text
//! phase "unchanged": (coordinator) which components of which earlier checkpoints could be the
//!                    same, by structure and by the first block of each piece that it holds ─ told
//! phase "compare":   (all) sums of the pieces that a rank judges against those of the checkpoint
//!                    ─(coordinator) the same if no rank says otherwise─ one answer for all
//! ```
//! Nothing is believed of the state: as long as a component seems unchanged, every block of it is
//! read and its sum taken, each by one rank. Where something has changed, its first block mostly
//! tells, so that a save of what is trained pays for one block of a piece, and no second phase.

mod compare;
mod earlier;

use serde::{Deserialize, Serialize};

use self::compare::{Depth, are_same};
use self::earlier::Candidate;
use super::SaveOptions;
use crate::catalog::CheckpointPath;
use crate::error::{Error, ErrorKind, Result};
use crate::group::{Channel, ProcessGroup};
use crate::manifest::hash16;
use crate::plan::LinkedComponent;
use crate::state::StateDict;
use crate::storage::Storage;

/// Components that are taken over, each with the checkpoint out of which.
#[derive(Debug, Clone, Default)]
pub(super) struct Unchanged {
    pub(super) components: Vec<LinkedComponent>,
    /// Names of checkpoints, one for each component.
    pub(super) checkpoints: Vec<String>,
}

/// The coordinator's answer in phase "unchanged".
#[derive(Clone, Serialize, Deserialize)]
struct Told {
    checkpoints: Vec<String>,
    /// One for each name; `None` for ranks that all know them since the last time.
    components: Option<Vec<LinkedComponent>>,
}

/// Finds out on every rank what need not be written. A rank that is `refused` brings that to the
/// first vote.
///
/// # Collective
/// Every rank, before phase "plan". One phase, and a second one if something may be unchanged.
///
/// # Errors
/// The same on every rank: those of reading the state, and as [`ProcessGroup::phase`]. A storage
/// that fails is none: then all is written.
pub(super) fn unchanged(
    group: &ProcessGroup,
    storage: &dyn Storage,
    path: &CheckpointPath,
    options: &SaveOptions,
    state: &StateDict,
    refused: Option<&Error>,
) -> Result<Unchanged> {
    let known = || match refused {
        Some(error) => Err(error.clone()),
        None => Ok(group.earlier().told().map(|(hash, _)| hash)),
    };
    let told = group.phase_all(Channel::Save, "unchanged", known, |known| {
        let found = match options.copy_unchanged {
            true => Vec::new(),
            false => earlier::candidates(group, storage, path.directory(), state)?,
        };
        let (checkpoints, components): (Vec<_>, Vec<_>) =
            found.into_iter().map(|Candidate { checkpoint, part }| (checkpoint, part)).unzip();
        let hash = hash16(&crate::codec::encode(&components)?);
        let is_known = known.iter().all(|known| *known == Some(hash));
        Ok(Told { checkpoints, components: (!is_known).then_some(components) })
    })?;
    if told.checkpoints.is_empty() {
        return Ok(Unchanged::default());
    }
    let vote = || same(group, storage, path, state, &told);
    let same = group.phase_all(Channel::Save, "compare", vote, |votes| all_say_so(&votes))?;
    let (_, components) = group.earlier().told().unwrap_or_default();
    let all = components.iter().cloned().zip(told.checkpoints).zip(same);
    let (components, checkpoints) = all.filter(|(_, same)| *same).map(|(one, _)| one).unzip();
    Ok(Unchanged { components, checkpoints })
}

/// Every rank: which components are the same as far as it is to judge.
fn same(
    group: &ProcessGroup,
    storage: &dyn Storage,
    path: &CheckpointPath,
    state: &StateDict,
    told: &Told,
) -> Result<Vec<bool>> {
    if let Some(components) = &told.components {
        let received = components.iter().cloned().map(LinkedComponent::received);
        group.earlier().keep_told(received.collect())?;
    }
    let unknown = || Error::new(ErrorKind::Disagreement, "components that were never told");
    let (_, components) = group.earlier().told().ok_or_else(unknown)?;
    let parent = storage.open_dir(path.directory()).ok();
    let judged = components.iter().zip(&told.checkpoints).map(|(part, checkpoint)| {
        let dir = parent.as_ref().and_then(|parent| parent.open_dir(checkpoint).ok());
        let Some(dir) = dir.filter(|_| part.could_hold(state)) else { return Ok(false) };
        let pieces = part.pieces(group.world_size());
        let own: Vec<_> = pieces.iter().filter(|piece| piece.judge == group.rank()).collect();
        are_same(&dir, part, &own, state, Depth::Whole, &group.progress())
    });
    judged.collect()
}

/// Coordinator: a component is the same if every rank says so.
fn all_say_so(votes: &[Vec<bool>]) -> Result<Vec<bool>> {
    let Some(first) = votes.first() else { return Ok(Vec::new()) };
    if votes.iter().any(|vote| vote.len() != first.len()) {
        let message = "ranks have compared different components";
        return Err(Error::new(ErrorKind::Disagreement, message));
    }
    let all = |index: usize| votes.iter().all(|vote| vote.get(index) == Some(&true));
    Ok((0..first.len()).map(all).collect())
}
