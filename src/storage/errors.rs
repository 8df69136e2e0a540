//! Errors that every storage words alike.

use std::path::Path;

use crate::error::{Error, ErrorKind};

/// The error of a file that ends at `offset` (or before) with `missing` bytes still to come.
pub(super) fn ends_early(path: &Path, offset: u64, missing: u64) -> Error {
    Error::new(ErrorKind::Corrupt, format!("the file ends {missing} bytes early"))
        .with_path(path)
        .with_offset(offset)
        .with_help("it was cut after it was written: restore it, or load an older checkpoint")
}

/// The error for an entry that is no regular file.
pub(super) fn no_regular_file(path: &Path) -> Error {
    Error::new(ErrorKind::Corrupt, "is not a regular file")
        .with_path(path)
        .with_help("find out who put it there: a checkpoint holds regular files only")
}
