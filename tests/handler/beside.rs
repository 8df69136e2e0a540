//! Automatic saves that go on beside training.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tch_checkpoint::autosave::Every;
use tch_checkpoint::group::ProcessGroup;
use tch_checkpoint::handler::{AsyncMode, InFlight, ModelCheckpoint, NNHandler};
use tch_checkpoint::storage::{Fault, MemoryStorage, Storage};
use tch_checkpoint::torch::{AdamW, Sharded};
use tch_checkpoint::{ErrorKind, Result};

use crate::harness::*;
use crate::hooked::Hooked;
use crate::models::*;
use crate::parts::{SCHEDULES, ema};

const MODES: [AsyncMode; 2] = [AsyncMode::Async, AsyncMode::AsyncOverlap];

/// Shared state of the optimizer, a schedule by steps, and averages, which validation swaps in;
/// weights large enough that a step that does not wait meets the copy.
fn full(group: &ProcessGroup, storage: &Arc<dyn Storage>, hidden: i64) -> NNHandler<Net> {
    let builder = NNHandler::builder(NetConfig { hidden, dropout: 0.0 });
    let builder = builder.process_group(group).storage(storage.clone()).seed(5);
    let mut handler = validated(equip(builder.build().unwrap()));
    handler.set_optimizer(Sharded(AdamW { lr: 1e-2, ..AdamW::default() })).unwrap();
    (SCHEDULES[1].1)(&mut handler).unwrap();
    handler.set_ema(ema()).unwrap();
    handler
}

fn validated(mut handler: NNHandler<Net>) -> NNHandler<Net> {
    handler.set_val_loader(data(5), LOADER);
    handler
}

/// Trains two epochs, saving after each step; the state in each checkpoint, and at the end.
fn hashes(mode: AsyncMode, n: u32, hidden: i64) -> Vec<(String, String)> {
    let (memory, _) = memory();
    let inner = memory.clone();
    let ends = on_ranks(n, move |group| {
        let storage: Arc<dyn Storage> = Arc::new(inner.clone());
        let mut handler = full(&group, &storage, hidden);
        handler.auto_save(Every::steps(1).unwrap(), "runs", "s{step}").unwrap().mode(mode);
        handler.train(2).unwrap();
        handler.state_hash().unwrap()
    });
    let names = entries(&memory, "runs");
    assert_eq!(names, ["s1", "s2", "s3", "s4", "s5", "s6"], "{mode:?}");
    let mut all = vec![("end".to_owned(), ends[0].clone())];
    for name in names {
        let inner = memory.clone();
        let path = format!("runs/{name}");
        let found = on_ranks(n, move |group| {
            let storage: Arc<dyn Storage> = Arc::new(inner.clone());
            let mut again = validated(loaded(&group, &storage, &path).unwrap());
            again.disable_auto_save();
            let before = again.state_hash().unwrap();
            again.train(2 - again.epoch()).unwrap();
            (before, again.state_hash().unwrap())
        });
        assert_eq!(found[0].1, ends[0], "{mode:?}, resumed from {name}");
        all.push((name, found[0].0.clone()));
    }
    all
}

#[test]
fn every_mode_saves_the_same_and_resumes_bit_for_bit() {
    for n in [1, 2] {
        let expected = hashes(AsyncMode::Disabled, n, 6);
        for mode in MODES {
            assert_eq!(hashes(mode, n, 6), expected, "{mode:?} on {n} ranks");
        }
    }
}

/// What a save overlaps with is long here: without waiting for the copy it would fail.
#[test]
fn the_step_and_the_averages_wait_for_the_copy() {
    on_ranks(1, |group| {
        let (memory, storage) = memory();
        let mut handler = full(&group, &storage, 400_000);
        let every = Every::steps(3).unwrap();
        handler.auto_save(every, "runs", "s{step}").unwrap().mode(AsyncMode::AsyncOverlap);
        handler.train(2).unwrap();
        assert_eq!(entries(&memory, "runs"), ["s3", "s6"]);
    });
}

/// No save is committed before the flag is set.
fn gated(memory: &MemoryStorage, open: &Arc<AtomicBool>) -> Arc<dyn Storage> {
    let open = open.clone();
    Arc::new(Hooked::new(memory, move |call| {
        let until = Instant::now() + Duration::from_secs(20);
        let waits = call.operation == "rename" && !call.path.ends_with("latest.json");
        while waits && !open.load(Ordering::SeqCst) {
            assert!(Instant::now() < until, "the gate never opened");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }))
}

/// Opens the gate when a rank begins to wait for the save.
#[derive(Clone)]
struct OpensAtLog(Arc<AtomicBool>);

impl std::io::Write for OpensAtLog {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if String::from_utf8_lossy(bytes).contains("waiting for a save beside training") {
            self.0.store(true, Ordering::SeqCst);
        }
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Trains two epochs; the first save is in flight until something waits for it.
fn train_gated(memory: &MemoryStorage, in_flight: InFlight) -> Vec<Result<()>> {
    let (inner, open) = (memory.clone(), Arc::new(AtomicBool::new(false)));
    on_ranks(2, move |group| {
        let mut handler = usual(&group, &gated(&inner, &open));
        let every = Every::steps(1).unwrap();
        let saver = handler.auto_save(every, "runs", "s{step}").unwrap();
        saver.mode(AsyncMode::Async).in_flight(in_flight);
        let log = OpensAtLog(open.clone());
        let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG);
        let subscriber = subscriber.with_ansi(false).with_writer(move || log.clone()).finish();
        let trained = tracing::subscriber::with_default(subscriber, || handler.train(2));
        assert!(handler.wait_for_save().unwrap().is_none(), "`train` has waited");
        trained
    })
}

#[test]
fn a_save_that_is_due_meanwhile_waits_or_is_left_out_but_for_the_last() {
    for (policy, names) in [
        (InFlight::Wait, &["s1", "s2", "s3", "s4", "s5", "s6"][..]),
        (InFlight::Skip, &["s1", "s6"]),
    ] {
        let (memory, _) = memory();
        for trained in train_gated(&memory, policy) {
            trained.unwrap();
        }
        assert_eq!(entries(&memory, "runs"), names, "{policy:?}");
    }
}

#[test]
fn a_save_that_is_due_meanwhile_is_an_error_if_asked_for_and_the_other_is_not_affected() {
    let (memory, _) = memory();
    let error = one_error(&train_gated(&memory, InFlight::Error));
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.message().contains("still going on"), "{error}");
    assert_eq!(entries(&memory, "runs"), ["s1"]);
}

