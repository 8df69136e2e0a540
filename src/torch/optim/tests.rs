use tch::nn::OptimizerConfig as _;
use tch::{Reduction, TchError};

use super::*;
use crate::state::{LoadTargets, StateDict, Stateful};
use crate::torch::testing::fill;

/// Two layers with fixed weights, so that no test draws from the generator.
pub(super) fn model() -> nn::VarStore {
    let store = nn::VarStore::new(Device::Cpu);
    let wave = |shape: &[i64], pitch: f64| {
        let elements: i64 = shape.iter().product();
        (Tensor::arange(elements, (Kind::Float, Device::Cpu)) * pitch).sin().reshape(shape) * 0.5
    };
    let (first, second) = (store.root() / "first", store.root() / "second");
    let _ = first.var_copy("weight", &wave(&[8, 4], 1.3));
    let _ = first.var_copy("bias", &wave(&[8], 0.7));
    let _ = second.var_copy("weight", &wave(&[2, 8], 2.1));
    let _ = store.root().zeros("unused", &[3]);
    store
}

pub(super) fn loss(store: &nn::VarStore, step: i64) -> Tensor {
    let v = store.variables();
    let phase = step as f64 * 0.3;
    let input = (Tensor::arange(24, (Kind::Float, Device::Cpu)) * 0.37 + phase).sin();
    let input = input.reshape([6, 4]);
    let target = input.narrow(1, 0, 2) * 0.5 - 0.1;
    let hidden = (input.matmul(&v["first.weight"].transpose(0, 1)) + &v["first.bias"]).tanh();
    hidden.matmul(&v["second.weight"].transpose(0, 1)).mse_loss(&target, Reduction::Mean)
}

pub(super) fn train(store: &nn::VarStore, optimizer: &mut Optimizer, steps: std::ops::Range<i64>) {
    for step in steps {
        optimizer.zero_grad().unwrap();
        loss(store, step).backward();
        optimizer.step().unwrap();
    }
}

pub(super) fn values(store: &nn::VarStore) -> Vec<f64> {
    let mut named: Vec<_> = store.variables().into_iter().collect();
    named.sort_by(|a, b| a.0.cmp(&b.0));
    named
        .iter()
        .flat_map(|(_, t)| Vec::<f64>::try_from(t.to_kind(Kind::Double).view(-1)).unwrap())
        .collect()
}

/// Fifty steps of ours and of libtorch's own from the same weights.
fn check_against_libtorch(
    config: impl Into<OptimizerConfig>,
    theirs: impl FnOnce(&nn::VarStore) -> Result<nn::Optimizer, TchError>,
) {
    let (our_store, their_store) = (model(), model());
    let config = config.into();
    let mut ours = Optimizer::new(config, &our_store).unwrap();
    let mut theirs = theirs(&their_store).unwrap();
    let begin = values(&our_store);
    train(&our_store, &mut ours, 0..50);
    for step in 0..50 {
        theirs.zero_grad();
        loss(&their_store, step).backward();
        theirs.step();
    }
    let (a, b) = (values(&our_store), values(&their_store));
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut a.iter().zip(&b).map(|(x, y)| x - y));
    let moved = norm(&mut a.iter().zip(&begin).map(|(x, y)| x - y));
    assert!(moved > 0.01, "{config:?} did not train");
    assert!(difference <= 1e-6 * moved, "{config:?}: {difference} of {moved}");
}

#[test]
fn sgd_equals_libtorch() {
    let lr = 0.1;
    let check = |config: Sgd| {
        let Sgd { momentum, dampening, weight_decay, nesterov, .. } = config;
        let theirs = nn::sgd(momentum, dampening, weight_decay, nesterov);
        check_against_libtorch(config, |store| theirs.build(store, lr));
    };
    check(Sgd { lr, ..Sgd::default() });
    check(Sgd { lr, weight_decay: 0.1, ..Sgd::default() });
    check(Sgd { lr, momentum: 0.9, dampening: 0.3, ..Sgd::default() });
    check(Sgd { lr, momentum: 0.9, nesterov: true, weight_decay: 0.01, ..Sgd::default() });
}

