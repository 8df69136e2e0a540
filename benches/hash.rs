//! What the sums of a checkpoint cost on one core: BLAKE3 of blocks, whose size is a choice of the
//! format.
#![allow(missing_docs, reason = "criterion's macros make items without")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tch_checkpoint::manifest::hash16;

/// Fits the cache of a core, as a block does that was just copied.
const BYTES: usize = 256 * 1024;

fn block_sums(c: &mut Criterion) {
    let bytes: Vec<u8> =
        (0..BYTES).map(|i| u8::try_from(i * 7 % 251).unwrap_or_default()).collect();
    let mut group = c.benchmark_group("block sums");
    group.throughput(Throughput::Bytes(BYTES as u64));
    for block in [4, 16, 64] {
        group.bench_with_input(BenchmarkId::new("KiB", block), &block, |b, block| {
            b.iter(|| {
                black_box(&bytes).chunks(block * 1024).map(hash16).fold(0, |sum, h| sum ^ h[0])
            });
        });
    }
    group.finish();
}

criterion_group!(benches, block_sums);
criterion_main!(benches);
