//! A text as batches: guides of this project, shipped with it under its own licence.

use tch::{Device, Kind, Tensor};
use tch_checkpoint::progressive::Batches;
use tch_checkpoint::{Rank, Result, WorldSize};

/// `docs/` of this project, under the licence of the project (MIT or Apache 2.0).
const TEXT: &str = concat!(
    include_str!("../../docs/protocol.md"),
    include_str!("../../docs/reliability.md"),
    include_str!("../../docs/nnhandler.md"),
    include_str!("../../docs/format.md"),
);
/// One of so many parts of the text is for validation.
const PARTS: usize = 10;
/// Letters out of which the next one is to be told.
pub(crate) const CONTEXT: i64 = 12;
const LENGTH: usize = 12;
/// Places of the text in a batch of one rank.
const BATCH: u64 = 64;

/// Every place of the text, as the number of its letter.
pub(crate) struct Text {
    letters: Vec<u8>,
    places: Vec<i64>,
    /// Where a context that is trained on may begin, and one for validation.
    trained: Vec<usize>,
    validated: Vec<usize>,
    stop_at: Option<u64>,
}

impl Text {
    /// In step `stop_at` a rank waits to be killed.
    pub(crate) fn new(stop_at: Option<u64>) -> Self {
        let mut letters: Vec<u8> = TEXT.bytes().collect();
        letters.sort_unstable();
        letters.dedup();
        let number = |byte: u8| letters.binary_search(&byte).unwrap_or(0) as i64;
        let places: Vec<i64> = TEXT.bytes().map(number).collect();
        let part = places.len() / (4 * PARTS);
        let begins = 0..places.len() - LENGTH;
        // Parts from all over the text.
        let (validated, trained) = begins.partition(|begin| (begin / part).is_multiple_of(PARTS));
        Self { letters, places, trained, validated, stop_at }
    }

    pub(crate) fn letters(&self) -> i64 {
        self.letters.len() as i64
    }

    /// Contexts that begin at these places, and the letter after each.
    fn rows(&self, begins: impl Iterator<Item = usize>) -> (Tensor, Tensor) {
        let (mut input, mut target) = (Vec::new(), Vec::new());
        for begin in begins {
            let end = begin + LENGTH;
            input.extend_from_slice(&self.places[begin..end]);
            target.push(self.places[end]);
        }
        (Tensor::from_slice(&input).reshape([-1, CONTEXT]), Tensor::from_slice(&target))
    }

    /// All that is not trained on.
    pub(crate) fn validation(&self) -> (Tensor, Tensor) {
        self.rows(self.validated.iter().copied().step_by(3))
    }
}

/// A number that follows from step, rank and row alone: the same in every run.
fn mixed(step: u64, row: u64) -> u64 {
    let mut x = (step << 20 | row).wrapping_add(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

impl Batches for Text {
    fn batch(
        &self,
        step: u64,
        rank: Rank,
        _: WorldSize,
        device: Device,
    ) -> Result<(Tensor, Tensor)> {
        if self.stop_at == Some(step) {
            super::ranks::wait_to_be_killed();
        }
        let places = self.trained.len() as u64;
        let first = u64::from(rank.get()) * BATCH;
        let begins =
            (first..first + BATCH).map(|row| self.trained[(mixed(step, row) % places) as usize]);
        let (input, target) = self.rows(begins);
        Ok((input.to_device(device), target.to_kind(Kind::Int64).to_device(device)))
    }
}
