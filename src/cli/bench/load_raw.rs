//! The limit that a load is held against: as many bytes of the same files into the same memory.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::path::{Path, PathBuf};
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::raw::{ALIGNMENT, BLOCK, Block, Blocks, DEPTH};
use crate::catalog::Found;
use crate::error::{Error, Result};
use crate::group::Progress;

/// Most buffers of one `preadv`.
const BUFFERS_MAX: usize = 1024;

/// The data of the files of a checkpoint, one after the other.
pub(super) struct Data {
    regions: Vec<Region>,
    bytes: u64,
}

/// The data of one file: it ends where the file ends.
struct Region {
    path: PathBuf,
    begin: u64,
    end: u64,
}

impl Data {
    pub(super) fn of(found: &Found) -> Self {
        let region = |file: &crate::manifest::DataFile| Region {
            path: found.dir.path().join(&file.name),
            begin: file.data_start,
            end: file.len,
        };
        let regions: Vec<Region> = found.manifest.data_files().iter().map(region).collect();
        let bytes = regions.iter().map(|region| region.end.saturating_sub(region.begin)).sum();
        Self { regions, bytes }
    }

    /// Where a rank begins that reads so many bytes, part `index` of `count`.
    pub(super) fn begin_of(&self, index: u64, count: u64, own: u64) -> u64 {
        let begin = u128::from(self.bytes) * u128::from(index) / u128::from(count.max(1));
        let begin = u64::try_from(begin).unwrap_or(u64::MAX).min(self.bytes.saturating_sub(own));
        begin - begin % ALIGNMENT as u64
    }

    /// What is to be read of each file, from `begin` on.
    fn from(&self, begin: u64) -> impl Iterator<Item = (&Path, u64, u64)> {
        let mut skip = begin;
        self.regions.iter().filter_map(move |region| {
            let len = region.end.saturating_sub(region.begin);
            let skipped = skip.min(len);
            skip -= skipped;
            let from = region.begin + skipped - (region.begin + skipped) % ALIGNMENT as u64;
            (skipped < len).then_some((region.path.as_path(), from, region.end))
        })
    }

    /// Fills `memory` by `read`, with the page cache, in one thread.
    ///
    /// # Errors
    /// [`ErrorKind::Storage`](crate::ErrorKind::Storage).
    pub(super) fn read(&self, begin: u64, memory: Vec<&mut [u8]>, p: &Progress) -> Result<()> {
        let mut buffers: Vec<IoSliceMut<'_>> = memory.into_iter().map(IoSliceMut::new).collect();
        let mut rest = buffers.as_mut_slice();
        for (path, from, _) in self.from(begin) {
            let failed = |e: io::Error| Error::io(&e, "reading", path);
            let file = File::open(path).map_err(failed)?;
            let mut at = from;
            loop {
                // Empty ones would look like the end of the file.
                IoSliceMut::advance_slices(&mut rest, 0);
                let batch = rest.len().min(BUFFERS_MAX);
                if batch == 0 {
                    return Ok(());
                }
                match rustix::io::preadv(&file, &mut rest[..batch], at) {
                    Err(Errno::INTR) => {}
                    Ok(0) => break,
                    Ok(count) => {
                        IoSliceMut::advance_slices(&mut rest, count);
                        at += count as u64;
                        p.add(count as u64);
                    }
                    Err(errno) => return Err(failed(errno.into())),
                }
            }
        }
        Ok(())
    }

    /// Fills `memory` past the page cache: one thread reads blocks, this one copies them out.
    /// `false` where the file system cannot.
    ///
    /// # Errors
    /// [`ErrorKind::Storage`](crate::ErrorKind::Storage).
    pub(super) fn read_direct(
        &self,
        blocks: &mut Blocks,
        begin: u64,
        memory: Vec<&mut [u8]>,
        progress: &Progress,
    ) -> Result<bool> {
        let wanted = memory.iter().map(|part| part.len() as u64).sum();
        let (give_free, free) = bounded(DEPTH);
        let (give_full, full) = bounded::<(Block, usize)>(DEPTH);
        for block in blocks.free.drain(..) {
            // There is room for all of them.
            drop(give_free.send(block));
        }
        let done = thread::scope(|scope| {
            let free = &free;
            let reader = thread::Builder::new()
                .spawn_scoped(scope, move || self.blocks(begin, wanted, free, &give_full))
                .map_err(|e| Error::io(&e, "starting a thread", Path::new("")))?;
            unpack(memory, &full, &give_free, progress);
            let panicked = |_| Err(Error::io(&io::Error::other("panic"), "reading", "".as_ref()));
            reader.join().unwrap_or_else(panicked)
        });
        blocks.free.extend(free.try_iter());
        done
    }

