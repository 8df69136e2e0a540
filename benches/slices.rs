//! Boxes: how they meet, and where their bytes lie.
#![allow(missing_docs, reason = "criterion's macros make items without")]
#![allow(clippy::unwrap_used, reason = "the boxes are given here")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tch_checkpoint::slice::Slice;

fn boxed(offsets: &[u64], lengths: &[u64]) -> Slice {
    Slice::new(offsets.to_vec(), lengths.to_vec()).unwrap()
}

fn runs(c: &mut Criterion) {
    let whole = Slice::full(&[1024, 16, 64]);
    let cases = [
        ("rows", boxed(&[256, 0, 0], &[256, 16, 64])),
        ("columns", boxed(&[0, 0, 16], &[1024, 16, 16])),
    ];
    let mut group = c.benchmark_group("runs_of");
    for (name, part) in cases {
        group.throughput(Throughput::Elements(whole.runs_of(&part).count() as u64));
        group.bench_function(name, |b| {
            b.iter(|| {
                black_box(&whole).runs_of(black_box(&part)).map(|run| run.from ^ run.to).max()
            });
        });
    }
    group.finish();
}

/// As a load on other ranks than saved meets its pieces: the box of each with the box of each.
fn intersections(c: &mut Criterion) {
    let rows = |count: u64| -> Vec<Slice> {
        let len = 4096 / count;
        (0..count).map(|index| boxed(&[index * len, 0], &[len, 1024])).collect()
    };
    let (saved, wanted) = (rows(64), rows(16));
    let mut group = c.benchmark_group("intersect");
    group.throughput(Throughput::Elements((saved.len() * wanted.len()) as u64));
    group.bench_function("64 to 16 ranks", |b| {
        let met = |a: &Slice| wanted.iter().filter_map(|b| a.intersect(b)).count();
        b.iter(|| black_box(&saved).iter().map(met).sum::<usize>());
    });
    group.finish();
}

criterion_group!(benches, runs, intersections);
criterion_main!(benches);
