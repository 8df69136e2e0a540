//! Reading the code of a checkpoint, every byte compared with what was saved.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::ModelCode;
use crate::catalog::{Wanted, find, read_other};
use crate::error::{ErrorKind, Result};
use crate::layout::CODE_DIR;
use crate::manifest::{Manifest, OtherFile};
use crate::state::Value;
use crate::storage::{Directory, LocalStorage, Storage};

/// How often a checkpoint that was replaced while it was read is looked for again.
const RESTARTS_MAX: usize = 3;

/// The code that was saved with a checkpoint; none if none was. Not collective: any process reads
/// it alone, and neither tensors nor libtorch are touched.
///
/// # Errors
/// [`ErrorKind::NotFound`] if there is no such checkpoint; [`ErrorKind::Corrupt`];
/// [`ErrorKind::Mismatch`] for attached files that are no text; [`ErrorKind::Storage`].
pub fn read_code(storage: &dyn Storage, wanted: &Wanted) -> Result<Option<ModelCode>> {
    let mut restarts = 0;
    loop {
        let found = find(storage, wanted)?;
        match read_open(&found.dir, &found.manifest) {
            Err(e) if e.kind() == ErrorKind::NotFound && restarts < RESTARTS_MAX => restarts += 1,
            Err(e) if e.kind() == ErrorKind::NotFound => {
                return Err(e.with_kind(ErrorKind::Corrupt).with_help("a file is gone"));
            }
            read => return read,
        }
    }
}

/// As [`read_code`], for a path on the file system; `DIR/latest` is the newest checkpoint of DIR.
///
/// # Errors
/// As [`read_code`]; [`ErrorKind::InvalidInput`] for a path that can be no checkpoint's.
pub fn load_model_code(path: impl AsRef<Path>) -> Result<Option<ModelCode>> {
    read_code(&LocalStorage::new(), &Wanted::parse(path)?)
}

/// The code of a checkpoint that is open.
///
/// # Errors
/// As [`read_code`]; [`ErrorKind::NotFound`] if a file is gone.
pub(crate) fn read_open(
    dir: &Arc<dyn Directory>,
    manifest: &Manifest,
) -> Result<Option<ModelCode>> {
    let mut attached = code_values(manifest);
    for record in code_files(manifest) {
        attached.insert(record.name.clone(), read_other(dir, record)?);
    }
    ModelCode::from_attached(&attached).map_err(|e| e.with_path(dir.path()))
}

/// The files under `code/` of a checkpoint.
pub(crate) fn code_files(manifest: &Manifest) -> impl Iterator<Item = &OtherFile> {
    manifest.other_files().iter().filter(|file| is_code(&file.name))
}

/// The same where the checkpoint is one file, which holds them among its values.
pub(crate) fn code_values(manifest: &Manifest) -> BTreeMap<String, Vec<u8>> {
    let values = manifest.values().iter().filter(|(name, _)| is_code(name));
    let texts = values.filter_map(|(name, value)| match value {
        Value::Bytes(bytes) => Some((name.to_owned(), bytes.clone())),
        _ => None,
    });
    texts.collect()
}

fn is_code(name: &str) -> bool {
    name.strip_prefix(CODE_DIR).is_some_and(|rest| rest.starts_with('/'))
}
