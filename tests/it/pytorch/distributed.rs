//! What `torch.distributed.checkpoint` writes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tch_checkpoint::export::{PyTorchForm, export};
use tch_checkpoint::import::ImportOptions;
use tch_checkpoint::load::{Atomicity, load};
use tch_checkpoint::plan::load::LoadRules;
use tch_checkpoint::slice::Slice;
use tch_checkpoint::state::{LoadTargets, StateDict};
use tch_checkpoint::tensor::{Component, Dtype, TensorSpec};
use tch_checkpoint::{ErrorKind, SaveOptions, save};

use super::round_trips::everything;
use super::*;
use crate::hooked::Hooked;
use crate::tier;

/// A storage with a directory of the fixtures, under its own name in `/from`.
fn memory_with_directory(name: &str) -> MemoryStorage {
    let memory = MemoryStorage::new();
    let to = Path::new("/from").join(name);
    memory.create_dir_all(&to).unwrap();
    for entry in std::fs::read_dir(fixture("dcp").join(name)).unwrap() {
        let entry = entry.unwrap();
        memory.write(&to.join(entry.file_name()), &std::fs::read(entry.path()).unwrap()).unwrap();
    }
    memory
}

#[test]
fn distributed_checkpoints_of_torch_come_in_bit_for_bit() {
    for name in ["nested", "flat", "numbered", "kinds", "sharded"] {
        let memory = memory_with_directory(name);
        imported(&memory, name).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_same(&tensors_of(&memory, "/runs/a"), &expected("dcp", name), name);
    }
}

#[test]
fn values_and_settings_of_a_distributed_checkpoint_come_in() {
    for name in ["nested", "flat"] {
        let memory = memory_with_directory(name);
        imported(&memory, name).unwrap();
        let manifest = manifest(&memory);
        assert_eq!((manifest.step(), manifest.epoch()), (7, 2));
        let values = manifest.values();
        assert_eq!(values.float("loss").unwrap(), 0.5);
        assert_eq!(values.text("config.name").unwrap(), "é");
        let config: serde_json::Value = values.json("optimizer.config").unwrap();
        assert_eq!(config["algorithm"], "adam_w");
        assert_eq!(values.floats("optimizer.lr").unwrap(), [1e-3]);
    }
}

/// Saved by four ranks of torch, imported by others, with boxes that are columns and uneven rows.
#[test]
fn what_four_ranks_saved_is_imported_by_any_number() {
    for ranks in [2, 3, 4] {
        let memory = memory_with_directory("sharded");
        let inner = memory.clone();
        let done = on_ranks(ranks, move |group| {
            let from = Path::new("/from/sharded");
            import(&group, &inner, from, &path("/runs/a"), &ImportOptions::default()).map(drop)
        });
        done.into_iter().for_each(|imported| imported.unwrap());
        assert_same(&tensors_of(&memory, "/runs/a"), &expected("dcp", "sharded"), "sharded");
    }
}

/// Each rank takes rows of its own straight from the directory, and reads little else.
#[test]
fn ranks_load_their_rows_where_they_are() {
    let memory = memory_with_directory("sharded");
    let whole = expected("dcp", "sharded")["large"].2.clone();
    let parts = on_ranks(2, move |group| {
        let spec = TensorSpec::new(Dtype::F32, [64, 40]).unwrap();
        let first = u64::from(group.rank().get()) * 24;
        let slice = Slice::new(vec![first, 0], vec![24, 40]).unwrap();
        let mut rows = vec![0u8; 24 * 40 * 4];
        let mut targets = LoadTargets::new();
        targets.add_slice(name("large"), spec, slice, Box::new(&mut rows[..])).unwrap();
        let rules = LoadRules { strict: false, ..LoadRules::default() };
        let wanted = wanted("/from/sharded").or_unverified();
        let loaded = load(&group, &memory, &wanted, &mut targets, &rules, Atomicity::Atomic);
        let read = loaded.unwrap().bytes_read;
        drop(targets);
        (rows, read)
    });
    for (rank, (rows, read)) in parts.into_iter().enumerate() {
        let begin = rank * 24 * 40 * 4;
        assert_eq!(rows, whole[begin..begin + rows.len()]);
        assert_eq!(read, rows.len() as u64, "data that nobody asked for");
    }
}

/// All that is read, also to find where tensors are, beside what is wanted: half of the rows of a
/// few of many tensors.
#[test]
fn little_is_read_that_nobody_wants() {
    let memory = MemoryStorage::new();
    let spec = TensorSpec::new(Dtype::F32, [512, 512]).unwrap();
    let mut state = StateDict::new();
    for number in 0..12 {
        let text = format!("t{number}");
        let bytes = content(&text, &spec, &Slice::full(spec.shape()), 1);
        state.add(&Component::model(), name(&text), spec.clone(), Arc::new(bytes)).unwrap();
    }
    let solo = ProcessGroup::solo();
    save(&solo, &memory, &path("/runs/ours"), &state, &SaveOptions::default()).unwrap();
    let options = everything(PyTorchForm::Dcp);
    export(&solo, &memory, &wanted("/runs/ours"), "/from/dcp", &options).unwrap();
    let read = Arc::new(AtomicUsize::new(0));
    let counted = read.clone();
    let storage = Hooked::new(&memory, move |call| {
        counted.fetch_add(call.bytes, Ordering::Relaxed);
        Ok(())
    });
    let slice = Slice::new(vec![100, 0], vec![256, 512]).unwrap();
    let mut rows = vec![vec![0u8; 256 * 512 * 4]; 8];
    let wanted_bytes: usize = rows.iter().map(Vec::len).sum();
    let mut targets = LoadTargets::new();
    for (number, rows) in rows.iter_mut().enumerate() {
        let (name, slice) = (name(&format!("t{number}")), slice.clone());
        targets.add_slice(name, spec.clone(), slice, Box::new(&mut rows[..])).unwrap();
    }
    let rules = LoadRules { strict: false, ..LoadRules::default() };
    let from = wanted("/from/dcp").or_unverified();
    load(&solo, &storage, &from, &mut targets, &rules, Atomicity::InPlace).unwrap();
    drop(targets);
    for (number, rows) in rows.iter().enumerate() {
        assert_eq!(*rows, content(&format!("t{number}"), &spec, &slice, 1));
    }
    let read = read.load(Ordering::Relaxed);
    tier::figure(
        "a ranged load of a DCP directory reads",
        format!("{read} of {wanted_bytes} bytes"),
    );
    assert!(read * 10 <= wanted_bytes * 11, "{read} bytes were read, {wanted_bytes} wanted");
}

