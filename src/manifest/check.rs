//! The rules of a manifest. Everything that later code relies on is checked here, once.

use std::collections::{BTreeMap, HashSet};

use smallvec::SmallVec;

use super::fill::{PiecePlace, Pieces, fill_data, pieces_by_file};
use super::{
    Body, DATA_ALIGNMENT, DataFile, Form, Format, HEADER_BYTES_MAX, Manifest, OtherFile, SUM_BYTES,
    SUMS_HEADER_BYTES, TensorRecord,
};
use crate::error::{Error, ErrorKind, Result};
use crate::layout::{self, DataFileName};
use crate::plan::cover::check_cover;
use crate::rank::WorldSize;
use crate::tensor::TensorName;

/// Longest version string, in bytes.
const VERSION_BYTES_MAX: usize = 256;

pub(super) fn corrupt(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Corrupt, message)
}

pub(super) fn require(rule: bool, fault: impl FnOnce() -> Error) -> Result<()> {
    if rule { Ok(()) } else { Err(fault()) }
}

impl Manifest {
    /// Checks every rule and derives what is not stored.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`].
    pub(super) fn from_body(format: Format, mut body: Body) -> Result<Self> {
        let world_size = check_world(&body)?;
        let total_bytes = check_files(&body)?;
        check_tensors(&body)?;
        check_aliases(&body)?;
        let file_pieces = pieces_by_file(&body, Pieces::OnePerTensor)?;
        for (index, pieces) in file_pieces.iter().enumerate() {
            fill_file(format, &mut body, index, pieces)?;
        }
        Ok(Self { format, body, form: Form::Directory, world_size, file_pieces, total_bytes })
    }
}

pub(super) fn check_world(body: &Body) -> Result<WorldSize> {
    let world_size =
        WorldSize::new(body.world_size).map_err(|e| e.with_kind(ErrorKind::Corrupt))?;
    require(world_size.len() == body.rank_values.len(), || {
        corrupt(format!("{} sets of rank values for {world_size} ranks", body.rank_values.len()))
    })?;
    for version in [&body.library_version, &body.libtorch_version] {
        require(version.len() <= VERSION_BYTES_MAX, || corrupt("a version is over 256 bytes"))?;
    }
    Ok(world_size)
}

/// Checks names and lengths of all files, and gives the sum of their lengths.
fn check_files(body: &Body) -> Result<u64> {
    for file in &body.data_files {
        check_data_file(file, &body.sums_files)?;
    }
    for file in &body.sums_files {
        let known =
            layout::is_file_name(&file.name) && layout::parse_sums_file(&file.name).is_some();
        require(known, || corrupt("not the name of a sums file").with_path(&file.name))?;
        require(file.len.is_multiple_of(SUM_BYTES), || {
            corrupt("its length is no multiple of 16").with_path(&file.name)
        })?;
    }
    for file in &body.other_files {
        require(layout::is_other_file_name(&file.name), || {
            corrupt("a file name that is not allowed").with_path(&file.name)
        })?;
    }
    check_code(&body.other_files)?;
    let others = || body.sums_files.iter().chain(&body.other_files);
    let names = body.data_files.iter().map(|f| &f.name).chain(others().map(|f| &f.name));
    let mut seen = HashSet::new();
    for name in names {
        require(seen.insert(name), || corrupt("a file is listed twice").with_path(name))?;
    }
    let mut lens = body.data_files.iter().map(|f| f.len).chain(others().map(|f: &OtherFile| f.len));
    let total = lens.try_fold(0u64, u64::checked_add).filter(|t| i64::try_from(*t).is_ok());
    total.ok_or_else(|| corrupt("the lengths of the files overflow"))
}

fn check_code(others: &[OtherFile]) -> Result<()> {
    let mut seen = BTreeMap::new();
    let mut total = 0u64;
    for file in others.iter().filter(|file| file.name.contains('/')) {
        layout::check_code_file(&seen, total, &file.name, file.len)
            .map_err(|e| corrupt(e.message()).with_path(&file.name))?;
        total += file.len;
        seen.insert(file.name.clone(), ());
    }
    Ok(())
}

