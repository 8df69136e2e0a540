//! What callbacks keep over a save and a load.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use tch::{Kind, Tensor};
use tch_checkpoint::catalog::find;
use tch_checkpoint::handler::{
    Callback, CallbackContext, CallbackState, EarlyStopping, LoadOptions, ModelCheckpoint,
    NNHandler,
};
use tch_checkpoint::storage::Storage;
use tch_checkpoint::{Atomicity, CheckpointPath, Error, ErrorKind, ProcessGroup, Result};

use crate::harness::*;
use crate::models::*;

/// Counts epochs, and keeps odd numbers and a tensor.
#[derive(Default)]
struct Counter {
    id: String,
    /// A setting: not part of the state.
    stride: i64,
    count: i64,
    odd: Vec<f64>,
    tensor: Option<Tensor>,
    fails: Option<&'static str>,
}

impl Counter {
    fn new(id: &str, stride: i64) -> Self {
        Self { id: id.to_owned(), stride, ..Self::default() }
    }

    fn failing(id: &str, fails: &'static str) -> Self {
        Self { fails: Some(fails), ..Self::new(id, 1) }
    }

    fn fail(&self, at: &str) -> Result<()> {
        match self.fails {
            Some(fails) if fails == at => Err(Error::new(ErrorKind::Storage, "it failed")),
            _ => Ok(()),
        }
    }
}

impl Callback for Counter {
    fn id(&self) -> String {
        self.id.clone()
    }
    fn on_epoch_end(&mut self, _: &mut CallbackContext<'_>) -> Result<()> {
        self.fail("hook")?;
        self.count += self.stride;
        self.odd = vec![f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0];
        self.tensor = Some(Tensor::from_slice(&[self.count, -1]).to_kind(Kind::BFloat16));
        Ok(())
    }
    fn save_state(&self) -> Result<CallbackState> {
        self.fail("save")?;
        let state = CallbackState::new().with("count", self.count).with("odd", self.odd.clone());
        Ok(self.tensor.iter().fold(state, |state, tensor| state.with_tensor("a.b", tensor)))
    }
    fn check_state(&self, state: &CallbackState) -> Result<()> {
        self.fail("check")?;
        state.values().int("count").map(|_| ())
    }
    fn load_state(&mut self, state: &CallbackState) -> Result<()> {
        self.fail("load")?;
        let (count, odd) = (state.values().int("count")?, state.values().floats("odd")?);
        (self.count, self.odd) = (count, odd);
        self.tensor = state.tensors().get("a.b").map(Tensor::shallow_clone);
        Ok(())
    }
}

const IDS: [&str; 4] = ["a", "a.b", "100% ü/\"x\"", "a%2Eb"];

fn counters(handler: &NNHandler<Net>, ids: &[&str]) -> Vec<i64> {
    ids.iter().map(|id| handler.callback::<Counter>(id).unwrap().count).collect()
}

/// A handler whose callbacks have counted two epochs, with strides 1, 2, 3, …
fn counted(group: &ProcessGroup, storage: &Arc<dyn Storage>, ids: &[&str]) -> NNHandler<Net> {
    let mut handler = usual(group, storage);
    for (id, stride) in ids.iter().zip(1..) {
        handler.add_callback(Counter::new(id, stride)).unwrap();
    }
    handler.train(2).unwrap();
    handler
}

#[test]
fn each_has_a_state_of_its_own_whatever_the_order_and_the_world_size() {
    let (memory, storage) = memory();
    on_ranks(2, move |group| {
        counted(&group, &storage, &IDS).save("runs/e2").unwrap();
    });
    for n in [1, 2, 3] {
        let storage: Arc<dyn Storage> = Arc::new(memory.clone());
        on_ranks(n, move |group| {
            let mut again = loaded(&group, &storage, "runs/e2").unwrap();
            for id in IDS.iter().rev() {
                again.add_callback(Counter::new(id, 10)).unwrap();
            }
            assert_eq!(counters(&again, &IDS), [2, 4, 6, 8]);
            let first = again.callback::<Counter>("a.b").unwrap();
            let bits: Vec<u64> = first.odd.iter().map(|odd| odd.to_bits()).collect();
            let odd = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0].map(f64::to_bits);
            assert_eq!(bits, odd);
            let tensor = first.tensor.as_ref().unwrap();
            assert_eq!(tensor.kind(), Kind::BFloat16);
            assert_eq!(Vec::<f32>::try_from(tensor.to_kind(Kind::Float)).unwrap(), [4.0, -1.0]);
            let report = again.callback_report();
            assert_eq!(report.restored.len(), 4);
            assert!(report.only_in_checkpoint.is_empty() && report.only_in_handler.is_empty());
            // Settings are those of now.
            again.train(1).unwrap();
            assert_eq!(counters(&again, &IDS), [12, 14, 16, 18]);
        });
    }
}

