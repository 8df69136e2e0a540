//! Random histories of a run on a storage that fails anywhere: whatever fails, all ranks see the
//! same, what is committed stays, what is due is saved, and no step twice.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use tch_checkpoint::checkpointer::{
    AsyncMode, Checkpointer, CheckpointerConfig, InFlight, Outcome, Resume,
};
use tch_checkpoint::storage::{Fault, FaultyStorage, MemoryStorage};
use tch_checkpoint::{ErrorKind, ProcessGroup, Result};

use super::toy::{Toy, at, config};
use crate::harness::on_ranks;

const EVERY: u64 = 3;
const EIO: i32 = 5;

#[derive(Debug, Clone)]
enum Event {
    /// Trains so many steps, and then tells the checkpointer.
    Steps(u64),
    /// The program saves by its own calls.
    Save,
    SaveBeside,
    Wait,
    /// The job dies and begins again from the newest.
    Restart,
    Finish,
}

/// An event, and the operation of the storage that fails from its beginning on.
type Faulted = (Event, Option<u64>);

fn events() -> impl Strategy<Value = Vec<Faulted>> {
    let event = prop_oneof![
        6 => (1..5_u64).prop_map(Event::Steps),
        1 => Just(Event::Save),
        1 => Just(Event::SaveBeside),
        1 => Just(Event::Wait),
        1 => Just(Event::Restart),
        1 => Just(Event::Finish),
    ];
    prop::collection::vec((event, prop::option::weighted(0.4, 1..120_u64)), 1..14)
}

fn configs() -> impl Strategy<Value = CheckpointerConfig> {
    let modes = [AsyncMode::Disabled, AsyncMode::Async, AsyncMode::AsyncOverlap];
    let policies = prop::sample::select(vec![InFlight::Wait, InFlight::Skip]);
    let keep_last = prop::option::of(1..3_u64);
    (prop::sample::select(modes.to_vec()), policies, keep_last).prop_map(|(mode, policy, keep)| {
        let in_flight = if mode == AsyncMode::Disabled { InFlight::Wait } else { policy };
        CheckpointerConfig {
            save_every_steps: Some(EVERY),
            save_mode: mode,
            in_flight,
            keep_last: keep,
            ..config(Path::new("/runs"))
        }
    })
}

/// One rank of a run, and what it must find true.
struct Player {
    group: ProcessGroup,
    storage: FaultyStorage,
    config: CheckpointerConfig,
    checkpointer: Checkpointer,
    toy: Toy,
    step: u64,
    /// Where the checkpointer was told last that training is.
    told: u64,
    /// What is surely committed.
    committed: BTreeSet<u64>,
    started: Option<u64>,
    fails: bool,
    /// What is to be the same on every rank.
    seen: Vec<String>,
}

impl Player {
    fn new(group: ProcessGroup, storage: FaultyStorage, config: CheckpointerConfig) -> Self {
        let checkpointer =
            Checkpointer::with_storage(&group, Arc::new(storage.clone()), config.clone()).unwrap();
        Self {
            group,
            storage,
            config,
            checkpointer,
            toy: Toy::new(),
            step: 0,
            told: 0,
            committed: BTreeSet::new(),
            started: None,
            fails: false,
            seen: Vec::new(),
        }
    }

    fn arm(&mut self, fault: Option<u64>) {
        self.fails |= fault.is_some();
        let arm = || {
            self.storage.reset();
            fault.into_iter().for_each(|n| self.storage.fail_at(n, Fault::Error(EIO), false));
            Ok(())
        };
        self.group.on_coordinator("arm", arm).unwrap();
    }

    fn see<T: Debug>(&mut self, what: &str, seen: &Result<T>) {
        let seen = match seen {
            Ok(_) => "Ok".to_owned(),
            Err(error) => format!("{:?}: {error}", error.kind()),
        };
        self.seen.push(format!("{what} at {}: {seen}", self.step));
    }

    /// What follows from a save that was due or asked for.
    fn saved(&mut self, outcome: &Result<Outcome>) {
        match outcome {
            Ok(Outcome::Saved(_)) => {
                assert_ne!(self.started, Some(self.step), "saved twice");
                self.committed.extend(self.started.take());
                assert!(self.committed.insert(self.step), "{} is saved twice", self.step);
            }
            Ok(Outcome::Started(_)) => {
                self.committed.extend(self.started.replace(self.step));
                assert!(!self.committed.contains(&self.step), "{} is saved twice", self.step);
            }
            Ok(Outcome::SavedBefore) => {
                let is_known = self.committed.contains(&self.step);
                assert!(is_known || self.started == Some(self.step), "{} is not saved", self.step);
            }
            Ok(Outcome::InFlight) => assert_eq!(self.config.in_flight, InFlight::Skip),
            Ok(other) => panic!("{other:?}"),
            Err(error) => {
                assert!(self.fails, "{error}");
                assert_ne!(error.kind(), ErrorKind::Panic, "{error}");
                // The error may be that of the save before.
                let is_of_earlier = error.to_string().contains("is not affected");
                self.started = is_of_earlier.then_some(self.step);
            }
        }
    }

