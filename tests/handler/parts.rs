//! Schedules, averages, gradient scaler, clipping and precision: in training, and across a resume.

use tch_checkpoint::handler::{LoadOptions, Loader, NNHandler};
use tch_checkpoint::state::Value;
use tch_checkpoint::torch::*;
use tch_checkpoint::{Atomicity, ErrorKind, ProcessGroup, Result};

use crate::harness::*;
use crate::models::*;

pub type Set = fn(&mut NNHandler<Net>) -> Result<()>;

pub fn small_scaler() -> GradScalerConfig {
    // Grows within a test.
    GradScalerConfig { init_scale: 256.0, growth_interval: 3, ..GradScalerConfig::default() }
}

pub fn ema() -> EmaConfig {
    EmaConfig { decay: 0.9, warm_up: true }
}

fn schedule(handler: &mut NNHandler<Net>, config: impl Into<SchedulerConfig>) -> Result<()> {
    handler.set_scheduler(config, SchedulerUnit::Step)
}

fn warm_cosine() -> SchedulerConfig {
    let cosine = CosineLr { t_max: 9, ..CosineLr::default() };
    Warmup { steps: 2, then: Some(Box::new(cosine.into())), ..Warmup::default() }.into()
}

pub const SCHEDULES: [(&str, Set); 9] = [
    ("none", |_| Ok(())),
    ("step", |h| schedule(h, StepLr { step_size: 2, gamma: 0.5 })),
    ("multi-step", |h| schedule(h, MultiStepLr { milestones: vec![2, 5], gamma: 0.3 })),
    ("exponential", |h| h.set_scheduler(ExponentialLr { gamma: 0.9 }, SchedulerUnit::Epoch)),
    ("cosine", |h| schedule(h, CosineLr { t_max: 8, ..CosineLr::default() })),
    ("restarts", |h| {
        schedule(h, CosineRestarts { t_0: 2, t_mult: 2, ..CosineRestarts::default() })
    }),
    ("one-cycle", |h| {
        schedule(h, OneCycle { max_lr: 0.05, total_steps: 12, ..OneCycle::default() })
    }),
    ("warm-up, then cosine", |h| schedule(h, warm_cosine())),
    ("plateau", |h| {
        let plateau = ReduceOnPlateau { patience: 0, threshold: 0.5, ..ReduceOnPlateau::default() };
        h.set_scheduler(plateau, SchedulerUnit::Epoch)
    }),
];

pub const EXTRAS: [(&str, f64, Set); 5] = [
    ("plain", 0.0, |_| Ok(())),
    ("averages", 0.0, |h| h.set_ema(ema())),
    ("scaler and clipping", 0.0, |h| {
        h.set_precision(Precision::MixedBfloat16);
        h.clip_gradients(Clip::Norm(0.5))?;
        h.set_grad_scaler(small_scaler())
    }),
    ("accumulation", 0.0, |h| {
        h.accumulate(2);
        Ok(())
    }),
    ("dropout and all of them", 0.3, |h| {
        h.accumulate(2);
        h.clip_gradients(Clip::Value(0.1))?;
        h.set_grad_scaler(small_scaler())?;
        h.set_ema(ema())
    }),
];

#[test]
fn the_schedule_advances_and_its_rate_is_in_history_and_names() {
    let _generator = exclusive();
    let (solo, (_, storage)) = (ProcessGroup::solo(), memory());
    let mut handler = handler(&solo, &storage, 0.0, Sgd { lr: 0.1, ..Sgd::default() });
    handler.set_scheduler(ExponentialLr { gamma: 0.5 }, SchedulerUnit::Epoch).unwrap();
    handler.auto_save(1, "runs", "e{epoch}_{lr:.3f}_{lr_group_0:.2e}").unwrap();
    handler.train(2).unwrap();
    assert_eq!(handler.history().series("lr"), [0.05, 0.025]);
    assert_eq!(visible(&*storage, "runs"), ["e1_0.050_5.00e-02", "e2_0.025_2.50e-02"]);
    let again = loaded(&solo, &storage, "runs/e1_0.050_5.00e-02").unwrap();
    assert_eq!(again.scheduler().unwrap().steps_done(), 1);
    assert_eq!(again.optimizer().unwrap().lr(), 0.05);
    // A new optimizer starts from its own rate, without a schedule.
    handler.set_optimizer(Sgd { lr: 0.3, ..Sgd::default() }).unwrap();
    assert!(handler.scheduler().is_none());
}