#[test]
fn handlers_of_one_process_share_nothing() {
    on_ranks(1, |group| {
        let (_, storage) = memory();
        let first = counted(&group, &storage, &["a"]);
        let second = usual(&group, &storage);
        assert!(second.callback::<Counter>("a").is_none());
        assert_eq!(second.history().epochs(), 0);
        first.save("runs/a").unwrap();
        let mut third = loaded(&group, &storage, "runs/a").unwrap();
        let fourth = loaded(&group, &storage, "runs/a").unwrap();
        third.add_callback(Counter::new("a", 1)).unwrap();
        third.train(1).unwrap();
        assert_eq!(counters(&first, &["a"]), [2]);
        assert_eq!(counters(&third, &["a"]), [3]);
        assert_eq!(fourth.callback_report().only_in_checkpoint, ["a"]);
    });
}

#[test]
fn a_state_that_nobody_claims_stays_in_later_saves_and_is_reported_once() {
    let (_, storage) = memory();
    on_ranks(2, move |group| {
        counted(&group, &storage, &["a", "b"]).save("runs/e2").unwrap();
        let mut without = loaded(&group, &storage, "runs/e2").unwrap();
        without.add_callback(Counter::new("b", 1)).unwrap();
        without.add_callback(Counter::new("new", 1)).unwrap();
        let report = without.callback_report();
        assert_eq!(report.restored, ["b"]);
        assert_eq!(report.only_in_checkpoint, ["a"]);
        assert_eq!(report.only_in_handler, ["new"]);
        let (trained, told) = captured(|| without.train(1));
        trained.unwrap();
        assert_eq!(told.contains("one side only"), group.is_coordinator(), "{told}");
        assert!(!captured(|| without.train(1)).1.contains("one side only"));
        without.save("runs/e4").unwrap();

        let mut again = loaded(&group, &storage, "runs/e4").unwrap();
        for id in ["new", "b", "a"] {
            again.add_callback(Counter::new(id, 1)).unwrap();
        }
        assert_eq!(counters(&again, &["a", "b", "new"]), [2, 6, 2]);
        assert!(again.callback::<Counter>("a").unwrap().tensor.is_some());
        // A handler that was never loaded has nothing to compare.
        assert_eq!(usual(&group, &storage).callback_report(), Default::default());
    });
}

#[test]
fn states_can_be_skipped() {
    let (_, storage) = memory();
    on_ranks(2, move |group| {
        counted(&group, &storage, &["a"]).save("runs/e2").unwrap();
        let skip = LoadOptions { skip_callbacks: true, ..options(&group, &storage) };
        let mut cold = equip(NNHandler::load("runs/e2", skip).unwrap());
        cold.add_callback(Counter::new("a", 1)).unwrap();
        assert_eq!(counters(&cold, &["a"]), [0]);
        assert_eq!(cold.callback_report(), Default::default());
        assert_eq!(cold.epoch(), 2);
        cold.train(1).unwrap();

        let skip =
            LoadOptions { skip_callbacks: true, skip_optimizer: true, ..options(&group, &storage) };
        assert!(NNHandler::<Net>::load("runs/e2", skip).unwrap().optimizer().is_none());
        let skip = LoadOptions { skip_optimizer: true, ..options(&group, &storage) };
        let warm = NNHandler::<Net>::load("runs/e2", skip).unwrap();
        assert_eq!(warm.callback_report().only_in_checkpoint, ["a"]);
    });
}

#[test]
fn a_state_that_does_not_fit_is_refused_by_name_and_the_callback_is_not_added() {
    on_ranks(1, |group| {
        let (_, storage) = memory();
        let mut handler = usual(&group, &storage);
        handler.add_callback(Counter::new("x", 1)).unwrap();
        handler.add_callback(Counter::new("y", 1)).unwrap();
        handler.train(1).unwrap();
        handler.save("runs/a").unwrap();
        let mut again = loaded(&group, &storage, "runs/a").unwrap();
        let strangers: [Result<()>; 3] = [
            again.add_callback(EarlyStopping::new().id("x")),
            again.add_callback(ModelCheckpoint::new("runs", "m").id("x")),
            again.add_callback(Counter::failing("x", "load")),
        ];
        for refused in strangers {
            let error = refused.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Mismatch, "{error}");
            assert!(error.message().contains("`x`"), "{error}");
            assert!(error.help().unwrap().contains("skip_callbacks"), "{error}");
        }
        // Not lost by that.
        again.add_callback(Counter::new("x", 1)).unwrap();
        assert_eq!(counters(&again, &["x"]), [1]);
        assert_eq!(again.callback_report().only_in_checkpoint, ["y"]);
    });
}

