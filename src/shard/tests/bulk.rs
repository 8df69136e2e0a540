//! Many ranges at once give what one after the other gives, whatever is cached.

use parking_lot::Mutex;
use proptest::prelude::*;

use super::damage::{Saved, saved};
use super::memory::Cache;
use super::*;
use crate::error::{Error, ErrorKind};
use crate::shard::bulk::Failed;

const CACHES: [Cache; 5] = [
    Cache { one_missing_in: 0, knows_direct: true, bad_from: None },
    Cache { one_missing_in: 1, knows_direct: true, bad_from: None },
    Cache { one_missing_in: 1, knows_direct: false, bad_from: None },
    Cache { one_missing_in: 97, knows_direct: true, bad_from: None },
    Cache { one_missing_in: 97, knows_direct: false, bad_from: None },
];

/// Two files with tensors below a block, of odd lengths, and longer than a batch.
fn mixed() -> Saved {
    let mut state = StateDict::new();
    let lengths = [5, 70_001, 3_000_000, 1, 65_536, 131_072, 900_000, 0, 4096, 2_500_003];
    let mut file = |file: &str| {
        let pieces = lengths.iter().zip('a'..).map(|(len, letter)| {
            whole(&mut state, &format!("{file}.{letter}"), Dtype::U8, &[*len])
        });
        planned_file(file, pieces.collect())
    };
    let files = vec![file("a.safetensors"), file("b.safetensors")];
    saved((state, plan_of(files)))
}

impl Saved {
    fn cached(&self, cache: Cache) -> &Self {
        self.dir.0.lock().cache = cache;
        self
    }

    fn all_pieces(&self) -> Vec<PieceAt> {
        self.pieces.iter().flatten().copied().collect()
    }

    /// What is stored of a range, read one after the other.
    fn plain(&self, piece: PieceAt, range: &std::ops::Range<u64>) -> Vec<u8> {
        let mut out = vec![0; usize::try_from(range.end - range.start).unwrap()];
        self.reader().read_into(piece, range.start, &mut Vec::new(), &mut out).unwrap();
        out
    }

    /// Every piece whole, into memory.
    fn read_all(&self, sharing: Sharing) -> Result<u64, Failed> {
        let pieces = self.all_pieces();
        let mut memory: Vec<_> =
            pieces.iter().map(|p| vec![0; usize::try_from(p.bytes).unwrap()]).collect();
        let parts = pieces.iter().zip(&mut memory).enumerate().map(|(item, (piece, out))| Part {
            item,
            piece: *piece,
            range: 0..piece.bytes,
            place: Place::Memory(out),
        });
        let reader = self.reader();
        let none = |_: usize, _: u64, _: &[u8]| -> Result<bool> { unreachable!("all is memory") };
        let mut own = |_: usize, _: u64, _: &[u8]| -> Result<()> { unreachable!("all is memory") };
        reader.read_parts(parts.collect(), sharing, Takers { any: &none, own: &mut own })?;
        let planned = self.plan.files.iter().flat_map(|file| &file.pieces);
        for (got, piece) in memory.iter().zip(planned) {
            assert_eq!(*got, expected(&self.state, piece), "{}", piece.name);
        }
        Ok(reader.bytes_read())
    }
}

#[test]
fn every_kind_of_read_gives_every_byte_and_reads_little_more() {
    let saved = mixed();
    let wanted: u64 = saved.all_pieces().iter().map(|piece| piece.bytes).sum();
    let same_host = |rank| Sharing::SameHost { rank, ranks: 3 };
    for cache in CACHES {
        for sharing in [Sharing::Alone, same_host(0), same_host(1), same_host(2)] {
            let before = saved.dir.0.lock().direct_reads;
            let read = saved.cached(cache).read_all(sharing).unwrap();
            assert!(read >= wanted && read * 100 <= wanted * 102, "{read} for {wanted}");
            let past_cache = saved.dir.0.lock().direct_reads > before;
            let may = sharing == Sharing::Alone && cache.one_missing_in > 0;
            assert_eq!(past_cache, may && cache.knows_direct, "{cache:?} {sharing:?}");
        }
    }
}

#[test]
fn damage_is_found_by_every_kind_of_read_and_the_first_is_named() {
    let saved = mixed();
    // One in a long tensor, one in a short one in front of it, one in the other file.
    let at = [saved.pieces[0][2].begin + 2_000_000, saved.pieces[0][1].begin + 70_000];
    let flip = |bytes: &mut Vec<u8>, at: u64| bytes[usize::try_from(at).unwrap()] ^= 4;
    saved.change("b.safetensors", |bytes| flip(bytes, saved.pieces[1][0].begin));
    let mut expected_items = vec![10];
    for (at, item) in at.into_iter().zip([2, 1]) {
        saved.change("a.safetensors", |bytes| flip(bytes, at));
        expected_items.push(item);
        for cache in CACHES {
            for _ in 0..5 {
                let failed = saved.cached(cache).read_all(Sharing::Alone).unwrap_err();
                assert_eq!((failed.error.kind(), failed.item), (ErrorKind::Corrupt, item));
                let block = failed.error.offset().unwrap();
                assert!(block <= at && at < block + 65_536, "{block} {at}");
            }
            let reader = saved.cached(cache).reader();
            let damage = reader.verify_file(0, &saved.pieces[0], &mut |_| {});
            let mut pieces: Vec<_> = expected_items[1..].to_vec();
            pieces.sort_unstable();
            assert_eq!(damage.iter().filter_map(|d| d.piece).collect::<Vec<_>>(), pieces);
        }
    }
}

