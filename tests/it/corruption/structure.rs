//! Files cut off, grown, with holes, and with blocks in the wrong place.

use std::collections::BTreeSet;
use std::path::Path;

use tch_checkpoint::manifest::hash16;
use tch_checkpoint::storage::LocalStorage;
use tch_checkpoint::tensor::Dtype;

use super::loads::Loader;
use super::random_bits::Random;
use super::subject::{BLOCK, Recipe, Shape, Subject, many_tensors};
use super::tally::{Expected, Tally};
use crate::harness::*;
use crate::tier;

const SECTOR: usize = 512;
const PAGE: usize = 4096;

fn subject() -> Subject {
    Recipe::new(Shape::Directory, 3, many_tensors()).saved()
}

fn single_file() -> Subject {
    Recipe::new(Shape::OneFile, 3, many_tensors()).saved()
}

/// A subject whose files are given other bytes, one after the other.
struct Bench {
    subject: Subject,
    loader: Loader,
    tally: Tally,
}

impl Bench {
    fn new(subject: Subject) -> Self {
        Self { loader: Loader::new(&subject, 1), subject, tally: Tally::default() }
    }

    /// Gives files other bytes, and looks whether that is found. Bytes that are the right ones are
    /// no damage and not counted.
    fn damage(&mut self, what: impl Fn() -> String, changed: &[(&str, Vec<u8>)]) {
        let subject = &self.subject;
        if changed.iter().all(|(file, bytes)| subject.files[*file] == *bytes) {
            return;
        }
        changed.iter().for_each(|(file, bytes)| subject.put(file, bytes));
        let paths = changed.iter().map(|(file, _)| *file).collect();
        let verdicts = (&subject.verify()[..], &self.loader.load());
        self.tally.take(what, verdicts, &Expected { paths, ..Expected::default() });
        changed.iter().for_each(|(file, _)| subject.restore(file));
    }

    fn done(self, what: &str) {
        self.loader.load().unwrap();
        assert_eq!(self.subject.verify(), []);
        self.tally.all_found(what);
    }

    /// Files that every load of everything goes by: manifest, data, sums; or the one that is all.
    fn files(&self) -> Vec<String> {
        let subject = &self.subject;
        if subject.recipe.shape == Shape::OneFile {
            return vec![subject.at.clone()];
        }
        let files = [subject.data_files(), subject.sums_files(), vec![subject.manifest_path()]];
        files.concat()
    }
}

/// At every sector and by one byte, to nothing, and longer by up to 32 KiB, of zeros (as a hole
/// reads) and of other bytes.
#[test]
fn files_cut_off_or_grown_at_every_sector_are_found() {
    let mut bench = Bench::new(subject());
    cut_and_grow(&mut bench);
    assert!(bench.tally.tried() > 1500);
    bench.done("files cut off or grown");
}

#[test]
fn a_single_file_cut_off_grown_or_overwritten_is_found() {
    let mut bench = Bench::new(single_file());
    cut_and_grow(&mut bench);
    overwrite(&mut bench, &[PAGE]);
    assert!(bench.tally.tried() > 700);
    bench.done("a single file cut off, grown or overwritten");
}

fn cut_and_grow(bench: &mut Bench) {
    for file in bench.files() {
        let right = bench.subject.files[&file].clone();
        let lens = (0..right.len()).step_by(SECTOR).chain([1, 7, 8, right.len() - 1]);
        for len in lens {
            bench.damage(|| format!("{file} cut at {len}"), &[(&file, right[..len].to_vec())]);
        }
        for more in [1, 2, 7].into_iter().chain((SECTOR..=32 << 10).step_by(SECTOR)) {
            for fill in [0, 0x5A] {
                let longer = [&right[..], &vec![fill; more]].concat();
                bench.damage(|| format!("{file} longer by {more}"), &[(&file, longer)]);
            }
        }
    }
}

