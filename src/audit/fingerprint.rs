//! The hash of an audit: as fast as memory is read, on hosts and on devices, with the same result.
//!
//! It finds faults and drift. It is **no** defence against whoever wants two unequal boxes to look
//! equal: its keys are known.
//!
//! # Formula
//! All numbers are unsigned; `mix` is the finaliser of SplitMix64 (Steele, Lea and Flood, "Fast
//! splittable pseudorandom number generators", 2014), a bijection of 64 bits.
//!
//! 1. A box is cut into blocks of 4096 bytes, a block into words of 8 bytes, little-endian; what is
//!    missing of the last pair of words is zero. Blocks are summed up by NH, the universal hash of
//!    UMAC (Black, Halevi, Krawczyk, Krovetz and Rogaway, "UMAC: fast and secure message
//!    authentication", 1999), with words of 64 bits: the sum modulo 2¹²⁸ over the pairs of words of
//!    `(w₂ᵢ + k₂ᵢ) · (w₂ᵢ₊₁ + k₂ᵢ₊₁)`, in which the sums are modulo 2⁶⁴ and the products are whole.
//!    `kⱼ = mix(KEYS + (j + 1) · GOLDEN)`.
//! 2. The two halves of the sum of block `n` go through three rounds of a Feistel network, keyed by
//!    `n`: `h += mix(l ^ (BLOCKS + n · GOLDEN))`, `l += mix(h)`, `h += mix(l)`, modulo 2⁶⁴.
//! 3. The sums of all `l` and of all `h`, modulo 2⁶⁴, so that blocks may come in any order, go
//!    through the same rounds, keyed by the number of bytes instead.
//!
//! # What goes unseen
//! For any two unequal boxes of one length, at most one choice of keys in 2⁶⁴ makes the sums of a
//! differing block equal, and step 2 is a bijection: a difference within one block is missed with
//! a probability of at most 2⁻⁶⁴. Differences in several blocks cancel in both sums of step 3
//! with one of about 2⁻¹²⁸. That the keys are fixed, not drawn, matters only to data made for them.
//! A difference within one word is seen unless the word beside it has one certain value of 2⁶⁴.

#[cfg(test)]
mod kernel_tests;
#[cfg(test)]
mod tests;

/// What a hash of a whole box is.
pub(super) type Digest = [u8; 16];

/// Parts of a box that are hashed apart begin at multiples of this.
pub(super) const BLOCK_BYTES: usize = 4096;
/// Words of a block.
const WORDS: usize = BLOCK_BYTES / 8;
/// 2⁶⁴ divided by the golden ratio, to the nearest odd number.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
// The first digits of π behind the point.
const KEYS: u64 = 0x243F_6A88_85A3_08D3;
const BLOCKS: u64 = 0x1319_8A2E_0370_7344;
const LENGTHS: u64 = 0xA409_3822_299F_31D0;

static KEY_PAIRS: [[u64; 2]; WORDS / 2] = key_pairs();

const fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

const fn key(word: u64) -> u64 {
    mix(KEYS.wrapping_add((word + 1).wrapping_mul(GOLDEN)))
}

const fn key_pairs() -> [[u64; 2]; WORDS / 2] {
    let mut keys = [[0; 2]; WORDS / 2];
    let mut pair = 0;
    while pair < WORDS / 2 {
        keys[pair] = [key(2 * pair as u64), key(2 * pair as u64 + 1)];
        pair += 1;
    }
    keys
}

/// The sums over the blocks of a box, in any order: steps 1 and 2.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sums([u64; 2]);

impl Sums {
    /// What a device has summed up.
    pub(super) fn new(low_and_high: [u64; 2]) -> Self {
        Self(low_and_high)
    }

    #[cfg(test)]
    pub(super) fn low_and_high(self) -> [u64; 2] {
        self.0
    }

    /// The blocks of `bytes`, the first of which is number `first` of the box. Only the last of the
    /// box may be shorter than the others.
    pub(super) fn of(first: u64, bytes: &[u8]) -> Self {
        let blocks = (first..).zip(bytes.chunks(BLOCK_BYTES));
        blocks.fold(Self::default(), |sums, (number, block)| {
            sums.plus(Self(rounds(halves(sum(block)), block_key(number))))
        })
    }

    pub(super) fn plus(self, Self([low, high]): Self) -> Self {
        Self([self.0[0].wrapping_add(low), self.0[1].wrapping_add(high)])
    }

    /// The hash of a box of so many bytes, all blocks of which are summed up: step 3.
    pub(super) fn finish(self, bytes: u64) -> Digest {
        let [low, high] = rounds(self.0, LENGTHS.wrapping_add(bytes.wrapping_mul(GOLDEN)));
        (u128::from(low) | u128::from(high) << 64).to_le_bytes()
    }
}

/// The hash by which an [`audit`](super::audit) compares replicas.
///
/// It finds faults, not forgeries: two boxes of one length that differ by chance have equal hashes
/// with a probability of at most 2⁻⁶⁴, but whoever wants to can make two that have.
///
/// ```
/// let hash = tch_checkpoint::audit::fingerprint(b"some bytes");
/// assert_ne!(hash, tch_checkpoint::audit::fingerprint(b"some bites"));
/// ```
#[must_use]
pub fn fingerprint(bytes: &[u8]) -> [u8; 16] {
    Sums::of(0, bytes).finish(bytes.len() as u64)
}

fn block_key(number: u64) -> u64 {
    BLOCKS.wrapping_add(number.wrapping_mul(GOLDEN))
}

fn rounds([low, high]: [u64; 2], key: u64) -> [u64; 2] {
    let high = high.wrapping_add(mix(low ^ key));
    let low = low.wrapping_add(mix(high));
    [low, high.wrapping_add(mix(low))]
}

#[inline(always)]
#[allow(clippy::cast_possible_truncation, reason = "the halves")]
fn halves(sum: u128) -> [u64; 2] {
    [sum as u64, (sum >> 64) as u64]
}

/// Step 1.
fn sum(block: &[u8]) -> u128 {
    let (pairs, last) = block.as_chunks::<16>();
    let (fours, rest) = pairs.as_chunks::<4>();
    let (key_fours, _) = KEY_PAIRS.as_chunks::<4>();
    // Two sums, so that additions need not wait for one another, and no iterator inside: what is
    // called here is called for every 64 bytes.
    let (mut even, mut odd) = (0u128, 0u128);
    for ([a, b, c, d], [keys_a, keys_b, keys_c, keys_d]) in fours.iter().zip(key_fours) {
        even = even.wrapping_add(product(a, keys_a)).wrapping_add(product(c, keys_c));
        odd = odd.wrapping_add(product(b, keys_b)).wrapping_add(product(d, keys_d));
    }
    let mut padded = [0; 16];
    padded.iter_mut().zip(last).for_each(|(to, from)| *to = *from);
    let rest = rest.iter().chain((!last.is_empty()).then_some(&padded));
    let keys = KEY_PAIRS.iter().skip(fours.len() * 4);
    rest.zip(keys)
        .fold(even.wrapping_add(odd), |all, (pair, keys)| all.wrapping_add(product(pair, keys)))
}

#[inline(always)]
fn product(pair: &[u8; 16], keys: &[u64; 2]) -> u128 {
    let [first, second] = halves(u128::from_le_bytes(*pair));
    u128::from(first.wrapping_add(keys[0])) * u128::from(second.wrapping_add(keys[1]))
}
