use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

/// The formula, word for word and slowly.
fn by_the_letter(bytes: &[u8]) -> Digest {
    let word = |bytes: &[u8], at: usize| {
        let byte = |i: usize| u64::from(bytes.get(8 * at + i).copied().unwrap_or(0));
        (0..8).fold(0, |word, i| word | byte(i) << (8 * i))
    };
    let k = |j: usize| mix(KEYS.wrapping_add((j as u64 + 1).wrapping_mul(GOLDEN)));
    let (mut low_sum, mut high_sum) = (0u64, 0u64);
    for (n, block) in bytes.chunks(4096).enumerate() {
        let mut sum = 0u128;
        for i in 0..block.len().div_ceil(16) {
            let first = word(block, 2 * i).wrapping_add(k(2 * i));
            let second = word(block, 2 * i + 1).wrapping_add(k(2 * i + 1));
            sum = sum.wrapping_add(u128::from(first) * u128::from(second));
        }
        let half = |shift: u32| u64::try_from(sum >> shift & u128::from(u64::MAX)).unwrap();
        let (mut l, mut h) = (half(0), half(64));
        h = h.wrapping_add(mix(l ^ BLOCKS.wrapping_add((n as u64).wrapping_mul(GOLDEN))));
        l = l.wrapping_add(mix(h));
        h = h.wrapping_add(mix(l));
        (low_sum, high_sum) = (low_sum.wrapping_add(l), high_sum.wrapping_add(h));
    }
    let (mut l, mut h) = (low_sum, high_sum);
    let key = LENGTHS.wrapping_add((bytes.len() as u64).wrapping_mul(GOLDEN));
    h = h.wrapping_add(mix(l ^ key));
    l = l.wrapping_add(mix(h));
    h = h.wrapping_add(mix(l));
    let mut digest = [0; 16];
    digest[..8].copy_from_slice(&l.to_le_bytes());
    digest[8..].copy_from_slice(&h.to_le_bytes());
    digest
}

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let words = (0..len.div_ceil(8) as u64).flat_map(|n| mix(seed ^ mix(n + 1)).to_le_bytes());
    words.take(len).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Ranks of different builds compare hashes.
#[test]
fn the_hash_of_known_bytes_does_not_change() {
    let counted: Vec<u8> = (0..=255).cycle().take(10_000).collect();
    let hashes = [&[][..], b"a", &counted].map(|bytes| hex(&fingerprint(bytes)));
    assert_eq!(
        hashes,
        [
            "2a3afb6c3585bd55b56f8f17b33640f8",
            "57ff65a4af1a8038b2ad38a23aac7ad6",
            "ba539bc94ec442668f087c49c1094007",
        ]
    );
}

