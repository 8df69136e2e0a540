//! A structure that is saved again is planned once, and what is saved is the same either way.

use std::path::Path;
use std::sync::{Arc, Barrier};
use std::thread;

use super::*;
use crate::group::Deadlines;
use crate::layout::MANIFEST;
use crate::manifest::Manifest;
use crate::plan::reuse::PlanCache;
use crate::rank::WorldSize;
use crate::save::save;
use crate::slice::Slice;
use crate::state::StateDict;
use crate::storage::MemoryStorage;
use crate::tensor::{Component, Dtype, TensorName, TensorSpec};

const RANKS: u32 = 3;

/// The first tensor is on every rank, the second in parts; `more` of a third kind on one rank.
fn state(rank: u32, more: u64) -> StateDict {
    let mut state = StateDict::new();
    let spec = |rows| TensorSpec::new(Dtype::U8, [rows, 8]).unwrap();
    let name = |text: &str| TensorName::new(text).unwrap();
    let (model, other) = (Component::model(), Component::optimizer());
    let bytes = |n: u64| Arc::new(vec![7u8; usize::try_from(8 * n).unwrap()]);
    state.add(&model, name("all"), spec(20_000), bytes(20_000)).unwrap();
    let part = Slice::new(vec![u64::from(rank), 0], vec![1, 8]).unwrap();
    state.add_slice(&other, name("part"), spec(u64::from(RANKS)), part, bytes(1)).unwrap();
    let twice = Slice::new(vec![u64::from(rank + RANKS), 0], vec![1, 8]).unwrap();
    let first = Slice::new(vec![u64::from(rank), 0], vec![1, 8]).unwrap();
    let both = spec(u64::from(2 * RANKS));
    state.add_slice(&other, name("two"), both.clone(), first, bytes(1)).unwrap();
    state.add_slice(&other, name("two"), both, twice, bytes(1)).unwrap();
    for number in (0..more).filter(|_| rank == 1) {
        state.add(&model, name(&format!("more.{number}")), spec(1), bytes(1)).unwrap();
    }
    state
}

/// Runs `work` on all ranks of a group, each in a thread.
fn on_ranks(work: impl Fn(&ProcessGroup, &MemoryStorage, &Barrier) + Sync) -> MemoryStorage {
    let storage = MemoryStorage::new();
    let groups = ProcessGroup::threads(WorldSize::new(RANKS).unwrap(), Deadlines::default());
    let barrier = Barrier::new(groups.len());
    thread::scope(|scope| {
        for group in groups {
            let (work, storage, barrier) = (&work, &storage, &barrier);
            scope.spawn(move || work(&group, storage, barrier));
        }
    });
    storage
}

fn save_as(
    group: &ProcessGroup,
    storage: &MemoryStorage,
    name: &str,
    more: u64,
    change: impl FnOnce(&mut StateDict),
) -> Result<SaveId> {
    let mut state = state(group.rank().get(), more);
    state.rank_values.set("rank", i64::from(group.rank().get()));
    change(&mut state);
    let path = CheckpointPath::parse(format!("runs/{name}")).unwrap();
    let options = SaveOptions { step: 1, copy_unchanged: true, ..SaveOptions::default() };
    save(group, storage, &path, &state, &options).map(|saved| saved.save_id)
}

/// What a checkpoint consists of, but for its save id: names of files, their bytes, values.
fn content(storage: &MemoryStorage, name: &str) -> Vec<(String, Vec<u8>)> {
    let at = |file: &str| Path::new("runs").join(name).join(file);
    let manifest = Manifest::parse(&storage.read(&at(MANIFEST)).unwrap()).unwrap();
    let id = manifest.save_id().to_string();
    let data = manifest.data_files().iter().map(|f| (&f.name, f.data_start));
    let sums = manifest.sums_files().iter().map(|f| (&f.name, 32));
    let file = |(file, start): (&String, u64)| {
        assert!(file.contains(&id), "{file}");
        let bytes = storage.read(&at(file)).unwrap();
        (file.replace(&id, "ID"), bytes[usize::try_from(start).unwrap()..].to_vec())
    };
    let mut content: Vec<_> = data.chain(sums).map(file).collect();
    let said = (manifest.tensors(), manifest.aliases(), manifest.values());
    let ranks: Vec<_> = manifest.world_size().ranks().map(|r| manifest.rank_values(r)).collect();
    content.push((format!("{said:?} {ranks:?}"), Vec::new()));
    content
}

