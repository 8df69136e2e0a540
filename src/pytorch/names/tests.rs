use super::*;
use crate::state::Value;
use crate::tensor::Dtype;

/// A tensor of this name and shape.
type Fake = (&'static str, Vec<u64>);

fn dict(entries: Vec<(&str, Tree<Fake>)>) -> Tree<Fake> {
    Tree::Dict(entries.into_iter().map(|(key, tree)| (Key::Text(key.to_owned()), tree)).collect())
}

fn tensor(name: &'static str, shape: &[u64]) -> Tree<Fake> {
    Tree::Tensor((name, shape.to_vec()))
}

fn float(value: f64) -> Tree<Fake> {
    Tree::Plain(Plain::Float(value))
}

fn named_by(tree: Tree<Fake>, rules: NameRules) -> Result<Named<Fake>> {
    let spec_of = |fake: &Fake| TensorSpec::new(Dtype::F32, fake.1.clone());
    named(tree, &spec_of, rules)
}

fn model() -> Tree<Fake> {
    dict(vec![("w", tensor("w", &[2, 3])), ("b", tensor("b", &[3]))])
}

fn settings(decay: f64, is_decoupled: Option<bool>) -> Vec<(&'static str, Tree<Fake>)> {
    let betas = Tree::List(vec![float(0.9), float(0.999)]);
    let no = || Tree::Plain(Plain::Bool(false));
    let mut all = vec![
        ("lr", float(0.1)),
        ("betas", betas),
        ("eps", float(1e-8)),
        ("weight_decay", float(decay)),
        ("amsgrad", no()),
        ("maximize", no()),
    ];
    all.extend(
        is_decoupled.map(|value| ("decoupled_weight_decay", Tree::Plain(Plain::Bool(value)))),
    );
    all
}

/// Adam with numbers as `torch.optim` has them, and state of these shapes.
fn numbered(group: Vec<(&'static str, Tree<Fake>)>, shapes: &[&[u64]]) -> Tree<Fake> {
    let slots = |index: usize, shape: &[u64]| {
        let names = [["e0", "e1", "e2"], ["q0", "q1", "q2"]];
        dict(vec![
            ("step", tensor(["s0", "s1", "s2"][index], &[])),
            ("exp_avg", tensor(names[0][index], shape)),
            ("exp_avg_sq", tensor(names[1][index], shape)),
        ])
    };
    let numbers = (0i64..).zip(shapes.iter().enumerate());
    let state = numbers.map(|(n, (index, shape))| (Key::Int(n), slots(index, shape))).collect();
    let params = (0i64..).zip(shapes).map(|(n, _)| Tree::Plain(Plain::Int(n))).collect();
    let mut group = group;
    group.push(("params", Tree::List(params)));
    dict(vec![("state", Tree::Dict(state)), ("param_groups", Tree::List(vec![dict(group)]))])
}

fn training(optimizer: Tree<Fake>) -> Tree<Fake> {
    dict(vec![("model", model()), ("optimizer", optimizer)])
}

const USUAL: NameRules = NameRules { algorithm: None, is_lenient: false };

fn names(named: &Named<Fake>) -> Vec<String> {
    named.tensors.keys().chain(named.aliases.keys()).map(TensorName::to_string).collect()
}

#[test]
fn numbers_are_the_order_of_the_model_where_every_shape_fits() {
    let fits = training(numbered(settings(0.0, None), &[&[2, 3], &[3]]));
    let named = named_by(fits, USUAL).unwrap();
    assert_eq!(names(&named).len(), 8);
    let (component, found) = &named.tensors[&TensorName::new("optimizer.b.exp_avg").unwrap()];
    assert_eq!((component, found), (&Component::optimizer(), &Found::Stored(("e1", vec![3]))));
    for shapes in [&[&[3u64][..], &[2, 3]][..], &[&[2, 3]], &[&[2, 3], &[3], &[3]]] {
        let error = named_by(training(numbered(settings(0.0, None), shapes)), USUAL).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Mismatch, "{error}");
        assert!(error.message().contains("cannot be told"), "{error}");
    }
}

#[test]
fn adam_and_adamw_are_told_apart_or_asked_for() {
    let algorithm = |decay, said, asked| {
        let rules = NameRules { algorithm: asked, ..USUAL };
        let optimizer = numbered(settings(decay, said), &[&[2, 3], &[3]]);
        let named = named_by(training(optimizer), rules).map_err(|e| e.kind())?;
        let config: serde_json::Value = named.values.json("optimizer.config").unwrap();
        Ok(config["algorithm"].as_str().unwrap().to_owned())
    };
    assert_eq!(algorithm(0.1, Some(true), None), Ok("adam_w".to_owned()));
    assert_eq!(algorithm(0.1, Some(false), Some(Algorithm::AdamW)), Ok("adam".to_owned()));
    assert_eq!(algorithm(0.0, None, None), Ok("adam".to_owned()));
    assert_eq!(algorithm(0.1, None, Some(Algorithm::AdamW)), Ok("adam_w".to_owned()));
    assert_eq!(algorithm(0.1, None, None), Err(ErrorKind::Mismatch));
}

#[test]
fn an_optimizer_that_is_not_understood_is_left_out_where_that_is_asked_for() {
    let mut odd = settings(0.0, None);
    odd[5].1 = Tree::Plain(Plain::Bool(true));
    let tree = || training(numbered(odd.clone(), &[&[2, 3], &[3]]));
    let error = named_by(tree(), USUAL).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Incompatible, "{error}");
    let lenient = named_by(tree(), NameRules { is_lenient: true, ..USUAL }).unwrap();
    assert_eq!(names(&lenient), ["b", "w"]);
    assert!(lenient.values.iter().next().is_none());
}