#[test]
fn every_flip_of_one_bit_is_seen() {
    for len in [1, 8, 24, 300, 4100] {
        for mut bytes in [vec![0; len], noise(len, 5)] {
            let whole = fingerprint(&bytes);
            for bit in 0..8 * len {
                bytes[bit / 8] ^= 1 << (bit % 8);
                assert_ne!(fingerprint(&bytes), whole, "bit {bit} of {len} bytes");
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
        }
    }
}

/// Sums of places alone would be equal for many of these: a value at places 0 and 3, or at 1 and 2.
/// Each half is looked at, to see what the other would hide.
#[test]
fn two_values_in_zeros_hash_apart_in_either_half_wherever_they_lie() {
    let (mut seen, mut count) = ([HashSet::new(), HashSet::new()], 0);
    let places: Vec<usize> = (0..70).chain(1010..1040).map(|place| 4 * place).collect();
    let mut bytes = vec![0; 4096 + 64];
    for (number, first) in places.iter().enumerate() {
        for second in &places[number + 1..] {
            for values in [[1f32, 1.0], [1.0, -1.0], [-1.0, 1.0], [2.0, 1.0]] {
                bytes[*first..][..4].copy_from_slice(&values[0].to_le_bytes());
                bytes[*second..][..4].copy_from_slice(&values[1].to_le_bytes());
                let Sums(halves) = Sums::of(0, &bytes);
                seen.iter_mut().zip(halves).for_each(|(seen, half)| seen.extend([half]));
                count += 1;
            }
            bytes[*second..][..4].fill(0);
        }
        bytes[*first..][..4].fill(0);
    }
    assert_eq!(seen.map(|seen| seen.len()), [count; 2]);
}

#[test]
fn zeros_of_different_lengths_hash_apart() {
    let zeros = vec![0; 20_000];
    let hashes: HashSet<_> =
        (0..=20_000).step_by(7).map(|len| fingerprint(&zeros[..len])).collect();
    assert_eq!(hashes.len(), 20_000 / 7 + 1);
    // Also where zeros end behind other bytes: padding is none of them.
    assert_ne!(fingerprint(&[7; 9]), fingerprint(&[[7; 9].as_slice(), &[0; 7]].concat()));
}

/// A key that were zero beside a word that is zero would hide the word beside it.
#[test]
fn no_key_is_zero_or_used_twice() {
    let keys: HashSet<_> = KEY_PAIRS.iter().flatten().copied().collect();
    assert_eq!(keys.len(), WORDS);
    assert!(!keys.contains(&0));
}

proptest! {
    #[test]
    fn the_fast_way_is_the_formula(len in 0usize..20_000, seed: u64) {
        let bytes = noise(len, seed);
        prop_assert_eq!(fingerprint(&bytes), by_the_letter(&bytes));
    }

    #[test]
    fn parts_may_come_in_any_order(len in 0usize..40_000, part in 1usize..4, seed: u64) {
        let bytes = noise(len, seed);
        let mut parts: Vec<_> = bytes.chunks(part * BLOCK_BYTES).enumerate().collect();
        parts.sort_by_key(|(number, _)| mix(seed ^ *number as u64));
        let sums = parts.iter().map(|(number, bytes)| Sums::of((number * part) as u64, bytes));
        let sums = sums.fold(Sums::default(), Sums::plus);
        prop_assert_eq!(sums.finish(len as u64), fingerprint(&bytes));
    }

    #[test]
    fn parts_that_change_places_are_seen(
        size in prop::sample::select(vec![1usize, 2, 4, 8, 16, 32, 4096]),
        (a, b) in (0usize..1000, 0usize..1000),
        seed: u64,
    ) {
        let bytes = noise(4 * 4096, seed);
        let parts = bytes.len() / size;
        let (a, b) = (a % parts * size, b % parts * size);
        let mut swapped = bytes.clone();
        swapped[a..a + size].copy_from_slice(&bytes[b..b + size]);
        swapped[b..b + size].copy_from_slice(&bytes[a..a + size]);
        prop_assert_eq!(fingerprint(&bytes) == fingerprint(&swapped), bytes == swapped);
    }

    /// `+d` at one place and `-d` at another, or `+d`, `-2d` and `+d` at equal distances, leave sums
    /// of words, and of words times places, as they are.
    #[test]
    fn differences_that_cancel_in_sums_are_seen(
        (first, apart) in (0usize..600, 1usize..600),
        difference in prop_oneof![Just(1u64), Just(1 << 31), Just(1 << 32), Just(1 << 63), 1u64..],
        background in prop_oneof![Just(None), any::<u64>().prop_map(Some)],
    ) {
        let bytes = background.map_or_else(|| vec![0; 3 * 4096], |seed| noise(3 * 4096, seed));
        let add = |to: &mut [u8], word: usize, difference: u64| {
            let place = &mut to[8 * word..][..8];
            let now = u64::from_le_bytes((&*place).try_into().unwrap());
            place.copy_from_slice(&now.wrapping_add(difference).to_le_bytes());
        };
        let (second, third) = (first + apart / 2 + 1, first + 2 * (apart / 2 + 1));
        let mut two = bytes.clone();
        add(&mut two, first, difference);
        add(&mut two, second, difference.wrapping_neg());
        prop_assert_ne!(fingerprint(&two), fingerprint(&bytes));
        let mut three = bytes.clone();
        add(&mut three, first, difference);
        add(&mut three, second, difference.wrapping_mul(2).wrapping_neg());
        add(&mut three, third, difference);
        prop_assert_ne!(fingerprint(&three), fingerprint(&bytes));
    }
}