#[test]
fn a_flipped_bit_in_a_distributed_checkpoint_is_found_wherever_it_is() {
    for file in [".metadata", "__0_0.distcp"] {
        let whole = expected("dcp", "kinds");
        let bytes = std::fs::read(fixture("dcp").join("kinds").join(file)).unwrap();
        let mut found = 0;
        for at in (0..bytes.len()).step_by(if file == ".metadata" { 3 } else { 11 }) {
            let memory = memory_with_directory("kinds");
            let mut flipped = bytes.clone();
            flipped[at] ^= 1 << (at % 8);
            memory.write(&Path::new("/from/kinds").join(file), &flipped).unwrap();
            match imported(&memory, "kinds") {
                Err(_) => found += 1,
                Ok(_) => {
                    // Names have no sums: another name is not told from the right one.
                    let seen: Vec<_> = tensors_of(&memory, "/runs/a").into_values().collect();
                    let known = |tensor: &Seen| whole.values().any(|other| other == tensor);
                    assert!(seen.len() == whole.len() && seen.iter().all(known), "{file} {at}");
                }
            }
        }
        assert!(found > 20, "{file}: {found}");
    }
}

#[test]
fn lost_and_torn_shards_and_saves_that_did_not_end_are_refused() {
    type Damage = fn(&MemoryStorage);
    let damage: [(&str, Damage, &str); 5] = [
        ("a lost shard", |m| remove(m, "__2_0.distcp"), "__2_0.distcp"),
        ("a truncated shard", |m| cut(m, "__1_0.distcp"), "__1_0.distcp"),
        ("an empty shard", |m| write(m, "__3_0.distcp", &[]), "__3_0.distcp"),
        ("no metadata", |m| remove(m, ".metadata"), "was not committed"),
        ("shards of two saves", swap, "malformed archive"),
    ];
    for (what, damage, said) in damage {
        let memory = memory_with_directory("sharded");
        damage(&memory);
        let error = imported(&memory, "sharded").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
        assert!(error.to_string().contains(said), "{what}: {error}");
        assert!(memory.open_dir(Path::new("/runs")).is_err(), "{what}: something was written");
    }
}

/// As far as it can be told that metadata and data are not of one save, and do not say what they
/// should: texts of the metadata are replaced by others as long.
#[test]
fn metadata_that_is_not_of_these_items_is_refused() {
    let cases = [
        ("another dtype", "int64", "int32", ErrorKind::Corrupt, "its item is I64 [3]"),
        ("a file that is lost", FILE, "__0_1.distcp", ErrorKind::Corrupt, "__0_1.distcp"),
        ("a file above", FILE, "../_0.distcp", ErrorKind::Corrupt, "no file beside it"),
        ("a hidden file", FILE, ".0_0.distcp_", ErrorKind::Corrupt, "no file beside it"),
        ("a function", "_StorageInfo", "_StorageEval", ErrorKind::Incompatible, "_StorageEval"),
        ("a dtype of no PyTorch", "bfloat16", "bfloat17", ErrorKind::Incompatible, "bfloat17"),
    ];
    for (what, from, to, kind, said) in cases {
        let memory = memory_with_directory("kinds");
        let at = Path::new("/from/kinds/.metadata");
        let metadata = replaced(&memory.read(at).unwrap(), from, to);
        memory.write(at, &metadata).unwrap();
        let error = imported(&memory, "kinds").unwrap_err();
        assert_eq!(error.kind(), kind, "{what}: {error}");
        assert!(error.to_string().contains(said), "{what}: {error}");
    }
}

const FILE: &str = "__0_0.distcp";

/// The first text of these bytes as another.
fn replaced(bytes: &[u8], from: &str, to: &str) -> Vec<u8> {
    let at = bytes.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
    [&bytes[..at], to.as_bytes(), &bytes[at + from.len()..]].concat()
}

fn at(name: &str) -> PathBuf {
    Path::new("/from/sharded").join(name)
}

fn remove(memory: &MemoryStorage, name: &str) {
    memory.open_dir(Path::new("/from/sharded")).unwrap().remove_file(name).unwrap();
}

fn write(memory: &MemoryStorage, name: &str, bytes: &[u8]) {
    memory.write(&at(name), bytes).unwrap();
}

fn cut(memory: &MemoryStorage, name: &str) {
    let bytes = memory.read(&at(name)).unwrap();
    write(memory, name, &bytes[..bytes.len() - 10]);
}

/// As if another save had put it there.
fn swap(memory: &MemoryStorage) {
    let other = memory.read(&at("__1_0.distcp")).unwrap();
    let mut longer = vec![0; 64];
    longer.extend(other);
    write(memory, "__1_0.distcp", &longer);
}
