use std::path::Path;

use super::*;
use crate::catalog::CheckpointPath;
use crate::group::ProcessGroup;
use crate::layout::SaveId;
use crate::plan::OnExisting;
use crate::plan::save::{local_plan, merge_plans};
use crate::save::{SaveOptions, save, target};
use crate::state::StateDict;
use crate::storage::{MemoryStorage, Storage};
use crate::tensor::{Component, Dtype, TensorName, TensorSpec};

const MIB: u64 = 1 << 20;

fn need(bytes: u64, reserve: u64) -> Need {
    Need { bytes, files: 5, margin: Margin { reserve, ..Margin::default() } }
}

#[test]
fn the_last_byte_fits_and_one_more_does_not() {
    let space = Space::of_bytes(100);
    assert_eq!(need(100, 0).verdict(&space), Verdict::Fits);
    assert_eq!(need(101, 0).verdict(&space), Verdict::TooLarge);
    assert_eq!(need(u64::MAX, u64::MAX).verdict(&space), Verdict::TooLarge);
}

#[test]
fn the_reserve_warns_and_never_refuses() {
    let space = Space::of_bytes(100);
    assert_eq!(need(60, 40).verdict(&space), Verdict::Fits);
    assert_eq!(need(60, 41).verdict(&space), Verdict::Scarce(40));
    assert_eq!(need(0, u64::MAX).verdict(&space), Verdict::Scarce(100));
}

#[test]
fn a_quota_counts_like_the_disk_and_so_do_inodes() {
    let roomy = Space::of_bytes(1000);
    let quota = Space { quota_bytes: Some(99), ..roomy };
    assert_eq!(need(100, 0).verdict(&quota), Verdict::TooLarge);
    let few = Space { available_files: Some(4), ..roomy };
    assert_eq!(need(100, 0).verdict(&few), Verdict::TooManyFiles(4));
    let enough = Space { available_files: Some(5), ..roomy };
    assert_eq!(need(100, 0).verdict(&enough), Verdict::Fits);
}

#[test]
fn the_error_says_how_much_is_missing_where_and_what_to_do() {
    let storage = MemoryStorage::new();
    let dir = storage.create_dir_all(Path::new("runs")).unwrap();
    assert_eq!(need(u64::MAX, u64::MAX).check(dir.as_ref()), Ok(()), "unknown space is no error");
    storage.set_capacity(Some(MIB));
    let error = need(3 * MIB, 0).check(dir.as_ref()).unwrap_err();
    assert_eq!((error.kind(), error.path()), (ErrorKind::NoSpace, Some("runs")));
    let text = error.to_string();
    for part in ["3.00 MiB (3145728 bytes)", "1.00 MiB (1048576 bytes)", "free 2.00 MiB"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let quota = Space { quota_bytes: Some(0), ..Space::of_bytes(MIB) };
    let error = need(MIB, 0).too_large(dir.as_ref(), &quota).to_string();
    assert!(error.contains("within the quota") && error.contains("raise the quota"), "{error}");
}

/// States of few large, many small and long-named tensors, of values only, and with files.
fn states() -> Vec<StateDict> {
    let tensors = |count: usize, name: &str, shape: &[u64]| {
        let mut state = StateDict::new();
        for n in 0..count {
            let name = TensorName::new(format!("{name}.{n}")).unwrap();
            let spec = TensorSpec::new(Dtype::U8, shape).unwrap();
            let bytes = vec![1u8; usize::try_from(spec.size_bytes()).unwrap()];
            state.add(&Component::model(), name, spec, std::sync::Arc::new(bytes)).unwrap();
        }
        state
    };
    let mut values = StateDict::new();
    values.values.set("history", vec![0.5f64; 40_000]);
    values.rank_values.set("random", vec![7u8; 5056]);
    vec![
        tensors(2, "large", &[3, 1_000_001]),
        tensors(3000, "layers.attention.weight", &[3]),
        tensors(40, &"n".repeat(300), &[1, 2, 3, 1, 1, 1, 1, 1]),
        tensors(1, "\"\"\"\"", &[]),
        tensors(0, "", &[]),
        values,
    ]
}

#[test]
fn a_checkpoint_takes_what_was_said_or_a_little_less() {
    for (n, state) in states().into_iter().enumerate() {
        let storage = MemoryStorage::new();
        let (path, options) = (CheckpointPath::parse("runs/a").unwrap(), SaveOptions::default());
        let plan = local_plan(target(&path, &options), &state);
        let merged = merge_plans(SaveId::random().unwrap(), &[plan]).unwrap();
        let need = Need::of_plan(&merged, Margin::default()).unwrap();
        save(&ProcessGroup::solo(), &storage, &path, &state, &options).unwrap();
        let taken = storage.used_bytes();
        let pieces = merged.plans.iter().flat_map(|p| &p.files).flat_map(|f| &f.pieces).count();
        let slack = 20_000 + 3000 * pieces as u64;
        assert!(need.bytes >= taken, "state {n}: {need:?}, {taken} taken");
        assert!(need.bytes <= taken + slack, "state {n}: {need:?}, {taken} taken");
    }
}

#[test]
fn what_is_replaced_still_counts_while_its_successor_is_written() {
    let (storage, group) = (MemoryStorage::new(), ProcessGroup::solo());
    let path = CheckpointPath::parse("runs/a").unwrap();
    let options = SaveOptions {
        on_existing: OnExisting::Replace,
        copy_unchanged: true,
        ..SaveOptions::default()
    };
    let state = states().remove(0);
    storage.set_capacity(Some(7 * MIB));
    save(&group, &storage, &path, &state, &options).unwrap();
    assert_eq!(
        save(&group, &storage, &path, &state, &options).unwrap_err().kind(),
        ErrorKind::NoSpace
    );
    storage.set_capacity(Some(13 * MIB));
    save(&group, &storage, &path, &state, &options).unwrap();
    assert!(storage.used_bytes() < 7 * MIB, "the old one is gone");
}
