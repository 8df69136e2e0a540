//! What hashes cost on one core: BLAKE3 of blocks, whose size is a choice of the format, and the
//! hash of an audit, beside BLAKE3 and a copy of the same bytes.
#![allow(missing_docs, reason = "criterion's macros make items without")]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tch_checkpoint::audit::fingerprint;
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

/// Far more than the caches hold.
const STATE_BYTES: usize = 1 << 30;
/// Bytes of which an audit sees to at once.
const CHUNK_BYTES: usize = 1 << 20;

fn audits(c: &mut Criterion) {
    let bytes: Vec<u8> = (0..=250).cycle().take(STATE_BYTES).collect();
    let mut copy = vec![1; STATE_BYTES];
    let mut group = c.benchmark_group("audit");
    group.throughput(Throughput::Bytes(STATE_BYTES as u64)).sample_size(10);
    group.bench_function("fingerprint", |b| b.iter(|| fingerprint(black_box(&bytes))));
    group.bench_function("BLAKE3", |b| {
        b.iter(|| {
            let mut hasher = blake3::Hasher::new();
            black_box(&bytes).chunks(CHUNK_BYTES).for_each(|chunk| {
                hasher.update(chunk);
            });
            hasher.finalize()
        });
    });
    group.bench_function("copy", |b| b.iter(|| copy.copy_from_slice(black_box(&bytes))));
    group.bench_function("read", |b| {
        b.iter(|| {
            let (words, _) = black_box(&bytes).as_chunks::<8>();
            words.iter().fold(0, |all, word| all ^ u64::from_ne_bytes(*word))
        });
    });
}

criterion_group!(benches, block_sums, audits);
criterion_main!(benches);
