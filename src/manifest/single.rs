//! Manifests whose data files carry everything in their own headers, and those made up for files
//! of other tools.
//!
//! Other rules than in a directory: files have the names that users give them, hold whole tensors
//! of any component, and a tensor may have several pieces in one file, each with sums of its own.

use std::collections::{BTreeMap, HashSet};

use smallvec::SmallVec;

use super::check::{check_aliases, check_world, corrupt, require};
use super::fill::{Pieces, fill_data, pieces_by_file};
use super::{
    Body, DATA_ALIGNMENT, DataFile, Form, Format, HEADER_BYTES_MAX, Manifest, Piece, SealInfo,
    TensorRecord,
};
use crate::error::{ErrorKind, Result};
use crate::layout::SaveId;
use crate::plan::cover::check_cover;
use crate::plan::save::MergedPlan;
use crate::slice::Slice;
use crate::state::Values;
use crate::tensor::{Component, TensorName, TensorSpec};

/// What is encoded: the components in files beside this one, and the rest.
pub(super) type Content = (Vec<Component>, Body);

/// What the manifest of one file is made of.
pub(crate) struct SingleParts<'a> {
    pub(crate) merged: &'a MergedPlan,
    pub(crate) info: &'a SealInfo,
    pub(crate) siblings: &'a [Component],
    /// Whether it holds the values; only one of several files does.
    pub(crate) has_values: bool,
    /// By name, with positions in the file.
    pub(crate) tensors: Vec<TensorRecord>,
    pub(crate) aliases: Vec<(TensorName, TensorName)>,
    pub(crate) file: FileParts,
}

/// What is known of files that have no manifest.
pub(crate) struct PlainParts {
    /// Their names, and what each of them holds.
    pub(crate) files: Vec<(String, Component, FileParts)>,
    pub(crate) tensors: BTreeMap<TensorName, PlainTensor>,
    pub(crate) aliases: BTreeMap<TensorName, TensorName>,
    pub(crate) values: Values,
    pub(crate) step: u64,
    pub(crate) epoch: u64,
}

/// A tensor in such files.
pub(crate) struct PlainTensor {
    pub(crate) spec: TensorSpec,
    pub(crate) component: Component,
    /// For each of its boxes the number of the file, and the first byte there.
    pub(crate) boxes: Vec<(Slice, u32, u64)>,
}

/// What the manifest says of the file that holds it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FileParts {
    pub(crate) len: u64,
    pub(crate) data_start: u64,
    pub(crate) header_hash: [u8; 16],
    pub(crate) sums_hash: [u8; 16],
}

/// The name in a manifest of the file that holds it: whatever users call it later.
const ITSELF: &str = "self";

impl Manifest {
    /// Makes the manifest that goes into a file.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if it would be no valid one.
    pub(crate) fn seal_single(parts: SingleParts<'_>) -> Result<Self> {
        let merged = parts.merged;
        let (values, rank_values) = if parts.has_values {
            (merged.values.clone(), merged.rank_values.clone())
        } else {
            (Values::new(), vec![Values::new(); merged.plans.len()])
        };
        let body = Body {
            step: merged.target.step,
            epoch: merged.target.epoch,
            world_size: u32::try_from(merged.plans.len()).unwrap_or(u32::MAX),
            created_unix_ms: parts.info.created_unix_ms,
            library_version: parts.info.library_version.clone(),
            libtorch_version: parts.info.libtorch_version.clone(),
            tensors: parts.tensors,
            aliases: parts.aliases,
            values,
            rank_values,
            ..empty_body(merged.save_id, vec![data_file(ITSELF, merged.save_id, &parts.file)])
        };
        let form = Form::Single { siblings: parts.siblings.to_vec() };
        Self::from_single(Format::NEWEST, body, form)
            .map_err(|e| e.with_kind(ErrorKind::InvalidInput))
    }

