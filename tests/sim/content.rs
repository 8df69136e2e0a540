//! What simulated jobs save: tensors whose bytes follow from the step and their place.

use std::sync::Arc;

use tch_checkpoint::manifest::{AUTOMATIC, METRICS, Manifest};
use tch_checkpoint::slice::Slice;
use tch_checkpoint::state::{LoadTargets, StateDict};
use tch_checkpoint::tensor::{Component, Dtype, TensorName, TensorSpec};

/// Bytes of the tensor that every rank holds whole, and of that which ranks share out.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    pub whole: u64,
    pub shared: u64,
}

const WHOLE: &str = "whole";
const SHARED: &str = "shared";
/// Of a component of its own, which changes rarely: it is mostly linked.
const TRUNK: &str = "trunk";
/// It changes once in so many steps.
const TRUNK_STEPS: u64 = 5;

impl Sizes {
    fn tensors(self) -> [(&'static str, u64); 3] {
        [(WHOLE, self.whole), (SHARED, self.shared), (TRUNK, self.whole / 2 + 1)]
    }
}

/// Where rank `rank` of `n` holds what of a tensor; nothing of it if there is too little.
fn held(tensor: &str, len: u64, rank: u64, n: u64) -> Option<(u64, u64)> {
    if tensor != SHARED {
        return Some((0, len));
    }
    let (begin, end) = (len * rank / n, len * (rank + 1) / n);
    (begin < end).then_some((begin, end - begin))
}

fn bytes(tensor: &str, step: u64, begin: u64, len: u64) -> Vec<u8> {
    let step = if tensor == TRUNK { step / TRUNK_STEPS + 1_000_003 } else { step };
    let seed = (step * 2 + u64::from(tensor == WHOLE)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let byte = |at: u64| ((at ^ seed).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 56) as u8;
    (begin..begin + len).map(byte).collect()
}

fn spec(len: u64) -> TensorSpec {
    TensorSpec::new(Dtype::U8, vec![len]).expect("a small tensor")
}

fn name(tensor: &str) -> TensorName {
    TensorName::new(tensor).expect("a good name")
}

/// The loss that is stored with `step`: neither rises nor falls with it.
pub fn loss(step: u64) -> f64 {
    (step * 7 % 11) as f64
}

/// What `rank` of `n` saves at `step`.
pub fn state(sizes: Sizes, step: u64, rank: u64, n: u64) -> StateDict {
    let mut state = StateDict::new();
    for (tensor, len) in sizes.tensors() {
        let Some((begin, held)) = held(tensor, len, rank, n) else { continue };
        let slice = Slice::new(vec![begin], vec![held]).expect("inside");
        let source = Arc::new(bytes(tensor, step, begin, held));
        let component =
            if tensor == TRUNK { Component::new(TRUNK) } else { Ok(Component::model()) };
        let component = component.expect("a good component");
        let added = state.add_slice(&component, name(tensor), spec(len), slice, source);
        added.expect("a good state");
    }
    state.values.set(AUTOMATIC, true);
    state.values.set(format!("{METRICS}loss"), loss(step));
    state
}

/// Buffers for what `rank` of `n` holds, and what came into them.
pub struct Buffers {
    sizes: Sizes,
    parts: Vec<(&'static str, u64, u64, u64, Vec<u8>)>,
}

impl Buffers {
    pub fn of(sizes: Sizes, rank: u64, n: u64) -> Self {
        let part = |(tensor, len): (&'static str, u64)| {
            let (begin, held) = held(tensor, len, rank, n)?;
            Some((tensor, len, begin, held, vec![0xEE; held as usize]))
        };
        Self { sizes, parts: sizes.tensors().into_iter().filter_map(part).collect() }
    }

    pub fn targets(&mut self) -> LoadTargets<'_> {
        let mut targets = LoadTargets::new();
        for (tensor, len, begin, held, buffer) in &mut self.parts {
            let slice = Slice::new(vec![*begin], vec![*held]).expect("inside");
            let sink = Box::new(buffer.as_mut_slice());
            targets.add_slice(name(tensor), spec(*len), slice, sink).expect("good targets");
        }
        targets
    }

    /// What is wrong, if these are not the bytes of the step of `manifest`.
    pub fn check(&self, manifest: &Manifest) -> Result<(), String> {
        let step = manifest.step();
        for (tensor, _, begin, held, buffer) in &self.parts {
            if *buffer != bytes(tensor, step, *begin, *held) {
                return Err(format!("`{tensor}` of step {step} came with other bytes"));
            }
        }
        let wants = self.sizes.tensors().map(|(tensor, _)| tensor);
        let has = wants.iter().all(|tensor| manifest.tensor(tensor).is_some());
        if has { Ok(()) } else { Err(format!("step {step} lacks a tensor")) }
    }
}
