//! Ranks that are killed at places of a save and of a pass of the retention policy.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use tch_checkpoint::autosave::Mode;
use tch_checkpoint::catalog::{Order, find_checkpoints};
use tch_checkpoint::storage::LocalStorage;

#[cfg(feature = "mpi")]
use crate::jobs::MPIRUN;
use crate::jobs::{Launcher, Place, TORCHRUN};
use crate::{HASH, OWN_LOOP, link, name, undisturbed};

/// Steps from one save to the next.
const EVERY: u64 = 5;
const STEPS: u64 = 50;
const RUN: &[&str] = &["--steps", "50", "--every-steps", "5"];

/// Whether the second save of a job is committed although one of its ranks is killed there.
#[derive(Clone, Copy, PartialEq)]
enum Committed {
    Yes,
    No,
    /// The coordinator may have all votes, or hear of the loss first.
    Perhaps,
}

/// The second save of a job is its visit to these. Of parts, a save writes three, and five beside training,
/// where headers are parts of their own.
const PLACES: &[(&str, Committed)] = &[
    // First: a load, with which later ones begin, has a phase of that name too.
    ("kill@plan.voted@1@2", Committed::No),
    ("kill@unchanged.voted@1@2", Committed::No),
    ("kill@commit.enter@0@2", Committed::No),
    ("kill@commit.enter@1@2", Committed::No),
    ("kill@write.part@0@6", Committed::No),
    ("kill@commit.voted@1@2", Committed::Perhaps),
    ("kill@commit.decided@0@2", Committed::Yes),
];

/// Without the feature the example would ignore every sabotage, and these tests would blame it.
fn check_example_is_sabotaged() {
    static CHECKED: OnceLock<bool> = OnceLock::new();
    let sabotaged = *CHECKED.get_or_init(|| {
        let nonsense = [("TCH_CHECKPOINT_SABOTAGE", "nonsense")];
        let place = Place::of(&OWN_LOOP);
        !place.start(TORCHRUN, &["--steps", "1"], &nonsense).end().status.success()
    });
    assert!(sabotaged, "build the example anew: cargo build --examples --features sabotage");
}

/// Runs until the sabotage ends it; the steps of what is there then, all of it whole.
fn killed(place: &Place, launcher: Launcher, flags: &[&str], sabotage: &str) -> Vec<u64> {
    check_example_is_sabotaged();
    let ended = place.start(launcher, flags, &[("TCH_CHECKPOINT_SABOTAGE", sabotage)]).end();
    let code = ended.status.code();
    assert!(
        !matches!(code, Some(0 | 75 | 101 | 134 | 139)),
        "{sabotage}: {code:?} {}",
        ended.output
    );
    assert!(!ended.output.contains("panicked"), "{sabotage}: {}", ended.output);
    place.saved()
}

/// One run that is killed at one place after the other, and goes on each time.
fn killed_again_and_again(launcher: Launcher, mode: &[&str], places: &[(&str, Committed)]) {
    let place = Place::of(&OWN_LOOP);
    let flags = [RUN, mode].concat();
    let mut newest = 0;
    for (sabotage, committed) in places {
        // A save beside training has a first phase of its own.
        let sabotage = if mode.is_empty() {
            (*sabotage).to_owned()
        } else {
            sabotage.replace("@plan.", "@plan beside.")
        };
        let saved = killed(&place, launcher, &flags, &sabotage);
        let (first, second) = (newest + EVERY, newest + 2 * EVERY);
        newest = saved.last().copied().unwrap_or(0);
        let wanted = match committed {
            Committed::Yes => newest == second,
            Committed::No => newest == first,
            Committed::Perhaps => newest == first || newest == second,
        };
        assert!(wanted, "{sabotage}: {saved:?}");
    }
    let state = place.start(launcher, &[&flags, &[HASH][..]].concat(), &[]).end().state();
    assert_eq!(state, undisturbed(launcher, 2, STEPS), "{mode:?}");
    assert_eq!(place.saved(), (1..=STEPS / EVERY).map(|n| n * EVERY).collect::<Vec<_>>());
    assert_eq!(place.debris(), [""; 0], "{mode:?}");
    assert_eq!(link(&place, "latest"), name(STEPS), "{mode:?}");
}

