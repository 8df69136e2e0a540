//! Random histories of a directory through real saves and passes that crash anywhere, against a
//! model that knows what was saved and says of each checkpoint alone whether it must be there.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use tch_checkpoint::ErrorKind;
use tch_checkpoint::autosave::{KeepBest, Mode, Retention};
use tch_checkpoint::layout::SaveId;
use tch_checkpoint::storage::{Fault, FaultyStorage, MemoryStorage, Storage};

use crate::harness::*;
use crate::hooked::Hooked;
use crate::retention::{Save, pass_in, runs};

const EIO: i32 = 5;

#[derive(Debug, Clone)]
enum Event {
    /// Steps are made and saved. The save, or the pass after it, dies at an operation, if it has
    /// so many.
    Save { steps: u64, by_hand: bool, loss: Option<f64>, dies: Dies },
    /// The job begins again, from the newest or from the one in this place.
    Resume { place: Option<usize> },
    /// Somebody pins the one in this place.
    Pin { place: usize },
    /// Other rules from now on.
    Rules(Rules),
}

#[derive(Debug, Clone, Copy)]
enum Dies {
    Not,
    InSave(u64),
    InPass(u64),
}

#[derive(Debug, Clone, Copy)]
struct Rules {
    last: Option<u64>,
    best: Option<u64>,
    max: bool,
    every: Option<u64>,
}

impl Rules {
    fn retention(self) -> Retention {
        let count = |n: u64| n.try_into().unwrap();
        let mode = if self.max { Mode::Max } else { Mode::Min };
        let best = |n| KeepBest { count: count(n), monitor: "loss".to_owned(), mode };
        Retention {
            last: self.last.map(count),
            best: self.best.map(best),
            every_steps: self.every.map(count),
            ..Retention::default()
        }
    }

    fn are_none(self) -> bool {
        self.last.is_none() && self.best.is_none() && self.every.is_none()
    }
}

fn rules() -> impl Strategy<Value = Rules> {
    let count = |most: u64| prop::option::of(1..=most);
    (count(4), count(2), any::<bool>(), count(4)).prop_map(|(last, best, max, every)| Rules {
        last,
        best,
        max,
        every,
    })
}

