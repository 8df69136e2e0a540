//! Files of a checkpoint that are neither data nor sums.

use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::layout::CODE_FILE_BYTES_MAX;
use crate::manifest::{OtherFile, hash16};
use crate::memory::zeroed;
use crate::storage::{Directory, ReadFile};

/// Opens `code/model.rs` by its parts: a directory is named by one component only.
pub(crate) fn open_other(dir: &Arc<dyn Directory>, name: &str) -> Result<Arc<dyn ReadFile>> {
    let mut parts = name.split('/');
    let last = parts.next_back().unwrap_or_default();
    let folder = parts.try_fold(dir.clone(), |dir, part| dir.open_dir(part));
    let file = folder.and_then(|dir| dir.open_file(last));
    file.map_err(|e| e.with_path(dir.path().join(name)))
}

/// Reads one of the [`other_files`](crate::manifest::Manifest::other_files) under `code/`, and
/// compares it with what was saved. `dir` is the checkpoint.
///
/// # Errors
/// [`ErrorKind::Corrupt`] if it is not what was saved; [`ErrorKind::NotFound`] if it is gone, also
/// because the checkpoint was replaced meanwhile; [`ErrorKind::InvalidInput`] for a file over
/// [`CODE_FILE_BYTES_MAX`]; [`ErrorKind::Storage`].
pub fn read_other(dir: &Arc<dyn Directory>, record: &OtherFile) -> Result<Vec<u8>> {
    let path = dir.path().join(&record.name);
    let fault = |kind, what: String| Err(Error::new(kind, what).with_path(&path));
    if record.len > CODE_FILE_BYTES_MAX {
        return fault(ErrorKind::InvalidInput, format!("{} bytes are too many", record.len));
    }
    let file = open_other(dir, &record.name)?;
    if file.len() != record.len {
        let what = format!("{} bytes long, {} were saved", file.len(), record.len);
        return fault(ErrorKind::Corrupt, what);
    }
    let mut bytes = zeroed(record.len)?;
    file.read_at(0, &mut bytes)?;
    if hash16(&bytes) != record.hash {
        return fault(ErrorKind::Corrupt, "its content is not what was saved".to_owned());
    }
    Ok(bytes)
}