#[test]
fn a_schedule_that_waits_for_validation_needs_some() {
    let (_, storage) = memory();
    let results = on_ranks(2, move |group| {
        let mut handler = usual(&group, &storage);
        handler.set_scheduler(ReduceOnPlateau::default(), SchedulerUnit::Epoch).unwrap();
        handler.train(1)
    });
    let error = one_error(&results);
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.to_string().contains("set_val_loader"), "{error}");
}

/// Validation sees the averages; what is trained and saved are the parameters.
#[test]
fn averages_stand_in_for_the_parameters_during_validation_alone() {
    let _generator = exclusive();
    let (solo, (_, storage)) = (ProcessGroup::solo(), memory());
    let mut with = usual(&solo, &storage);
    with.set_ema(EmaConfig { decay: 0.99, warm_up: false }).unwrap();
    let mut without = usual(&solo, &storage);
    for handler in [&mut with, &mut without] {
        handler.set_val_loader(data(9), Loader { shuffle: false, ..LOADER });
        handler.train(2).unwrap();
    }
    assert_eq!(parameters(&with), parameters(&without));
    let val_loss = |h: &NNHandler<Net>| h.history().series("val_loss").to_vec();
    assert_ne!(val_loss(&with), val_loss(&without));
    assert_eq!(with.ema().unwrap().updates(), 6);

    let inside = with.with_ema(parameters).unwrap();
    let averages: Vec<f32> = with
        .ema()
        .unwrap()
        .averages()
        .flat_map(|(_, tensor)| Vec::<f32>::try_from(tensor.flatten(0, -1)).unwrap())
        .collect();
    assert_eq!(inside, averages);
    assert_eq!(parameters(&with), parameters(&without), "they come back");
    with.copy_ema_to_model().unwrap();
    assert_eq!(parameters(&with), averages);
}

/// Else the next step would train the averages, and no save would be possible.
#[test]
fn parameters_come_back_also_from_a_panic() {
    let _generator = exclusive();
    let (solo, (_, storage)) = (ProcessGroup::solo(), memory());
    let mut handler = usual(&solo, &storage);
    handler.set_ema(ema()).unwrap();
    handler.train(1).unwrap();
    let before = parameters(&handler);
    let panicking = std::panic::AssertUnwindSafe(|| {
        handler.with_ema(|handler| {
            assert_eq!(parameters(handler), before, "the averages differ: this panics");
        })
    });
    assert!(std::panic::catch_unwind(panicking).is_err());
    assert_eq!(parameters(&handler), before);
    handler.save("runs/after").unwrap();
}

/// An infinite gradient on one rank makes every rank skip the update.
#[test]
fn an_overflow_on_one_rank_skips_the_step_on_all() {
    let (_, storage) = memory();
    let seen = on_ranks(2, move |group| {
        let mut handler = usual(&group, &storage);
        handler.set_grad_scaler(small_scaler()).unwrap();
        handler.set_ema(ema()).unwrap();
        let rank = group.rank().get();
        handler.set_loss_fn(move |output, target| {
            let loss = squared_error(output, target);
            if rank == 1 { loss * f64::INFINITY } else { loss }
        });
        let before = parameters(&handler);
        handler.train_steps(1).unwrap();
        let scaler = handler.grad_scaler().unwrap();
        let updates = handler.ema().unwrap().updates();
        (parameters(&handler) == before, scaler.scale(), updates, handler.step())
    });
    assert_eq!(seen, [(true, 128.0, 0, 1), (true, 128.0, 0, 1)]);
}

#[test]
fn clipping_bounds_the_gradients_of_all_ranks_together() {
    let (_, storage) = memory();
    let moved = on_ranks(2, move |group| {
        let mut handler = handler(&group, &storage, 0.0, Sgd { lr: 1.0, ..Sgd::default() });
        handler.clip_gradients(Clip::Norm(1e-3)).unwrap();
        assert!(handler.clip_gradients(Clip::Norm(-1.0)).is_err());
        let before = parameters(&handler);
        handler.train_steps(1).unwrap();
        let after = parameters(&handler);
        let moved = after.iter().zip(before).map(|(a, b)| (a - b).powi(2));
        moved.sum::<f32>().sqrt()
    });
    assert!((moved[0] - 1e-3).abs() < 1e-5 && moved[0] == moved[1], "{moved:?}");
}

