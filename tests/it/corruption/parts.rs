//! Loads that do not read everything: they find damage in what they read, and are right about it.

use tch_checkpoint::manifest::{SUM_BYTES, SUMS_HEADER_BYTES};
use tch_checkpoint::tensor::Component;

use super::loads::Loader;
use super::subject::{Recipe, Shape, Spot, Subject, many_tensors};
use crate::tier;

/// Whether a load of `component` goes by this byte of data file `index`.
fn reads_data(subject: &Subject, index: usize, component: &Component) -> bool {
    subject.found.manifest.data_files()[index].component == *component
}

/// Whether a load of `component` goes by this byte of sums file `index`: its head, and the sums of
/// the files of the component.
fn reads_sums(subject: &Subject, index: usize, byte: u64, component: &Component) -> bool {
    let files = subject.found.manifest.data_files().iter();
    let mut read =
        files.filter(|file| file.sums_file as usize == index && file.component == *component);
    if byte < SUMS_HEADER_BYTES {
        return read.next().is_some();
    }
    read.any(|file| {
        (file.sums_begin..file.sums_begin + file.sums_count * SUM_BYTES).contains(&byte)
    })
}

/// A load of one component of three, of a checkpoint of three ranks, with a flipped bit somewhere:
/// an error that names the file if it goes by that byte, and the right bytes if it does not.
/// `verify` finds it either way.
#[test]
fn a_load_of_a_part_finds_damage_in_what_it_reads_and_is_right_about_the_rest() {
    let subject = Recipe::new(Shape::Directory, 3, many_tensors()).saved();
    let (mut found, mut passed_by) = (0, 0);
    for component in ["model", "optimizer", "averages"].map(|c| Component::new(c).unwrap()) {
        let loader = Loader::of(&subject, 1, Some(vec![component.clone()]));
        let mut check = |file: &str, byte: u64, is_read: bool| {
            subject.flip(file, byte * 8 + byte % 8);
            match loader.load() {
                Err(error) => {
                    assert!(is_read, "{file} byte {byte} is none of {component}: {error}");
                    assert_eq!(error.path(), Some(file), "byte {byte}");
                    found += 1;
                }
                Ok(()) => {
                    assert!(!is_read, "{file} byte {byte} belongs to {component}");
                    let damage = subject.verify_files();
                    assert!(damage.iter().any(|e| e.path() == Some(file)), "{file} byte {byte}");
                    passed_by += 1;
                }
            }
            subject.flip(file, byte * 8 + byte % 8);
        };
        for (index, file) in subject.data_files().iter().enumerate() {
            let len = subject.bits(file) / 8;
            for byte in (0..len).step_by(4093).chain([len - 1]) {
                check(file, byte, reads_data(&subject, index, &component));
            }
        }
        for (index, file) in subject.sums_files().iter().enumerate() {
            for byte in 0..subject.bits(file) / 8 {
                check(file, byte, reads_sums(&subject, index, byte, &component));
            }
        }
        loader.load().unwrap();
    }
    assert!(found > 300 && passed_by > 300, "{found} {passed_by}");
    tier::figure(
        "flips met by loads of a part",
        format!("{found} read and found, {passed_by} not read"),
    );
}

/// The damaged shard is wanted by one rank only: every rank gets the error, none a half-filled
/// destination.
#[test]
fn damage_in_the_shard_of_one_rank_fails_all_of_them_alike() {
    let subject = Recipe::new(Shape::Directory, 3, many_tensors()).saved();
    let loader = Loader::new(&subject, 3);
    let manifest = &subject.found.manifest;
    assert_eq!(manifest.tensor("rows").unwrap().pieces.len(), 3);
    for piece in &manifest.tensor("rows").unwrap().pieces {
        let file = &subject.data_files()[piece.file as usize];
        subject.flip(file, piece.begin * 8);
        let error = loader.fault(|| format!("{file} at {}", piece.begin));
        assert_eq!(error.path(), Some(file.as_str()));
        assert_eq!(Spot::of(&error), subject.spot(piece.file as usize, piece.begin));
        assert_eq!(error.tensor(), Some("rows"));
        subject.flip(file, piece.begin * 8);
    }
    loader.load().unwrap();
}
