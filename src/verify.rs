//! Verifying a checkpoint: every byte of every file.

use crate::catalog::{Found, foreign_files, open_other};
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::{Form, OtherFile};
use crate::memory::zeroed;
use crate::shard::{PieceAt, ShardReader};

/// Bytes of a whole-file check that are read at once.
const CHUNK_BYTES: usize = 1 << 20;

/// What a verification found.
#[derive(Debug, Clone, Default)]
pub struct Verified {
    /// Bytes of the files that belong to the checkpoint, without the manifest.
    pub bytes: u64,
    /// Files checked, the manifest included.
    pub files: usize,
    /// Every damaged place, with file, tensor and offset; empty if all is as it was committed.
    pub damage: Vec<Error>,
    /// Files in the directory that do not belong to the checkpoint.
    pub foreign: Vec<String>,
}

/// Reads all of a checkpoint whose manifest has been parsed and compares it with what was
/// committed. Changes nothing. `progress` is called with the bytes of each finished read.
///
/// # Errors
/// [`ErrorKind::Storage`] if the directory cannot be listed or memory is short;
/// [`ErrorKind::Unsupported`] for files
/// of other tools, which have no sums; damage is no error.
pub fn verify(found: &Found, progress: &mut dyn FnMut(u64)) -> Result<Verified> {
    let manifest = &found.manifest;
    if *manifest.form() == Form::Plain {
        let message = "a file of another tool has no checksums";
        return Err(Error::new(ErrorKind::Unsupported, message).with_path(found.path()));
    }
    let reader = ShardReader::of(found.dir.clone(), manifest);
    let is_directory = *manifest.form() == Form::Directory;
    // A manifest of its own counts as a file.
    let mut verified = Verified { files: usize::from(is_directory), ..Verified::default() };
    for (index, file) in manifest.sums_files().iter().enumerate() {
        verified.damage.extend(reader.verify_sums_file(index).err());
        verified.count(file.len);
    }
    for (index, file) in manifest.data_files().iter().enumerate() {
        let (names, pieces) = pieces(found, index);
        let damage = reader.verify_file(index, &pieces, progress);
        verified.damage.extend(damage.into_iter().map(|place| {
            match place.piece.and_then(|piece| names.get(piece)) {
                Some(name) => place.error.with_tensor(*name),
                None => place.error,
            }
        }));
        verified.count(file.len);
    }
    for file in manifest.other_files() {
        verified.damage.extend(check_other(found, file).err());
        verified.count(file.len);
    }
    if let Some(short) = verified.damage.iter().find(|error| error.is_no_memory()) {
        // Nobody has looked at what there was no memory for.
        return Err(short.clone());
    }
    if is_directory {
        verified.foreign = foreign_files(found.dir.as_ref(), manifest)?;
    }
    Ok(verified)
}

impl Verified {
    fn count(&mut self, bytes: u64) {
        self.files += 1;
        self.bytes += bytes;
    }
}

/// The pieces of a data file with the names of their tensors.
fn pieces(found: &Found, index: usize) -> (Vec<&str>, Vec<PieceAt>) {
    let records = found.manifest.pieces_of_file(index);
    records.map(|(tensor, piece)| (tensor.name.as_str(), PieceAt::of(tensor, piece))).unzip()
}

/// Whether a file that is neither data nor sums is as it was saved.
pub(crate) fn check_other(found: &Found, record: &OtherFile) -> Result<()> {
    let path = found.dir.path().join(&record.name);
    let corrupt = |what: String| Err(Error::new(ErrorKind::Corrupt, what).with_path(&path));
    let file = open_other(&found.dir, &record.name)?;
    if file.len() != record.len {
        return corrupt(format!("{} bytes long, {} were saved", file.len(), record.len));
    }
    let mut hasher = blake3::Hasher::new();
    // No more than there is: most of these files are small.
    let mut chunk = zeroed(record.len.min(CHUNK_BYTES as u64))?;
    let mut offset = 0;
    while offset < record.len {
        let part = usize::try_from(record.len - offset).map_or(CHUNK_BYTES, |n| n.min(CHUNK_BYTES));
        file.read_at(offset, &mut chunk[..part])?;
        hasher.update(&chunk[..part]);
        offset += part as u64;
    }
    if hasher.finalize().as_bytes()[..16] != record.hash {
        return corrupt("its content is not what was saved".to_owned());
    }
    Ok(())
}
