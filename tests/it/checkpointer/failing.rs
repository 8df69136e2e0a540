//! Saves that fail: they do not count, and what is due after them is saved.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tch_checkpoint::checkpointer::{
    AsyncMode, Checkpointer, CheckpointerConfig, InFlight, Outcome, Reason,
};
use tch_checkpoint::storage::MemoryStorage;
use tch_checkpoint::{Error, ErrorKind, ProcessGroup};

use super::toy::{Toy, at, config, steps_of};
use crate::harness::on_ranks;
use crate::hooked::Hooked;

/// A storage on which the next so many commits fail, and take a moment.
#[derive(Clone)]
struct Failing {
    storage: Hooked,
    left: Arc<AtomicU32>,
}

impl Failing {
    fn new() -> Self {
        let left = Arc::new(AtomicU32::new(0));
        let count = left.clone();
        let storage = Hooked::new(&MemoryStorage::new(), move |call| {
            let to = call.path.file_name().unwrap().to_str().unwrap();
            let is_hidden_or_link = [".", "latest", "best"].iter().any(|p| to.starts_with(p));
            if call.operation != "rename" || is_hidden_or_link {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(5));
            let one_less = |left: u32| left.checked_sub(1);
            match count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less) {
                Ok(_) => Err(Error::new(ErrorKind::Storage, "no commit")),
                Err(_) => Ok(()),
            }
        });
        Self { storage, left }
    }

    fn checkpointer(&self, group: &ProcessGroup, config: CheckpointerConfig) -> Checkpointer {
        Checkpointer::with_storage(group, Arc::new(self.storage.clone()), config).unwrap()
    }

    /// From here on, for all ranks.
    fn fail(&self, group: &ProcessGroup, commits: u32) {
        let set = || {
            self.left.store(commits, Ordering::SeqCst);
            Ok(())
        };
        group.on_coordinator("fail", set).unwrap();
    }
}

fn beside() -> CheckpointerConfig {
    CheckpointerConfig { save_mode: AsyncMode::Async, ..config(Path::new("/runs")) }
}

#[test]
fn a_save_beside_training_that_fails_does_not_count() {
    let failing = Failing::new();
    let ends = on_ranks(2, move |group| {
        let mut checkpointer = failing.checkpointer(&group, beside());
        let mut toy = Toy::new();
        failing.fail(&group, 1);
        let started = toy.with(|parts| checkpointer.save_async(&at(1), parts)).unwrap();
        assert!(matches!(started, Outcome::Started(_)));
        assert_eq!(checkpointer.wait().unwrap_err().kind(), ErrorKind::Storage);
        let again = toy.with(|parts| checkpointer.save(&at(1), parts)).unwrap();
        assert!(matches!(again, Outcome::Saved(_)), "{again:?}");
        steps_of(&checkpointer)
    });
    assert_eq!(ends, [[1], [1]]);
}

#[test]
fn the_end_makes_up_for_a_save_that_failed_and_says_so() {
    let failing = Failing::new();
    let ends = on_ranks(2, move |group| {
        let mut checkpointer = failing.checkpointer(&group, beside());
        let mut toy = Toy::new();
        failing.fail(&group, 1);
        let _ = toy.with(|parts| checkpointer.save_async(&at(1), parts)).unwrap();
        let finished = toy.with(|parts| checkpointer.finish(&at(1), parts));
        assert_eq!(finished.unwrap_err().kind(), ErrorKind::Storage);
        steps_of(&checkpointer)
    });
    assert_eq!(ends, [[1], [1]]);
}

#[test]
fn a_save_that_failed_keeps_none_after_it_from_being_saved() {
    let failing = Failing::new();
    let ends = on_ranks(2, move |group| {
        let every = CheckpointerConfig { save_every_steps: Some(1), ..beside() };
        let mut checkpointer = failing.checkpointer(&group, every);
        let mut toy = Toy::new();
        failing.fail(&group, 1);
        let _ = toy.with(|parts| checkpointer.step_callback(&at(1), parts)).unwrap();
        let error = toy.with(|parts| checkpointer.step_callback(&at(2), parts)).unwrap_err();
        assert!(error.to_string().contains("the one that is due now"), "{error}");
        checkpointer.wait().unwrap().unwrap();
        failing.fail(&group, 1);
        let _ = toy.with(|parts| checkpointer.step_callback(&at(3), parts)).unwrap();
        toy.with(|parts| checkpointer.save_as("by hand", &at(4), parts)).unwrap_err();
        steps_of(&checkpointer)
    });
    assert_eq!(ends, [[4, 2], [4, 2]]);
}

#[test]
fn a_save_waits_for_the_one_of_its_step_and_makes_up_for_it() {
    for (in_flight, commits) in [(InFlight::Skip, 0), (InFlight::Error, 0), (InFlight::Wait, 1)] {
        let failing = Failing::new();
        let ends = on_ranks(2, move |group| {
            let config = CheckpointerConfig { in_flight, ..beside() };
            let mut checkpointer = failing.checkpointer(&group, config);
            let mut toy = Toy::new();
            failing.fail(&group, commits);
            let _ = toy.with(|parts| checkpointer.save_async(&at(1), parts)).unwrap();
            let saved = toy.with(|parts| checkpointer.save(&at(1), parts));
            (saved.map_err(|e| e.kind()), steps_of(&checkpointer))
        });
        let expected = match commits {
            0 => Ok(Outcome::SavedBefore),
            _ => Err(ErrorKind::Storage),
        };
        assert_eq!(ends, [(expected.clone(), vec![1]), (expected, vec![1])]);
    }
}

#[test]
fn the_best_of_a_save_that_failed_is_still_to_be_saved() {
    for save_mode in [AsyncMode::Disabled, AsyncMode::Async] {
        let failing = Failing::new();
        let config = CheckpointerConfig {
            save_on_best: true,
            monitor: Some("loss".to_owned()),
            save_mode,
            ..config(Path::new("/runs"))
        };
        let group = ProcessGroup::solo();
        let mut checkpointer = failing.checkpointer(&group, config);
        let mut toy = Toy::new();
        let mut step = |step: u64, loss: f64| {
            let at = at(step).metric("loss", loss);
            let stepped = toy.with(|parts| checkpointer.step_callback(&at, parts));
            stepped.and_then(|stepped| checkpointer.wait().map(|_| stepped.save.map(|s| s.0)))
        };
        failing.fail(&group, 1);
        assert!(step(1, 0.5).is_err(), "{save_mode:?}");
        assert_eq!(step(2, 0.7).unwrap(), Some(Reason::Best), "{save_mode:?}");
        assert_eq!(step(3, 0.8).unwrap(), None);
        assert_eq!(step(4, 0.6).unwrap(), Some(Reason::Best));
    }
}
