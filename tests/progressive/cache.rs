//! The cache of activations: what it keeps, and what of it comes back with a run.

use tch::{Device, Kind, Tensor};
use tch_checkpoint::catalog::{CheckpointPath, Wanted};
use tch_checkpoint::load::{Atomicity, Destination, load};
use tch_checkpoint::manifest::Manifest;
use tch_checkpoint::plan::load::LoadRules;
use tch_checkpoint::progressive::ActivationCache;
use tch_checkpoint::state::{LoadTargets, StateDict, Stateful, Value, Values};
use tch_checkpoint::storage::MemoryStorage;
use tch_checkpoint::{ErrorKind, ProcessGroup, Result, SaveOptions, save};

const TRUNK: [u8; 16] = [7; 16];

fn batch(number: i64) -> Tensor {
    Tensor::from_slice(&[number, 1, 2])
}

/// 16 bytes.
fn output(number: i64) -> Tensor {
    Tensor::full([4], number, (Kind::Float, Device::Cpu))
}

fn filled(max_bytes: u64, numbers: &[i64]) -> ActivationCache {
    let mut cache = ActivationCache::new(max_bytes);
    for number in numbers {
        cache.put(TRUNK, &batch(*number), &output(*number)).unwrap();
    }
    cache
}

fn has(cache: &mut ActivationCache, number: i64) -> bool {
    let found = cache.get(TRUNK, &batch(number)).unwrap();
    found.inspect(|found| assert!(found.equal(&output(number)))).is_some()
}

#[test]
fn the_least_recently_used_goes_first_and_the_bound_holds() {
    let mut cache = filled(48, &[1, 2, 3]);
    assert_eq!((cache.len(), cache.bytes()), (3, 48));
    assert!(has(&mut cache, 1));
    cache.put(TRUNK, &batch(4), &output(4)).unwrap();
    assert_eq!((cache.len(), cache.bytes()), (3, 48));
    assert!(!has(&mut cache, 2) && has(&mut cache, 1) && has(&mut cache, 3) && has(&mut cache, 4));
    assert_eq!(cache.hits_and_misses(), (4, 1));
}

#[test]
fn an_output_above_the_bound_is_not_kept_and_evicts_nothing() {
    let mut cache = filled(32, &[1, 2]);
    let large = Tensor::zeros([9], (Kind::Float, Device::Cpu));
    cache.put(TRUNK, &batch(3), &large).unwrap();
    assert_eq!((cache.len(), cache.bytes()), (2, 32));
    assert!(has(&mut cache, 1) && has(&mut cache, 2) && !has(&mut cache, 3));
}

#[test]
fn a_cache_of_no_bytes_is_off() {
    let mut cache = filled(0, &[1]);
    let none = Tensor::zeros([0], (Kind::Float, Device::Cpu));
    cache.put(TRUNK, &batch(2), &none).unwrap();
    assert!(!cache.is_on() && cache.is_empty() && !has(&mut cache, 1));
    assert_eq!(cache.hits_and_misses(), (0, 0));
}

#[test]
fn another_trunk_empties_it() {
    let mut cache = filled(64, &[1, 2]);
    assert!(cache.get([8; 16], &batch(1)).unwrap().is_none());
    assert_eq!((cache.len(), cache.bytes()), (0, 0));
    assert!(!has(&mut cache, 1));
}

#[test]
fn batches_of_equal_bytes_and_another_shape_or_kind_are_others() {
    let mut cache = filled(64, &[]);
    let base = Tensor::from_slice(&[1i32, 2, 3, 4]);
    cache.put(TRUNK, &base, &output(1)).unwrap();
    for other in [base.reshape([2, 2]), base.view_dtype(Kind::Float), base.view_dtype(Kind::Int64)]
    {
        assert!(cache.get(TRUNK, &other).unwrap().is_none());
    }
    // A view of other strides, of the same elements in the same order.
    let strided = Tensor::stack(&[&base, &base], 1).select(1, 0);
    assert!(cache.get(TRUNK, &strided).unwrap().is_some());
}

#[test]
fn an_output_put_again_replaces_the_first_one() {
    let mut cache = filled(64, &[1]);
    cache.put(TRUNK, &batch(1), &output(9)).unwrap();
    assert_eq!((cache.len(), cache.bytes()), (1, 16));
    assert!(cache.get(TRUNK, &batch(1)).unwrap().unwrap().equal(&output(9)));
}

/// A cache as the destination of a load.
struct Loading<'a>(&'a mut ActivationCache);

impl Loading<'_> {
    fn own(values: Option<&Values>) -> Values {
        values.cloned().unwrap_or_default()
    }
}

impl Destination for Loading<'_> {
    fn prepare(&mut self, manifest: &Manifest) -> Result<()> {
        let own = Self::own(manifest.rank_values(tch_checkpoint::Rank::new(0)));
        self.0.prepare("cache", manifest.values(), &own)
    }
    fn targets(&mut self) -> Result<LoadTargets<'_>> {
        let mut targets = LoadTargets::new();
        self.0.load_targets("cache", &mut targets)?;
        Ok(targets)
    }
    fn take_values(&mut self, manifest: &Manifest, own: Option<&Values>) -> Result<()> {
        self.0.load_values("cache", manifest.values(), &Self::own(own))
    }
}

