//! An N-dimensional box inside a tensor: intersection, coverage, and where its bytes lie.

mod parts;
mod range;

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::dims::Dims;
use crate::error::{Error, ErrorKind, Result};

pub(crate) use parts::Parts;
pub(crate) use range::boxes_of_range;

/// A box: per dimension an offset and a length. A scalar's slice has no dimensions.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "SliceParts")]
pub struct Slice {
    offsets: Dims,
    lengths: Dims,
}

/// A box as decoded, before it is known to be one.
#[derive(Deserialize)]
struct SliceParts {
    offsets: Dims,
    lengths: Dims,
}

impl TryFrom<SliceParts> for Slice {
    type Error = Error;
    fn try_from(parts: SliceParts) -> Result<Self> {
        Self::of_parts(parts.offsets, parts.lengths)
    }
}

/// One contiguous run of elements shared by two boxes, as offsets into each (row-major).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// First element, counted from the start of the first box.
    pub from: u64,
    /// First element, counted from the start of the second box.
    pub to: u64,
    /// Number of elements.
    pub elements: u64,
}

impl Slice {
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if the dimensions differ or an end overflows.
    pub fn new(offsets: Vec<u64>, lengths: Vec<u64>) -> Result<Self> {
        Self::of_parts(offsets.into(), lengths.into())
    }

    fn of_parts(offsets: Dims, lengths: Dims) -> Result<Self> {
        let ends = offsets.iter().zip(lengths.iter()).all(|(o, l)| o.checked_add(*l).is_some());
        if offsets.len() != lengths.len() || !ends {
            let message = format!("offsets {offsets:?} and lengths {lengths:?} make no box");
            return Err(Error::new(ErrorKind::InvalidInput, message));
        }
        Ok(Self { offsets, lengths })
    }

    /// The whole of a tensor of this shape.
    #[must_use]
    pub fn full(shape: &[u64]) -> Self {
        Self { offsets: Dims::zeros(shape.len()), lengths: shape.into() }
    }

    /// First index per dimension.
    #[must_use]
    pub fn offsets(&self) -> &[u64] {
        &self.offsets
    }

    /// Length per dimension.
    #[must_use]
    pub fn lengths(&self) -> &[u64] {
        &self.lengths
    }

    /// Number of dimensions.
    #[must_use]
    pub fn dimensions(&self) -> usize {
        self.lengths.len()
    }

    /// Number of elements; `None` if it overflows (only possible outside a valid tensor).
    #[must_use]
    pub fn checked_elements(&self) -> Option<u64> {
        self.lengths.iter().try_fold(1u64, |product, l| product.checked_mul(*l))
    }

    /// Number of elements; saturates, so check [`Slice::fits`] first for slices from outside.
    #[must_use]
    pub fn elements(&self) -> u64 {
        self.checked_elements().unwrap_or(u64::MAX)
    }

    /// Whether it has the dimensions of `shape` and lies inside.
    #[must_use]
    pub fn fits(&self, shape: &[u64]) -> bool {
        self.dimensions() == shape.len()
            && self.ranges().zip(shape).all(|(range, length)| range.end <= *length)
    }

    /// Whether it is the whole of a tensor of this shape.
    #[must_use]
    pub fn is_full(&self, shape: &[u64]) -> bool {
        *self.lengths == *shape && self.offsets.iter().all(|o| *o == 0)
    }

    /// Index range per dimension.
    pub fn ranges(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.offsets.iter().zip(self.lengths.iter()).map(|(o, l)| *o..*o + *l)
    }

    /// The common box; `None` when nothing (no element) is shared. Two scalars share their one.
    #[must_use]
    pub fn intersect(&self, other: &Slice) -> Option<Slice> {
        if self.dimensions() != other.dimensions() {
            return None;
        }
        let mut common = Slice { offsets: Dims::default(), lengths: Dims::default() };
        for (a, b) in self.ranges().zip(other.ranges()) {
            let (begin, end) = (a.start.max(b.start), a.end.min(b.end));
            if begin >= end {
                return None;
            }
            common.offsets.push(begin);
            common.lengths.push(end - begin);
        }
        Some(common)
    }

