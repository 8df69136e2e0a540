//! Loading, from top to bottom as the protocol.
//!
//! ```text
//! phase "manifest": (coordinator) resolve the name, read, parse ─ broadcast ─ the same everywhere
//! plan_load (all, pure): names, shapes, dtypes → LoadPlan + LoadReport
//! phase "plan":     vote: satisfiable on every rank
//! read (all):       only the byte ranges wanted, every block verified
//! phase "read":     vote (atomic loads only): every rank's bytes are verified and staged
//! phase "place":    vote: every rank's tensors and values are in place
//! ```

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use crate::catalog::{self, Wanted};
use crate::codec::Bytes;
use crate::error::{Error, ErrorKind, Result};
use crate::group::{Channel, ProcessGroup};
use crate::layout::SaveId;
use crate::manifest::{Form, Manifest};
use crate::plan::load::{LoadReport, LoadRules, Replicas};
use crate::state::{LoadTargets, Values};
use crate::storage::Storage;
use crate::tensor::TensorName;
use crate::trace::Operation;

mod asked;
mod clock;
mod fill;
mod in_parts;
mod missing;
mod once;
mod one;
mod partial;
mod place;
mod session;
mod sharing;
mod stored;

use asked::Asked;
#[cfg(feature = "torch")]
pub(crate) use asked::wanted_of;
use clock::Clock;
pub use in_parts::visit_tensor;
pub(crate) use in_parts::{PART_BYTES, PartReader, named};
use missing::explain_missing;
pub use one::{read_floats, read_tensor};
pub use partial::{Filled, PartialLoaded, PartialOptions, PartialReport, load_partial};
pub(crate) use place::{read_boxes, read_boxes_into};
use session::Session;
use sharing::Share;
pub(crate) use stored::stored_state;

/// How often a load starts again because its checkpoint was replaced under it.
const RESTARTS_MAX: u32 = 3;

/// When the destination may change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub enum Atomicity {
    /// Bytes are staged and verified on the host first; the destination changes only after every
    /// rank has verified its share. Costs host memory for this rank's share.
    #[default]
    Atomic,
    /// Bytes go straight to the destination, in one pass. On an error the destination is
    /// undefined: right for fresh tensors, dangerous for live ones.
    InPlace,
}

/// What a load fills.
pub trait Destination {
    /// Called first, with the checkpoint that was found: the place to build what depends on it.
    ///
    /// # Errors
    /// Any; the load then fails on every rank and nothing was changed.
    fn prepare(&mut self, manifest: &Manifest) -> Result<()> {
        let _ = manifest;
        Ok(())
    }

    /// The tensors to fill on this rank. Asked for several times after each
    /// [`Destination::prepare`]: to plan, to see that they can be filled, and to fill them, each
    /// time the same.
    ///
    /// # Errors
    /// Any; the load then fails on every rank and nothing was changed.
    fn targets(&mut self) -> Result<LoadTargets<'_>>;

    /// Whether the values are fit for [`Destination::take_values`]: checked on every rank before
    /// anything changes.
    ///
    /// # Errors
    /// Any; the load then fails on every rank and nothing was changed.
    fn check_values(&self, manifest: &Manifest, rank_values: Option<&Values>) -> Result<()> {
        let _ = (manifest, rank_values);
        Ok(())
    }

    /// Called before the first tensor or value changes, when no rank can fail any more but in
    /// changing its own ([`Atomicity::Atomic`]), or when reading begins ([`Atomicity::InPlace`]).
    /// After this an error leaves the destination undefined; where it is not called nothing was
    /// changed. A destination that hands its targets on from another one passes this on too.
    fn begin_change(&mut self) {}

    /// Called when every tensor is in place. `rank_values` are those that the rank of this number
    /// saved; `None` if the checkpoint was saved by fewer ranks.
    ///
    /// # Errors
    /// Any; the load then fails on every rank.
    fn take_values(&mut self, manifest: &Manifest, rank_values: Option<&Values>) -> Result<()> {
        let _ = (manifest, rank_values);
        Ok(())
    }
}

