//! 10,000 random histories against a model that says of each checkpoint alone whether it stays.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::manifest::CheckpointState;

/// Something that happens to a directory of checkpoints.
#[derive(Debug, Clone)]
enum Event {
    /// Steps are made, and a checkpoint; then a pass, which dies after so many removals.
    Save { steps: u64, by_hand: bool, loss: Option<f64>, survives: usize },
    /// The job dies and resumes from the newest, or from the one in this place.
    Resume { newest: bool, place: usize },
    /// The job dies and begins anew.
    Fresh,
    /// Another job that works in the same directory goes on.
    OtherJob,
    /// One line of code saves beside the jobs.
    Aside { steps: u64, loss: Option<f64> },
    /// Somebody copies the one in this place.
    Copy { place: usize },
    /// The one in this place is pinned, or no longer.
    Pin { place: usize },
    /// The one in this place turns out to be damaged.
    Damage { place: usize },
    /// An attempt is left behind, or a file of somebody's.
    Litter,
    /// The rules change.
    Rules(Retention),
}

fn losses() -> impl Strategy<Value = Option<f64>> {
    prop_oneof![
        4 => (-2..3i32).prop_map(|n| Some(f64::from(n))),
        1 => prop::sample::select(vec![f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0])
            .prop_map(Some),
        1 => Just(None),
    ]
}

fn rules() -> impl Strategy<Value = Retention> {
    let count = |most: u64| prop::option::of((1..=most).prop_map(|n| NonZeroU64::new(n).unwrap()));
    let pinned = prop::sample::select(vec![vec![], vec![], vec![], vec!["*1".to_owned()]]);
    (count(5), count(3), any::<bool>(), count(4), count(2), pinned).prop_map(
        |(last, best, max, every_steps, every_epochs, pinned)| {
            let mode = if max { Mode::Max } else { Mode::Min };
            let best = best.map(|count| KeepBest { count, monitor: "loss".to_owned(), mode });
            Retention { last, best, every_steps, every_epochs, pinned }
        },
    )
}

fn events() -> impl Strategy<Value = Event> {
    let place = 0..8usize;
    prop_oneof![
        12 => (0..3u64, 0..6u8, losses(), 0..4usize).prop_map(|(steps, by_hand, loss, survives)| {
            Event::Save { steps, by_hand: by_hand == 0, loss, survives }
        }),
        2 => (any::<bool>(), place.clone()).prop_map(|(newest, place)| Event::Resume { newest, place }),
        1 => Just(Event::Fresh),
        1 => Just(Event::OtherJob),
        1 => (0..30u64, losses()).prop_map(|(steps, loss)| Event::Aside { steps, loss }),
        1 => place.clone().prop_map(|place| Event::Copy { place }),
        1 => place.clone().prop_map(|place| Event::Pin { place }),
        1 => place.prop_map(|place| Event::Damage { place }),
        1 => Just(Event::Litter),
        1 => rules().prop_map(Event::Rules),
    ]
}

/// What a job knows.
#[derive(Default, Clone, Copy)]
struct Job {
    step: u64,
    generation: u64,
    line: u64,
    resumed: Option<SaveId>,
}

/// The directory, and two jobs that work in it by turns, each with its share of what was said.
#[derive(Default)]
struct World {
    disk: BTreeMap<String, CheckpointInfo>,
    rules: Retention,
    job: Job,
    other: Job,
    saves: u64,
    /// The fewest that any rules so far kept of the newest.
    least: u64,
    /// How many good saves of each line there would be without any rules.
    made: BTreeMap<u64, u64>,
}

impl World {
    fn listing(&self) -> Vec<CheckpointInfo> {
        // In an order that has nothing to do with age.
        let mut listing: Vec<_> = self.disk.values().cloned().collect();
        listing.sort_by_key(|info| info.save_id.map(|id| id.as_bytes()[0] ^ 0x55));
        listing
    }

    fn new_info(&mut self, state: CheckpointState) -> CheckpointInfo {
        self.saves += 1;
        let id = u8::try_from(self.saves).unwrap();
        CheckpointInfo {
            save_id: Some(SaveId::from_bytes([id; 16])),
            generation: self.job.generation,
            line: self.job.line,
            step: self.job.step,
            epoch: self.job.step / 3,
            created_unix_ms: self.saves,
            automatic: true,
            ..CheckpointInfo::unknown(&format!("s{}-{}", self.job.step, self.saves), state)
        }
    }

    fn put(&mut self, info: CheckpointInfo) {
        self.disk.insert(info.name.clone(), info);
    }

    fn at(&mut self, place: usize) -> Option<&mut CheckpointInfo> {
        self.disk.values_mut().nth(place)
    }

