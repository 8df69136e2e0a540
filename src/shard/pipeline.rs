//! The writing side: slots of data files, which arrive in any order and are written in theirs.
//!
//! Whatever ends one side ends the other: the writer holds one end of each channel, so that a send
//! or receive of the filling side fails as soon as it is gone.

use std::any::Any;
use std::collections::BTreeMap;
use std::time::Duration;

use super::at_file;
use super::image::Image;
use super::pacing::Pacing;
use super::sums::BLOCK;
use super::writer::refusal;
use crate::clock;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::buffers::{BUFFER_BYTES, Buffer};
use crate::sabotage::{self, Defect};
use crate::storage::{Directory, WriteFile};
use crate::sync::{self, Receiver, Scope, Sender, sized};

/// Buffers of one save that are filled or written at once: together 32 MiB, whatever the size of the
/// state.
pub(super) const BUFFERS: usize = 4;
/// Bytes of the first slot where another thread writes: the sooner it is filled, the sooner the
/// disk has something to do. Each of the next ones is twice as long, up to a whole buffer.
pub(super) const FIRST_BYTES: u64 = 1 << 20;

/// A slot is at most so long, and unless it is a file's last one never shorter than a block.
pub(super) fn slot_bytes_max() -> usize {
    sized(BUFFER_BYTES, BLOCK)
}

/// Called with the number of bytes just written.
pub(super) type Progress<'a> = &'a (dyn Fn(u64) + Sync);

/// A part of a data file that is filled and written at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot {
    /// Its place among all slots of all files.
    pub(super) index: u64,
    /// Number of its file.
    pub(super) file: usize,
    pub(super) begin: u64,
    pub(super) len: usize,
}

/// The slots of files of these lengths, file after file, front to back.
pub(super) struct Slots {
    lens: Vec<u64>,
    next: Slot,
    /// How long the next one is if its file goes on.
    len: u64,
}

impl Slots {
    /// `first` is the length of the first one.
    pub(super) fn new(lens: Vec<u64>, first: u64) -> Self {
        Self { lens, next: Slot { index: 0, file: 0, begin: 0, len: 0 }, len: first }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.next.file >= self.lens.len()
    }
}

impl Iterator for Slots {
    type Item = Slot;

    fn next(&mut self) -> Option<Slot> {
        let file_len = *self.lens.get(self.next.file)?;
        let len = self.len.min(slot_bytes_max() as u64).min(file_len - self.next.begin);
        self.len = self.len.saturating_mul(2);
        let slot = Slot { len: usize::try_from(len).unwrap_or(BUFFER_BYTES), ..self.next };
        (self.next.index, self.next.begin) = (slot.index + 1, slot.begin + len);
        if self.next.begin >= file_len {
            (self.next.file, self.next.begin) = (slot.file + 1, 0);
        }
        Some(slot)
    }
}

/// What the filling side sends.
pub(super) enum Job {
    Write(Slot, Buffer),
    /// It has failed: nothing more is to be written.
    Stop,
}

/// What writing took.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct DiskTimes {
    pub(super) write: Duration,
    pub(super) fsync: Duration,
    pub(super) bytes: u64,
}

/// Writes files front to back, one after the other; the first error leaves one unfinished.
pub(super) struct Writer<'a> {
    dir: &'a dyn Directory,
    images: &'a [&'a Image],
    progress: Progress<'a>,
    open: Option<OpenFile<'a>>,
    finished: usize,
    pacing: Pacing,
    pub(super) times: DiskTimes,
}

