//! The share of one rank in a save, copied to host memory, so that its state may change.
//!
//! Copied is what the plan gives to this rank, to the byte, and nothing else: a replica that
//! another rank writes costs no memory here. It lies there as in its files, and is written from
//! there. What says of itself that it is steady may be copied later, while its version shows
//! that it has not changed.

mod copy;
mod devices;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;

use self::copy::{Copier, From};
use self::devices::Devices;
use crate::error::{Error, ErrorKind, Result};
use crate::group::Progress;
use crate::memory::region::{PAGE, Region};
use crate::plan::{PlannedFile, PlannedPiece, SavePlan};
use crate::rank::Rank;
use crate::sabotage::{self, Defect};
use crate::shard::image::Image;
use crate::shard::{Boxes, Cut, FilledFile, Header};
use crate::state::{StateDict, TensorSource};
use crate::tensor::{Component, TensorName};

/// Bytes copied between two signs of progress.
const STEP: usize = 16 << 20;

/// What is copied, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Copying {
    /// Everything at once.
    Now,
    /// Steady boxes later, the rest at once.
    SteadyLater,
}

/// What one rank is to write.
#[derive(Clone, Copy)]
pub(crate) struct Share<'a> {
    pub(crate) plan: &'a SavePlan,
    pub(crate) rank: Rank,
    pub(crate) step: u64,
}

/// The share of one rank, copied but for what may wait.
pub(crate) struct Staging {
    staged: Staged,
    late: Vec<Late>,
    /// The sources of what is late, and of nothing else.
    late_state: StateDict,
    watch: Watch,
    devices: Devices,
}

/// The share of one rank as nobody else can change it.
pub(crate) struct Staged {
    files: Vec<StagedFile>,
    region: Region,
}

/// The data of a file, from a page of the region on.
struct StagedFile {
    data: Range<usize>,
    /// Where each piece ends in the data.
    ends: Vec<usize>,
}

/// A piece that is copied later, by its numbers.
struct Late {
    file: usize,
    piece: usize,
}

impl Staging {
    /// Copies what `share` says out of `state`, with several threads. Needs as much memory as
    /// that; `kept` is used if it is large enough. A source that lies neither in host memory nor on
    /// a [`Device`](crate::device::Device) is asked by this thread alone.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if the plan does not fit `state`, [`ErrorKind::Storage`] if
    /// memory is short, the error or panic of a source; each with its tensor.
    pub(crate) fn begin(
        share: Share<'_>,
        state: &StateDict,
        copying: Copying,
        kept: Option<Region>,
        progress: &Progress,
    ) -> Result<Self> {
        let (mut postponed, mut devices) = (Postponed::default(), Devices::default());
        let mut staged = Staged::new(share.plan, kept)?;
        let mut sources = Vec::with_capacity(share.plan.files.len());
        for (number, file) in share.plan.files.iter().enumerate() {
            let mut of_file = Vec::with_capacity(file.pieces.len());
            let mut boxes = Boxes::new(state);
            for piece in &file.pieces {
                let place = |e: Error| e.with_tensor(piece.name.as_str());
                let cut = Cut::of_boxes(piece, boxes.of(&piece.name)).map_err(place)?;
                let is_late = copying == Copying::SteadyLater && cut.entry.source.is_steady();
                of_file.push(if is_late || sabotage::is_on(Defect::LaxBackground) {
                    devices.expect(&cut).map_err(place)?;
                    postponed.add(&file.component, piece, &cut)?;
                    postponed.late.push(Late { file: number, piece: of_file.len() });
                    From::Later
                } else if devices.take(&mut staged, &cut, (number, of_file.len())).map_err(place)? {
                    From::Later
                } else {
                    cut.host_bytes()?.map_or(From::Source(cut), From::Memory)
                });
            }
            sources.push(of_file);
        }
        let mut copier = Copier::new(share.rank, progress);
        for ((file, out), sources) in staged.data_mut().zip(&sources) {
            copier.add(&file.ends, sources, out)?;
        }
        copier.run()?;
        let staged = devices.copy(staged, progress)?;
        let Postponed { late, state: late_state, watch } = postponed;
        Ok(Self { staged, late, late_state, watch, devices })
    }

