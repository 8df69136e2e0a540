//! How far apart two tensors are.

use serde::{Deserialize, Serialize};

use crate::numbers::{each_integer, each_number, is_integer};
use crate::tensor::Dtype;

/// Numbers that are compared at once.
const CHUNK: usize = 4096;

/// How far the numbers `b` of a tensor are from what they were, `a`. A complex element counts as two
/// numbers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Distance {
    /// How many numbers there are.
    pub numbers: u64,
    /// How many are not the same; 0.0 and -0.0 are not.
    pub changed: u64,
    /// How many of these are NaN or infinite in one or both, which the next two leave out.
    pub not_finite: u64,
    /// `‖b - a‖₂ / ‖a‖₂`: the root of the sum of `(b - a)²` by that of `a²`. 0 where nothing
    /// differs, infinite where all of `a` is 0.
    pub relative_l2: f64,
    /// The largest `|b - a|`.
    pub max_abs: f64,
}

/// Measures a tensor part by part.
#[derive(Default)]
pub(super) struct Meter {
    numbers: u64,
    changed: u64,
    not_finite: u64,
    other_bytes: bool,
    max_abs: f64,
    before: Norm,
    apart: Norm,
}

impl Meter {
    /// Takes the same elements of both.
    pub(super) fn take(&mut self, (old, a): (Dtype, &[u8]), (new, b): (Dtype, &[u8])) {
        self.other_bytes |= a != b;
        let (old_size, new_size) = (size(old), size(new));
        let (mut before, mut apart) = (Vec::with_capacity(2 * CHUNK), Vec::new());
        for (a, b) in a.chunks(CHUNK * old_size).zip(b.chunks(CHUNK * new_size)) {
            before.clear();
            apart.clear();
            if is_integer(old) && is_integer(new) {
                self.integers((old, a), (new, b), &mut before, &mut apart);
            } else {
                self.floats((old, a), (new, b), &mut before, &mut apart);
            }
            self.max_abs = apart.iter().fold(self.max_abs, |max, x| max.max(x.abs()));
            self.before.add(&before);
            self.apart.add(&apart);
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "differences are exact before they are rounded")]
    fn integers(
        &mut self,
        (old, a): (Dtype, &[u8]),
        (new, b): (Dtype, &[u8]),
        before: &mut Vec<f64>,
        apart: &mut Vec<f64>,
    ) {
        let mut others = Vec::with_capacity(CHUNK);
        each_integer(new, b, |number| others.push(number));
        let mut others = others.into_iter();
        each_integer(old, a, |number| {
            let other = others.next().unwrap_or(number);
            self.numbers += 1;
            self.changed += u64::from(number != other);
            before.push(number as f64);
            apart.push((other - number) as f64);
        });
    }

    fn floats(
        &mut self,
        (old, a): (Dtype, &[u8]),
        (new, b): (Dtype, &[u8]),
        before: &mut Vec<f64>,
        apart: &mut Vec<f64>,
    ) {
        let is_complex = old == Dtype::C64 || new == Dtype::C64;
        let (numbers, others) = (numbers(old, a, is_complex), numbers(new, b, is_complex));
        for (number, other) in numbers.into_iter().zip(others) {
            let is_same = number.to_bits() == other.to_bits();
            self.numbers += 1;
            self.changed += u64::from(!is_same);
            if number.is_finite() && other.is_finite() {
                before.push(number);
                apart.push(other - number);
            } else {
                self.not_finite += u64::from(!is_same);
            }
        }
    }

    /// Whether the bytes were not the same.
    pub(super) fn has_other_bytes(&self) -> bool {
        self.other_bytes
    }

    /// What was measured.
    pub(super) fn distance(&self) -> Distance {
        let (apart, before) = (self.apart.root(), self.before.root());
        Distance {
            numbers: self.numbers,
            changed: self.changed,
            not_finite: self.not_finite,
            relative_l2: if apart == 0.0 { 0.0 } else { apart / before },
            max_abs: self.max_abs,
        }
    }
}