    /// The boxes of length 1 along `dimension` that make up this one.
    pub(crate) fn layers(&self, dimension: usize) -> impl Iterator<Item = Slice> + '_ {
        let range = self.ranges().nth(dimension).unwrap_or_default();
        range.filter_map(move |index| {
            let (mut offsets, mut lengths) = (self.offsets.clone(), self.lengths.clone());
            *offsets.get_mut(dimension)? = index;
            *lengths.get_mut(dimension)? = 1;
            Slice::of_parts(offsets, lengths).ok()
        })
    }

    /// The first dimension longer than 1, along which a piece is split; `None` for one element.
    #[must_use]
    pub fn split_dimension(&self) -> Option<usize> {
        self.lengths.iter().position(|l| *l > 1)
    }

    /// Rows `rows` (counted from this box's own start) along [`Slice::split_dimension`].
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] if there is no such dimension or `rows` leaves the box.
    pub fn rows(&self, rows: Range<u64>) -> Result<Slice> {
        let dimension = self.split_dimension().filter(|d| rows.end <= self.lengths[*d]);
        let Some(dimension) = dimension.filter(|_| rows.start <= rows.end) else {
            let message = format!("rows {rows:?} are not in {self}");
            return Err(Error::new(ErrorKind::InvalidInput, message));
        };
        let mut part = self.clone();
        part.offsets[dimension] += rows.start;
        part.lengths[dimension] = rows.end - rows.start;
        Ok(part)
    }

    /// The contiguous runs of `part` inside `self` and inside `part` itself: how to cut `part`
    /// out of a buffer that holds `self` in row-major order. `part` must lie inside `self`.
    /// Trailing dimensions that `part` covers whole are merged into longer runs.
    #[must_use]
    pub fn runs_of(&self, part: &Slice) -> Runs {
        Runs::new(self, part, part)
    }

    /// The first element of `part`, which lies inside, and the end of its last one, both counted in
    /// this box, row-major. `None` if it has no element.
    pub(crate) fn extent_of(&self, part: &Slice) -> Option<(u64, u64)> {
        let strides = strides(&self.lengths);
        let (mut first, mut last) = (0, 0);
        for ((range, own), stride) in part.ranges().zip(self.ranges()).zip(strides) {
            first += (range.start - own.start) * stride;
            last += (range.end.checked_sub(1)?.checked_sub(own.start)?) * stride;
        }
        (part.elements() > 0).then_some((first, last + 1))
    }

    /// Runs that copy `common` out of a buffer holding `self` into a buffer holding `target`,
    /// all row-major. `common` must lie inside both.
    #[must_use]
    pub fn runs_into(&self, target: &Slice, common: &Slice) -> Runs {
        Runs::new(self, target, common)
    }
}

impl fmt::Display for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (i, range) in self.ranges().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{}..{}", range.start, range.end)?;
        }
        f.write_str("]")
    }
}

/// Iterator over [`Run`]s, in ascending order of both offsets.
#[derive(Debug, Clone)]
pub struct Runs {
    /// Per outer dimension: count, and the stride in each buffer.
    outer: Vec<(u64, u64, u64)>,
    index: Vec<u64>,
    run: Run,
    done: bool,
}

impl Runs {
    fn new(source: &Slice, target: &Slice, common: &Slice) -> Self {
        let dimensions = common.dimensions();
        let (from_strides, to_strides) = (strides(&source.lengths), strides(&target.lengths));
        let mut run = Run { from: 0, to: 0, elements: 1 };
        for d in 0..dimensions {
            run.from += (common.offsets[d] - source.offsets[d]) * from_strides[d];
            run.to += (common.offsets[d] - target.offsets[d]) * to_strides[d];
        }
        // Grow the run over trailing dimensions as long as both buffers continue without a gap.
        let mut inner = dimensions;
        while inner > 0 {
            let d = inner - 1;
            run.elements *= common.lengths[d];
            inner = d;
            if common.lengths[d] != source.lengths[d] || common.lengths[d] != target.lengths[d] {
                break;
            }
        }
        let outer: Vec<_> =
            (0..inner).map(|d| (common.lengths[d], from_strides[d], to_strides[d])).collect();
        let done = common.elements() == 0;
        Self { index: vec![0; outer.len()], outer, run, done }
    }
}

