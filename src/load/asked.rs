//! What every rank asks for in phase "manifest", which must be the same.

#[cfg(feature = "torch")]
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Atomicity;
use crate::agree::{agree, unlike};
use crate::catalog::Wanted;
use crate::error::Result;
#[cfg(feature = "torch")]
use crate::group::{Channel, ProcessGroup};
use crate::plan::load::LoadRules;

/// What one rank asks for.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Asked {
    pub(super) wanted: Wanted,
    pub(super) rules: LoadRules,
    pub(super) atomicity: Atomicity,
}

impl Asked {
    /// The first field in which another rank differs, in words.
    fn difference(&self, theirs: &Self) -> Option<String> {
        let Self { wanted, rules, atomicity } = self;
        let LoadRules { strict, components, replicas } = rules;
        unlike("the checkpoint to be loaded", wanted, &theirs.wanted)
            .or_else(|| unlike("`strict`", strict, &theirs.rules.strict))
            .or_else(|| unlike("`components`", components, &theirs.rules.components))
            .or_else(|| unlike("`replicas`", replicas, &theirs.rules.replicas))
            .or_else(|| unlike("`atomicity`", atomicity, &theirs.atomicity))
    }
}

/// The checkpoint at `path`. A path that can be none is brought to phase "manifest", in which the
/// other ranks are by then.
///
/// # Errors
/// That of [`Wanted::parse`], on every rank.
#[cfg(feature = "torch")]
pub(crate) fn wanted_of(group: &ProcessGroup, path: &Path) -> Result<Wanted> {
    Wanted::parse(path).or_else(|error| {
        let unfit = || Err::<Asked, _>(error.clone());
        group.phase_all(Channel::Save, "manifest", unfit, |_| Err::<(), _>(error.clone()))?;
        Err(error.clone())
    })
}

/// What all ranks ask for.
///
/// # Errors
/// [`ErrorKind::Disagreement`](crate::ErrorKind::Disagreement), naming the rank and the field.
pub(super) fn alike(asked: &[Asked]) -> Result<&Asked> {
    agree(asked, Asked::difference, "nothing was loaded; every rank must load alike")
}
