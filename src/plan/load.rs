//! Which bytes a rank reads: [`plan_load`], and what it finds amiss: [`LoadReport`].

mod owners;
mod report;

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};

pub(crate) use self::owners::{Owner, Owners};
pub(crate) use self::report::list;
pub use self::report::{LoadReport, Mismatch};
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::{Manifest, Piece, TensorRecord};
use crate::sabotage::{self, Defect};
use crate::slice::Slice;
use crate::tensor::{Component, TensorName, TensorSpec};

/// One box that a rank wants filled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedBox {
    name: TensorName,
    spec: TensorSpec,
    slice: Slice,
}

impl WantedBox {
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if the box leaves the tensor.
    pub fn new(name: TensorName, spec: TensorSpec, slice: Slice) -> Result<Self> {
        if !slice.fits(spec.shape()) {
            let message = format!("slice {slice} is not inside {spec}");
            return Err(Error::new(ErrorKind::InvalidInput, message).with_tensor(name.as_str()));
        }
        Ok(Self { name, spec, slice })
    }

    /// The tensor, or an alias of it.
    #[must_use]
    pub fn name(&self) -> &TensorName {
        &self.name
    }

    /// Dtype and global shape that the destination has.
    #[must_use]
    pub fn spec(&self) -> &TensorSpec {
        &self.spec
    }

    /// The box.
    #[must_use]
    pub fn slice(&self) -> &Slice {
        &self.slice
    }

    /// Bytes of the box.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.slice.elements() * self.spec.dtype().size_bytes()
    }
}

/// What a load insists on. Shapes and dtypes must always agree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LoadRules {
    /// Whether names that only one side has are errors.
    pub strict: bool,
    /// The components whose tensors count as unexpected when nobody wants them; `None` for all
    /// but [`Component::cache`].
    pub components: Option<Vec<Component>>,
    /// How ranks that want the same get it.
    pub replicas: Replicas,
}

impl Default for LoadRules {
    fn default() -> Self {
        Self { strict: true, components: None, replicas: Replicas::default() }
    }
}

/// How ranks that want the same bytes get them, as all ranks of data-parallel training do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Replicas {
    /// Every rank reads and verifies all of it. Ranks of one host read from the disk once, through
    /// its page cache.
    #[default]
    ReadEach,
    /// Every byte is read and verified once in the job, and goes to all other ranks from there.
    ///
    /// The rule: it counts where all ranks want exactly the same boxes; otherwise each reads its
    /// own. Tensors on the devices of a group that uses NCCL are shared out over all ranks by
    /// bytes, in the order of their names, and each rank broadcasts its part from device to
    /// device. Everything else is read by rank 0, which broadcasts it over the group's data plane.
    /// Whoever reads stages its part on the host; nothing is sent before all parts are verified.
    ReadOnce,
}

/// Everything a rank reads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadPlan {
    /// By file, in order; files without reads are left out.
    pub reads: Vec<FileReads>,
    bytes_wanted: u64,
}

impl LoadPlan {
    /// Bytes that reach a destination.
    #[must_use]
    pub fn bytes_wanted(&self) -> u64 {
        self.bytes_wanted
    }

    /// Bytes of all ranges; more than [`LoadPlan::bytes_wanted`] where small gaps are read too.
    #[must_use]
    pub fn bytes_read(&self) -> u64 {
        let items = self.reads.iter().flat_map(|file| &file.reads);
        items.map(|item| item.bytes.end - item.bytes.start).sum()
    }
}

impl LoadPlan {
    /// What of it is read for the boxes that `keep` names by their numbers.
    pub(crate) fn only(&self, keep: impl Fn(usize) -> bool) -> Self {
        let reads = self.reads.iter().filter_map(|file| {
            let kept = file.reads.iter().filter(|item| keep(item.target)).cloned();
            let reads: Vec<ReadItem> = kept.collect();
            (!reads.is_empty()).then_some(FileReads { file: file.file, reads })
        });
        // What reaches a destination is the same, wherever it was read.
        Self { reads: reads.collect(), bytes_wanted: self.bytes_wanted }
    }
}

/// What a rank reads of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileReads {
    /// Index into the manifest's data files.
    pub file: u32,
    /// In file order.
    pub reads: Vec<ReadItem>,
}

/// One range of bytes of one piece, and where parts of it go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadItem {
    /// Where the piece begins in its file.
    pub piece_begin: u64,
    /// Bytes of the piece.
    pub piece_bytes: u64,
    /// Index of the piece's first block sum among those of its file.
    pub first_sum: u64,
    /// The range to be read, counted from the start of the piece; never empty.
    pub bytes: Range<u64>,
    /// The box that the piece holds.
    pub source: Slice,
    /// The elements that are wanted of the range: a box inside `source` and the wanted box.
    pub common: Slice,
    /// Bytes of one element.
    pub element_bytes: u64,
    /// Index of the wanted box.
    pub target: usize,
}

