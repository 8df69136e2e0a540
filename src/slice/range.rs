//! A range of the elements of a tensor, in row-major order, as boxes.

use std::ops::Range;

use super::Slice;
use crate::error::{Error, ErrorKind, Result};

/// The boxes that make up these elements of a tensor of that shape, in row-major order: whole rows
/// of some dimension, or a part of one; at most two for each dimension.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] for a range that leaves the tensor.
pub(crate) fn boxes_of_range(shape: &[u64], elements: Range<u64>) -> Result<Vec<Slice>> {
    let total = Slice::full(shape).elements();
    if elements.start > elements.end || elements.end > total {
        let message = format!("elements {elements:?} of {total}");
        return Err(Error::new(ErrorKind::InvalidInput, message));
    }
    let mut boxes = Vec::new();
    cut(shape, &mut Vec::new(), elements, &mut boxes)?;
    Ok(boxes)
}

/// `range` counts from the first element of the row that `row` names by its leading indices.
fn cut(shape: &[u64], row: &mut Vec<u64>, range: Range<u64>, boxes: &mut Vec<Slice>) -> Result<()> {
    if range.is_empty() {
        return Ok(());
    }
    let inner = shape.get(row.len()..).unwrap_or_default();
    let Some((_, below)) = inner.split_first() else {
        boxes.push(rows(shape, row, 0..1)?);
        return Ok(());
    };
    let each: u64 = below.iter().product();
    let (first, last) = (range.start.div_ceil(each), range.end / each);
    if first > last {
        return inside(shape, row, last, range.start - last * each..range.end - last * each, boxes);
    }
    if range.start < first * each {
        inside(shape, row, first - 1, range.start - (first - 1) * each..each, boxes)?;
    }
    if first < last {
        boxes.push(rows(shape, row, first..last)?);
    }
    inside(shape, row, last, 0..range.end - last * each, boxes)
}

/// Elements of one row of the dimension after those of `row`.
fn inside(
    shape: &[u64],
    row: &mut Vec<u64>,
    index: u64,
    range: Range<u64>,
    boxes: &mut Vec<Slice>,
) -> Result<()> {
    row.push(index);
    let done = cut(shape, row, range, boxes);
    row.pop();
    done
}

/// Whole rows of the dimension after those of `row`.
fn rows(shape: &[u64], row: &[u64], rows: Range<u64>) -> Result<Slice> {
    let (mut offsets, mut lengths) = (row.to_vec(), vec![1; row.len()]);
    if row.len() < shape.len() {
        offsets.push(rows.start);
        lengths.push(rows.end - rows.start);
    }
    for length in shape.get(offsets.len()..).unwrap_or_default() {
        offsets.push(0);
        lengths.push(*length);
    }
    Slice::new(offsets, lengths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_cover_every_range_in_order() {
        for shape in [vec![3, 4, 2], vec![7], vec![1, 5], vec![2, 1, 3, 1], vec![]] {
            let full = Slice::full(&shape);
            let total = full.elements();
            for begin in 0..=total {
                for end in begin..=total {
                    let boxes = boxes_of_range(&shape, begin..end).unwrap();
                    let mut at = begin;
                    for part in &boxes {
                        let runs: Vec<_> = full.runs_of(part).collect();
                        assert_eq!((runs.len(), runs[0].from), (1, at), "{shape:?} {begin}..{end}");
                        at += part.elements();
                    }
                    assert_eq!(at, end, "{shape:?} {begin}..{end}: {boxes:?}");
                    assert!(boxes.len() <= 2 * shape.len() + 1);
                }
            }
            assert!(boxes_of_range(&shape, 0..total + 1).is_err());
        }
    }
}