/// No load reads them.
#[test]
fn other_files_cut_off_or_grown_are_found_by_verify_alone() {
    let bench = Bench::new(subject());
    assert_eq!(bench.subject.other_files().len(), 1, "one text");
    for file in bench.subject.other_files() {
        let right = bench.subject.files[&file].clone();
        let changed = (0..right.len()).map(|len| right[..len].to_vec());
        for bytes in changed.chain([[&right[..], b"x"].concat()]) {
            bench.subject.put(&file, &bytes);
            let damage = bench.subject.verify();
            assert_eq!(damage.len(), 1, "{file}: {damage:?}");
            assert_eq!(damage[0].path(), Some(file.as_str()));
            bench.subject.restore(&file);
        }
    }
    bench.loader.load().unwrap();
}

/// Zeroed, as a hole or an unwritten page reads, and full of another byte.
#[test]
fn every_zeroed_or_overwritten_page_is_found() {
    let mut bench = Bench::new(subject());
    overwrite(&mut bench, &[SECTOR, PAGE, 65_536]);
    assert!(bench.tally.tried() > 1500);
    bench.done("zeroed and overwritten sectors, pages and blocks");
}

fn overwrite(bench: &mut Bench, units: &[usize]) {
    for file in bench.files() {
        let right = bench.subject.files[&file].clone();
        for unit in units {
            for begin in (0..right.len()).step_by(*unit) {
                for fill in [0, 0xFF] {
                    let mut bytes = right.clone();
                    bytes[begin..right.len().min(begin + unit)].fill(fill);
                    bench.damage(|| format!("{file} {unit} at {begin}"), &[(&file, bytes)]);
                }
            }
        }
    }
}

/// Pages and blocks of sums of one file or two: exchanged, and one written over the other.
#[test]
fn swapped_and_duplicated_pages_within_and_between_files_are_found() {
    let mut bench = Bench::new(subject());
    let files = bench.subject.data_files();
    let mut units = Vec::new();
    for file in &files {
        let pages = bench.subject.files[file].len() / PAGE;
        units.extend((0..pages).map(|page| (file.as_str(), page * PAGE)));
    }
    let (mut random, mut seen) = (Random(11), BTreeSet::new());
    let pairs = tier::count(750, 15_000);
    while (seen.len() as u64) < pairs {
        let (a, b) = (random.below(units.len() as u64), random.below(units.len() as u64));
        if a != b && seen.insert((a, b)) {
            let (from, to) = (units[a as usize], units[b as usize]);
            swap_and_copy(&mut bench, from, to, PAGE);
        }
    }
    assert!(bench.tally.tried() > 2 * pairs - 100);
    bench.done("swapped and duplicated pages");
}

/// Whole blocks as sums are taken of them: their content is right, but for another place.
#[test]
fn swapped_and_duplicated_blocks_of_sums_are_found() {
    let tensors = ["table", "optimizer.table"];
    let tensors = tensors.map(|name| TestTensor::new(name, Dtype::F32, &[180, 401], None));
    let subject = Recipe::new(Shape::Directory, 2, tensors.to_vec()).saved();
    let mut bench = Bench::new(subject);
    let files = bench.subject.data_files();
    let mut blocks = Vec::new();
    for (index, file) in files.iter().enumerate() {
        for (tensor, piece) in bench.subject.found.manifest.pieces_of_file(index) {
            let whole = (0..tensor.piece_bytes(piece) / BLOCK).map(|n| piece.begin + n * BLOCK);
            blocks.extend(whole.map(|at| (file.as_str(), at as usize)));
        }
    }
    assert!(blocks.len() >= 8, "whole blocks in several pieces: {blocks:?}");
    for from in &blocks {
        for to in blocks.iter().filter(|to| *to != from) {
            swap_and_copy(&mut bench, *from, *to, BLOCK as usize);
        }
    }
    bench.done("swapped and duplicated blocks of sums");
}

