//! A writer thread behind a few reused buffers: one side copies and hashes while the other writes.
//!
//! Whatever ends one side ends the other: each holds one end of both channels, so a send or
//! receive fails as soon as the other side is gone, and the error of the side that failed first
//! is what the caller gets.

use std::any::Any;
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use super::at_file;
use crate::clock;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::buffers::Buffer;
use crate::sabotage::{self, Defect};
use crate::storage::{Directory, WriteFile};

/// Together 32 MiB, whatever the size of the state.
const BUFFERS: usize = 4;

/// Called with the number of bytes just written.
pub(super) type Progress<'a> = &'a (dyn Fn(u64) + Sync);

/// Why the producing side stops.
#[derive(Debug)]
pub(super) enum Stop {
    /// It failed itself.
    Failed(Error),
    /// The writer thread is gone and knows why.
    WriterGone,
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

enum Job {
    Begin { name: String, len: u64 },
    Write(Buffer),
    Finish,
}

/// The producing side. Every file is written front to back.
pub(super) struct Pipe {
    jobs: Sender<Job>,
    free: Receiver<Buffer>,
    current: Option<Buffer>,
    buffers: usize,
    buffers_max: usize,
}

impl Pipe {
    fn new(jobs: Sender<Job>, free: Receiver<Buffer>, buffers_max: usize) -> Self {
        Self { jobs, free, current: None, buffers: 0, buffers_max }
    }

    /// Begins a file of `len` bytes.
    pub(super) fn begin(&mut self, name: &str, len: u64) -> Result<(), Stop> {
        self.send(Job::Begin { name: name.to_owned(), len })
    }

    /// Room for the next bytes of the file: at least one, at most `wanted`. All of it is written.
    pub(super) fn room(&mut self, wanted: u64) -> Result<&mut [u8], Stop> {
        if self.current.as_ref().is_some_and(|buffer| buffer.room() == 0) {
            self.flush()?;
        }
        let buffer = match self.current.take() {
            Some(buffer) => buffer,
            None => self.empty_buffer()?,
        };
        let buffer = self.current.insert(buffer);
        let len = usize::try_from(wanted).unwrap_or(usize::MAX).min(buffer.room());
        Ok(buffer.take(len))
    }

    /// Writes the next bytes of the file, which are filled already.
    #[allow(dead_code, reason = "for saves beside training")]
    pub(super) fn give(&mut self, buffer: Buffer) -> Result<(), Stop> {
        self.flush()?;
        self.send(Job::Write(buffer))
    }

    /// Ends the file: fsync and close.
    pub(super) fn finish(&mut self) -> Result<(), Stop> {
        self.flush()?;
        self.send(Job::Finish)
    }

    fn flush(&mut self) -> Result<(), Stop> {
        self.current.take().map_or(Ok(()), |buffer| self.send(Job::Write(buffer)))
    }

    fn empty_buffer(&mut self) -> Result<Buffer, Stop> {
        if let Ok(buffer) = self.free.try_recv() {
            return Ok(buffer);
        }
        if self.buffers < self.buffers_max {
            self.buffers += 1;
            return Ok(Buffer::new()?);
        }
        self.free.recv().map_err(|_| Stop::WriterGone)
    }

