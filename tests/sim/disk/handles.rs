//! The disk as the crate sees it. Each operation first gives others the chance to run, and may
//! fail; what it then does, it does at once.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;
use tch_checkpoint::storage::{
    DirEntry, Directory, EntryKind, Lock, ReadFile, Rename, Storage, WriteFile,
};
use tch_checkpoint::{Error, ErrorKind, Result};

use super::node::{Dir, Entry, File, Id};
use super::{Disk, Mode, Node, Shared, components};
use crate::machine::{self, Turn};

/// The disk of the machine on which the caller runs.
#[derive(Debug, Clone)]
pub struct SimStorage(pub Shared);

impl SimStorage {
    fn handle(&self, id: Id, path: PathBuf) -> Arc<dyn Directory> {
        Arc::new(SimDir { disk: self.0.clone(), id, path })
    }

    fn open(&self, path: &Path) -> Result<Id, Errno> {
        perform("open_dir", path, "", &self.0, |disk| disk.walk(path))
    }

    /// As the storage of the machine's own file system does it, call by call.
    fn create_all(&self, path: &Path) -> Result<Id, Errno> {
        match self.open(path) {
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
            Ok(id) => {
                let above = path.parent().unwrap_or(path);
                perform("sync", above, "", &self.0, |disk| {
                    let above = disk.walk(above)?;
                    disk.sync_dir(above)
                })?;
                return Ok(id);
            }
        }
        let (Some(parent), Some(name)) = (path.parent(), components(path).last()) else {
            return Err(Errno::NOENT);
        };
        let at = self.create_all(parent)?;
        let make = |disk: &mut Disk| disk.make(at, name, Node::Dir(Dir::default()));
        match perform("mkdir", path, "", &self.0, make) {
            Ok(_) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        perform("sync", parent, "", &self.0, |disk| disk.sync_dir(at))?;
        self.open(path)
    }
}

impl Storage for SimStorage {
    fn open_dir(&self, path: &Path) -> Result<Arc<dyn Directory>> {
        let id = self.open(path).map_err(|errno| not_a_directory(errno, "opening", path))?;
        Ok(self.handle(id, path.to_owned()))
    }

    fn create_dir_all(&self, path: &Path) -> Result<Arc<dyn Directory>> {
        let id = self.create_all(path).map_err(|errno| failed(errno, "creating", path))?;
        Ok(self.handle(id, path.to_owned()))
    }
}

/// Lets others run, then does `act`, unless the machine says how it fails.
fn perform<T>(
    operation: &'static str,
    path: &Path,
    name: &str,
    disk: &Shared,
    act: impl FnOnce(&mut Disk) -> Result<T, Errno>,
) -> Result<T, Errno> {
    match machine::operation(operation, path, name) {
        Turn::Does => act(&mut disk.lock()),
        Turn::Dead => Err(Errno::IO),
        Turn::Fails(errno) => Err(errno),
        Turn::DoesAndFails(errno) => act(&mut disk.lock()).and(Err(errno)),
    }
}

fn failed(errno: Errno, doing: &str, path: &Path) -> Error {
    Error::io(&errno.into(), doing, path)
}

fn not_a_directory(errno: Errno, doing: &str, path: &Path) -> Error {
    let error = failed(errno, doing, path);
    if errno == Errno::NOTDIR { error.with_kind(ErrorKind::NotFound) } else { error }
}

#[derive(Debug)]
struct SimDir {
    disk: Shared,
    id: Id,
    path: PathBuf,
}

impl SimDir {
    fn perform<T>(
        &self,
        operation: &'static str,
        name: &str,
        act: impl FnOnce(&mut Disk) -> Result<T, Errno>,
    ) -> Result<T> {
        let done = perform(operation, &self.path, name, &self.disk, act);
        done.map_err(|errno| failed(errno, operation, &self.path.join(name)))
    }

    fn child(&self, id: Id, name: &str) -> Arc<dyn Directory> {
        Arc::new(Self { disk: self.disk.clone(), id, path: self.path.join(name) })
    }

    fn lock(&self, operation: &'static str, name: &str) -> Result<Option<Lock>> {
        let (at, process) = (self.id, machine::process());
        let held = self.perform(operation, name, |disk| {
            let id = match disk.entry(at, name) {
                _ if name.is_empty() => at,
                Ok(Entry::File(id) | Entry::Directory(id)) => id,
                Err(Errno::NOENT) => disk.make(at, name, Node::File(File::default()))?,
                _ => return Err(Errno::INVAL),
            };
            Ok(disk.lock(id, process).map(|lock| (id, lock)))
        })?;
        Ok(held.map(|(id, lock)| Lock::new(Held { disk: self.disk.clone(), id, lock })))
    }
}

struct Held {
    disk: Shared,
    id: Id,
    lock: u64,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.disk.lock().unlock(self.id, self.lock);
    }
}

impl Directory for SimDir {
    fn path(&self) -> &Path {
        &self.path
    }

    fn create_dir(&self, name: &str) -> Result<Arc<dyn Directory>> {
        let node = Node::Dir(Dir::default());
        let id = self.perform("create_dir", name, |disk| disk.make(self.id, name, node))?;
        Ok(self.child(id, name))
    }