/// Bytes to be copied from a piece to a wanted box.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyRun {
    /// First byte, counted from the start of the piece; within [`ReadItem::bytes`].
    pub from: u64,
    /// First byte, counted from the start of the wanted box.
    pub to: u64,
    /// How many.
    pub bytes: u64,
}

impl ReadItem {
    /// How the range is copied to its wanted box, in ascending order of both offsets. `wanted`
    /// must be the box with which the plan was made.
    pub fn copies(&self, wanted: &WantedBox) -> impl Iterator<Item = CopyRun> + use<> {
        let size = self.element_bytes;
        self.source.runs_into(&wanted.slice, &self.common).map(move |run| CopyRun {
            from: run.from * size,
            to: run.to * size,
            bytes: run.elements * size,
        })
    }
}

/// Finds what to read for `wanted`, and what does not fit. The plan covers what fits; whether
/// that is enough is up to [`LoadReport::check`].
#[must_use]
pub fn plan_load(
    manifest: &Manifest,
    wanted: &[WantedBox],
    rules: &LoadRules,
) -> (LoadPlan, LoadReport) {
    plan_with_gap(manifest, wanted, rules, manifest.block_bytes())
}

/// Wanted runs of a piece that are less than `gap_bytes` apart are read in one range.
fn plan_with_gap(
    manifest: &Manifest,
    wanted: &[WantedBox],
    rules: &LoadRules,
    gap_bytes: u64,
) -> (LoadPlan, LoadReport) {
    let mut report = LoadReport::default();
    let mut known = vec![false; manifest.tensors().len()];
    let (mut fitting, mut next) = (Vec::new(), 0);
    for (target, want) in wanted.iter().enumerate() {
        let found = manifest.tensor_index_near(next, want.name.as_str());
        let Some((index, record)) = found.and_then(|i| Some((i, manifest.tensors().get(i)?)))
        else {
            report.missing.push(want.name.clone());
            continue;
        };
        next = index + 1;
        known[index] = true;
        if fits(&record.spec, &want.spec) {
            fitting.push((index, target));
        } else {
            let (wanted, found) = (want.spec.clone(), record.spec.clone());
            report.mismatched.push(Mismatch { name: want.name.clone(), wanted, found });
        }
    }
    let counts = |t: &TensorRecord| {
        t.component != Component::cache()
            && rules.components.as_ref().is_none_or(|c| c.contains(&t.component))
    };
    let others = manifest.tensors().iter().zip(&known).filter(|(t, known)| !**known && counts(t));
    report.unexpected = others.map(|(t, _)| t.name.clone()).collect();
    report.tidy();
    fitting.sort_unstable();
    (plan_reads(manifest, wanted, &fitting, gap_bytes), report)
}

/// Whether a stored tensor fills one of the destination: as it is, or not at all.
fn fits(stored: &TensorSpec, wanted: &TensorSpec) -> bool {
    stored == wanted
        || (sabotage::is_on(Defect::LaxTensors) && could_be_made_to_fit(stored, wanted))
}

/// Whether elements have the same width and shapes can be broadcast: what no load does.
fn could_be_made_to_fit(stored: &TensorSpec, wanted: &TensorSpec) -> bool {
    let mut dimensions = stored.shape().iter().rev().zip(wanted.shape().iter().rev());
    stored.dtype().size_bytes() == wanted.dtype().size_bytes()
        && dimensions.all(|(a, b)| a == b || *a == 1 || *b == 1)
}

fn plan_reads(
    manifest: &Manifest,
    wanted: &[WantedBox],
    fitting: &[(usize, usize)],
    gap_bytes: u64,
) -> LoadPlan {
    let mut files: BTreeMap<u32, Vec<ReadItem>> = BTreeMap::new();
    let mut bytes_wanted = 0;
    for of_tensor in fitting.chunk_by(|(a, _), (b, _)| a == b) {
        let index = of_tensor.first().map_or(0, |(index, _)| *index);
        let Some(record) = manifest.tensors().get(index) else { continue };
        let pieces = PieceIndex::new(record);
        for &(_, target) in of_tensor {
            let Some(want) = wanted.get(target) else { continue };
            for piece in pieces.near(&want.slice) {
                let Some(common) = piece.slice.intersect(&want.slice) else { continue };
                bytes_wanted += common.elements() * record.spec.dtype().size_bytes();
                let items = read_items(record, piece, &common, target, gap_bytes);
                files.entry(piece.file).or_default().extend(items);
            }
        }
    }
    let in_order = |(file, mut reads): (u32, Vec<ReadItem>)| {
        reads.sort_by_key(|r| (r.piece_begin + r.bytes.start, r.bytes.end, r.target));
        FileReads { file, reads }
    };
    LoadPlan { reads: files.into_iter().map(in_order).collect(), bytes_wanted }
}

