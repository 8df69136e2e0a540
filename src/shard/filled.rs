//! Writing files whose data lies in memory as it will be: nothing is copied, and neither hashing
//! nor writing waits for the other.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::crew::Written;
use super::image::{FillTimes, Image};
use super::pipeline::{self, DiskTimes, Progress, Writer};
use super::sums::SumsContent;
use super::writer::{finish_share, no_sums_file, refusal};
use crate::clock;
use crate::error::Result;
use crate::group::Progress as Alive;
use crate::memory::buffers::BUFFER_BYTES;
use crate::plan::{Receipt, SavePlan};
use crate::storage::Directory;
use crate::sync::{self, AtomicBool};

/// A data file, and the bytes of its pieces, one after the other.
pub(crate) struct FilledFile<'a> {
    pub(crate) image: &'a Image,
    pub(crate) data: &'a [u8],
}

/// Writes `files`, those that `plan` gives to this rank, in its order, into `dir`. One thread
/// writes while this one hashes, both at the priority of this one; for the rest as
/// [`write_shards`](super::write_shards). `alive` moves with what is hashed, which may go on long
/// after the last write.
///
/// # Errors
/// As [`write_shards`](super::write_shards), but for those of sources.
pub(crate) fn write_filled(
    dir: &dyn Directory,
    plan: &SavePlan,
    files: &[FilledFile<'_>],
    progress: &(dyn Fn(u64) + Sync),
    alive: &Alive,
) -> Result<Receipt> {
    let begun = clock::now();
    let Some(sums_name) = &plan.sums_file else {
        return if files.is_empty() { Ok(Receipt::default()) } else { Err(no_sums_file()) };
    };
    let images: Vec<&Image> = files.iter().map(|file| file.image).collect();
    let pieces = images.iter().flat_map(|image| image.header().piece_bytes()).copied();
    let sums = SumsContent::new(&plan.save_id, pieces)?;
    let has_failed = AtomicBool::new(false);
    let write = || {
        let written = write_files(dir, &images, files, progress);
        has_failed.store(written.is_err(), Ordering::Relaxed);
        written
    };
    let mut hashed = (sums, Duration::ZERO);
    let mut hash = || hash_files(files, &mut hashed, &has_failed, alive);
    let beside = if clock::is_simulated() {
        None
    } else {
        sync::scope(|scope| pipeline::beside(scope, write, &mut hash))
    };
    let disk = match beside {
        Some(disk) => disk?,
        None => {
            let disk = write()?;
            hash();
            disk
        }
    };
    let (sums, hash) = hashed;
    let written = Written { sums, fill: FillTimes { stage: Duration::ZERO, hash }, disk };
    finish_share(dir, &images, written, sums_name, progress, begun)
}

fn write_files(
    dir: &dyn Directory,
    images: &[&Image],
    files: &[FilledFile<'_>],
    progress: Progress<'_>,
) -> Result<DiskTimes> {
    let mut writer = Writer::new(dir, images, progress);
    for (number, FilledFile { image, data }) in files.iter().enumerate() {
        let header = image.header().bytes();
        for part in header.chunks(BUFFER_BYTES).chain(data.chunks(BUFFER_BYTES)) {
            writer.write(number, part)?;
        }
    }
    if writer.is_done() { Ok(writer.times) } else { Err(refusal("data shorter than its pieces")) }
}

/// Takes the sums of all files, and the time; of some, if `is_void` says that nobody wants them any
/// more.
fn hash_files(
    files: &[FilledFile<'_>],
    (sums, took): &mut (SumsContent, Duration),
    is_void: &AtomicBool,
    alive: &Alive,
) {
    let begun = clock::now();
    for FilledFile { image, data } in files {
        let mut rest = *data;
        for piece_bytes in image.header().piece_bytes() {
            let len = usize::try_from(*piece_bytes).unwrap_or(usize::MAX).min(rest.len());
            let (piece, after) = rest.split_at(len);
            for part in piece.chunks(BUFFER_BYTES).take_while(|_| !is_void.load(Ordering::Relaxed))
            {
                sums.update(part);
                alive.add(part.len() as u64);
            }
            sums.end_piece();
            rest = after;
        }
    }
    *took = clock::now().saturating_duration_since(begun);
}
