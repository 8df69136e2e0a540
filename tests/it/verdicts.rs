//! Ranks that fail, disagree, or see another disk: one typed error everywhere.

use std::sync::Arc;
use std::time::Duration;

use tch_checkpoint::load::{Atomicity, load};
use tch_checkpoint::plan::load::LoadRules;
use tch_checkpoint::save::{SaveOptions, save};
use tch_checkpoint::state::{LoadTargets, StateDict, TensorSource};
use tch_checkpoint::storage::{LocalStorage, MemoryStorage, Storage};
use tch_checkpoint::tensor::{Component, Dtype, TensorSpec};
use tch_checkpoint::{Checkpoint, ErrorKind, OnExisting, ProcessGroup, Rank, Result};

use crate::harness::*;
use crate::hooked::Hooked;

fn kinds<T>(verdicts: &[Result<T>]) -> Vec<Option<ErrorKind>> {
    verdicts.iter().map(|v| v.as_ref().err().map(|e| e.kind())).collect()
}

fn assert_same_error<T>(verdicts: &[Result<T>], kind: ErrorKind, words: &str) {
    assert_eq!(kinds(verdicts), vec![Some(kind); verdicts.len()]);
    let texts: Vec<String> =
        verdicts.iter().filter_map(|v| v.as_ref().err()).map(ToString::to_string).collect();
    assert!(texts.iter().all(|t| *t == texts[0]), "{texts:?}");
    assert!(texts[0].contains(words), "`{}` does not say `{words}`", texts[0]);
}

fn plain_save(
    group: &ProcessGroup,
    storage: &dyn Storage,
    state: &StateDict,
) -> Result<Checkpoint> {
    save(group, storage, &path("runs/a"), state, &SaveOptions::default())
}

/// A source that misbehaves on one rank.
struct Misbehaving(fn() -> Result<()>);

impl TensorSource for Misbehaving {
    fn read_into(&self, _offset: u64, _out: &mut [u8]) -> Result<()> {
        (self.0)()
    }
}

/// So long the others wait for rank 2, and so long it stalls.
const PATIENCE: Duration = Duration::from_secs(2);
const STALL: Duration = Duration::from_secs(5);

fn save_with_bad_source(bad: fn() -> Result<()>) -> Vec<Result<Checkpoint>> {
    let storage = MemoryStorage::new();
    let shared = storage.clone();
    let verdicts = on_ranks_within(PATIENCE, 3, move |group| {
        let mut state = StateDict::new();
        let rank = u64::from(group.rank().get());
        let spec = TensorSpec::new(Dtype::U8, vec![3, 8]).unwrap();
        let slice = tch_checkpoint::slice::Slice::full(&[3, 8]).rows(rank..rank + 1).unwrap();
        let source: Arc<dyn TensorSource> =
            if rank == 2 { Arc::new(Misbehaving(bad)) } else { Arc::new(vec![1u8; 8]) };
        state.add_slice(&Component::model(), name("w"), spec, slice, source).unwrap();
        plain_save(&group, &shared, &state)
    });
    assert_eq!(entries(&storage, "runs"), [""; 0], "nothing is left");
    verdicts
}

#[test]
fn a_rank_whose_device_fails() {
    let verdicts = save_with_bad_source(|| {
        Err(tch_checkpoint::Error::new(ErrorKind::Device, "the device fell off the bus"))
    });
    assert_same_error(&verdicts, ErrorKind::Device, "tensor `w`, rank 2, phase \"commit\"");
}

#[test]
fn a_rank_that_panics_while_writing() {
    let verdicts = save_with_bad_source(|| panic!("boom"));
    assert_same_error(&verdicts, ErrorKind::Panic, "boom");
}

#[test]
fn a_rank_that_stalls_is_named() {
    let verdicts = save_with_bad_source(|| {
        std::thread::sleep(STALL);
        Ok(())
    });
    let survivors: Vec<_> = verdicts[..2].iter().collect();
    for verdict in survivors {
        let error = verdict.as_ref().unwrap_err();
        assert_eq!((error.kind(), error.rank()), (ErrorKind::Deadline, Some(Rank::new(2))));
    }
}

#[test]
fn a_rank_that_leaves_before_the_save() {
    let storage = MemoryStorage::new();
    let verdicts = on_ranks(3, move |group| {
        if group.rank() == Rank::new(1) {
            return None;
        }
        Some(save_state(&group, &storage, "runs/a", &usual_tensors(), 1))
    });
    let survivors: Vec<_> = verdicts.into_iter().flatten().collect();
    assert_eq!(kinds(&survivors), [Some(ErrorKind::PeerLost); 2]);
    assert!(survivors.iter().all(|v| v.as_ref().unwrap_err().rank() == Some(Rank::new(1))));
}

