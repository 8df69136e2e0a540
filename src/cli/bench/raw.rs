//! The limit that a save is held against: the same bytes from the same memory into one file, in
//! large blocks past the page cache, copied by one thread while another one writes.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};
use rustix::fs::{FallocateFlags, Mode, OFlags};
use rustix::io::Errno;

use crate::error::{Error, ErrorKind, Result};
use crate::group::Progress;
use crate::memory::touched;

/// Bytes of one write or read.
pub(super) const BLOCK: usize = 8 << 20;
/// Blocks that are under way.
pub(super) const DEPTH: usize = 3;
/// What direct I/O asks of memory, offset and length.
pub(super) const ALIGNMENT: usize = 4096;

/// A block at an address that direct I/O takes; touched, and used again and again.
pub(super) struct Block {
    memory: Vec<u8>,
    begin: usize,
}

impl Block {
    fn new() -> Result<Self> {
        let memory = touched((BLOCK + ALIGNMENT) as u64)?;
        let begin = memory.as_ptr().align_offset(ALIGNMENT);
        if begin > ALIGNMENT {
            return Err(Error::new(ErrorKind::Unsupported, "memory cannot be aligned"));
        }
        Ok(Self { memory, begin })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.memory.get(self.begin..self.begin + BLOCK).unwrap_or_default()
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        self.memory.get_mut(self.begin..self.begin + BLOCK).unwrap_or_default()
    }
}

/// The blocks of one rank.
pub(super) struct Blocks(pub(super) Vec<Block>);

impl Blocks {
    /// # Errors
    /// [`ErrorKind::Storage`] where memory is short.
    pub(super) fn new() -> Result<Self> {
        (0..DEPTH).map(|_| Block::new()).collect::<Result<_>>().map(Self)
    }
}

/// A raw file, which goes when this is dropped.
pub(super) struct RawFile {
    path: PathBuf,
    pub(super) is_direct: bool,
}

impl Drop for RawFile {
    fn drop(&mut self) {
        // The next run under this name takes it away.
        drop(fs::remove_file(&self.path));
    }
}

/// Writes `share` to `path`, durably.
///
/// # Errors
/// [`ErrorKind::Storage`]; nothing is left behind then.
pub(super) fn write(
    blocks: &mut Blocks,
    path: &Path,
    share: &[&[u8]],
    progress: &Progress,
) -> Result<RawFile> {
    let failed = |e: io::Error| Error::io(&e, "writing a raw file", path);
    match write_as(blocks, path, share, progress, true) {
        // What a file system says that has no direct I/O.
        Err(e) if e.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
            write_as(blocks, path, share, progress, false).map_err(failed)
        }
        written => written.map_err(failed),
    }
}

fn write_as(
    blocks: &mut Blocks,
    path: &Path,
    share: &[&[u8]],
    progress: &Progress,
    is_direct: bool,
) -> io::Result<RawFile> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let extra = if is_direct { OFlags::DIRECT } else { OFlags::empty() };
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | extra;
    let mode = Mode::RUSR | Mode::WUSR;
    let made = RawFile { path: path.to_owned(), is_direct };
    let file = File::from(rustix::fs::open(path, flags, mode)?);
    let len: u64 = share.iter().map(|part| part.len() as u64).sum();
    if len > 0 {
        reserve(&file, len.next_multiple_of(ALIGNMENT as u64))?;
    }
    pump(&file, blocks, share, progress)?;
    file.set_len(len)?;
    file.sync_all()?;
    if let Some(parent) = path.parent() {
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        File::open(parent)?.sync_all()?;
    }
    Ok(made)
}

/// Some storages cannot, and are none the worse for it here.
fn reserve(file: &File, len: u64) -> io::Result<()> {
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, len) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
        done => Ok(done?),
    }
}

/// Copies into blocks here, and writes them in a thread.
fn pump(file: &File, blocks: &mut Blocks, share: &[&[u8]], progress: &Progress) -> io::Result<()> {
    let (give_free, free) = bounded(DEPTH);
    let (give_full, full) = bounded::<(Block, usize)>(DEPTH);
    for block in blocks.0.drain(..) {
        // There is room for all of them.
        drop(give_free.send(block));
    }
    let written = thread::scope(|scope| {
        let give_back = give_free.clone();
        let writer = thread::Builder::new()
            .spawn_scoped(scope, move || write_blocks(file, &full, &give_back, progress))?;
        pack(share, &free, &give_full);
        drop(give_full);
        writer.join().unwrap_or_else(|_| Err(io::Error::other("the writing thread panicked")))
    });
    drop(give_free);
    blocks.0.extend(free.try_iter());
    written
}

/// Ends early if nobody takes the blocks any more: the writer knows why.
fn pack(share: &[&[u8]], free: &Receiver<Block>, full: &Sender<(Block, usize)>) {
    let Ok(mut block) = free.recv() else { return };
    let mut filled = 0;
    for part in share {
        let mut rest = *part;
        while !rest.is_empty() {
            let count = rest.len().min(BLOCK - filled);
            let (now, later) = rest.split_at(count);
            block.bytes_mut()[filled..filled + count].copy_from_slice(now);
            (rest, filled) = (later, filled + count);
            if filled == BLOCK {
                if full.send((block, filled)).is_err() {
                    return;
                }
                let Ok(next) = free.recv() else { return };
                (block, filled) = (next, 0);
            }
        }
    }
    // The writer gives it back like the others, and writes nothing of an empty one.
    drop(full.send((block, filled)));
}

fn write_blocks(
    file: &File,
    full: &Receiver<(Block, usize)>,
    free: &Sender<Block>,
    progress: &Progress,
) -> io::Result<()> {
    let mut at = 0;
    for (block, filled) in full {
        let len = filled.next_multiple_of(ALIGNMENT);
        let mut rest = block.bytes().get(..len).unwrap_or_default();
        while !rest.is_empty() {
            let count = match rustix::io::pwrite(file, rest, at) {
                Err(Errno::INTR) => continue,
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                count => count?,
            };
            rest = rest.get(count..).unwrap_or_default();
            at += count as u64;
        }
        progress.add(len as u64);
        drop(free.send(block));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_raw_file_holds_the_bytes_and_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".x.bench-raw-0");
        let bytes: Vec<u8> = (0..BLOCK + 12_345).map(|i| u8::try_from(i % 251).unwrap()).collect();
        let share = [&bytes[..7], &bytes[7..BLOCK - 1], &bytes[BLOCK - 1..]];
        let mut blocks = Blocks::new().unwrap();
        // What an interrupted run has left is taken away, once for each file system's way.
        for is_direct in [true, false] {
            fs::write(&path, "left").unwrap();
            let made = write_as(&mut blocks, &path, &share, &Progress::default(), is_direct);
            match made {
                Err(e) if is_direct => assert_eq!(e.kind(), io::ErrorKind::InvalidInput),
                made => {
                    let made = made.unwrap();
                    assert!(fs::read(&path).unwrap() == bytes);
                    drop(made);
                }
            }
            assert!(!path.exists());
            assert_eq!(blocks.0.len(), DEPTH);
        }
        let made = write(&mut blocks, &path, &[], &Progress::default()).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().len(), 0);
        drop(made);
        let nowhere = dir.path().join("nowhere/x");
        assert!(write(&mut blocks, &nowhere, &share, &Progress::default()).is_err());
    }
}
