//! Sharing replicated boxes among the ranks that hold them, by bytes.
//!
//! Boxes held by the same ranks are laid in one line, which is cut so that the loads of these
//! ranks become as level as possible. A cut inside a large box falls between two rows of it.

use std::collections::HashMap;
use std::ops::Range;

use super::DeclaredBox;
use crate::rank::{Rank, WorldSize};

/// Boxes below this many bytes are written by one rank.
const SPLIT_BYTES_MIN: u64 = 64 * 1024;

/// What one rank writes of one declared box.
pub(super) struct Part {
    /// Index of the declared box.
    pub(super) declared: usize,
    /// The rows to be written; all of the box if absent.
    pub(super) rows: Option<Range<u64>>,
}

/// The parts that each rank writes, in order of the declared boxes.
pub(super) fn share_out(boxes: &[DeclaredBox], world_size: WorldSize) -> Vec<Vec<Part>> {
    let mut balance = Balance {
        boxes,
        loads: vec![0; world_size.len()],
        parts: world_size.ranks().map(|_| Vec::new()).collect(),
    };
    // The fewer ranks may write a box, the earlier it is placed: the others adapt to it.
    for (index, declared) in boxes.iter().enumerate() {
        if let [rank] = declared.ranks[..] {
            balance.loads[rank.index()] += declared.bytes;
            balance.parts[rank.index()].push(Part { declared: index, rows: None });
        }
    }
    for (ranks, line) in lines(boxes) {
        balance.place(ranks, &line);
    }
    for parts in &mut balance.parts {
        parts.sort_by_key(|part| part.declared);
    }
    balance.parts
}

/// The boxes that several ranks hold, by these ranks: smaller sets first.
fn lines<'a>(boxes: &'a [DeclaredBox]) -> Vec<(&'a [Rank], Vec<usize>)> {
    let mut places: HashMap<&[Rank], usize> = HashMap::new();
    let mut lines: Vec<(&[Rank], Vec<usize>)> = Vec::new();
    let mut last = 0;
    for (index, declared) in boxes.iter().enumerate().filter(|(_, b)| b.ranks.len() > 1) {
        let ranks = &declared.ranks[..];
        // Neighbours are mostly held by the same ranks.
        if lines.get(last).is_none_or(|(of_last, _)| *of_last != ranks) {
            last = *places.entry(ranks).or_insert(lines.len());
            if last == lines.len() {
                lines.push((ranks, Vec::new()));
            }
        }
        if let Some((_, line)) = lines.get_mut(last) {
            line.push(index);
        }
    }
    lines.sort_by_key(|(ranks, _)| (ranks.len(), *ranks));
    lines
}

struct Balance<'a> {
    boxes: &'a [DeclaredBox<'a>],
    /// Bytes given to each rank.
    loads: Vec<u64>,
    parts: Vec<Vec<Part>>,
}

impl Balance<'_> {
    fn place(&mut self, ranks: &[Rank], line: &[usize]) {
        let total = line.iter().map(|&index| self.boxes[index].bytes).sum();
        let loads: Vec<u64> = ranks.iter().map(|rank| self.loads[rank.index()]).collect();
        let shares = level_shares(&loads, total);
        let mut cut = 0;
        let cuts: Vec<u64> = shares
            .iter()
            .map(|share| {
                cut += share;
                cut
            })
            .collect();
        let (mut begin, mut owner) = (0, 0);
        for &index in line {
            let rows = Rows::of(&self.boxes[index]);
            let mut row = 0;
            // The last rank takes what is left.
            while owner + 1 < ranks.len() && cuts[owner] < begin + rows.size_bytes() {
                let end = rows.nearest(cuts[owner] - begin);
                self.give(ranks[owner], index, &rows, row..end);
                row = end;
                owner += 1;
            }
            self.give(ranks[owner], index, &rows, row..rows.count);
            begin += rows.size_bytes();
        }
    }

    fn give(&mut self, rank: Rank, index: usize, rows: &Rows, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        self.loads[rank.index()] += (range.end - range.start) * rows.bytes;
        let rows = (range != (0..rows.count)).then_some(range);
        self.parts[rank.index()].push(Part { declared: index, rows });
    }
}

/// The units in which a box can be cut: rows, or the box as a whole.
struct Rows {
    count: u64,
    /// Bytes of one.
    bytes: u64,
}

impl Rows {
    fn of(declared: &DeclaredBox) -> Self {
        let (slice, bytes) = (&declared.item.slice, declared.bytes);
        match slice.split_dimension() {
            Some(dimension) if bytes >= SPLIT_BYTES_MIN => {
                let count = slice.lengths()[dimension];
                Self { count, bytes: bytes / count }
            }
            _ => Self { count: 1, bytes },
        }
    }

    fn size_bytes(&self) -> u64 {
        self.count * self.bytes
    }

    /// The boundary between rows that is nearest to `offset` bytes into the box.
    fn nearest(&self, offset: u64) -> u64 {
        let below = offset / self.bytes;
        below + u64::from(offset % self.bytes >= self.bytes.div_ceil(2))
    }
}

/// How much of `total` each rank gets so that the highest load is as low as possible: the least
/// loaded ranks are filled up to one level.
fn level_shares(loads: &[u64], total: u64) -> Vec<u64> {
    let mut order: Vec<usize> = (0..loads.len()).collect();
    order.sort_by_key(|&index| (loads[index], index));
    let mut remaining = u128::from(total);
    let mut filled = 1;
    while let Some(&next) = order.get(filled) {
        let step = u128::from(loads[next] - loads[order[filled - 1]]) * filled as u128;
        if step > remaining {
            break;
        }
        remaining -= step;
        filled += 1;
    }
    let remaining = u64::try_from(remaining).unwrap_or(total);
    let (each, extra) = (remaining / filled as u64, remaining % filled as u64);
    let level = loads[order[filled - 1]] + each;
    let mut shares = vec![0; loads.len()];
    for (place, &index) in order.iter().take(filled).enumerate() {
        shares[index] = level - loads[index] + u64::from((place as u64) < extra);
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_go_to_the_nearest_row() {
        let rows = Rows { count: 4, bytes: 10 };
        assert_eq!([0, 4, 5, 14, 15, 39].map(|offset| rows.nearest(offset)), [0, 0, 1, 1, 2, 4]);
    }

    #[test]
    fn the_least_loaded_are_filled_first() {
        assert_eq!(level_shares(&[0, 0, 0], 10), [4, 3, 3]);
        assert_eq!(level_shares(&[5, 0, 100], 7), [1, 6, 0]);
        assert_eq!(level_shares(&[5, 0, 100], 4), [0, 4, 0]);
        assert_eq!(level_shares(&[3, 1, 2], 0), [0, 0, 0]);
        assert_eq!(level_shares(&[3, 1, 2], 300), [99, 101, 100]);
    }
}