impl Iterator for Runs {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        if self.done {
            return None;
        }
        let current = self.run;
        let mut d = self.outer.len();
        loop {
            if d == 0 {
                self.done = true;
                break;
            }
            d -= 1;
            let (count, from, to) = self.outer[d];
            self.index[d] += 1;
            self.run.from += from;
            self.run.to += to;
            if self.index[d] < count {
                break;
            }
            self.index[d] = 0;
            self.run.from -= count * from;
            self.run.to -= count * to;
        }
        Some(current)
    }
}

/// Row-major strides in elements.
fn strides(lengths: &[u64]) -> Vec<u64> {
    let mut strides = vec![1; lengths.len()];
    for d in (1..lengths.len()).rev() {
        strides[d - 1] = strides[d] * lengths[d];
    }
    strides
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn slice(ranges: &[Range<u64>]) -> Slice {
        let (offsets, lengths) = ranges.iter().map(|r| (r.start, r.end - r.start)).unzip();
        Slice::new(offsets, lengths).unwrap()
    }

    #[test]
    fn runs_merge_over_whole_trailing_dimensions() {
        let whole = Slice::full(&[4, 3, 2]);
        let rows: Vec<_> = whole.runs_of(&slice(&[1..3, 0..3, 0..2])).collect();
        assert_eq!(rows, [Run { from: 6, to: 0, elements: 12 }]);
        let columns: Vec<_> = whole.runs_of(&slice(&[0..2, 1..2, 0..2])).collect();
        assert_eq!(
            columns,
            [Run { from: 2, to: 0, elements: 2 }, Run { from: 8, to: 2, elements: 2 }]
        );
        let scalar = Slice::full(&[]);
        assert_eq!(scalar.runs_of(&scalar).count(), 1);
        assert_eq!(Slice::full(&[0, 3]).runs_of(&Slice::full(&[0, 3])).count(), 0);
    }

    #[test]
    fn rows_split_along_the_first_long_dimension() {
        let whole = Slice::full(&[1, 5, 2]);
        assert_eq!(whole.rows(1..3).unwrap(), slice(&[0..1, 1..3, 0..2]));
        assert!(whole.rows(4..6).is_err());
        assert!(Slice::full(&[1, 1]).rows(0..1).is_err());
    }

    fn box_in(shape: Vec<u64>) -> impl Strategy<Value = Slice> {
        let ranges: Vec<_> = shape.into_iter().map(|n| (0..n, 1..=n)).collect();
        ranges.prop_flat_map(|pairs| {
            let (offsets, lengths): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
            Just(Slice::new(offsets, lengths).unwrap())
        })
    }

    proptest! {
        /// Copying by runs equals copying element by element by index.
        #[test]
        fn runs_copy_the_common_box(
            (a, b) in prop::collection::vec(1u64..6, 0..4)
                .prop_flat_map(|shape| (box_in(shape.clone()), box_in(shape)))
        ) {
            let value = |index: &[u64]| index.iter().fold(0u64, |v, i| v * 100 + i + 1);
            let fill = |s: &Slice| -> Vec<u64> { indices(s).iter().map(|i| value(i)).collect() };
            let source = fill(&a);
            let at = |element| usize::try_from(element).unwrap();
            let mut target = vec![0u64; usize::try_from(b.elements()).unwrap()];
            if let Some(common) = a.intersect(&b) {
                for run in a.runs_into(&b, &common) {
                    for k in 0..run.elements {
                        target[at(run.to + k)] = source[at(run.from + k)];
                    }
                }
                for (element, index) in target.iter().zip(indices(&b)) {
                    let inside = common.ranges().zip(&index).all(|(r, i)| r.contains(i));
                    prop_assert_eq!(*element, if inside { value(&index) } else { 0 });
                }
            }
        }
    }

    fn indices(s: &Slice) -> Vec<Vec<u64>> {
        s.ranges().fold(vec![vec![]], |prefixes, range| {
            prefixes
                .iter()
                .flat_map(|p| range.clone().map(move |i| [p.clone(), vec![i]].concat()))
                .collect()
        })
    }
}
