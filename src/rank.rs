//! Who a process is within its job: [`Rank`], [`LocalRank`], [`WorldSize`].

use std::fmt;
use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};

/// Number of a process in its job, `0 .. world size`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Rank(u32);

impl Rank {
    /// The rank that merges plans, collects votes and commits.
    pub const COORDINATOR: Rank = Rank(0);

    /// A rank by number.
    #[must_use]
    pub const fn new(index: u32) -> Self {
        Self(index)
    }

    /// Its number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Its number as an index into a slice that holds one element per rank.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// Whether this rank is the coordinator. The only place where rank 0 is compared.
    #[must_use]
    pub fn is_coordinator(self) -> bool {
        self == Self::COORDINATOR
    }
}

impl fmt::Display for Rank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Number of a process on its host; chooses the device of a rank.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LocalRank(pub u32);

impl fmt::Display for LocalRank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How many ranks a job has; never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WorldSize(NonZeroU32);

impl WorldSize {
    /// A job of one rank.
    pub const ONE: WorldSize = WorldSize(NonZeroU32::MIN);

    /// # Errors
    /// [`ErrorKind::InvalidInput`] for zero.
    pub fn new(count: u32) -> Result<Self> {
        NonZeroU32::new(count)
            .map(Self)
            .ok_or_else(|| Error::new(ErrorKind::InvalidInput, "a job needs at least one rank"))
    }

    /// The count.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0.get()
    }

    /// The count as a length.
    #[must_use]
    pub const fn len(self) -> usize {
        self.0.get() as usize
    }

    /// Always false; present because [`WorldSize::len`] is.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        false
    }

    /// Every rank, in order.
    pub fn ranks(self) -> impl DoubleEndedIterator<Item = Rank> + Clone {
        (0..self.get()).map(Rank)
    }
}

impl fmt::Display for WorldSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