/// What one side lacks would be lost, or stay as it is, without a word.
#[test]
fn a_part_on_one_side_only_is_an_error_and_changes_nothing() {
    let cases: [(&str, Set); 3] = [
        ("scaler", |h| h.set_grad_scaler(small_scaler())),
        ("ema", |h| h.set_ema(ema())),
        ("scheduler", SCHEDULES[1].1),
    ];
    for (part, set) in cases {
        let _generator = exclusive();
        let (solo, (_, storage)) = (ProcessGroup::solo(), memory());
        let mut with = usual(&solo, &storage);
        set(&mut with).unwrap();
        with.train(1).unwrap();
        with.save("runs/with").unwrap();
        let mut without = usual(&solo, &storage);
        without.save("runs/without").unwrap();
        for (handler, path) in [(&mut with, "runs/without"), (&mut without, "runs/with")] {
            let before = handler.state_hash().unwrap();
            let error = handler.restore(path, Atomicity::Atomic).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Mismatch, "{part}");
            assert!(error.to_string().contains(part), "{error}");
            assert_eq!(handler.state_hash().unwrap(), before, "{part}");
        }
        with.restore("runs/with", Atomicity::Atomic).unwrap();
    }
}

#[test]
fn parts_can_be_left_out_of_a_load() {
    let _generator = exclusive();
    let (solo, (_, storage)) = (ProcessGroup::solo(), memory());
    let mut full = usual(&solo, &storage);
    full.set_ema(ema()).unwrap();
    full.set_grad_scaler(small_scaler()).unwrap();
    SCHEDULES[1].1(&mut full).unwrap();
    full.train(1).unwrap();
    full.save("runs/full").unwrap();
    let load = |options: LoadOptions| NNHandler::<Net>::load("runs/full", options).unwrap();
    let parts = |h: &NNHandler<Net>| {
        [
            h.optimizer().is_some(),
            h.scheduler().is_some(),
            h.grad_scaler().is_some(),
            h.ema().is_some(),
        ]
    };
    let all = || options(&solo, &storage);
    assert_eq!(parts(&load(all())), [true; 4]);
    let without = load(LoadOptions { skip_scheduler: true, ..all() });
    assert_eq!(parts(&without), [true, false, true, true]);
    assert_eq!(without.optimizer().unwrap().lr(), full.optimizer().unwrap().lr());
    let without = load(LoadOptions { skip_scaler: true, ..all() });
    assert_eq!(parts(&without), [true, true, false, true]);
    let without = load(LoadOptions { skip_ema: true, ..all() });
    assert_eq!(parts(&without), [true, true, true, false]);
    let without = load(LoadOptions { skip_optimizer: true, ..all() });
    assert_eq!(parts(&without), [false, false, false, true]);
}

#[test]
fn values_of_parts_that_make_no_sense_are_refused() {
    let changes: [(&str, Value); 8] = [
        ("trainer.settings", Value::Json("{\"clip\":{\"norm\":-1.0}}".to_owned())),
        ("trainer.settings", Value::Json("{\"accumulate\":0}".to_owned())),
        ("scheduler.config", Value::Json("7".to_owned())),
        ("scheduler.state", Value::Json("{}".to_owned())),
        ("scaler.scale", Value::Float(-1.0)),
        ("scaler.growth_tracker", Value::Int(-1)),
        ("ema.config", Value::Json("{\"decay\":2,\"warm_up\":true}".to_owned())),
        ("ema.updates", Value::Int(-3)),
    ];
    for (name, value) in changes {
        let (_, storage) = memory();
        let results = on_ranks(2, move |group| {
            let mut full = usual(&group, &storage);
            full.set_ema(ema()).unwrap();
            full.set_grad_scaler(small_scaler()).unwrap();
            SCHEDULES[1].1(&mut full).unwrap();
            let mut state = full.state_dict().unwrap();
            assert!(state.values.find(name).is_some(), "{name}");
            state.values.set(name, value.clone());
            let path = tch_checkpoint::CheckpointPath::parse("runs/odd").unwrap();
            let saving = tch_checkpoint::save::SaveOptions::default();
            tch_checkpoint::save::save(&group, &*storage, &path, &state, &saving).unwrap();
            NNHandler::<Net>::load("runs/odd", options(&group, &storage)).map(drop)
        });
        assert_eq!(one_error(&results).kind(), ErrorKind::Mismatch, "{name}");
    }
}