#[test]
fn ranks_that_disagree() {
    type Change = fn(&mut StateDict, &mut SaveOptions, &mut String);
    let changes: [(&str, Change); 6] = [
        ("step", |_, options, _| options.step = 9),
        ("epoch", |_, options, _| options.epoch = 9),
        ("name", |_, _, at| *at = "runs/b".to_owned()),
        ("directory", |_, _, at| *at = "elsewhere/a".to_owned()),
        ("loss", |state, _, _| state.values.set("loss", 0.5)),
        ("w", |state, _, _| {
            let mut other = StateDict::new();
            let spec = TensorSpec::new(Dtype::F64, vec![1]).unwrap();
            other.add(&Component::model(), name("w"), spec, Arc::new(vec![0u8; 8])).unwrap();
            other.values = state.values.clone();
            *state = other;
        }),
    ];
    for (field, change) in changes {
        let storage = MemoryStorage::new();
        let verdicts = on_ranks(3, move |group| {
            let mut state = StateDict::new();
            let spec = TensorSpec::new(Dtype::F32, vec![2]).unwrap();
            state.add(&Component::model(), name("w"), spec, Arc::new(vec![0u8; 8])).unwrap();
            state.values.set("loss", 0.25);
            let (mut options, mut at) = (SaveOptions::default(), "runs/a".to_owned());
            if group.rank() == Rank::new(2) {
                change(&mut state, &mut options, &mut at);
            }
            let verdict = save(&group, &storage, &path(&at), &state, &options);
            assert_eq!(entries(&storage, "runs"), [""; 0], "{field}: something was written");
            verdict
        });
        assert_same_error(&verdicts, ErrorKind::Disagreement, field);
    }
}

#[test]
fn a_directory_that_ranks_do_not_share() {
    for separate in [1, 2] {
        let shared = MemoryStorage::new();
        let verdicts = on_ranks(3, move |group| {
            let own = MemoryStorage::new();
            own.create_dir_all(std::path::Path::new("runs")).unwrap();
            let apart = group.rank() == Rank::new(separate);
            let storage = if apart { &own } else { &shared };
            save_state(&group, storage, "runs/a", &usual_tensors(), 1)
        });
        assert_same_error(&verdicts, ErrorKind::NotShared, &format!("rank {separate}"));
    }
}

#[test]
fn an_existing_checkpoint_is_refused_numbered_or_replaced() {
    let storage = MemoryStorage::new();
    let save = |on_existing, step| {
        let storage = storage.clone();
        let mut verdicts = on_ranks(2, move |group| {
            let options = SaveOptions { step, on_existing, ..SaveOptions::default() };
            let state = state(&usual_tensors(), &group, step);
            save(&group, &storage, &path("runs/a"), &state, &options)
        });
        verdicts.remove(0)
    };
    save(OnExisting::Refuse, 1).unwrap();
    assert_eq!(save(OnExisting::Refuse, 2).unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(save(OnExisting::Number, 3).unwrap().name.as_str(), "a-v1");
    assert_eq!(save(OnExisting::Number, 4).unwrap().name.as_str(), "a-v2");
    save(OnExisting::Replace, 5).unwrap();
    assert_eq!(entries(&storage, "runs"), ["a", "a-v1", "a-v2"]);
    let newest = tch_checkpoint::catalog::find(&storage, &wanted("runs/latest")).unwrap();
    assert_eq!((newest.name.as_str(), newest.manifest.step()), ("a", 5));
}

#[test]
fn what_is_no_checkpoint_is_never_replaced() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("mine")).unwrap();
    std::fs::write(dir.path().join("mine/thesis.tex"), "years of work").unwrap();
    std::fs::write(dir.path().join("file"), "a file").unwrap();
    for taken in ["mine", "file"] {
        let at = dir.path().join(taken).to_str().unwrap().to_owned();
        let verdicts = on_ranks(2, move |group| {
            save_state(&group, &LocalStorage::new(), &at, &usual_tensors(), 1)
        });
        assert_same_error(&verdicts, ErrorKind::AlreadyExists, "no checkpoint");
    }
    assert_eq!(
        std::fs::read_to_string(dir.path().join("mine/thesis.tex")).unwrap(),
        "years of work"
    );
}

#[test]
fn an_unwritable_directory() {
    let verdicts = on_ranks(2, |group| {
        save_state(&group, &LocalStorage::new(), "/proc/nothing/here/a", &usual_tensors(), 1)
    });
    assert_eq!(kinds(&verdicts).len(), 2);
    for verdict in &verdicts {
        let error = verdict.as_ref().unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Storage | ErrorKind::NotFound), "{error}");
        assert!(error.to_string().contains("/proc"), "{error}");
    }
}

