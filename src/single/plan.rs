//! Which rank writes which bytes of which file: pure, like the plan of any save.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::error::{Error, ErrorKind, Result};
use crate::manifest::{
    FileParts, Manifest, Piece, SUM_BYTES, SealInfo, SingleParts, TensorRecord, hash16, place_in,
    sums_of,
};
use crate::plan::PlannedPiece;
use crate::plan::save::MergedPlan;
use crate::shard::{HEADER_JSON_MAX, HeaderTensor, RangePiece, SingleText, single_header};
use crate::slice::Slice;
use crate::tensor::{Component, TensorName, TensorSpec};

/// Least bytes that a piece takes in a header: its sum, and its record in the manifest.
const PIECE_BYTES_MIN: u64 = 60;

/// What goes into one file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Content<'a> {
    pub(super) merged: &'a MergedPlan,
    pub(super) info: &'a SealInfo,
    /// The component whose tensors it holds; `None` for all.
    pub(super) only: Option<&'a Component>,
    /// The components in files beside it.
    pub(super) siblings: &'a [Component],
    /// Whether it holds the values.
    pub(super) has_values: bool,
}

/// One file, byte by byte, but for its sums.
#[derive(Debug, Clone)]
pub(super) struct FileLayout {
    /// Every piece in file order, with the rank that writes it.
    pub(super) pieces: Vec<(usize, RangePiece)>,
    pub(super) data_start: u64,
    pub(super) len: u64,
    tensors: Vec<HeaderTensor>,
    records: Vec<TensorRecord>,
    aliases: Vec<(TensorName, TensorName)>,
}

impl FileLayout {
    /// Lays tensors one after the other: larger element sizes first, then by component and name.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if the header would be longer than readers accept.
    pub(super) fn of(content: Content<'_>) -> Result<Self> {
        let places = place_tensors(content)?;
        let pieces = place_pieces(content.merged, &places)?;
        let records = records(&places, &pieces);
        let mut tensors: Vec<_> = places.into_values().map(|place| place.tensor).collect();
        tensors.sort_by_key(|t| (t.begin, t.end));
        let is_here =
            |name: &TensorName| records.binary_search_by(|record| record.name.cmp(name)).is_ok();
        let aliases = content.merged.aliases.iter().filter(|(_, target)| is_here(target)).cloned();
        let (aliases, len) = (aliases.collect(), tensors.last().map_or(0, |t| t.end));
        let mut layout = Self { pieces, data_start: 0, len, tensors, records, aliases };
        layout.make_room(content)?;
        Ok(layout)
    }

    /// Moves everything behind the header, whose length is known though its hashes are not.
    fn make_room(&mut self, content: Content<'_>) -> Result<()> {
        let blocks = self.pieces.iter().map(|(_, placed)| sums_of(placed.piece.size_bytes()));
        let sums_bytes = blocks.fold(0u64, |sum, n| sum.saturating_add(n * SUM_BYTES));
        // Any start will do: numbers have a fixed width in the manifest.
        self.shift(crate::manifest::DATA_ALIGNMENT);
        let manifest = self.manifest(content, [0; 16], [0; 16])?.encode()?;
        let text = SingleText::placeholder(manifest.len() as u64, sums_bytes)?;
        let (bytes, _) = self.header_bytes(content, text)?;
        self.shift(bytes.len() as u64);
        Ok(())
    }

    fn shift(&mut self, data_start: u64) {
        let move_to = |position: &mut u64, from: u64| *position = *position - from + data_start;
        let before = self.data_start;
        let records = self.records.iter_mut().flat_map(|record| &mut record.pieces);
        records.for_each(|piece| move_to(&mut piece.begin, before));
        self.pieces.iter_mut().for_each(|(_, placed)| move_to(&mut placed.begin, before));
        move_to(&mut self.len, before);
        self.data_start = data_start;
    }

    /// The pieces of one rank, in file order.
    pub(super) fn share(&self, rank: usize) -> Vec<RangePiece> {
        let own = self.pieces.iter().filter(|(writer, _)| *writer == rank);
        own.map(|(_, placed)| placed.clone()).collect()
    }

    /// The header, with manifest and sums.
    ///
    /// # Errors
    /// [`ErrorKind::Disagreement`] if it is not as long as was planned.
    pub(super) fn header(&self, content: Content<'_>, sums: &[u8]) -> Result<Vec<u8>> {
        let sums_hash = hash16(sums);
        let draft = self.manifest(content, [0; 16], sums_hash)?.encode()?;
        // The hash leaves out the manifest's text, but not its length.
        let (_, hash) = self.header_bytes(content, SingleText::new(&draft, sums)?)?;
        let manifest = self.manifest(content, hash, sums_hash)?.encode()?;
        let (bytes, _) = self.header_bytes(content, SingleText::new(&manifest, sums)?)?;
        if bytes.len() as u64 != self.data_start {
            let message = format!("a header of {} bytes, not {}", bytes.len(), self.data_start);
            return Err(Error::new(ErrorKind::Disagreement, message));
        }
        Ok(bytes)
    }

    fn header_bytes(&self, content: Content<'_>, text: SingleText) -> Result<(Vec<u8>, [u8; 16])> {
        let (save_id, step) = (&content.merged.save_id, content.merged.target.step);
        single_header(self.tensors.clone(), save_id, step, text)
    }

