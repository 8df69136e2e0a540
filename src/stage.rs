//! The share of one rank in a save, copied to host memory, so that its state may change.
//!
//! Copied is what the plan gives to this rank, to the byte, and nothing else: a replica that
//! another rank writes costs no memory here. What says of itself that it is steady may be copied
//! later, while its version shows that it has not changed.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::group::Progress;
use crate::memory::{reserved, zeroed};
use crate::plan::{PlannedPiece, SavePlan};
use crate::sabotage::{self, Defect};
use crate::shard::Cut;
use crate::slice::Slice;
use crate::state::{StateDict, TensorSource};
use crate::tensor::{Component, TensorName, TensorSpec};

#[cfg(test)]
mod tests;

/// Bytes copied between two signs of progress.
const CHUNK: usize = 16 << 20;

/// What is copied, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Copying {
    /// Everything at once.
    Now,
    /// Steady boxes later, the rest at once.
    SteadyLater,
}

/// The share of one rank, copied but for what may wait.
pub(crate) struct Staging {
    boxes: BTreeMap<(TensorName, Slice), StagedBox>,
    late: Vec<(Component, PlannedPiece)>,
    /// The sources of what is late, and of nothing else.
    late_state: StateDict,
    watch: Watch,
}

impl Staging {
    /// Copies what `plan` gives to this rank out of `state`. Needs as much memory as that.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if the plan does not fit `state`, [`ErrorKind::Storage`] if
    /// memory is short, the error of a source; each with its tensor.
    pub(crate) fn begin(
        plan: &SavePlan,
        state: &StateDict,
        copying: Copying,
        progress: &Progress,
    ) -> Result<Self> {
        let (late_state, watch) = (StateDict::new(), Watch::default());
        let mut staging = Self { boxes: BTreeMap::new(), late: Vec::new(), late_state, watch };
        for file in &plan.files {
            for piece in &file.pieces {
                let place = |e: Error| e.with_tensor(piece.name.as_str());
                let cut = Cut::new(piece, state).map_err(place)?;
                let is_late = copying == Copying::SteadyLater && cut.entry.source.is_steady();
                if is_late || sabotage::is_on(Defect::LaxBackground) {
                    staging.postpone(&file.component, piece, &cut)?;
                } else {
                    let bytes = copy(&cut, cut.host_bytes()?, progress).map_err(place)?;
                    staging.add(&file.component, piece, &cut, bytes);
                }
            }
        }
        Ok(staging)
    }

    fn postpone(
        &mut self,
        component: &Component,
        piece: &PlannedPiece,
        cut: &Cut<'_>,
    ) -> Result<()> {
        let (name, source) = (&piece.name, &cut.entry.source);
        let known = self.late_state.boxes(name.as_str()).iter().any(|b| b.slice == piece.held);
        if !known {
            let (spec, held) = (piece.spec.clone(), piece.held.clone());
            self.late_state.add_slice(component, name.clone(), spec, held, Arc::clone(source))?;
            if !sabotage::is_on(Defect::LaxBackground) {
                self.watch.add(name, source);
            }
        }
        self.late.push((component.clone(), piece.clone()));
        Ok(())
    }

    fn add(&mut self, component: &Component, piece: &PlannedPiece, cut: &Cut<'_>, bytes: Vec<u8>) {
        let key = (piece.name.clone(), piece.held.clone());
        let staged = self.boxes.entry(key).or_insert_with(|| StagedBox {
            component: component.clone(),
            spec: piece.spec.clone(),
            ranges: Ranges { held_bytes: cut.held_bytes, by_begin: BTreeMap::new() },
        });
        staged.ranges.by_begin.insert(cut.begin, bytes);
    }

    /// Copies what is left, and gives the share as a state that nobody else can change, with what
    /// tells whether somebody has changed it before.
    ///
    /// # Errors
    /// As [`Staging::begin`] and [`Watch::check`].
    pub(crate) fn finish(mut self, progress: &Progress) -> Result<(StateDict, Watch)> {
        let state = std::mem::take(&mut self.late_state);
        for (component, piece) in std::mem::take(&mut self.late) {
            let place = |e: Error| e.with_tensor(piece.name.as_str());
            let cut = Cut::new(&piece, &state).map_err(place)?;
            // Others may use the box now, and by mistake even change it: no reference to its
            // memory is held here, the source copies by its own means.
            let bytes = copy(&cut, None, progress).map_err(place)?;
            self.add(&component, &piece, &cut, bytes);
        }
        self.watch.check()?;
        let mut staged = StateDict::new();
        for ((name, held), StagedBox { component, spec, ranges }) in self.boxes {
            staged.add_slice(&component, name, spec, held, Arc::new(ranges))?;
        }
        Ok((staged, self.watch))
    }
}

fn copy(cut: &Cut<'_>, host: Option<&[u8]>, progress: &Progress) -> Result<Vec<u8>> {
    if let Some(host) = host {
        let mut bytes = reserved(cut.bytes)?;
        for chunk in host.chunks(CHUNK) {
            bytes.extend_from_slice(chunk);
            progress.add(chunk.len() as u64);
        }
        return Ok(bytes);
    }
    let mut bytes = zeroed(cut.bytes)?;
    let mut offset = cut.begin;
    for chunk in bytes.chunks_mut(CHUNK) {
        cut.entry.source.read_into(offset, chunk)?;
        offset += chunk.len() as u64;
        progress.add(chunk.len() as u64);
    }
    Ok(bytes)
}

struct StagedBox {
    component: Component,
    spec: TensorSpec,
    ranges: Ranges,
}

/// The planned byte ranges of a box.
struct Ranges {
    held_bytes: u64,
    by_begin: BTreeMap<u64, Vec<u8>>,
}

impl TensorSource for Ranges {
    fn bytes(&self) -> Option<&[u8]> {
        let all = self.by_begin.get(&0)?;
        (all.len() as u64 == self.held_bytes).then_some(all)
    }

    fn read_into(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let range = self.by_begin.range(..=offset).next_back();
        let Some((begin, bytes)) = range else { return Err(not_staged(offset)) };
        bytes.read_into(offset - begin, out).map_err(|_| not_staged(offset))
    }
}

fn not_staged(offset: u64) -> Error {
    let message = format!("the bytes at {offset} of this box are not in this rank's share");
    Error::new(ErrorKind::InvalidInput, message)
}

/// The versions that steady boxes had when the save began.
#[derive(Default)]
pub(crate) struct Watch(Vec<(TensorName, Arc<dyn TensorSource>, u64)>);

impl Watch {
    fn add(&mut self, name: &TensorName, source: &Arc<dyn TensorSource>) {
        let version = source.version();
        self.0.extend(version.map(|version| (name.clone(), Arc::clone(source), version)));
    }

    /// Whether all are as they were.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`], naming the first that has changed.
    pub(crate) fn check(&self) -> Result<()> {
        let changed = |(_, source, version): &&(_, Arc<dyn TensorSource>, _)| {
            source.version().is_some_and(|now| now != *version)
        };
        let Some((name, ..)) = self.0.iter().find(changed) else { return Ok(()) };
        let message = "a steady tensor was changed while a save was still copying it";
        Err(Error::new(ErrorKind::InvalidInput, message)
            .with_tensor(name.as_str())
            .with_help("call PendingSave::wait_copied() before the optimizer's step"))
    }
}
