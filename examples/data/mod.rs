//! The handwritten digits of `digits.bin`; source and licence: `README.md` beside it.

/// Pixels of an image, 8 rows of 8.
const PIXELS: usize = 64;
const PIXEL_BITS: usize = 5;
const PIXEL_MAX: f32 = 16.0;
/// A label byte and the packed pixels.
const RECORD_BYTES: usize = 1 + PIXELS * PIXEL_BITS / 8;

/// All 1,797 images, 64 pixels between 0 and 1 each and row by row, and their labels 0 to 9.
pub(crate) fn digits() -> (Vec<f32>, Vec<i64>) {
    let (records, _) = include_bytes!("digits.bin").as_chunks::<RECORD_BYTES>();
    let labels = records.iter().map(|&[label, ..]| i64::from(label)).collect();
    let images = records.iter().flat_map(|[_, packed @ ..]| unpack(packed)).collect();
    (images, labels)
}

/// Eight pixels from each five bytes, the first in the highest bits.
fn unpack(packed: &[u8]) -> impl Iterator<Item = f32> {
    packed.chunks(PIXEL_BITS).flat_map(|chunk| {
        let bits = chunk.iter().fold(0_u64, |bits, &byte| bits << 8 | u64::from(byte));
        (0..8).rev().map(move |pixel| (bits >> (pixel * PIXEL_BITS) & 0x1f) as f32 / PIXEL_MAX)
    })
}