impl<'a> Writer<'a> {
    pub(super) fn new(
        dir: &'a dyn Directory,
        images: &'a [&'a Image],
        progress: Progress<'a>,
    ) -> Self {
        let times = DiskTimes::default();
        let pacing = Pacing::new();
        Self { dir, images, progress, open: None, finished: 0, pacing, times }
    }

    /// Whether every file is finished.
    pub(super) fn is_done(&self) -> bool {
        self.finished == self.images.len()
    }

    /// Writes the next bytes of file number `file`; fsyncs and closes it after its last ones.
    ///
    /// # Errors
    /// As the operations of the directory, with the path of the file;
    /// [`InvalidInput`](ErrorKind::InvalidInput) for a number without a file.
    pub(super) fn write(&mut self, file: usize, bytes: &[u8]) -> Result<()> {
        let image = self.images.get(file).ok_or_else(|| refusal("bytes of no file"))?;
        let begun = clock::now();
        let mut file = match self.open.take() {
            Some(file) => file,
            None => OpenFile::create(self.dir, image.name(), image.len())?,
        };
        file.append(bytes, &mut self.pacing, self.progress)?;
        let written = clock::now();
        self.times.write += written.saturating_duration_since(begun);
        self.times.bytes += bytes.len() as u64;
        if file.end < image.len() {
            self.open = Some(file);
            return Ok(());
        }
        file.finish()?;
        self.pacing.next_file();
        self.times.fsync += clock::now().saturating_duration_since(written);
        self.finished += 1;
        Ok(())
    }

    /// Writes what comes until every file is finished, or the other side stops. Buffers go back
    /// to where somebody wants them. `starved` is told, after each write, how long that took, and
    /// how long there was nothing to write before it.
    ///
    /// # Errors
    /// As [`Writer::write`].
    pub(super) fn write_all(
        &mut self,
        todo: &Receiver<Job>,
        give_back: &Sender<Option<Buffer>>,
        mut starved: impl FnMut(Duration, Duration),
    ) -> Result<()> {
        let (mut early, mut next) = (BTreeMap::new(), 0);
        while !self.is_done() {
            let begun = clock::now();
            let Some((slot, mut buffer)) = next_slot(next, todo, &mut early) else { break };
            let waited = clock::now().saturating_duration_since(begun);
            let before = self.times.write;
            self.write(slot.file, buffer.bytes())?;
            next += 1;
            buffer.clear();
            // Fails only when the other side has left and wants no more buffers.
            let _ = give_back.send(Some(buffer));
            starved(self.times.write.saturating_sub(before), waited);
        }
        Ok(())
    }
}

/// Slot number `next`, once it is there; those that are there before it are `early`.
fn next_slot(
    next: u64,
    todo: &Receiver<Job>,
    early: &mut BTreeMap<u64, (Slot, Buffer)>,
) -> Option<(Slot, Buffer)> {
    loop {
        if let Some(found) = early.remove(&next) {
            return Some(found);
        }
        match todo.recv() {
            Ok(Job::Write(slot, buffer)) => early.insert(slot.index, (slot, buffer)),
            Ok(Job::Stop) | Err(_) => return None,
        };
    }
}

/// Runs `write` in a thread of its own, beside `fill`. What becomes of `write`, with
/// [`ErrorKind::Panic`] if it panicked; `None`, with neither of them begun, where there is no thread
/// to be had.
pub(super) fn beside<'scope, T: Send + 'scope>(
    scope: Scope<'scope, '_>,
    write: impl FnOnce() -> Result<T> + Send + 'scope,
    fill: impl FnOnce(),
) -> Option<Result<T>> {
    let writer = match sync::spawn_in(scope, "shard-writer", write) {
        Ok(writer) => writer,
        Err(error) => {
            tracing::debug!(%error, "no thread that writes; filling and writing take turns");
            return None;
        }
    };
    fill();
    Some(writer.join().unwrap_or_else(|panic| Err(panicked(&*panic))))
}

/// The error of a writer that panicked.
fn panicked(panic: &(dyn Any + Send)) -> Error {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    let message = format!("the writer thread panicked: {}", text.unwrap_or("no message"));
    Error::new(ErrorKind::Panic, message)
}

/// A file being written, front to back; the first error drops it.
pub(super) struct OpenFile<'a> {
    dir: &'a dyn Directory,
    name: &'a str,
    file: Box<dyn WriteFile>,
    end: u64,
}

impl<'a> OpenFile<'a> {
    pub(super) fn create(dir: &'a dyn Directory, name: &'a str, len: u64) -> Result<Self> {
        let file = dir.create_file(name).map_err(|e| at_file(e, dir, name))?;
        file.reserve(len).map_err(|e| at_file(e, dir, name))?;
        Ok(Self { dir, name, file, end: 0 })
    }

    pub(super) fn append(
        &mut self,
        bytes: &[u8],
        pacing: &mut Pacing,
        progress: Progress<'_>,
    ) -> Result<()> {
        let written = pacing.write(self.file.as_ref(), self.end, bytes, progress);
        written.map_err(|e| at_file(e, self.dir, self.name))?;
        self.end += bytes.len() as u64;
        Ok(())
    }

    pub(super) fn finish(self) -> Result<()> {
        let Self { dir, name, file, end } = self;
        sabotage::finished(Defect::DataNotSynced, || file.finish())
            .map_err(|e| at_file(e, dir, name))?;
        tracing::debug!(file = name, bytes = end, "data file written");
        Ok(())
    }
}

/// Writes a small file whole: create, write, fsync.
///
/// # Errors
/// As the operations of `dir`.
pub(super) fn write_whole(
    dir: &dyn Directory,
    name: &str,
    bytes: &[u8],
    progress: Progress<'_>,
) -> Result<()> {
    let mut file = OpenFile::create(dir, name, bytes.len() as u64)?;
    file.append(bytes, &mut Pacing::new(), progress)?;
    file.finish()
}
