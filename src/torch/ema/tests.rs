use tch::{Device, nn};

use super::*;
use crate::state::{LoadTargets, StateDict, Stateful, Value, Values};
use crate::tensor::{Component, Dtype};
use crate::torch::testing::fill;

fn wave(elements: i64, pitch: f64) -> Tensor {
    (Tensor::arange(elements, (Kind::Float, Device::Cpu)) * pitch).sin()
}

fn model(kind: Kind) -> nn::VarStore {
    let mut store = nn::VarStore::new(Device::Cpu);
    let _ = store.root().var_copy("weight", &wave(6, 1.3).reshape([2, 3]));
    let _ = (store.root() / "head").var_copy("bias", &wave(4, 0.7));
    let _ = store.root().zeros_no_train("buffer", &[2]);
    store.set_kind(kind);
    store
}

/// What an optimizer step would do: another value for every parameter.
fn step(store: &nn::VarStore, number: i64) {
    tch::no_grad(|| {
        for mut variable in store.trainable_variables() {
            let change = wave(i64::try_from(variable.numel()).unwrap(), 0.3 + number as f64);
            let _ = variable.g_add_(&(change.view_as(&variable) * 0.1).to_kind(variable.kind()));
        }
    });
}

fn bits(tensor: &Tensor) -> Vec<u64> {
    let numbers = Vec::<f64>::try_from(tensor.to_kind(Kind::Double).view(-1)).unwrap();
    numbers.into_iter().map(f64::to_bits).collect()
}

fn parameters(store: &nn::VarStore) -> Vec<Vec<u64>> {
    crate::torch::var_store::named(store).values().map(bits).collect()
}

fn averages(ema: &Ema) -> Vec<Vec<u64>> {
    ema.averages().map(|(_, shadow)| bits(shadow)).collect()
}

/// A store of one parameter in f64.
fn single(value: f64) -> (nn::VarStore, Tensor) {
    let mut store = nn::VarStore::new(Device::Cpu);
    let mut variable = store.root().zeros("x", &[1]);
    store.set_kind(Kind::Double);
    let _ = tch::no_grad(|| variable.fill_(value));
    (store, variable)
}

#[test]
fn averages_follow_the_formula() {
    let course = [1.0, 3.0, -2.0, 0.5];
    for (warm_up, decays) in [(false, [0.9; 4]), (true, [2.0 / 11.0, 0.25, 4.0 / 13.0, 5.0 / 14.0])]
    {
        let (store, mut x) = single(2.0);
        let mut ema = Ema::new(EmaConfig { decay: 0.9, warm_up }, &store).unwrap();
        let mut expected = 2.0;
        for (value, decay) in course.into_iter().zip(decays) {
            let _ = tch::no_grad(|| x.fill_(value));
            ema.update().unwrap();
            expected += (1.0 - decay) * (value - expected);
        }
        let (_, average) = ema.averages().next().unwrap();
        let difference = average.double_value(&[0]) - expected;
        assert!(difference.abs() < 1e-14, "warm_up {warm_up}: {difference}");
        assert_eq!(ema.updates(), 4);
        assert!(!average.requires_grad());
    }
}

#[test]
fn warm_up_ends_at_the_decay_and_the_ends_of_its_range_are_exact() {
    let config = EmaConfig { decay: 0.5, warm_up: true };
    assert_eq!(
        (config.decay_at(7), config.decay_at(8), config.decay_at(100)),
        (8.0 / 17.0, 0.5, 0.5)
    );
    for (decay, expected) in [(0.0, 0.1), (1.0, 0.7)] {
        let (store, mut x) = single(0.7);
        let mut ema = Ema::new(EmaConfig { decay, warm_up: false }, &store).unwrap();
        let _ = tch::no_grad(|| x.fill_(0.1));
        ema.update().unwrap();
        assert_eq!(ema.averages().next().unwrap().1.double_value(&[0]), expected);
    }
}

#[test]
fn bad_decays_are_refused() {
    for decay in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
        let error = Ema::new(EmaConfig { decay, warm_up: true }, &model(Kind::Float)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{decay}");
    }
}

#[test]
fn tied_variables_count_once_and_buffers_not() {
    let store = model(Kind::Float);
    let tied = store.variables()["weight"].shallow_clone();
    store.variables_.lock().unwrap().named_variables.insert("a.tied".to_owned(), tied);
    let mut ema = Ema::new(EmaConfig::default(), &store).unwrap();
    let names = |ema: &Ema| ema.averages().map(|(name, _)| name.to_owned()).collect::<Vec<_>>();
    assert_eq!(names(&ema), ["a.tied", "head.bias"]);
    let _ = (store.root() / "b").zeros("late", &[2]);
    assert_eq!(ema.add_parameters(&store).unwrap(), 1);
    assert_eq!(ema.add_parameters(&store).unwrap(), 0);
    assert_eq!(names(&ema), ["a.tied", "b.late", "head.bias"]);
}

#[test]
fn swapping_twice_restores_every_bit() {
    for kind in [Kind::Float, Kind::Double, Kind::BFloat16, Kind::Half] {
        let store = model(kind);
        let mut ema = Ema::new(EmaConfig::default(), &store).unwrap();
        for number in 0..3 {
            step(&store, number);
            ema.update().unwrap();
        }
        let (own, shadows) = (parameters(&store), averages(&ema));
        let addresses: Vec<_> = store.trainable_variables().iter().map(Tensor::data_ptr).collect();
        ema.swap().unwrap();
        assert!(ema.is_swapped());
        assert_eq!(averages(&ema), shadows);
        for (name, shadow) in ema.averages() {
            assert_eq!(bits(&store.variables()[name]), bits(&shadow.to_kind(kind)), "{kind:?}");
        }
        assert_ne!(parameters(&store), own);
        ema.swap().unwrap();
        assert!(!ema.is_swapped());
        assert_eq!((parameters(&store), averages(&ema)), (own, shadows), "{kind:?}");
        let after: Vec<_> = store.trainable_variables().iter().map(Tensor::data_ptr).collect();
        assert_eq!(after, addresses, "in place");
        assert!(store.trainable_variables().iter().all(Tensor::requires_grad));
    }
}

