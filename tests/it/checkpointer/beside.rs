//! Saves beside training.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tch_checkpoint::checkpointer::{
    AsyncMode, Checkpointer, CheckpointerConfig, InFlight, Outcome, Resume,
};
use tch_checkpoint::storage::MemoryStorage;
use tch_checkpoint::{Error, ErrorKind, ProcessGroup};
use tracing::Level;

use super::toy::{Toy, at, checkpointer, config, no_metrics, run, steps_of};
use crate::background::Signal;
use crate::harness::{logged, on_ranks, on_ranks_within};
use crate::hooked::Hooked;

#[test]
fn a_run_that_saves_beside_training_keeps_and_resumes_as_any_other() {
    for mode in [AsyncMode::Async, AsyncMode::AsyncOverlap] {
        let scratch = tempfile::tempdir().unwrap();
        let place = scratch.path().to_path_buf();
        let ends = on_ranks(2, move |group| {
            let config = CheckpointerConfig {
                save_every_steps: Some(5),
                keep_last: Some(2),
                save_mode: mode,
                ..config(&place)
            };
            drop(run(&group, config.clone(), 13, no_metrics).unwrap());
            let ran = run(&group, config, 27, no_metrics).unwrap();
            let right = ran.toy == Toy::after(27, group.rank().get());
            (ran.first, right, steps_of(&ran.checkpointer))
        });
        for (first, right, steps) in ends {
            assert_eq!(first, 13, "{mode:?}");
            assert!(right, "{mode:?}");
            // 13 was resumed.
            assert_eq!(steps, [27, 25, 13], "{mode:?}");
        }
    }
}

#[test]
fn what_is_stored_is_the_state_at_the_call() {
    let scratch = tempfile::tempdir().unwrap();
    let place = scratch.path().to_path_buf();
    let rights = on_ranks(2, move |group| {
        let mut checkpointer = checkpointer(&group, config(&place)).unwrap();
        let rank = group.rank().get();
        let mut toy = Toy::new();
        for step in 1..=20 {
            toy.step(step, rank);
            let started = toy.with(|parts| checkpointer.save_async(&at(step), parts)).unwrap();
            assert!(matches!(started, Outcome::Started(_)));
            // At once, while it is being written.
            toy.weights.fill(0xee);
            checkpointer.wait().unwrap().unwrap();
            toy = Toy::new();
            toy.with(|parts| checkpointer.load(&Resume::Step(step), parts)).unwrap();
            if toy != Toy::after(step, rank) {
                return false;
            }
        }
        true
    });
    assert_eq!(rights, [true, true]);
}

