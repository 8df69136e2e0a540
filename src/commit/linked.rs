//! Files of an earlier checkpoint as files of an attempt.

use super::{Attempt, check_length, hash_of, not_shared};
use crate::clock;
use crate::error::{ErrorKind, Result};
use crate::layout;
use crate::plan::LinkedComponent;
use crate::sweep::Pace;

impl Attempt {
    /// Makes the files of `part`, which lie in checkpoint `from`, files of this attempt too, and
    /// looks whether they are what its manifest says: sums all of them, data as far as length and
    /// header tell.
    pub(crate) fn link(&self, from: &str, part: &LinkedComponent, pace: &Pace) -> Result<()> {
        let partial = layout::partial_dir(&self.name, &self.save_id);
        for name in part.files() {
            match self.parent.link_file(from, &partial, name) {
                // Sums of two components may lie in one file.
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
                linked => linked?,
            }
            pace.progress.add(1);
        }
        let until = clock::now();
        for file in &part.data_files {
            let read = check_length(self.dir.as_ref(), &file.name, file.len, until)?;
            pace.progress.add(1);
            if hash_of(read.as_ref(), file.data_start, &pace.progress)? != file.header_hash {
                return Err(not_shared(self.dir.as_ref(), &file.name, "holds another header"));
            }
        }
        for file in &part.sums_files {
            let read = check_length(self.dir.as_ref(), &file.name, file.len, until)?;
            if hash_of(read.as_ref(), file.len, &pace.progress)? != file.hash {
                return Err(not_shared(self.dir.as_ref(), &file.name, "holds other sums"));
            }
        }
        Ok(())
    }
}
