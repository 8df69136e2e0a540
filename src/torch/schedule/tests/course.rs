//! What the table cannot show: where PyTorch raises, refuses, or leaves it open.

use super::*;

/// Learning rates of a single group that begins with 1, from position 0 on.
fn course(config: impl Into<SchedulerConfig>, metrics: &[Option<f64>]) -> Vec<f64> {
    let mut optimizer = optimizer(&[1.0]);
    let mut scheduler = Scheduler::new(config, SchedulerUnit::Epoch, &mut optimizer).unwrap();
    let mut found = vec![optimizer.lr()];
    for metric in metrics {
        scheduler.advance(&mut optimizer, *metric).unwrap();
        found.push(optimizer.lr());
    }
    assert_eq!(scheduler.steps_done(), metrics.len() as u64);
    found
}

#[test]
fn a_cycle_stays_at_its_end() {
    for anneal in [Anneal::Cosine, Anneal::Linear] {
        let cycle = OneCycle { max_lr: 1.0, total_steps: 4, anneal, ..OneCycle::default() };
        let found = course(cycle, &[None; 8]);
        assert!((found[3] - 1.0 / 25.0 / 1e4).abs() < 1e-15);
        assert!(found[3..].iter().all(|lr| *lr == found[3]), "{found:?}");
    }
}

#[test]
fn a_rise_of_one_position_is_done_at_once() {
    let cycle = OneCycle { max_lr: 1.0, total_steps: 4, pct_start: 0.25, ..OneCycle::default() };
    assert_eq!(course(cycle, &[])[0], 1.0);
}

#[test]
fn a_follower_begins_where_warm_up_ends() {
    let step = StepLr { step_size: 2, gamma: 0.5 };
    let found = course(warmup(2, step), &[None; 6]);
    assert_eq!(found, [0.1, 0.55, 1.0, 1.0, 0.5, 0.5, 0.25]);
    let nested = course(warmup(1, warmup(2, step)), &[None; 5]);
    assert_eq!(nested, [0.1, 0.1, 0.55, 1.0, 1.0, 0.5]);
    assert_eq!(course(Warmup { steps: 1, ..Warmup::default() }, &[None; 3])[1..], [1.0; 3]);
}

#[test]
fn a_plateau_does_not_see_the_metrics_of_warm_up() {
    // The best metric falls into the warm-up: seen, it would make all others bad.
    let metrics = [0.0, 0.0, 5.0, 5.0, 5.0].map(Some);
    let found = course(warmup(2, plateau(1)), &metrics);
    assert_eq!(found, [0.1, 0.55, 1.0, 1.0, 1.0, 0.5]);
}

#[test]
fn a_plateau_ignores_epochs_without_a_number() {
    let (none, nan) = (None, Some(f64::NAN));
    let metrics = [Some(1.0), Some(1.0), none, nan, none, nan, Some(1.0), nan];
    let found = course(plateau(1), &metrics);
    assert_eq!(found, [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.5, 0.5]);
}

#[test]
fn a_rate_set_by_hand_lasts_until_the_next_position() {
    let mut optimizer = optimizer(&[1.0, 2.0]);
    let config = ExponentialLr { gamma: 0.5 };
    let mut scheduler = Scheduler::new(config, SchedulerUnit::Step, &mut optimizer).unwrap();
    optimizer.set_lr(7.0);
    scheduler.advance(&mut optimizer, None).unwrap();
    assert_eq!(lrs(&optimizer), [0.5, 1.0]);

    let mut scheduler = Scheduler::new(plateau(0), SchedulerUnit::Epoch, &mut optimizer).unwrap();
    scheduler.advance(&mut optimizer, Some(1.0)).unwrap();
    optimizer.set_lr(7.0);
    scheduler.advance(&mut optimizer, Some(1.0)).unwrap();
    assert_eq!(lrs(&optimizer), [3.5, 3.5]);
}

#[test]
fn positions_without_end_do_no_harm() {
    for (config, unit) in every_kind() {
        let mut optimizer = optimizer(&[0.1]);
        let mut scheduler = Scheduler::new(config.clone(), unit, &mut optimizer).unwrap();
        for position in [1 << 53, u64::MAX - 1, u64::MAX] {
            scheduler.steps_done = position;
            scheduler.advance(&mut optimizer, Some(1.0)).unwrap();
            assert!(optimizer.lr().is_finite(), "{config:?}");
        }
    }
}
