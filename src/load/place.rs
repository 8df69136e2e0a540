//! From verified blocks to the destination: directly, or staged on the host first.

use crate::catalog::zeroed;
use crate::error::{Error, ErrorKind, Result};
use crate::load::{Destination, superseded};
use crate::manifest::Manifest;
use crate::plan::load::{LoadPlan, ReadItem};
use crate::shard::ShardReader;
use crate::state::{LoadTarget, TensorSink};

/// Reads everything straight into the destination.
pub(super) fn read_direct(
    reader: &ShardReader,
    manifest: &Manifest,
    plan: &LoadPlan,
    destination: &mut dyn Destination,
) -> Result<()> {
    let mut targets = destination.targets()?;
    let mut sinks: Vec<&mut LoadTarget<'_>> = targets.targets_mut().values_mut().flatten().collect();
    read_all(reader, manifest, plan, &mut |index, offset, bytes| {
        sinks.get_mut(index).ok_or_else(out_of_plan)?.sink.write_at(offset, bytes)
    })
}

/// This rank's bytes, verified and on the host: one buffer per wanted box.
#[derive(Default)]
pub(super) struct Staged(Vec<Vec<u8>>);

/// Reads everything into host buffers.
pub(super) fn read_staged(
    reader: &ShardReader,
    manifest: &Manifest,
    plan: &LoadPlan,
) -> Result<Staged> {
    let mut staged = Vec::with_capacity(plan.target_bytes.len());
    for bytes in &plan.target_bytes {
        staged.push(zeroed(usize::try_from(*bytes).unwrap_or(usize::MAX))?);
    }
    read_all(reader, manifest, plan, &mut |index, offset, bytes| {
        let mut sink = staged.get_mut(index).ok_or_else(out_of_plan)?.as_mut_slice();
        (&mut sink).write_at(offset, bytes)
    })?;
    Ok(Staged(staged))
}

impl Staged {
    /// Copies into the destination, freeing each buffer as it goes.
    pub(super) fn place(self, destination: &mut dyn Destination) -> Result<()> {
        let mut targets = destination.targets()?;
        let sinks = targets.targets_mut().values_mut().flatten();
        for (target, bytes) in sinks.zip(self.0) {
            target.sink.write_at(0, &bytes)?;
        }
        Ok(())
    }
}

type Put<'a> = dyn FnMut(usize, u64, &[u8]) -> Result<()> + 'a;

/// Every planned read, in file order; `put` gets target, offset in it, and verified bytes.
fn read_all(
    reader: &ShardReader,
    manifest: &Manifest,
    plan: &LoadPlan,
    put: &mut Put<'_>,
) -> Result<()> {
    for file in &plan.files {
        for item in &file.reads {
            read_item(reader, file.file, item, put).map_err(|e| {
                superseded(e).with_tensor(plan.tensor_name(manifest, item))
            })?;
        }
    }
    Ok(())
}

fn read_item(reader: &ShardReader, file: u32, item: &ReadItem, put: &mut Put<'_>) -> Result<()> {
    let _ = (reader, file, item, put);
    todo!()
}

fn out_of_plan() -> Error {
    Error::new(ErrorKind::Mismatch, "the destination changed its tensors during the load")
}