#[test]
fn a_second_save_waits_or_is_left_out_or_is_an_error() {
    for policy in [InFlight::Wait, InFlight::Skip, InFlight::Error] {
        // No save is committed before the gate opens.
        let gate = Arc::new(AtomicBool::new(policy == InFlight::Wait));
        let opened = gate.clone();
        let storage = Hooked::new(&MemoryStorage::new(), move |call| {
            let until = Instant::now() + Duration::from_secs(20);
            while call.operation == "rename" && !opened.load(Ordering::SeqCst) {
                assert!(Instant::now() < until, "the gate never opened");
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok(())
        });
        let outcomes = on_ranks(2, move |group| {
            let config = CheckpointerConfig {
                save_mode: AsyncMode::Async,
                in_flight: policy,
                ..config(Path::new("/runs"))
            };
            let storage = Arc::new(storage.clone());
            let mut checkpointer = Checkpointer::with_storage(&group, storage, config).unwrap();
            let mut toy = Toy::new();
            let first = toy.with(|parts| checkpointer.save_async(&at(1), parts)).unwrap();
            assert!(matches!(first, Outcome::Started(_)));
            let second = toy.with(|parts| checkpointer.save_async(&at(2), parts));
            gate.store(true, Ordering::SeqCst);
            checkpointer.wait().unwrap();
            let steps = steps_of(&checkpointer);
            (second.map_err(|e| e.kind()), steps)
        });
        assert_eq!(outcomes[0], outcomes[1]);
        match policy {
            InFlight::Wait => {
                assert!(matches!(outcomes[0].0, Ok(Outcome::Started(_))));
                assert_eq!(outcomes[0].1, [2, 1]);
            }
            InFlight::Skip => {
                assert_eq!(outcomes[0].0, Ok(Outcome::InFlight));
                assert_eq!(outcomes[0].1, [1]);
            }
            InFlight::Error => {
                assert_eq!(outcomes[0].0, Err(ErrorKind::InvalidInput));
                assert_eq!(outcomes[0].1, [1]);
            }
        }
    }
}

#[test]
fn an_error_beside_training_surfaces_at_the_next_call_on_every_rank() {
    let scratch = tempfile::tempdir().unwrap();
    let place = scratch.path().to_path_buf();
    let results = on_ranks(2, move |group| {
        let config = CheckpointerConfig { save_mode: AsyncMode::Async, ..config(&place) };
        let mut checkpointer = checkpointer(&group, config).unwrap();
        let mut toy = Toy::new();
        let started = toy.with(|parts| checkpointer.save_async(&at(1), parts)).unwrap();
        let Outcome::Started(_) = started else { panic!("{started:?}") };
        drop(started);
        checkpointer.wait().unwrap();
        // A directory in the way of a file of the next attempt cannot be made from outside, so the
        // whole place goes away instead.
        group
            .on_coordinator("spoil", || {
                std::fs::remove_dir_all(place.join("run")).unwrap();
                std::fs::write(place.join("run"), "a file").unwrap();
                Ok(())
            })
            .unwrap();
        let failed = toy
            .with(|parts| checkpointer.save_async(&at(2), parts))
            .and_then(|_| checkpointer.wait().map(|_| ()));
        failed.unwrap_err().kind()
    });
    assert_eq!(results[0], results[1]);
}

/// A step whose save goes on beside training counts as saved when that is committed, and not at all
/// if it fails.
#[test]
fn a_step_is_saved_before_only_if_its_save_beside_training_was_committed() {
    for fails in [false, true] {
        let memory = MemoryStorage::new();
        let (broken, held) = (Arc::new(AtomicBool::new(fails)), Arc::new(AtomicBool::new(true)));
        let (spoils, holds) = (broken.clone(), held.clone());
        let storage = Hooked::new(&memory, move |call| {
            let until = Instant::now() + Duration::from_secs(20);
            while call.operation == "rename" && holds.load(Ordering::SeqCst) {
                assert!(Instant::now() < until, "never let go");
                std::thread::sleep(Duration::from_millis(1));
            }
            match call.operation == "rename" && spoils.swap(false, Ordering::SeqCst) {
                true => Err(Error::new(ErrorKind::Storage, "EIO")),
                false => Ok(()),
            }
        });
        let outcomes = on_ranks(2, move |group| {
            let config =
                CheckpointerConfig { save_mode: AsyncMode::Async, ..config(Path::new("/runs")) };
            let storage = Arc::new(storage.clone());
            let mut checkpointer = Checkpointer::with_storage(&group, storage, config).unwrap();
            let mut toy = Toy::new();
            drop(toy.with(|parts| checkpointer.save_async(&at(5), parts)).unwrap());
            let beside = toy.with(|parts| checkpointer.save_async(&at(5), parts)).unwrap();
            assert_eq!(beside, Outcome::SavedBefore, "it goes on");
            held.store(false, Ordering::SeqCst);
            let first = toy.with(|parts| checkpointer.save(&at(5), parts));
            let steps = steps_of(&checkpointer);
            let second = toy.with(|parts| checkpointer.finish(&at(5), parts)).unwrap();
            assert_eq!(steps_of(&checkpointer), [5]);
            (first.map_err(|e| e.kind()), steps, matches!(second, Outcome::Saved(_)))
        });
        let expected = match fails {
            false => (Ok(Outcome::SavedBefore), vec![5], false),
            // What failed is told, and made up for.
            true => (Err(ErrorKind::Storage), vec![5], false),
        };
        assert_eq!(outcomes, [expected.clone(), expected], "fails: {fails}");
    }
}

#[test]
fn what_is_started_has_the_name_that_it_will_have() {
    let scratch = tempfile::tempdir().unwrap();
    let solo = ProcessGroup::solo();
    let mut names = Vec::new();
    for _ in 0..2 {
        let mut checkpointer = checkpointer(&solo, config(scratch.path())).unwrap();
        let mut toy = Toy::new();
        let started = toy.with(|parts| checkpointer.save_async(&at(1), parts)).unwrap();
        let committed = checkpointer.wait().unwrap().unwrap();
        assert_eq!(started, Outcome::Started(committed.name.clone()));
        names.push(committed.name);
    }
    assert_ne!(names[0], names[1]);
}

/// With `skip` nobody waits for a disk that hangs: what is left out tells, once the patience of the
/// group is over, not each time, and again later.
#[test]
fn a_save_that_does_not_end_is_warned_of_when_others_are_left_out() {
    let patience = Duration::from_millis(300);
    let results = on_ranks_within(patience, 1, move |group| {
        let signal = Signal::default();
        let hangs = signal.clone();
        let storage = Arc::new(Hooked::new(&MemoryStorage::new(), move |call| {
            if call.operation == "rename" { hangs.await_it() } else { Ok(()) }
        }));
        let config = CheckpointerConfig {
            save_mode: AsyncMode::Async,
            in_flight: InFlight::Skip,
            ..config(Path::new("/runs"))
        };
        let mut checkpointer = Checkpointer::with_storage(&group, storage, config).unwrap();
        let mut toy = Toy::new();
        let mut due = |checkpointer: &mut Checkpointer, step| {
            let mut outcome = None;
            let log = logged(Level::WARN, || {
                outcome = toy.with(|parts| checkpointer.save_async(&at(step), parts)).ok();
            });
            (outcome, log)
        };
        let began = Instant::now();
        assert!(matches!(due(&mut checkpointer, 1).0, Some(Outcome::Started(_))));
        let mut warned = Vec::new();
        for step in 2..1000 {
            let (outcome, log) = due(&mut checkpointer, step);
            assert_eq!(outcome, Some(Outcome::InFlight));
            if !log.is_empty() {
                assert!(log.contains("does not end") && log.contains("/runs/run"), "{log}");
                assert!(log.contains(&format!("left_out={}", step - 1)), "{log}");
                warned.push(began.elapsed());
            }
            if warned.len() == 2 {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let skipped = due(&mut checkpointer, 1000).0;
        assert_eq!(skipped, Some(Outcome::InFlight));
        signal.give();
        (warned, checkpointer.wait().unwrap().unwrap().report.left_out)
    });
    let (warned, left_out) = &results[0];
    assert_eq!(warned.len(), 2);
    assert!(warned[0] >= patience && warned[1] >= warned[0] + patience, "{warned:?}");
    assert!(*left_out > 2, "{left_out}");
}
