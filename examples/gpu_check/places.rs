//! From the device to the CPU and back, in every kind and with strides; and a device that is full.

use std::path::Path;

use serde_json::json;
use tch::{Device, Kind, Tensor};
use tch_checkpoint::load::{Atomicity, load};
use tch_checkpoint::plan::load::LoadRules;
use tch_checkpoint::save::{SaveOptions, save};
use tch_checkpoint::storage::LocalStorage;
use tch_checkpoint::{CheckpointPath, OnExisting, ProcessGroup, Result, catalog::Wanted};

use crate::tensors::{Named, first_difference, ones_like, state, synchronize, targets};
use crate::{Outcome, failed};

const KINDS: [Kind; 9] = [
    Kind::Float,
    Kind::Double,
    Kind::Half,
    Kind::BFloat16,
    Kind::Int64,
    Kind::Int,
    Kind::Int8,
    Kind::Uint8,
    Kind::Bool,
];

/// One of each kind, some with strides, one without elements, one without dimensions.
fn tensors(device: Device) -> Named {
    let whole = |kind| (Tensor::randn([257, 33], (Kind::Float, device)) * 10.0).to_kind(kind);
    let mut all: Named = KINDS.iter().map(|kind| (format!("{kind:?}"), whole(*kind))).collect();
    all.push(("strided".into(), whole(Kind::Float).tr()));
    // More than one slot of a ring, and more than one part of what is gathered.
    all.push(("strided.large".into(), Tensor::randn([1537, 1025], (Kind::Float, device)).tr()));
    let bytes = [(20 << 20) + 3];
    all.push(("large".into(), Tensor::randint_low(-128, 128, bytes, (Kind::Int8, device))));
    all.push(("part".into(), whole(Kind::Int64).narrow(1, 3, 7)));
    all.push(("empty".into(), Tensor::zeros([0, 4], (Kind::Float, device))));
    all.push(("scalar".into(), Tensor::from(2.5f32).to_device(device)));
    all
}

pub(crate) fn run(device: Device, dir: &Path, spoil: bool) -> Result<Outcome> {
    let mut ways = Vec::new();
    for (from, to) in [(device, Device::Cpu), (Device::Cpu, device), (device, device)] {
        for atomicity in [Atomicity::Atomic, Atomicity::InPlace] {
            if let Some(what) = one_way(dir, from, to, atomicity, spoil)? {
                return Ok(Outcome::Failed(format!("{from:?} to {to:?}, {atomicity:?}: {what}")));
            }
            ways.push(format!("{from:?} to {to:?}, {atomicity:?}"));
        }
    }
    Ok(Outcome::Passed(json!({ "ways": ways, "kinds": KINDS.len() })))
}

fn one_way(
    dir: &Path,
    from: Device,
    to: Device,
    atomicity: Atomicity,
    spoil: bool,
) -> Result<Option<String>> {
    let saved = tensors(from);
    save_as(dir, "places", &saved)?;
    let loaded = ones_like(&saved, to);
    // Into strides as well.
    let loaded: Named = loaded
        .into_iter()
        .map(|(name, t)| {
            let has_strides = name.starts_with("strided");
            (name, if has_strides { t.tr().contiguous().tr() } else { t })
        })
        .collect();
    load_from(dir, "places", &loaded, atomicity)?;
    if spoil && let Some((_, first)) = loaded.first() {
        let _same = first.shallow_clone().g_add_scalar_(1.0);
    }
    synchronize(to);
    Ok(first_difference(&saved, &loaded))
}

fn save_as(dir: &Path, name: &str, tensors: &Named) -> Result<()> {
    let options = SaveOptions { on_existing: OnExisting::Replace, ..SaveOptions::default() };
    let (group, path) = (ProcessGroup::solo(), CheckpointPath::parse(dir.join(name))?);
    save(&group, &LocalStorage::new(), &path, &state(tensors, false)?, &options).map(drop)
}

fn load_from(dir: &Path, name: &str, into: &Named, atomicity: Atomicity) -> Result<()> {
    let (group, wanted) = (ProcessGroup::solo(), Wanted::parse(dir.join(name))?);
    let (mut targets, rules) = (targets(into)?, LoadRules::default());
    load(&group, &LocalStorage::new(), &wanted, &mut targets, &rules, atomicity).map(drop)
}

/// Takes what the device has left, then loads into tensors that are there: contiguous ones need no
/// more memory of the device; with strides they do, and either come whole or stay as they were.
pub(crate) fn memory(device: Device, dir: &Path) -> Result<Outcome> {
    if device == Device::Cpu {
        return Ok(Outcome::Skipped("needs a GPU, whose memory is taken".to_owned()));
    }
    let saved = crate::tensors::model(64, device);
    save_as(dir, "memory", &saved)?;
    let contiguous = ones_like(&saved, device);
    let strided: Named = saved.iter().map(|(name, t)| (name.clone(), with_stride(t))).collect();
    let before: Named = strided.iter().map(|(name, t)| (name.clone(), t.copy())).collect();
    let taken = take_all(device)?;
    load_from(dir, "memory", &contiguous, Atomicity::Atomic)?;
    if let Some(what) = first_difference(&saved, &contiguous) {
        return Ok(Outcome::Failed(what));
    }
    let (with_strides, expected) = match load_from(dir, "memory", &strided, Atomicity::Atomic) {
        Ok(()) => ("loaded".to_owned(), &saved),
        Err(error) => (format!("unchanged: {error}"), &before),
    };
    drop(taken);
    if let Some(what) = first_difference(expected, &strided) {
        return Ok(Outcome::Failed(format!("with strides: {what}, after: {with_strides}")));
    }
    Ok(Outcome::Passed(json!({ "contiguous": "loaded", "with_strides": with_strides })))
}

fn with_stride(like: &Tensor) -> Tensor {
    Tensor::ones([like.numel() as i64, 2], (like.kind(), like.device())).select(1, 0)
}

fn take_all(device: Device) -> Result<Vec<Tensor>> {
    let (mut taken, mut size) = (Vec::new(), 4i64 << 30);
    while size >= 1 << 20 {
        match Tensor::f_zeros([size], (Kind::Uint8, device)) {
            Ok(tensor) => taken.push(tensor),
            Err(_) => size /= 2,
        }
    }
    match Tensor::f_zeros([64i64 << 20], (Kind::Uint8, device)) {
        Ok(_) => Err(failed("the device is not full")),
        Err(_) => Ok(taken),
    }
}