fn saved(cache: &ActivationCache, change: impl FnOnce(&mut Values)) -> MemoryStorage {
    let storage = MemoryStorage::new();
    let mut state = StateDict::new();
    cache.save_state("cache", &mut state).unwrap();
    change(&mut state.rank_values);
    let path = CheckpointPath::parse("runs/a").unwrap();
    save(&ProcessGroup::solo(), &storage, &path, &state, &SaveOptions::default()).unwrap();
    storage
}

fn loaded(storage: &MemoryStorage, cache: &mut ActivationCache) -> Result<()> {
    let wanted = Wanted::parse("runs/a")?;
    let (rules, mut to) = (LoadRules::default(), Loading(cache));
    load(&ProcessGroup::solo(), storage, &wanted, &mut to, &rules, Atomicity::Atomic).map(drop)
}

#[test]
fn entries_come_back_in_their_order() {
    let mut before = filled(48, &[1, 2, 3]);
    assert!(has(&mut before, 1));
    let storage = saved(&before, |_| {});
    let mut cache = filled(48, &[5]);
    loaded(&storage, &mut cache).unwrap();
    assert_eq!((cache.len(), cache.bytes(), cache.trunk()), (3, 48, Some(TRUNK)));
    assert!(!cache.expect(TRUNK));
    // The order too: 2 was used the longest ago.
    cache.put(TRUNK, &batch(4), &output(4)).unwrap();
    assert!(!has(&mut cache, 2) && has(&mut cache, 3) && has(&mut cache, 1) && has(&mut cache, 4));
}

#[test]
fn entries_of_another_trunk_are_dropped_once_it_is_known() {
    let storage = saved(&filled(48, &[1, 2]), |_| {});
    let mut cache = ActivationCache::new(48);
    loaded(&storage, &mut cache).unwrap();
    assert!(cache.expect([8; 16]) && cache.is_empty());
}

#[test]
fn of_more_than_fits_the_most_recent_come_back() {
    let storage = saved(&filled(48, &[1, 2, 3]), |_| {});
    let mut cache = ActivationCache::new(40);
    loaded(&storage, &mut cache).unwrap();
    assert_eq!((cache.len(), cache.bytes()), (2, 32));
    assert!(!has(&mut cache, 1) && has(&mut cache, 2) && has(&mut cache, 3));
    let mut off = ActivationCache::new(0);
    loaded(&storage, &mut off).unwrap();
    assert!(off.is_empty());
}

#[test]
fn a_checkpoint_without_entries_of_this_rank_leaves_it_empty() {
    let storage = saved(&filled(48, &[]), |_| {});
    let mut cache = filled(48, &[1]);
    loaded(&storage, &mut cache).unwrap();
    assert!(cache.is_empty() && cache.bytes() == 0);
    let storage = saved(&filled(48, &[]), |values| *values = Values::new());
    let mut cache = filled(48, &[1]);
    loaded(&storage, &mut cache).unwrap();
    assert!(cache.is_empty());
}

#[test]
fn a_load_that_fails_leaves_what_was_there_and_nothing_unread() {
    // The index names an output that the checkpoint does not have.
    let other = filled(64, &[1, 2]);
    let mut index = StateDict::new();
    other.save_state("cache", &mut index).unwrap();
    let storage = saved(&filled(64, &[1]), |values| *values = index.rank_values.clone());
    let mut cache = filled(64, &[5]);
    assert_eq!(loaded(&storage, &mut cache).unwrap_err().kind(), ErrorKind::Mismatch);
    assert!(has(&mut cache, 5) && !has(&mut cache, 1) && !has(&mut cache, 2));
    assert_eq!((cache.len(), cache.bytes()), (1, 16));
}

#[test]
fn a_malformed_index_is_refused() {
    let spec = |shape: &str, dtype: &str| format!("{{\"dtype\":\"{dtype}\",\"shape\":{shape}}}");
    let index = |trunk: &str, batch: &str, spec: &str| {
        format!("{{\"trunk\":\"{trunk}\",\"entries\":[{{\"batch\":\"{batch}\",\"spec\":{spec}}}]}}")
    };
    let hash = "07".repeat(16);
    let bad = [
        "[]".to_owned(),
        index("short", &hash, &spec("[4]", "F32")),
        index(&hash, "zz", &spec("[4]", "F32")),
        index(&hash, &hash, &spec("[18446744073709551615,16]", "F32")),
        index(&hash, &hash, &spec("[4]", "U64")),
        index(&hash, &hash, "3"),
    ];
    for text in bad {
        let storage = saved(&filled(64, &[]), |values| {
            values.set("cache.index", Value::Json(text.clone()));
        });
        let mut cache = filled(64, &[5]);
        let error = loaded(&storage, &mut cache).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Mismatch, "{text}: {error}");
        assert!(has(&mut cache, 5), "{text}");
    }
}

#[test]
fn an_output_larger_than_the_bound_is_not_made_room_for() {
    let hash = "07".repeat(16);
    let entry = |bytes: &str| {
        format!("{{\"batch\":\"{hash}\",\"spec\":{{\"dtype\":\"U8\",\"shape\":[{bytes}]}}}}")
    };
    let text = format!("{{\"trunk\":\"{hash}\",\"entries\":[{}]}}", entry("9000000000000000000"));
    let storage = saved(&filled(64, &[]), |values| values.set("cache.index", Value::Json(text)));
    let mut cache = ActivationCache::new(64);
    loaded(&storage, &mut cache).unwrap();
    assert!(cache.is_empty());
}
