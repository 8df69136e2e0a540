//! What was saved is what was there at the call, whatever becomes of it afterwards.

use std::sync::Arc;
use std::time::{Duration, Instant};

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
    let busy = Busy::new(device);
    let mut in_time = 0;
    for run in 0..runs {
        for overlapped in [false, true] {
            match once(&group, device, &busy, overlapped, spoil) {
                Ok(is_busy) => in_time += u32::from(is_busy),
                Err(error) => {
                    let what = format!("run {run}, overlapped {overlapped}: {error}");
                    return Ok(Outcome::Failed(what));
                }
            }
        }
    }
    if device != Device::Cpu && in_time < runs {
        let what = format!("only {in_time} of {} saves began while the device worked", 2 * runs);
        return Ok(Outcome::Failed(what));
    }
    Ok(Outcome::Passed(json!({ "async": runs, "overlapped": runs, "began_while_busy": in_time })))
}

/// Work that keeps a device busy for longer than a save takes to begin: without it, a save that
/// waits for nothing would find all done.
struct Busy {
    matrix: Tensor,
    rounds: u32,
    lasts: Duration,
}

impl Busy {
    fn new(device: Device) -> Self {
        let (size, kind, rounds) = match device {
            Device::Cpu => (16, Kind::Float, 1),
            _ => (8192, Kind::BFloat16, 32),
        };
        let matrix = Tensor::zeros([size, size], (kind, device));
        let mut busy = Self { matrix, rounds, lasts: Duration::ZERO };
        // The first time loads kernels.
        for _ in 0..2 {
            synchronize(device);
            let begun = Instant::now();
            busy.begin();
            synchronize(device);
            busy.lasts = begun.elapsed();
        }
        busy
    }

    fn begin(&self) {
        for _ in 0..self.rounds {
            let _product = self.matrix.matmul(&self.matrix);
        }
    }
}

fn tensors(device: Device) -> Named {
    let make = |elements: i64| Tensor::randn([elements], (Kind::Float, device));
    let sizes = [1, 1000, 3 << 20, 70_001];
    (0..).zip(sizes).map(|(index, size)| (format!("t{index}"), make(size))).collect()
}

/// Whether the device was still at work when the save began.
fn once(
    group: &ProcessGroup,
    device: Device,
    busy: &Busy,
    overlapped: bool,
    spoil: bool,
) -> Result<bool> {
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    let tensors = tensors(device);
    synchronize(device);
    let begun = Instant::now();
    busy.begin();
    // Queued behind that, and not done when the save begins.
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
    let is_busy = begun.elapsed() < busy.lasts / 2;
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
    first_difference(&copies, &loaded).map_or(Ok(is_busy), |what| Err(failed(what)))
}
