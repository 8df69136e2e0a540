//! Files with their manifest inside: every bit of the header, and data by chance.

use super::loads::Loader;
use super::random_bits::Random;
use super::subject::{Recipe, Shape, Subject, few_tensors, many_tensors};
use super::tally::{Expected, Tally};
use crate::tier;

fn flip(subject: &Subject, loader: &Loader, file: &str, bits: impl Iterator<Item = u64>) -> Tally {
    let expected = Expected::at(file);
    let mut tally = Tally::default();
    for bit in bits {
        subject.flip(file, bit);
        tally.take(|| format!("bit {bit}"), (&subject.verify(), &loader.load()), &expected);
        subject.flip(file, bit);
    }
    loader.load().unwrap();
    tally
}

/// Where the text of the manifest lies in a file.
fn manifest_text(bytes: &[u8]) -> std::ops::Range<u64> {
    let before = b"\"tch_checkpoint.manifest\":\"";
    let begin = bytes.windows(before.len()).position(|w| w == before).unwrap() + before.len();
    let len = bytes[begin..].iter().position(|byte| *byte == b'"').unwrap();
    begin as u64..(begin + len) as u64
}

/// Length, names, text of the manifest, sums and padding; and all of the data, for it is short.
#[test]
fn every_bit_of_a_single_file_is_found_by_verify_and_by_a_load() {
    let subject = Recipe::new(Shape::OneFile, 2, few_tensors()).saved();
    let (loader, file) = (Loader::new(&subject, 1), subject.at.clone());
    let mut tally = flip(&subject, &loader, &file, 0..subject.bits(&file));
    assert_eq!(tally.tried(), subject.bits(&file));
    let on_ranks = Loader::new(&subject, 3);
    tally.add(flip(&subject, &on_ranks, &file, (0..subject.bits(&file)).step_by(97)));
    tally.all_found("flipped bits of a single file");
}

/// The text is base64, whose last letters may have bits to spare, by the length of the manifest.
#[test]
fn every_bit_of_the_text_of_a_manifest_of_any_length_is_found() {
    let mut tally = Tally::default();
    let mut remainders = std::collections::BTreeSet::new();
    for note in ["", "a", "ab"] {
        let recipe = Recipe::new(Shape::OneFile, 1, few_tensors());
        let subject = Recipe { note: note.to_owned(), ..recipe }.saved();
        let (loader, file) = (Loader::new(&subject, 1), subject.at.clone());
        let text = manifest_text(&subject.files[&file]);
        let end = &subject.files[&file][..text.end as usize];
        remainders.insert(end.iter().rev().take_while(|byte| **byte == b'=').count());
        tally.add(flip(&subject, &loader, &file, (text.end - 64) * 8..(text.end + 4) * 8));
    }
    assert_eq!(remainders.len(), 3, "all ways in which base64 ends");
    tally.all_found("flipped bits of the end of a text");
}

/// Whatever it is called: a name without an extension says nothing of what is in a file.
#[test]
fn every_bit_of_a_single_file_of_any_name_is_found() {
    let recipe = Recipe::new(Shape::OneFile, 1, few_tensors());
    let subject = recipe.save(&Default::default(), "runs/model");
    let (loader, file) = (Loader::new(&subject, 1), subject.at.clone());
    let text = manifest_text(&subject.files[&file]);
    // What follows is covered by the test of the usual name.
    let tally = flip(&subject, &loader, &file, 0..(text.start + 8) * 8);
    tally.all_found("flipped bits of a single file of any name");
}

#[test]
fn random_bits_of_the_data_of_a_single_file_are_found_with_tensor_and_block() {
    let subject = Recipe::new(Shape::OneFile, 3, many_tensors()).saved();
    let (loader, file) = (Loader::new(&subject, 1), subject.at.clone());
    let start = subject.found.manifest.data_files()[0].data_start;
    let (mut random, mut tally) = (Random(7), Tally::default());
    for _ in 0..tier::count(500, 10_000) {
        let bit = start * 8 + random.below(subject.bits(&file) - start * 8);
        let expected = Expected { spot: Some(subject.spot(0, bit / 8)), ..Expected::at(&file) };
        subject.flip(&file, bit);
        tally.take(|| format!("bit {bit}"), (&subject.verify(), &loader.load()), &expected);
        subject.flip(&file, bit);
    }
    loader.load().unwrap();
    tally.all_found("flipped bits of the data of a single file");
}

/// Every bit of the headers of several files that belong together, whichever is damaged.
#[test]
fn every_bit_of_a_file_per_component_is_found() {
    let subject = Recipe::new(Shape::FilePerComponent, 1, few_tensors()).saved();
    let loader = Loader::new(&subject, 1);
    let mut tally = Tally::default();
    assert_eq!(subject.files.len(), 2);
    for file in subject.files.keys() {
        // All of the metadata, less the padding, which is covered by the test of one file.
        let text = manifest_text(&subject.files[file]);
        tally.add(flip(&subject, &loader, file, 0..(text.end + 400) * 8));
    }
    tally.all_found("flipped bits of files by component");
}