    fn blocks(
        &self,
        begin: u64,
        wanted: u64,
        free: &Receiver<Block>,
        full: &Sender<(Block, usize)>,
    ) -> Result<bool> {
        let mut left = wanted;
        for (path, from, end) in self.from(begin) {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::DIRECT;
            let file = match rustix::fs::open(path, flags, Mode::empty()) {
                Err(Errno::INVAL) => return Ok(false),
                opened => opened.map_err(|e| Error::io(&e.into(), "opening", path))?,
            };
            let mut at = from;
            while at < end && left > 0 {
                let Ok(mut block) = free.recv() else { return Ok(true) };
                let count = usize::try_from((end - at).min(left)).unwrap_or(BLOCK).min(BLOCK);
                let room = count.next_multiple_of(ALIGNMENT);
                let into = block.bytes_mut().get_mut(..room).unwrap_or_default();
                let read = rustix::io::pread(&file, into, at).map(|read| read.min(count));
                let got = read.unwrap_or_default();
                (at, left) = (at + got as u64, left - got as u64);
                // An empty one as well: it is given back like the others.
                let is_wanted = full.send((block, got)).is_ok();
                match read {
                    Err(Errno::INVAL) => return Ok(false),
                    Err(errno) => return Err(Error::io(&errno.into(), "reading", path)),
                    // It was longer a moment ago.
                    Ok(0) => return Ok(true),
                    Ok(_) if !is_wanted => return Ok(true),
                    Ok(_) => {}
                }
            }
        }
        Ok(true)
    }
}

fn unpack(
    memory: Vec<&mut [u8]>,
    full: &Receiver<(Block, usize)>,
    free: &Sender<Block>,
    progress: &Progress,
) {
    let mut current: Option<(Block, usize, usize)> = None;
    for mut part in memory {
        while !part.is_empty() {
            let (block, from, len) = match current.take() {
                Some(current) => current,
                None => match full.recv() {
                    Ok((block, len)) => (block, 0, len),
                    Err(_) => return,
                },
            };
            let count = part.len().min(len - from);
            let (now, later) = part.split_at_mut(count);
            now.copy_from_slice(&block.bytes()[from..from + count]);
            part = later;
            if from + count == len {
                progress.add(len as u64);
                drop(free.send(block));
            } else {
                current = Some((block, from + count, len));
            }
        }
    }
    if let Some((block, ..)) = current {
        drop(free.send(block));
    }
}

#[cfg(test)]
mod tests {
    use super::super::raw::tests::misplaced;
    use super::*;

    /// Two files with something before their data; what lies from a place on is read.
    #[test]
    fn both_ways_read_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let bytes = |len: usize, step: usize| -> Vec<u8> {
            (0..len).map(|i| u8::try_from(i * step % 253).unwrap()).collect()
        };
        let contents = [bytes(4096 + BLOCK + 5000, 3), bytes(4096 + 10_000, 5)];
        let region = |(name, content): (&str, &Vec<u8>)| {
            let path = dir.path().join(name);
            std::fs::write(&path, content).unwrap();
            Region { path, begin: 4096, end: content.len() as u64 }
        };
        let regions: Vec<Region> = ["a", "b"].into_iter().zip(&contents).map(region).collect();
        let data = Data { regions, bytes: (BLOCK + 15_000) as u64 };
        let whole = [&contents[0][4096..], &contents[1][4096..]].concat();
        let (mut blocks, progress) = (Blocks::new().unwrap(), Progress::default());
        for (begin, own) in [(0, BLOCK + 15_000), (4096, 9000), (BLOCK, 5000)] {
            let (mut first, mut second) = (vec![0; own], vec![0; own]);
            let (head, tail) = first.split_at_mut(own / 3);
            data.read(begin as u64, vec![head, &mut [], tail], &progress).unwrap();
            assert!(first == whole[begin..begin + own], "{begin}");
            let (head, tail) = second.split_at_mut(own / 3);
            let memory: Vec<&mut [u8]> = vec![head, &mut [], tail];
            if data.read_direct(&mut blocks, begin as u64, memory, &progress).unwrap() {
                assert!(second == first, "{begin}");
            }
        }
        assert_eq!(blocks.free.len(), DEPTH);
        assert_eq!(data.begin_of(1, 2, 100), (BLOCK / 2 + 7500 - 7500 % 4096) as u64);
        assert!(data.begin_of(7, 2, data.bytes) == 0);
    }

    #[test]
    fn a_read_that_is_refused_or_ends_early_gives_every_block_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let content: Vec<u8> = (0..=250u8).cycle().take(BLOCK + 5000).collect();
        std::fs::write(&path, &content).unwrap();
        let data = |end: usize| {
            let end = end as u64;
            Data { regions: vec![Region { path: path.clone(), begin: 0, end }], bytes: end }
        };
        let (mut blocks, progress) = (misplaced(), Progress::default());
        let mut memory = vec![0; content.len()];
        for _ in 0..2 {
            // A file system without sectors reads wherever they lie.
            let done =
                data(content.len()).read_direct(&mut blocks, 0, vec![&mut memory], &progress);
            assert!(!done.unwrap() || memory == content);
            assert_eq!(blocks.free.len(), DEPTH);
        }
        let (mut blocks, mut more) = (Blocks::new().unwrap(), vec![0; 4 * BLOCK]);
        for _ in 0..2 {
            let done = data(4 * BLOCK).read_direct(&mut blocks, 0, vec![&mut more], &progress);
            assert!(!done.unwrap() || more.starts_with(&content));
            assert_eq!(blocks.free.len(), DEPTH);
        }
    }
}