/// Finds the pieces of a tensor near a box without looking at all of them.
struct PieceIndex<'a> {
    pieces: &'a [Piece],
    /// The first dimension in which pieces begin at different places: they are sorted by it.
    dimension: Option<usize>,
    /// Per piece, where the furthest of it and those before it ends in that dimension.
    ends: Vec<u64>,
}

impl<'a> PieceIndex<'a> {
    fn new(record: &'a TensorRecord) -> Self {
        let pieces = record.pieces.as_slice();
        let dimension = pieces.first().zip(pieces.last()).and_then(|(first, last)| {
            let mut pairs = first.slice.offsets().iter().zip(last.slice.offsets());
            pairs.position(|(a, b)| a != b)
        });
        let mut furthest = 0;
        let end = |piece: &Piece| {
            let range = dimension.and_then(|d| piece.slice.ranges().nth(d));
            furthest = range.map_or(furthest, |r| furthest.max(r.end));
            furthest
        };
        let ends = pieces.iter().map(end).collect();
        Self { pieces, dimension, ends }
    }

    /// All pieces that may share elements with `wanted`.
    fn near(&self, wanted: &Slice) -> &'a [Piece] {
        let range = self.dimension.and_then(|d| Some((d, wanted.ranges().nth(d)?)));
        let Some((dimension, range)) = range else { return self.pieces };
        let begins_before =
            |p: &Piece| p.slice.offsets().get(dimension).is_some_and(|o| *o < range.end);
        let first = self.ends.partition_point(|end| *end <= range.start);
        let end = self.pieces.partition_point(begins_before);
        self.pieces.get(first..end).unwrap_or_default()
    }
}

fn read_items(
    record: &TensorRecord,
    piece: &Piece,
    common: &Slice,
    target: usize,
    gap_bytes: u64,
) -> Vec<ReadItem> {
    let element_bytes = record.spec.dtype().size_bytes();
    let strides = strides(piece.slice.lengths());
    let item = |part: Slice| {
        let inside = part.offsets().iter().zip(piece.slice.offsets()).map(|(a, b)| a - b);
        let first: u64 = inside.zip(&strides).map(|(index, stride)| index * stride).sum();
        let begin = first * element_bytes;
        ReadItem {
            piece_begin: piece.begin,
            piece_bytes: record.piece_bytes(piece),
            first_sum: piece.first_sum,
            bytes: begin..begin + span(part.lengths(), &strides) * element_bytes,
            source: piece.slice.clone(),
            common: part,
            element_bytes,
            target,
        }
    };
    split_at_gaps(common, &strides, gap_bytes.div_ceil(element_bytes))
        .into_iter()
        .map(item)
        .collect()
}

/// Elements from the first to the last of a box of `lengths` in a buffer with these strides.
fn span(lengths: &[u64], strides: &[u64]) -> u64 {
    1 + lengths.iter().zip(strides).map(|(length, stride)| (length - 1) * stride).sum::<u64>()
}

/// Splits a box so that no part of it has a gap of `gap` elements or more in the buffer.
///
/// The gap met when a dimension advances grows towards the outer dimensions, so it is the outer
/// ones that are taken apart.
fn split_at_gaps(common: &Slice, strides: &[u64], gap: u64) -> Vec<Slice> {
    let lengths = common.lengths();
    let wide = |d: &usize| {
        let inner = span(&lengths[d + 1..], &strides[d + 1..]);
        lengths[*d] > 1 && strides[*d] - inner >= gap
    };
    let outer = (0..lengths.len()).rev().find(wide).map_or(0, |d| d + 1);
    let mut parts = vec![common.clone()];
    for dimension in 0..outer {
        parts = parts.iter().flat_map(|part| part.layers(dimension)).collect();
    }
    parts
}

/// Row-major strides in elements.
fn strides(lengths: &[u64]) -> Vec<u64> {
    let mut stride = 1;
    let mut strides: Vec<u64> = Vec::with_capacity(lengths.len());
    for length in lengths.iter().rev() {
        strides.push(stride);
        stride *= length;
    }
    strides.reverse();
    strides
}

#[cfg(test)]
mod tests;