    fn open_dir(&self, name: &str) -> Result<Arc<dyn Directory>> {
        let act = |disk: &mut Disk| match disk.entry(self.id, name)? {
            Entry::Directory(id) => Ok(id),
            _ => Err(Errno::NOTDIR),
        };
        let opened = perform("open_dir", &self.path, name, &self.disk, act);
        let id = opened.map_err(|e| not_a_directory(e, "opening", &self.path.join(name)))?;
        Ok(self.child(id, name))
    }

    fn create_file(&self, name: &str) -> Result<Box<dyn WriteFile>> {
        let node = Node::File(File::default());
        let id = self.perform("create_file", name, |disk| disk.make(self.id, name, node))?;
        Ok(Box::new(Open { disk: self.disk.clone(), id, len: 0, path: self.path.join(name) }))
    }

    fn open_file(&self, name: &str) -> Result<Arc<dyn ReadFile>> {
        let (id, len) = self.perform("open_file", name, |disk| {
            let Entry::File(id) = disk.entry(self.id, name)? else { return Err(Errno::LOOP) };
            Ok((id, disk.file(id)?.bytes.len() as u64))
        })?;
        Ok(Arc::new(Open { disk: self.disk.clone(), id, len, path: self.path.join(name) }))
    }

    fn list(&self) -> Result<Vec<DirEntry>> {
        self.perform("list", "", |disk| {
            let entry = |(name, entry): (&String, &Entry)| {
                let kind = match entry {
                    Entry::Directory(_) => EntryKind::Directory,
                    Entry::File(_) => EntryKind::File,
                    Entry::Link(_) => EntryKind::Link,
                };
                DirEntry { name: name.clone(), kind }
            };
            Ok(disk.dir(self.id)?.entries.iter().map(entry).collect())
        })
    }

    fn sync(&self) -> Result<()> {
        self.perform("sync", "", |disk| disk.sync_dir(self.id))
    }

    fn rename(&self, from: &str, to: &str, mode: Rename) -> Result<()> {
        let mode = match mode {
            Rename::NoReplace => Mode::NoReplace,
            Rename::Exchange => Mode::Exchange,
            Rename::Replace => Mode::Replace,
        };
        let done = self.perform("rename", to, |disk| disk.rename(self.id, from, to, mode));
        let unsupported = |e: Error| match e.os_code() == Some(Errno::INVAL.raw_os_error()) {
            true => e.with_kind(ErrorKind::Unsupported),
            false => e,
        };
        done.map_err(unsupported)
    }

    fn remove_file(&self, name: &str) -> Result<()> {
        self.perform("remove_file", name, |disk| disk.unlink(self.id, name))
    }

    fn remove_dir(&self, name: &str) -> Result<()> {
        self.perform("remove_dir", name, |disk| disk.remove_dir(self.id, name))
    }

    fn try_lock(&self, name: &str) -> Result<Option<Lock>> {
        self.lock("try_lock", name)
    }

    fn try_lock_self(&self) -> Result<Option<Lock>> {
        self.lock("try_lock_self", "")
    }

    fn create_link(&self, name: &str, target: &str) -> Result<()> {
        let entry = Entry::Link(target.to_owned());
        self.perform("create_link", name, |disk| disk.link(self.id, name, entry))
    }

    fn link_file(&self, from: &str, to: &str, name: &str) -> Result<()> {
        self.perform("link_file", name, |disk| disk.link_file(self.id, from, to, name))
    }

    fn read_link(&self, name: &str) -> Result<String> {
        let target =
            self.perform("read_link", name, |disk| match disk.entry(self.id, name)? {
                Entry::Link(target) => Ok(Some(target)),
                _ => Ok(None),
            })?;
        target.ok_or_else(|| Error::new(ErrorKind::NotFound, "no link").with_path(name))
    }
}

/// An open file.
struct Open {
    disk: Shared,
    id: Id,
    len: u64,
    path: PathBuf,
}

impl Open {
    fn perform<T>(
        &self,
        operation: &'static str,
        act: impl FnOnce(&mut Disk) -> Result<T, Errno>,
    ) -> Result<T> {
        let done = perform(operation, &self.path, "", &self.disk, act);
        done.map_err(|errno| failed(errno, operation, &self.path))
    }
}

impl WriteFile for Open {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.perform("write_at", |disk| {
            disk.writes += 1;
            disk.file(self.id)?.write(offset as usize, bytes);
            Ok(())
        })
    }

    fn reserve(&self, _: u64) -> Result<()> {
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<()> {
        let turn = machine::operation("fsync", &self.path, "");
        let mut disk = self.disk.lock();
        let done = match turn {
            Turn::Does => disk.sync_file(self.id),
            Turn::Dead => Err(Errno::IO),
            Turn::Fails(errno) | Turn::DoesAndFails(errno) => {
                if let Ok(file) = disk.file(self.id) {
                    machine::with_rng(|rng| file.sync_badly(rng));
                }
                Err(errno)
            }
        };
        done.map_err(|errno| failed(errno, "fsync", &self.path))
    }
}

impl ReadFile for Open {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let read = self.perform("read_at", |disk| {
            let from = disk.file(self.id)?.bytes.get(offset as usize..).unwrap_or_default();
            let len = from.len().min(out.len());
            out[..len].copy_from_slice(&from[..len]);
            Ok(len)
        })?;
        if read == out.len() {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Corrupt, "the file ends early").with_path(&self.path))
    }
}
