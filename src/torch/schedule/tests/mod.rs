mod course;
mod refused;
mod resume;
mod table;

use tch::{Device, nn};

use super::*;
use crate::state::Values;
use crate::torch::Sgd;

/// An optimizer with one parameter group per learning rate.
fn optimizer(lrs: &[f64]) -> Optimizer {
    let store = nn::VarStore::new(Device::Cpu);
    for group in 0..lrs.len() {
        let _ = store.root().set_group(group).zeros(&format!("p{group}"), &[1]);
    }
    let mut optimizer = Optimizer::new(Sgd::default(), &store).unwrap();
    for (group, lr) in optimizer.groups_mut().iter_mut().zip(lrs) {
        group.lr = *lr;
    }
    optimizer
}

fn lrs(optimizer: &Optimizer) -> Vec<f64> {
    optimizer.groups().iter().map(|group| group.lr).collect()
}

fn saved(scheduler: &Scheduler) -> Values {
    let mut values = Values::new();
    scheduler.save_values("scheduler", &mut values).unwrap();
    values
}

fn warmup(steps: u64, then: impl Into<SchedulerConfig>) -> Warmup {
    Warmup { start_factor: 0.1, steps, then: Some(Box::new(then.into())) }
}

fn plateau(patience: u64) -> ReduceOnPlateau {
    ReduceOnPlateau { patience, factor: 0.5, ..ReduceOnPlateau::default() }
}

/// One of every kind, with the unit it is mostly used with.
fn every_kind() -> Vec<(SchedulerConfig, SchedulerUnit)> {
    use SchedulerUnit::{Epoch, Step};
    let cosine = CosineLr { t_max: 7, eta_min: 1e-4 };
    let exponential = ExponentialLr { gamma: 0.9123 };
    let cycle = OneCycle { max_lr: 0.3, total_steps: 17, ..OneCycle::default() };
    let three = OneCycle { anneal: Anneal::Linear, three_phase: true, ..cycle };
    let upwards = ReduceOnPlateau { mode: PlateauMode::Max, cooldown: 2, ..plateau(0) };
    let absolute = ReduceOnPlateau { threshold_mode: ThresholdMode::Abs, ..plateau(2) };
    vec![
        (StepLr { step_size: 3, ..StepLr::default() }.into(), Epoch),
        (MultiStepLr { milestones: vec![2, 5, 5, 9], gamma: 0.3 }.into(), Epoch),
        (exponential.into(), Step),
        (cosine.into(), Step),
        (CosineRestarts { t_0: 3, t_mult: 2, eta_min: 0.0 }.into(), Step),
        (cycle.into(), Step),
        (three.into(), Step),
        (upwards.into(), Epoch),
        (absolute.into(), Epoch),
        (Warmup::default().into(), Step),
        (warmup(4, cosine).into(), Step),
        (warmup(3, plateau(1)).into(), Epoch),
        (warmup(2, warmup(3, exponential)).into(), Epoch),
    ]
}

/// Falls, rises, stays, and is now and then missing or not a number.
fn metric(position: u64) -> Option<f64> {
    match position % 11 {
        4 => None,
        7 => Some(f64::NAN),
        _ => Some(1.0 + (position as f64 * 0.4).cos()),
    }
}
