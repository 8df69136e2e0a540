//! A whole checkpoint, of each version and as a file, after a few edits. With mode 0 nothing
//! vouches for the edits, and what is loaded is what was saved; else checksums and hashes are made
//! again, so that what lies behind them is reached.
#![no_main]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;
use tch_checkpoint::autosave::Mode;
use tch_checkpoint::catalog::{Order, Wanted, find_checkpoints, read_manifest};
use tch_checkpoint::load::Atomicity;
use tch_checkpoint::storage::{MemoryStorage, Storage};
use tch_checkpoint_fuzz::{Content, Input, all_of_it, edit, storage_of};

use self::bases::{AT, Base, Files};

#[path = "directory/bases.rs"]
mod bases;
#[path = "directory/reseal.rs"]
mod reseal;

/// Each with what it holds.
fn bases() -> &'static [(Base, Content)] {
    static BASES: OnceLock<Vec<(Base, Content)>> = OnceLock::new();
    BASES.get_or_init(|| {
        let all = bases::all().into_iter().map(|base| {
            let storage = storage_of(as_pairs(&base.files));
            let wanted = Wanted::parse(Path::new("runs").join(base.at)).expect("a path");
            let content = all_of_it(&storage, &wanted, Atomicity::Atomic);
            (base, content.expect("a good checkpoint"))
        });
        all.collect()
    })
}

fn as_pairs(files: &Files) -> impl Iterator<Item = (&str, &[u8])> {
    files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice()))
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let flags = input.byte();
    let (base, content) = &bases()[usize::from(input.byte()) % bases().len()];
    let mut files = base.files.clone();
    for _ in 0..=input.byte() % 8 {
        edit_one(&mut files, &mut input);
    }
    if flags & 3 != 0 {
        reseal::reseal(base, &mut files, flags & 2 != 0);
    }
    let atomicity = if flags & 4 == 0 { Atomicity::Atomic } else { Atomicity::InPlace };
    let storage = storage_of(as_pairs(&files));
    let runs = Path::new("runs");
    search(&storage, runs, flags >> 3 & 3, atomicity);
    let wanted = Wanted::parse(runs.join(base.at)).expect("a path");
    let loaded = all_of_it(&storage, &wanted, atomicity);
    if flags & 3 == 0 && loaded.is_some() {
        assert_eq!(loaded.as_ref(), Some(content), "loaded what was never saved");
    }
    all_of_it(&storage, &wanted.or_unverified(), atomicity);
});

/// One way to look for checkpoints: all of them for each input would leave time for few inputs.
fn search(storage: &MemoryStorage, runs: &Path, way: u8, atomicity: Atomicity) {
    let wanted = match way {
        0 => Wanted::latest(runs),
        1 => Wanted::best(runs),
        2 => Wanted::step(runs, 1234),
        _ => {
            let best = Order::Best { monitor: "loss".into(), mode: Mode::Min };
            for order in [Order::Latest, best] {
                find_checkpoints(storage, runs, &order).expect("damage is no error");
            }
            drop(storage.open_dir(&runs.join(AT)).and_then(|dir| read_manifest(dir.as_ref())));
            return;
        }
    };
    all_of_it(storage, &wanted, atomicity);
}

/// Names under which a file may lie as well.
const OTHER_NAMES: [&str; 6] = [
    "latest.json",
    "best.json",
    "golden/model.safetensors.index.json",
    "other/manifest.bin",
    "golden.safetensors",
    "golden_model.safetensors",
];

fn edit_one(files: &mut Files, input: &mut Input<'_>) {
    let chosen = |files: &Files, number: u8| {
        files.keys().nth(usize::from(number) % files.len().max(1)).cloned()
    };
    let Some(name) = chosen(files, input.byte()) else { return };
    match input.byte() % 8 {
        0 => drop(files.remove(&name)),
        1 => {
            let other = chosen(files, input.byte()).and_then(|name| files.get(&name).cloned());
            files.insert(name, other.unwrap_or_default());
        }
        2 => {
            let mut copy = files.get(&name).cloned().unwrap_or_default();
            edit(&mut copy, input);
            let name = OTHER_NAMES[usize::from(input.byte()) % OTHER_NAMES.len()];
            files.insert(name.to_owned(), copy);
        }
        3 => {
            let name = OTHER_NAMES[usize::from(input.byte()) % OTHER_NAMES.len()];
            let len = input.short();
            files.insert(name.to_owned(), input.take(len).to_vec());
        }
        _ => edit(files.entry(name).or_default(), input),
    }
}
