//! Optimizer state of which every rank keeps a share (stage 1 of ZeRO, arXiv:1910.02054).
//!
//! All bytes of all parameters lie in one line, which is cut into as many equal parts as there
//! are ranks; cuts are moved to the nearest row. A rank keeps the state of its part of the line,
//! updates the parameters there, and the ranks then exchange what they have updated.

use std::ops::Range;

use tch::Tensor;

use super::groups::Trainable;
use super::{OptimizerConfig, OptimizerSpec, Parameter};
use crate::error::{Error, ErrorKind, Result};
use crate::group::ProcessGroup;
use crate::rank::{Rank, WorldSize};
use crate::slice::Slice;
use crate::state::{TensorSink, TensorSource};
use crate::tensor::TensorSpec;
use crate::torch::{TchSink, TchSource, convert};

#[cfg(test)]
mod tests;

/// Parameters below this many bytes belong to one rank: cutting them costs more than it saves.
const SPLIT_BYTES_MIN: u64 = 64 * 1024;
/// Bytes exchanged at once, and so the memory that an exchange takes.
const BUCKET_BYTES: u64 = 16 << 20;

/// An algorithm of whose state every rank keeps one part of as many as there are ranks, instead
/// of all of it. It computes the same, and its checkpoints are the same: they can be loaded with
/// the state shared by any number of ranks, or not at all.
///
/// ```no_run
/// # use tch_checkpoint::handler::{Model, NNHandler};
/// use tch_checkpoint::torch::{AdamW, Sharded};
/// # fn example<M: Model>(handler: &mut NNHandler<M>) -> tch_checkpoint::Result<()> {
/// handler.set_optimizer(Sharded(AdamW { lr: 1e-3, ..AdamW::default() }))?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sharded<C>(pub C);

impl<C: Into<OptimizerConfig>> From<Sharded<C>> for OptimizerSpec {
    fn from(Sharded(config): Sharded<C>) -> Self {
        Self { config: config.into(), is_sharded: true }
    }
}

/// Which part of a parameter this rank updates, and keeps state of.
#[derive(Debug)]
pub(super) struct Share {
    /// Of the parameter and each of its state tensors.
    whole: TensorSpec,
    own: Option<Slice>,
}

impl Share {
    /// The part of a tensor of the parameter's shape; absent if this rank has none.
    pub(super) fn view(&self, tensor: &Tensor) -> Result<Option<Tensor>, tch::TchError> {
        let Some(own) = &self.own else { return Ok(None) };
        let mut lengths = own.lengths().iter().zip(self.whole.shape());
        let cut = lengths.position(|(part, whole)| part != whole);
        let range = cut.and_then(|dimension| Some((dimension, own.ranges().nth(dimension)?)));
        let Some((dimension, range)) = range else { return Ok(Some(tensor.shallow_clone())) };
        let as_i64 = |index: u64| i64::try_from(index).unwrap_or(i64::MAX);
        let dimension = i64::try_from(dimension).unwrap_or(i64::MAX);
        let length = as_i64(range.end - range.start);
        tensor.f_narrow(dimension, as_i64(range.start), length).map(Some)
    }

    /// Of which whole the state of this rank is which box.
    pub(super) fn place(&self) -> Option<(TensorSpec, Slice)> {
        self.own.as_ref().map(|own| (self.whole.clone(), own.clone()))
    }

    /// A state tensor as a whole, of which this rank has `part`.
    ///
    /// # Collective
    /// Every rank.
    pub(super) fn gather(
        &self,
        ranks: &ProcessGroup,
        part: Option<&Tensor>,
    ) -> Result<(TensorSpec, Vec<u8>)> {
        let mut bytes = crate::memory::zeroed(self.whole.size_bytes())?;
        let own = indices(&self.bytes(), 0);
        if let Some((part, place)) = part.zip(bytes.get_mut(own.clone())) {
            TchSource::new(part)?.read_into(0, place)?;
        }
        ranks.all_gather(&mut bytes, own)?;
        Ok((self.whole.clone(), bytes))
    }

    /// The bytes of this part, counted from the first one of the parameter.
    fn bytes(&self) -> Range<u64> {
        let whole = Slice::full(self.whole.shape());
        // A part is whole rows, so its bytes lie together.
        let run = self.own.as_ref().and_then(|own| whole.runs_of(own).next());
        let size = self.whole.dtype().size_bytes();
        run.map_or(0..0, |run| run.from * size..(run.from + run.elements) * size)
    }
}

/// What this rank is to update of each parameter.
pub(super) fn shares(ranks: Option<&ProcessGroup>, found: &[Trainable]) -> Result<Vec<Share>> {
    let spec = |found: &Trainable| {
        let sink = || ranks.map(|_| TchSink::new(&found.tensor)).transpose();
        let spec = convert::spec_of(&found.tensor).and_then(|spec| sink().map(|_| spec));
        spec.map_err(|e| e.with_tensor(found.name.as_str()))
    };
    let specs = found.iter().map(spec).collect::<Result<Vec<_>>>()?;
    let parts = match ranks {
        Some(ranks) => partition(&specs, ranks.rank(), ranks.world_size())?,
        None => specs.iter().map(|spec| Some(Slice::full(spec.shape()))).collect(),
    };
    Ok(specs.into_iter().zip(parts).map(|(whole, own)| Share { whole, own }).collect())
}

