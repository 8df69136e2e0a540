//! Hashing boxes, several at once.

use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use super::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::memory::grow;
use crate::state::TensorEntry;

/// Bytes that are read, or hashed between two signs of progress, at once.
const CHUNK_BYTES: usize = 1 << 20;
/// Most threads: beyond them memory is the limit.
const THREADS_MAX: usize = 8;

/// The digest of each entry, in their order. `progress` is called with the bytes just hashed.
///
/// # Errors
/// The first error, in order of entries, of a source that cannot be read; [`ErrorKind::Panic`]
/// if one panicked.
pub(super) fn digests(
    entries: &[&TensorEntry],
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Vec<Digest>> {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let threads = cores.min(THREADS_MAX).min(entries.len());
    let next = AtomicUsize::new(0);
    let work = || {
        let (mut buffer, mut done) = (Vec::new(), Vec::new());
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(entry) = entries.get(index) else { return done };
            done.push((index, digest(entry, &mut buffer, progress)));
        }
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
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, digest)| digest).collect()
}

fn panicked() -> Error {
    Error::new(ErrorKind::Panic, "a thread that read tensors panicked")
}

fn digest(
    entry: &TensorEntry,
    buffer: &mut Vec<u8>,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Digest> {
    let len = entry.slice.elements() * entry.spec.dtype().size_bytes();
    let mut hasher = blake3::Hasher::new();
    let mut add = |bytes: &[u8]| {
        hasher.update(bytes);
        progress(bytes.len() as u64);
    };
    match entry.source.bytes().filter(|bytes| bytes.len() as u64 == len) {
        Some(bytes) => bytes.chunks(CHUNK_BYTES).for_each(&mut add),
        None => {
            let mut offset = 0;
            while offset < len {
                let part =
                    usize::try_from(len - offset).map_or(CHUNK_BYTES, |n| n.min(CHUNK_BYTES));
                buffer.truncate(part);
                grow(buffer, part)?;
                entry.source.read_into(offset, buffer)?;
                add(buffer);
                offset += part as u64;
            }
        }
    }
    let mut short = [0; 16];
    short.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    Ok(short)
}
