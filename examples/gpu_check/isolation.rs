//! What was saved is what was there at the call, whatever becomes of it afterwards.

use std::sync::Arc;

use serde_json::json;
use tch::{Device, Kind, Tensor};
use tch_checkpoint::load::{Atomicity, load};
use tch_checkpoint::plan::load::LoadRules;
use tch_checkpoint::save::{SaveOptions, save_async, save_async_overlapped};
use tch_checkpoint::storage::{MemoryStorage, Storage};
use tch_checkpoint::{CheckpointPath, ProcessGroup, Result, catalog::Wanted};

use crate::tensors::{Named, first_difference, ones_like, state, synchronize, targets};
use crate::{Outcome, failed};

/// `spoil` changes the tensors before the call has copied them.
pub(crate) fn run(device: Device, runs: u32, spoil: bool) -> Result<Outcome> {
    let group = ProcessGroup::solo();
    for run in 0..runs {
        for overlapped in [false, true] {
            if let Err(error) = once(&group, device, overlapped, spoil) {
                return Ok(Outcome::Failed(format!("run {run}, overlapped {overlapped}: {error}")));
            }
        }
    }
    Ok(Outcome::Passed(json!({ "async": runs, "overlapped": runs })))
}

fn tensors(device: Device) -> Named {
    let make = |elements: i64| Tensor::randn([elements], (Kind::Float, device));
    let sizes = [1, 1000, 3 << 20, 70_001];
    (0..).zip(sizes).map(|(index, size)| (format!("t{index}"), make(size))).collect()
}

fn once(group: &ProcessGroup, device: Device, overlapped: bool, spoil: bool) -> Result<()> {
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    let tensors = tensors(device);
    // Work that is queued and not done when the save begins.
    for (_, tensor) in &tensors {
        let _same = tensor.shallow_clone().g_mul_scalar_(1.5).g_add_scalar_(0.25);
    }
    let copies: Named = tensors.iter().map(|(name, t)| (name.clone(), t.copy())).collect();
    let change = || {
        for (_, tensor) in &tensors {
            let _same = tensor.shallow_clone().zero_();
        }
    };
    let state = state(&tensors, overlapped)?;
    if spoil {
        change();
    }
    let path = CheckpointPath::parse("runs/a")?;
    let begin = if overlapped { save_async_overlapped } else { save_async };
    let pending = begin(group, &storage, &path, &state, &SaveOptions::default(), Box::new(|_| {}))?;
    if overlapped {
        // The next forward and backward pass, which only read.
        let _sums: Vec<Tensor> = tensors.iter().map(|(_, t)| (t * t).sum(Kind::Float)).collect();
        pending.wait_copied();
    }
    change();
    pending.wait()?;
    let loaded = ones_like(&tensors, Device::Cpu);
    let (wanted, rules) = (Wanted::parse("runs/a")?, LoadRules::default());
    let mut all = targets(&loaded)?;
    load(group, storage.as_ref(), &wanted, &mut all, &rules, Atomicity::InPlace)?;
    synchronize(device);
    first_difference(&copies, &loaded).map_or(Ok(()), |what| Err(failed(what)))
}
