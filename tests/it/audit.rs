//! The replica audit: a bit that differs on one rank is every rank's error, and nothing else is.

use std::sync::Arc;

use tch_checkpoint::audit::audit;
use tch_checkpoint::save::{SaveOptions, save};
use tch_checkpoint::slice::Slice;
use tch_checkpoint::state::{StateDict, TensorSource};
use tch_checkpoint::storage::{MemoryStorage, Storage};
use tch_checkpoint::tensor::{Component, Dtype, TensorSpec};
use tch_checkpoint::{Checkpoint, Error, ErrorKind, OnExisting, ProcessGroup, Result};

use crate::harness::*;

/// Nothing of it lies in memory as a whole.
struct Streamed(Vec<u8>);

impl TensorSource for Streamed {
    fn read_into(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.0.read_into(offset, out)
    }
}

fn spec(elements: u64) -> TensorSpec {
    TensorSpec::new(Dtype::F32, vec![elements]).unwrap()
}

/// The usual tensors and a large one that is streamed; on rank `odd`, in the tensors of `flipped`
/// one bit each, the last, is different.
fn held(group: &ProcessGroup, odd: u32, flipped: &[&str]) -> StateDict {
    let mut state = state(&usual_tensors(), group, 1);
    let is_odd = group.rank().get() == odd;
    let mut add = |tensor: &str, mut bytes: Vec<u8>| {
        if is_odd && flipped.contains(&tensor) {
            *bytes.last_mut().unwrap() ^= 1;
        }
        let spec = spec(bytes.len() as u64 / 4);
        state.add(&Component::model(), name(tensor), spec, Arc::new(Streamed(bytes))).unwrap();
    };
    add("large", vec![7; 3_000_004]);
    for n in 0..6 {
        add(&format!("small.{n}"), vec![n; 8]);
    }
    state
}

fn save_held(
    group: &ProcessGroup,
    storage: &dyn Storage,
    state: &StateDict,
    audit: bool,
) -> Result<Checkpoint> {
    let options = SaveOptions { audit, on_existing: OnExisting::Replace, ..SaveOptions::default() };
    save(group, storage, &path("runs/a"), state, &options)
}

fn audited(n: u32, state: impl Fn(&ProcessGroup) -> StateDict + Send + Sync + 'static) -> Error {
    one_error(&on_ranks(n, move |group| audit(&group, &state(&group))), "audit")
}

#[test]
fn one_bit_on_one_rank_is_found_before_anything_is_written() {
    for tensor in ["large", "small.0"] {
        let storage = MemoryStorage::new();
        let inner = storage.clone();
        let verdicts = on_ranks(3, move |group| {
            let state = held(&group, 2, &[tensor]);
            let refused = save_held(&group, &inner, &state, true);
            assert_eq!(entries(&inner, "runs"), [""; 0], "something was written");
            let bad = audit(&group, &state);
            let unaudited = save_held(&group, &inner, &state, false);
            assert!(unaudited.is_ok(), "{unaudited:?}");
            assert_eq!(bad.unwrap_err().message(), refused.as_ref().unwrap_err().message());
            refused
        });
        let error = one_error(&verdicts, tensor);
        assert_eq!(error.kind(), ErrorKind::Disagreement, "{error}");
        assert_eq!(error.tensor(), Some(tensor), "{error}");
        assert_eq!(error.rank().map(tch_checkpoint::Rank::get), Some(2), "{error}");
        assert!(error.message().contains(&format!("`{tensor}` on rank 2")), "{error}");
        assert!(error.help().unwrap().contains("older checkpoints are untouched"), "{error}");
        assert_good(&storage, "runs/a");
    }
}

#[test]
fn equal_replicas_pass_with_shards_values_of_ranks_and_empty_tensors() {
    for n in [1, 2, 3] {
        let storage = MemoryStorage::new();
        for verdict in on_ranks(n, move |group| {
            audit(&group, &StateDict::new())?;
            save_held(&group, &storage, &held(&group, 9, &[]), true)
        }) {
            verdict.unwrap();
        }
    }
}

