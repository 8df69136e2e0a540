//! A scheduler from a checkpoint goes on as the one that was saved.

use super::*;
use crate::state::{StateDict, Stateful};

const POSITIONS: u64 = 30;

/// The bits of every group's learning rate.
fn bits(optimizer: &Optimizer) -> Vec<u64> {
    lrs(optimizer).into_iter().map(f64::to_bits).collect()
}

fn advance(scheduler: &mut Scheduler, optimizer: &mut Optimizer) -> Vec<u64> {
    let metric = metric(scheduler.steps_done());
    scheduler.advance(optimizer, metric).unwrap();
    bits(optimizer)
}

/// Saves and rebuilds at `position`; `rebuild` gets the values and an optimizer whose learning
/// rates are loaded already.
fn resumed_course(
    kind: &(SchedulerConfig, SchedulerUnit),
    position: u64,
    rebuild: impl Fn(&Values, &mut Optimizer) -> Scheduler,
) -> Vec<Vec<u64>> {
    let mut before = optimizer(&[0.1, 1.0 / 3.0]);
    let mut scheduler = Scheduler::new(kind.0.clone(), kind.1, &mut before).unwrap();
    let mut course = Vec::new();
    for _ in 0..position {
        course.push(advance(&mut scheduler, &mut before));
    }
    let mut after = optimizer(&lrs(&before));
    let mut resumed = rebuild(&saved(&scheduler), &mut after);
    assert_eq!(bits(&after), bits(&before), "{kind:?}: rebuilding moved a learning rate");
    assert_eq!(resumed, scheduler);
    for _ in position..POSITIONS {
        course.push(advance(&mut resumed, &mut after));
    }
    course
}

#[test]
fn a_rebuilt_scheduler_continues_bit_for_bit() {
    for kind in every_kind() {
        let rebuild = |values: &Values, optimizer: &mut Optimizer| {
            Scheduler::from_values("scheduler", values, optimizer).unwrap()
        };
        let whole = resumed_course(&kind, POSITIONS, rebuild);
        assert!(whole.iter().any(|lrs| *lrs != whole[0]), "{kind:?} never moved");
        for position in 0..POSITIONS {
            assert_eq!(resumed_course(&kind, position, rebuild), whole, "{kind:?} at {position}");
        }
    }
}

#[test]
fn a_live_scheduler_continues_bit_for_bit() {
    for kind in every_kind() {
        let rebuild = |values: &Values, optimizer: &mut Optimizer| {
            let loaded = lrs(optimizer);
            let mut live = Scheduler::new(kind.0.clone(), kind.1, optimizer).unwrap();
            // As a load does it: the optimizer first.
            for (group, lr) in optimizer.groups_mut().iter_mut().zip(loaded) {
                group.lr = lr;
            }
            live.check_values("scheduler", values).unwrap();
            live.load_values("scheduler", values).unwrap();
            live
        };
        let whole = resumed_course(&kind, POSITIONS, rebuild);
        assert_eq!(resumed_course(&kind, 13, rebuild), whole, "{kind:?}");
    }
}

#[test]
fn what_a_plateau_has_seen_survives() {
    let of = |mode| ReduceOnPlateau { mode, cooldown: 3, ..plateau(2) };
    let infinite = [(PlateauMode::Min, f64::INFINITY), (PlateauMode::Max, f64::NEG_INFINITY)];
    for (mode, best) in infinite {
        let mut optimizer = optimizer(&[0.1]);
        let mut scheduler = Scheduler::new(of(mode), SchedulerUnit::Epoch, &mut optimizer).unwrap();
        for (bad_epochs, cooldown_left) in [(0, 0), (1, 0), (2, 0), (0, 3), (0, 2)] {
            let seen = Seen { best, bad_epochs, cooldown_left };
            assert_eq!(scheduler.seen, Some(seen));
            let resumed = Scheduler::from_values("scheduler", &saved(&scheduler), &optimizer);
            assert_eq!(resumed.unwrap().seen, Some(seen));
            // No better than the infinite best.
            scheduler.advance(&mut optimizer, Some(best)).unwrap();
        }
        assert_eq!(optimizer.lr(), 0.05);
    }
}

#[test]
fn settings_of_the_checkpoint_win() {
    let mut optimizer = optimizer(&[0.1]);
    let config = StepLr { step_size: 3, gamma: 0.5 };
    let other = StepLr { step_size: 4, gamma: 0.25 };
    let stored = Scheduler::new(config, SchedulerUnit::Epoch, &mut optimizer).unwrap();
    let mut live = Scheduler::new(other, SchedulerUnit::Step, &mut optimizer).unwrap();
    live.load_values("scheduler", &saved(&stored)).unwrap();
    assert_eq!((live.config(), live.unit()), (&config.into(), SchedulerUnit::Epoch));
}

#[test]
fn it_is_a_part_of_the_state() {
    let mut optimizer = optimizer(&[0.1]);
    let mut make = |gamma| {
        Scheduler::new(ExponentialLr { gamma }, SchedulerUnit::Step, &mut optimizer).unwrap()
    };
    let (kept, mut other) = (make(0.5), make(0.25));
    let mut state = StateDict::new();
    kept.save_state("", &mut state).unwrap();
    let names: Vec<&str> = state.values.iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["base_lr", "config", "state"]);
    Stateful::load_values(&mut other, "", &state.values, &state.rank_values).unwrap();
    assert_eq!(other, kept);
}