    /// Copies what is left of `share`, the same as before, and gives what nobody else can change,
    /// with what tells whether somebody has changed it before.
    ///
    /// # Errors
    /// As [`Staging::begin`] and [`Watch::check`].
    pub(crate) fn finish(self, share: Share<'_>, progress: &Progress) -> Result<(Staged, Watch)> {
        let Self { mut staged, late, late_state, watch, mut devices } = self;
        for Late { file, piece: number } in late {
            let piece = share.plan.files.get(file).and_then(|file| file.pieces.get(number));
            let piece = piece.ok_or_else(copy::misfit)?;
            let place = |e: Error| e.with_tensor(piece.name.as_str());
            let cut = Cut::new(piece, &late_state).map_err(place)?;
            if devices.take(&mut staged, &cut, (file, number)).map_err(place)? {
                continue;
            }
            let (mut offset, out) = (cut.begin, staged.piece_mut(file, number));
            let out = out.ok_or_else(copy::misfit)?;
            for part in out.chunks_mut(STEP) {
                // Others may use the box now, and by mistake even change it: no reference to its
                // memory is held here, the source copies by its own means.
                cut.entry.source.read_into(offset, part).map_err(place)?;
                offset += part.len() as u64;
                progress.add(part.len() as u64);
            }
        }
        let staged = devices.copy(staged, progress)?;
        watch.check()?;
        Ok((staged, watch))
    }
}

impl Staged {
    fn new(plan: &SavePlan, kept: Option<Region>) -> Result<Self> {
        let (mut files, mut end) = (Vec::with_capacity(plan.files.len()), 0usize);
        for PlannedFile { pieces, .. } in &plan.files {
            let (mut ends, mut len) = (Vec::with_capacity(pieces.len()), 0usize);
            for bytes in pieces.iter().map(PlannedPiece::size_bytes) {
                let sum = usize::try_from(bytes).ok().and_then(|bytes| len.checked_add(bytes));
                len = sum.ok_or_else(|| Error::no_memory(bytes))?;
                ends.push(len);
            }
            let short = || Error::no_memory(len as u64);
            let begin = end.checked_next_multiple_of(PAGE).ok_or_else(short)?;
            end = begin.checked_add(len).ok_or_else(short)?;
            files.push(StagedFile { data: begin..end, ends });
        }
        Ok(Self { files, region: Region::of(end as u64, kept)? })
    }

    /// Its files, which are those of `share`, with their headers.
    ///
    /// # Errors
    /// As [`Header::of`].
    pub(crate) fn images(&self, share: Share<'_>) -> Result<Vec<Image>> {
        let SavePlan { save_id, files, .. } = share.plan;
        let image = |file: &PlannedFile| {
            let header = Header::of(file, save_id, share.rank, share.step)?;
            Ok(Image::new(file.name.clone(), header))
        };
        files.iter().map(image).collect()
    }

    /// The same with their data, in plan order.
    pub(crate) fn files<'a>(&'a self, images: &'a [Image]) -> Vec<FilledFile<'a>> {
        let bytes = self.region.bytes();
        let filled = self.files.iter().zip(images).map(|(file, image)| FilledFile {
            image,
            data: bytes.get(file.data.clone()).unwrap_or_default(),
        });
        filled.collect()
    }

    fn data_mut(&mut self) -> impl Iterator<Item = (&StagedFile, &mut [u8])> {
        let (mut rest, mut at) = (self.region.bytes_mut(), 0);
        self.files.iter().map(move |file| {
            let (_, from) = std::mem::take(&mut rest).split_at_mut(file.data.start - at);
            let (data, after) = from.split_at_mut(file.data.len());
            (rest, at) = (after, file.data.end);
            (file, data)
        })
    }

    /// Where a piece lies in the region.
    fn place_of(&self, file: usize, piece: usize) -> Option<Range<usize>> {
        let StagedFile { data, ends, .. } = self.files.get(file)?;
        let begin = piece.checked_sub(1).map_or(Some(0), |before| ends.get(before).copied())?;
        Some(data.start + begin..data.start + ends.get(piece)?)
    }

    fn piece_mut(&mut self, file: usize, piece: usize) -> Option<&mut [u8]> {
        let place = self.place_of(file, piece)?;
        self.region.bytes_mut().get_mut(place)
    }

    /// Its memory, for the next one.
    pub(crate) fn into_region(self) -> Region {
        self.region
    }
}

/// What is not copied at once.
#[derive(Default)]
struct Postponed {
    late: Vec<Late>,
    state: StateDict,
    watch: Watch,
}

impl Postponed {
    fn add(&mut self, component: &Component, piece: &PlannedPiece, cut: &Cut<'_>) -> Result<()> {
        let (name, source) = (&piece.name, &cut.entry.source);
        if self.state.boxes(name.as_str()).iter().any(|b| b.slice == piece.held) {
            return Ok(());
        }
        let (spec, held) = (piece.spec.clone(), piece.held.clone());
        self.state.add_slice(component, name.clone(), spec, held, Arc::clone(source))?;
        if !sabotage::is_on(Defect::LaxBackground) {
            self.watch.add(name, source);
        }
        Ok(())
    }
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
