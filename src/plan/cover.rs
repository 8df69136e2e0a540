//! Whether boxes cover a tensor exactly: no gap, no overlap.

use std::cmp::Ordering;

use crate::slice::Slice;

/// How much work one check may do per box. Boxes that form a grid need a handful of steps; other
/// layouts at most two to the power of the dimensions in which they are split.
const STEPS_PER_BOX: usize = 64;
/// Most boxes among which the fault's message looks for a pair that overlaps.
const PAIR_SEARCH_MAX: usize = 256;

/// Checks that `boxes` cover a tensor of `shape` exactly. Each must fit the shape. A tensor
/// without elements is covered by exactly one box.
///
/// # Errors
/// What is wrong, as the end of a sentence.
pub(crate) fn check_cover(shape: &[u64], boxes: &[&Slice]) -> Result<(), String> {
    if shape.contains(&0) {
        let fault = || format!("a tensor without elements is in {} pieces, not one", boxes.len());
        return if boxes.len() == 1 { Ok(()) } else { Err(fault()) };
    }
    if let Some(empty) = boxes.iter().find(|b| b.elements() == 0) {
        return Err(format!("slice {empty} is empty"));
    }
    if follow_each_other(shape, boxes) {
        return Ok(());
    }
    let whole = Slice::full(shape);
    // The whole with weight -1 plus every box with weight 1 is zero everywhere.
    let mut terms: Vec<Term> = boxes.iter().map(|slice| Term { slice, weight: 1 }).collect();
    terms.push(Term { slice: &whole, weight: -1 });
    let mut steps = (boxes.len() + 1).saturating_mul(STEPS_PER_BOX);
    match sum_is_zero(terms, 0, &mut steps) {
        Some(true) => Ok(()),
        Some(false) => Err(describe_fault(&whole, boxes)),
        None => Err("the slices are split too irregularly to be checked".to_owned()),
    }
}

/// Whether the boxes, as they are listed, are slabs of the whole from its first row to its last:
/// what nearly all tensors are, and told in one pass. If not, they may cover it all the same.
fn follow_each_other(shape: &[u64], boxes: &[&Slice]) -> bool {
    let Some(first) = boxes.first() else { return false };
    // The dimension of which the first one takes but a part.
    let split = first.lengths().iter().zip(shape).position(|(part, whole)| part != whole);
    let split = split.unwrap_or(0);
    let mut end = 0;
    for slice in boxes {
        let sides = slice.offsets().iter().zip(slice.lengths()).zip(shape).enumerate();
        for (dimension, ((offset, length), whole)) in sides {
            let begins = if dimension == split { end } else { 0 };
            if *offset != begins || (dimension != split && length != whole) {
                return false;
            }
        }
        end += slice.lengths().get(split).copied().unwrap_or(1);
    }
    end == shape.get(split).copied().unwrap_or(1)
}

/// `weight` on every element of the dimensions of `slice` from the current one on.
#[derive(Clone, Copy)]
struct Term<'a> {
    slice: &'a Slice,
    weight: i64,
}

impl Term<'_> {
    /// Orders by what is left of the box from `dimension` on.
    fn compare(&self, other: &Self, dimension: usize) -> Ordering {
        let (a, b) = (self.slice, other.slice);
        let by_offset = a.offsets()[dimension..].cmp(&b.offsets()[dimension..]);
        by_offset.then_with(|| a.lengths()[dimension..].cmp(&b.lengths()[dimension..]))
    }
}

/// Whether the terms add up to zero everywhere; `None` when out of steps.
///
/// A sum of boxes is constant along a dimension but for where a box begins or ends, so it is zero
/// if what begins and what ends at each such place cancels in the remaining dimensions.
fn sum_is_zero(terms: Vec<Term>, dimension: usize, steps: &mut usize) -> Option<bool> {
    *steps = steps.checked_sub(terms.len())?;
    let terms = cancel_equal(terms, dimension);
    let Some(first) = terms.first() else { return Some(true) };
    if dimension == first.slice.dimensions() {
        return Some(false);
    }
    let range = |t: &Term| (t.slice.offsets()[dimension], t.slice.lengths()[dimension]);
    if terms.iter().all(|t| range(t) == range(first)) {
        return sum_is_zero(terms, dimension + 1, steps);
    }
    let mut changes: Vec<(u64, Term)> = Vec::with_capacity(2 * terms.len());
    for term in &terms {
        let (offset, length) = range(term);
        changes.push((offset, *term));
        changes.push((offset + length, Term { weight: -term.weight, ..*term }));
    }
    changes.sort_by_key(|(place, _)| *place);
    for group in changes.chunk_by(|a, b| a.0 == b.0) {
        let group = group.iter().map(|(_, term)| *term).collect();
        if !sum_is_zero(group, dimension + 1, steps)? {
            return Some(false);
        }
    }
    Some(true)
}

/// Adds up the weights of terms that are equal from `dimension` on, and drops those that cancel.
fn cancel_equal(mut terms: Vec<Term>, dimension: usize) -> Vec<Term> {
    terms.sort_by(|a, b| a.compare(b, dimension));
    terms.dedup_by(|next, kept| {
        let equal = kept.compare(next, dimension).is_eq();
        if equal {
            kept.weight += next.weight;
        }
        equal
    });
    terms.retain(|t| t.weight != 0);
    terms
}

