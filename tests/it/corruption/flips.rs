//! Every bit of everything that is not data, in every tier: nothing is sampled here.

use std::sync::Arc;

use tch_checkpoint::catalog::read_other;
use tch_checkpoint::manifest::SUMS_HEADER_BYTES;

use super::loads::Loader;
use super::subject::{Recipe, Shape, Subject, few_tensors};
use super::tally::{Expected, Tally};

/// Of several ranks, every so manieth bit: their threads cost more than the load.
const STRIDE_ON_RANKS: u64 = 97;

fn subject() -> Subject {
    Recipe::new(Shape::Directory, 2, few_tensors()).saved()
}

/// Flips every bit of a file, alone, and hands it to `check`.
fn every_bit(subject: &Subject, file: &str, mut check: impl FnMut(u64)) {
    for bit in 0..subject.bits(file) {
        subject.flip(file, bit);
        check(bit);
        subject.flip(file, bit);
    }
}

/// As [`every_bit`], on two ranks to four, for some of the bits.
fn some_bits_on_ranks(subject: &Subject, file: &str, mut check: impl FnMut(u64, &Loader)) {
    for ranks in 2..=4 {
        let loader = Loader::new(subject, ranks);
        let first = u64::from(ranks) * 29;
        for bit in (first..subject.bits(file)).step_by(STRIDE_ON_RANKS as usize) {
            subject.flip(file, bit);
            check(bit, &loader);
            subject.flip(file, bit);
        }
        loader.load().unwrap();
    }
}

#[test]
fn every_bit_of_the_manifest_is_found_by_verify_and_by_a_load() {
    let subject = subject();
    let (loader, file) = (Loader::new(&subject, 1), subject.manifest_path());
    let expected = Expected::at(&file).spot(None, None);
    let mut tally = Tally::default();
    every_bit(&subject, &file, |bit| {
        tally.take(|| format!("bit {bit}"), (&subject.verify(), &loader.load()), &expected);
    });
    assert_eq!(tally.tried(), subject.bits(&file));
    some_bits_on_ranks(&subject, &file, |bit, loader| {
        tally.take(|| format!("bit {bit}"), (&subject.verify(), &loader.load()), &expected);
    });
    tally.all_found("flipped bits of the manifest");
    loader.load().unwrap();
}

#[test]
fn every_bit_of_every_header_is_found_by_verify_and_by_a_load() {
    let subject = subject();
    assert_eq!(subject.data_files().len(), 2, "one of each component and rank");
    let headers = |index: usize| subject.found.manifest.data_files()[index].data_start * 8;
    let tallies: Vec<Tally> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..subject.data_files().len())
            .map(|index| {
                scope.spawn({
                    let copy = subject.copy();
                    move || flip_header(&copy, index)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mut all = Tally::default();
    for (index, tally) in tallies.into_iter().enumerate() {
        assert!(tally.tried() >= headers(index) && headers(index) >= 4096 * 8);
        all.add(tally);
    }
    all.all_found("flipped bits of headers of data files");
}

/// The header of one data file, up to the first byte of data: padding counts as header.
fn flip_header(subject: &Subject, index: usize) -> Tally {
    let (loader, file) = (Loader::new(subject, 1), subject.data_files()[index].clone());
    let bits = subject.found.manifest.data_files()[index].data_start * 8;
    let expected = Expected::at(&file).spot(None, Some(0));
    let mut tally = Tally::default();
    for bit in 0..bits {
        subject.flip(&file, bit);
        let verdicts = (&subject.verify_files()[..], &loader.load());
        tally.take(|| format!("{file} bit {bit}"), verdicts, &expected);
        subject.flip(&file, bit);
    }
    some_bits_on_ranks(subject, &file, |bit, loader| {
        if bit < bits {
            let verdicts = (&subject.verify()[..], &loader.load());
            tally.take(|| format!("{file} bit {bit}"), verdicts, &expected);
        }
    });
    loader.load().unwrap();
    tally
}

/// The offset is where the sums of the file begin that they belong to.
#[test]
fn every_bit_of_every_sums_file_is_found_by_verify_and_by_a_load() {
    let subject = subject();
    let loader = Loader::new(&subject, 1);
    let mut tally = Tally::default();
    let files = subject.sums_files();
    assert_eq!(files.len(), 2);
    for (index, file) in files.iter().enumerate() {
        let begins = || subject.found.manifest.data_files().iter();
        let begins = begins().filter(|f| f.sums_file as usize == index).map(|f| f.sums_begin);
        let begins: Vec<u64> = begins.collect();
        let expected = Expected::at(file);
        every_bit(&subject, file, |bit| {
            let (damage, load) = (subject.verify_files(), loader.load());
            let of_file = begins.iter().copied().filter(|begin| *begin <= bit / 8).max();
            let begin = if bit / 8 < SUMS_HEADER_BYTES { Some(0) } else { of_file };
            assert_eq!(load.as_ref().unwrap_err().offset(), begin, "{file} bit {bit}");
            assert!(damage.iter().any(|error| error.offset() == begin), "{file} bit {bit}");
            tally.take(|| format!("{file} bit {bit}"), (&damage, &load), &expected);
        });
        some_bits_on_ranks(&subject, file, |bit, loader| {
            let verdicts = (&subject.verify()[..], &loader.load());
            tally.take(|| format!("{file} bit {bit}"), verdicts, &expected);
        });
    }
    tally.all_found("flipped bits of sums files");
    loader.load().unwrap();
}

/// No load goes by them: it gives the right bytes all the same.
#[test]
fn every_bit_of_index_and_code_is_found_by_verify_and_by_who_reads_them() {
    let subject = subject();
    let loader = Loader::new(&subject, 1);
    let dir = Arc::clone(&subject.found.dir);
    let records = subject.found.manifest.other_files();
    assert_eq!(records.len(), 2, "the index and one text");
    for (file, record) in subject.other_files().iter().zip(records) {
        every_bit(&subject, file, |bit| {
            let damage = subject.verify_files();
            let [error] = &damage[..] else { panic!("{file} bit {bit}: {damage:?}") };
            assert_eq!(error.path(), Some(file.as_str()), "{file} bit {bit}");
            let error = read_other(&dir, record).unwrap_err();
            assert_eq!(error.path(), Some(file.as_str()), "{file} bit {bit}");
            if bit % 8 == 0 {
                loader.load().unwrap();
            }
        });
    }
    assert_eq!(subject.verify(), []);
}