#[test]
fn adam_equals_libtorch() {
    let lr = 0.01;
    for (weight_decay, amsgrad) in [(0.0, false), (0.1, false), (0.0, true)] {
        let config = Adam { lr, weight_decay, amsgrad, ..Adam::default() };
        let theirs = nn::Adam { wd: weight_decay, amsgrad, ..nn::Adam::default() };
        check_against_libtorch(config, |store| theirs.build(store, lr));
        let config = AdamW { lr, weight_decay, amsgrad, betas: (0.8, 0.99), eps: 1e-6 };
        let theirs = nn::AdamW { beta1: 0.8, beta2: 0.99, wd: weight_decay, eps: 1e-6, amsgrad };
        check_against_libtorch(config, |store| theirs.build(store, lr));
    }
}

#[test]
fn rmsprop_equals_libtorch() {
    let lr = 0.01;
    for (momentum, centered, weight_decay) in
        [(0.0, false, 0.0), (0.5, false, 0.1), (0.0, true, 0.0), (0.5, true, 0.0)]
    {
        let config = RmsProp { lr, momentum, centered, weight_decay, ..RmsProp::default() };
        let theirs = nn::rms_prop(0.99, 1e-8, weight_decay, momentum, centered);
        check_against_libtorch(config, |store| theirs.build(store, lr));
    }
}

fn algorithms() -> Vec<OptimizerConfig> {
    vec![
        Sgd { lr: 0.1, ..Sgd::default() }.into(),
        Sgd { lr: 0.1, momentum: 0.9, dampening: 0.5, ..Sgd::default() }.into(),
        Adam { lr: 0.03, weight_decay: 0.1, ..Adam::default() }.into(),
        AdamW { lr: 0.03, amsgrad: true, ..AdamW::default() }.into(),
        RmsProp { lr: 0.03, momentum: 0.5, centered: true, ..RmsProp::default() }.into(),
    ]
}

pub(super) fn saved(optimizer: &Optimizer) -> StateDict {
    let mut state = StateDict::new();
    optimizer.save_state("optimizer", &mut state).unwrap();
    state
}

pub(super) fn load(optimizer: &mut Optimizer, state: &StateDict) {
    let mut targets = LoadTargets::new();
    optimizer.load_targets("optimizer", &mut targets).unwrap();
    fill(state, &mut targets);
    drop(targets);
    optimizer.load_values("optimizer", &state.values, &state.rank_values).unwrap();
}

#[test]
fn a_fresh_optimizer_continues_bit_for_bit() {
    for config in algorithms() {
        for steps in [0, 1, 5] {
            let mut whole = model();
            let mut optimizer = Optimizer::new(config, &whole).unwrap();
            train(&whole, &mut optimizer, 0..steps);
            optimizer.set_lr(optimizer.lr() * 0.7);
            let mut resumed = model();
            resumed.copy(&whole).unwrap();
            let mut fresh = Optimizer::new(config, &resumed).unwrap();
            load(&mut fresh, &saved(&optimizer));
            assert_eq!(fresh.lr().to_bits(), optimizer.lr().to_bits());
            train(&whole, &mut optimizer, steps..steps + 5);
            train(&resumed, &mut fresh, steps..steps + 5);
            assert_eq!(values(&whole), values(&resumed), "{config:?} after {steps}");
            whole.freeze();
        }
    }
}

#[test]
fn without_its_state_an_optimizer_takes_another_course() {
    for config in algorithms().into_iter().skip(1) {
        let (whole, mut resumed) = (model(), model());
        let mut optimizer = Optimizer::new(config, &whole).unwrap();
        train(&whole, &mut optimizer, 0..5);
        resumed.copy(&whole).unwrap();
        let mut fresh = Optimizer::new(config, &resumed).unwrap();
        train(&whole, &mut optimizer, 5..6);
        train(&resumed, &mut fresh, 5..6);
        assert_ne!(values(&whole), values(&resumed), "{config:?}");
    }
}

