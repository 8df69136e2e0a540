//! Bits of the data, by chance: of every tensor, dtype, component, rank and block.

use super::loads::Loader;
use super::subject::{BLOCK, Recipe, Shape, Subject, many_tensors};
use super::tally::{Expected, Tally};
use crate::tier;

const SEED: u64 = 0x5EED_0FB1;
/// One of so many flips is also loaded on two ranks, three and four.
const ON_RANKS: u64 = 50;

/// Numbers that are the same in every run (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % end
    }
}

/// A data file and a bit of it.
type Bit = (usize, u64);

/// First and last bit of every piece, and of its blocks where they meet.
fn edges(subject: &Subject) -> Vec<Bit> {
    let mut bits = Vec::new();
    for file in 0..subject.data_files().len() {
        for (tensor, piece) in subject.found.manifest.pieces_of_file(file) {
            let (begin, len) = (piece.begin, tensor.piece_bytes(piece));
            for byte in
                (0..len).filter(|at| at % BLOCK == 0 || (at + 1) % BLOCK == 0 || at + 1 == len)
            {
                bits.extend([(file, (begin + byte) * 8), (file, (begin + byte) * 8 + 7)]);
            }
        }
    }
    bits
}

/// `count` bits: a tensor by chance, a piece of it, a byte of that, so that small ones get as many
/// as large ones.
fn by_chance(subject: &Subject, count: u64) -> Vec<Bit> {
    let manifest = &subject.found.manifest;
    let tensors: Vec<_> = manifest.tensors().iter().filter(|t| t.spec.size_bytes() > 0).collect();
    let mut random = Random(SEED);
    let one = |_| {
        let tensor = tensors[random.below(tensors.len() as u64) as usize];
        let piece = &tensor.pieces[random.below(tensor.pieces.len() as u64) as usize];
        let byte = piece.begin + random.below(tensor.piece_bytes(piece));
        (piece.file as usize, byte * 8 + random.below(8))
    };
    (0..count).map(one).collect()
}

fn flip_all(subject: &Subject, bits: &[Bit]) -> Tally {
    let loaders: Vec<Loader> = (1..=4).map(|ranks| Loader::new(subject, ranks)).collect();
    let files = subject.data_files();
    let mut tally = Tally::default();
    for (number, &(index, bit)) in bits.iter().enumerate() {
        let file = &files[index];
        let expected = Expected { spot: Some(subject.spot(index, bit / 8)), ..Expected::at(file) };
        subject.flip(file, bit);
        let damage = subject.verify_files();
        assert_eq!(damage.len(), 1, "{file} bit {bit}: {damage:?}");
        let on_all = (number as u64).is_multiple_of(ON_RANKS);
        let loaders = if on_all { &loaders[..] } else { &loaders[..1] };
        for (loader, ranks) in loaders.iter().zip(1..) {
            let what = || format!("{file} bit {bit} on {ranks} ranks");
            tally.take(what, (&damage, &loader.load()), &expected);
        }
        subject.flip(file, bit);
    }
    loaders.iter().for_each(|loader| loader.load().unwrap());
    tally
}

/// The error names file, tensor and block, on one rank and on all of two, three and four.
#[test]
fn random_bits_of_all_tensors_are_found_by_verify_and_by_a_load() {
    let subject = Recipe::new(Shape::Directory, 3, many_tensors()).saved();
    let manifest = &subject.found.manifest;
    assert!(manifest.data_files().len() >= 7, "several components of several ranks");
    let pieces = || manifest.tensors().iter().flat_map(|t| t.pieces.iter().map(move |p| (t, p)));
    assert!(
        pieces().any(|(t, piece)| t.piece_bytes(piece) > BLOCK + 4096),
        "pieces of several blocks"
    );
    let mut bits = edges(&subject);
    assert!(bits.len() > 100);
    bits.extend(by_chance(&subject, tier::count(10_000, 100_000)));
    let halves = bits.split_at(bits.len() / 2);
    let tally = std::thread::scope(|scope| {
        let other = subject.copy();
        let second = scope.spawn(move || flip_all(&other, halves.1));
        let mut tally = flip_all(&subject, halves.0);
        tally.add(second.join().unwrap());
        tally
    });
    assert!(tally.tried() >= bits.len() as u64);
    tally.all_found("flipped bits of data");
}
