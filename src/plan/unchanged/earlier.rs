//! What a group remembers of earlier checkpoints, so that they need not be read at every save.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::LinkedComponent;
use crate::error::Result;
use crate::manifest::{Manifest, hash16};

/// So many checkpoints of a directory are looked into, the newest.
pub(crate) const CHECKPOINTS_MAX: usize = 8;
/// A first refusal may be for files of another user, whose checkpoint is the newest: the next save
/// has one of its own.
const REFUSALS_MAX: u32 = 2;
/// So many directories are remembered, those of the last saves.
const DIRECTORIES_MAX: usize = 4;

/// A checkpoint of a directory.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) name: String,
    pub(crate) manifest: Arc<Manifest>,
}

/// What a group remembers of earlier saves, on each rank.
#[derive(Debug, Default)]
pub(crate) struct EarlierSaves {
    /// On the coordinator: checkpoints by directory, the newest first.
    seen: Vec<(PathBuf, Vec<Seen>)>,
    /// On the coordinator: how often links were refused in a directory.
    refused: Vec<(PathBuf, u32)>,
    /// What the coordinator told last, with its hash.
    told: Option<([u8; 16], Arc<Vec<LinkedComponent>>)>,
}

impl EarlierSaves {
    /// What the coordinator told last, with its hash.
    pub(crate) fn told(&self) -> Option<([u8; 16], Arc<Vec<LinkedComponent>>)> {
        self.told.clone()
    }

    /// # Errors
    /// As [`codec::encode`](crate::codec::encode).
    pub(crate) fn keep_told(&mut self, parts: Vec<LinkedComponent>) -> Result<()> {
        let hash = hash16(&crate::codec::encode(&parts)?);
        self.told = Some((hash, Arc::new(parts)));
        Ok(())
    }

    /// Coordinator: a checkpoint was committed, so that it need not be read for the next one.
    pub(crate) fn committed(&mut self, directory: &Path, name: &str, made: Arc<Manifest>) {
        let Some((_, seen)) = self.seen.iter_mut().find(|(known, _)| known == directory) else {
            return;
        };
        seen.retain(|seen| seen.name != name);
        seen.insert(0, Seen { name: name.to_owned(), manifest: made });
        seen.truncate(CHECKPOINTS_MAX);
    }

    /// Coordinator: what is remembered of a directory is not so any more.
    pub(crate) fn forget(&mut self, directory: &Path) {
        self.seen.retain(|(known, _)| known != directory);
    }

    /// Coordinator: a file there could not have a second name. After [`REFUSALS_MAX`] looking for
    /// candidates is vain.
    pub(crate) fn refused(&mut self, directory: &Path) {
        if let Some((_, times)) = self.refused.iter_mut().find(|(known, _)| known == directory) {
            *times += 1;
            return;
        }
        self.refused.push((directory.to_path_buf(), 1));
        self.refused.drain(..self.refused.len().saturating_sub(DIRECTORIES_MAX));
    }

    pub(crate) fn can_link(&self, directory: &Path) -> bool {
        !self.refused.iter().any(|(known, times)| known == directory && *times >= REFUSALS_MAX)
    }

    pub(crate) fn seen(&self, directory: &Path) -> Option<Vec<Seen>> {
        self.seen.iter().find(|(known, _)| known == directory).map(|(_, seen)| seen.clone())
    }

    pub(crate) fn keep_seen(&mut self, directory: &Path, seen: Vec<Seen>) {
        self.forget(directory);
        self.seen.push((directory.to_path_buf(), seen));
        self.seen.drain(..self.seen.len().saturating_sub(DIRECTORIES_MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_given_up_at_the_second_refusal_and_others_are_not() {
        let (mut earlier, a, b) = (EarlierSaves::default(), Path::new("a"), Path::new("b"));
        earlier.refused(a);
        earlier.refused(b);
        assert!(earlier.can_link(a) && earlier.can_link(b));
        earlier.refused(a);
        assert!(!earlier.can_link(a) && earlier.can_link(b));
    }
}
