//! The bytes of a workload: one stream of little-endian words, word k of which is SplitMix64
//! (Steele, Lea and Flood 2014) of the seed after k + 1 steps.

use crate::error::{Error, ErrorKind, Result};

/// By how much the state of SplitMix64 grows with each step.
const STEP: u64 = 0x9E37_79B9_7F4A_7C15;
const WORD: usize = 8;
/// Bytes that are compared at once.
const CHUNK: usize = 64 * 1024;

fn word(seed: u64, index: u64) -> u64 {
    let state = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(STEP));
    let state = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let state = (state ^ (state >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    state ^ (state >> 31)
}

/// Fills `out` with the bytes of the stream that begin at `at`.
pub(super) fn fill(seed: u64, at: u64, out: &mut [u8]) {
    let skipped = usize::try_from(at % WORD as u64).unwrap_or_default();
    let first = out.len().min((WORD - skipped) % WORD);
    let (head, rest) = out.split_at_mut(first);
    head.copy_from_slice(&word(seed, at / WORD as u64).to_le_bytes()[skipped..skipped + first]);
    let mut index = at.div_ceil(WORD as u64);
    let mut words = rest.chunks_exact_mut(WORD);
    for part in &mut words {
        part.copy_from_slice(&word(seed, index).to_le_bytes());
        index = index.wrapping_add(1);
    }
    let tail = words.into_remainder();
    tail.copy_from_slice(&word(seed, index).to_le_bytes()[..tail.len()]);
}

/// Whether `bytes` are those of the stream that begin at `at`.
///
/// # Errors
/// [`ErrorKind::Corrupt`] with the first byte that is another one.
pub(super) fn check(seed: u64, at: u64, bytes: &[u8], mut seen: impl FnMut(u64)) -> Result<()> {
    let mut expected = vec![0; CHUNK.min(bytes.len())];
    let mut done = 0;
    for part in bytes.chunks(CHUNK) {
        let expected = &mut expected[..part.len()];
        fill(seed, at + done, expected);
        // The comparison of slices is the fast one.
        if part != expected {
            let differs = part.iter().zip(expected.iter()).position(|(is, must)| is != must);
            let place = done + differs.unwrap_or_default() as u64;
            let message = format!("byte {place} is not the one that this spec has there");
            return Err(Error::new(ErrorKind::Corrupt, message)
                .with_help("was it saved with the same spec?"));
        }
        done += part.len() as u64;
        seen(part.len() as u64);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(at: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        fill(20_240_607, at, &mut out);
        out
    }

    #[test]
    fn the_stream_is_the_same_wherever_one_begins() {
        let whole = bytes(0, 64);
        for (at, len) in [(0, 0), (3, 10), (3, 2), (8, 8), (7, 1), (15, 49), (16, 5), (60, 4)] {
            let begin = usize::try_from(at).unwrap();
            assert_eq!(bytes(at, len), whole[begin..begin + len], "{at} + {len}");
        }
    }

    #[test]
    fn one_changed_byte_is_found() {
        let mut held = bytes(5, 200_000);
        assert!(check(20_240_607, 5, &held, |_| {}).is_ok());
        for place in [0, 65_536, 199_999] {
            held[place] ^= 1;
            let error = check(20_240_607, 5, &held, |_| {}).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt);
            assert!(error.message().contains(&format!("byte {place} ")), "{error}");
            held[place] ^= 1;
        }
    }
}
