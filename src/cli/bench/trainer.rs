//! What training loses beside a save: the rate of a loop that multiplies matrices, and the time of
//! the copy that no save beside training can do without.

use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};

/// How long the idle rate is taken.
const IDLE: Duration = Duration::from_millis(500);
const N: usize = 64;

/// One thread that multiplies square matrices of f32.
pub(super) struct Trainer {
    left: Vec<f32>,
    right: Vec<f32>,
    out: Vec<f32>,
}

impl Trainer {
    pub(super) fn new() -> Self {
        let filled = |step: usize| (0..N * N).map(|i| (i * step % 17) as f32).collect();
        Self { left: filled(3), right: filled(5), out: vec![0.0; N * N] }
    }

    /// Steps per second of an idle machine.
    pub(super) fn idle_rate(&mut self) -> f64 {
        let begin = Instant::now();
        self.rate_until(|| begin.elapsed() >= IDLE)
    }

    /// Steps per second until `done`, after which it stops at once.
    pub(super) fn rate_until(&mut self, done: impl Fn() -> bool) -> f64 {
        let (begin, mut steps) = (Instant::now(), 0u32);
        while !done() {
            self.step();
            steps += 1;
        }
        f64::from(steps) / begin.elapsed().as_secs_f64().max(1e-9)
    }

    fn step(&mut self) {
        let Self { left, right, out } = self;
        for (row, sums) in left.chunks_exact(N).zip(out.chunks_exact_mut(N)) {
            sums.fill(0.0);
            for (factor, column) in row.iter().zip(right.chunks_exact(N)) {
                for (sum, value) in sums.iter_mut().zip(column) {
                    *sum += factor * value;
                }
            }
        }
        black_box(&mut self.out);
    }
}

/// Copies `share` into `target`, which is as long, with so many threads.
///
/// # Errors
/// [`ErrorKind::Storage`] where no thread can be had.
pub(super) fn copy(share: &[&[u8]], target: &mut [u8], threads: usize) -> Result<()> {
    let per_thread = target.len().div_ceil(threads.max(1)).max(1);
    thread::scope(|scope| {
        let parts = target.chunks_mut(per_thread).enumerate();
        let started: Vec<_> = parts
            .map(|(index, part)| {
                thread::Builder::new()
                    .spawn_scoped(scope, move || copy_from(share, index * per_thread, part))
            })
            .collect();
        for thread in started {
            let thread = thread.map_err(|e| {
                Error::new(ErrorKind::Storage, format!("no thread for a copy: {e}"))
            })?;
            thread.join().map_err(|_| Error::new(ErrorKind::Panic, "a copy panicked"))?;
        }
        Ok(())
    })
}

/// The bytes of `share` that begin at `from`, counted over all its parts.
fn copy_from(share: &[&[u8]], from: usize, mut out: &mut [u8]) {
    let mut skip = from;
    for part in share {
        let skipped = skip.min(part.len());
        skip -= skipped;
        let count = (part.len() - skipped).min(out.len());
        let (now, later) = out.split_at_mut(count);
        now.copy_from_slice(&part[skipped..skipped + count]);
        out = later;
        if out.is_empty() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_by_threads_is_the_same() {
        let bytes: Vec<u8> = (0..1000).map(|i| (i % 251) as u8).collect();
        let share = [&bytes[..1], &bytes[1..400], &[], &bytes[400..]];
        for threads in [1, 2, 3, 7] {
            let mut target = vec![0; 1000];
            copy(&share, &mut target, threads).unwrap();
            assert!(target == bytes, "{threads}");
        }
        copy(&[], &mut [], 2).unwrap();
    }

    #[test]
    fn a_trainer_counts_its_steps() {
        assert!(Trainer::new().idle_rate() > 0.0);
    }
}
