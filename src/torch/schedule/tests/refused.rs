//! Settings that cannot work and stored values that no scheduler saved.

use super::*;
use crate::state::Value;

fn refused(config: impl Into<SchedulerConfig>, unit: SchedulerUnit) {
    let mut optimizer = optimizer(&[0.1]);
    let config = config.into();
    let error = Scheduler::new(config.clone(), unit, &mut optimizer).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{config:?}");
    assert!(error.message().len() < 500, "{error}");
    assert_eq!(optimizer.lr(), 0.1);
}

/// Each of these settings is refused, alone and after a warm-up.
fn all_refused<C: Clone + Into<SchedulerConfig>>(bad: impl IntoIterator<Item = C>) {
    for config in bad {
        refused(config.clone(), SchedulerUnit::Epoch);
        refused(warmup(2, config), SchedulerUnit::Epoch);
    }
}

#[test]
fn settings_that_cannot_work_are_refused() {
    let no = [f64::NAN, f64::INFINITY, -1.0];
    let not_positive = || no.into_iter().chain([0.0]);
    all_refused(not_positive().map(|gamma| StepLr { step_size: 1, gamma }));
    all_refused([StepLr::default()]);
    all_refused(not_positive().map(|gamma| MultiStepLr { milestones: vec![1], gamma }));
    all_refused(
        [vec![], vec![2, 1], (0..10_001).collect()]
            .map(|milestones| MultiStepLr { milestones, ..MultiStepLr::default() }),
    );
    all_refused(not_positive().map(|gamma| ExponentialLr { gamma }));
    all_refused(no.map(|eta_min| CosineLr { t_max: 1, eta_min }));
    all_refused([CosineLr::default()]);
    all_refused(no.map(|eta_min| CosineRestarts { t_0: 1, t_mult: 1, eta_min }));
    all_refused([(0, 1), (1, 0)].map(|(t_0, t_mult)| CosineRestarts { t_0, t_mult, eta_min: 0.0 }));
}

#[test]
fn cycles_that_cannot_work_are_refused() {
    let good = OneCycle { max_lr: 1.0, total_steps: 9, ..OneCycle::default() };
    for bad in [f64::NAN, f64::INFINITY, -1.0, 0.0] {
        all_refused([
            OneCycle { max_lr: bad, ..good },
            OneCycle { div_factor: bad, ..good },
            OneCycle { final_div_factor: bad, ..good },
        ]);
    }
    all_refused([f64::NAN, -0.1, 1.1].map(|pct_start| OneCycle { pct_start, ..good }));
    all_refused([OneCycle::default(), OneCycle { total_steps: 0, ..good }]);
    all_refused([OneCycle { max_lr: 1e300, div_factor: 1e-300, ..good }]);
}

#[test]
fn plateaus_and_warm_ups_that_cannot_work_are_refused() {
    refused(plateau(1), SchedulerUnit::Step);
    refused(warmup(1, plateau(1)), SchedulerUnit::Step);
    let good = ReduceOnPlateau::default();
    all_refused([f64::NAN, 0.0, 1.0, -0.5].map(|factor| ReduceOnPlateau { factor, ..good }));
    all_refused([ReduceOnPlateau { threshold: 1.0, ..good }]);
    for bad in [f64::NAN, f64::INFINITY, -1.0] {
        all_refused([
            ReduceOnPlateau { threshold: bad, ..good },
            ReduceOnPlateau { min_lr: bad, ..good },
            ReduceOnPlateau { eps: bad, ..good },
        ]);
    }
    let factors = [f64::NAN, 0.0, 1.1, -1.0];
    all_refused(factors.map(|start_factor| Warmup { start_factor, ..Warmup::default() }));
    all_refused([Warmup { steps: 0, ..Warmup::default() }]);
}

/// So many warm-ups one after the other, and then a decay.
fn chain(warmups: usize) -> SchedulerConfig {
    let last = ExponentialLr { gamma: 0.5 }.into();
    (0..warmups).fold(last, |then, _| warmup(1, then).into())
}

#[test]
fn chains_have_a_limit() {
    let mut optimizer = optimizer(&[0.1]);
    Scheduler::new(chain(3), SchedulerUnit::Step, &mut optimizer).unwrap();
    refused(chain(4), SchedulerUnit::Step);
}

