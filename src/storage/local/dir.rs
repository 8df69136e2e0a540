//! Directories of the local file system.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::file::{LocalWriteFile, opening};
use super::read_file::LocalReadFile;
use super::{
    INTERRUPTIONS_MAX, creating, failed, is_unknown_call, lock, no_directory, not_synced,
    second_name, uninterrupted,
};
use crate::error::{Error, ErrorKind, Result};
use crate::sabotage::{self, Defect};
use crate::storage::errors::no_regular_file;
use crate::storage::name::{check_link_text, check_name};
use crate::storage::{
    DirEntry, Directory, EntryKind, FileFacts, Lock, ReadFile, Rename, Space, WriteFile,
};

/// The unit in which systems count what is allocated for a file.
const BLOCK_BYTES: u64 = 512;

#[derive(Debug)]
pub(super) struct LocalDir {
    fd: OwnedFd,
    path: PathBuf,
}

impl LocalDir {
    pub(super) fn new(fd: OwnedFd, path: PathBuf) -> Self {
        Self { fd, path }
    }

    /// Where the entry `name` is, if that can be a name.
    fn entry(&self, name: &str) -> Result<PathBuf> {
        check_name(name, &self.path)?;
        Ok(self.path.join(name))
    }

    fn open(&self, name: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        let nofollow =
            if sabotage::is_on(Defect::Trusting) { OFlags::empty() } else { OFlags::NOFOLLOW };
        let flags = flags | nofollow | OFlags::CLOEXEC;
        uninterrupted(|| rustix::fs::openat(&self.fd, name, flags, Mode::empty()))
    }

    /// An existing regular file, and its length.
    fn open_regular(&self, name: &str, access: OFlags, path: &Path) -> Result<(OwnedFd, u64)> {
        // NONBLOCK: a FIFO would wait for its other end; NOCTTY: a terminal would become ours.
        let fd = self
            .open(name, access | OFlags::NONBLOCK | OFlags::NOCTTY)
            .map_err(|errno| opening(errno, path))?;
        let stat = rustix::fs::fstat(&fd).map_err(|errno| opening(errno, path))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(no_regular_file(path));
        }
        Ok((fd, u64::try_from(stat.st_size).unwrap_or(0)))
    }

    fn kind_of(&self, name: &std::ffi::CStr) -> Result<FileType, Errno> {
        let stat = rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(FileType::from_raw_mode(stat.st_mode))
    }

    fn entries(&self) -> Result<Vec<DirEntry>, Errno> {
        let mut entries = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.fd)? {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let file_type = match entry.file_type() {
                FileType::Unknown => match self.kind_of(name) {
                    Err(Errno::NOENT) => continue,
                    asked => asked?,
                },
                known => known,
            };
            let name = name.to_string_lossy().into_owned();
            entries.push(DirEntry { name, kind: entry_kind(file_type) });
        }
        Ok(entries)
    }

    fn rename_errno(&self, from: &str, to: &str, mode: Rename) -> Result<(), Errno> {
        match mode {
            Rename::Replace => uninterrupted(|| rustix::fs::renameat(&self.fd, from, &self.fd, to)),
            Rename::Exchange => self.exchange(from, to),
            Rename::NoReplace => {
                match uninterrupted(|| self.rename_with(from, to, RenameFlags::NOREPLACE)) {
                    Err(errno) if is_unknown_call(errno) => self.rename_checked(from, to),
                    done => done,
                }
            }
        }
    }

    fn rename_with(&self, from: &str, to: &str, flags: RenameFlags) -> Result<(), Errno> {
        rustix::fs::renameat_with(&self.fd, from, &self.fd, to, flags)
    }

    /// A signal may interrupt the exchange or only the answer, and a second exchange would undo a
    /// first one: hence a look at what is there now.
    fn exchange(&self, from: &str, to: &str) -> Result<(), Errno> {
        let entry = || {
            let stat = rustix::fs::statat(&self.fd, from, AtFlags::SYMLINK_NOFOLLOW)?;
            Ok((stat.st_dev, stat.st_ino))
        };
        let before = entry()?;
        for _ in 0..INTERRUPTIONS_MAX {
            match self.rename_with(from, to, RenameFlags::EXCHANGE) {
                Err(Errno::INTR) if entry()? == before => {}
                Err(Errno::INTR) => return Ok(()),
                done => return done,
            }
        }
        Err(Errno::INTR)
    }

    /// [`Rename::NoReplace`] where the file system lacks it.
    pub(super) fn rename_checked(&self, from: &str, to: &str) -> Result<(), Errno> {
        match rustix::fs::statat(&self.fd, to, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Err(Errno::EXIST),
            Err(Errno::NOENT) => {
                uninterrupted(|| rustix::fs::renameat(&self.fd, from, &self.fd, to))
            }
            Err(errno) => Err(errno),
        }
    }
}