    fn manifest(
        &self,
        content: Content<'_>,
        header_hash: [u8; 16],
        sums_hash: [u8; 16],
    ) -> Result<Manifest> {
        Manifest::seal_single(SingleParts {
            merged: content.merged,
            info: content.info,
            siblings: content.siblings,
            has_values: content.has_values,
            tensors: self.records.clone(),
            aliases: self.aliases.clone(),
            file: FileParts { len: self.len, data_start: self.data_start, header_hash, sums_hash },
        })
    }
}

/// A tensor of the file.
struct Place {
    component: Component,
    spec: TensorSpec,
    tensor: HeaderTensor,
}

fn place_tensors(content: Content<'_>) -> Result<BTreeMap<TensorName, Place>> {
    let mut found = BTreeMap::new();
    let files = content.merged.plans.iter().flat_map(|plan| &plan.files);
    for file in files.filter(|file| content.only.is_none_or(|only| *only == file.component)) {
        for piece in &file.pieces {
            found.entry(&piece.name).or_insert((&file.component, &piece.spec));
        }
    }
    let mut order: Vec<_> = found.into_iter().collect();
    order.sort_by_key(|(name, (component, spec))| {
        (Reverse(spec.dtype().size_bytes()), *component, *name)
    });
    let (mut places, mut end) = (BTreeMap::new(), 0u64);
    for (name, (component, spec)) in order {
        let begin = end;
        let sum = begin.checked_add(spec.size_bytes()).filter(|e| i64::try_from(*e).is_ok());
        end = sum.ok_or_else(|| Error::new(ErrorKind::InvalidInput, "the file would overflow"))?;
        let tensor = HeaderTensor { name: name.clone(), spec: spec.clone(), begin, end };
        let place = Place { component: component.clone(), spec: spec.clone(), tensor };
        places.insert(name.clone(), place);
    }
    Ok(places)
}

/// Every planned piece of these tensors, cut up where it is not contiguous in the whole tensor.
fn place_pieces(
    merged: &MergedPlan,
    places: &BTreeMap<TensorName, Place>,
) -> Result<Vec<(usize, RangePiece)>> {
    let mut placed = Vec::new();
    for (rank, plan) in merged.plans.iter().enumerate() {
        for piece in plan.files.iter().flat_map(|file| &file.pieces) {
            let Some(place) = places.get(&piece.name) else { continue };
            let outer = outer_boxes(&piece.slice, piece.spec.shape());
            let count = outer.saturating_add(placed.len() as u64);
            if count > HEADER_JSON_MAX / PIECE_BYTES_MIN {
                return Err(too_many_pieces(piece));
            }
            for slice in contiguous_boxes(&piece.slice, piece.spec.shape()) {
                let Some(inside) = place_in(&piece.spec, &slice) else {
                    return Err(too_many_pieces(piece));
                };
                let begin = place.tensor.begin + inside;
                placed.push((rank, RangePiece { piece: with_slice(piece, slice), begin }));
            }
        }
    }
    placed.sort_by_key(|(_, p)| (p.begin, p.piece.size_bytes()));
    Ok(placed)
}

fn with_slice(piece: &PlannedPiece, slice: Slice) -> PlannedPiece {
    PlannedPiece { slice, ..piece.clone() }
}

fn too_many_pieces(piece: &PlannedPiece) -> Error {
    let message = format!(
        "rank holds {} of {}, which is too many runs of bytes for the header of a single file",
        piece.slice, piece.spec
    );
    Error::new(ErrorKind::InvalidInput, message)
        .with_tensor(piece.name.as_str())
        .with_help("save a checkpoint directory instead, or shard along the first dimension")
}

/// The last dimension of which a box does not take all: before it, it must be taken apart.
fn cut_dimension(slice: &Slice, shape: &[u64]) -> usize {
    let part = slice.lengths().iter().zip(shape).rposition(|(length, whole)| length != whole);
    part.filter(|_| slice.elements() > 0).unwrap_or(0)
}

/// Into how many contiguous boxes a box falls.
fn outer_boxes(slice: &Slice, shape: &[u64]) -> u64 {
    let outer = slice.lengths().iter().take(cut_dimension(slice, shape));
    outer.fold(1u64, |product, length| product.saturating_mul(*length))
}

/// The contiguous boxes of a box, in the order of a whole tensor of this shape.
fn contiguous_boxes(slice: &Slice, shape: &[u64]) -> Vec<Slice> {
    let mut boxes = vec![slice.clone()];
    for dimension in 0..cut_dimension(slice, shape) {
        boxes = boxes.iter().flat_map(|part| part.layers(dimension)).collect();
    }
    boxes
}

fn records(
    places: &BTreeMap<TensorName, Place>,
    pieces: &[(usize, RangePiece)],
) -> Vec<TensorRecord> {
    let record = |(name, place): (&TensorName, &Place)| TensorRecord {
        name: name.clone(),
        component: place.component.clone(),
        spec: place.spec.clone(),
        pieces: Vec::new(),
    };
    let mut records: Vec<TensorRecord> = places.iter().map(record).collect();
    for (_, placed) in pieces {
        let found = records.binary_search_by(|record| record.name.cmp(&placed.piece.name));
        if let Some(record) = found.ok().and_then(|index| records.get_mut(index)) {
            let (begin, slice) = (placed.begin, placed.piece.slice.clone());
            record.pieces.push(Piece { file: 0, begin, slice, first_sum: 0 });
        }
    }
    records
}
