//! Whatever happens to a file is found.

use super::*;
use crate::error::{Error, ErrorKind};
use crate::manifest::BLOCK_BYTES;

pub(super) struct Saved {
    pub(super) plan: SavePlan,
    pub(super) state: StateDict,
    pub(super) dir: Arc<MemoryDir>,
    files: Vec<DataFile>,
    sums: OtherFile,
    pub(super) pieces: Vec<Vec<PieceAt>>,
}

pub(super) fn saved((state, plan): (StateDict, SavePlan)) -> Saved {
    let dir = Arc::new(MemoryDir::default());
    let receipt = save(&dir, &plan, &state).unwrap();
    let (files, sums, pieces) = records(&plan, &receipt);
    Saved { plan, state, dir, files, sums, pieces }
}

impl Saved {
    pub(super) fn reader(&self) -> ShardReader {
        reader(&self.dir, &self.files, &self.sums)
    }

    pub(super) fn change(&self, file: &str, change: impl FnOnce(&mut Vec<u8>)) {
        change(self.dir.0.lock().files.get_mut(file).unwrap());
    }

    /// What a load does: headers, then every piece.
    fn load(&self) -> Result<()> {
        let reader = self.reader();
        for (index, pieces) in self.pieces.iter().enumerate() {
            reader.verify_header(index)?;
            for at in pieces {
                let mut out = vec![0; usize::try_from(at.bytes).unwrap()];
                reader.read_into(*at, 0, &mut Vec::new(), &mut out)?;
            }
        }
        Ok(())
    }

    /// What the command does: everything it can find.
    fn damage(&self) -> Vec<Error> {
        let reader = self.reader();
        let mut found: Vec<_> = reader.verify_sums_file(0).err().into_iter().collect();
        for (index, pieces) in self.pieces.iter().enumerate() {
            let file = reader.verify_file(index, pieces, &mut |_| {});
            found.extend(file.into_iter().map(|d| d.error));
        }
        found
    }
}

#[test]
fn every_flipped_bit_of_every_file_is_found_by_load_and_by_verify() {
    let saved = saved(small());
    saved.load().unwrap();
    let names: Vec<String> = saved.dir.0.lock().files.keys().cloned().collect();
    assert_eq!(names.len(), 3);
    for name in names {
        let len = saved.dir.0.lock().files[&name].len();
        for byte in 0..len {
            let mask = 1 << (byte % 8);
            saved.change(&name, |bytes| bytes[byte] ^= mask);
            let error = saved.load().expect_err("a flipped bit was loaded");
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{name} byte {byte}");
            let path = format!("/memory/{name}");
            assert_eq!(error.path(), Some(path.as_str()));
            let found = saved.damage();
            assert!(found.iter().any(|e| e.path() == Some(path.as_str())), "{name} byte {byte}");
            saved.change(&name, |bytes| bytes[byte] ^= mask);
        }
    }
    saved.load().unwrap();
    assert_eq!(saved.damage(), []);
}

#[test]
fn verify_names_every_bad_block_and_its_piece() {
    let mut state = StateDict::new();
    let pieces = vec![
        whole(&mut state, "a", Dtype::U8, &[100]),
        whole(&mut state, "b", Dtype::U8, &[100 * BLOCK_BYTES + 5]),
    ];
    let saved = saved((state, plan_of(vec![planned_file("f", pieces)])));
    let at = saved.pieces[0][1];
    let bad = [0, 3 * BLOCK_BYTES + 9, 64 * BLOCK_BYTES, 100 * BLOCK_BYTES + 4];
    for offset in bad {
        let position = usize::try_from(at.begin + offset).unwrap();
        saved.change("f", |bytes| bytes[position] ^= 1);
    }
    saved.change("f", |bytes| bytes[9] ^= 1);
    let found = saved.reader().verify_file(0, &saved.pieces[0], &mut |_| {});
    let places: Vec<_> = found.iter().map(|d| (d.piece, d.error.offset().unwrap())).collect();
    let block = |offset: u64| (Some(1), at.begin + offset / BLOCK_BYTES * BLOCK_BYTES);
    assert_eq!(places, [(None, 0), block(bad[0]), block(bad[1]), block(bad[2]), block(bad[3])]);
    // Blocks that are not touched do not hurt.
    let good = BLOCK_BYTES..3 * BLOCK_BYTES;
    let block_len = usize::try_from(BLOCK_BYTES).unwrap();
    let mut out = vec![0; 2 * block_len];
    saved.reader().read_into(at, good.start, &mut Vec::new(), &mut out).unwrap();
    let want = expected(&saved.state, &saved.plan.files[0].pieces[1]);
    assert_eq!(out, want[block_len..3 * block_len]);
    let error = saved.reader().read_into(at, good.start, &mut Vec::new(), &mut [0; 200_000]);
    assert_eq!(error.unwrap_err().offset(), Some(at.begin + 3 * BLOCK_BYTES));
}

