//! Converting elements between floating dtypes, as libtorch does.

use half::{bf16, f16};

use crate::error::{Error, ErrorKind, Result};
use crate::memory::reserve;
use crate::tensor::Dtype;

/// Whether [`cast`] knows this dtype: F16, BF16, F32 and F64.
#[must_use]
pub fn is_castable(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64)
}

/// Appends the little-endian elements `bytes` to `out` in another dtype; returns how many finite
/// values became infinite because `to` does not reach so far.
///
/// Rounds to nearest, ties to even. As in libtorch, F64 becomes F32 on its way to F16 and BF16.
/// A NaN stays a NaN; its payload may change.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for other dtypes; [`ErrorKind::InvalidInput`] for bytes that are no
/// whole number of elements; [`ErrorKind::Storage`] if memory is short.
pub fn cast(from: Dtype, to: Dtype, bytes: &[u8], out: &mut Vec<u8>) -> Result<u64> {
    let size = |dtype: Dtype| usize::try_from(dtype.size_bytes()).unwrap_or(usize::MAX);
    reserve(out, (bytes.len() / size(from).max(1)).saturating_mul(size(to)))?;
    match from {
        Dtype::F16 => {
            floats(bytes, |b| f16::from_le_bytes(b).to_f32()).and_then(|v| put(v, to, out))
        }
        Dtype::BF16 => {
            floats(bytes, |b| bf16::from_le_bytes(b).to_f32()).and_then(|v| put(v, to, out))
        }
        Dtype::F32 => floats(bytes, f32::from_le_bytes).and_then(|v| put(v, to, out)),
        Dtype::F64 if to == Dtype::F64 => {
            out.extend_from_slice(bytes);
            Ok(0)
        }
        Dtype::F64 => {
            let mut lost = 0;
            let values = floats(bytes, f64::from_le_bytes)?.map(|value| {
                let near = narrow(value);
                lost += u64::from(value.is_finite() && near.is_infinite());
                near
            });
            let count = put(values, to, out)?;
            Ok(count + lost)
        }
        _ => Err(unknown(from)),
    }
}

#[expect(clippy::cast_possible_truncation, reason = "rounding is what is wanted")]
fn narrow(value: f64) -> f32 {
    value as f32
}

fn unknown(dtype: Dtype) -> Error {
    Error::new(ErrorKind::Unsupported, format!("{dtype} is not converted"))
        .with_help("floating dtypes that are: F16, BF16, F32, F64")
}

fn floats<const N: usize, T>(
    bytes: &[u8],
    read: impl Fn([u8; N]) -> T,
) -> Result<impl Iterator<Item = T>> {
    match bytes.as_chunks::<N>() {
        (elements, []) => Ok(elements.iter().map(move |element| read(*element))),
        _ => {
            let message = format!("{} bytes are no elements of {N} bytes", bytes.len());
            Err(Error::new(ErrorKind::InvalidInput, message))
        }
    }
}

fn put(values: impl Iterator<Item = f32>, to: Dtype, out: &mut Vec<u8>) -> Result<u64> {
    match to {
        Dtype::F16 => Ok(put_as(values, out, |value| {
            let near = f16::from_f32(value);
            (near.to_le_bytes(), near.is_infinite())
        })),
        Dtype::BF16 => Ok(put_as(values, out, |value| {
            let near = bf16::from_f32(value);
            (near.to_le_bytes(), near.is_infinite())
        })),
        Dtype::F32 => Ok(put_as(values, out, |value| (value.to_le_bytes(), false))),
        Dtype::F64 => Ok(put_as(values, out, |value| (f64::from(value).to_le_bytes(), false))),
        _ => Err(unknown(to)),
    }
}

fn put_as<const N: usize>(
    values: impl Iterator<Item = f32>,
    out: &mut Vec<u8>,
    convert: impl Fn(f32) -> ([u8; N], bool),
) -> u64 {
    let mut lost = 0;
    for value in values {
        let (bytes, is_infinite) = convert(value);
        lost += u64::from(is_infinite && value.is_finite());
        out.extend_from_slice(&bytes);
    }
    lost
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to_bf16(value: f32) -> (u16, u64) {
        let mut out = Vec::new();
        let lost = cast(Dtype::F32, Dtype::BF16, &value.to_le_bytes(), &mut out).unwrap();
        (u16::from_le_bytes([out[0], out[1]]), lost)
    }

    #[test]
    fn ties_go_to_even_and_overflow_is_counted() {
        // 1 + 2^-8 lies half-way between two neighbours, of which 1 is even.
        assert_eq!(to_bf16(f32::from_bits(0x3F80_8000)), (0x3F80, 0));
        assert_eq!(to_bf16(f32::from_bits(0x3F81_8000)), (0x3F82, 0));
        assert_eq!(to_bf16(f32::from_bits(0x3F80_8001)), (0x3F81, 0));
        assert_eq!(to_bf16(f32::MAX), (0x7F80, 1));
        assert_eq!(to_bf16(f32::INFINITY), (0x7F80, 0));
        let mut out = Vec::new();
        assert_eq!(cast(Dtype::F64, Dtype::F16, &1e300f64.to_le_bytes(), &mut out).unwrap(), 1);
        assert_eq!(out, 0x7C00u16.to_le_bytes());
    }

    #[test]
    fn widening_is_exact_and_others_are_refused() {
        let mut out = Vec::new();
        let halves = [0x3C00u16, 0x0001, 0x8000, 0xFC00].map(u16::to_le_bytes).concat();
        cast(Dtype::F16, Dtype::F64, &halves, &mut out).unwrap();
        let wide: Vec<f64> =
            out.as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect();
        assert_eq!(wide, [1.0, 2f64.powi(-24), -0.0, f64::NEG_INFINITY]);
        assert!(cast(Dtype::I32, Dtype::F32, &[0; 4], &mut out).is_err());
        assert!(cast(Dtype::F32, Dtype::I32, &[0; 4], &mut out).is_err());
        assert!(cast(Dtype::F32, Dtype::F64, &[0; 5], &mut out).is_err());
    }
}