    /// A manifest for files that have none.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] if a header's claims do not fit.
    pub(crate) fn of_plain(parts: PlainParts) -> Result<Self> {
        let PlainParts { files, tensors, aliases, values, step, epoch } = parts;
        let save_id = SaveId::from_bytes([0; 16]);
        let data_files = files.iter().map(|(name, component, parts)| DataFile {
            component: component.clone(),
            ..data_file(name, save_id, parts)
        });
        let record = |(name, tensor): (TensorName, PlainTensor)| {
            let PlainTensor { spec, component, boxes } = tensor;
            let piece = |(slice, file, begin)| Piece { file, begin, slice, first_sum: 0 };
            let mut pieces: Vec<_> = boxes.into_iter().map(piece).collect();
            pieces.sort_by(|a, b| a.slice.cmp(&b.slice));
            TensorRecord { name, component, spec, pieces }
        };
        let tensors = tensors.into_iter().map(record).collect();
        let empty = empty_body(save_id, data_files.collect());
        let aliases = aliases.into_iter().collect();
        let body = Body { tensors, aliases, values, step, epoch, ..empty };
        Self::from_single(Format::NEWEST, body, Form::Plain)
    }

    /// Gives the file that holds this manifest the name under which it was found.
    pub(crate) fn found_as(mut self, name: &str) -> Self {
        for file in &mut self.body.data_files {
            name.clone_into(&mut file.name);
        }
        self
    }

    /// One manifest for a file and its siblings, which have been checked to belong together. The
    /// values are those of this one.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] if a tensor is in two of them.
    pub(crate) fn join(self, siblings: Vec<Manifest>) -> Result<Self> {
        let (format, mut body) = (self.format, self.body);
        for sibling in siblings {
            require(sibling.format == format, || corrupt("files of different formats"))?;
            let shift = u32::try_from(body.data_files.len()).unwrap_or(u32::MAX);
            let (files, tensors) = (sibling.body.data_files, sibling.body.tensors);
            body.data_files.extend(files);
            body.aliases.extend(sibling.body.aliases);
            body.tensors.extend(tensors.into_iter().map(|mut tensor| {
                for piece in &mut tensor.pieces {
                    piece.file = piece.file.saturating_add(shift);
                }
                tensor
            }));
        }
        body.tensors.sort_by(|a, b| a.name.cmp(&b.name));
        body.aliases.sort();
        Self::from_single(format, body, Form::Single { siblings: Vec::new() })
    }

    /// Checks every rule and derives what is not stored.
    pub(super) fn from_single(format: Format, mut body: Body, form: Form) -> Result<Self> {
        let world_size = check_world(&body)?;
        let total_bytes = check_files(&body, &form)?;
        require(body.tensors.is_sorted_by(|a, b| a.name < b.name), || {
            corrupt("tensor names are not unique and in order")
        })?;
        for tensor in &body.tensors {
            let checked = check_tensor(tensor, &body.data_files, &form);
            checked.map_err(|e| e.with_tensor(tensor.name.as_str()))?;
        }
        check_aliases(&body)?;
        let file_pieces = pieces_by_file(&body, Pieces::Any)?;
        for (index, pieces) in file_pieces.iter().enumerate() {
            fill_data(format, &mut body, index, pieces)?;
        }
        Ok(Self { format, body, form, world_size, file_pieces, total_bytes })
    }
}

fn empty_body(save_id: SaveId, data_files: Vec<DataFile>) -> Body {
    Body {
        save_id,
        step: 0,
        epoch: 0,
        world_size: 1,
        created_unix_ms: 0,
        library_version: String::new(),
        libtorch_version: String::new(),
        data_files,
        sums_files: Vec::new(),
        other_files: Vec::new(),
        tensors: Vec::new(),
        aliases: Vec::new(),
        values: Values::new(),
        rank_values: vec![Values::new()],
    }
}

fn data_file(name: &str, save_id: SaveId, parts: &FileParts) -> DataFile {
    DataFile {
        name: name.to_owned(),
        component: Component::model(),
        save_id,
        len: parts.len,
        data_start: parts.data_start,
        header_hash: parts.header_hash,
        sums_file: 0,
        sums_begin: 0,
        sums_count: 0,
        sums_hash: parts.sums_hash,
    }
}

