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

/// The blocks of one rank. All of them are there before and after each measurement, also one that
/// failed: with fewer the limit would be a lower one.
pub(super) struct Blocks {
    pub(super) free: Vec<Block>,
    /// Whether no file system has refused direct writes so far.
    is_direct: bool,
}

impl Blocks {
    /// # Errors
    /// [`ErrorKind::Storage`] where memory is short.
    pub(super) fn new() -> Result<Self> {
        let free = (0..DEPTH).map(|_| Block::new()).collect::<Result<_>>()?;
        Ok(Self { free, is_direct: true })
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
    if blocks.is_direct {
        match write_as(blocks, path, share, progress, true) {
            // What a file system says that has no direct I/O: no later round tries it again.
            Err(e) if e.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                blocks.is_direct = false;
            }
            written => return written.map_err(failed),
        }
    }
    write_as(blocks, path, share, progress, false).map_err(failed)
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
    for block in blocks.free.drain(..) {
        // There is room for all of them.
        drop(give_free.send(block));
    }
    let written = thread::scope(|scope| {
        let full = &full;
        // It alone gives blocks back: whoever waits for one learns when there is none to come.
        let writer = thread::Builder::new()
            .spawn_scoped(scope, move || write_blocks(file, full, &give_free, progress))?;
        pack(share, &free, &give_full);
        drop(give_full);
        writer.join().unwrap_or_else(|_| Err(io::Error::other("the writing thread panicked")))
    });
    blocks.free.extend(free.try_iter());
    blocks.free.extend(full.try_iter().map(|(block, _)| block));
    written
}

/// Ends early if nobody writes the blocks any more: the writer knows why.
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
        let part = block.bytes().get(..filled.next_multiple_of(ALIGNMENT)).unwrap_or_default();
        let (len, written) = (part.len() as u64, write_at(file, part, at));
        drop(free.send(block));
        written?;
        progress.add(len);
        at += len;
    }
    Ok(())
}

fn write_at(file: &File, mut rest: &[u8], mut at: u64) -> io::Result<()> {
    while !rest.is_empty() {
        let count = match rustix::io::pwrite(file, rest, at) {
            Err(Errno::INTR) => continue,
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            count => count?,
        };
        rest = rest.get(count..).unwrap_or_default();
        at += count as u64;
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests;
