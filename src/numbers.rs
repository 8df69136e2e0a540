//! Elements of any dtype as numbers.

use half::{bf16, f16};

use crate::tensor::Dtype;

/// Calls `each` with every number of whole little-endian elements: complex ones are two each, `Bool`
/// is 0 or 1. Exact but for 64-bit integers beyond 2^53, which are rounded.
pub(crate) fn each_number(dtype: Dtype, bytes: &[u8], mut each: impl FnMut(f64)) {
    match dtype {
        Dtype::F8E5M2 => bytes.iter().for_each(|b| each(from_e5m2(*b))),
        Dtype::F8E4M3 => bytes.iter().for_each(|b| each(from_e4m3(*b))),
        Dtype::F16 => elements(bytes, |b| each(f16::from_le_bytes(b).to_f64())),
        Dtype::BF16 => elements(bytes, |b| each(bf16::from_le_bytes(b).to_f64())),
        Dtype::F32 | Dtype::C64 => elements(bytes, |b| each(f32::from_le_bytes(b).into())),
        Dtype::F64 => elements(bytes, |b| each(f64::from_le_bytes(b))),
        #[expect(clippy::cast_precision_loss, reason = "as documented")]
        Dtype::I64 => elements(bytes, |b| each(i64::from_le_bytes(b) as f64)),
        #[expect(clippy::cast_precision_loss, reason = "as documented")]
        Dtype::U64 => elements(bytes, |b| each(u64::from_le_bytes(b) as f64)),
        #[expect(clippy::cast_precision_loss, reason = "of up to 32 bits: exact")]
        _ => each_integer(dtype, bytes, |number| each(number as f64)),
    }
}

/// Calls `each` with every element of an integer dtype or `Bool`; with nothing for other dtypes.
pub(crate) fn each_integer(dtype: Dtype, bytes: &[u8], mut each: impl FnMut(i128)) {
    match dtype {
        Dtype::Bool => bytes.iter().for_each(|b| each(i128::from(*b != 0))),
        Dtype::U8 => bytes.iter().for_each(|b| each((*b).into())),
        Dtype::I8 => elements(bytes, |b| each(i8::from_le_bytes(b).into())),
        Dtype::I16 => elements(bytes, |b| each(i16::from_le_bytes(b).into())),
        Dtype::U16 => elements(bytes, |b| each(u16::from_le_bytes(b).into())),
        Dtype::I32 => elements(bytes, |b| each(i32::from_le_bytes(b).into())),
        Dtype::U32 => elements(bytes, |b| each(u32::from_le_bytes(b).into())),
        Dtype::I64 => elements(bytes, |b| each(i64::from_le_bytes(b).into())),
        Dtype::U64 => elements(bytes, |b| each(u64::from_le_bytes(b).into())),
        _ => {}
    }
}

/// Whether elements are integers, or `Bool`.
pub(crate) fn is_integer(dtype: Dtype) -> bool {
    let floats =
        [Dtype::F8E5M2, Dtype::F8E4M3, Dtype::F16, Dtype::BF16, Dtype::F32, Dtype::F64, Dtype::C64];
    !floats.contains(&dtype)
}

fn elements<const N: usize>(bytes: &[u8], mut each: impl FnMut([u8; N])) {
    bytes.as_chunks::<N>().0.iter().for_each(|element| each(*element));
}

/// The upper half of a half-precision number.
fn from_e5m2(bits: u8) -> f64 {
    f16::from_bits(u16::from(bits) << 8).to_f64()
}

/// 4 bits of exponent with bias 7, 3 of mantissa; no infinities, one NaN of each sign (`E4M3FN` of
/// the OCP 8-bit floating point specification).
fn from_e4m3(bits: u8) -> f64 {
    let (exponent, mantissa) = (i32::from(bits >> 3 & 0xF), f64::from(bits & 7) / 8.0);
    let size = match (exponent, bits & 7) {
        (15, 7) => f64::NAN,
        (0, _) => mantissa * 2f64.powi(-6),
        _ => (1.0 + mantissa) * 2f64.powi(exponent - 7),
    };
    if bits & 0x80 == 0 { size } else { -size }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(dtype: Dtype, bytes: &[u8]) -> Vec<f64> {
        let mut all = Vec::new();
        each_number(dtype, bytes, |number| all.push(number));
        all
    }

    #[test]
    fn every_dtype_is_read() {
        for (dtype, bytes, expected) in [
            (Dtype::Bool, &[0u8, 1, 1][..], &[0.0, 1.0, 1.0][..]),
            (Dtype::U8, &[0, 255], &[0.0, 255.0]),
            (Dtype::I8, &[0x80, 0x7f], &[-128.0, 127.0]),
            (Dtype::I16, &[0xff, 0xff], &[-1.0]),
            (Dtype::U16, &[0xff, 0xff], &[65535.0]),
            (Dtype::I32, &[0, 0, 0, 0x80], &[-2147483648.0]),
            (Dtype::U32, &[0, 0, 0, 0x80], &[2147483648.0]),
            (Dtype::I64, &[0xfe, 255, 255, 255, 255, 255, 255, 255], &[-2.0]),
            (Dtype::U64, &[2, 0, 0, 0, 0, 0, 0, 0], &[2.0]),
            (Dtype::F16, &[0x00, 0x3c, 0x00, 0xfc], &[1.0, f64::NEG_INFINITY]),
            (Dtype::BF16, &[0x80, 0x3f], &[1.0]),
            (Dtype::F32, &1.5f32.to_le_bytes(), &[1.5]),
            (Dtype::F64, &(-1e300f64).to_le_bytes(), &[-1e300]),
            (Dtype::C64, &[1.0f32.to_le_bytes(), 2.0f32.to_le_bytes()].concat(), &[1.0, 2.0]),
            (Dtype::F8E5M2, &[0x3c, 0x7c, 0xbc, 0x01], &[1.0, f64::INFINITY, -1.0, 2f64.powi(-16)]),
            (Dtype::F8E4M3, &[0x38, 0x7e, 0x01, 0xb8], &[1.0, 448.0, 2f64.powi(-9), -1.0]),
        ] {
            assert_eq!(numbers(dtype, bytes), expected, "{dtype}");
        }
        let all: Vec<Dtype> =
            Dtype::ALL.into_iter().filter(|d| numbers(*d, &[0; 8]).is_empty()).collect();
        assert_eq!(all, []);
        assert!(numbers(Dtype::F8E4M3, &[0x7f, 0xff]).iter().all(|x| x.is_nan()));
        assert!(numbers(Dtype::F8E5M2, &[0x7d])[0].is_nan());
    }

    #[test]
    fn integers_are_exact() {
        let mut all = Vec::new();
        each_integer(Dtype::U64, &u64::MAX.to_le_bytes(), |number| all.push(number));
        each_integer(Dtype::I64, &i64::MIN.to_le_bytes(), |number| all.push(number));
        each_integer(Dtype::F32, &[0; 4], |number| all.push(number));
        assert_eq!(all, [i128::from(u64::MAX), i128::from(i64::MIN)]);
        let integers = Dtype::ALL.into_iter().filter(|dtype| is_integer(*dtype));
        assert!(integers.clone().count() == 9 && Dtype::ALL.len() == 16);
    }
}