#[test]
fn wrong_lengths_and_missing_files_are_found() {
    let saved = saved(small());
    saved.reader().check_lengths().unwrap();
    for (file, len, word) in [
        ("a.safetensors", 1i64, "extended"),
        ("b.safetensors", -1, "truncated"),
        ("sums.bin", 16, "extended"),
        ("sums.bin", -16, "truncated"),
    ] {
        let before = saved.dir.0.lock().files[file].clone();
        let new_len = usize::try_from(before.len() as i64 + len).unwrap();
        saved.change(file, |bytes| bytes.resize(new_len, 0));
        let path = format!("/memory/{file}");
        for error in [saved.reader().check_lengths().unwrap_err(), saved.load().unwrap_err()] {
            assert_eq!((error.kind(), error.path()), (ErrorKind::Corrupt, Some(path.as_str())));
            assert!(error.message().contains(word), "{error}");
        }
        assert!(!saved.damage().is_empty());
        saved.dir.0.lock().files.remove(file);
        let error = saved.load().unwrap_err();
        assert_eq!((error.kind(), error.path()), (ErrorKind::NotFound, Some(path.as_str())));
        assert_eq!(saved.damage()[0].kind(), ErrorKind::NotFound);
        saved.dir.0.lock().files.insert(file.to_owned(), before);
    }
}

#[test]
fn equal_blocks_in_the_wrong_place_are_found() {
    let saved = saved(small());
    let files = saved.dir.0.lock().files.clone();
    saved.change("b.safetensors", |bytes| bytes.clone_from(&files["a.safetensors"]));
    assert_eq!(saved.load().unwrap_err().kind(), ErrorKind::Corrupt);
    saved.change("b.safetensors", |bytes| bytes.clone_from(&files["b.safetensors"]));
    let mut swapped = saved.files.clone();
    swapped[0].sums_begin = saved.files[1].sums_begin;
    let reader = reader(&saved.dir, &swapped, &saved.sums);
    let error = reader.read_into(saved.pieces[0][0], 0, &mut Vec::new(), &mut [0; 8]);
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn impossible_records_are_errors() {
    let saved = saved(small());
    let broken = |change: &dyn Fn(&mut DataFile)| {
        let mut files = saved.files.clone();
        change(&mut files[0]);
        let reader = reader(&saved.dir, &files, &saved.sums);
        assert!(!reader.verify_file(0, &saved.pieces[0], &mut |_| {}).is_empty());
    };
    broken(&|f| f.data_start = 0);
    broken(&|f| f.data_start = u64::MAX - 4095);
    broken(&|f| f.sums_file = 1);
    broken(&|f| f.sums_begin = u64::MAX);
    broken(&|f| f.sums_begin = 0);
    broken(&|f| f.sums_count = u64::MAX);
    broken(&|f| f.sums_count -= 1);
    broken(&|f| f.save_id = SaveId::from_bytes([0; 16]));
    for some in [&saved.pieces[0][1..], &saved.pieces[0][..4]] {
        assert_eq!(saved.reader().verify_file(0, some, &mut |_| {}).len(), 1);
    }
    assert!(saved.reader().verify_header(2).is_err());
    assert!(saved.reader().verify_sums_file(1).is_err());
}

#[test]
fn several_threads_share_a_reader_and_open_files_stay_few() {
    within_a_minute(|| {
        let mut state = StateDict::new();
        let mut file = |i: u64| {
            let piece = whole(&mut state, &format!("t{i:03}"), Dtype::U8, &[1000 + i]);
            planned_file(&format!("f{i}"), vec![piece])
        };
        let files = (0..100).map(&mut file).collect();
        let saved = saved((state, plan_of(files)));
        let reader = saved.reader();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for (index, planned) in saved.plan.files.iter().enumerate() {
                        let want = expected(&saved.state, &planned.pieces[0]);
                        let mut out = vec![0; want.len()];
                        let at = saved.pieces[index][0];
                        reader.read_into(at, 0, &mut Vec::new(), &mut out).unwrap();
                        assert_eq!(out, want);
                    }
                });
            }
        });
        let text = format!("{reader:?}");
        let open = text.split("open: ").nth(1).unwrap();
        assert!(open.matches(", ").count() <= 70, "{open}");
    });
}
