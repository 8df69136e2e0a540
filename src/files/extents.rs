//! Files of which only the data of tensors is shown.
//!
//! What other programs write around their tensors is not ours to fill with pieces. Here each file
//! is shown as the stretches that hold tensors, one after the other, so that all that reads data
//! files reads these as well. Where the format has a sum over a stretch, it is checked once all of
//! the stretch has been read, in whatever order and by whichever thread.

mod gather;
mod sums;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use self::gather::Gathered;
pub(crate) use self::gather::{GATHERED_BYTES_MAX, Strided};
use self::sums::Sums;
use crate::error::{Error, ErrorKind, Result};
use crate::pytorch::Member;
use crate::storage::{DirEntry, Directory, EntryKind, Lock, ReadFile, Rename, WriteFile};

/// Data of a tensor.
#[derive(Debug, Clone)]
pub(crate) struct Stretch {
    /// How long it is shown.
    pub(crate) bytes: u64,
    pub(crate) data: Data,
}

/// Where the bytes of a stretch are.
#[derive(Debug, Clone)]
pub(crate) enum Data {
    /// In a part of the file that has a sum, so far into it.
    Rows(Member, u64),
    /// All over a part of the file, from which they are gathered.
    Strided(Member, Strided),
    /// Nowhere in the file: made of something else that it says.
    Made(Vec<u8>),
}

impl Stretch {
    /// Where it is in the file, for an order.
    pub(crate) fn place(&self) -> u64 {
        match &self.data {
            Data::Rows(member, begin) => member.begin + begin,
            Data::Strided(member, _) => member.begin,
            Data::Made(_) => 0,
        }
    }
}

impl Data {
    fn member(&self) -> Option<&Member> {
        match self {
            Self::Rows(member, _) | Self::Strided(member, _) => Some(member),
            Self::Made(_) => None,
        }
    }
}

/// A file as it is shown.
#[derive(Debug)]
pub(crate) struct Extent {
    name: String,
    /// Its length when it was looked at.
    file_bytes: u64,
    stretches: Vec<Stretch>,
    /// Where each is shown.
    starts: Vec<u64>,
    bytes: u64,
}

impl Extent {
    /// What is shown of a file `file_bytes` long, in this order.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] if the sum of lengths overflows.
    pub(crate) fn new(name: &str, file_bytes: u64, stretches: Vec<Stretch>) -> Result<Self> {
        let (mut starts, mut bytes) = (Vec::with_capacity(stretches.len()), 0u64);
        for stretch in &stretches {
            starts.push(bytes);
            let sum = bytes.checked_add(stretch.bytes).filter(|sum| i64::try_from(*sum).is_ok());
            bytes = sum.ok_or_else(|| Error::new(ErrorKind::Corrupt, "its tensors overflow"))?;
        }
        Ok(Self { name: name.to_owned(), file_bytes, stretches, starts, bytes })
    }

    /// Its length as it is shown.
    pub(crate) fn len(&self) -> u64 {
        self.bytes
    }

    /// Where each stretch is shown.
    pub(crate) fn starts(&self) -> &[u64] {
        &self.starts
    }
}

/// A directory of such files, to be read and nothing else.
#[derive(Debug)]
pub(crate) struct ExtentDirectory {
    inner: Arc<dyn Directory>,
    files: BTreeMap<String, Arc<Shown>>,
}

#[derive(Debug)]
struct Shown {
    extent: Extent,
    sums: Sums,
    gathered: Gathered,
}

impl ExtentDirectory {
    pub(crate) fn new(inner: Arc<dyn Directory>, extents: Vec<Extent>) -> Self {
        let shown = |extent: Extent| {
            let name = extent.name.clone();
            (name, Arc::new(Shown { extent, sums: Sums::default(), gathered: Gathered::default() }))
        };
        Self { inner, files: extents.into_iter().map(shown).collect() }
    }

    /// Reads and checks what a save of all that is shown would not: members of which no tensor is
    /// the whole, or that several lie in, since parts that overlap have no sum; and, of several
    /// `shares`, those of this number, whose tensors others may read in parts.
    ///
    /// # Errors
    /// [`ErrorKind::Corrupt`] for a wrong sum; those of reading.
    pub(crate) fn check_members(&self, share: usize, shares: usize) -> Result<()> {
        let members = self.files.values().flat_map(|shown| {
            let mut own: BTreeMap<u64, (Member, bool)> = BTreeMap::new();
            for Stretch { bytes, data } in &shown.extent.stretches {
                let Some(member) = data.member() else { continue };
                let is_whole = matches!(data, Data::Strided(..)) || *bytes == member.bytes;
                let is_alone = !own.contains_key(&member.begin);
                own.insert(member.begin, (*member, is_whole && is_alone));
            }
            own.into_values().map(move |(member, is_read)| (shown, member, is_read))
        });
        for (number, (shown, member, is_read)) in members.enumerate() {
            if number % shares.max(1) == share && (shares > 1 || !is_read) {
                shown.open(&self.inner)?.check(&member)?;
            }
        }
        Ok(())
    }

    fn refused<T>(&self) -> Result<T> {
        let message = "files of another program are read and never changed";
        Err(Error::new(ErrorKind::Unsupported, message).with_path(self.inner.path()))
    }
}

impl Shown {
    fn open(self: &Arc<Self>, dir: &Arc<dyn Directory>) -> Result<ExtentFile> {
        let file = dir.open_file(&self.extent.name)?;
        let path = dir.path().join(&self.extent.name);
        if file.len() != self.extent.file_bytes {
            let (now, before) = (file.len(), self.extent.file_bytes);
            let message = format!("it has {now} bytes, it had {before} when it was looked at");
            return Err(Error::new(ErrorKind::Corrupt, message).with_path(path));
        }
        Ok(ExtentFile { shown: self.clone(), file, path: path.into() })
    }
}

