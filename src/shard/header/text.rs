//! The header of a data file as text, written piece by piece without anything in between: a file
//! may hold a hundred thousand tensors.

use crate::error::{Error, ErrorKind, Result};
use crate::json::{put_list, put_name, put_number};
use crate::layout::SaveId;
use crate::memory::{Growing, reserve, room_for};
use crate::plan::{PlannedFile, PlannedPiece};
use crate::rank::Rank;

use super::{METADATA, PREFIX_BYTES};

/// What a piece takes besides its name, roughly.
const PIECE_BYTES: usize = 160;

/// The text of a header, after room for its length, and how its pieces lie in the data.
pub(super) struct HeaderText {
    pub(super) out: Growing,
    pub(super) piece_bytes: Vec<u64>,
    pub(super) data_bytes: u64,
}

/// # Errors
/// [`ErrorKind::InvalidInput`] for a piece outside its tensor, two pieces of one tensor, or sizes
/// that overflow; [`ErrorKind::Storage`] if memory is short.
pub(super) fn header_text(
    file: &PlannedFile,
    save_id: &SaveId,
    rank: Rank,
    step: u64,
) -> Result<HeaderText> {
    let names: usize = file.pieces.iter().map(|piece| piece.name.as_str().len()).sum();
    let mut out = Growing::new(usize::MAX);
    reserve(&mut out.bytes, 2 * names + PIECE_BYTES * file.pieces.len())?;
    out.put(&[0; PREFIX_BYTES])?;
    out.put(b"{\"")?;
    out.put(METADATA.as_bytes())?;
    out.put(b"\":{\"DCP_SHARDING_INFO\":\"{")?;
    let by_name = by_name(file)?;
    put_each(
        &mut out,
        &by_name,
        |_| true,
        |out, piece| {
            put_name(out, piece.name.as_str(), 2)?;
            out.put(b":{\\\"saved_offsets\\\":")?;
            put_list(out, piece.slice.offsets())?;
            out.put(b"}")
        },
    )?;
    out.put(b"}\",\"DCP_VERSION\":\"1.0\",\"format\":\"pt\",\"tch_checkpoint.rank\":\"")?;
    put_number(&mut out, u64::from(rank.get()))?;
    out.put(b"\",\"tch_checkpoint.save_id\":\"")?;
    out.put(save_id.to_string().as_bytes())?;
    out.put(b"\",\"tch_checkpoint.shapes\":\"{")?;
    // Of a whole tensor the header itself says it.
    let is_part = |piece: &PlannedPiece| !piece.slice.is_full(piece.spec.shape());
    put_each(&mut out, &by_name, is_part, |out, piece| {
        put_name(out, piece.name.as_str(), 2)?;
        out.put(b":")?;
        put_list(out, piece.spec.shape())
    })?;
    out.put(b"}\",\"tch_checkpoint.step\":\"")?;
    put_number(&mut out, step)?;
    out.put(b"\"}")?;
    let (mut piece_bytes, mut end) = (room_for(file.pieces.len())?, 0);
    for piece in &file.pieces {
        let begin = end;
        end = end_of(piece, begin).map_err(|e| e.with_tensor(piece.name.as_str()))?;
        put_entry(&mut out, piece, [begin, end])?;
        piece_bytes.push(end - begin);
    }
    out.put(b"}")?;
    Ok(HeaderText { out, piece_bytes, data_bytes: end })
}

/// The pieces by name, each of them once.
fn by_name(file: &PlannedFile) -> Result<Vec<&PlannedPiece>> {
    let mut pieces = room_for(file.pieces.len())?;
    pieces.extend(&file.pieces);
    pieces.sort_by(|a, b| a.name.cmp(&b.name));
    let twice = pieces.iter().zip(pieces.iter().skip(1)).find(|(a, b)| a.name == b.name);
    match twice.map(|(twice, _)| *twice) {
        None => Ok(pieces),
        Some(twice) => {
            let message = format!("two pieces in the file `{}`", file.name);
            let error = Error::new(ErrorKind::InvalidInput, message);
            Err(error.with_tensor(twice.name.as_str()))
        }
    }
}

/// Where a piece that begins there ends in the data.
fn end_of(piece: &PlannedPiece, begin: u64) -> Result<u64> {
    let refuse = |what: String| Error::new(ErrorKind::InvalidInput, what);
    if !piece.slice.fits(piece.spec.shape()) {
        return Err(refuse(format!("piece {} is not inside {}", piece.slice, piece.spec)));
    }
    let end = begin.checked_add(piece.size_bytes()).filter(|end| *end <= i64::MAX as u64);
    end.ok_or_else(|| refuse("the size of its file overflows".to_owned()))
}

fn put_entry(out: &mut Growing, piece: &PlannedPiece, bytes: [u64; 2]) -> Result<()> {
    out.put(b",")?;
    put_name(out, piece.name.as_str(), 1)?;
    out.put(b":{\"dtype\":\"")?;
    out.put(piece.spec.dtype().as_str().as_bytes())?;
    out.put(b"\",\"shape\":")?;
    put_list(out, piece.slice.lengths())?;
    out.put(b",\"data_offsets\":")?;
    put_list(out, &bytes)?;
    out.put(b"}")
}

/// Some of the pieces, with commas between them.
fn put_each(
    out: &mut Growing,
    pieces: &[&PlannedPiece],
    is_meant: impl Fn(&PlannedPiece) -> bool,
    put: impl Fn(&mut Growing, &PlannedPiece) -> Result<()>,
) -> Result<()> {
    for (number, piece) in pieces.iter().filter(|piece| is_meant(piece)).enumerate() {
        if number > 0 {
            out.put(b",")?;
        }
        put(out, piece)?;
    }
    Ok(())
}
