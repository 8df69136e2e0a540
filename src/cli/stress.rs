//! `stress`: saves generated content through the real engine.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand};

use super::{Output, Stop};
use crate::catalog::CheckpointPath;
use crate::error::{Error, ErrorKind, Result};
use crate::group::{Deadlines, ProcessGroup};
use crate::layout::CheckpointName;
use crate::rank::{Rank, WorldSize};
use crate::save::{Checkpoint, SaveOptions, save};
use crate::slice::Slice;
use crate::state::{StateDict, TensorSource};
use crate::storage::LocalStorage;
use crate::tensor::{Component, Dtype, TensorName, TensorSpec};

/// Tensors over which the content is spread.
const TENSORS: u64 = 4;
/// Most ranks that this command plays, each a thread.
const RANKS_MAX: u32 = 1024;

#[derive(Subcommand)]
pub(super) enum Stress {
    /// Save one checkpoint and print `COMMITTED <step> <save id>` once it is durable.
    Save(Save),
}

#[derive(Args)]
pub(super) struct Save {
    /// Directory of checkpoints; made if missing.
    #[arg(long)]
    dir: PathBuf,
    /// Step; the checkpoint is called `step-<step>`.
    #[arg(long)]
    step: u64,
    /// Ranks, as threads of this process.
    #[arg(long, default_value_t = 1)]
    ranks: u32,
    /// Bytes over all ranks.
    #[arg(long)]
    bytes: u64,
    /// Deadline for lack of progress, in milliseconds.
    #[arg(long, default_value_t = 30_000, value_parser = clap::value_parser!(u64).range(1..))]
    deadline_ms: u64,
}

pub(super) fn run(out: &mut Output<'_>, stress: &Stress) -> Result<u8, Stop> {
    match stress {
        Stress::Save(arguments) => {
            let checkpoint = save_once(arguments)?;
            out.line(format!("COMMITTED {} {}", arguments.step, checkpoint.save_id))?;
            Ok(0)
        }
    }
}

fn save_once(arguments: &Save) -> Result<Checkpoint> {
    if arguments.ranks > RANKS_MAX {
        let message = format!("{} ranks, at most {RANKS_MAX} are played", arguments.ranks);
        return Err(Error::new(ErrorKind::InvalidInput, message));
    }
    let world = WorldSize::new(arguments.ranks)?;
    let progress = Duration::from_millis(arguments.deadline_ms);
    let deadlines = Deadlines { progress, ..Deadlines::default() };
    let name = CheckpointName::new(&format!("step-{:08}", arguments.step))?;
    let path = CheckpointPath::new(&arguments.dir, name);
    let verdicts: Vec<Result<Checkpoint>> = std::thread::scope(|scope| {
        let ranks: Vec<_> = ProcessGroup::threads(world, deadlines)
            .into_iter()
            .map(|group| scope.spawn(|| save_rank(group, &path, arguments)))
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap_or_else(|_| Err(panicked()))).collect()
    });
    verdicts.into_iter().next().unwrap_or_else(|| Err(panicked()))
}

fn panicked() -> Error {
    Error::new(ErrorKind::Panic, "a rank ended without a verdict")
}

fn save_rank(group: ProcessGroup, path: &CheckpointPath, arguments: &Save) -> Result<Checkpoint> {
    let state = content(group.rank(), group.world_size(), arguments.step, arguments.bytes)?;
    let options = SaveOptions { step: arguments.step, ..SaveOptions::default() };
    save(&group, &LocalStorage::new(), path, &state, &options)
}

/// This rank's share: a contiguous range of each tensor.
fn content(rank: Rank, world: WorldSize, step: u64, bytes: u64) -> Result<StateDict> {
    let mut state = StateDict::new();
    let (r, n) = (u64::from(rank.get()), u64::from(world.get()));
    for tensor in 0..TENSORS {
        let len = share(bytes, tensor, TENSORS);
        let begin: u64 = (0..r).map(|r| share(len, r, n)).sum();
        let own = share(len, r, n);
        if own == 0 && len > 0 {
            continue;
        }
        let spec = TensorSpec::new(Dtype::U8, vec![len])?;
        let slice = Slice::new(vec![begin], vec![own])?;
        let name = TensorName::new(format!("stress.{tensor}"))?;
        let source = Generated { seed: seed(step, rank, tensor), len: own };
        state.add_slice(&Component::model(), name, spec, slice, Arc::new(source))?;
    }
    state.values.set("stress.step", i64::try_from(step).unwrap_or(i64::MAX));
    Ok(state)
}

/// Part `index` of `total`, cut into `count` parts that differ by one at most.
fn share(total: u64, index: u64, count: u64) -> u64 {
    total / count + u64::from(index < total % count)
}

fn seed(step: u64, rank: Rank, tensor: u64) -> u64 {
    mix(step ^ mix(u64::from(rank.get()) ^ mix(tensor)))
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood 2014).
fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}

/// Bytes that are a function of step, rank, tensor and offset; takes no memory.
struct Generated {
    seed: u64,
    len: u64,
}

impl Generated {
    fn word(&self, index: u64) -> [u8; 8] {
        mix(self.seed ^ index).to_le_bytes()
    }

    /// The bytes that begin at `offset`, word by word.
    fn fill(&self, offset: u64, out: &mut [u8]) {
        let skipped = (offset % 8) as usize;
        let first = out.len().min((8 - skipped) % 8);
        let (head, rest) = out.split_at_mut(first);
        head.copy_from_slice(&self.word(offset / 8)[skipped..skipped + first]);
        for (index, part) in (offset.div_ceil(8)..).zip(rest.chunks_mut(8)) {
            part.copy_from_slice(&self.word(index)[..part.len()]);
        }
    }
}

impl TensorSource for Generated {
    fn read_into(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        if offset.checked_add(out.len() as u64).is_none_or(|end| end > self.len) {
            return Err(Error::new(ErrorKind::InvalidInput, "a read beyond the generated content"));
        }
        self.fill(offset, out);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_cover_the_total() {
        for (total, count) in [(0, 3), (10, 4), (7, 8)] {
            assert_eq!((0..count).map(|i| share(total, i, count)).sum::<u64>(), total);
        }
    }

    #[test]
    fn content_depends_on_step_rank_and_offset_alone() {
        let read = |step, rank, offset, len| {
            let mut out = vec![0; len];
            let seed = seed(step, Rank::new(rank), 0);
            Generated { seed, len: 64 }.read_into(offset, &mut out).unwrap();
            out
        };
        let whole = read(1, 0, 0, 64);
        for (offset, len) in [(0, 0), (3, 10), (3, 2), (8, 8), (7, 1), (15, 49), (16, 5)] {
            let begin = usize::try_from(offset).unwrap();
            assert_eq!(read(1, 0, offset, len), whole[begin..begin + len], "{offset} + {len}");
        }
        assert_ne!(read(1, 0, 0, 64), read(2, 0, 0, 64));
        assert_ne!(read(1, 0, 0, 64), read(1, 1, 0, 64));
    }
}
