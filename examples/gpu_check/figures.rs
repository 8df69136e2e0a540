//! Copies, saves and loads, timed side by side; medians.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};
use tch_checkpoint::load::{Atomicity, load};
use tch_checkpoint::plan::load::LoadRules;
use tch_checkpoint::save::{PendingSave, SaveOptions, save, save_async, save_async_overlapped};
use tch_checkpoint::storage::{LocalStorage, Storage};
use tch_checkpoint::{CheckpointPath, OnExisting, ProcessGroup, Result, catalog::Wanted};

use crate::Outcome;
use crate::tensors::{
    Named, bytes, first_difference, model, ones_like, state, synchronize, targets,
};

/// Bytes of one copy by which a bandwidth is measured.
const COPY_BYTES: i64 = 512 << 20;

pub(crate) fn run(device: Device, dir: &Path, mib: u64, times: usize) -> Result<Outcome> {
    let tensors = model(mib, device);
    let total = bytes(&tensors);
    let (down, up) = copies(device, times, total);
    let subject = Subject { device, dir, tensors, storage: Arc::new(LocalStorage::new()) };
    // The first save of a process locks pages; later ones use them again.
    let first = subject.stall()?;
    let pass = Pass::lasting(device, 2.0 * total as f64 / down);
    let mut seconds: Vec<(&str, Vec<f64>)> = Vec::new();
    for turn in 0..times.max(1) {
        let all = [
            ("stall_async", subject.stall()?),
            ("pass_alone", timed(device, || pass.run())),
            ("pass_beside_overlapped_save", subject.overlapped(&pass)?),
            ("save", subject.save()?),
            ("load_atomic", subject.load(Atomicity::Atomic)?),
            ("load_in_place", subject.load(Atomicity::InPlace)?),
        ];
        for (index, (name, time)) in all.into_iter().enumerate() {
            match seconds.get_mut(index).filter(|_| turn > 0) {
                Some((_, times)) => times.push(time),
                None => seconds.push((name, vec![time])),
            }
        }
    }
    let medians: serde_json::Map<String, Value> =
        seconds.into_iter().map(|(name, times)| (name.to_owned(), json!(median(times)))).collect();
    let stall = medians.get("stall_async").and_then(Value::as_f64).unwrap_or(f64::NAN);
    let limit = total as f64 / down;
    Ok(Outcome::Passed(json!({
        "bytes": total,
        "pinned_d2h_bytes_per_s": down,
        "pinned_h2d_bytes_per_s": up,
        "first_stall_s": first,
        "seconds": medians,
        "stall_over_copy": stall / limit,
    })))
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}

fn timed(device: Device, work: impl FnOnce()) -> f64 {
    synchronize(device);
    let begun = Instant::now();
    work();
    synchronize(device);
    begun.elapsed().as_secs_f64()
}

/// Bytes per second from the device to page-locked memory of libtorch, and back: what it can do.
fn copies(device: Device, times: usize, most: u64) -> (f64, f64) {
    let size = COPY_BYTES.min(i64::try_from(most).unwrap_or(COPY_BYTES)).max(1);
    let there = Tensor::ones([size], (Kind::Uint8, device));
    let host = Tensor::zeros([size], (Kind::Uint8, Device::Cpu));
    let host = if device == Device::Cpu { host } else { host.pin_memory(device) };
    let rate = |to: &Tensor, from: &Tensor| {
        let once = || timed(device, || to.shallow_clone().copy_(from));
        once();
        size as f64 / median((0..times.max(3)).map(|_| once()).collect())
    };
    (rate(&host, &there), rate(&there, &host))
}

/// A device's work of about the time of a forward and backward pass, and nothing of the host's.
struct Pass {
    matrix: Tensor,
    rounds: u32,
}

impl Pass {
    fn lasting(device: Device, seconds: f64) -> Self {
        let (size, kind) = match device {
            Device::Cpu => (256, Kind::Float),
            _ => (4096, Kind::BFloat16),
        };
        let mut pass = Self { matrix: Tensor::zeros([size, size], (kind, device)), rounds: 20 };
        timed(device, || pass.run());
        let once = timed(device, || pass.run()) / f64::from(pass.rounds);
        let nanos = |seconds| Duration::try_from_secs_f64(seconds).unwrap_or_default().as_nanos();
        let rounds = nanos(seconds) / nanos(once).max(1);
        pass.rounds = u32::try_from(rounds.clamp(1, 100_000)).unwrap_or(1);
        pass
    }

    fn run(&self) {
        for _ in 0..self.rounds {
            let _product = self.matrix.matmul(&self.matrix);
        }
    }
}

struct Subject<'a> {
    device: Device,
    dir: &'a Path,
    tensors: Named,
    storage: Arc<LocalStorage>,
}

impl Subject<'_> {
    fn path(&self) -> Result<CheckpointPath> {
        CheckpointPath::parse(self.dir.join("figures"))
    }

    fn options() -> SaveOptions {
        // All of it is written, although nothing has changed since the last time.
        let on_existing = OnExisting::Replace;
        SaveOptions { on_existing, copy_unchanged: true, ..SaveOptions::default() }
    }

    /// A save beside the caller; what `until_copied` takes of the caller's time, that of the call
    /// included.
    fn beside(&self, overlapped: bool, until_copied: impl FnOnce(&PendingSave)) -> Result<f64> {
        let (group, storage): (_, Arc<dyn Storage>) = (group(), self.storage.clone());
        let state = state(&self.tensors, overlapped)?;
        synchronize(self.device);
        let begun = Instant::now();
        let (path, options) = (self.path()?, Self::options());
        let begin = if overlapped { save_async_overlapped } else { save_async };
        let pending = begin(&group, &storage, &path, &state, &options, Box::new(|_| {}))?;
        until_copied(&pending);
        let held = begun.elapsed().as_secs_f64();
        pending.wait()?;
        Ok(held)
    }

    /// How long the caller is held.
    fn stall(&self) -> Result<f64> {
        self.beside(false, |_| {})
    }

    /// The time of a pass, until the optimizer may go on.
    fn overlapped(&self, pass: &Pass) -> Result<f64> {
        self.beside(true, |pending| {
            pass.run();
            synchronize(self.device);
            pending.wait_copied();
        })
    }

    fn save(&self) -> Result<f64> {
        let state = state(&self.tensors, false)?;
        synchronize(self.device);
        let begun = Instant::now();
        let (path, options) = (self.path()?, Self::options());
        save(&group(), self.storage.as_ref(), &path, &state, &options)?;
        Ok(begun.elapsed().as_secs_f64())
    }

    fn load(&self, atomicity: Atomicity) -> Result<f64> {
        let into = ones_like(&self.tensors, self.device);
        let (wanted, rules) = (Wanted::parse(self.dir.join("figures"))?, LoadRules::default());
        synchronize(self.device);
        let begun = Instant::now();
        let mut all = targets(&into)?;
        load(&group(), self.storage.as_ref(), &wanted, &mut all, &rules, atomicity)?;
        drop(all);
        synchronize(self.device);
        let time = begun.elapsed().as_secs_f64();
        // A figure of something that is wrong is none.
        match first_difference(&self.tensors, &into) {
            Some(what) => Err(crate::failed(what)),
            None => Ok(time),
        }
    }
}

/// One for all, so that memory of earlier saves is used again.
fn group() -> ProcessGroup {
    static GROUP: std::sync::OnceLock<ProcessGroup> = std::sync::OnceLock::new();
    GROUP.get_or_init(ProcessGroup::solo).clone()
}
