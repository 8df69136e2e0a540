//! Whatever the number of threads and their order, the result is that of one.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::layout::SaveId;
use crate::manifest::BLOCK_BYTES;
use crate::plan::{PlannedFile, PlannedPiece};
use crate::rank::Rank;
use crate::shard::cut::Cut;
use crate::shard::header::Header;
use crate::shard::sums::BLOCK;
use crate::slice::Slice;
use crate::state::StateDict;
use crate::tensor::{Component, Dtype, TensorName, TensorSpec};

const SAVE_ID: SaveId = SaveId::from_bytes([7; 16]);

fn planned(state: &mut StateDict, lens: &[u64]) -> PlannedFile {
    let pieces = lens.iter().enumerate().map(|(n, len)| {
        let name = TensorName::new(format!("t{n:03}")).unwrap();
        let spec = TensorSpec::new(Dtype::U8, vec![*len]).unwrap();
        let bytes: Vec<u8> =
            (0..*len).map(|i| (i * 31 + i / 257 + n as u64).to_le_bytes()[0]).collect();
        state.add(&Component::model(), name.clone(), spec.clone(), Arc::new(bytes)).unwrap();
        let slice = Slice::full(spec.shape());
        PlannedPiece { name, spec, held: slice.clone(), slice }
    });
    let pieces = pieces.collect();
    PlannedFile { name: "file".to_owned(), component: Component::model(), pieces }
}

#[test]
fn what_no_piece_fills_is_an_error() {
    let mut state = StateDict::new();
    let file = planned(&mut state, &[100, 50]);
    let cuts: Vec<_> = file.pieces.iter().map(|p| Cut::new(p, &state).unwrap()).collect();
    let header = Header::of(&file, &SAVE_ID, Rank::new(0), 1).unwrap();
    let image = Image::new(file.name.clone(), header);
    let mut out = vec![0xAA; usize::try_from(image.len()).unwrap() + 1];
    image.fill(&cuts, 1, &mut out[..100]).unwrap();
    assert!(image.fill(&cuts, 0, &mut out).is_err());
    out.pop();
    image.fill(&cuts, 0, &mut out).unwrap();
    assert!(image.fill(&cuts[..1], 0, &mut out).is_err());
}

fn empty() -> Sums {
    let content = SumsContent::new(&SAVE_ID, std::iter::empty()).unwrap();
    Sums { content, next: 0, early: BTreeMap::new() }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn sums_do_not_depend_on_who_fills_when(
        lens in prop::collection::vec(0u64..200_000, 1..9),
        first in 1u64..300_000,
        order in Just((0usize..64).collect::<Vec<_>>()).prop_shuffle(),
    ) {
        let mut state = StateDict::new();
        let file = planned(&mut state, &lens);
        let cuts: Vec<_> = file.pieces.iter().map(|p| Cut::new(p, &state).unwrap()).collect();
        let header = Header::of(&file, &SAVE_ID, Rank::new(0), 1).unwrap();
        let image = Image::new(file.name.clone(), header);
        // Slots no shorter than a block, as those of a real save.
        let slots: Vec<_> = Slots::new(vec![image.len()], first.max(BLOCK_BYTES)).collect();
        let mut whole = vec![0; usize::try_from(image.len()).unwrap()];
        let (sums, _) = image.fill_and_sum(&cuts, 0, &mut whole).unwrap();
        let mut expected = empty();
        expected.add(0, &whole, sums);

        let mut found = empty();
        for index in order.into_iter().filter(|index| *index < slots.len()) {
            let slot = slots[index];
            let mut bytes = vec![0; slot.len];
            let (sums, _) = image.fill_and_sum(&cuts, slot.begin, &mut bytes).unwrap();
            let begin = usize::try_from(slot.begin).unwrap();
            prop_assert!(bytes == whole[begin..begin + slot.len]);
            found.add(slot.index, &bytes, sums);
        }
        prop_assert_eq!(found.next, slots.len() as u64);
        prop_assert_eq!(found.content.bytes(), expected.content.bytes());
        let blocks: Vec<u8> = cuts
            .iter()
            .flat_map(|cut| cut.host_bytes().unwrap().unwrap().chunks(BLOCK))
            .flat_map(crate::manifest::hash16)
            .collect();
        prop_assert_eq!(&found.content.bytes()[32..], blocks);
    }

    #[test]
    fn slots_cover_files_from_front_to_back(lens in prop::collection::vec(1u64..40_000_000, 0..4)) {
        let (mut ends, mut index) = (vec![0; lens.len()], 0);
        for slot in Slots::new(lens.clone(), FIRST_BYTES) {
            prop_assert_eq!((slot.index, slot.begin), (index, ends[slot.file]));
            prop_assert!(slot.len > 0 && slot.len <= BUFFER_BYTES);
            prop_assert_eq!(slot.begin % 4096, 0, "direct I/O wants pages");
            prop_assert!(ends[slot.file + 1..].iter().all(|end| *end == 0));
            ends[slot.file] += slot.len as u64;
            index += 1;
        }
        prop_assert_eq!(ends, lens);
    }
}

#[test]
fn threads_are_added_while_the_writer_starves_and_not_for_ever() {
    let ms = Duration::from_millis;
    let mut busy = Growth::new();
    assert!(!busy.wants_one_more(ms(8), ms(100)), "nothing could be there sooner");
    assert!((0..50).all(|_| !busy.wants_one_more(ms(8), ms(1))));

    let mut starved = Growth::new();
    let mut added = 0;
    for _ in 0..50 {
        if starved.wants_one_more(ms(8), ms(3)) {
            starved.grown();
            added += 1;
        }
    }
    assert_eq!(added + 1, FILLERS_MAX);
}