/// One of them, open.
struct ExtentFile {
    shown: Arc<Shown>,
    file: Arc<dyn ReadFile>,
    path: Arc<Path>,
}

impl ExtentFile {
    /// Fills `out` with what a stretch has from `skip` on.
    fn read_stretch(&self, stretch: &Stretch, skip: u64, out: &mut [u8]) -> Result<()> {
        match &stretch.data {
            Data::Rows(member, begin) => {
                let within = begin + skip;
                self.file.read_at(member.begin + within, out)?;
                self.shown.sums.note(member, within, out)
            }
            Data::Strided(member, strided) => {
                let load = || self.whole(member);
                self.shown.gathered.read(member.begin, load, strided, skip, out)
            }
            Data::Made(bytes) => {
                let begin = usize::try_from(skip).unwrap_or(usize::MAX);
                let made = bytes.get(begin..begin.saturating_add(out.len()));
                let made = made.ok_or_else(|| Error::new(ErrorKind::Corrupt, "beyond its end"))?;
                out.copy_from_slice(made);
                Ok(())
            }
        }
    }

    /// All of a member, checked.
    fn whole(&self, member: &Member) -> Result<Vec<u8>> {
        let mut bytes = crate::memory::zeroed(member.bytes)?;
        self.file.read_at(member.begin, &mut bytes)?;
        self.shown.sums.note(member, 0, &bytes)?;
        Ok(bytes)
    }

    /// As [`ExtentFile::whole`], a part at a time.
    fn check(&self, member: &Member) -> Result<()> {
        const PART: u64 = 4 << 20;
        let (mut hasher, mut at) = (crc32fast::Hasher::new(), 0);
        let mut part = crate::memory::zeroed(member.bytes.min(PART))?;
        while at < member.bytes {
            let len = usize::try_from((member.bytes - at).min(PART)).unwrap_or_default();
            let part = part.get_mut(..len).unwrap_or_default();
            self.file.read_at(member.begin + at, part).map_err(|e| self.at(e))?;
            hasher.update(part);
            at += len as u64;
        }
        sums::compare(member, hasher.finalize()).map_err(|e| self.at(e))
    }

    fn at(&self, error: Error) -> Error {
        if error.path().is_some() { error } else { error.with_path(&*self.path) }
    }
}

impl ReadFile for ExtentFile {
    fn len(&self) -> u64 {
        self.shown.extent.bytes
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        let Extent { stretches, starts, bytes, .. } = &self.shown.extent;
        let end = offset.checked_add(out.len() as u64).filter(|end| end <= bytes);
        end.ok_or_else(|| {
            let message = format!("{} bytes beyond the end of its tensors", out.len());
            self.at(Error::new(ErrorKind::Corrupt, message).with_offset(offset))
        })?;
        // Of several that begin here all but the last are empty.
        let first = starts.partition_point(|start| *start <= offset).saturating_sub(1);
        let (mut rest, mut at) = (out, offset);
        for (stretch, start) in stretches.iter().zip(starts).skip(first) {
            if rest.is_empty() {
                break;
            }
            let skip = at - start;
            let left = usize::try_from(stretch.bytes - skip).unwrap_or(usize::MAX);
            let (part, after) = rest.split_at_mut(left.min(rest.len()));
            if !part.is_empty() {
                self.read_stretch(stretch, skip, part).map_err(|e| self.at(e))?;
            }
            at += part.len() as u64;
            rest = after;
        }
        Ok(())
    }
}

impl Directory for ExtentDirectory {
    fn path(&self) -> &Path {
        self.inner.path()
    }

    fn create_dir(&self, _name: &str) -> Result<Arc<dyn Directory>> {
        self.refused()
    }

    fn open_dir(&self, name: &str) -> Result<Arc<dyn Directory>> {
        let error = Error::new(ErrorKind::NotFound, "no directory among files of tensors");
        Err(error.with_path(self.inner.path().join(name)))
    }

    fn create_file(&self, _name: &str) -> Result<Box<dyn WriteFile>> {
        self.refused()
    }

    fn open_file(&self, name: &str) -> Result<Arc<dyn ReadFile>> {
        let shown = self.files.get(name).ok_or_else(|| {
            let error = Error::new(ErrorKind::NotFound, "no such file of tensors");
            error.with_path(self.inner.path().join(name))
        })?;
        Ok(Arc::new(shown.open(&self.inner)?))
    }

    fn list(&self) -> Result<Vec<DirEntry>> {
        let entry = |name: &String| DirEntry { name: name.clone(), kind: EntryKind::File };
        Ok(self.files.keys().map(entry).collect())
    }

    fn sync(&self) -> Result<()> {
        self.refused()
    }

    fn rename(&self, _from: &str, _to: &str, _mode: Rename) -> Result<()> {
        self.refused()
    }

    fn remove_file(&self, _name: &str) -> Result<()> {
        self.refused()
    }

    fn remove_dir(&self, _name: &str) -> Result<()> {
        self.refused()
    }

    fn try_lock(&self, _name: &str) -> Result<Option<Lock>> {
        self.refused()
    }

    fn try_lock_self(&self) -> Result<Option<Lock>> {
        self.refused()
    }

    fn create_link(&self, _name: &str, _target: &str) -> Result<()> {
        self.refused()
    }

    fn read_link(&self, name: &str) -> Result<String> {
        self.open_dir(name).map(|_| String::new())
    }
}