fn events() -> impl Strategy<Value = Event> {
    let odd = vec![f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
    let loss = prop_oneof![
        3 => (0..3u32).prop_map(|n| Some(f64::from(n))),
        1 => prop::sample::select(odd).prop_map(Some),
        1 => Just(None),
    ];
    let dies = prop_oneof![
        2 => Just(Dies::Not),
        1 => (1..60u64).prop_map(Dies::InSave),
        3 => (1..100u64).prop_map(Dies::InPass),
    ];
    prop_oneof![
        10 => (0..3u64, 0..6u8, loss, dies).prop_map(|(steps, by_hand, loss, dies)| {
            Event::Save { steps, by_hand: by_hand == 0, loss, dies }
        }),
        2 => prop::option::of(0..6usize).prop_map(|place| Event::Resume { place }),
        1 => (0..6usize).prop_map(|place| Event::Pin { place }),
        1 => rules().prop_map(Event::Rules),
    ]
}

/// What the model knows of a checkpoint; there is one per step, named after it.
#[derive(Debug, Clone, Copy)]
struct Made {
    id: SaveId,
    loss: Option<f64>,
    automatic: bool,
    pinned: bool,
}

struct World {
    memory: MemoryStorage,
    made: BTreeMap<u64, Made>,
    rules: Rules,
    step: u64,
    resumed: Option<SaveId>,
}

impl World {
    fn new(rules: Rules) -> Self {
        let memory = MemoryStorage::new();
        for (directory, file) in [("runs", "notes.txt"), ("runs/plots", "loss.png")] {
            let dir = memory.create_dir_all(Path::new(directory)).unwrap();
            dir.create_file(file).unwrap().finish().unwrap();
        }
        Self { memory, made: BTreeMap::new(), rules, step: 0, resumed: None }
    }

    /// The checkpoints that are there, by what a directory shows.
    fn there(&self) -> Vec<String> {
        let mut names = entries(&self.memory, "runs");
        assert!(["notes.txt", "plots"].iter().all(|name| names.iter().any(|n| n == name)));
        names.retain(|name| name.starts_with('s'));
        names
    }

    fn happens(&mut self, event: &Event) {
        match event {
            Event::Save { steps, by_hand, loss, dies } => {
                self.step += steps;
                let automatic = !by_hand;
                let save = Save { loss: *loss, automatic, ..Save::at(self.step) };
                if let Some(id) = self.save(&save, *dies) {
                    self.pass(id, *dies);
                }
            }
            Event::Resume { place } => {
                let steps: Vec<u64> = self.made.keys().copied().collect();
                let from = place.and_then(|place| steps.get(place)).or(steps.last());
                self.step = from.copied().unwrap_or(0);
                self.resumed = from.map(|step| self.made[step].id);
            }
            Event::Pin { place } => {
                if let Some((step, made)) = self.made.iter_mut().nth(*place) {
                    let pinned = runs(&self.memory).create_file(&format!(".s{step}.pin"));
                    made.pinned |= pinned.and_then(|file| file.finish()).is_ok();
                }
            }
            Event::Rules(rules) => self.rules = *rules,
        }
    }

    /// The save id, unless the job died.
    fn save(&mut self, save: &Save, dies: Dies) -> Option<SaveId> {
        let faulty = FaultyStorage::new(Arc::new(self.memory.clone()));
        if let Dies::InSave(operation) = dies {
            faulty.fail_at(operation, Fault::Error(EIO), true);
        }
        let saved = save.save_in(&faulty);
        let uncertain = |e: &tch_checkpoint::Error| e.kind() == ErrorKind::DurabilityUncertain;
        if saved.is_ok() || saved.as_ref().is_err_and(uncertain) {
            let at = path(&format!("runs/{}", save.name)).into();
            let id = tch_checkpoint::catalog::find(&self.memory, &at).unwrap().manifest.save_id();
            let pinned = self.made.get(&save.step).is_some_and(|made| made.pinned);
            let made = Made { id, loss: save.loss, automatic: save.automatic, pinned };
            self.made.insert(save.step, made);
        }
        let names: Vec<String> = self.made.keys().map(|step| format!("s{step}")).collect();
        let mut there = self.there();
        there.sort_by_key(|name| name[1..].parse::<u64>().unwrap());
        assert_eq!(there, names, "after {saved:?}");
        saved.ok().map(|saved| saved.save_id).filter(|_| !matches!(dies, Dies::InSave(_)))
    }

    /// A pass, looked at before each change that it makes to the directory.
    fn pass(&mut self, saved: SaveId, dies: Dies) {
        let protected: Vec<SaveId> = self.resumed.into_iter().chain([saved]).collect();
        let stays = |step: &u64| self.must_stay(*step, &protected);
        let must: Vec<String> =
            self.made.keys().filter(|step| stays(step)).map(|step| format!("s{step}")).collect();
        let lost: Arc<Mutex<Vec<String>>> = Arc::default();
        let (seen, memory, watched) = (lost.clone(), self.memory.clone(), must.clone());
        let looking = Hooked::new(&self.memory, move |call| {
            if ["rename", "remove_file", "remove_dir"].contains(&call.operation) {
                let there = entries(&memory, "runs");
                let gone = watched.iter().filter(|name| !there.contains(name));
                seen.lock().unwrap().extend(gone.cloned());
            }
            Ok(())
        });
        let faulty = FaultyStorage::new(Arc::new(looking));
        let parent = runs(&faulty);
        faulty.reset();
        if let Dies::InPass(operation) = dies {
            faulty.fail_at(operation, Fault::Error(EIO), true);
        }
        let left = pass_in(parent.as_ref(), &self.rules.retention(), &protected);
        let died = matches!(dies, Dies::InPass(operation) if faulty.operations() >= operation);
        assert_eq!(*lost.lock().unwrap(), [""; 0], "gone in between");
        let there = self.there();
        assert!(must.iter().all(|name| there.contains(name)), "{must:?} must stay of {there:?}");
        if !died {
            let mut must = must;
            must.sort();
            assert_eq!((left.unwrap(), &there), (must.clone(), &must));
        }
        self.made.retain(|step, _| there.contains(&format!("s{step}")));
    }

    /// Whether one checkpoint stays, by comparing it with each other one.
    fn must_stay(&self, step: u64, protected: &[SaveId]) -> bool {
        let one = self.made[&step];
        let newest = self.made.keys().all(|other| *other <= step);
        if self.rules.are_none() || !one.automatic || one.pinned || newest {
            return true;
        }
        let ours = || self.made.iter().filter(|(_, made)| made.automatic);
        let newer = ours().filter(|(other, _)| **other > step).count() as u64;
        let finite = |made: &Made| made.loss.filter(|loss| loss.is_finite());
        let beats = |other: u64, made: &Made, mine: f64| match finite(made) {
            Some(theirs) if theirs == mine => other < step,
            Some(theirs) => (theirs > mine) == self.rules.max,
            None => false,
        };
        let better = |mine| ours().filter(|(n, made)| beats(**n, made, mine)).count() as u64;
        protected.contains(&one.id)
            || self.rules.last.is_some_and(|count| newer < count)
            || self.rules.best.is_some_and(|n| finite(&one).is_some_and(|mine| better(mine) < n))
            || self.rules.every.is_some_and(|n| step > 0 && step.is_multiple_of(n))
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn what_must_stay_is_there_and_whole_after_any_history(
        first in rules(),
        events in prop::collection::vec(events(), 1..14),
    ) {
        let mut world = World::new(first);
        for event in &events {
            world.happens(event);
        }
        for name in world.there() {
            assert_good(&world.memory, &format!("runs/{name}"));
        }
    }
}
