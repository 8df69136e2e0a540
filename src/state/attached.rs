//! Small files that a checkpoint carries along: the source of the model.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::StateDict;
use crate::error::Result;
use crate::layout::check_code_file;

impl StateDict {
    /// Attaches a small file, such as a source text: it is stored beside the tensors under this
    /// name, hashed, and never executed. The same on every rank, or the save is refused.
    ///
    /// `name` is `code/` and a path of at most 7 components of `[A-Za-z0-9._-]`
    /// ([`is_code_path`](crate::layout::is_code_path)).
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) for another name, one that is
    /// taken, or more than [`CODE_FILE_BYTES_MAX`](crate::layout::CODE_FILE_BYTES_MAX) in it,
    /// [`CODE_BYTES_MAX`](crate::layout::CODE_BYTES_MAX) in all, or
    /// [`CODE_FILES_MAX`](crate::layout::CODE_FILES_MAX) files.
    pub fn attach_file(
        &mut self,
        name: impl Into<String>,
        bytes: impl Into<Arc<[u8]>>,
    ) -> Result<()> {
        let (name, bytes) = (name.into(), bytes.into());
        let total = self.attached.values().map(|file| file.len() as u64).sum();
        check_code_file(&self.attached, total, &name, bytes.len() as u64)?;
        self.attached.insert(name, bytes);
        Ok(())
    }

    /// The attached files, by name.
    #[must_use]
    pub fn attached_files(&self) -> &BTreeMap<String, Arc<[u8]>> {
        &self.attached
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::layout::{CODE_BYTES_MAX, CODE_FILE_BYTES_MAX};

    #[test]
    fn files_are_attached_within_limits() {
        let mut state = StateDict::new();
        let large: Arc<[u8]> = vec![0; 1 << 20].into();
        for file in 0..CODE_BYTES_MAX / CODE_FILE_BYTES_MAX {
            state.attach_file(format!("code/{file}"), large.clone()).unwrap();
        }
        let one_more = state.attach_file("code/last", vec![1]).unwrap_err();
        assert_eq!(one_more.kind(), ErrorKind::InvalidInput);
        state.attach_file("code/empty", Vec::new()).unwrap();
        for bad in ["model.rs", "code/../x", "code/0", "code/0/x"] {
            let error = state.attach_file(bad, Vec::new()).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{bad}");
        }
        assert_eq!(state.attached_files().len(), 17);
    }
}