fn check_data_file(file: &DataFile, sums_files: &[OtherFile]) -> Result<()> {
    let fault = |message: &str| corrupt(message).with_path(&file.name);
    let named = layout::is_file_name(&file.name).then(|| DataFileName::parse(&file.name)).flatten();
    let named = named.ok_or_else(|| fault("not the name of a data file"))?;
    require(named.component == file.component && named.save_id == file.save_id, || {
        fault("its name states another component or save id")
    })?;
    let start = file.data_start;
    let aligned = start > 0 && start.is_multiple_of(DATA_ALIGNMENT);
    require(aligned && start <= HEADER_BYTES_MAX + 8 && start <= file.len, || {
        fault(&format!("its data cannot begin at {start}"))
    })?;
    let sums = sums_files.get(file.sums_file as usize);
    let sums = sums.ok_or_else(|| fault("its sums file is not listed"))?;
    // A name that no save gives is another fault.
    let of_another = layout::parse_sums_file(&sums.name).is_some_and(|id| id != file.save_id);
    require(!of_another, || fault("its sums file is of another save"))
}

fn check_tensors(body: &Body) -> Result<()> {
    require(body.tensors.is_sorted_by(|a, b| a.name < b.name), || {
        corrupt("tensor names are not unique and in order")
    })?;
    for tensor in &body.tensors {
        check_tensor(tensor, &body.data_files).map_err(|e| e.with_tensor(tensor.name.as_str()))?;
    }
    Ok(())
}

fn check_tensor(tensor: &TensorRecord, files: &[DataFile]) -> Result<()> {
    let shape = tensor.spec.shape();
    for piece in &tensor.pieces {
        require(piece.slice.fits(shape), || {
            corrupt(format!("slice {} is not inside {}", piece.slice, tensor.spec))
        })?;
        let file = files.get(piece.file as usize);
        let file = file.ok_or_else(|| corrupt("it is in a file that is not listed"))?;
        require(file.component == tensor.component, || {
            corrupt(format!("component {} in a file of another", tensor.component))
                .with_path(&file.name)
        })?;
        let end = piece.begin.checked_add(tensor.piece_bytes(piece));
        require(piece.begin >= file.data_start && end.is_some_and(|end| end <= file.len), || {
            corrupt("a piece leaves its file").with_path(&file.name).with_offset(piece.begin)
        })?;
    }
    require(tensor.pieces.is_sorted_by(|a, b| a.slice < b.slice), || {
        corrupt("its pieces are not unique and in order")
    })?;
    let slices: SmallVec<[_; 4]> = tensor.pieces.iter().map(|p| &p.slice).collect();
    check_cover(shape, &slices).map_err(corrupt)
}

pub(super) fn check_aliases(body: &Body) -> Result<()> {
    require(body.aliases.is_sorted_by(|a, b| a.0 < b.0), || {
        corrupt("aliases are not unique and in order")
    })?;
    let is_tensor = |name: &TensorName| body.tensors.binary_search_by(|t| t.name.cmp(name)).is_ok();
    for (alias, target) in &body.aliases {
        require(!is_tensor(alias) && is_tensor(target), || {
            corrupt(format!("not an alias of tensor `{target}`")).with_tensor(alias.as_str())
        })?;
    }
    Ok(())
}

/// Checks that `pieces` fill the data of the file, and that its block sums are where they belong.
fn fill_file(format: Format, body: &mut Body, index: usize, pieces: &[PiecePlace]) -> Result<()> {
    require(!pieces.is_empty(), || {
        corrupt("a data file holds no piece").with_path(&body.data_files[index].name)
    })?;
    let sums = fill_data(format, body, index, pieces)?;
    let file = &body.data_files[index];
    let sums_end = sums.checked_mul(SUM_BYTES).and_then(|len| file.sums_begin.checked_add(len));
    let sums_len = body.sums_files.get(file.sums_file as usize).map_or(0, |f| f.len);
    let within = sums_end.is_some_and(|end| end <= sums_len);
    let aligned = file.sums_begin >= SUMS_HEADER_BYTES && file.sums_begin.is_multiple_of(SUM_BYTES);
    require(within && aligned, || {
        corrupt("its block sums leave their file")
            .with_path(&file.name)
            .with_offset(file.sums_begin)
    })
}