/// Names, shapes (broadcastable ones too) and dtypes that differ: all listed at once, on every
/// rank, and the destination unchanged.
#[test]
fn every_mismatch_is_listed() {
    let storage = MemoryStorage::new();
    let saved = vec![
        TestTensor::new("same", Dtype::F32, &[2], None),
        TestTensor::new("shape", Dtype::F32, &[4, 4], None),
        TestTensor::new("scalar", Dtype::F32, &[4], None),
        TestTensor::new("dtype", Dtype::F16, &[4], None),
        TestTensor::new("transposed", Dtype::F32, &[2, 3], None),
        TestTensor::new("extra", Dtype::F32, &[1], None),
    ];
    let s = storage.clone();
    on_ranks(1, move |group| save_state(&group, &s, "runs/a", &saved, 1).unwrap());
    let wanted = [
        TestTensor::new("same", Dtype::F32, &[2], None),
        TestTensor::new("shape", Dtype::F32, &[1], None),
        TestTensor::new("scalar", Dtype::F32, &[], None),
        TestTensor::new("dtype", Dtype::BF16, &[4], None),
        TestTensor::new("transposed", Dtype::F32, &[3, 2], None),
        TestTensor::new("lacking", Dtype::F32, &[1], None),
    ];
    let verdicts = on_ranks(2, move |group| {
        let mut buffers: Vec<Vec<u8>> =
            wanted.iter().map(|t| vec![0xEE; t.spec.size_bytes() as usize]).collect();
        let mut targets = LoadTargets::new();
        for (tensor, buffer) in wanted.iter().zip(&mut buffers) {
            let sink = Box::new(buffer.as_mut_slice());
            targets.add(name(&tensor.name), tensor.spec.clone(), sink).unwrap();
        }
        let rules = LoadRules { strict: true, ..LoadRules::default() };
        let at = tch_checkpoint::catalog::Wanted::parse("runs/a").unwrap();
        let verdict = load(&group, &storage, &at, &mut targets, &rules, Atomicity::InPlace);
        drop(targets);
        assert!(buffers.iter().flatten().all(|byte| *byte == 0xEE), "changed by a refused load");
        verdict
    });
    assert_same_error(&verdicts, ErrorKind::Mismatch, "shape");
    let text = verdicts[0].as_ref().unwrap_err().to_string();
    for offender in ["scalar (", "dtype (", "transposed (", "extra", "lacking"] {
        assert!(text.contains(offender), "{offender} is not listed in {text}");
    }
    assert!(!text.contains("same"), "{text}");
}

/// Each alone: what another library would broadcast, or take the bits of for another type.
#[test]
fn what_almost_fits_is_refused_and_changes_nothing() {
    let cases: [(Dtype, &[u64], Dtype, &[u64]); 7] = [
        (Dtype::F32, &[1], Dtype::F32, &[6]),
        (Dtype::F32, &[1, 4], Dtype::F32, &[4, 4]),
        (Dtype::F32, &[4], Dtype::F32, &[2, 4]),
        (Dtype::F32, &[], Dtype::F32, &[1]),
        (Dtype::F16, &[4], Dtype::BF16, &[4]),
        (Dtype::I64, &[4], Dtype::F64, &[4]),
        (Dtype::I32, &[4], Dtype::F32, &[4]),
    ];
    for (stored, from, wanted, to) in cases {
        let what = format!("{stored} {from:?} into {wanted} {to:?}");
        let storage = MemoryStorage::new();
        saved(storage.clone(), 1, "runs/a", &[TestTensor::new("w", stored, from, None)], 1);
        for atomicity in [Atomicity::Atomic, Atomicity::InPlace] {
            let group = ProcessGroup::solo();
            let tensor = TestTensor::new("w", wanted, to, None);
            let mut buffer = vec![0xEE; tensor.spec.size_bytes() as usize];
            let mut targets = LoadTargets::new();
            targets.add(name("w"), tensor.spec.clone(), Box::new(buffer.as_mut_slice())).unwrap();
            for strict in [true, false] {
                let rules = LoadRules { strict, ..LoadRules::default() };
                let at = tch_checkpoint::catalog::Wanted::parse("runs/a").unwrap();
                let verdict = load(&group, &storage, &at, &mut targets, &rules, atomicity);
                let error = verdict.map(drop).expect_err(&what);
                assert_eq!(error.kind(), ErrorKind::Mismatch, "{what}: {error}");
            }
            drop(targets);
            assert!(buffer.iter().all(|byte| *byte == 0xEE), "{what}: changed");
        }
    }
}

#[test]
fn missing_checkpoints_are_named_with_what_there_is() {
    let storage = MemoryStorage::new();
    let s = storage.clone();
    on_ranks(1, move |group| save_state(&group, &s, "runs/epoch1", &usual_tensors(), 1).unwrap());
    for (at, words) in [("runs/epoch2", "epoch1"), ("nowhere/a", "no directory")] {
        let storage = storage.clone();
        let verdicts = on_ranks(2, move |group| {
            load_state(&group, &storage, at, &usual_tensors(), 1, Atomicity::Atomic)
        });
        assert_same_error(&verdicts, ErrorKind::NotFound, words);
    }
}

/// No rank leaves a save before the rename, however slow it is: what follows finds the checkpoint.
#[test]
fn a_load_right_after_a_slow_save_finds_it_on_every_rank() {
    let storage = MemoryStorage::new();
    let slow = Hooked::new(&storage, |call| {
        if call.operation == "rename" {
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    });
    let tensors = usual_tensors();
    let loaded = on_ranks(3, move |group| {
        save_state(&group, &slow, "runs/a", &tensors, 1)?;
        load_state(&group, &slow, "runs/a", &tensors, 1, Atomicity::Atomic).map(drop)
    });
    assert_eq!(loaded, vec![Ok(()); 3]);
}
