//! Hashing boxes, several parts at once: those on devices there, the others by threads here.

use std::num::NonZero;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use super::devices::Devices;
use super::fingerprint::{BLOCK_BYTES, Digest, Sums};
use crate::error::{Error, ErrorKind, Result};
use crate::memory::grow;
use crate::state::TensorEntry;

/// Bytes that are read, or hashed between two signs of progress, at once.
const CHUNK_BYTES: usize = 256 * BLOCK_BYTES;
/// Bytes of a box that one thread takes at a time.
const PART_BYTES: u64 = 8 * CHUNK_BYTES as u64;
/// Most threads: beyond them memory is the limit.
const THREADS_MAX: usize = 8;

/// The digest of each entry, in their order. `progress` is called with the bytes just hashed.
///
/// # Errors
/// The first error, in order of entries, of a source that cannot be read; [`ErrorKind::Panic`]
/// if one panicked; [`ErrorKind::Device`] or [`ErrorKind::Deadline`] of a device.
pub(super) fn digests(
    entries: &[&TensorEntry],
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Vec<Digest>> {
    let (mut devices, here) = Devices::of(entries);
    // They work while the host does.
    let queued = devices.queue();
    let hashed = on_host(entries, &here, progress);
    let collected = devices.collect(progress);
    queued?;
    let mut sums = vec![Sums::default(); entries.len()];
    for (index, part) in hashed?.into_iter().chain(collected?) {
        if let Some(sum) = sums.get_mut(index) {
            *sum = sum.plus(part);
        }
    }
    Ok(sums.into_iter().zip(entries).map(|(sums, entry)| sums.finish(bytes_of(entry))).collect())
}

/// A part of a box: which entry, from which byte on, how many.
type Part = (usize, u64, u64);

/// Sums of parts of the entries numbered `indices`.
fn on_host(
    entries: &[&TensorEntry],
    indices: &[usize],
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Vec<(usize, Sums)>> {
    let parts: Vec<Part> = indices.iter().flat_map(|index| parts(entries, *index)).collect();
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let threads = cores.min(THREADS_MAX).min(parts.len());
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let work = || {
        let (mut buffer, mut done) = (Vec::new(), Vec::new());
        // Parts are begun in their order, so that the first that fails is always among them.
        while !failed.load(Ordering::Relaxed) {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some((index, offset, bytes)) = parts.get(number).copied() else { break };
            let Some(entry) = entries.get(index) else { break };
            let sums = part_sums(entry, offset, bytes, &mut buffer, progress);
            failed.fetch_or(sums.is_err(), Ordering::Relaxed);
            done.push((number, sums.map(|sums| (index, sums))));
        }
        done
    };
    let mut done = thread::scope(|scope| -> Result<Vec<_>> {
        // This thread works too, so that one that cannot be started is no error.
        let spawn = |_| thread::Builder::new().name("audit".to_owned()).spawn_scoped(scope, work);
        let helpers: Vec<_> = (1..threads).map_while(|n| spawn(n).ok()).collect();
        let mut done = work();
        for helper in helpers {
            done.extend(helper.join().map_err(|_| panicked())?);
        }
        Ok(done)
    })?;
    done.sort_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, sums)| sums).collect()
}

fn parts(entries: &[&TensorEntry], index: usize) -> impl Iterator<Item = Part> {
    let bytes = entries.get(index).map_or(0, |entry| bytes_of(entry));
    let offsets = (0..bytes.div_ceil(PART_BYTES)).map(|number| number * PART_BYTES);
    offsets.map(move |offset| (index, offset, PART_BYTES.min(bytes - offset)))
}

pub(super) fn bytes_of(entry: &TensorEntry) -> u64 {
    entry.slice.elements() * entry.spec.dtype().size_bytes()
}

fn panicked() -> Error {
    Error::new(ErrorKind::Panic, "a thread that read tensors panicked")
}

/// The sums over `bytes` bytes from `offset` on, which is where a block begins.
fn part_sums(
    entry: &TensorEntry,
    offset: u64,
    bytes: u64,
    buffer: &mut Vec<u8>,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Sums> {
    let all = entry.source.bytes().filter(|all| all.len() as u64 == bytes_of(entry));
    let (mut sums, mut at, end) = (Sums::default(), offset, offset + bytes);
    while at < end {
        let len = usize::try_from(end - at).map_or(CHUNK_BYTES, |left| left.min(CHUNK_BYTES));
        let begin = usize::try_from(at).unwrap_or(usize::MAX);
        let chunk = match all.and_then(|all| all.get(begin..)?.get(..len)) {
            Some(chunk) => chunk,
            None => {
                buffer.truncate(len);
                grow(buffer, len)?;
                entry.source.read_into(at, buffer)?;
                buffer.as_slice()
            }
        };
        sums = sums.plus(Sums::of(at / BLOCK_BYTES as u64, chunk));
        progress(len as u64);
        at += len as u64;
    }
    Ok(sums)
}
