//! The pieces of a planned file, which clones share.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::PlannedPiece;

/// A list of pieces. A clone is the same list until one of them is changed, so that a plan can be
/// kept, sent and carried out at once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Pieces(Arc<Vec<PlannedPiece>>);

impl Deref for Pieces {
    type Target = Vec<PlannedPiece>;
    fn deref(&self) -> &Vec<PlannedPiece> {
        &self.0
    }
}

impl DerefMut for Pieces {
    fn deref_mut(&mut self) -> &mut Vec<PlannedPiece> {
        Arc::make_mut(&mut self.0)
    }
}

impl From<Vec<PlannedPiece>> for Pieces {
    fn from(pieces: Vec<PlannedPiece>) -> Self {
        Self(Arc::new(pieces))
    }
}

impl FromIterator<PlannedPiece> for Pieces {
    fn from_iter<I: IntoIterator<Item = PlannedPiece>>(pieces: I) -> Self {
        Vec::from_iter(pieces).into()
    }
}

impl<'a> IntoIterator for &'a Pieces {
    type Item = &'a PlannedPiece;
    type IntoIter = std::slice::Iter<'a, PlannedPiece>;
    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}
