use tch::{Device, Kind};

use super::*;
use crate::ErrorKind;
use crate::torch::testing::fill;

fn store() -> nn::VarStore {
    let store = nn::VarStore::new(Device::Cpu);
    let layer = store.root() / "layer";
    let weight = Tensor::arange(6, (Kind::Float, Device::Cpu)).reshape([2, 3]);
    let _ = layer.var_copy("weight", &weight);
    let _ = layer.zeros_no_train("running", &[3]);
    store
}

/// Gives a variable of the store a second name.
fn tie(store: &nn::VarStore, name: &str, target: &Tensor) {
    let mut variables = store.variables_.lock().unwrap();
    variables.named_variables.insert(name.to_owned(), target.shallow_clone());
}

fn names(state: &StateDict) -> Vec<&str> {
    state.tensors().map(|(name, _)| name.as_str()).collect()
}

#[test]
fn variables_and_buffers_keep_their_names() {
    let mut state = StateDict::new();
    add_var_store(&mut state, &Component::model(), "", &store()).unwrap();
    assert_eq!(names(&state), ["layer.running", "layer.weight"]);
    let mut state = StateDict::new();
    add_var_store(&mut state, &Component::model(), "ema", &store()).unwrap();
    assert_eq!(names(&state), ["ema.layer.running", "ema.layer.weight"]);
    assert_eq!(state.size_bytes(), 9 * 4);
}

#[test]
fn a_store_is_filled_from_another() {
    let (from, into) = (store(), store());
    for tensor in into.variables().values_mut() {
        let _ = tch::no_grad(|| tensor.fill_(-1.0));
    }
    let mut state = StateDict::new();
    add_var_store(&mut state, &Component::model(), "m", &from).unwrap();
    let mut targets = LoadTargets::new();
    var_store_targets(&mut targets, "m", &into).unwrap();
    fill(&state, &mut targets);
    for (name, tensor) in from.variables() {
        assert!(tensor.equal(&into.variables()[&name]), "{name}");
    }
    assert!(into.trainable_variables().iter().all(Tensor::requires_grad));
}

#[test]
fn tied_variables_are_stored_once_under_the_first_name() {
    let store = store();
    let weight = store.variables()["layer.weight"].shallow_clone();
    tie(&store, "head.weight", &weight);
    tie(&store, "z.weight", &weight.detach());
    tie(&store, "part", &weight.narrow(0, 0, 1));
    tie(&store, "transposed", &weight.transpose(0, 1));
    let mut state = StateDict::new();
    add_var_store(&mut state, &Component::model(), "", &store).unwrap();
    assert_eq!(names(&state), ["head.weight", "layer.running", "part", "transposed"]);
    let aliases: Vec<_> = state.aliases().iter().map(|(a, t)| (a.as_str(), t.as_str())).collect();
    assert_eq!(aliases, [("layer.weight", "head.weight"), ("z.weight", "head.weight")]);

    let mut targets = LoadTargets::new();
    var_store_targets(&mut targets, "", &store).unwrap();
    assert!(targets.targets().keys().map(|n| n.as_str()).eq(names(&state)));
}

#[test]
fn empty_variables_are_never_tied() {
    let store = nn::VarStore::new(Device::Cpu);
    let _ = store.root().zeros("a", &[0]);
    let _ = store.root().zeros("b", &[0]);
    let mut state = StateDict::new();
    add_var_store(&mut state, &Component::model(), "", &store).unwrap();
    assert_eq!(names(&state), ["a", "b"]);
}

#[test]
fn a_variable_that_cannot_be_stored_is_named() {
    let store = store();
    tie(&store, "sparse", &Tensor::ones([2, 2], (Kind::Float, Device::Cpu)).to_sparse_csr(None));
    let error = add_var_store(&mut StateDict::new(), &Component::model(), "m", &store).unwrap_err();
    assert_eq!((error.kind(), error.tensor()), (ErrorKind::Unsupported, Some("m.sparse")));
}