/// A root of a sum of squares that neither overflows nor vanishes before its result does: a scale,
/// and the sum of squares of what was divided by it.
#[derive(Default)]
struct Norm {
    scale: f64,
    squares: f64,
}

impl Norm {
    fn add(&mut self, numbers: &[f64]) {
        let largest = numbers.iter().fold(0.0f64, |max, x| max.max(x.abs()));
        if largest == 0.0 {
            return;
        }
        if largest > self.scale {
            let shrunk = self.scale / largest;
            (self.scale, self.squares) = (largest, self.squares * shrunk * shrunk);
        }
        let part = |x: &f64| (x / self.scale) * (x / self.scale);
        self.squares += numbers.iter().map(part).sum::<f64>();
    }

    fn root(&self) -> f64 {
        self.scale * self.squares.sqrt()
    }
}

/// The numbers of elements; where they are to be complex ones, two for each.
fn numbers(dtype: Dtype, bytes: &[u8], is_complex: bool) -> Vec<f64> {
    let mut all = Vec::with_capacity(2 * CHUNK);
    let is_real = is_complex && dtype != Dtype::C64;
    each_number(dtype, bytes, |number| {
        all.push(number);
        if is_real {
            all.push(0.0);
        }
    });
    all
}

fn size(dtype: Dtype) -> usize {
    usize::try_from(dtype.size_bytes()).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floats(numbers: &[f64]) -> Vec<u8> {
        numbers.iter().flat_map(|x| x.to_le_bytes()).collect()
    }

    fn between(a: &[f64], b: &[f64]) -> Distance {
        let mut meter = Meter::default();
        meter.take((Dtype::F64, &floats(a)), (Dtype::F64, &floats(b)));
        meter.distance()
    }

    #[test]
    fn the_formula_is_as_documented() {
        let found = between(&[3.0, 4.0, 0.0], &[3.0, 4.0, 1.0]);
        assert_eq!((found.numbers, found.changed, found.not_finite), (3, 1, 0));
        assert_eq!((found.relative_l2, found.max_abs), (0.2, 1.0));
        assert_eq!(between(&[0.0], &[1.0]).relative_l2, f64::INFINITY);
        let zeros = between(&[0.0, 0.0], &[-0.0, 0.0]);
        assert_eq!((zeros.changed, zeros.relative_l2), (1, 0.0));
    }

    #[test]
    fn what_is_not_finite_is_counted_and_left_out() {
        let nan = f64::NAN;
        let found = between(&[1.0, nan, nan, f64::INFINITY], &[2.0, nan, 1.0, f64::NEG_INFINITY]);
        assert_eq!((found.changed, found.not_finite), (3, 2));
        assert_eq!((found.relative_l2, found.max_abs), (1.0, 1.0));
    }

    #[test]
    fn large_and_small_numbers_keep_their_norm() {
        let found = between(&[1e300, 1e300], &[1e300, 2e300]);
        assert!((found.relative_l2 - 0.5f64.sqrt()).abs() < 1e-12, "{found:?}");
        assert!((between(&[1e-300], &[3e-300]).relative_l2 - 2.0).abs() < 1e-12);
    }

    #[test]
    fn integers_that_no_float_tells_apart_are_told_apart() {
        let mut meter = Meter::default();
        let (a, b) = (i64::MAX.to_le_bytes(), (i64::MAX - 1).to_le_bytes());
        meter.take((Dtype::I64, &a), (Dtype::I64, &b));
        let found = meter.distance();
        assert_eq!((found.changed, found.max_abs), (1, 1.0));
    }

    #[test]
    fn other_dtypes_are_compared_as_numbers() {
        let mut meter = Meter::default();
        meter.take((Dtype::F32, &1.5f32.to_le_bytes()), (Dtype::F64, &1.5f64.to_le_bytes()));
        meter.take((Dtype::U8, &[7]), (Dtype::F32, &7.0f32.to_le_bytes()));
        let complex = [2.0f32, 0.0, 3.0, 1.0].map(f32::to_le_bytes).concat();
        meter.take((Dtype::U8, &[2, 3]), (Dtype::C64, &complex));
        assert_eq!((meter.distance().numbers, meter.distance().changed), (6, 1));
    }
}