fn swap_and_copy(bench: &mut Bench, from: (&str, usize), to: (&str, usize), len: usize) {
    let taken = |(file, at): (&str, usize)| bench.subject.files[file][at..at + len].to_vec();
    let (there, here) = (taken(from), taken(to));
    let with = |(file, at): (&str, usize), part: &[u8], bytes: Option<Vec<u8>>| {
        let mut bytes = bytes.unwrap_or_else(|| bench.subject.files[file].clone());
        bytes[at..at + len].copy_from_slice(part);
        bytes
    };
    let copied = with(to, &there, None);
    let swapped = match from.0 == to.0 {
        true => vec![(to.0, with(from, &here, Some(copied.clone())))],
        false => vec![(from.0, with(from, &here, None)), (to.0, copied.clone())],
    };
    bench.damage(|| format!("{from:?} over {to:?}"), &[(to.0, copied)]);
    bench.damage(|| format!("{from:?} and {to:?} swapped"), &swapped);
}

/// Damage with sums to match, which only what the manifest says of the sums can tell: sums say
/// nothing about where bytes belong.
#[test]
fn data_with_sums_that_fit_it_is_found_by_the_manifest() {
    let mut bench = Bench::new(subject());
    let manifest = bench.subject.found.manifest.clone();
    let (data, sums) = (bench.subject.data_files(), bench.subject.sums_files());
    for (index, record) in manifest.data_files().iter().enumerate() {
        let (file, sums_file) = (&data[index], &sums[record.sums_file as usize]);
        for (tensor, piece) in manifest.pieces_of_file(index) {
            let len = tensor.piece_bytes(piece).min(BLOCK) as usize;
            if len == 0 {
                continue;
            }
            let (mut bytes, begin) = (bench.subject.files[file].clone(), piece.begin as usize);
            bytes[begin] ^= 1;
            let mut forged = bench.subject.files[sums_file].clone();
            let at = (record.sums_begin + piece.first_sum * 16) as usize;
            forged[at..at + 16].copy_from_slice(&hash16(&bytes[begin..begin + len]));
            let what = || format!("{file}: {} with its sum", tensor.name);
            // Sums cannot be told from data by now: the file of the sums is blamed.
            let changed = [(sums_file.as_str(), forged), (file.as_str(), bytes)];
            bench.damage(what, &changed);
        }
    }
    assert!(bench.tally.tried() > 25);
    bench.done("data with sums to match");
}

/// A file that is all hole, or in part, with the right length.
#[test]
fn holes_of_the_right_length_are_found_on_a_file_system() {
    let scratch = tempfile::tempdir().unwrap();
    let at = scratch.path().join("a").to_str().unwrap().to_owned();
    saved(LocalStorage::new(), 2, &at, &usual_tensors(), 3);
    let mut holes = 0;
    for entry in std::fs::read_dir(&at).unwrap() {
        let file = entry.unwrap().path();
        let right = std::fs::read(&file).unwrap();
        let is_read = !file.ends_with("model.safetensors.index.json");
        for kept in [0, right.len() / 2, right.len() - 1] {
            punch(&file, kept as u64, right.len() as u64);
            if std::fs::read(&file).unwrap() == right {
                continue;
            }
            assert!(verified(&at).is_err(), "{} from {kept}", file.display());
            let verdicts = loaded(LocalStorage::new(), 2, &at, &usual_tensors(), 3);
            let failed = verdicts.iter().all(Result::is_err);
            assert_eq!(failed, is_read, "{} from {kept}", file.display());
            holes += 1;
            std::fs::write(&file, &right).unwrap();
        }
    }
    assert!(holes >= 15, "{holes}");
    verified(&at).unwrap();
}

fn punch(file: &Path, begin: u64, len: u64) {
    let file = std::fs::File::options().write(true).open(file).unwrap();
    file.set_len(begin).unwrap();
    file.set_len(len).unwrap();
}

fn verified(at: &str) -> Result<(), String> {
    let found = tch_checkpoint::catalog::find(&LocalStorage::new(), &wanted(at));
    let found = found.map_err(|error| error.to_string())?;
    let damage = tch_checkpoint::verify::verify(&found, &mut |_| {}).unwrap().damage;
    if damage.is_empty() { Ok(()) } else { Err(format!("{damage:?}")) }
}
