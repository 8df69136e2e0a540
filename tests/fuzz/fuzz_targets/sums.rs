//! Sums files, and what a manifest says of them: whatever both say, nothing is handed out but the
//! bytes of the data file.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use tch_checkpoint::layout::SaveId;
use tch_checkpoint::manifest::{DataFile, OtherFile, hash16};
use tch_checkpoint::shard::{PieceAt, ShardReader, sum};
use tch_checkpoint::storage::Storage;
use tch_checkpoint::tensor::Component;
use tch_checkpoint_fuzz::{Input, edit, storage_of};

const START: usize = 4096;
const BLOCK: usize = 16 * 1024;
const HEADER: usize = 32;
const ID: SaveId = SaveId::from_bytes([7; 16]);

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let file = file();
    let mut sums = true_sums(&file);
    let flags = input.byte();
    for _ in 0..input.byte() % 8 {
        edit(&mut sums, &mut input);
    }
    let at = |begin: u64, count: u64| {
        let range = usize::try_from(begin).ok()?
            ..usize::try_from(begin.checked_add(count.checked_mul(16)?)?).ok()?;
        sums.get(range)
    };
    let (begin, count) = (input.number(HEADER as u64), input.number(3));
    let intact = at(begin, count).unwrap_or_default();
    // As a manifest would say that was made for these sums, or for the true ones.
    let vouched =
        if flags & 1 == 0 { true_sums(&file)[HEADER..].to_vec() } else { intact.to_vec() };
    let other =
        OtherFile { name: "s".into(), len: input.number(sums.len() as u64), hash: hash16(&sums) };
    let record = record(&file, (begin, count), &vouched, &mut input);
    let storage = storage_of([("golden/d", &file[..]), ("golden/s", &sums)]);
    let dir = storage.open_dir(Path::new("runs/golden")).expect("it was made");
    let reader = ShardReader::new(dir, &[record], &[other]);
    drop(reader.verify_sums_file(0));
    read(&reader, &file, &mut input);
});

/// Three blocks, of which the last is short.
fn file() -> Vec<u8> {
    (0..START + 2 * BLOCK + 100).map(|at| (at % 251) as u8).collect()
}

fn true_sums(file: &[u8]) -> Vec<u8> {
    let mut bytes = b"TCHSUMS\n\x01\0\0\0\0\0\0\0".to_vec();
    bytes.extend(ID.as_bytes());
    bytes.extend(file[START..].chunks(BLOCK).flat_map(sum));
    bytes
}

fn record(
    file: &[u8],
    (begin, count): (u64, u64),
    vouched: &[u8],
    input: &mut Input<'_>,
) -> DataFile {
    let data_start = input.number(START as u64);
    let header = file.get(..usize::try_from(data_start).unwrap_or(usize::MAX));
    DataFile {
        name: "d".into(),
        component: Component::model(),
        save_id: ID,
        len: input.number(file.len() as u64),
        data_start,
        header_hash: hash16(header.unwrap_or_default()),
        sums_file: u32::from(input.byte() == 9),
        sums_begin: begin,
        sums_count: count,
        sums_hash: hash16(vouched),
    }
}

fn read(reader: &ShardReader, file: &[u8], input: &mut Input<'_>) {
    let bytes = input.number((file.len() - START) as u64);
    let piece = PieceAt {
        file: usize::from(input.byte() == 9),
        begin: input.number(START as u64),
        bytes,
        first_sum: input.number(0),
    };
    let range = input.number(0)..input.number(bytes);
    let (mut scratch, mut next) = (Vec::new(), range.start);
    let read = reader.read_range(piece, range.clone(), &mut scratch, &mut |offset, part| {
        assert_eq!(offset, next);
        next += part.len() as u64;
        let from = (piece.begin + offset) as usize;
        assert_eq!(&file[from..from + part.len()], part);
        Ok(())
    });
    assert!(read.is_err() || range.is_empty() || next == range.end);
    let mut out = vec![0; (range.end.saturating_sub(range.start)).min(100_000) as usize];
    if reader.read_into(piece, range.start, &mut scratch, &mut out).is_ok() && !out.is_empty() {
        let from = (piece.begin + range.start) as usize;
        assert_eq!(&file[from..from + out.len()], out);
    }
    drop(reader.verify_file(piece.file, &[piece], &mut |_| {}));
}
