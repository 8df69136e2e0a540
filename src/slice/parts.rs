//! A tensor in parts of a limited size.

use super::Slice;
use crate::tensor::TensorSpec;

/// The boxes that make up a tensor, in row-major order; each is contiguous in it.
pub(crate) struct Parts {
    /// What is left, the next one last.
    rest: Vec<Slice>,
    element_bytes: u64,
}

impl Parts {
    pub(crate) fn of(spec: &TensorSpec) -> Self {
        let rest = if spec.elements() == 0 { Vec::new() } else { vec![Slice::full(spec.shape())] };
        Self { rest, element_bytes: spec.dtype().size_bytes() }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next box, of at most so many bytes; `None` if there is none, or no element fits.
    pub(crate) fn next_within(&mut self, bytes_max: u64) -> Option<Slice> {
        let elements_max = bytes_max / self.element_bytes;
        if elements_max == 0 {
            return None;
        }
        loop {
            let part = self.rest.pop()?;
            let length = part.split_dimension().and_then(|d| part.lengths().get(d).copied());
            let Some(length) = length.filter(|_| part.elements() > elements_max) else {
                return Some(part);
            };
            let rows = (elements_max / (part.elements() / length)).max(1);
            let (head, tail) = (part.rows(0..rows).ok()?, part.rows(rows..length).ok()?);
            self.rest.extend([tail, head]);
        }
    }

    /// All of them, each of at most so many bytes, of which an element has no more.
    pub(crate) fn of_at_most(mut self, bytes_max: u64) -> impl Iterator<Item = Slice> {
        std::iter::from_fn(move || self.next_within(bytes_max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Dtype;

    /// Whatever room there is for each of them; it is filled as far as elements go.
    #[test]
    fn parts_are_small_contiguous_and_in_order() {
        for (shape, rooms) in [
            (vec![7, 5, 3], vec![16]),
            (vec![7, 5, 3], vec![4, 100, 8, 52, 3, 12]),
            (vec![2, 1000], vec![64, 4000]),
            (vec![9], vec![1000]),
            (vec![], vec![4]),
            (vec![3, 0], vec![4]),
        ] {
            let spec = TensorSpec::new(Dtype::F32, shape.clone()).unwrap();
            let (mut end, mut parts) = (0, Parts::of(&spec));
            for mut room in rooms.into_iter().cycle() {
                while let Some(part) = parts.next_within(room) {
                    assert!(part.elements() * 4 <= room, "{shape:?}: {part}");
                    let runs: Vec<_> = Slice::full(&shape).runs_of(&part).collect();
                    assert_eq!((runs.len(), runs[0].from), (1, end), "{shape:?}: {part}");
                    end += part.elements();
                    room -= part.elements() * 4;
                }
                assert!(parts.is_done() || room < 4, "{shape:?}");
                if parts.is_done() {
                    break;
                }
            }
            assert_eq!(end, spec.elements(), "{shape:?}");
        }
    }
}
