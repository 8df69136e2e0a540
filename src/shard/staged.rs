//! Writing the share of one rank that lies in buffers already.

use std::thread;
use std::time::Duration;

use crossbeam_channel::unbounded;

use super::at_file;
use super::crew::Written;
use super::image::{FillTimes, Image};
use super::pipeline::{self, Job, Progress, Slot, Writer};
use super::sums::SumsContent;
use super::writer::{finish_share, no_sums_file, refusal};
use crate::clock;
use crate::error::Result;
use crate::layout::SaveId;
use crate::memory::buffers::Buffer;
use crate::plan::Receipt;
use crate::storage::Directory;

/// A data file whose bytes lie in memory already.
#[allow(dead_code, reason = "for saves beside training")]
pub(crate) struct StagedFile {
    pub(crate) image: Image,
    /// All of its bytes, in file order: every buffer but the last one is full.
    pub(crate) buffers: Vec<Buffer>,
}

/// The share of one rank, filled into buffers.
#[allow(dead_code, reason = "for saves beside training")]
pub(crate) struct StagedShare {
    pub(crate) save_id: SaveId,
    pub(crate) files: Vec<StagedFile>,
    /// As [`SavePlan::sums_file`](crate::plan::SavePlan::sums_file).
    pub(crate) sums_name: Option<String>,
}

/// As [`write_shards`](super::write_shards), of a share that is filled already: hashed on this
/// thread, written by another one, which has the same priority. Each buffer is dropped once it is
/// written. The times of the receipt know nothing of how the buffers were filled.
///
/// # Errors
/// [`ErrorKind::InvalidInput`](crate::ErrorKind::InvalidInput) if a file has not as many bytes as
/// its image, else as [`write_shards`](super::write_shards).
#[allow(dead_code, reason = "for saves beside training")]
pub(crate) fn write_staged(
    dir: &dyn Directory,
    share: StagedShare,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Receipt> {
    let begun = clock::now();
    let StagedShare { save_id, files, sums_name } = share;
    let Some(sums_name) = sums_name else {
        return if files.is_empty() { Ok(Receipt::default()) } else { Err(no_sums_file()) };
    };
    let (mut images, mut filled) = (Vec::new(), Vec::new());
    for StagedFile { image, buffers } in files {
        let bytes: u64 = buffers.iter().map(|buffer| buffer.bytes().len() as u64).sum();
        if bytes != image.len() {
            let message = format!("{bytes} of {} bytes were staged", image.len());
            return Err(at_file(refusal(message), dir, image.name()));
        }
        images.push(image);
        filled.push(buffers);
    }
    let images: Vec<&Image> = images.iter().collect();
    let pieces = images.iter().flat_map(|image| image.header().piece_bytes()).copied();
    let sums = SumsContent::new(&save_id, pieces)?;
    let written = write_filled(dir, &images, filled, sums, progress)?;
    finish_share(dir, &images, written, &sums_name, progress, begun)
}

/// Hashes and writes the buffers of each file.
fn write_filled(
    dir: &dyn Directory,
    images: &[&Image],
    filled: Vec<Vec<Buffer>>,
    mut sums: SumsContent,
    progress: Progress<'_>,
) -> Result<Written> {
    let mut writer = Writer::new(dir, images, progress);
    let mut hash = Duration::ZERO;
    let mut index = 0;
    let slots = images.iter().zip(filled).enumerate().flat_map(|(file, (image, buffers))| {
        let mut begin = 0;
        buffers.into_iter().map(move |buffer| {
            let slot = Slot { index: 0, file, begin, len: buffer.bytes().len() };
            begin += slot.len as u64;
            (*image, slot, buffer)
        })
    });
    let slots = slots.map(|(image, slot, buffer)| {
        let begun = clock::now();
        let range = image.sums_of(slot.begin, buffer.bytes());
        let head = buffer.bytes().get(..range.head).unwrap_or_default();
        sums.join(head, range.head_ends, range.part);
        hash += clock::now().saturating_duration_since(begun);
        index += 1;
        (Slot { index: index - 1, ..slot }, buffer)
    });
    let disk = if clock::is_simulated() {
        for (slot, buffer) in slots {
            writer.write(slot, buffer.bytes())?;
        }
        writer.times
    } else {
        let (jobs, todo) = unbounded();
        thread::scope(|scope| {
            let write = move || {
                writer.write_all(&todo, None, |_, _| {})?;
                Ok(writer.times)
            };
            let send = move || {
                // An error is the end of the writer, which has one of its own.
                for (slot, buffer) in slots {
                    if jobs.send(Job::Write(slot, buffer)).is_err() {
                        break;
                    }
                }
            };
            pipeline::beside(scope, write, send)
        })?
    };
    Ok(Written { sums, fill: FillTimes { stage: Duration::ZERO, hash }, disk })
}
