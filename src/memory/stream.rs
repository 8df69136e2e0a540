//! Copying large pieces past the caches.

/// From here on a copy goes past the caches. They hold no more of what is copied at once, and a
/// store that goes through them reads first what it replaces: a third of the memory traffic.
#[cfg(target_arch = "x86_64")]
const LEAST: usize = 32 << 10;

/// Copies `from` into the begin of `to`, as far as both reach.
pub(crate) fn copy(from: &[u8], to: &mut [u8]) {
    let len = from.len().min(to.len());
    let (from, to) = (&from[..len], &mut to[..len]);
    #[cfg(target_arch = "x86_64")]
    if len >= LEAST {
        return past_the_caches(from, to);
    }
    to.copy_from_slice(from);
}

/// Both of one length.
#[cfg(target_arch = "x86_64")]
fn past_the_caches(from: &[u8], to: &mut [u8]) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_sfence, _mm_stream_si128};
    // SAFETY: any bytes are a valid `__m128i`, and the other way round.
    #[allow(unsafe_code)]
    let (head, words, tail) = unsafe { to.align_to_mut::<__m128i>() };
    let (from_head, rest) = from.split_at(head.len());
    let (from_words, from_tail) = rest.split_at(size_of_val(words));
    head.copy_from_slice(from_head);
    for (from, word) in from_words.chunks_exact(size_of::<__m128i>()).zip(words) {
        // SAFETY: SSE2 is part of this architecture; `from` has the bytes of one word, and `word`
        // is an aligned one that nobody else uses.
        #[allow(unsafe_code)]
        unsafe {
            _mm_stream_si128(word, _mm_loadu_si128(from.as_ptr().cast()));
        }
    }
    tail.copy_from_slice(from_tail);
    // SAFETY: as above. Stores past the caches come in any order without it, also after whatever
    // tells another thread that they are done.
    #[allow(unsafe_code)]
    unsafe {
        _mm_sfence();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_and_no_other_is_copied() {
        let from: Vec<u8> = (0..=250u8).cycle().take(200_000).collect();
        for len in [0, 1, 15, 17, 4_096, 32_767, 32_768, 40_001, 131_072] {
            for (skip, begin) in [(0, 0), (1, 0), (0, 1), (3, 7), (16, 5), (9, 16)] {
                let mut to = vec![0xEE; len + 64];
                copy(&from[skip..skip + len], &mut to[begin..begin + len]);
                assert_eq!(to[begin..begin + len], from[skip..skip + len], "{len} {skip} {begin}");
                assert!(to[..begin].iter().chain(&to[begin + len..]).all(|byte| *byte == 0xEE));
            }
        }
    }
}
