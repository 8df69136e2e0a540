use std::time::Duration;

use super::fake::{FakeNccl, Faults, Job, StreamDevice};
use super::*;
use crate::group::Deadlines;
use crate::rank::WorldSize;

/// All ranks join, each with what it has found.
fn join_all(found: Vec<Result<(FakeNccl, Version)>>) -> Vec<(Result<()>, ProcessGroup)> {
    let progress = Duration::from_secs(20);
    let deadlines = Deadlines { progress, join: progress, ..Deadlines::default() };
    let world = WorldSize::new(u32::try_from(found.len()).unwrap()).unwrap();
    let groups = ProcessGroup::threads(world, deadlines);
    std::thread::scope(|scope| {
        let ranks = groups.into_iter().zip(found);
        let ranks = ranks.map(|(group, found)| {
            scope.spawn(move || {
                (
                    group
                        .join(found.map(|(nccl, version)| (nccl, version, StreamDevice::shared()))),
                    group,
                )
            })
        });
        let ranks: Vec<_> = ranks.collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

fn healthy(job: &Arc<Job>) -> Result<(FakeNccl, Version)> {
    Ok((FakeNccl { job: Arc::clone(job), faults: Faults::default() }, Version::of(22_907)))
}

#[test]
fn all_ranks_have_a_plane_between_devices_once_all_have_joined() {
    let job = Arc::default();
    for (joined, group) in join_all(vec![healthy(&job), healthy(&job)]) {
        joined.unwrap();
        assert_eq!(group.device_plane().unwrap().device().name(), "stream:0");
    }
}

#[test]
fn what_one_rank_lacks_is_the_error_of_all_and_nobody_has_a_plane() {
    let job = Arc::default();
    let missing = Err(Error::new(ErrorKind::NotFound, "no NCCL found; looked for\n  /a: none"));
    let refused =
        FakeNccl { job: Arc::clone(&job), faults: Faults { join_code: 2, ..Faults::default() } };
    let older = healthy(&job).map(|(nccl, _)| (nccl, Version::of(21_800)));
    let cases = [
        (vec![healthy(&job), missing], ErrorKind::NotFound, "looked for"),
        (vec![healthy(&job), older], ErrorKind::Disagreement, "2.18.0 and NCCL 2.29.7"),
        (vec![Ok((refused, Version::of(22_907)))], ErrorKind::Device, "fake words"),
    ];
    for (found, kind, words) in cases {
        for (joined, group) in join_all(found) {
            let error = joined.unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(words), "{error}");
            assert!(group.device_plane().is_none());
        }
    }
}

#[test]
fn off_counts_if_all_ranks_say_so() {
    let rank = |is_off| Ready { version: Version::OLDEST, is_off };
    let id = || Some(Ok(UniqueId(vec![1; 128])));
    assert_eq!(agree(id)(vec![rank(true), rank(true)]).unwrap(), None);
    assert!(agree(id)(vec![rank(false), rank(false)]).unwrap().is_some());
    let error = agree(id)(vec![rank(false), rank(true)]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Disagreement);
}
