//! The pieces of a manifest by file: each file is filled by its own, from its first byte of data
//! to its last.

use super::check::{corrupt, require};
use super::{Body, Format};
use crate::error::Result;

/// A piece of a file: where it lies there, and where it is in the table of tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PiecePlace {
    begin: u64,
    bytes: u64,
    pub(super) tensor: u32,
    pub(super) piece: u32,
}

/// How many pieces of one tensor a file may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pieces {
    OnePerTensor,
    Any,
}

/// The pieces of each file in the order in which they lie there. Indices of files were checked.
pub(super) fn pieces_by_file(body: &Body, allowed: Pieces) -> Result<Vec<Vec<PiecePlace>>> {
    let mut by_file: Vec<Vec<PiecePlace>> = vec![Vec::new(); body.data_files.len()];
    let short = |index: usize| u32::try_from(index).unwrap_or(u32::MAX);
    for (index, tensor) in body.tensors.iter().enumerate() {
        for (place, piece) in tensor.pieces.iter().enumerate() {
            let Some(pieces) = by_file.get_mut(piece.file as usize) else { continue };
            // A name occurs once in a safetensors file. Tensors come in order here.
            let twice = pieces.last().is_some_and(|last| last.tensor == short(index));
            require(allowed == Pieces::Any || !twice, || {
                corrupt("two of its pieces are in one file").with_tensor(tensor.name.as_str())
            })?;
            let (begin, bytes) = (piece.begin, tensor.piece_bytes(piece));
            let (tensor, piece) = (short(index), short(place));
            pieces.push(PiecePlace { begin, bytes, tensor, piece });
        }
    }
    for pieces in &mut by_file {
        pieces.sort_by_key(|place| (place.begin, place.bytes));
    }
    Ok(by_file)
}

/// Checks that `pieces` fill the data of the file without gap or overlap, and counts block sums.
pub(super) fn fill_data(
    format: Format,
    body: &mut Body,
    index: usize,
    pieces: &[PiecePlace],
) -> Result<u64> {
    let file = &mut body.data_files[index];
    let fault = |message: &str, name: &str| corrupt(message).with_path(name);
    let (mut end, mut sums) = (file.data_start, 0);
    for place in pieces {
        let tensor = &mut body.tensors[place.tensor as usize];
        require(place.begin == end, || {
            fault("a gap or an overlap between pieces", &file.name)
                .with_tensor(tensor.name.as_str())
                .with_offset(place.begin)
        })?;
        tensor.pieces[place.piece as usize].first_sum = sums;
        sums += format.sums_of(place.bytes);
        end += place.bytes;
    }
    require(end == file.len, || {
        fault(&format!("its pieces end at {end}, the file at {}", file.len), &file.name)
    })?;
    file.sums_count = sums;
    Ok(sums)
}