#[test]
fn torchrun_a_run_killed_again_and_again_is_exact() {
    killed_again_and_again(TORCHRUN, &[], PLACES);
}

#[test]
fn torchrun_a_run_killed_while_saving_beside_training_is_exact() {
    killed_again_and_again(TORCHRUN, &["--async"], PLACES);
}

#[test]
fn torchrun_a_run_killed_while_copying_beside_training_is_exact() {
    killed_again_and_again(TORCHRUN, &["--async", "--overlap"], &PLACES[2..4]);
}

/// What the rules keep of everything that was ever saved here, by step and `val_loss`: the last
/// two and the best.
fn kept_of(all: &[(u64, f64)]) -> Vec<u64> {
    let best = all.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap().0;
    let last = all.iter().rev().take(2).map(|(step, _)| *step);
    last.chain([best]).collect::<BTreeSet<_>>().into_iter().collect()
}

fn losses(place: &Place) -> Vec<(u64, f64)> {
    let order = Order::Best { monitor: "val_loss".to_owned(), mode: Mode::Min };
    let found = find_checkpoints(&LocalStorage::new(), &place.runs(), &order).unwrap();
    let mut losses: Vec<_> =
        found.iter().map(|info| (info.step, info.metrics["val_loss"])).collect();
    losses.sort_unstable_by_key(|(step, _)| *step);
    losses
}

const MEASURED: &[&str] = &["--every-steps", "25", "--monitor", "val_loss"];
const RULES: &[&str] = &["--keep-last", "2", "--keep-best", "1"];

/// A directory of six checkpoints that no rule has looked at yet.
fn many() -> Place {
    let place = Place::of(&OWN_LOOP);
    let ended = place.start(TORCHRUN, &[&["--steps", "150"], MEASURED].concat(), &[]).end();
    assert!(ended.status.success(), "{}", ended.output);
    place
}

/// The coordinator is killed after this many removals of a pass that has four or more.
fn killed_while_removing(many: &Place, mode: &[&str], removals: u64) {
    let place = many.copy();
    let mut all = losses(&place);
    let before = place.saved();
    let flags = |steps: &'static str| [&["--steps", steps, HASH], MEASURED, RULES, mode].concat();
    let sabotage = format!("kill@retain.removed@0@{removals}");
    let left = killed(&place, TORCHRUN, &flags("175"), &sabotage);
    assert_eq!(left.last(), Some(&175), "the save itself was committed");
    assert_eq!(left.len() as u64, before.len() as u64 + 1 - removals, "{mode:?} {left:?}");
    all = [all, losses(&place).into_iter().filter(|(step, _)| *step == 175).collect()].concat();
    assert_eq!(link(&place, "latest"), name(175), "links move before anything goes");

    let state = place.start(TORCHRUN, &flags("200"), &[]).end().state();
    assert_eq!(state, undisturbed(TORCHRUN, 2, 200));
    all.extend(losses(&place).into_iter().filter(|(step, _)| *step == 200));
    assert_eq!(place.saved(), kept_of(&all), "{mode:?} {all:?}");
    assert_eq!(place.debris(), [""; 0]);
    assert_eq!(link(&place, "latest"), name(200));
    assert!(place.runs().join(link(&place, "best")).is_dir());
}

#[test]
fn torchrun_a_pass_of_the_rules_that_was_killed_is_finished_by_the_next_run() {
    let many = many();
    for (mode, removals) in [(&[][..], 1), (&[], 3), (&["--async"], 2)] {
        killed_while_removing(&many, mode, removals);
    }
}

#[cfg(feature = "mpi")]
mod mpirun {
    use super::*;

    #[test]
    fn a_run_killed_again_and_again_is_exact() {
        killed_again_and_again(MPIRUN, &[], &PLACES[2..]);
    }

    #[test]
    fn a_run_killed_while_saving_beside_training_is_exact() {
        killed_again_and_again(MPIRUN, &["--async"], &PLACES[1..]);
    }
}