    fn send(&self, job: Job) -> Result<(), Stop> {
        self.jobs.send(job).map_err(|_| Stop::WriterGone)
    }
}

/// Runs `produce` with a pipe into files of `dir`, and returns once all it gave is written and
/// every finished file is durable.
///
/// # Errors
/// The error of `produce`, else that of the writer thread ([`ErrorKind::Panic`] if it panicked).
pub(super) fn run<T>(
    dir: &dyn Directory,
    progress: Progress<'_>,
    produce: impl FnOnce(&mut Pipe) -> Result<T, Stop>,
) -> Result<T> {
    if clock::is_simulated() {
        return one_after_the_other(dir, progress, produce);
    }
    let (jobs, todo) = bounded(BUFFERS);
    let (give_back, free) = bounded(BUFFERS);
    thread::scope(|scope| {
        let writer = thread::Builder::new()
            .name("shard-writer".to_owned())
            .spawn_scoped(scope, move || write_all(dir, progress, &todo, &give_back))
            .map_err(|e| Error::io(&e, "starting the writer thread", dir.path()))?;
        let mut pipe = Pipe::new(jobs, free, BUFFERS);
        let produced = produce(&mut pipe);
        drop(pipe);
        let written = writer.join().unwrap_or_else(|panic| Err(panicked(&*panic)));
        ended(produced, written)
    })
}

/// The same without a thread, which would escape a simulation: all is produced, then written.
fn one_after_the_other<T>(
    dir: &dyn Directory,
    progress: Progress<'_>,
    produce: impl FnOnce(&mut Pipe) -> Result<T, Stop>,
) -> Result<T> {
    let ((jobs, todo), (give_back, free)) = (unbounded(), unbounded());
    let mut pipe = Pipe::new(jobs, free, usize::MAX);
    let produced = produce(&mut pipe);
    drop(pipe);
    ended(produced, write_all(dir, progress, &todo, &give_back))
}

/// What both sides together came to.
fn ended<T>(produced: Result<T, Stop>, written: Result<()>) -> Result<T> {
    match produced {
        Ok(value) => written.map(|()| value),
        Err(Stop::Failed(error)) => Err(error),
        Err(Stop::WriterGone) => Err(written.err().unwrap_or_else(ended_early)),
    }
}

fn panicked(panic: &(dyn Any + Send)) -> Error {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    let message = format!("the writer thread panicked: {}", text.unwrap_or("no message"));
    Error::new(ErrorKind::Panic, message)
}

fn ended_early() -> Error {
    Error::new(ErrorKind::Panic, "the writer thread ended before its work was done")
}

/// The writing side. A file that is not finished when the producer leaves stays unfinished.
fn write_all(
    dir: &dyn Directory,
    progress: Progress<'_>,
    todo: &Receiver<Job>,
    give_back: &Sender<Buffer>,
) -> Result<()> {
    let mut open: Option<OpenFile<'_>> = None;
    for job in todo {
        match job {
            Job::Begin { name, len } => open = Some(OpenFile::create(dir, name, len)?),
            Job::Write(mut buffer) => {
                if let Some(file) = &mut open {
                    file.append(buffer.bytes())?;
                }
                progress(buffer.bytes().len() as u64);
                buffer.clear();
                // Not taken when the producer has left, or brings buffers of its own.
                let _ = give_back.try_send(buffer);
            }
            Job::Finish => open.take().map_or(Ok(()), OpenFile::finish)?,
        }
    }
    Ok(())
}

/// A file being written, front to back; the first error drops it.
struct OpenFile<'a> {
    dir: &'a dyn Directory,
    name: String,
    file: Box<dyn WriteFile>,
    end: u64,
}

impl<'a> OpenFile<'a> {
    fn create(dir: &'a dyn Directory, name: String, len: u64) -> Result<Self> {
        let file = dir.create_file(&name).map_err(|e| at_file(e, dir, &name))?;
        file.reserve(len).map_err(|e| at_file(e, dir, &name))?;
        Ok(Self { dir, name, file, end: 0 })
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let written = self.file.write_at(self.end, bytes);
        written.map_err(|e| at_file(e, self.dir, &self.name).with_offset(self.end))?;
        self.end += bytes.len() as u64;
        Ok(())
    }

    fn finish(self) -> Result<()> {
        let Self { dir, name, file, end } = self;
        sabotage::finished(Defect::DataNotSynced, || file.finish())
            .map_err(|e| at_file(e, dir, &name))?;
        tracing::debug!(file = name, bytes = end, "data file written");
        Ok(())
    }
}

/// Writes a small file whole: create, write, fsync.
///
/// # Errors
/// As the operations of `dir`.
pub(super) fn write_whole(dir: &dyn Directory, name: &str, bytes: &[u8]) -> Result<()> {
    let mut file = OpenFile::create(dir, name.to_owned(), bytes.len() as u64)?;
    file.append(bytes)?;
    file.finish()
}
