//! Bytes: directories and files as a checkpoint needs them, with durability spelled out.
//!
//! [`Storage`] opens directories by path; a [`Directory`] is a handle, and everything below it is
//! named by one component, never by a path, so that nothing can be swapped in behind it.
//! [`LocalStorage`] is the file system, [`MemoryStorage`] a file system in memory, and
//! [`FaultyStorage`] fails at a chosen operation.

#[cfg(test)]
mod conformance;
mod errors;
mod faulty;
mod local;
mod memory;
mod name;
mod space;

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::memory::region::PAGE;
pub use faulty::{Fault, FaultyStorage};
pub use local::LocalStorage;
pub use memory::MemoryStorage;
pub(crate) use name::check_is_path;
pub use space::{Space, free_space};

/// Opens and creates directories by path.
pub trait Storage: Send + Sync + fmt::Debug {
    /// Opens an existing directory.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound) if it does not exist or is no directory, else
    /// [`Storage`](crate::ErrorKind::Storage).
    fn open_dir(&self, path: &Path) -> Result<Arc<dyn Directory>>;

    /// Opens a directory, creating it and its missing ancestors; the parent of each newly created
    /// one is fsynced before this returns, and so is that of the last one that was there: whoever
    /// made it may have died before. Several ranks may race.
    ///
    /// # Errors
    /// [`Storage`](crate::ErrorKind::Storage).
    fn create_dir_all(&self, path: &Path) -> Result<Arc<dyn Directory>>;
}

/// An open directory. `name` is always a single component.
pub trait Directory: Send + Sync + fmt::Debug {
    /// Where it is, for messages.
    fn path(&self) -> &Path;

    /// Creates a directory and opens it. Not durable until [`Directory::sync`].
    ///
    /// # Errors
    /// [`AlreadyExists`](crate::ErrorKind::AlreadyExists), [`Storage`](crate::ErrorKind::Storage).
    fn create_dir(&self, name: &str) -> Result<Arc<dyn Directory>>;

    /// Opens a directory; a link is not followed.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound) (also for a link or a file),
    /// [`Storage`](crate::ErrorKind::Storage).
    fn open_dir(&self, name: &str) -> Result<Arc<dyn Directory>>;

    /// Creates a file for writing; an existing one (or a link) is an error.
    ///
    /// # Errors
    /// [`AlreadyExists`](crate::ErrorKind::AlreadyExists), [`Storage`](crate::ErrorKind::Storage).
    fn create_file(&self, name: &str) -> Result<Box<dyn WriteFile>>;

    /// Opens an existing regular file for writing, as several ranks do that each fill ranges of
    /// their own. Nothing is created or cut off; a link is not followed, and a FIFO or device is
    /// refused without blocking. A storage without it says so by default.
    ///
    /// # Errors
    /// As [`Directory::open_file`]; [`Unsupported`](crate::ErrorKind::Unsupported).
    fn open_for_writing(&self, name: &str) -> Result<Box<dyn WriteFile>> {
        Err(Error::new(ErrorKind::Unsupported, "this storage cannot write into an existing file")
            .with_path(self.path().join(name)))
    }

    /// Opens a regular file for reading; a link is not followed, and a FIFO or device is refused
    /// without blocking.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound), [`Corrupt`](crate::ErrorKind::Corrupt) for
    /// anything that is no regular file, [`Storage`](crate::ErrorKind::Storage).
    fn open_file(&self, name: &str) -> Result<Arc<dyn ReadFile>>;

    /// Its entries, in no particular order, without `.` and `..`.
    ///
    /// # Errors
    /// [`Storage`](crate::ErrorKind::Storage).
    fn list(&self) -> Result<Vec<DirEntry>>;

    /// Makes creations, renames and removals of entries durable (fsync of the directory).
    ///
    /// # Errors
    /// [`Storage`](crate::ErrorKind::Storage); what was not durable before may be lost.
    fn sync(&self) -> Result<()>;