#[test]
fn a_device_that_fails_is_an_error_of_the_tensor_there() {
    let saved = mixed();
    let bad_from = Some(saved.pieces[0][6].begin + 100_000);
    let cache = Cache { one_missing_in: 1, knows_direct: true, bad_from };
    let failed = saved.cached(cache).read_all(Sharing::Alone).unwrap_err();
    assert_eq!((failed.error.kind(), failed.item), (ErrorKind::Storage, 6));
    assert_eq!(failed.error.offset(), bad_from);
}

#[test]
fn a_taker_that_fails_or_panics_ends_the_load() {
    let saved = mixed();
    let pieces = saved.all_pieces();
    let run = |on_any: bool, panics: bool| {
        let parts = pieces.iter().enumerate().map(|(item, piece)| Part {
            item,
            piece: *piece,
            range: 0..piece.bytes,
            place: if item.is_multiple_of(2) { Place::Steps } else { Place::Whole },
        });
        let fail = |item: usize| {
            assert!(!panics || item < 2, "told to");
            let error = Error::new(ErrorKind::Device, "full");
            if item < 2 { Ok(()) } else { Err(error) }
        };
        let any = |item: usize, _: u64, _: &[u8]| {
            if on_any { fail(item).map(|()| true) } else { Ok(false) }
        };
        let mut own = |item: usize, _: u64, _: &[u8]| fail(item);
        let takers = Takers { any: &any, own: &mut own };
        saved.reader().read_parts(parts.collect(), Sharing::Alone, takers).unwrap_err()
    };
    for on_any in [true, false] {
        let failed = run(on_any, false);
        assert_eq!((failed.error.kind(), failed.item), (ErrorKind::Device, 2));
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(on_any, true)));
        assert!(panicked.is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Ranges of any kind, overlapping and in any order.
    #[test]
    fn many_at_once_are_as_one_after_the_other(
        picks in prop::collection::vec((0usize..20, 0u64..1000, 0u64..1000, 0u8..4), 1..40),
        cache in 0usize..5,
    ) {
        static SAVED: std::sync::OnceLock<Mutex<Saved>> = std::sync::OnceLock::new();
        let saved = SAVED.get_or_init(|| Mutex::new(mixed())).lock();
        let pieces = saved.all_pieces();
        let cut = |share: u64, bytes: u64| share * bytes / 1000;
        let ranges: Vec<_> = picks.iter().map(|(piece, a, b, kind)| {
            let piece = pieces[*piece];
            let (a, b) = (cut(*a.min(b), piece.bytes), cut(*a.max(b), piece.bytes));
            (piece, if *kind == 0 { 0..piece.bytes } else { a..b }, *kind)
        }).collect();
        let len = |range: &std::ops::Range<u64>| usize::try_from(range.end - range.start).unwrap();
        let mut memory: Vec<_> = ranges.iter().map(|(_, range, _)| vec![0u8; len(range)]).collect();
        let taken: Vec<_> = ranges.iter().map(|(_, range, _)| Mutex::new(vec![0u8; len(range)])).collect();
        let parts = ranges.iter().zip(&mut memory).enumerate().map(|(item, ((piece, range, kind), out))| {
            let place = match kind { 0 | 1 => Place::Memory(out), 2 => Place::Steps, _ => Place::Whole };
            Part { item, piece: *piece, range: range.clone(), place }
        });
        let take = |item: usize, offset: u64, bytes: &[u8]| {
            let begin = usize::try_from(offset - ranges[item].1.start).unwrap();
            taken[item].lock()[begin..begin + bytes.len()].copy_from_slice(bytes);
        };
        let any = |item: usize, offset: u64, bytes: &[u8]| {
            if item.is_multiple_of(2) { take(item, offset, bytes); }
            Ok(item.is_multiple_of(2))
        };
        let mut own = |item: usize, offset: u64, bytes: &[u8]| { take(item, offset, bytes); Ok(()) };
        let reader = saved.cached(CACHES[cache]).reader();
        reader.read_parts(parts.collect(), Sharing::Alone, Takers { any: &any, own: &mut own }).unwrap();
        for (item, (piece, range, kind)) in ranges.iter().enumerate() {
            let want = saved.plain(*piece, range);
            let got = if *kind < 2 { memory[item].clone() } else { taken[item].lock().clone() };
            prop_assert!(got == want, "{:?} {:?} {}", piece, range, kind);
        }
    }
}
