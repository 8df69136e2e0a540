//! Ranks of which one gets no thread.

use std::thread;

use super::*;
use crate::group::Deadlines;
use crate::rank::WorldSize;
use crate::storage::MemoryStorage;
use crate::sync::refusing;
use crate::tensor::{Component, Dtype, TensorName, TensorSpec};

/// Whether a save of this rank went on after its call had returned.
fn goes_beside(group: &ProcessGroup, storage: &Arc<dyn Storage>, step: u64) -> bool {
    let (bytes, mut state) = (vec![7u8; 100], StateDict::new());
    let spec = TensorSpec::new(Dtype::U8, [100]).unwrap();
    let name = TensorName::new("a").unwrap();
    state.add(&Component::model(), name, spec, Arc::new(bytes)).unwrap();
    let path = CheckpointPath::parse(format!("runs/{step}")).unwrap();
    let options = SaveOptions { step, ..SaveOptions::default() };
    let pending = save_async(group, storage, &path, &state, &options, Box::new(|_| {})).unwrap();
    let beside = matches!(pending.verdict, Some(Verdict::Coming(_)));
    assert!(beside || pending.is_done());
    assert_eq!(pending.wait().unwrap().name.as_str(), step.to_string());
    beside
}

/// Else that rank would wait for the others while they train.
#[test]
fn without_a_thread_on_one_rank_all_save_in_the_call() {
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    let groups = ProcessGroup::threads(WorldSize::new(3).unwrap(), Deadlines::default());
    thread::scope(|scope| {
        for group in groups {
            let storage = &storage;
            scope.spawn(move || {
                assert!(goes_beside(&group, storage, 1));
                let lacks = group.rank().get() == 1;
                // The plan of before.
                let save = || goes_beside(&group, storage, 2);
                let (beside, refused) = if lacks { refusing(save) } else { (save(), 0) };
                assert!(!beside, "rank {}", group.rank());
                assert_eq!(refused > 0, lacks);
                assert!(goes_beside(&group, storage, 3));
            });
        }
    });
}
