//! Small parts of a file, many of which lie side by side.

use crate::error::{Error, ErrorKind, Result};
use crate::memory::grow;
use crate::storage::ReadFile;

/// A file, and what was read of it last.
pub(crate) struct Source<'f> {
    file: &'f dyn ReadFile,
    /// How much is read at once, if less is wanted.
    ahead: u64,
    begin: u64,
    bytes: Vec<u8>,
}

impl<'f> Source<'f> {
    /// Reads what is wanted and no more.
    pub(crate) fn new(file: &'f dyn ReadFile) -> Self {
        Self { file, ahead: 0, begin: 0, bytes: Vec::new() }
    }

    /// From here on at least so many bytes are read at once.
    pub(crate) fn read_ahead(&mut self, bytes: u64) {
        self.ahead = bytes;
    }

    /// Length of the file.
    pub(crate) fn len(&self) -> u64 {
        self.file.len()
    }

    /// # Errors
    /// [`ErrorKind::Corrupt`] beyond the end of the file; [`ErrorKind::Storage`].
    pub(crate) fn read(&mut self, at: u64, bytes: u64) -> Result<&[u8]> {
        let end = at.checked_add(bytes).filter(|end| *end <= self.len());
        let end = end.ok_or_else(|| {
            let message = format!("{bytes} bytes beyond its end, which is at {}", self.len());
            Error::new(ErrorKind::Corrupt, message).with_offset(at)
        })?;
        if at < self.begin || end > self.begin + self.bytes.len() as u64 {
            let len = bytes.max(self.ahead).min(self.len() - at);
            // Of an error nothing is left that could be taken for bytes of the file.
            self.begin = 0;
            let mut read = std::mem::take(&mut self.bytes);
            let len = usize::try_from(len).map_err(|_| Error::no_memory(len))?;
            read.truncate(len);
            grow(&mut read, len)?;
            self.file.read_at(at, &mut read)?;
            (self.begin, self.bytes) = (at, read);
        }
        let start = usize::try_from(at - self.begin).unwrap_or(usize::MAX);
        let len = usize::try_from(bytes).unwrap_or(usize::MAX);
        Ok(self.bytes.get(start..start.saturating_add(len)).unwrap_or_default())
    }
}
