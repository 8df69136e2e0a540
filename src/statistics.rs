//! What the numbers of a tensor look like: their range, their mean, and how they are distributed.

mod histogram;

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::catalog::Found;
use crate::error::Result;
use crate::load::{named, visit_tensor};
use crate::numbers::{each_integer, each_number, is_integer};
use crate::tensor::{Dtype, TensorName, TensorSpec};
pub use histogram::Bin;
use histogram::Histogram;

/// Numbers whose sum is taken at once.
const CHUNK: usize = 4096;

/// What the numbers of a tensor look like. A complex element counts as two numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Statistics {
    /// The tensor, under its stored name.
    pub name: TensorName,
    /// Dtype and shape.
    pub spec: TensorSpec,
    /// How many numbers there are.
    pub numbers: u64,
    /// How many are NaN.
    pub nan: u64,
    /// How many are infinite.
    pub infinite: u64,
    /// How many are zero.
    pub zeros: u64,
    /// The lowest and the highest finite one; `None` if there is none.
    pub range: Option<(Number, Number)>,
    /// Mean of the finite ones, 0 without any.
    pub mean: f64,
    /// Standard deviation of the finite ones: the root of the mean of `(x - mean)²`.
    pub deviation: f64,
    /// The finite ones by equal parts of their range, lowest first; at most 16.
    pub histogram: Vec<Bin>,
}

/// A number as its dtype holds it.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
pub enum Number {
    /// Of an integer dtype, or `Bool`.
    Integer(i128),
    /// Of a floating or complex dtype.
    Float(f64),
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Integer(number) => number.fmt(f),
            Self::Float(number) => number.fmt(f),
        }
    }
}

/// Looks at all numbers of one tensor, by its name or an alias, of any dtype. Its bytes are verified
/// and read twice, a few MiB at a time, whatever its size. `progress` is called with the bytes that
/// were looked at, of twice the tensor's.
///
/// Not collective: one process looks.
///
/// # Errors
/// As [`visit_tensor`].
pub fn statistics(found: &Found, name: &str, progress: &mut dyn FnMut(u64)) -> Result<Statistics> {
    let record = named(&found.manifest, name)?;
    let dtype = record.spec.dtype();
    let mut moments = Moments::default();
    visit_tensor(found, name, &mut |bytes| {
        moments.take(dtype, bytes);
        progress(bytes.len() as u64);
        Ok(())
    })?;
    let mut histogram = moments.range().map(Histogram::new);
    visit_tensor(found, name, &mut |bytes| {
        histogram.iter_mut().for_each(|histogram| histogram.take(dtype, bytes));
        progress(bytes.len() as u64);
        Ok(())
    })?;
    Ok(Statistics {
        name: record.name.clone(),
        spec: record.spec.clone(),
        numbers: moments.numbers,
        nan: moments.nan,
        infinite: moments.infinite,
        zeros: moments.zeros,
        range: moments.range(),
        mean: moments.mean,
        deviation: moments.deviation(),
        histogram: histogram.map(Histogram::bins).unwrap_or_default(),
    })
}

/// Counts, extremes, and mean and squared deviations, which are merged chunk by chunk: a running sum
/// of billions would lose what is small (Chan, Golub, LeVeque: Updating formulae, 1979).
#[derive(Default)]
struct Moments {
    numbers: u64,
    nan: u64,
    infinite: u64,
    zeros: u64,
    finite: u64,
    mean: f64,
    squares: f64,
    floats: Option<(f64, f64)>,
    integers: Option<(i128, i128)>,
}

impl Moments {
    fn take(&mut self, dtype: Dtype, bytes: &[u8]) {
        let size = usize::try_from(dtype.size_bytes()).unwrap_or(1);
        let mut finite = Vec::with_capacity(2 * CHUNK);
        for chunk in bytes.chunks(CHUNK * size) {
            each_number(dtype, chunk, |number| self.sort(number, &mut finite));
            self.merge(&finite);
            finite.clear();
        }
        if is_integer(dtype) {
            let range = &mut self.integers;
            each_integer(dtype, bytes, |n| {
                *range = Some(range.map_or((n, n), |(low, high)| (low.min(n), high.max(n))));
            });
        }
    }

    fn sort(&mut self, number: f64, finite: &mut Vec<f64>) {
        self.numbers += 1;
        self.zeros += u64::from(number == 0.0);
        match number.is_finite() {
            true => finite.push(number),
            false if number.is_nan() => self.nan += 1,
            false => self.infinite += 1,
        }
    }

    fn merge(&mut self, finite: &[f64]) {
        if finite.is_empty() {
            return;
        }
        let count = finite.len() as f64;
        let mean = finite.iter().sum::<f64>() / count;
        let squares: f64 = finite.iter().map(|x| (x - mean) * (x - mean)).sum();
        let (had, all) = (self.finite as f64, self.finite as f64 + count);
        let apart = mean - self.mean;
        self.mean += apart * (count / all);
        self.squares += squares + apart * apart * (had * count / all);
        self.finite += finite.len() as u64;
        let (low, high) = self.floats.unwrap_or((f64::INFINITY, f64::NEG_INFINITY));
        let extremes = |(low, high): (f64, f64), x: &f64| (low.min(*x), high.max(*x));
        self.floats = Some(finite.iter().fold((low, high), extremes));
    }

    fn range(&self) -> Option<(Number, Number)> {
        let integers = self.integers.map(|(a, b)| (Number::Integer(a), Number::Integer(b)));
        integers.or_else(|| self.floats.map(|(a, b)| (Number::Float(a), Number::Float(b))))
    }

    fn deviation(&self) -> f64 {
        if self.finite == 0 { 0.0 } else { (self.squares / self.finite as f64).sqrt() }
    }
}

#[cfg(test)]
mod tests;