#[test]
fn learning_rates_that_cannot_be_are_refused() {
    let config = ExponentialLr { gamma: 1e200 };
    for lr in [f64::NAN, f64::INFINITY, -0.1] {
        let mut optimizer = optimizer(&[0.1, lr]);
        let error = Scheduler::new(config, SchedulerUnit::Step, &mut optimizer).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    }
    let mut optimizer = optimizer(&[0.1, 1.0]);
    let mut scheduler = Scheduler::new(config, SchedulerUnit::Step, &mut optimizer).unwrap();
    scheduler.advance(&mut optimizer, None).unwrap();
    let (before, kept) = (scheduler.clone(), lrs(&optimizer));
    let error = scheduler.advance(&mut optimizer, None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert_eq!((scheduler, lrs(&optimizer)), (before, kept));
}

#[test]
fn another_number_of_groups_is_refused() {
    let (mut one, mut two) = (optimizer(&[0.1]), optimizer(&[0.1, 0.2]));
    for (config, unit) in every_kind() {
        let mut scheduler = Scheduler::new(config.clone(), unit, &mut one).unwrap();
        let values = saved(&scheduler);
        let mut other = Scheduler::new(config, unit, &mut two).unwrap();
        let errors = [
            scheduler.advance(&mut two, Some(1.0)).unwrap_err(),
            Scheduler::from_values("scheduler", &values, &two).unwrap_err(),
            other.load_values("scheduler", &values).unwrap_err(),
        ];
        assert!(errors.iter().all(|error| error.kind() == ErrorKind::Mismatch), "{errors:?}");
        assert_eq!(scheduler.steps_done(), 0);
    }
}

#[test]
fn another_kind_is_refused() {
    let of = |config: SchedulerConfig| {
        Scheduler::new(config, SchedulerUnit::Epoch, &mut optimizer(&[0.1])).unwrap()
    };
    let step = StepLr { step_size: 1, gamma: 0.5 };
    let kinds: [SchedulerConfig; 4] =
        [step.into(), plateau(1).into(), warmup(1, step).into(), warmup(1, plateau(1)).into()];
    for stored in &kinds {
        let values = saved(&of(stored.clone()));
        for live in &kinds {
            let mut scheduler = of(live.clone());
            let found = scheduler.load_values("scheduler", &values);
            assert_eq!(found.is_ok(), stored == live, "{stored:?} into {live:?}");
            if let Err(error) = found {
                assert_eq!(error.kind(), ErrorKind::Mismatch);
                assert_eq!(scheduler, of(live.clone()));
            }
        }
    }
}

/// Loads the values of a plateau of which one is replaced; the error's kind.
fn hostile(name: &str, value: impl Into<Value>) -> ErrorKind {
    let mut optimizer = optimizer(&[0.1]);
    let mut live = Scheduler::new(plateau(2), SchedulerUnit::Epoch, &mut optimizer).unwrap();
    let mut values = saved(&live);
    assert!(values.find(&format!("scheduler.{name}")).is_some(), "{name}");
    values.set(format!("scheduler.{name}"), value);
    let error = Scheduler::from_values("scheduler", &values, &optimizer).unwrap_err();
    let before = live.clone();
    assert_eq!(live.check_values("scheduler", &values).unwrap_err().kind(), error.kind());
    assert_eq!(live.load_values("scheduler", &values).unwrap_err().kind(), error.kind());
    assert_eq!(live, before);
    assert!(error.message().len() < 500, "{error}");
    error.kind()
}

fn hostile_config(config: &str) -> ErrorKind {
    hostile("config", Value::Json(format!("{{\"config\":{config},\"unit\":\"epoch\"}}")))
}

#[test]
fn hostile_settings_are_refused() {
    let mut configs: Vec<String> = [
        "7",
        "{}",
        r#"{"scheduler":"unheard_of"}"#,
        r#"{"scheduler":"step"}"#,
        r#"{"scheduler":"step","step_size":0,"gamma":0.5}"#,
        r#"{"scheduler":"step","step_size":-1,"gamma":0.5}"#,
        r#"{"scheduler":"step","step_size":1,"gamma":1e999}"#,
        r#"{"scheduler":"cosine_restarts","t_0":0,"t_mult":0,"eta_min":0}"#,
        r#"{"scheduler":"warmup","start_factor":null,"steps":1,"then":null}"#,
    ]
    .map(str::to_owned)
    .to_vec();
    let many = vec!["0"; 100_000].join(",");
    configs.push(format!(r#"{{"scheduler":"multi_step","milestones":[{many}],"gamma":0.5}}"#));
    let milestones = format!("{many},{many},{many},{many},{many},{many}");
    configs.push(format!(r#"{{"scheduler":"multi_step","milestones":[{milestones}],"gamma":1}}"#));
    for depth in [5, 100, 10_000] {
        let open = r#"{"scheduler":"warmup","start_factor":1,"steps":1,"then":"#.repeat(depth);
        configs.push(format!("{open}null{}", "}".repeat(depth)));
        configs.push(open);
    }
    for config in configs {
        let shown: String = config.chars().take(80).collect();
        assert_eq!(hostile_config(&config), ErrorKind::Mismatch, "{shown}");
    }
    let steps = serde_json::to_string(&SchedulerConfig::from(plateau(2))).unwrap();
    let steps = Value::Json(format!("{{\"config\":{steps},\"unit\":\"step\"}}"));
    assert_eq!(hostile("config", steps), ErrorKind::Mismatch);
    assert_eq!(hostile("config", "no JSON"), ErrorKind::Mismatch);
}

#[test]
fn hostile_counters_are_refused() {
    let counters = |steps: &str, bad: &str, cooldown: &str| {
        let text =
            format!(r#"{{"steps_done":{steps},"bad_epochs":{bad},"cooldown_left":{cooldown}}}"#);
        hostile("state", Value::Json(text))
    };
    let far = "18446744073709551615";
    let beyond = "18446744073709551616";
    for (steps, bad, cooldown) in
        [("-1", "0", "0"), (beyond, "0", "0"), ("0", "3", "0"), ("0", far, "0"), ("0", "0", "1")]
    {
        assert_eq!(counters(steps, bad, cooldown), ErrorKind::Mismatch, "{steps} {bad} {cooldown}");
    }
    for lrs in [vec![f64::NAN], vec![f64::INFINITY], vec![-0.1], vec![], vec![0.1; 2]] {
        assert_eq!(hostile("base_lr", lrs), ErrorKind::Mismatch);
    }
    assert_eq!(hostile("best", f64::NAN), ErrorKind::Mismatch);
    assert_eq!(hostile("best", 1i64), ErrorKind::Mismatch);
    let optimizer = optimizer(&[0.1]);
    let error = Scheduler::from_values("missing", &Values::new(), &optimizer).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}