    fn play(&mut self, event: &Event) {
        let here = at(self.step);
        match event {
            Event::Steps(steps) => self.steps(*steps),
            Event::Save => {
                let saved = self.toy.with(|parts| self.checkpointer.save(&here, parts));
                self.see("save", &saved);
                self.saved(&saved);
            }
            Event::SaveBeside => {
                let saved = self.toy.with(|parts| self.checkpointer.save_async(&here, parts));
                self.see("save beside", &saved);
                self.saved(&saved);
            }
            Event::Wait => {
                let waited = self.checkpointer.wait();
                self.see("wait", &waited);
                let started = self.started.take();
                assert!(waited.is_ok() || self.fails);
                self.committed.extend(started.filter(|_| waited.is_ok()));
            }
            Event::Restart => self.restart(),
            Event::Finish => {
                let saved = self.toy.with(|parts| self.checkpointer.finish(&here, parts));
                self.see("finish", &saved);
                self.saved(&saved);
            }
        }
    }

    fn steps(&mut self, steps: u64) {
        for _ in 0..steps {
            self.step += 1;
            self.checkpointer.before_update();
            self.toy.step(self.step, self.group.rank().get());
        }
        let is_due = self.step / EVERY > self.told / EVERY;
        self.told = self.step;
        let stepped = self.toy.with(|parts| self.checkpointer.step_callback(&at(self.step), parts));
        self.see("step", &stepped);
        match stepped.map(|stepped| stepped.save.map(|(_, outcome)| outcome)) {
            Ok(None) => assert!(!is_due, "step {} was due", self.step),
            Ok(Some(outcome)) => {
                assert!(is_due, "step {} was not due", self.step);
                self.saved(&Ok(outcome));
            }
            Err(error) => self.saved(&Err(error)),
        }
    }

    /// The newest committed one is no older than what was told to be committed, and whole.
    fn restart(&mut self) {
        let made = || {
            let storage = Arc::new(self.storage.clone());
            Checkpointer::with_storage(&self.group, storage, self.config.clone())
        };
        let again = made();
        self.see("make", &again);
        let Ok(again) = again else {
            assert!(self.fails);
            return;
        };
        // What goes on beside training ends with the old one.
        self.checkpointer = again;
        let mut toy = Toy::new();
        let resumed = toy.with(|parts| self.checkpointer.resume(parts));
        self.see("resume", &resumed);
        let resumed = resumed.or_else(|_| {
            assert!(self.fails);
            self.arm(None);
            toy = Toy::new();
            toy.with(|parts| self.checkpointer.resume(parts))
        });
        let resumed = resumed.unwrap().map(|resumed| resumed.state.step);
        let step = resumed.unwrap_or(0);
        assert!(step >= self.committed.last().copied().unwrap_or(0), "{step} is too old");
        assert_eq!(toy, Toy::after(step, self.group.rank().get()));
        (self.toy, self.step, self.told, self.started) = (toy, step, step, None);
        self.committed.extend(resumed);
    }

    /// Without further faults the end is saved, once.
    fn end(&mut self) {
        self.arm(None);
        self.play(&Event::Finish);
        let here = at(self.step);
        let last = self.toy.with(|parts| self.checkpointer.finish(&here, parts)).unwrap();
        assert_eq!(last, Outcome::SavedBefore);
        let found = self.checkpointer.find_checkpoints().unwrap();
        assert_eq!(found[0].step, self.step);
        let mut steps: Vec<_> = found.iter().filter(|i| i.is_committed()).map(|i| i.step).collect();
        let all = steps.len();
        steps.dedup();
        assert!(steps.len() == all || self.fails, "{steps:?}");
        self.toy = Toy::new();
        self.toy.with(|parts| self.checkpointer.load(&Resume::Latest, parts)).unwrap();
        assert_eq!(self.toy, Toy::after(self.step, self.group.rank().get()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn whatever_fails_ranks_agree_and_nothing_is_lost(
        ranks in 1..4_u32,
        config in configs(),
        events in events(),
    ) {
        let storage = FaultyStorage::new(Arc::new(MemoryStorage::new()));
        let seen = on_ranks(ranks, move |group| {
            let mut player = Player::new(group, storage.clone(), config.clone());
            for (event, fault) in &events {
                player.arm(*fault);
                player.play(event);
            }
            player.end();
            player.seen
        });
        for of_rank in &seen {
            prop_assert_eq!(of_rank, &seen[0]);
        }
    }
}
