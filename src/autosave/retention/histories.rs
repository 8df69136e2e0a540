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
        1 => place.clone().prop_map(|place| Event::Pin { place }),
        1 => place.prop_map(|place| Event::Damage { place }),
        1 => Just(Event::Litter),
        1 => rules().prop_map(Event::Rules),
    ]
}

/// The directory, and what a run knows that works in it.
#[derive(Default)]
struct World {
    disk: BTreeMap<String, CheckpointInfo>,
    rules: Retention,
    step: u64,
    saves: u64,
    resumed: Option<SaveId>,
    /// The fewest that any rules so far kept of the newest.
    least: u64,
    /// How many good ones there would be without any rules.
    made: u64,
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
            step: self.step,
            epoch: self.step / 3,
            created_unix_ms: self.saves,
            automatic: true,
            ..CheckpointInfo::unknown(&format!("s{}-{}", self.step, self.saves), state)
        }
    }

    fn put(&mut self, info: CheckpointInfo) {
        self.disk.insert(info.name.clone(), info);
    }

    fn at(&mut self, place: usize) -> Option<&mut CheckpointInfo> {
        self.disk.values_mut().nth(place)
    }

    fn happens(&mut self, event: &Event) -> Result<(), TestCaseError> {
        match event {
            Event::Save { steps, by_hand, loss, survives } => {
                self.step += steps;
                let metrics = loss.map(|loss| ("loss".to_owned(), loss)).into_iter().collect();
                let saved = self.new_info(CheckpointState::Committed);
                let saved = CheckpointInfo { automatic: !by_hand, metrics, ..saved };
                self.made += u64::from(saved.automatic);
                let protected: Vec<_> = saved.save_id.into_iter().chain(self.resumed).collect();
                self.put(saved);
                return self.pass(&protected, *survives);
            }
            Event::Resume { newest, place } => {
                let good = self.disk.values().filter(|info| info.is_committed());
                let place = if *newest { usize::MAX } else { *place };
                let mut by_age: Vec<_> = good.collect();
                by_age.sort_by_key(|info| info.age_key());
                let from = by_age.get(place).or(by_age.last()).copied().cloned();
                self.step = from.as_ref().map_or(0, |info| info.step);
                self.resumed = from.and_then(|info| info.save_id);
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
        let stays = |info: &CheckpointInfo| must_stay(&self.rules, info, &before, protected);
        let must: Vec<String> =
            before.iter().filter(|info| stays(info)).map(|info| info.name.clone()).collect();
        let decision = self.rules.decide(&before, protected);
        prop_assert_eq!(decision.remove.len() + must.len(), before.len(), "{:?}", must);
        // One in four passes comes to its end.
        let end = if survives == 3 { usize::MAX } else { survives };
        for (name, _) in decision.remove.iter().take(end) {
            self.disk.remove(name.as_str());
            self.holds(&must)?;
        }
        self.holds(&must)?;
        let rest = decision.remove.iter().skip(end).cloned().collect();
        let next = self.rules.decide(&self.listing(), protected);
        prop_assert_eq!(next, Decision { remove: rest }, "the next pass finishes this one");
        Ok(())
    }

    fn holds(&self, must: &[String]) -> Result<(), TestCaseError> {
        for name in must {
            prop_assert!(self.disk.contains_key(name), "{} is gone", name);
        }
        let good = self.good();
        prop_assert!(good >= self.least.min(self.made), "{} good ones of {}", good, self.made);
        Ok(())
    }

    fn good(&self) -> u64 {
        self.disk.values().filter(|info| info.is_committed() && info.automatic).count() as u64
    }
}

/// How many automatic checkpoints rules leave at least, if so many were made.
fn least_good(rules: &Retention) -> u64 {
    match rules.last {
        Some(count) => count.get(),
        None if rules.has_rules() => 0,
        None => u64::MAX,
    }
}

/// Whether one checkpoint stays, by comparing it with each other one.
fn must_stay(
    rules: &Retention,
    one: &CheckpointInfo,
    all: &[CheckpointInfo],
    protected: &[SaveId],
) -> bool {
    let good: Vec<_> = all.iter().filter(|c| c.state == CheckpointState::Committed).collect();
    let newer = |c: &CheckpointInfo| {
        (c.step, c.epoch, c.created_unix_ms) > (one.step, one.epoch, one.created_unix_ms)
    };
    let ours = |c: &CheckpointInfo| c.automatic;
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
    let newer_ones = good.iter().filter(|c| ours(c) && newer(c)).count() as u64;
    let is_last = rules.last.is_some_and(|count| newer_ones < count.get());
    let is_best = rules.best.as_ref().is_some_and(|best| {
        let Some(mine) = finite(one) else { return false };
        let beats = |c: &CheckpointInfo| match (finite(c), best.mode) {
            (None, _) => false,
            (Some(theirs), _) if theirs == mine => !newer(c) && c.name != one.name,
            (Some(theirs), Mode::Min) => theirs < mine,
            (Some(theirs), Mode::Max) => theirs > mine,
        };
        (good.iter().filter(|c| ours(c) && beats(c)).count() as u64) < best.count.get()
    });
    let at_step = rules.every_steps.is_some_and(|n| one.step > 0 && one.step % n == 0);
    let at_epoch = rules.every_epochs.is_some_and(|n| one.epoch > 0 && one.epoch % n == 0)
        && !good.iter().any(|c| ours(c) && c.epoch == one.epoch && !newer(c) && c.name != one.name);
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
        events in prop::collection::vec(events(), 1..13),
    ) {
        let mut world = World { rules: first, least: u64::MAX, ..World::default() };
        for event in &events {
            world.happens(event)?;
        }
    }
}