    /// Renames an entry within this directory, atomically. Not durable until
    /// [`Directory::sync`].
    ///
    /// # Errors
    /// By [`Rename`] mode: [`AlreadyExists`](crate::ErrorKind::AlreadyExists),
    /// [`NotFound`](crate::ErrorKind::NotFound), [`Unsupported`](crate::ErrorKind::Unsupported),
    /// [`Storage`](crate::ErrorKind::Storage).
    fn rename(&self, from: &str, to: &str, mode: Rename) -> Result<()>;

    /// Removes a file or a link.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound), [`Storage`](crate::ErrorKind::Storage).
    fn remove_file(&self, name: &str) -> Result<()>;

    /// Removes an empty directory.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound), [`Storage`](crate::ErrorKind::Storage).
    fn remove_dir(&self, name: &str) -> Result<()>;

    /// Takes the advisory lock on the file `name` (created if missing, mode 0666 & umask), or
    /// `None` if another process or handle holds it. Given back when dropped.
    ///
    /// # Errors
    /// [`Unsupported`](crate::ErrorKind::Unsupported) where locks do not work,
    /// [`Storage`](crate::ErrorKind::Storage).
    fn try_lock(&self, name: &str) -> Result<Option<Lock>>;

    /// Takes the advisory lock on this directory itself, or `None` if another process or handle
    /// holds it. It goes with the directory when that is renamed, and leaves no file.
    ///
    /// # Errors
    /// As [`Directory::try_lock`].
    fn try_lock_self(&self) -> Result<Option<Lock>>;

    /// Creates a symbolic link `name` with the text `target`.
    ///
    /// # Errors
    /// [`AlreadyExists`](crate::ErrorKind::AlreadyExists),
    /// [`Unsupported`](crate::ErrorKind::Unsupported), [`Storage`](crate::ErrorKind::Storage).
    fn create_link(&self, name: &str, target: &str) -> Result<()>;

    /// The text of a symbolic link.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound) if there is none or it is no link,
    /// [`Storage`](crate::ErrorKind::Storage).
    fn read_link(&self, name: &str) -> Result<String>;

    /// Makes file `name` of directory `from` an entry of directory `to` too, under the same name:
    /// one file, two names. Both are directories in this one; neither is followed if it is a
    /// link, and neither is `name`. The name is not durable until `to` is synced; what the file
    /// holds is, whoever wrote it. A storage without it says so by default.
    ///
    /// # Errors
    /// [`AlreadyExists`](crate::ErrorKind::AlreadyExists),
    /// [`NotFound`](crate::ErrorKind::NotFound), [`Corrupt`](crate::ErrorKind::Corrupt) for
    /// anything that is no regular file, [`Unsupported`](crate::ErrorKind::Unsupported) where files
    /// cannot have two names, [`Storage`](crate::ErrorKind::Storage).
    fn link_file(&self, from: &str, to: &str, name: &str) -> Result<()> {
        let _ = (from, to);
        Err(Error::new(ErrorKind::Unsupported, "files cannot have two names here")
            .with_path(self.path().join(name)))
    }

    /// How much can still be written here; `None` where that is not known, as by default.
    ///
    /// # Errors
    /// [`Storage`](crate::ErrorKind::Storage) if asking fails.
    fn space(&self) -> Result<Option<Space>> {
        Ok(None)
    }

    /// What a file takes; a link is not followed. `None` where that is not known, as by default.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorKind::NotFound), [`Storage`](crate::ErrorKind::Storage).
    fn file_facts(&self, name: &str) -> Result<Option<FileFacts>> {
        let _ = name;
        Ok(None)
    }
}

/// What a file takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileFacts {
    /// Its length.
    pub bytes: u64,
    /// Bytes that are allocated for it.
    pub on_disk: u64,
    /// How many names it has.
    pub names: u64,
    /// Device and number of it: the same for all its names.
    pub id: (u64, u64),
}