impl Destination for LoadTargets<'_> {
    fn targets(&mut self) -> Result<LoadTargets<'_>> {
        Ok(self.borrowed())
    }
}

/// What was loaded.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// Where it lay.
    pub path: PathBuf,
    /// The save that wrote it.
    pub save_id: SaveId,
    /// What it consists of, values included.
    pub manifest: Arc<Manifest>,
    /// Names on one side only, always empty in a strict load; and what the load took.
    pub report: LoadReport,
    /// Bytes read from data files on this rank.
    pub bytes_read: u64,
}

/// The coordinator's answer in phase "manifest".
#[derive(Clone, serde::Serialize, serde::Deserialize)]
struct Resolved {
    directory: PathBuf,
    entry: String,
    /// Encoded, for those who have not parsed it; empty where there are none.
    manifest: Bytes,
    /// Whether `entry` is a file, not a directory.
    is_file: bool,
}

/// Loads checkpoint `wanted` into `destination`; see [`Wanted`] for the newest one. It may be a
/// directory, or files as [`single`](crate::single) writes them.
///
/// # Collective
/// Every rank of the group calls it with the same `wanted`, `rules` and `atomicity`. Every rank gets
/// the same verdict. The world size may differ from the one that saved; each rank reads only the
/// byte ranges that it wants.
///
/// # Errors
/// [`ErrorKind::NotFound`], [`ErrorKind::Corrupt`] (with file, tensor and offset),
/// [`ErrorKind::Incompatible`], [`ErrorKind::Mismatch`] (all mismatches at once),
/// [`ErrorKind::Superseded`], [`ErrorKind::NotShared`], [`ErrorKind::Disagreement`],
/// [`ErrorKind::Storage`], [`ErrorKind::PeerLost`], [`ErrorKind::Deadline`]. Up to and including phase "read" the destination is unchanged, with
/// [`Atomicity::Atomic`]. After a failure in phase "place", or any with [`Atomicity::InPlace`], it is
/// undefined.
pub fn load(
    group: &ProcessGroup,
    storage: &dyn Storage,
    wanted: &Wanted,
    destination: &mut dyn Destination,
    rules: &LoadRules,
    atomicity: Atomicity,
) -> Result<Loaded> {
    let operation = Operation::load(group, wanted);
    let _inside = operation.enter();
    let mut clock = Clock::of(&operation);
    loop {
        // The verdict is the same on every rank, so all of them start again, or none.
        match load_once(group, storage, wanted, destination, rules, atomicity, &mut clock) {
            Err(e) if is_restartable(&e) && clock.restarts < RESTARTS_MAX => {
                clock.restarts += 1;
                let restarts = clock.restarts;
                tracing::info!(restarts, "the checkpoint was replaced while loading; again");
            }
            done => return done.inspect(|loaded| operation.end(loaded.bytes_read)),
        }
    }
}

/// A rank that sees no directory at all may look at another file system, or the checkpoint has
/// just been removed: the coordinator's next look tells.
fn is_restartable(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Superseded | ErrorKind::NotShared)
}

