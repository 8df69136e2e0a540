//! The filling side: threads that copy and hash slots of data files into a few reused buffers,
//! while one other thread writes them.
//!
//! It begins with the calling thread alone. Each time that the writer was idle for more than an
//! eighth of the time that it wrote, one more thread fills, up to [`FILLERS_MAX`]: a fast disk
//! gets what it can take, and a slow one costs one core. Only bytes in host memory, and of devices
//! that give each thread a queue, are filled by several threads. All saves of a process together add
//! no more threads than there are cores. Threads inherit the priority of the one that calls.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use super::image::{FillTimes, Image, RangeSums};
use super::pipeline::{
    self, BUFFERS, DiskTimes, FIRST_BYTES, Job, Progress, Slot, Slots, Writer, slot_bytes_max,
};
use super::sums::SumsContent;
use super::writer::{PreparedFile, refusal};
use crate::clock;
use crate::error::{Error, Result};
use crate::memory::buffers::{BUFFER_BYTES, Buffer};
use crate::storage::Directory;
use crate::sync::{self, Mutex, Receiver, Scope, Sender, timed, unbounded};

/// Threads that fill for one save, the caller included; each one beyond it has a buffer more.
const FILLERS_MAX: usize = 3;
/// Added by all saves of this process.
static ADDED: AtomicUsize = AtomicUsize::new(0);

/// Sums in the order of the slots, which are filled in any.
struct Sums {
    content: SumsContent,
    next: u64,
    /// With the bytes that belong to a block of the slot before.
    early: BTreeMap<u64, (Vec<u8>, RangeSums)>,
}

impl Sums {
    fn add(&mut self, index: u64, bytes: &[u8], sums: RangeSums) {
        let head = bytes.get(..sums.head).unwrap_or_default();
        if index != self.next {
            self.early.insert(index, (head.to_vec(), sums));
            return;
        }
        self.content.join(head, sums.head_ends, sums.part);
        self.next += 1;
        while let Some((head, sums)) = self.early.remove(&self.next) {
            self.content.join(&head, sums.head_ends, sums.part);
            self.next += 1;
        }
    }
}

/// Why a thread stopped filling.
enum Failure {
    Error(Error),
    Panic(Box<dyn Any + Send>),
}

/// What the filling threads share.
struct Crew<'a> {
    files: &'a [PreparedFile<'a>],
    slots: Mutex<Slots>,
    sums: Mutex<Sums>,
    times: Mutex<FillTimes>,
    failed: Mutex<Option<Failure>>,
    /// Whether all that is to be filled lies where any thread may copy it from, once somebody has
    /// asked.
    is_anybodys: OnceLock<bool>,
    jobs: Sender<Job>,
    /// Buffers, and rooms for new ones.
    free: Receiver<Option<Buffer>>,
}

impl Crew<'_> {
    /// Fills slots until there is none left, or the writer is gone.
    fn work(&self) {
        let failure = match catch_unwind(AssertUnwindSafe(|| self.fill_all())) {
            Ok(Ok(())) => return,
            Ok(Err(error)) => Failure::Error(error),
            Err(panic) => Failure::Panic(panic),
        };
        self.failed.lock().get_or_insert(failure);
        // Else it would wait for this slot, and the other threads for the buffers that wait there.
        let _ = self.jobs.send(Job::Stop);
    }

    fn fill_all(&self) -> Result<()> {
        while !self.slots.lock().is_empty() {
            // First the buffer: whoever has the first slot of all can fill it, then.
            let Ok(buffer) = self.free.recv() else { break };
            let Some(slot) = self.slots.lock().next() else { break };
            let mut buffer = buffer.map_or_else(Buffer::new, Ok)?;
            self.fill(slot, &mut buffer)?;
            if self.jobs.send(Job::Write(slot, buffer)).is_err() {
                break;
            }
        }
        Ok(())
    }

    fn fill(&self, slot: Slot, buffer: &mut Buffer) -> Result<()> {
        let file = self.files.get(slot.file).ok_or_else(|| refusal("a slot of no file"))?;
        let room = buffer.take(slot.len);
        let (sums, times) = file.image.fill_and_sum(&file.cuts, slot.begin, room)?;
        self.sums.lock().add(slot.index, room, sums);
        let mut total = self.times.lock();
        total.stage += times.stage;
        total.hash += times.hash;
        Ok(())
    }

    /// Whether threads beside each other can fill what is left.
    fn may_grow(&self) -> bool {
        let is_anybodys = || {
            let mut cuts = self.files.iter().flat_map(|file| &file.cuts);
            cuts.all(|cut| {
                let source = &cut.entry.source;
                source.bytes().is_some() || source.device_memory().is_some()
            })
        };
        !self.slots.lock().is_empty() && *self.is_anybodys.get_or_init(is_anybodys)
    }
}

/// Counts one thread among those that were added; `None` where there are enough.
struct Added(());

impl Added {
    fn new() -> Option<Self> {
        let cores = thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let more = |added| (added + 1 < cores.max(2)).then_some(added + 1);
        ADDED.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok().map(|_| Self(()))
    }
}