/// A file being written. Dropping it without [`WriteFile::finish`] leaves an unusable file.
pub trait WriteFile: Send + Sync {
    /// Writes all of `bytes` at `offset`; different threads may write different ranges.
    ///
    /// # Errors
    /// [`Storage`](crate::ErrorKind::Storage); the file must not be used afterwards.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()>;

    /// Reserves space for `len` bytes, where the storage can; elsewhere does nothing.
    ///
    /// # Errors
    /// [`Storage`](crate::ErrorKind::Storage) if the space is not there.
    fn reserve(&self, len: u64) -> Result<()>;

    /// Brings what was written so far to the device, if much of it may still lie in memory, so that
    /// [`WriteFile::finish`] has less to do at once; whether there was. Promises nothing, and does
    /// nothing by default.
    ///
    /// # Errors
    /// [`Storage`](crate::ErrorKind::Storage); the file must not be used afterwards.
    fn write_back(&self) -> Result<bool> {
        Ok(false)
    }

    /// Fsyncs the file and closes it, checking both. After an error the content is unknown, and
    /// no second fsync is ever tried.
    ///
    /// # Errors
    /// [`Storage`](crate::ErrorKind::Storage).
    fn finish(self: Box<Self>) -> Result<()>;
}

/// What offset, address and length of a [`ReadFile::read_direct`] are multiples of, in bytes: the
/// largest unit in which devices in use want to be read.
pub const DIRECT_ALIGNMENT: usize = PAGE;

/// A file being read. Several threads may read it at once.
#[allow(clippy::len_without_is_empty)]
pub trait ReadFile: Send + Sync {
    /// Its length in bytes when it was opened.
    fn len(&self) -> u64;

    /// Fills `out` with the bytes at `offset`.
    ///
    /// # Errors
    /// [`Corrupt`](crate::ErrorKind::Corrupt) if the file ends before,
    /// [`Storage`](crate::ErrorKind::Storage).
    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()>;

    /// Fills the front of `out` with those bytes at `offset` that are there without waiting for a
    /// device, and says how many these are; what `out` holds behind them is unspecified. A storage
    /// that cannot tell reads all, as it does by default.
    ///
    /// # Errors
    /// As [`ReadFile::read_at`].
    fn read_cached(&self, offset: u64, out: &mut [u8]) -> Result<usize> {
        self.read_at(offset, out)?;
        Ok(out.len())
    }

    /// As [`ReadFile::read_at`], from the device and past the cache of the operating system, where
    /// the storage can: `None`, as by default, says that it cannot, and nothing was read. Returns
    /// how many bytes were read: fewer than asked for if the file ends before. `offset`, the
    /// address and the length of `out` are multiples of [`DIRECT_ALIGNMENT`].
    ///
    /// # Errors
    /// [`Storage`](crate::ErrorKind::Storage).
    fn read_direct(&self, offset: u64, out: &mut [u8]) -> Result<Option<usize>> {
        let _ = (offset, out);
        Ok(None)
    }
}

/// What an entry of a directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Link,
    /// Anything else.
    Other,
}

/// One entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// Its name; entries whose name is not UTF-8 appear with replacement characters.
    pub name: String,
    /// What it is.
    pub kind: EntryKind,
}

/// How [`Directory::rename`] treats the new name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rename {
    /// The new name must be free. Where the system call is missing, checked beforehand (the
    /// caller holds the lock of the directory).
    NoReplace,
    /// Both names exist and change places; [`Unsupported`](crate::ErrorKind::Unsupported) where
    /// the file system cannot.
    Exchange,
    /// A file or link under the new name is replaced.
    Replace,
}

/// An advisory lock, given back when dropped.
pub struct Lock(#[allow(dead_code)] Box<dyn Send + Sync>);

impl Lock {
    /// A lock that lasts as long as `guard` lives.
    pub fn new(guard: impl Send + Sync + 'static) -> Self {
        Self(Box::new(guard))
    }
}

impl fmt::Debug for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lock")
    }
}