    /// The highest generation of what can be loaded.
    fn top(&self) -> Option<u64> {
        self.disk.values().filter(|info| info.is_committed()).map(|info| info.generation).max()
    }

    /// As a run counts that begins anew, or goes back: newer than everything that is there.
    fn next_generation(&self) -> u64 {
        self.top().map_or(0, |top| top + 1)
    }

    fn resume(&mut self, place: usize) {
        let mut by_age: Vec<_> = self.disk.values().filter(|info| info.is_committed()).collect();
        by_age.sort_by_key(|info| info.age_key());
        let Some(from) = by_age.get(place).or(by_age.last()).copied().cloned() else {
            return self.begin_anew();
        };
        let is_newest = by_age.last().is_some_and(|newest| newest.name == from.name);
        let generation = if is_newest { from.generation } else { self.next_generation() };
        let (step, line, resumed) = (from.step, from.line, from.save_id);
        self.job = Job { step, generation, line, resumed };
    }

    fn begin_anew(&mut self) {
        let generation = self.next_generation();
        self.job = Job { generation, line: generation, ..Job::default() };
    }

    fn happens(&mut self, event: &Event) -> Result<(), TestCaseError> {
        match event {
            Event::Save { steps, by_hand, loss, survives } => {
                self.job.step += steps;
                let saved = self.new_info(CheckpointState::Committed);
                let saved = CheckpointInfo { automatic: !by_hand, metrics: of(*loss), ..saved };
                *self.made.entry(saved.line).or_default() += u64::from(saved.automatic);
                let protected: Vec<_> = saved.save_id.into_iter().chain(self.job.resumed).collect();
                self.put(saved);
                return self.pass(&protected, *survives);
            }
            Event::Resume { newest, place } => {
                self.resume(if *newest { usize::MAX } else { *place });
            }
            Event::Fresh => self.begin_anew(),
            Event::OtherJob => std::mem::swap(&mut self.job, &mut self.other),
            Event::Aside { steps, loss } => {
                let (generation, step) = (self.next_generation(), *steps);
                let info = self.new_info(CheckpointState::Committed);
                let (automatic, pinned, aside, line) = (false, true, true, generation);
                let info = CheckpointInfo { generation, line, step, aside, ..info };
                self.put(CheckpointInfo { automatic, pinned, metrics: of(*loss), ..info });
            }
            Event::Copy { place } => {
                if let Some(info) = self.at(*place).cloned() {
                    let name = format!("{}c", info.name);
                    let is_harm = !info.is_committed() && self.disk.contains_key(&name);
                    self.put(CheckpointInfo { name, ..info });
                    if is_harm {
                        // A damaged one in the place of a copy that may have been good.
                        self.made = self.good();
                    }
                }
            }
            Event::Pin { place } => {
                if let Some(info) = self.at(*place) {
                    info.pinned = !info.pinned;
                }
            }
            Event::Damage { place } => {
                if let Some(info) = self.at(*place).filter(|info| info.is_committed()) {
                    info.state = CheckpointState::Damaged;
                    // Only what is good from now on can be kept good.
                    self.made = self.good();
                }
            }
            Event::Litter => {
                let info = self.new_info(CheckpointState::Partial);
                self.put(info);
            }
            Event::Rules(rules) => self.rules = rules.clone(),
        }
        Ok(())
    }

    /// A pass that dies after `survives` removals, looked at after each of them.
    fn pass(&mut self, protected: &[SaveId], survives: usize) -> Result<(), TestCaseError> {
        let before = self.listing();
        self.least = self.least.min(least_good(&self.rules));
        let stays = |info: &CheckpointInfo| {
            info.line != self.job.line || must_stay(&self.rules, info, &before, protected)
        };
        let must: Vec<String> =
            before.iter().filter(|info| stays(info)).map(|info| info.name.clone()).collect();
        let line = Some(self.job.line);
        let decision = self.rules.decide_in_line(&before, line, protected);
        prop_assert_eq!(decision.remove.len() + must.len(), before.len(), "{:?}", must);
        // One in four passes comes to its end.
        let end = if survives == 3 { usize::MAX } else { survives };
        for (name, _) in decision.remove.iter().take(end) {
            self.disk.remove(name.as_str());
            self.holds(&must)?;
        }
        self.holds(&must)?;
        let rest = decision.remove.iter().skip(end).cloned().collect();
        let next = self.rules.decide_in_line(&self.listing(), line, protected);
        prop_assert_eq!(next, Decision { remove: rest }, "the next pass finishes this one");
        Ok(())
    }