#[test]
fn a_swap_that_fails_half_way_leaves_the_model_as_it_was() {
    let store = model(Kind::Float);
    let mut ema = Ema::new(EmaConfig::default(), &store).unwrap();
    step(&store, 0);
    let own = parameters(&store);
    // The last one cannot be copied: the ones before it were, by then.
    ema.averages.last_mut().unwrap().shadow = Tensor::zeros([7], (Kind::Float, Device::Cpu));
    let error = ema.swap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Device);
    assert!(error.to_string().contains("weight"), "{error}");
    assert!(!ema.is_swapped());
    assert_eq!(parameters(&store), own);
}

#[test]
fn the_model_can_keep_the_averages() {
    for swapped in [false, true] {
        let store = model(Kind::Float);
        let mut ema = Ema::new(EmaConfig::default(), &store).unwrap();
        step(&store, 0);
        ema.update().unwrap();
        if swapped {
            ema.swap().unwrap();
        }
        ema.copy_to_model().unwrap();
        assert!(!ema.is_swapped());
        for (name, shadow) in ema.averages() {
            assert_eq!(bits(&store.variables()[name]), bits(shadow));
        }
        ema.update().unwrap();
    }
}

#[test]
fn while_swapped_nothing_is_saved_loaded_or_updated() {
    let store = model(Kind::Float);
    let mut ema = Ema::new(EmaConfig::default(), &store).unwrap();
    ema.swap().unwrap();
    let refused = [
        ema.save_state("ema", &mut StateDict::new()),
        ema.update(),
        ema.add_parameters(&store).map(drop),
    ];
    for refused in refused {
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidInput);
    }
    let refused = ema.load_targets("ema", &mut LoadTargets::new());
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::InvalidInput);
}

fn saved(ema: &Ema) -> StateDict {
    let mut state = StateDict::new();
    ema.save_state("ema", &mut state).unwrap();
    state
}

#[test]
fn fresh_averages_continue_bit_for_bit() {
    for kind in [Kind::Float, Kind::BFloat16] {
        let store = model(kind);
        let mut ema = Ema::new(EmaConfig { decay: 0.97, warm_up: true }, &store).unwrap();
        for number in 0..5 {
            step(&store, number);
            ema.update().unwrap();
        }
        let state = saved(&ema);
        let mut other = model(kind);
        other.copy(&store).unwrap();
        let mut resumed = Ema::from_values("ema", &state.values, &other).unwrap();
        assert_ne!(averages(&resumed), averages(&ema));
        let mut targets = LoadTargets::new();
        resumed.load_targets("ema", &mut targets).unwrap();
        fill(&state, &mut targets);
        drop(targets);
        resumed.load_values("ema", &state.values, &state.rank_values).unwrap();
        for number in 5..10 {
            step(&store, number);
            step(&other, number);
            ema.update().unwrap();
            resumed.update().unwrap();
        }
        assert_eq!(averages(&resumed), averages(&ema), "{kind:?}");
        assert_eq!((resumed.config(), resumed.updates()), (ema.config(), 10));
    }
}

#[test]
fn state_is_f32_in_a_component_of_its_own() {
    let state = saved(&Ema::new(EmaConfig::default(), &model(Kind::Half)).unwrap());
    let names: Vec<_> = state.tensors().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["ema.head.bias", "ema.weight"]);
    let entry = &state.boxes("ema.weight")[0];
    assert_eq!((entry.component.clone(), entry.spec.dtype()), (Component::ema(), Dtype::F32));
    assert_eq!(Component::ema(), Component::new("ema").unwrap());
}

#[test]
fn values_that_do_not_fit_are_refused_and_change_nothing() {
    let store = model(Kind::Float);
    let mut ema = Ema::new(EmaConfig { decay: 0.5, warm_up: false }, &store).unwrap();
    let config = |decay| Value::json(&EmaConfig { decay, warm_up: true }).unwrap();
    let bad = [
        ("ema.config", config(1.5)),
        ("ema.config", config(f64::NAN)),
        ("ema.config", Value::Json("[]".to_owned())),
        ("ema.config", Value::Int(1)),
        ("ema.updates", Value::Int(-1)),
        ("ema.updates", Value::Float(3.0)),
    ];
    for (name, value) in bad {
        let mut values = saved(&ema).values;
        values.set(name, value.clone());
        let errors = [
            ema.check_values("ema", &values).unwrap_err(),
            ema.load_values("ema", &values, &Values::new()).unwrap_err(),
            Ema::from_values("ema", &values, &store).unwrap_err(),
        ];
        assert!(errors.iter().all(|e| e.kind() == ErrorKind::Mismatch), "{value:?}: {errors:?}");
        assert_eq!((ema.config().decay, ema.updates()), (0.5, 0));
    }
    let missing = ema.check_values("ema", &Values::new()).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    let mut values = saved(&ema).values;
    values.set("ema.updates", i64::MAX);
    ema.load_values("ema", &values, &Values::new()).unwrap();
    ema.update().unwrap();
}
