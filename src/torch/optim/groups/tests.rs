use tch::Device;
use tch::nn::OptimizerConfig as _;

use super::super::tests::{load, loss, model, saved, train, values};
use super::super::{Adam, AdamW, Optimizer, Sgd};
use super::*;
use crate::group::ProcessGroup;

#[test]
fn a_star_is_any_text() {
    for (pattern, fits, does_not) in [
        ("a.bias", vec!["a.bias"], vec!["a.biases", "b.a.bias", "a.bia"]),
        ("*.bias", vec!["a.bias", "a.b.bias", ".bias"], vec!["bias", "a.bias.c"]),
        ("norm*", vec!["norm", "norm.weight"], vec!["a.norm"]),
        ("*norm*", vec!["norm", "a.norm.b"], vec!["nor.m"]),
        ("a*b*c", vec!["abc", "a.bb.bc", "abcbc"], vec!["ac", "acb", "ab"]),
        ("ab*ba", vec!["abba", "ab.ba"], vec!["aba"]),
        ("a**a", vec!["aa", "aba"], vec!["a"]),
        ("*", vec!["", "anything"], vec![]),
    ] {
        assert!(fits.iter().all(|name| is_match(pattern, name)), "{pattern}: {fits:?}");
        assert!(!does_not.iter().any(|name| is_match(pattern, name)), "{pattern}");
    }
}

fn group(names: &[&str]) -> ParamGroupConfig {
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    ParamGroupConfig { names, ..ParamGroupConfig::default() }
}

/// Biases are not decayed; the second layer learns more slowly, and with other decay.
fn groups() -> [ParamGroupConfig; 2] {
    let slow = ParamGroupConfig { lr: Some(0.003), weight_decay: Some(0.2), ..group(&["second*"]) };
    [ParamGroupConfig { weight_decay: Some(0.0), ..group(&["*.bias"]) }, slow]
}

fn members(optimizer: &Optimizer) -> Vec<Vec<&str>> {
    let groups = optimizer.groups().iter();
    groups.map(|group| group.parameters().map(|(name, _)| name).collect()).collect()
}

#[test]
fn a_parameter_is_in_the_first_group_that_names_it() {
    let store = model();
    let groups = [group(&["*.bias", "second.*"]), group(&["first*", "*.weight"])];
    let optimizer = Optimizer::with_groups(Sgd::default(), &store, &groups).unwrap();
    let expected = [vec!["unused"], vec!["first.bias", "second.weight"], vec!["first.weight"]];
    assert_eq!(members(&optimizer), expected);
    assert_eq!(members(&Optimizer::with_groups(Sgd::default(), &store, &[]).unwrap()).len(), 1);
}

#[test]
fn groups_learn_and_decay_as_in_libtorch() {
    let config = AdamW { lr: 0.01, weight_decay: 0.1, ..AdamW::default() };
    let ours = model();
    let mut optimizer = Optimizer::with_groups(config, &ours, &groups()).unwrap();
    train(&ours, &mut optimizer, 0..30);

    let theirs = model();
    for variable in &mut theirs.variables_.lock().unwrap().trainable_variables {
        variable.group = match variable.tensor.size()[..] {
            [8] => 1,
            [2, 8] => 2,
            _ => 0,
        };
    }
    let libtorch = nn::AdamW { wd: 0.1, ..nn::AdamW::default() };
    let mut libtorch = libtorch.build(&theirs, 0.01).unwrap();
    libtorch.set_weight_decay_group(1, 0.0);
    libtorch.set_weight_decay_group(2, 0.2);
    libtorch.set_lr_group(2, 0.003);
    for step in 0..30 {
        libtorch.zero_grad();
        loss(&theirs, step).backward();
        libtorch.step();
    }
    let close = |(a, b): (f64, f64)| (a - b).abs() <= 1e-6;
    assert!(values(&ours).into_iter().zip(values(&theirs)).all(close));

    let uniform = model();
    train(&uniform, &mut Optimizer::new(config, &uniform).unwrap(), 0..30);
    assert!(!values(&ours).into_iter().zip(values(&uniform)).all(close));
}

#[test]
fn groups_that_cannot_be_are_refused() {
    let grouped = model();
    let _ = grouped.root().set_group(1).zeros("grouped", &[2]);
    let settings = |lr, weight_decay| ParamGroupConfig { lr, weight_decay, ..group(&["*"]) };
    for (store, groups, named) in [
        (&model(), vec![group(&["*.bias", "third.*"])], "third.*"),
        (&model(), vec![group(&[])], "no names"),
        (&model(), vec![group(&["first.*"]), group(&["*.bias"])], "group 2"),
        (&model(), vec![settings(Some(f64::NAN), None)], "NaN"),
        (&model(), vec![settings(None, Some(-1.0))], "-1"),
        (&grouped, vec![group(&["*.bias"])], "`tch`"),
    ] {
        let error = Optimizer::with_groups(Sgd::default(), store, &groups).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert!(error.to_string().contains(named), "{error}");
    }
}

