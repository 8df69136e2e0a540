//! How numbers are distributed over their range.

use serde::{Deserialize, Serialize};

use super::Number;
use crate::numbers::{each_integer, each_number};
use crate::tensor::Dtype;

/// Most parts of the range.
const BINS: usize = 16;

/// A part of the range of numbers, and how many lie in it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Bin {
    /// The lowest that lies in it.
    pub from: Number,
    /// Of integers the highest that lies in it; of floats where the next part begins, which the
    /// last part holds as well.
    pub to: Number,
    /// How many.
    pub count: u64,
}

/// Counts by equal parts of a range.
pub(super) struct Histogram {
    parts: Parts,
    counts: Vec<u64>,
}

enum Parts {
    /// So many integers from the first on are a part.
    Integers { low: i128, high: i128, width: i128 },
    /// Halves of both ends: the difference of two finite numbers may be infinite.
    Floats { low: f64, high: f64, half_range: f64 },
}

impl Histogram {
    pub(super) fn new((low, high): (Number, Number)) -> Self {
        match (low, high) {
            (Number::Integer(low), Number::Integer(high)) => {
                let width = ((high - low) / BINS as i128) + 1;
                let bins = usize::try_from((high - low) / width).unwrap_or(0) + 1;
                Self { parts: Parts::Integers { low, high, width }, counts: vec![0; bins] }
            }
            (low, high) => {
                let (low, high) = (float(low), float(high));
                let half_range = high / 2.0 - low / 2.0;
                let bins = if half_range > 0.0 { BINS } else { 1 };
                Self { parts: Parts::Floats { low, high, half_range }, counts: vec![0; bins] }
            }
        }
    }

    pub(super) fn take(&mut self, dtype: Dtype, bytes: &[u8]) {
        let last = self.counts.len().saturating_sub(1);
        let counts = &mut self.counts;
        let mut count = |bin: usize| {
            if let Some(count) = counts.get_mut(bin.min(last)) {
                *count += 1;
            }
        };
        match self.parts {
            Parts::Integers { low, width, .. } => each_integer(dtype, bytes, |number| {
                count(usize::try_from((number - low) / width).unwrap_or(last));
            }),
            Parts::Floats { low, half_range, .. } => each_number(dtype, bytes, |number| {
                if number.is_finite() {
                    count(bin_of(number, low, half_range));
                }
            }),
        }
    }

    pub(super) fn bins(self) -> Vec<Bin> {
        let ends = |bin: usize| match self.parts {
            Parts::Integers { low, high, width } => {
                let from = low + width * bin as i128;
                (Number::Integer(from), Number::Integer(high.min(from + width - 1)))
            }
            Parts::Floats { low, high, half_range } => {
                let count = self.counts.len() as f64;
                let at = |bin: usize| 2.0 * (low / 2.0 + half_range * (bin as f64 / count));
                let to = if bin + 1 == self.counts.len() { high } else { at(bin + 1) };
                (Number::Float(at(bin)), Number::Float(to))
            }
        };
        let bin = |(bin, count): (usize, &u64)| {
            let (from, to) = ends(bin);
            Bin { from, to, count: *count }
        };
        self.counts.iter().enumerate().map(bin).collect()
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 16, or NaN as 0")]
fn bin_of(number: f64, low: f64, half_range: f64) -> usize {
    ((number / 2.0 - low / 2.0) / half_range * BINS as f64) as usize
}

#[expect(clippy::cast_precision_loss, reason = "the end of a range of floats is one")]
fn float(number: Number) -> f64 {
    match number {
        Number::Integer(number) => number as f64,
        Number::Float(number) => number,
    }
}
