//! A tensor in parts of a limited size.

use super::Slice;
use crate::tensor::TensorSpec;

/// The boxes of at most so many bytes that make up a tensor, in row-major order; each is
/// contiguous in it.
pub(crate) struct Parts {
    /// What is left, the next one last.
    rest: Vec<Slice>,
    elements_max: u64,
}

impl Parts {
    pub(crate) fn of(spec: &TensorSpec, bytes_max: u64) -> Self {
        let rest = if spec.elements() == 0 { Vec::new() } else { vec![Slice::full(spec.shape())] };
        Self { rest, elements_max: bytes_max / spec.dtype().size_bytes() }
    }
}

impl Iterator for Parts {
    type Item = Slice;

    fn next(&mut self) -> Option<Slice> {
        loop {
            let part = self.rest.pop()?;
            let length = part.split_dimension().and_then(|d| part.lengths().get(d).copied());
            let Some(length) = length.filter(|_| part.elements() > self.elements_max) else {
                return Some(part);
            };
            let rows = (self.elements_max / (part.elements() / length)).max(1);
            let (head, tail) = (part.rows(0..rows).ok()?, part.rows(rows..length).ok()?);
            self.rest.extend([tail, head]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Dtype;

    #[test]
    fn parts_are_small_contiguous_and_in_order() {
        for (shape, max) in [
            (vec![7, 5, 3], 16),
            (vec![2, 1000], 64),
            (vec![9], 1000),
            (vec![], 4),
            (vec![3, 0], 4),
        ] {
            let spec = TensorSpec::new(Dtype::F32, shape.clone()).unwrap();
            let mut end = 0;
            for part in Parts::of(&spec, max) {
                assert!(part.elements() * 4 <= max, "{shape:?}: {part}");
                let runs: Vec<_> = Slice::full(&shape).runs_of(&part).collect();
                assert_eq!((runs.len(), runs[0].from), (1, end), "{shape:?}: {part}");
                end += part.elements();
            }
            assert_eq!(end, spec.elements(), "{shape:?}");
        }
    }
}