#[test]
fn a_save_that_fails_beside_training_is_every_ranks_error_and_leaves_the_one_before() {
    for (rank, nth) in [(0, 2), (0, 8), (1, 2), (1, 3)] {
        let stage = Stage::new(rank);
        let inner = stage.clone();
        let results = on_ranks(2, move |group| {
            let mut handler = usual(&group, &inner.storage(&group));
            let saver = handler.auto_save(1, "runs", "e{epoch}").unwrap();
            saver.overwrite(true).mode(AsyncMode::AsyncOverlap);
            handler.train(1).unwrap();
            if inner.is_failing(&group) {
                let looks = u64::from(group.is_coordinator());
                let at = inner.faulty.operations() + looks + nth;
                inner.faulty.fail_at(at, Fault::Error(28), true);
            }
            let failed = handler.train(2);
            assert!((2..=3).contains(&handler.epoch()), "{}", handler.epoch());
            if inner.is_failing(&group) {
                inner.faulty.reset();
            }
            assert_eq!(visible(&inner.memory, "runs"), ["e1"]);
            let last = 4 - handler.epoch();
            handler.train(last).unwrap();
            failed
        });
        let error = one_error(&results);
        assert_eq!((error.kind(), error.os_code()), (ErrorKind::Storage, Some(28)), "{error}");
        assert_eq!(error.rank().map(tch_checkpoint::Rank::get), Some(rank));
        // That it was the last one that was committed is still known.
        assert_eq!(entries(&stage.memory, "runs"), ["e4"], "rank {rank}, operation {nth}");
    }
}

#[test]
fn a_failure_beside_training_hinders_no_save_after_it() {
    let stage = Stage::new(1);
    let inner = stage.clone();
    let results = on_ranks(2, move |group| {
        let mut handler = usual(&group, &inner.storage(&group));
        let saver = handler.auto_save(1, "runs", "e{epoch}").unwrap();
        saver.overwrite(true).mode(AsyncMode::Async);
        handler.train(1).unwrap();
        if inner.is_failing(&group) {
            let at = inner.faulty.operations() + 3;
            inner.faulty.fail_at(at, Fault::Error(28), false);
        }
        handler.train(2)
    });
    let error = one_error(&results);
    assert_eq!(error.os_code(), Some(28), "{error}");
    assert!(error.to_string().contains("is not affected"), "{error}");
    assert_eq!(visible(&stage.memory, "runs"), ["e3"]);
}

#[test]
fn one_is_kept_across_resumes_beside_training_too() {
    let (memory, _) = memory();
    for from in [None, Some("runs/latest"), Some("runs/latest")] {
        let inner = memory.clone();
        on_ranks(2, move |group| {
            let storage: Arc<dyn Storage> = Arc::new(inner.clone());
            let mut handler = match from {
                None => {
                    let mut handler = usual(&group, &storage);
                    let saver = handler.auto_save(1, "runs", "e{epoch}").unwrap();
                    saver.overwrite(true).mode(AsyncMode::Async);
                    handler
                }
                Some(path) => loaded(&group, &storage, path).unwrap(),
            };
            handler.train(2).unwrap();
        });
    }
    assert_eq!(entries(&memory, "runs"), ["e6"]);
}

/// A callback that saves, and a save by hand, come after the one that goes on.
#[test]
fn other_saves_wait_for_the_one_beside_training() {
    let (memory, _) = memory();
    let inner = memory.clone();
    let hashes = on_ranks(2, move |group| {
        let storage: Arc<dyn Storage> = Arc::new(inner.clone());
        let mut handler = scripted(usual(&group, &storage), &[3.0, 2.0, 1.0]);
        let best = ModelCheckpoint::new("runs", "best{epoch}").monitor("m").overwrite(true);
        handler.add_callback(best).unwrap();
        let saver = handler.auto_save(Every::steps(1).unwrap(), "runs", "s{step}").unwrap();
        saver.keep_last(2).unwrap().mode(AsyncMode::AsyncOverlap);
        handler.train(3).unwrap();
        handler.save("runs/by_hand").unwrap();
        handler.state_hash().unwrap()
    });
    assert_eq!(entries(&memory, "runs"), ["best3", "by_hand", "s8", "s9"]);
    for name in ["best3", "by_hand", "s9"] {
        let (solo, storage) = (ProcessGroup::solo(), Arc::new(memory.clone()) as Arc<dyn Storage>);
        let again = loaded(&solo, &storage, &format!("runs/{name}")).unwrap();
        assert_eq!(again.state_hash().unwrap(), hashes[0], "{name}");
    }
}
