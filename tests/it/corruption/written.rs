//! Bits that flip between the hash and the disk: the storage writes other bytes than it was given.
//!
//! A save hashes the copy that it writes, and reads back nothing but headers, the manifest and, in
//! a single file, the blocks where ranks meet: what flips later elsewhere is committed, and found
//! by `verify` and by the next load. What flipped in the state before it was copied has a right
//! hash: nobody can tell.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tch_checkpoint::storage::MemoryStorage;
use tch_checkpoint::{ErrorKind, Result};

use super::loads::Loader;
use super::subject::{Recipe, Shape, Spot, Subject, few_tensors};
use crate::harness::*;
use crate::hooked::Hooked;

/// Flips one bit of byte `at` of the first file whose name fits, once.
fn flipping(inner: &MemoryStorage, fits: fn(&str) -> bool, at: u64) -> Hooked {
    let done = Arc::new(AtomicBool::new(false));
    Hooked::altering(inner, move |path: &Path, offset, bytes| {
        let name = path.file_name().unwrap().to_str().unwrap();
        let byte = at.checked_sub(offset).and_then(|byte| bytes.get_mut(byte as usize));
        if let Some(byte) = byte.filter(|_| fits(name) && !done.swap(true, Ordering::AcqRel)) {
            *byte ^= 0x10;
        }
    })
}

/// Saves with that flip; what the ranks said, and what lies there then.
fn save_flipping(
    shape: Shape,
    fits: fn(&str) -> bool,
    at: u64,
) -> (Vec<Result<()>>, MemoryStorage) {
    let memory = MemoryStorage::new();
    let recipe = Recipe::new(shape, 2, few_tensors());
    let said = recipe.save_through(&flipping(&memory, fits, at), "runs/a.safetensors");
    (said, memory)
}

fn is_data(name: &str) -> bool {
    name.starts_with("model-") && name.ends_with(".safetensors")
}

/// What `verify` and a load say of a committed checkpoint in which something flipped.
fn found_by_both(memory: &MemoryStorage, shape: Shape) -> [Spot; 2] {
    let recipe = Recipe::new(shape, 2, few_tensors());
    let subject = Subject::new(memory, &recipe, "runs/a.safetensors");
    let damage = subject.verify();
    let loads = [1, 2].map(|ranks| Loader::new(&subject, ranks).fault(|| format!("{ranks} ranks")));
    assert!(loads.iter().chain(&damage).all(|e| e.kind() == ErrorKind::Corrupt));
    [Spot::of(&damage[0]), Spot::of(&loads[0])]
}

#[test]
fn a_bit_of_data_that_flips_after_it_was_hashed_is_found_by_verify_and_by_a_load() {
    let (said, memory) = save_flipping(Shape::Directory, is_data, 4096 + 5);
    assert!(said.iter().all(Result::is_ok), "no save can see it: {said:?}");
    let spots = found_by_both(&memory, Shape::Directory);
    let expected = Spot { tensor: Some("weight".to_owned()), offset: Some(4096) };
    assert_eq!(spots, [expected.clone(), expected]);

    // In a single file, between the blocks at the ends, which are read back.
    let memory = MemoryStorage::new();
    let recipe = Recipe::new(Shape::OneFile, 1, few_tensors());
    let flipping = flipping(&memory, |_| true, 4096 + 8 + 5);
    assert!(recipe.save_through(&flipping, "runs/a.safetensors")[0].is_ok());
    let spots = found_by_both(&memory, Shape::OneFile);
    let expected = Spot { tensor: Some("weight".to_owned()), offset: Some(4096 + 8) };
    assert_eq!(spots, [expected.clone(), expected]);
}

/// Where bytes of two ranks meet in a file, the coordinator reads them back.
#[test]
fn a_bit_at_the_seams_of_a_single_file_that_flips_fails_the_save() {
    let (said, memory) = save_flipping(Shape::OneFile, |_| true, 4096 + 5);
    let error = one_error(&said, "a seam flipped");
    assert_eq!((error.kind(), error.offset()), (ErrorKind::NotShared, Some(4096)), "{error}");
    assert_eq!(entries(&memory, "runs"), [""; 0]);
}

#[test]
fn a_bit_of_the_sums_that_flips_is_found_by_verify_and_by_a_load() {
    for at in [3, 20, 32, 40] {
        let (said, memory) = save_flipping(Shape::Directory, |name| name.starts_with("sums-"), at);
        assert!(said.iter().all(Result::is_ok), "{said:?}");
        found_by_both(&memory, Shape::Directory);
    }
}

/// The coordinator reads headers back before it commits: nothing becomes visible.
#[test]
fn a_bit_of_a_header_that_flips_fails_the_save() {
    let (said, memory) = save_flipping(Shape::Directory, is_data, 100);
    let error = one_error(&said, "a header flipped");
    assert_eq!(error.kind(), ErrorKind::NotShared, "{error}");
    assert_eq!(entries(&memory, "runs"), [""; 0]);
}

/// What a commit replaces goes after it, so the record is read back before it.
#[test]
fn a_bit_of_a_manifest_that_flips_fails_the_save() {
    let manifest = |name: &str| name == "manifest.bin";
    for (shape, fits, at) in
        [(Shape::Directory, manifest as fn(&str) -> bool, 200), (Shape::OneFile, |_| true, 100)]
    {
        let (said, memory) = save_flipping(shape, fits, at);
        let error = one_error(&said, "a manifest flipped");
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        // An attempt that cannot be read may be a checkpoint that was exchanged out: it stays.
        let left = entries(&memory, "runs");
        assert!(left.iter().all(|name| name.starts_with('.')), "{left:?}");
        let recipe = Recipe::new(shape, 2, few_tensors());
        let through = Hooked::new(&memory, |_| Ok(()));
        assert!(recipe.save_through(&through, "runs/a.safetensors").iter().all(Result::is_ok));
        assert_eq!(entries(&memory, "runs"), ["a.safetensors"]);
    }
}

#[test]
fn a_bit_of_index_or_code_that_flips_is_found_by_verify() {
    for fits in [(|name| name == "model.rs") as fn(&str) -> bool, |name| name.ends_with(".json")] {
        let (said, memory) = save_flipping(Shape::Directory, fits, 10);
        assert!(said.iter().all(Result::is_ok), "{said:?}");
        let recipe = Recipe::new(Shape::Directory, 2, few_tensors());
        let subject = Subject::new(&memory, &recipe, "runs/a.safetensors");
        let damage = subject.verify();
        assert_eq!(damage.len(), 1, "{damage:?}");
        assert!(subject.other_files().iter().any(|file| damage[0].path() == Some(file)));
        Loader::new(&subject, 1).load().unwrap();
    }
}