/// All ranks declare the same boxes: told in one phase, by place.
#[test]
fn ranks_with_equal_boxes_are_told_apart_too() {
    let whole = |group: &ProcessGroup, byte: [u8; 4]| {
        let mut state = StateDict::new();
        let own = Arc::new(byte[group.rank().get() as usize].to_le_bytes().repeat(4));
        state.add(&Component::model(), name("a"), spec(1), Arc::new(vec![0; 4])).unwrap();
        state.add(&Component::model(), name("w"), spec(1), own).unwrap();
        state
    };
    let ranks = |byte: [u8; 4]| audited(4, move |group| whole(group, byte)).message().to_owned();
    let differs = |ranks| format!("one replica differs between ranks: `w` on {ranks}");
    assert_eq!(ranks([1, 1, 5, 1]), differs("rank 2"));
    assert_eq!(ranks([5, 1, 1, 1]), differs("rank 0"));
    assert_eq!(ranks([5, 1, 1, 7]), differs("ranks 0, 3"));
    assert_eq!(ranks([1, 1, 2, 2]), differs("ranks 2, 3"));
    assert_eq!(ranks([1, 2, 3, 4]), differs("ranks 1, 2, 3"));
}

/// Only ranks 1 and 2 hold these boxes: the coordinator has none to compare with.
#[test]
fn replicas_that_the_coordinator_does_not_hold_are_compared() {
    let half = |group: &ProcessGroup, odd: u8| {
        let rank = group.rank().get();
        let mut state = StateDict::new();
        let slice = Slice::new(vec![if rank == 0 { 0 } else { 4 }], vec![4]).unwrap();
        let bytes = vec![if rank == 2 { odd } else { 1 }; 16];
        state.add_slice(&Component::model(), name("w"), spec(8), slice, Arc::new(bytes)).unwrap();
        state
    };
    for verdict in on_ranks(3, move |group| audit(&group, &half(&group, 1))) {
        verdict.unwrap();
    }
    let error = audited(3, move |group| half(group, 2));
    assert_eq!(error.tensor(), Some("w"));
    assert!(error.message().ends_with("`w` [4..8] on rank 2"), "{error}");
}

#[test]
fn many_differences_are_counted() {
    let error = audited(3, |group| {
        held(group, 1, &["large", "small.0", "small.1", "small.2", "small.3", "small.5"])
    });
    assert!(error.message().starts_with("replicas differ"), "{error}");
    assert!(error.message().contains("`small.2` on rank 1, and 2 more"), "{error}");
}

#[test]
fn numbers_are_compared_by_their_bits() {
    let one = |bits: [u32; 2]| {
        on_ranks(2, move |group| {
            let mut state = StateDict::new();
            let own = bits[group.rank().get() as usize].to_le_bytes().to_vec();
            state.add(&Component::model(), name("w"), spec(1), Arc::new(own)).unwrap();
            audit(&group, &state).is_ok()
        })
    };
    let (nan, other_nan) = (0x7fc0_0000, 0x7fc0_0001);
    assert_eq!(one([nan, nan]), [true, true]);
    assert_eq!(one([nan, other_nan]), [false, false]);
    assert_eq!(one([0.0f32.to_bits(), (-0.0f32).to_bits()]), [false, false]);
}

#[test]
fn a_source_that_fails_or_panics_on_one_rank_is_every_ranks_error() {
    struct Bad(bool);
    impl TensorSource for Bad {
        fn read_into(&self, _: u64, _: &mut [u8]) -> Result<()> {
            assert!(self.0, "a source that panics");
            Err(Error::new(ErrorKind::Device, "a device that fails"))
        }
    }
    for (fails, kind) in [(true, ErrorKind::Device), (false, ErrorKind::Panic)] {
        let error = audited(3, move |group| {
            let mut state = held(group, 9, &[]);
            if group.rank().get() == 1 {
                state.add(&Component::model(), name("z"), spec(4), Arc::new(Bad(fails))).unwrap();
            }
            state
        });
        assert_eq!(error.kind(), kind, "{error}");
        assert_eq!(error.rank().map(tch_checkpoint::Rank::get), Some(1), "{error}");
    }
}

#[test]
fn ranks_that_do_not_all_audit_are_told() {
    let storage = MemoryStorage::new();
    let verdicts = on_ranks(2, move |group| {
        let state = held(&group, 9, &[]);
        let audits = group.rank().get() == 1;
        let unlike = save_held(&group, &storage, &state, audits);
        (unlike.map_err(|e| e.kind()).unwrap_err(), save_held(&group, &storage, &state, true))
    });
    for (unlike, after) in verdicts {
        assert_eq!(unlike, ErrorKind::Disagreement);
        after.unwrap();
    }
}