impl Directory for LocalDir {
    fn path(&self) -> &Path {
        &self.path
    }

    fn create_dir(&self, name: &str) -> Result<Arc<dyn Directory>> {
        let path = self.entry(name)?;
        let mode = Mode::from_raw_mode(0o777);
        uninterrupted(|| rustix::fs::mkdirat(&self.fd, name, mode)).map_err(|errno| {
            creating(errno, "creating the directory", &path, &[ErrorKind::AlreadyExists])
        })?;
        self.open_dir(name).map_err(|error| error.with_kind(ErrorKind::Storage))
    }

    fn open_dir(&self, name: &str) -> Result<Arc<dyn Directory>> {
        let path = self.entry(name)?;
        let opened = self.open(name, OFlags::RDONLY | OFlags::DIRECTORY);
        let fd = opened.map_err(|errno| no_directory(errno, &path))?;
        Ok(Arc::new(Self { fd, path }))
    }

    fn create_file(&self, name: &str) -> Result<Box<dyn WriteFile>> {
        let path = self.entry(name)?;
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = Mode::from_raw_mode(0o666);
        let fd = uninterrupted(|| rustix::fs::openat(&self.fd, name, flags, mode))
            .map_err(|e| creating(e, "creating the file", &path, &[ErrorKind::AlreadyExists]))?;
        Ok(Box::new(LocalWriteFile::new(fd, path)))
    }

    fn open_for_writing(&self, name: &str) -> Result<Box<dyn WriteFile>> {
        let path = self.entry(name)?;
        let (fd, _) = self.open_regular(name, OFlags::WRONLY, &path)?;
        Ok(Box::new(LocalWriteFile::new(fd, path)))
    }

    fn open_file(&self, name: &str) -> Result<Arc<dyn ReadFile>> {
        let path = self.entry(name)?;
        let (fd, len) = self.open_regular(name, OFlags::RDONLY, &path)?;
        Ok(Arc::new(LocalReadFile::new(fd, path, len)))
    }

    fn list(&self) -> Result<Vec<DirEntry>> {
        self.entries().map_err(|errno| creating(errno, "listing the directory", &self.path, &[]))
    }

    fn sync(&self) -> Result<()> {
        uninterrupted(|| rustix::fs::fsync(&self.fd)).map_err(|e| not_synced(e, &self.path))
    }

    fn rename(&self, from: &str, to: &str, mode: Rename) -> Result<()> {
        let (source, target) = (self.entry(from)?, self.entry(to)?);
        self.rename_errno(from, to, mode).map_err(|errno| match (mode, errno) {
            (Rename::Exchange, errno) if is_unknown_call(errno) => {
                failed(errno, &format!("exchanging with {to:?}"), &source)
                    .with_kind(ErrorKind::Unsupported)
                    .with_help("this file system cannot exchange two names: choose a free name")
            }
            // What a directory that is not empty says, where it is to be replaced.
            (_, Errno::NOTEMPTY | Errno::EXIST) => {
                failed(Errno::EXIST, &format!("renaming {from:?}"), &target)
            }
            _ => failed(errno, &format!("renaming to {to:?}"), &source),
        })
    }

