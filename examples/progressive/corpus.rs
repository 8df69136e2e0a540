//! A small text to train on, as numbers: the Apache License 2.0, which lies beside this crate as
//! `LICENSE-APACHE` (The Apache Software Foundation, January 2004; verbatim copies are allowed).

use tch::Tensor;

const TEXT: &str = include_str!("../../LICENSE-APACHE");
/// One part of so many is for validation.
const VALIDATION: usize = 10;

/// Characters as numbers, split into a text to train on and one to validate with.
#[derive(Debug)]
pub struct Corpus {
    vocabulary: Vec<char>,
    train: Vec<i64>,
    validation: Vec<i64>,
    seed: u64,
}

impl Corpus {
    /// `seed` decides which parts of the text are in which batch.
    pub fn new(seed: u64) -> Self {
        let mut vocabulary: Vec<char> = TEXT.chars().collect();
        vocabulary.sort_unstable();
        vocabulary.dedup();
        let number = |c| vocabulary.binary_search(&c).map_or(0, |at| at as i64);
        let mut train: Vec<i64> = TEXT.chars().map(number).collect();
        let validation = train.split_off(train.len() - train.len() / VALIDATION);
        Self { vocabulary, train, validation, seed }
    }

    /// How many characters there are.
    pub fn vocabulary(&self) -> i64 {
        self.vocabulary.len() as i64
    }

    /// The batch of a step on a rank: `rows` parts of the text, and the same one character on, each
    /// `[rows, length]` of I64. It depends on these numbers and the seed only, so that a run goes on
    /// with the very batches that it would have had. A row is the same in a world of any size: row r
    /// of rank k is number k · rows + r of the step.
    pub fn batch(&self, step: u64, rank: u64, rows: u64, length: usize) -> (Tensor, Tensor) {
        let places = (self.train.len() - length - 1) as u64;
        let begin = |row| (mixed(self.seed, step, rank * rows + row) % places) as usize;
        parts(&self.train, (0..rows).map(begin), length)
    }

    /// Rows to validate with, the same each time: as many as there are, one after the other.
    pub fn validation(&self, length: usize) -> (Tensor, Tensor) {
        let count = (self.validation.len() - 1) / length;
        parts(&self.validation, (0..count).map(|row| row * length), length)
    }
}

fn parts(
    text: &[i64],
    begins: impl Iterator<Item = usize> + Clone,
    length: usize,
) -> (Tensor, Tensor) {
    let from = |shift: usize| {
        let rows = begins.clone().flat_map(|begin| &text[begin + shift..begin + shift + length]);
        let numbers: Vec<i64> = rows.copied().collect();
        Tensor::from_slice(&numbers).view([-1, length as i64])
    };
    (from(0), from(1))
}

/// A number that looks random, of three others (the finisher of SplitMix64).
fn mixed(seed: u64, step: u64, row: u64) -> u64 {
    let mix = |mut x: u64| {
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    };
    [step, row].into_iter().fold(mix(seed ^ 0x9e37_79b9_7f4a_7c15), |state, number| {
        mix(state.wrapping_add(0x9e37_79b9_7f4a_7c15) ^ number.wrapping_mul(0xd6e8_feb8_6659_fd93))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_of_text_depends_on_seed_and_step_and_rank_only() {
        let (one, again) = (Corpus::new(3), Corpus::new(3));
        let (x, y) = one.batch(7, 1, 4, 16);
        let _ = again.batch(8, 0, 4, 16);
        assert!(x.equal(&again.batch(7, 1, 4, 16).0));
        assert_eq!((x.size(), y.size()), (vec![4, 16], vec![4, 16]));
        assert!(x.narrow(1, 1, 15).equal(&y.narrow(1, 0, 15)));
        for other in [one.batch(8, 1, 4, 16), one.batch(7, 0, 4, 16)] {
            assert!(!x.equal(&other.0));
        }
        assert!(!x.equal(&Corpus::new(4).batch(7, 1, 4, 16).0));
        // Two ranks of two rows have what one of four has.
        let (all, half) = (one.batch(5, 0, 4, 16).0, one.batch(5, 1, 2, 16).0);
        assert!(all.narrow(0, 2, 2).equal(&half));
    }

    #[test]
    fn text_to_validate_with_is_not_trained_on() {
        let corpus = Corpus::new(1);
        assert!(corpus.vocabulary() > 40 && corpus.vocabulary() < 128);
        assert_eq!(corpus.train.len() + corpus.validation.len(), TEXT.chars().count());
        let (x, y) = corpus.validation(16);
        assert_eq!(x.size(), y.size());
        assert!(x.size()[0] > 50);
        assert!(i64::try_from(x.max()).unwrap() < corpus.vocabulary());
    }
}