impl Drop for Added {
    fn drop(&mut self) {
        ADDED.fetch_sub(1, Ordering::Relaxed);
    }
}

/// When one more thread is to fill.
struct Growth {
    fillers: usize,
    /// Since the last thread was added.
    slots: u32,
    wrote: Duration,
    waited: Duration,
}

impl Growth {
    fn new() -> Self {
        Self { fillers: 1, slots: 0, wrote: Duration::ZERO, waited: Duration::ZERO }
    }

    /// After a write that took so long, and had to wait so long before.
    fn wants_one_more(&mut self, wrote: Duration, waited: Duration) -> bool {
        self.slots += 1;
        // Nobody could have filled the first one sooner.
        if self.slots > 1 {
            self.wrote += wrote;
            self.waited += waited;
        }
        self.fillers < FILLERS_MAX && self.slots > 2 && self.waited * 8 > self.wrote
    }

    fn grown(&mut self) {
        *self = Self { fillers: self.fillers + 1, ..Self::new() };
    }
}

/// What writing data files came to.
pub(super) struct Written {
    pub(super) sums: SumsContent,
    pub(super) fill: FillTimes,
    pub(super) disk: DiskTimes,
}

/// Fills and writes `files`, and returns once each of them is durable. Their sums go behind
/// `content`.
///
/// # Errors
/// The error of a source, else that of the writer ([`ErrorKind::Panic`](crate::ErrorKind::Panic) if
/// it panicked).
pub(super) fn write_files(
    dir: &dyn Directory,
    files: &[PreparedFile<'_>],
    content: SumsContent,
    progress: Progress<'_>,
) -> Result<Written> {
    let images: Vec<&Image> = files.iter().map(|file| &file.image).collect();
    let (jobs, todo) = unbounded();
    let (give_back, free) = unbounded();
    let lens: Vec<u64> = images.iter().map(|image| image.len()).collect();
    let total = lens.iter().fold(0u64, |sum, len| sum.saturating_add(*len));
    let is_in_turn = clock::is_simulated() || total <= slot_bytes_max() as u64;
    let first = if is_in_turn { BUFFER_BYTES as u64 } else { FIRST_BYTES };
    let crew = Crew {
        files,
        slots: Mutex::new(Slots::new(lens, first)),
        sums: Mutex::new(Sums { content, next: 0, early: BTreeMap::new() }),
        times: Mutex::default(),
        failed: Mutex::default(),
        is_anybodys: OnceLock::new(),
        jobs,
        free,
    };
    let writer = || Writer::new(dir, &images, progress);
    let beside =
        if is_in_turn { None } else { beside_each_other(&crew, writer(), todo, give_back) };
    let written = beside.unwrap_or_else(|| in_turn(&crew, writer()));
    match crew.failed.into_inner() {
        Some(Failure::Panic(panic)) => resume_unwind(panic),
        Some(Failure::Error(error)) => Err(error),
        None => {
            let sums = crew.sums.into_inner().content;
            written.map(|disk| Written { sums, fill: crew.times.into_inner(), disk })
        }
    }
}

/// Without a thread: for little, where there is none to be had, and where it would escape a
/// simulation.
fn in_turn(crew: &Crew<'_>, mut writer: Writer<'_>) -> Result<DiskTimes> {
    let mut buffer = Buffer::new()?;
    loop {
        let Some(slot) = crew.slots.lock().next() else { return Ok(writer.times) };
        buffer.clear();
        crew.fill(slot, &mut buffer)?;
        writer.write(slot.file, buffer.bytes())?;
    }
}

/// `None`, with nothing done, where there is no thread to be had.
fn beside_each_other(
    crew: &Crew<'_>,
    mut writer: Writer<'_>,
    todo: Receiver<Job>,
    give_back: Sender<Option<Buffer>>,
) -> Option<Result<DiskTimes>> {
    for _ in 0..BUFFERS {
        let _ = give_back.send(None);
    }
    sync::scope(|scope| {
        let write = move || {
            let mut growth = Growth::new();
            writer.write_all(&todo, &give_back, |wrote, waited| {
                if timed(|| growth.wants_one_more(wrote, waited))
                    && let Some(buffer) = add_filler(scope, crew)
                {
                    growth.grown();
                    let _ = give_back.send(Some(buffer));
                }
            })?;
            Ok(writer.times)
        };
        pipeline::beside(scope, write, || {
            crew.work();
            // While the last slots are written.
            for file in crew.files {
                file.image.header_hash();
            }
        })
    })
}

/// One more thread, and the buffer that comes with it. A wish: where a thread or memory is not to be
/// had, those that are there go on.
fn add_filler<'scope>(scope: Scope<'scope, '_>, crew: &'scope Crew<'_>) -> Option<Buffer> {
    // First what costs nothing to ask.
    let added = Added::new().filter(|_| crew.may_grow())?;
    let buffer = Buffer::new().ok()?;
    let work = move || {
        let _added = added;
        crew.work();
    };
    tracing::debug!("one more thread fills");
    sync::spawn_in(scope, "shard-filler", work).ok().map(|_| buffer)
}

#[cfg(test)]
mod tests;
