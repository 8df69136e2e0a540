//! What PyTorch writes: a file of `torch.save` after a few edits (mode 0), or a pickle in an
//! archive whose table and sums are right, so that what lies behind them is reached.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use tch_checkpoint::catalog::{self, Wanted};
use tch_checkpoint::load::Atomicity;
use tch_checkpoint_fuzz::{Input, edit, load_all, look, storage_of};

const FILES: [&[u8]; 3] = [
    include_bytes!("../../fixtures/pt/tensors.pt"),
    include_bytes!("../../fixtures/pt/adamw.pt"),
    include_bytes!("../../fixtures/pt/expanded.pt"),
];

fuzz_target!(|data: &[u8]| {
    let Some((mode, rest)) = data.split_first() else { return };
    match mode {
        0 => check(&edited(&mut Input(rest))),
        _ => check(&archive(&[("a/data.pkl", rest), ("a/data/0", &[7; 64])])),
    }
});

fn edited(input: &mut Input<'_>) -> Vec<u8> {
    let mut bytes = FILES[usize::from(input.byte()) % FILES.len()].to_vec();
    for _ in 0..=input.byte() % 4 {
        edit(&mut bytes, input);
    }
    bytes
}

fn check(bytes: &[u8]) {
    let storage = storage_of([("w.pt", bytes)]);
    let wanted = Wanted::parse(Path::new("runs/w.pt")).expect("a path").or_unverified();
    let Ok(found) = catalog::find(&storage, &wanted) else { return };
    look(&found.manifest);
    let _ = load_all(&storage, &wanted, &found.manifest, Atomicity::Atomic);
}

fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut bytes, mut table) = (Vec::new(), Vec::new());
    for (name, data) in members {
        let len = (data.len() as u32).to_le_bytes();
        let sum = crc32fast::hash(data).to_le_bytes();
        let name_len = (name.len() as u16).to_le_bytes();
        let said = [&[0; 8][..], &sum, &len, &len, &name_len, &[0, 0]].concat();
        let begin = (bytes.len() as u32).to_le_bytes();
        table.extend([&b"PK\x01\x02\x14\0\x14\0"[..], &said, &[0; 10], &begin].concat());
        table.extend(name.as_bytes());
        bytes.extend([&b"PK\x03\x04\x14\0"[..], &said, name.as_bytes(), data].concat());
    }
    let [count, at, len] =
        [members.len(), bytes.len(), table.len()].map(|n| (n as u32).to_le_bytes());
    let counts = [&count[..2], &count[..2]].concat();
    let end = [&b"PK\x05\x06\0\0\0\0"[..], &counts, &len, &at, &[0, 0]].concat();
    [bytes, table, end].concat()
}