#[test]
fn what_is_planned_once_is_saved_alike() {
    let storage = on_ranks(|group, storage, _| {
        for (number, name) in ["a", "b", "c"].into_iter().enumerate() {
            save_as(group, storage, name, 2, |_| {}).unwrap();
            assert_eq!(group.plans().reused(), number as u64);
        }
    });
    let first = content(&storage, "a");
    assert!(first.len() > 10, "several files of a component on each rank");
    assert_eq!(content(&storage, "b"), first);
    assert_eq!(content(&storage, "c"), first);
}

#[test]
fn a_structure_that_changes_on_one_rank_is_planned_anew() {
    let storage = on_ranks(|group, storage, _| {
        for (more, reused) in [(0, 0), (1, 0), (1, 1), (0, 2), (1, 3), (2, 3), (0, 4)] {
            let name = format!("{more}-{reused}");
            save_as(group, storage, &name, more, |_| {}).unwrap();
            assert_eq!(group.plans().reused(), reused, "{name}");
        }
    });
    for (fresh, again) in [("0-0", "0-2"), ("1-0", "1-1"), ("1-0", "1-3"), ("0-0", "0-4")] {
        assert_eq!(content(&storage, again), content(&storage, fresh));
    }
}

#[test]
fn ranks_that_remember_different_things_send_everything() {
    let storage = on_ranks(|group, storage, barrier| {
        save_as(group, storage, "a", 1, |_| {}).unwrap();
        for (forgets, name) in [(0, "b"), (2, "c")] {
            barrier.wait();
            if group.rank().get() == forgets {
                *group.plans() = PlanCache::default();
            }
            barrier.wait();
            save_as(group, storage, name, 1, |_| {}).unwrap();
            assert_eq!(group.plans().reused(), 0, "{name}");
        }
        save_as(group, storage, "d", 1, |_| {}).unwrap();
        assert_eq!(group.plans().reused(), 1);
        // More structures than are remembered, in turn: none is there when it comes again.
        for round in ["x", "y"] {
            for more in 2..7 {
                save_as(group, storage, &format!("{round}{more}"), more, |_| {}).unwrap();
                assert_eq!(group.plans().reused(), 1);
            }
        }
    });
    let first = content(&storage, "a");
    for name in ["b", "c", "d"] {
        assert_eq!(content(&storage, name), first, "{name}");
    }
}

/// Values are told each time, and compared; a failure leaves nothing behind that is not agreed.
#[test]
fn a_save_that_fails_is_followed_by_one_that_does_not() {
    on_ranks(|group, storage, _| {
        let lone = group.rank().get() == 2;
        let differ = |state: &mut StateDict| state.values.set("lr", if lone { 0.1 } else { 0.2 });
        let refused = save_as(group, storage, "a", 0, differ).unwrap_err();
        assert!(refused.to_string().contains("value `lr` differs"), "{refused}");
        assert!(group.plans().is_empty());
        save_as(group, storage, "a", 0, |_| {}).unwrap();
        let again = save_as(group, storage, "a", 0, |_| {}).unwrap_err();
        assert_eq!(again.kind(), ErrorKind::AlreadyExists);
        let refused = save_as(group, storage, "b", 0, differ).unwrap_err();
        for words in ["value `lr` differs", "rank 0", "rank 2"] {
            assert!(refused.to_string().contains(words), "{refused}");
        }
        assert_eq!(group.plans().reused(), 0);
        save_as(group, storage, "b", 0, |_| {}).unwrap();
        assert_eq!(group.plans().reused(), 1);
        save_as(group, storage, "d", 0, |_| {}).unwrap();
    });
}