    fn remove_file(&self, name: &str) -> Result<()> {
        let path = self.entry(name)?;
        uninterrupted(|| rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()))
            .map_err(|e| creating(e, "removing the file", &path, &[ErrorKind::NotFound]))
    }

    fn remove_dir(&self, name: &str) -> Result<()> {
        let path = self.entry(name)?;
        uninterrupted(|| rustix::fs::unlinkat(&self.fd, name, AtFlags::REMOVEDIR))
            .map_err(|e| creating(e, "removing the directory", &path, &[ErrorKind::NotFound]))
    }

    fn try_lock(&self, name: &str) -> Result<Option<Lock>> {
        let path = self.entry(name)?;
        lock::try_lock(self.fd.as_fd(), name, &path)
    }

    fn try_lock_self(&self) -> Result<Option<Lock>> {
        lock::try_lock_directory(self.fd.as_fd(), &self.path)
    }

    fn create_link(&self, name: &str, target: &str) -> Result<()> {
        let path = self.entry(name)?;
        check_link_text(target, &path)?;
        uninterrupted(|| rustix::fs::symlinkat(target, &self.fd, name)).map_err(|errno| {
            let error = creating(errno, "linking", &path, &[ErrorKind::AlreadyExists]);
            match errno {
                Errno::PERM | Errno::NOSYS | Errno::OPNOTSUPP => error
                    .with_kind(ErrorKind::Unsupported)
                    .with_help("this file system has no symbolic links"),
                _ => error,
            }
        })
    }

    fn read_link(&self, name: &str) -> Result<String> {
        let path = self.entry(name)?;
        match rustix::fs::readlinkat(&self.fd, name, Vec::new()) {
            Ok(text) => Ok(text.to_string_lossy().into_owned()),
            Err(Errno::INVAL) => {
                Err(Error::new(ErrorKind::NotFound, "is not a link").with_path(&path))
            }
            Err(errno) => Err(creating(errno, "reading the link", &path, &[ErrorKind::NotFound])),
        }
    }

    fn link_file(&self, from: &str, to: &str, name: &str) -> Result<()> {
        let (from_path, to_path) = (self.entry(from)?, self.entry(to)?);
        check_name(name, &to_path)?;
        let directory = |entry: &str, path: PathBuf| -> Result<Self> {
            let opened = self.open(entry, OFlags::RDONLY | OFlags::DIRECTORY);
            let fd = opened.map_err(|errno| no_directory(errno, &path))?;
            Ok(Self { fd, path })
        };
        let (source, target) = (directory(from, from_path)?, directory(to, to_path)?);
        let path = source.path.join(name);
        let (file, _) = source.open_regular(name, OFlags::RDONLY, &path)?;
        uninterrupted(|| rustix::fs::fsync(&file))
            .map_err(|errno| creating(errno, "fsyncing", &path, &[]))?;
        second_name::link((source.fd.as_fd(), &file), target.fd.as_fd(), name)
            .map_err(|errno| second_name::refused(errno, &target.path.join(name)))
    }

    fn space(&self) -> Result<Option<Space>> {
        let asked = super::space::of_directory(self.fd.as_fd());
        asked.map_err(|errno| creating(errno, "asking for free space", &self.path, &[]))
    }

    fn file_facts(&self, name: &str) -> Result<Option<FileFacts>> {
        let path = self.entry(name)?;
        let stat = rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| creating(errno, "looking at", &path, &[ErrorKind::NotFound]))?;
        Ok(Some(FileFacts {
            bytes: u64::try_from(stat.st_size).unwrap_or(0),
            on_disk: u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(BLOCK_BYTES),
            names: stat.st_nlink,
            id: (stat.st_dev, stat.st_ino),
        }))
    }
}

fn entry_kind(file_type: FileType) -> EntryKind {
    match file_type {
        FileType::Directory => EntryKind::Directory,
        FileType::RegularFile => EntryKind::File,
        FileType::Symlink => EntryKind::Link,
        _ => EntryKind::Other,
    }
}
