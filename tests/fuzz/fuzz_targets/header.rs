//! The header of a data file, and files that carry everything in their header: as a file (modes 0
//! and 1), or its JSON alone, for which a length is made and a file of the length that it needs.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tch_checkpoint::catalog::Wanted;
use tch_checkpoint::fuzzing;
use tch_checkpoint::load::Atomicity;
use tch_checkpoint::shard::ParsedHeader;
use tch_checkpoint_fuzz::{all_of_it, storage_of};

const DATA_BYTES_MAX: usize = 4096;

fuzz_target!(|data: &[u8]| {
    let Some((mode, rest)) = data.split_first() else { return };
    match mode {
        0 => check(rest, rest.len() as u64),
        1 => in_place_of_a_checkpoint(rest),
        2..128 => {
            let bytes = [&(rest.len() as u64).to_le_bytes()[..], rest].concat();
            let data_bytes = u64::from(*mode - 2) * 4;
            check(&bytes, bytes.len() as u64 + data_bytes);
        }
        _ => {
            let json = [&(rest.len() as u64).to_le_bytes()[..], rest].concat();
            // Any number of bytes; the header says how many it needs.
            let needed = (0..DATA_BYTES_MAX).step_by(usize::from(*mode - 127));
            let fits = |len: &usize| ParsedHeader::parse(&json, (json.len() + len) as u64).is_ok();
            if let Some(len) = needed.take(64).find(fits) {
                in_place_of_a_checkpoint(&[&json[..], &vec![7; len]].concat());
            }
        }
    }
});

fn check(bytes: &[u8], file_len: u64) {
    let Ok(parsed) = ParsedHeader::parse(bytes, file_len) else { return };
    let printed = fuzzing::header(&parsed).expect("what was parsed is written");
    let file_len = printed.len() as u64 + parsed.tensors.last().map_or(0, |tensor| tensor.end);
    let again = ParsedHeader::parse(&printed, file_len).expect("what was written is parsed");
    assert_eq!((again.tensors, again.metadata), (parsed.tensors, parsed.metadata));
}

fn in_place_of_a_checkpoint(bytes: &[u8]) {
    let storage = storage_of([("a.safetensors", bytes)]);
    let wanted = Wanted::parse("runs/a.safetensors").expect("a path");
    all_of_it(&storage, &wanted, Atomicity::InPlace);
    all_of_it(&storage, &wanted.or_unverified(), Atomicity::Atomic);
}
