//! What deciding costs: plans of ranks, merging them, the manifest, and the plan of a load. No
//! storage; `tch-checkpoint bench plan` does the same once, for as many ranks as one likes.
#![allow(missing_docs, reason = "criterion's macros make items without")]
#![allow(clippy::unwrap_used, reason = "the state is given here")]

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use tch_checkpoint::layout::SaveId;
use tch_checkpoint::manifest::{Manifest, SealInfo};
use tch_checkpoint::plan::load::{LoadRules, WantedBox, plan_load};
use tch_checkpoint::plan::save::{MergedPlan, local_plan, merge_plans};
use tch_checkpoint::plan::{LocalPlan, Receipt, SaveTarget};
use tch_checkpoint::slice::Slice;
use tch_checkpoint::state::{StateDict, TensorSource};
use tch_checkpoint::tensor::{Component, Dtype, TensorName, TensorSpec};

const RANKS: u64 = 32;
const TENSORS: u64 = 500;

/// Bytes that nobody reads: planning does not.
struct Nowhere;

impl TensorSource for Nowhere {
    fn read_into(&self, _: u64, out: &mut [u8]) -> tch_checkpoint::Result<()> {
        out.fill(0);
        Ok(())
    }
}

fn boxes(rank: u64) -> impl Iterator<Item = (TensorName, TensorSpec, Slice)> {
    (0..TENSORS).map(move |index| {
        let name = TensorName::new(format!("layers.{index:05}.weight")).unwrap();
        let spec = TensorSpec::new(Dtype::F32, [4 * RANKS, 1024]).unwrap();
        (name, spec, Slice::new(vec![4 * rank, 0], vec![4, 1024]).unwrap())
    })
}

fn state(rank: u64) -> StateDict {
    let mut state = StateDict::new();
    let source: Arc<dyn TensorSource> = Arc::new(Nowhere);
    for (name, spec, slice) in boxes(rank) {
        state.add_slice(&Component::model(), name, spec, slice, Arc::clone(&source)).unwrap();
    }
    state
}

fn target() -> SaveTarget {
    let (directory, name) = ("runs".to_owned(), "x".to_owned());
    SaveTarget { directory, name, step: 1, ..SaveTarget::default() }
}

fn plans() -> Vec<LocalPlan> {
    (0..RANKS).map(|rank| local_plan(target(), &state(rank))).collect()
}

fn seal(merged: &MergedPlan, receipts: Vec<Receipt>) -> Manifest {
    Manifest::seal(merged, receipts, Vec::new(), SealInfo::default()).unwrap()
}

fn saving(c: &mut Criterion) {
    let (first, plans) = (state(0), plans());
    let merged = merge_plans(SaveId::random().unwrap(), &plans).unwrap();
    let receipts: Vec<Receipt> = merged.plans.iter().map(Receipt::as_planned).collect();
    let manifest = seal(&merged, receipts.clone());
    let mut group = c.benchmark_group("plan of a save");
    group.throughput(Throughput::Elements(TENSORS));
    group.bench_function("local_plan", |b| b.iter(|| local_plan(target(), black_box(&first))));
    group.throughput(Throughput::Elements(RANKS * TENSORS));
    group.bench_function("merge_plans", |b| {
        b.iter(|| merge_plans(merged.save_id, black_box(&plans)).unwrap());
    });
    group.bench_function("seal", |b| {
        b.iter_batched(|| receipts.clone(), |r| seal(black_box(&merged), r), BatchSize::LargeInput);
    });
    group.bench_function("encode", |b| b.iter(|| black_box(&manifest).encode().unwrap()));
    group.finish();
}

fn loading(c: &mut Criterion) {
    let merged = merge_plans(SaveId::random().unwrap(), &plans()).unwrap();
    let manifest = seal(&merged, merged.plans.iter().map(Receipt::as_planned).collect());
    let bytes = manifest.encode().unwrap();
    let wanted = |(name, spec, slice)| WantedBox::new(name, spec, slice).unwrap();
    let wanted: Vec<WantedBox> = boxes(RANKS / 2).map(wanted).collect();
    let mut group = c.benchmark_group("plan of a load");
    group.throughput(Throughput::Elements(RANKS * TENSORS));
    group.bench_function("parse", |b| b.iter(|| Manifest::parse(black_box(&bytes)).unwrap()));
    group.bench_function("plan_load", |b| {
        b.iter(|| plan_load(&manifest, black_box(&wanted), &LoadRules::default()));
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = saving, loading
}
criterion_main!(benches);