#[test]
fn state_has_the_names_of_pytorch() {
    let store = model();
    let mut optimizer = Optimizer::new(AdamW::default(), &store).unwrap();
    train(&store, &mut optimizer, 0..2);
    let state = saved(&optimizer);
    let names: Vec<_> = state.tensors().map(|(name, _)| name.as_str()).take(3).collect();
    let bias = ["exp_avg", "exp_avg_sq", "step"].map(|s| format!("optimizer.first.bias.{s}"));
    assert_eq!(names, bias);
    let step = |name: &str| {
        let mut bytes = [0u8; 4];
        let entry = &state.boxes(&format!("optimizer.{name}.step"))[0];
        assert_eq!(entry.component, crate::tensor::Component::optimizer());
        assert!(entry.spec.shape().is_empty());
        entry.source.read_into(0, &mut bytes).unwrap();
        f32::from_le_bytes(bytes)
    };
    // A parameter that takes no part is not stepped, as in PyTorch.
    assert_eq!((step("first.bias"), step("unused")), (2.0, 0.0));
    assert_eq!(saved(&Optimizer::new(Sgd::default(), &store).unwrap()).size_bytes(), 0);
}

#[test]
fn settings_of_the_checkpoint_win_unless_they_need_other_state() {
    let store = model();
    let of = |config: OptimizerConfig| Optimizer::new(config, &store).unwrap();
    let saved_config = Adam { lr: 0.3, betas: (0.7, 0.12345678901234567), ..Adam::default() };
    let state = saved(&of(saved_config.into()));
    let mut optimizer = of(Adam::default().into());
    load(&mut optimizer, &state);
    assert_eq!(*optimizer.config(), saved_config.into());
    for other in [AdamW::default().into(), Adam { amsgrad: true, ..Adam::default() }.into()] {
        let mut other = of(other);
        let error = other.load_values("optimizer", &state.values, &state.rank_values).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Mismatch, "{error}");
    }
    let error = optimizer.load_values("missing", &state.values, &state.rank_values).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

#[test]
fn settings_survive_to_the_last_bit() {
    for i in 1..2000 {
        let config =
            OptimizerConfig::from(Sgd { lr: f64::from(i).sqrt().fract(), ..Sgd::default() });
        let mut values = crate::state::Values::new();
        values.set("config", crate::state::Value::json(&config).unwrap());
        assert_eq!(values.json::<OptimizerConfig>("config").unwrap(), config);
    }
}

#[test]
fn settings_that_cannot_work_are_refused() {
    let bad: [OptimizerConfig; 6] = [
        Sgd { nesterov: true, ..Sgd::default() }.into(),
        Sgd { lr: -1.0, ..Sgd::default() }.into(),
        Adam { lr: f64::NAN, ..Adam::default() }.into(),
        Adam { betas: (1.0, 0.9), ..Adam::default() }.into(),
        AdamW { weight_decay: f64::INFINITY, ..AdamW::default() }.into(),
        RmsProp { eps: -1.0, ..RmsProp::default() }.into(),
    ];
    for config in bad {
        let error = Optimizer::new(config, &model()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{config:?}");
    }
}

#[test]
fn groups_tied_and_late_variables_are_found() {
    let store = model();
    let _ = store.root().set_group(1).zeros("grouped", &[2]);
    let tied = store.variables()["second.weight"].shallow_clone();
    store.variables_.lock().unwrap().named_variables.insert("a.tied".to_owned(), tied);
    let mut optimizer = Optimizer::new(Sgd::default(), &store).unwrap();
    let names = |optimizer: &Optimizer| -> Vec<String> {
        optimizer.parameters().map(|(name, _)| name.to_owned()).collect()
    };
    assert_eq!(names(&optimizer), ["a.tied", "first.bias", "first.weight", "unused", "grouped"]);
    assert_eq!(optimizer.groups().len(), 2);
    optimizer.groups_mut()[1].lr = 0.5;
    assert_eq!(optimizer.lr(), 1e-3);
    let _ = (store.root() / "b").zeros("late", &[2]);
    assert_eq!(optimizer.add_parameters(&store).unwrap(), 1);
    assert_eq!(optimizer.add_parameters(&store).unwrap(), 0);
    assert_eq!(names(&optimizer)[1], "b.late");
}

#[test]
fn a_frozen_parameter_stays() {
    let mut store = model();
    let mut optimizer = Optimizer::new(Adam::default(), &store).unwrap();
    train(&store, &mut optimizer, 0..1);
    optimizer.zero_grad().unwrap();
    store.freeze();
    let before = values(&store);
    optimizer.step().unwrap();
    assert_eq!(values(&store), before);
}
