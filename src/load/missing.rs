//! What a file that is not there means.

use super::Resolved;
use super::session::open_entry;
use crate::catalog;
use crate::error::{Error, ErrorKind};
use crate::files;
use crate::group::ProcessGroup;
use crate::layout::SaveId;
use crate::storage::Storage;

/// A file that a parsed manifest names and that is gone was replaced meanwhile, if another save is
/// under the name now; else it is lost.
pub(super) fn explain_missing(
    group: &ProcessGroup,
    storage: &dyn Storage,
    resolved: &Resolved,
    save_id: SaveId,
    error: Error,
) -> Error {
    let is_file = resolved.is_file;
    // A file that was replaced is there, with other bytes.
    let may_be_replaced = is_file && error.kind() == ErrorKind::Corrupt;
    if error.kind() != ErrorKind::NotFound && !may_be_replaced {
        return error;
    }
    let now = if is_file {
        files::reread(storage, &resolved.directory, &resolved.entry)
    } else {
        open_entry(storage, resolved).and_then(|dir| catalog::read_manifest(dir.as_ref()))
    };
    match now {
        Ok(manifest) if may_be_replaced && manifest.save_id() == save_id => error,
        Err(_) if may_be_replaced => error,
        Ok(manifest) if manifest.save_id() == save_id => error
            .with_kind(ErrorKind::Corrupt)
            .with_help("a file of this checkpoint is gone; load another one"),
        Err(e) if e.kind() == ErrorKind::NotFound && !group.is_coordinator() => {
            let place = std::path::absolute(&resolved.directory);
            error.with_kind(ErrorKind::NotShared).with_help(format!(
                "the coordinator sees this checkpoint, this rank does not: is `{}` on a file \
                 system that all ranks share?",
                place.unwrap_or_else(|_| resolved.directory.clone()).display()
            ))
        }
        _ => error.with_kind(ErrorKind::Superseded).with_help(
            "the checkpoint was replaced or removed while it was being loaded; load again",
        ),
    }
}