fn check_files(body: &Body, form: &Form) -> Result<u64> {
    let alone = body.sums_files.is_empty() && body.other_files.is_empty();
    require(alone && !body.data_files.is_empty(), || corrupt("files that this form cannot have"))?;
    let alignment = if *form == Form::Plain { 1 } else { DATA_ALIGNMENT };
    let (mut names, mut total) = (HashSet::new(), 0u64);
    for file in &body.data_files {
        let fault = |message: &str| corrupt(message).with_path(&file.name);
        let name = file.name.as_str();
        let harmless = !name.is_empty() && !name.starts_with('.') && !name.contains('/');
        require(harmless && name.len() <= 255, || fault("a file name that is not allowed"))?;
        require(names.insert(name), || fault("a file is listed twice"))?;
        require(file.save_id == body.save_id, || fault("a file of another save"))?;
        require(file.sums_file == 0 && file.sums_begin == 0, || fault("sums in another file"))?;
        let start = file.data_start;
        // Of what other programs wrote it is not known, or not shown.
        let fits = (start > 0 || *form == Form::Plain)
            && start <= HEADER_BYTES_MAX + 8
            && start <= file.len;
        require(fits && start.is_multiple_of(alignment), || {
            fault(&format!("its data cannot begin at {start}"))
        })?;
        let sum = total.checked_add(file.len).filter(|t| i64::try_from(*t).is_ok());
        total = sum.ok_or_else(|| corrupt("the lengths of the files overflow"))?;
    }
    Ok(total)
}

/// Of ours a tensor is whole in one file: its pieces are contiguous in it, and lie where they
/// belong. Others may have put boxes anywhere.
fn check_tensor(tensor: &TensorRecord, files: &[DataFile], form: &Form) -> Result<()> {
    let shape = tensor.spec.shape();
    for piece in &tensor.pieces {
        require(piece.slice.fits(shape), || {
            corrupt(format!("slice {} is not inside {}", piece.slice, tensor.spec))
        })?;
    }
    require(tensor.pieces.is_sorted_by(|a, b| a.slice < b.slice), || {
        corrupt("its pieces are not unique and in order")
    })?;
    let slices: SmallVec<[_; 4]> = tensor.pieces.iter().map(|p| &p.slice).collect();
    check_cover(shape, &slices).map_err(corrupt)?;
    for piece in &tensor.pieces {
        let file = files.get(piece.file as usize);
        let file = file.ok_or_else(|| corrupt("it is in a file that is not listed"))?;
        let end = piece.begin.checked_add(tensor.piece_bytes(piece));
        require(piece.begin >= file.data_start && end.is_some_and(|end| end <= file.len), || {
            corrupt("it leaves its file").with_path(&file.name).with_offset(piece.begin)
        })?;
    }
    if *form == Form::Plain { Ok(()) } else { check_places(tensor) }
}

fn check_places(tensor: &TensorRecord) -> Result<()> {
    let Some(first) = tensor.pieces.first() else { return Err(corrupt("it has no piece")) };
    for piece in &tensor.pieces {
        let place = place_in(&tensor.spec, &piece.slice);
        let place = place.and_then(|place| first.begin.checked_add(place));
        require(piece.file == first.file && place == Some(piece.begin), || {
            corrupt("a piece does not lie where it belongs").with_offset(piece.begin)
        })?;
    }
    Ok(())
}

/// Where a contiguous box begins in the bytes of a whole tensor; `None` if it is not contiguous.
pub(crate) fn place_in(spec: &TensorSpec, slice: &Slice) -> Option<u64> {
    let elements = slice.elements();
    if elements == 0 {
        return Some(0);
    }
    let run = Slice::full(spec.shape()).runs_of(slice).next()?;
    (run.elements == elements).then(|| run.from * spec.dtype().size_bytes())
}

#[cfg(test)]
mod tests;
