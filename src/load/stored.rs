//! Tensors of a checkpoint as what is saved: from one form into another.

use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::manifest::{Manifest, TensorRecord, place_in};
use crate::shard::{PieceAt, ShardReader};
use crate::state::{StateDict, TensorSource};
use crate::storage::Directory;

/// Every tensor of a checkpoint whose tensors are whole, read and verified when asked for; no values,
/// and no second names.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for a piece that is not contiguous in its tensor.
pub(crate) fn stored_state(dir: &Arc<dyn Directory>, manifest: &Manifest) -> Result<StateDict> {
    let reader = Arc::new(ShardReader::of(dir.clone(), manifest));
    let mut state = StateDict::new();
    for tensor in manifest.tensors() {
        let source = Stored::new(reader.clone(), tensor)?;
        let (name, spec) = (tensor.name.clone(), tensor.spec.clone());
        state.add(&tensor.component, name, spec, Arc::new(source))?;
    }
    Ok(state)
}

/// A whole tensor in a file.
struct Stored {
    reader: Arc<ShardReader>,
    /// Its pieces, each with its first byte in the tensor, in order.
    pieces: Vec<(u64, PieceAt)>,
}

impl Stored {
    fn new(reader: Arc<ShardReader>, tensor: &TensorRecord) -> Result<Self> {
        let pieces = tensor.pieces.iter().map(|piece| {
            let inside = place_in(&tensor.spec, &piece.slice).ok_or_else(|| {
                Error::new(ErrorKind::Unsupported, "a piece that is not contiguous")
                    .with_tensor(tensor.name.as_str())
            })?;
            let at = PieceAt {
                file: piece.file as usize,
                begin: piece.begin,
                bytes: tensor.piece_bytes(piece),
                first_sum: piece.first_sum,
            };
            Ok((inside, at))
        });
        Ok(Self { reader, pieces: pieces.collect::<Result<_>>()? })
    }
}

impl TensorSource for Stored {
    fn read_into(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let (mut scratch, mut rest, mut at) = (Vec::new(), out, offset);
        let first = self.pieces.partition_point(|(begin, piece)| begin + piece.bytes <= offset);
        for (begin, piece) in self.pieces.get(first..).unwrap_or_default() {
            let left = piece.bytes.saturating_sub(at - begin);
            let len = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
            let (part, after) = rest.split_at_mut(len);
            self.reader.read_into(*piece, at - begin, &mut scratch, part)?;
            (rest, at) = (after, at + len as u64);
            if rest.is_empty() {
                return Ok(());
            }
        }
        if rest.is_empty() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::InvalidInput, "bytes beyond the end of a tensor"))
    }
}