#[test]
fn restoring_gives_live_callbacks_their_state_and_keeps_others_for_later() {
    let (_, storage) = memory();
    on_ranks(2, move |group| {
        counted(&group, &storage, &["a", "b"]).save("runs/e2").unwrap();
        for atomicity in [Atomicity::Atomic, Atomicity::InPlace] {
            let mut live = usual(&group, &storage);
            live.add_callback(Counter::new("a", 5)).unwrap();
            live.add_callback(Counter::new("c", 5)).unwrap();
            live.train(1).unwrap();
            live.restore("runs/e2", atomicity).unwrap();
            assert_eq!(counters(&live, &["a", "c"]), [2, 5]);
            let report = live.callback_report();
            assert_eq!(report.restored, ["a"]);
            assert_eq!(report.only_in_checkpoint, ["b"]);
            assert_eq!(report.only_in_handler, ["c"]);
            live.add_callback(Counter::new("b", 1)).unwrap();
            assert_eq!(counters(&live, &["b"]), [4]);
            live.train(1).unwrap();
            assert_eq!(counters(&live, &["a", "b", "c"]), [7, 5, 10]);
        }
    });
}

#[test]
fn a_refused_state_leaves_a_live_handler_as_it_was() {
    let (_, storage) = memory();
    let failed = on_ranks(2, move |group| {
        counted(&group, &storage, &["a"]).save("runs/e2").unwrap();
        let mut live = usual(&group, &storage);
        let fails = if group.is_coordinator() { "nothing" } else { "check" };
        live.add_callback(Counter::failing("a", fails)).unwrap();
        live.train(1).unwrap();
        let before = live.state_hash().unwrap();
        let failed = live.restore("runs/e2", Atomicity::Atomic);
        assert_eq!(live.state_hash().unwrap(), before);
        assert_eq!(live.callback_report(), Default::default());
        live.train(1).unwrap();

        // One that only finds out while loading: the load stands, and says what is lost.
        let mut live = usual(&group, &storage);
        live.add_callback(Counter::failing("a", "load")).unwrap();
        let (restored, told) = captured(|| live.restore("runs/e2", Atomicity::Atomic));
        restored.unwrap();
        assert!(told.contains("callback=\"a\""), "{told}");
        assert_eq!(live.callback_report().only_in_handler, ["a"]);
        live.train(1).unwrap();
        failed
    });
    let error = one_error(&failed);
    assert_eq!(error.kind(), ErrorKind::Mismatch, "{error}");
    assert!(error.message().contains("`a`"), "{error}");
}

#[test]
fn a_state_that_cannot_be_had_fails_the_save_on_every_rank() {
    let (memory, storage) = memory();
    let failed = on_ranks(2, move |group| {
        let mut handler = usual(&group, &storage);
        let fails = if group.is_coordinator() { "nothing" } else { "save" };
        handler.add_callback(Counter::failing("a", fails)).unwrap();
        handler.save("runs/a")
    });
    let error = one_error(&failed);
    assert!(error.message().contains("`a`"), "{error}");
    assert_eq!(entries(&memory, "runs"), [""; 0]);
}

#[test]
fn after_a_failure_on_one_rank_the_coordinators_state_is_stored() {
    for weak in [0, 1] {
        let (_, storage) = memory();
        on_ranks(2, move |group| {
            let mut handler = usual(&group, &storage);
            let fails = if group.rank().get() == weak { "hook" } else { "nothing" };
            handler.add_callback(Counter::failing("a", fails)).unwrap();
            handler.train(2).unwrap();
            handler.save("runs/a").unwrap();
            let mut again = loaded(&group, &storage, "runs/a").unwrap();
            again.add_callback(Counter::new("a", 1)).unwrap();
            let expected = if weak == 0 { 0 } else { 2 };
            assert_eq!(counters(&again, &["a"]), [expected]);
            let tensor = again.callback::<Counter>("a").unwrap().tensor.as_ref();
            assert_eq!(tensor.is_some(), weak == 1);
        });
    }
}

/// What is on disk, where later versions have to find it; and nothing without callbacks.
#[test]
fn stored_names_are_those_of_the_format() {
    on_ranks(1, |group| {
        let (memory, storage) = memory();
        counted(&group, &storage, &["a.b%"]).save("runs/with").unwrap();
        let mut without = usual(&group, &storage);
        without.train(1).unwrap();
        without.save("runs/without").unwrap();
        let manifest = |path: &str| {
            let path = CheckpointPath::parse(path).unwrap();
            find(&memory, &path.into()).unwrap().manifest
        };
        let with = manifest("runs/with");
        let values: BTreeMap<&str, _> = with.values().iter().collect();
        assert_eq!(with.values().json::<Vec<String>>("callbacks").unwrap(), ["a.b%"]);
        assert!(values.contains_key("callbacks.a%2Eb%25.count"));
        let tensor = with.tensor("callbacks.a%2Eb%25.a.b").unwrap();
        assert_eq!(tensor.component.as_str(), "callbacks");
        let without = manifest("runs/without");
        assert!(!without.values().iter().any(|(name, _)| name.starts_with("callbacks")));
        assert!(without.tensors().iter().all(|t| t.component.as_str() != "callbacks"));
        let files = entries(&memory, "runs/with");
        assert!(files.iter().any(|name| name.starts_with("callbacks-")), "{files:?}");
        assert!(memory.read(Path::new("runs/with/manifest.bin")).is_ok());
    });
}
