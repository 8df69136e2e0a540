//! Outputs of a frozen trunk travel with checkpoints, for that trunk alone.

use tch::{Device, Kind, Tensor};
use tch_checkpoint::progressive::{ActivationCache, TrainingConfig};
use tch_checkpoint::state::{LoadTargets, StateDict, Stateful, Values};

use crate::letters::{Rows, alone, bits, config, loss, on_ranks, rack, trainer};

fn with_cache(mut config: TrainingConfig) -> TrainingConfig {
    config.activation_cache_mib = 1;
    config
}

fn ones(rows: i64) -> Tensor {
    Tensor::ones([rows, 4], (Kind::Float, Device::Cpu))
}

#[test]
fn a_cache_changes_no_result() {
    let ends: Vec<_> = [false, true]
        .into_iter()
        .map(|has_cache| {
            alone(move |group| {
                let dir = tempfile::tempdir().unwrap();
                let plain = config(dir.path(), 0);
                let settings = if has_cache { with_cache(plain) } else { plain };
                tch::manual_seed(5);
                let mut rack = rack();
                let mut trainer = trainer(&group, settings);
                trainer.train_rack(&mut rack, &Rows, &loss, 3).unwrap();
                let (hits, _) = trainer.activation_cache().hits_and_misses();
                assert_eq!(hits > 0, has_cache);
                bits(&rack)
            })
        })
        .collect();
    assert!(ends[0] == ends[1]);
}

#[test]
fn what_a_rank_has_kept_comes_back_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_path_buf();
    on_ranks(2, move |group| {
        let settings = || with_cache(config(&root, 0));
        let mut first = trainer(&group, settings());
        let mut whole = rack();
        first.train_rack(&mut whole, &Rows, &loss, 2).unwrap();
        let kept = first.activation_cache();
        assert_eq!((kept.len(), kept.hits_and_misses()), (4, (2, 4)), "six steps, four batches");
        let mut second = trainer(&group, settings());
        let mut resumed = rack();
        second.resume(&mut resumed).unwrap().unwrap();
        let (there, here) = (first.activation_cache(), second.activation_cache());
        assert_eq!(
            (there.len(), there.bytes(), there.trunk()),
            (here.len(), here.bytes(), here.trunk())
        );
    });
}

/// Where a checkpoint has more than may be kept, or nobody wants it, the load goes on without.
#[test]
fn a_smaller_cache_or_none_takes_what_fits() {
    alone(|group| {
        let dir = tempfile::tempdir().unwrap();
        let mut first = trainer(&group, with_cache(config(dir.path(), 0)));
        let mut whole = rack();
        first.train_rack(&mut whole, &Rows, &loss, 2).unwrap();
        assert!(!first.activation_cache().is_empty());
        let mut second = trainer(&group, config(dir.path(), 0));
        let mut resumed = rack();
        second.resume(&mut resumed).unwrap().unwrap();
        assert!(second.activation_cache().is_empty());
        assert!(bits(&resumed) == bits(&whole));
    });
}

#[test]
fn the_least_recently_used_goes_first_and_the_bound_holds() {
    let batch = |n: i64| Tensor::from_slice(&[n]);
    let (trunk, other) = ([1; 16], [2; 16]);
    let mut cache = ActivationCache::new(100);
    for n in 0..3 {
        cache.put(trunk, &batch(n), &ones(2)).unwrap();
    }
    assert_eq!((cache.len(), cache.bytes()), (3, 96));
    assert!(cache.get(trunk, &batch(0)).unwrap().is_some());
    cache.put(trunk, &batch(3), &ones(2)).unwrap();
    let there = |cache: &mut ActivationCache, n| cache.get(trunk, &batch(n)).unwrap().is_some();
    assert!(there(&mut cache, 0) && !there(&mut cache, 1) && there(&mut cache, 2));
    cache.put(trunk, &batch(9), &ones(7)).unwrap();
    assert!(!there(&mut cache, 9), "larger than all that may be kept");
    assert_eq!(cache.len(), 3);
    // Kind and shape count as well as bytes.
    assert!(cache.get(trunk, &batch(0).reshape([1, 1])).unwrap().is_none());
    assert!(cache.get(trunk, &batch(0).view_dtype(Kind::Double)).unwrap().is_none());
    assert!(cache.get(other, &batch(0)).unwrap().is_none() && cache.is_empty(), "of another trunk");
    assert!(ActivationCache::new(0).get(trunk, &batch(0)).unwrap().is_none());
}

/// The stored trunk is another one: what came is not used.
#[test]
fn a_cache_of_another_trunk_is_emptied() {
    let mut cache = ActivationCache::new(1000);
    cache.put([1; 16], &Tensor::from_slice(&[1i64]), &ones(3)).unwrap();
    let mut state = StateDict::new();
    cache.save_state("cache", &mut state).unwrap();
    let mut loaded = ActivationCache::new(1000);
    loaded.prepare("cache", &state.values, &state.rank_values).unwrap();
    let mut targets = LoadTargets::new();
    loaded.load_targets("cache", &mut targets).unwrap();
    assert_eq!(targets.targets().len(), 1);
    drop(targets);
    assert!(loaded.is_empty(), "nothing before all has come");
    loaded.load_values("cache", &state.values, &state.rank_values).unwrap();
    assert_eq!(loaded.len(), 1);
    assert!(loaded.expect([2; 16]) && loaded.is_empty());
    assert!(!loaded.expect([2; 16]));
}

#[test]
fn a_stored_index_is_not_believed() {
    let of = |text: &str| {
        let mut own = Values::new();
        own.set("cache.index", tch_checkpoint::state::Value::Json(text.to_owned()));
        let mut cache = ActivationCache::new(1000);
        cache.prepare("cache", &Values::new(), &own)?;
        cache.load_values("cache", &Values::new(), &own).map(|()| cache.len())
    };
    let entry = r#"{"batch":"00000000000000000000000000000001","spec":SPEC}"#;
    let trunk = "00000000000000000000000000000002";
    let with = |spec: &str| {
        let entry = entry.replace("SPEC", spec);
        of(&format!(r#"{{"trunk":"{trunk}","entries":[{entry}]}}"#))
    };
    assert_eq!(with(r#"{"dtype":"F32","shape":[2,3]}"#).unwrap(), 1);
    assert_eq!(with(r#"{"dtype":"F32","shape":[2000,3000]}"#).unwrap(), 0, "more than may be kept");
    assert!(with(r#"{"dtype":"F32","shape":[4000000000,4000000000]}"#).is_err());
    for text in [
        "[]",
        "{}",
        r#"{"trunk":"x","entries":[{"batch":"y","spec":{"dtype":"F32","shape":[1]}}]}"#,
        r#"{"trunk":"00000000000000000000000000000002","entries":[{"batch":"zz","spec":{"dtype":"F32","shape":[1]}}]}"#,
        r#"{"trunk":"00000000000000000000000000000002","entries":[{"batch":"00000000000000000000000000000001","spec":{"dtype":"F99","shape":[1]}}]}"#,
    ] {
        assert!(of(text).is_err(), "{text}");
    }
}
