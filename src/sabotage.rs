//! Faults on purpose, for tests of what the other ranks then see, and of whether those tests see
//! anything. Without the feature `sabotage` nothing of this is compiled in; with it, nothing
//! happens until the variable `TCH_CHECKPOINT_SABOTAGE` asks for one of two things.
//!
//! `ACT@PLACE@RANK[@N]`: at the N-th visit of a place (1 by default) that rank kills, stops, ends,
//! panics or fails, or sends SIGUSR1 or SIGTERM to itself (`usr1`, `term`) or to whoever started it
//! (`launcher-usr1`, `launcher-term`). Places are `<phase>.before` (where it has come to the phase,
//! outside of which nothing is brought to a vote: `fail` is then what an early `return` would be),
//! `<phase>.enter` (before a rank's own part), `<phase>.voted` (the vote is sent, or on the
//! coordinator all votes are in), `<phase>.decided` (coordinator, before the answers go out),
//! `write.part` (after each part of a file), `train.step`, `train.backward` and `train.update` (in
//! front of forward pass, backward pass and update), and
//! `retain.removed` (coordinator, after each removal of a retention pass). `fail` is an error of
//! that rank's own part, so there is none once the votes are cast: with `.voted`, `.decided` or
//! `.removed` the variable is refused. When it happens, the file that `TCH_CHECKPOINT_SABOTAGE_MARK`
//! names is written first, for whoever wants to know when.
//!
//! `S1` to `S12`: a [`Defect`], everywhere and all the time.

#[cfg(feature = "sabotage")]
mod active;
mod defect;

#[cfg(feature = "sabotage")]
pub(crate) use active::{counted, is_on, visit};
pub(crate) use defect::Defect;

use crate::error::Result;
use crate::rank::Rank;

/// Visits a place.
///
/// # Errors
/// Whatever the sabotage says; never without one.
#[cfg(not(feature = "sabotage"))]
#[inline]
#[expect(clippy::unnecessary_wraps, reason = "fails only with the feature")]
pub(crate) fn visit(_rank: Rank, _phase: &str, _point: &str) -> Result<()> {
    Ok(())
}

/// Visits a place where nothing can fail any more: the vote is cast or the decision taken.
pub(crate) fn pass(rank: Rank, phase: &str, point: &str) {
    // A variable that cannot be read has failed the phase where it was entered.
    drop(visit(rank, phase, point));
}

/// Whether the code is to have that defect.
#[cfg(not(feature = "sabotage"))]
#[inline]
pub(crate) const fn is_on(_defect: Defect) -> bool {
    false
}

/// Does what `promise` says, or, with that defect, nothing.
///
/// # Errors
/// That of `promise`.
#[inline]
pub(crate) fn unless(defect: Defect, promise: impl FnOnce() -> Result<()>) -> Result<()> {
    if is_on(defect) { Ok(()) } else { promise() }
}

/// What became of `finish`, the fsync and close of a file: not asked for with the defect `unsynced`,
/// and success whatever it says with [`Defect::FinishErrorsIgnored`].
///
/// # Errors
/// Those of `finish`.
#[inline]
pub(crate) fn finished(unsynced: Defect, finish: impl FnOnce() -> Result<()>) -> Result<()> {
    let outcome = unless(unsynced, finish);
    if is_on(Defect::FinishErrorsIgnored) { Ok(()) } else { outcome }
}
