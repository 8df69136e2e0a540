//! Pickles and what PyTorch puts around them: a pickle alone (mode 0), a file of `torch.save` (1), a
//! distributed checkpoint with this metadata (2), or with these bytes as its data (3). With further
//! modes the bytes are edits of good ones.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tch_checkpoint::catalog::{self, Wanted};
use tch_checkpoint::fuzzing;
use tch_checkpoint::load::Atomicity;
use tch_checkpoint::storage::MemoryStorage;
use tch_checkpoint_fuzz::{Input, edit, load_all, look, storage_of};

const PICKLE: &[u8] = include_bytes!("../../fixtures/pickle/torch_save.pkl");
const ARCHIVE: &[u8] = include_bytes!("../../fixtures/pt/tensors.pt");
const METADATA: &[u8] = include_bytes!("../../fixtures/dcp/kinds/.metadata");
const DATA: &[u8] = include_bytes!("../../fixtures/dcp/kinds/__0_0.distcp");

fuzz_target!(|data: &[u8]| {
    let Some((mode, rest)) = data.split_first() else { return };
    match mode % 8 {
        0 => fuzzing::pickle(rest),
        1 => archive(rest),
        2 => directory(rest, DATA),
        3 => directory(METADATA, rest),
        4 => fuzzing::pickle(&edited(PICKLE, rest)),
        5 => archive(&edited(ARCHIVE, rest)),
        6 => {
            let metadata = edited(METADATA, rest);
            fuzzing::pickle(&metadata);
            directory(&metadata, DATA);
        }
        _ => directory(METADATA, &edited(DATA, rest)),
    }
});

fn edited(good: &[u8], edits: &[u8]) -> Vec<u8> {
    let (mut bytes, mut input) = (good.to_vec(), Input(edits));
    for _ in 0..=input.byte() % 8 {
        edit(&mut bytes, &mut input);
    }
    bytes
}

fn archive(bytes: &[u8]) {
    read(&storage_of([("a.pt", bytes)]), "runs/a.pt");
}

fn directory(metadata: &[u8], data: &[u8]) {
    let files = [("golden/.metadata", metadata), ("golden/__0_0.distcp", data)];
    read(&storage_of(files), "runs/golden");
}

fn read(storage: &MemoryStorage, at: &str) {
    let wanted = Wanted::parse(at).expect("a path").or_unverified();
    let Ok(found) = catalog::find(storage, &wanted) else { return };
    look(&found.manifest);
    drop(load_all(storage, &wanted, &found.manifest, Atomicity::InPlace));
}