fn load_once(
    group: &ProcessGroup,
    storage: &dyn Storage,
    wanted: &Wanted,
    destination: &mut dyn Destination,
    rules: &LoadRules,
    atomicity: Atomicity,
    clock: &mut Clock<'_>,
) -> Result<Loaded> {
    let ask = || Ok(Asked { wanted: wanted.clone(), rules: rules.clone(), atomicity });
    let mut parsed = None;
    let resolve = |asked: Vec<Asked>| {
        let (resolved, manifest) = resolve(group, storage, &asked)?;
        parsed = Some(manifest);
        Ok(resolved)
    };
    let resolved = clock.manifest(|| group.phase_all(Channel::Save, "manifest", ask, resolve))?;

    let mut session = None;
    let planned = || {
        let open = || {
            let manifest = match parsed.take() {
                Some(manifest) => manifest,
                None => Manifest::parse(resolved.manifest.get()?)?,
            };
            Session::open(group, storage, &resolved, manifest, destination, rules)
        };
        let opened = clock.plan(open)?;
        let unexpected = opened.report.unexpected.clone();
        let Session { manifest, plan, wanted, on_device, .. } = &opened;
        let share = Share::new(group, manifest, plan, wanted, on_device);
        session = Some(opened);
        Ok((unexpected, share))
    };
    let unwanted = |by_rank: Vec<(_, Share)>| {
        let (unexpected, shares): (_, Vec<_>) = by_rank.into_iter().unzip();
        let once = rules.replicas == Replicas::ReadOnce && sharing::all_want_the_same(&shares);
        Ok((check_unexpected(unexpected, rules)?, sharing::overlap(&shares) && !once, once))
    };
    let (unexpected, overlap, once) = group.phase_all(Channel::Save, "plan", planned, unwanted)?;
    let Some(mut session) = session else {
        return Err(Error::new(ErrorKind::Disagreement, "phase plan passed without a plan"));
    };
    // What another rank wants is not unexpected.
    session.report.unexpected = unexpected;

    let gone = |e| explain_missing(group, storage, &resolved, session.manifest.save_id(), e);
    let once = once.then(|| session.share_out(group));
    let reading = session.reading(group.progress(), sharing::sharing(group, overlap));
    let verdict = clock.verdict();
    let times = if atomicity == Atomicity::InPlace && once.is_none() {
        let read = || {
            destination.begin_change();
            clock.read(&session, || reading.direct(destination).map_err(gone))?;
            clock.place(|| session.give_values(group, destination))
        };
        group.phase_all(Channel::Save, "place", read, verdict)?
    } else {
        let mut staged = None;
        let read = || {
            let mut stage = || match &once {
                Some(once) => once.stage(&reading, destination),
                None => reading.staged_for(destination),
            };
            staged = Some(clock.read(&session, || stage().map_err(gone))?);
            Ok(())
        };
        group.phase_all(Channel::Save, "read", read, |_| Ok(()))?;
        let place = || {
            destination.begin_change();
            let staged = staged.take().unwrap_or_default();
            match &once {
                Some(once) => once.place(&reading, group, staged, destination)?,
                None => reading.place(staged, destination)?,
            }
            session.give_values(group, destination)
        };
        group.phase_all(Channel::Save, "place", || clock.place(place), verdict)?
    };
    Ok(session.finish(&resolved, times))
}

#[cfg(fuzzing)]
pub(crate) fn fuzz_load_answers(bytes: &[u8]) {
    use crate::fuzzing::message;
    drop(message::<Result<asked::Asked>>(bytes));
    drop(message::<Result<(Vec<TensorName>, Share)>>(bytes));
    if let Some(Ok(resolved)) = message::<Result<Resolved>>(bytes) {
        drop(resolved.manifest.get().and_then(Manifest::parse));
    }
}

/// Phase "manifest", coordinator: which checkpoint, and its manifest, for the others and as it is.
fn resolve(
    group: &ProcessGroup,
    storage: &dyn Storage,
    asked: &[Asked],
) -> Result<(Resolved, Manifest)> {
    let wanted = &asked::alike(asked)?.wanted;
    let progress = group.progress();
    let found = catalog::find_counting(storage, wanted, &mut || progress.add(1))?;
    let has_others = asked.len() > 1;
    let encoded = if has_others { found.manifest.encode()? } else { Vec::new() };
    let resolved = Resolved {
        directory: wanted.directory().to_path_buf(),
        entry: found.entry,
        manifest: encoded.into(),
        is_file: *found.manifest.form() != Form::Directory,
    };
    Ok((resolved, found.manifest))
}

/// Phase "plan", coordinator: what no rank wants, which is an error in a strict load.
fn check_unexpected(by_rank: Vec<Vec<TensorName>>, rules: &LoadRules) -> Result<Vec<TensorName>> {
    let mut by_rank = by_rank.into_iter();
    let mut unexpected = by_rank.next().unwrap_or_default();
    for names in by_rank {
        let names: BTreeSet<TensorName> = names.into_iter().collect();
        unexpected.retain(|name| names.contains(name));
    }
    LoadReport { unexpected: unexpected.clone(), ..LoadReport::default() }.check(rules)?;
    Ok(unexpected)
}

#[cfg(test)]
mod tests;
