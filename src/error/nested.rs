//! How deep failures lie in one another. They come from other ranks, who are not to decide how
//! deep the stack of this one grows.

use std::cell::Cell;

use serde::de::{Deserialize, Deserializer, Error as _};

use super::Error;

/// More than any verdict about a verdict needs.
pub(super) const DEPTH_MAX: usize = 8;

thread_local! {
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// One list of failures that is being read.
struct Level;

impl Level {
    fn enter() -> Option<Self> {
        let depth = DEPTH.get();
        (depth <= DEPTH_MAX).then(|| {
            DEPTH.set(depth + 1);
            Self
        })
    }
}

impl Drop for Level {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get().saturating_sub(1));
    }
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Error>, D::Error> {
    match Level::enter() {
        Some(_level) => Vec::deserialize(from),
        None => Err(D::Error::custom("failures within failures within failures")),
    }
}

impl Error {
    /// Leaves out what lies deeper than `depth`.
    pub(super) fn cut(&mut self, depth: usize) {
        match depth.checked_sub(1) {
            Some(depth) => self.0.failures.iter_mut().for_each(|failure| failure.cut(depth)),
            None => self.0.failures.clear(),
        }
    }
}