/// The box of each parameter that belongs to `rank`. The boxes of all ranks cover every parameter
/// exactly; they are of nearly as many bytes for each rank.
fn partition(specs: &[TensorSpec], rank: Rank, world: WorldSize) -> Result<Vec<Option<Slice>>> {
    let total: u128 = specs.iter().map(|spec| u128::from(spec.size_bytes())).sum();
    let cut = |ranks: u128| total * ranks / u128::from(world.get());
    let (from, to) = (cut(rank.get().into()), cut(u128::from(rank.get()) + 1));
    let mut begin = 0;
    let mut parts = Vec::with_capacity(specs.len());
    for spec in specs {
        let rows = Rows::of(spec);
        let own = rows.nearest(from.saturating_sub(begin))..rows.nearest(to.saturating_sub(begin));
        begin += u128::from(spec.size_bytes());
        let whole = Slice::full(spec.shape());
        parts.push(match rows {
            // Nothing to share, but somebody has to save it.
            Rows { bytes: 0, .. } => rank.is_coordinator().then_some(whole),
            _ if own.is_empty() => None,
            Rows { count, .. } if own == (0..count) => Some(whole),
            _ => Some(whole.rows(own)?),
        });
    }
    Ok(parts)
}

/// The units in which a parameter can be cut.
struct Rows {
    count: u64,
    /// Bytes of one.
    bytes: u64,
}

impl Rows {
    fn of(spec: &TensorSpec) -> Self {
        let long = spec.shape().iter().find(|length| **length > 1);
        match (long, spec.size_bytes()) {
            (Some(count), bytes) if bytes >= SPLIT_BYTES_MIN => {
                Self { count: *count, bytes: bytes / count }
            }
            (_, bytes) => Self { count: 1, bytes },
        }
    }

    /// The boundary between rows that is nearest to `offset` bytes into the parameter.
    fn nearest(&self, offset: u128) -> u64 {
        let bytes = u128::from(self.bytes.max(1));
        let rows = (offset + bytes / 2) / bytes;
        u64::try_from(rows).map_or(self.count, |rows| rows.min(self.count))
    }
}

/// A parameter in the line of all bytes that are exchanged.
struct Segment {
    bytes: Range<u64>,
    /// This rank's part of it.
    own: Range<u64>,
    source: TchSource,
    sink: TchSink,
}

impl Segment {
    fn new(begin: u64, parameter: &Parameter) -> Result<Self> {
        let source = TchSource::new(&parameter.tensor)?;
        let sink = TchSink::new(&parameter.tensor)?;
        let (now, made_for) = (source.spec(), &parameter.share.whole);
        if now != made_for {
            let message = format!("now {now}, but {made_for} when the optimizer was made");
            return Err(Error::new(ErrorKind::Mismatch, message));
        }
        let own = parameter.share.bytes();
        let bytes = begin..begin + parameter.share.whole.size_bytes();
        Ok(Self { own: begin + own.start..begin + own.end, bytes, source, sink })
    }

    /// Gives this rank's part to the bucket, which begins at `at` in the line.
    fn give(&self, at: u64, bucket: &mut [u8]) -> Result<()> {
        let part = common(&self.own, &(at..at + bucket.len() as u64));
        let Some(place) = bucket.get_mut(indices(&part, at)) else { return Ok(()) };
        self.source.read_into(part.start - self.bytes.start, place)
    }

    /// Takes the other ranks' parts.
    fn take(&mut self, at: u64, bucket: &[u8]) -> Result<()> {
        let window = at..at + bucket.len() as u64;
        for others in [self.bytes.start..self.own.start, self.own.end..self.bytes.end] {
            let part = common(&others, &window);
            let Some(bytes) = bucket.get(indices(&part, at)) else { continue };
            self.sink.write_at(part.start - self.bytes.start, bytes)?;
        }
        Ok(())
    }
}

/// What both have; empty, and within the second, if nothing.
fn common(a: &Range<u64>, b: &Range<u64>) -> Range<u64> {
    let start = a.start.clamp(b.start, b.end);
    start..a.end.clamp(start, b.end)
}

fn indices(part: &Range<u64>, at: u64) -> Range<usize> {
    let index = |place: u64| usize::try_from(place - at).unwrap_or(usize::MAX);
    index(part.start)..index(part.end)
}

/// Gives every rank what the others have updated.
pub(super) fn exchange<'a>(
    ranks: &ProcessGroup,
    parameters: impl Iterator<Item = &'a Parameter>,
) -> Result<()> {
    if ranks.world_size() == WorldSize::ONE {
        return Ok(());
    }
    let (mut line, mut end) = (Vec::new(), 0);
    // A frozen parameter stays as it is.
    let moving = |p: &&Parameter| p.tensor.requires_grad() || p.tensor.grad().defined();
    for parameter in parameters.filter(moving) {
        let segment = Segment::new(end, parameter);
        let segment = segment.map_err(|e| e.with_tensor(parameter.name.as_str()))?;
        end = segment.bytes.end;
        line.push(segment);
    }
    exchange_line(ranks, &mut line, end, BUCKET_BYTES)
}

fn exchange_line(
    ranks: &ProcessGroup,
    line: &mut [Segment],
    end: u64,
    bucket_bytes: u64,
) -> Result<()> {
    let mut memory = crate::memory::zeroed(end.min(bucket_bytes))?;
    let mut at = 0;
    while at < end {
        let bucket = memory.get_mut(indices(&(at..end.min(at + bucket_bytes)), at));
        let Some(bucket) = bucket else { return Ok(()) };
        bucket.fill(0);
        let window = at..at + bucket.len() as u64;
        let first = line.partition_point(|segment| segment.bytes.end <= window.start);
        let last = line.partition_point(|segment| segment.bytes.start < window.end);
        let inside = line.get_mut(first..last).unwrap_or_default();
        inside.iter().try_for_each(|segment| segment.give(at, bucket))?;
        ranks.all_reduce_or(bucket)?;
        inside.iter_mut().try_for_each(|segment| segment.take(at, bucket))?;
        at = window.end;
    }
    Ok(())
}