#[test]
fn several_optimizers_and_lists_of_them_have_names() {
    let one = || numbered(settings(0.0, None), &[&[2, 3], &[3]]);
    // As PyTorch Lightning has it.
    let list = dict(vec![
        ("state_dict", model()),
        ("optimizer_states", Tree::List(vec![one()])),
        ("global_step", Tree::Plain(Plain::Int(5))),
    ]);
    let lightning = named_by(list, USUAL).unwrap();
    assert_eq!((lightning.step, lightning.epoch), (Some(5), None));
    assert!(names(&lightning).contains(&"optimizer.w.exp_avg".to_owned()));
    let both = dict(vec![("model", model()), ("first", one()), ("second", one())]);
    let kind = named_by(both, USUAL).map(|named| names(&named));
    assert!(kind.unwrap().contains(&"optimizers.second.w.exp_avg".to_owned()));
}

#[test]
fn two_things_of_one_name_are_refused() {
    let tensors = dict(vec![
        ("model", dict(vec![("ema.w", tensor("a", &[1]))])),
        ("ema", dict(vec![("w", tensor("b", &[1]))])),
    ]);
    let values =
        dict(vec![("model", model()), ("a.b", float(1.0)), ("a", dict(vec![("b", float(2.0))]))]);
    // A second name of one tensor, and the name of another.
    let tied = dict(vec![
        ("model", dict(vec![("w", tensor("a", &[1])), ("ema.w", tensor("a", &[1]))])),
        ("ema", dict(vec![("w", tensor("b", &[1]))])),
    ]);
    for tree in [tensors, values, tied] {
        let error = named_by(tree, USUAL).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Mismatch, "{error}");
    }
}

#[test]
fn steps_that_are_numbers_become_tensors_and_other_values_stay() {
    let slots = dict(vec![
        ("step", Tree::Plain(Plain::Int(7))),
        ("exp_avg", tensor("e", &[2, 3])),
        ("exp_avg_sq", tensor("q", &[2, 3])),
    ]);
    let mut group = settings(0.0, None);
    group.push(("params", Tree::List(vec![Tree::Plain(Plain::Text("w".to_owned()))])));
    group.push(("note", Tree::Plain(Plain::Text("mine".to_owned()))));
    let groups = Tree::List(vec![dict(group)]);
    let optimizer = dict(vec![("state", dict(vec![("w", slots)])), ("param_groups", groups)]);
    let named = named_by(training(optimizer), USUAL).unwrap();
    let step = &named.tensors[&TensorName::new("optimizer.w.step").unwrap()].1;
    let spec = TensorSpec::new(Dtype::F32, []).unwrap();
    assert_eq!(*step, Found::Made(spec, 7f32.to_le_bytes().to_vec()));
    let note = named.values.find("pytorch.optimizer.param_groups.0.note");
    assert_eq!(note, Some(&Value::Text("mine".to_owned())));
}