fn describe_fault(whole: &Slice, boxes: &[&Slice]) -> String {
    let covered: u128 = boxes.iter().map(|b| u128::from(b.elements())).sum();
    let mut sorted = boxes.to_vec();
    sorted.sort();
    sorted.truncate(PAIR_SEARCH_MAX);
    for (i, a) in sorted.iter().enumerate() {
        if let Some(b) = sorted.iter().skip(i + 1).find(|b| a.intersect(b).is_some()) {
            return format!("slices {a} and {b} overlap");
        }
    }
    let total = whole.elements();
    format!("{} slices hold {covered} of {total} elements of {whole}", boxes.len())
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    fn slice(offsets: &[u64], lengths: &[u64]) -> Slice {
        Slice::new(offsets.to_vec(), lengths.to_vec()).unwrap()
    }

    fn check(shape: &[u64], boxes: &[Slice]) -> Result<(), String> {
        check_cover(shape, &boxes.iter().collect::<Vec<_>>())
    }

    #[test]
    fn faults_are_told_apart() {
        assert_eq!(check(&[], &[slice(&[], &[])]), Ok(()));
        assert!(check(&[], &[]).is_err());
        assert_eq!(check(&[0, 4], &[slice(&[0, 0], &[0, 4])]), Ok(()));
        assert!(check(&[0, 4], &[]).is_err());
        let gap = check(&[4], &[slice(&[0], &[3])]).unwrap_err();
        assert!(gap.contains("3 of 4"), "{gap}");
        let overlap = check(&[4], &[slice(&[0], &[3]), slice(&[1], &[3])]).unwrap_err();
        assert!(overlap.contains("overlap"), "{overlap}");
        let empty = check(&[4], &[slice(&[0], &[4]), slice(&[4], &[0])]).unwrap_err();
        assert!(empty.contains("empty"), "{empty}");
    }

    #[test]
    fn a_pinwheel_covers() {
        let mut boxes = vec![
            slice(&[0, 0], &[1, 2]),
            slice(&[0, 2], &[2, 1]),
            slice(&[2, 1], &[1, 2]),
            slice(&[1, 0], &[2, 1]),
            slice(&[1, 1], &[1, 1]),
        ];
        assert_eq!(check(&[3, 3], &boxes), Ok(()));
        // Same volume, but one box moved onto its neighbour.
        boxes[4] = slice(&[0, 0], &[1, 1]);
        assert!(check(&[3, 3], &boxes).is_err());
    }

    #[test]
    fn many_pieces_are_checked_within_the_step_limit() {
        let rows: Vec<_> = (0..20_000).map(|i| slice(&[i, 0], &[1, 7])).collect();
        assert_eq!(check(&[20_000, 7], &rows), Ok(()));
        let grid: Vec<_> = (0..100)
            .flat_map(|i| (0..100).map(move |j| slice(&[i, 2 * j, 0], &[1, 2, 3])))
            .collect();
        assert_eq!(check(&[100, 200, 3], &grid), Ok(()));
        assert!(check(&[100, 200, 3], &grid[1..]).is_err());
    }

    fn any_box(shape: [u64; 3]) -> impl Strategy<Value = Slice> {
        let range = |n: u64| (0..n).prop_flat_map(move |o| (Just(o), 1..=n - o));
        (range(shape[0]), range(shape[1]), range(shape[2]))
            .prop_map(|(a, b, c)| slice(&[a.0, b.0, c.0], &[a.1, b.1, c.1]))
    }

    fn times_covered(shape: &[u64; 3], boxes: &[Slice]) -> Vec<usize> {
        let mut counts = Vec::new();
        for i in 0..shape[0] {
            for j in 0..shape[1] {
                for k in 0..shape[2] {
                    let cell = slice(&[i, j, k], &[1, 1, 1]);
                    counts.push(boxes.iter().filter(|b| b.intersect(&cell).is_some()).count());
                }
            }
        }
        counts
    }

    /// Cuts the boxes again and again: at `place` of `dimension`, the box number `which`.
    pub(crate) fn cut(shape: [u64; 3], cuts: &[(usize, usize, u64)]) -> Vec<Slice> {
        let mut boxes = vec![Slice::full(&shape)];
        for (which, dimension, place) in cuts {
            let index = which % boxes.len();
            let (offsets, lengths) = (boxes[index].offsets(), boxes[index].lengths());
            let length = lengths[*dimension];
            if length < 2 {
                continue;
            }
            let at = 1 + place % (length - 1);
            let (mut low, mut offset, mut high) =
                (lengths.to_vec(), offsets.to_vec(), lengths.to_vec());
            low[*dimension] = at;
            offset[*dimension] += at;
            high[*dimension] -= at;
            let low = slice(offsets, &low);
            boxes.push(slice(&offset, &high));
            boxes[index] = low;
        }
        boxes
    }

    proptest! {
        #[test]
        fn agrees_with_counting_cells(
            cuts in prop::collection::vec((0usize..20, 0usize..3, 0u64..5), 0..12),
            swap in prop::option::of((0usize..20, any_box([4, 3, 5]))),
        ) {
            let shape = [4, 3, 5];
            let mut boxes = cut(shape, &cuts);
            if let Some((which, other)) = swap {
                let index = which % boxes.len();
                boxes[index] = other;
            }
            let exact = times_covered(&shape, &boxes).iter().all(|n| *n == 1);
            prop_assert_eq!(check(&shape, &boxes).is_ok(), exact);
        }
    }
}