    fn holds(&self, must: &[String]) -> Result<(), TestCaseError> {
        for name in must {
            prop_assert!(self.disk.contains_key(name), "{} is gone", name);
        }
        let good = self.good();
        for (line, made) in &self.made {
            let good = good.get(line).copied().unwrap_or(0);
            prop_assert!(good >= self.least.min(*made), "{} good ones of {}", good, made);
        }
        Ok(())
    }

    /// How many different good saves of policies there are of each line.
    fn good(&self) -> BTreeMap<u64, u64> {
        let good = self.disk.values().filter(|info| info.is_committed() && info.automatic);
        let ids: BTreeSet<_> = good.map(|info| (info.line, info.save_id)).collect();
        let mut counts = BTreeMap::new();
        ids.into_iter().for_each(|(line, _)| *counts.entry(line).or_default() += 1);
        counts
    }
}

fn of(loss: Option<f64>) -> BTreeMap<String, f64> {
    loss.map(|loss| ("loss".to_owned(), loss)).into_iter().collect()
}

/// How many automatic checkpoints rules leave at least, if so many were made.
fn least_good(rules: &Retention) -> u64 {
    match rules.last {
        Some(count) => count.get(),
        None if rules.has_rules() => 0,
        None => u64::MAX,
    }
}

/// Whether one checkpoint stays by the rules of a job of its line, by comparing it with each other
/// one.
fn must_stay(
    rules: &Retention,
    one: &CheckpointInfo,
    all: &[CheckpointInfo],
    protected: &[SaveId],
) -> bool {
    let good: Vec<_> = all.iter().filter(|c| c.state == CheckpointState::Committed).collect();
    let age = |c: &CheckpointInfo| (!c.aside, c.generation, c.step, c.epoch, c.created_unix_ms);
    let newer = |c: &CheckpointInfo| age(c) > age(one);
    let no_rule = rules.last.is_none()
        && rules.best.is_none()
        && rules.every_steps.is_none()
        && rules.every_epochs.is_none();
    if no_rule || one.state != CheckpointState::Committed || !one.automatic || one.pinned {
        return true;
    }
    if protected.contains(&one.save_id.unwrap()) || !good.iter().any(|c| newer(c)) {
        return true;
    }
    if good.iter().any(|c| c.save_id == one.save_id && c.name != one.name) {
        return true;
    }
    // The others that fill the same counts; a copy of one that does is no other one.
    let is_first = |c: &CheckpointInfo| {
        !good.iter().any(|d| d.automatic && d.save_id == c.save_id && d.name < c.name)
    };
    let others = good.iter().filter(|c| c.automatic && c.line == one.line && c.name != one.name);
    let others: Vec<_> = others.filter(|c| is_first(c)).collect();
    let count =
        |is: &dyn Fn(&CheckpointInfo) -> bool| others.iter().filter(|c| is(c)).count() as u64;
    let is_last = rules.last.is_some_and(|last| count(&newer) < last.get());
    let is_best = rules.best.as_ref().is_some_and(|best| {
        let Some(mine) = finite(one) else { return false };
        let beats = |c: &CheckpointInfo| match (finite(c), best.mode) {
            (None, _) => false,
            (Some(theirs), _) if theirs == mine => !newer(c),
            (Some(theirs), Mode::Min) => theirs < mine,
            (Some(theirs), Mode::Max) => theirs > mine,
        };
        count(&beats) < best.count.get()
    });
    let at_step = rules.every_steps.is_some_and(|n| one.step > 0 && one.step % n == 0);
    let ended_before = |c: &CheckpointInfo| match c.step.cmp(&one.step) {
        _ if c.epoch != one.epoch => false,
        Ordering::Equal if c.generation == one.generation => !newer(c),
        Ordering::Equal => c.generation > one.generation,
        order => order == Ordering::Less,
    };
    let at_epoch = rules.every_epochs.is_some_and(|n| one.epoch > 0 && one.epoch % n == 0)
        && count(&ended_before) == 0;
    let by_name = rules.pinned.iter().any(|glob| one.name.ends_with(glob.trim_start_matches('*')));
    is_last || is_best || at_step || at_epoch || by_name
}

fn finite(info: &CheckpointInfo) -> Option<f64> {
    info.metrics.get("loss").copied().filter(|loss| loss.is_finite())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, ..ProptestConfig::default() })]

    #[test]
    fn what_must_stay_is_there_at_every_instant_of_10_000_histories(
        first in rules(),
        events in prop::collection::vec(events(), 1..17),
    ) {
        let mut world = World { rules: first, least: u64::MAX, ..World::default() };
        for event in &events {
            world.happens(event)?;
        }
    }
}