#[test]
fn variables_that_come_later_find_their_group() {
    let store = model();
    let mut optimizer = Optimizer::with_groups(Adam::default(), &store, &groups()).unwrap();
    let _ = (store.root() / "third").zeros("bias", &[2]);
    let _ = (store.root() / "third").zeros("weight", &[2]);
    assert_eq!(optimizer.add_parameters(&store).unwrap(), 2);
    let expected = [
        vec!["first.weight", "third.weight", "unused"],
        vec!["first.bias", "third.bias"],
        vec!["second.weight"],
    ];
    assert_eq!(members(&optimizer), expected);

    // Also where the groups came out of a checkpoint.
    let solo = ProcessGroup::solo();
    let state = saved(&optimizer);
    let mut again = Optimizer::of_values("optimizer", &state.values, &store, &solo).unwrap();
    assert_eq!(members(&again), expected);
    let _ = (store.root() / "fourth").zeros("bias", &[2]);
    assert_eq!(again.add_parameters(&store).unwrap(), 1);
    assert_eq!(members(&again)[1], ["first.bias", "fourth.bias", "third.bias"]);
}

#[test]
fn groups_come_back_with_their_members_and_rates() {
    let store = model();
    let mut optimizer = Optimizer::with_groups(Adam::default(), &store, &groups()).unwrap();
    optimizer.groups_mut()[1].lr = 0.125;
    let state = saved(&optimizer);
    let solo = ProcessGroup::solo();
    let mut again = Optimizer::of_values("optimizer", &state.values, &store, &solo).unwrap();
    load(&mut again, &state);
    assert_eq!(members(&again), members(&optimizer));
    let rates = |o: &Optimizer| o.groups().iter().map(|g| (g.lr, g.weight_decay)).collect();
    let rates: [Vec<_>; 2] = [rates(&optimizer), rates(&again)];
    assert_eq!(rates[0], [(1e-3, 0.0), (0.125, 0.0), (0.003, 0.2)]);
    assert_eq!(rates[1], rates[0]);
}

#[test]
fn other_groups_are_a_mismatch_that_names_a_parameter() {
    let store = model();
    let state = saved(&Optimizer::with_groups(Adam::default(), &store, &groups()).unwrap());
    let check = |groups: &[ParamGroupConfig]| {
        let optimizer = Optimizer::with_groups(Adam::default(), &store, groups).unwrap();
        optimizer.check_values("optimizer", &state.values)
    };
    // By other names, but with the same members.
    check(&[group(&["first.bias"]), group(&["*d.weight"])]).unwrap();
    let error = check(&[group(&["*.bias", "unused"]), group(&["second*"])]).unwrap_err();
    assert_eq!((error.kind(), error.tensor()), (ErrorKind::Mismatch, Some("unused")), "{error}");
    assert_eq!(check(&[group(&["*.bias"])]).unwrap_err().kind(), ErrorKind::Mismatch);
}

#[test]
fn checkpoints_without_members_have_groups_by_count() {
    let grouped = || {
        let store = nn::VarStore::new(Device::Cpu);
        let _ = store.root().zeros("plain", &[2]);
        let _ = store.root().set_group(1).zeros("grouped", &[2]);
        store
    };
    let mut state = saved(&Optimizer::new(Adam::default(), &grouped()).unwrap());
    let mut old = crate::state::Values::new();
    for (name, value) in state.values.iter().filter(|(name, _)| *name != "optimizer.groups") {
        old.set(name, value.clone());
    }
    assert_eq!(old.len() + 1, state.values.len());
    state.values = old;
    let solo = ProcessGroup::solo();
    let again = Optimizer::of_values("optimizer", &state.values, &grouped(), &solo).unwrap();
    again.check_values("optimizer", &state.values).unwrap();
    assert_eq!(members(&again), [["plain"], ["grouped"]]);
    let one = Optimizer::of_values("optimizer", &state.values, &model(), &solo).unwrap();
    let error = one.check_values("optimizer", &state.values).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Mismatch, "{error}");
}

#[test]
fn stored_groups_that_make_no_sense_are_refused() {
    let store = model();
    let solo = ProcessGroup::solo();
    let mut values =
        saved(&Optimizer::with_groups(Adam::default(), &store, &groups()).unwrap()).values;
    let member = r#"{"names":[],"parameters":["unused"]}"#;
    for text in [format!("[{member},{member},{member}]"), format!("[{member}]"), "3".to_owned()] {
        values.set("optimizer.groups", crate::state::Value::Json(text.clone()));
        let made = Optimizer::of_values("optimizer", &values, &store, &solo);
        let error = made.and_then(|made| made.check_values("optimizer", &values)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Mismatch, "{text}: {error}");
    }
}
