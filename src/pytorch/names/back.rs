//! From our names to the state dict that PyTorch's users expect.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value as Json;

use super::optimizer::BUFFERS;
use super::{EPOCH, Key, OURS, Plain, STEPS, Tree, VALUES, text_of};
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::Manifest;
use crate::shown::short;
use crate::state::{Value, Values};
use crate::tensor::Component;

/// Values of an optimizer that its dictionary says.
const SAID: [&str; 4] = ["config", "lr", "weight_decay", "groups"];

/// Those of which a dictionary of PyTorch says less: the first learning rate, and by which patterns
/// parameters came into a group.
const NOTED: [&str; 2] = ["config", "groups"];

/// A tensor that goes into a state dict.
pub(crate) struct Named<'n> {
    pub(crate) name: &'n str,
    pub(crate) component: &'n Component,
    /// Its number, which its second names have too.
    pub(crate) number: usize,
}

/// A dictionary that is being put together.
#[derive(Default)]
struct Dict(Vec<(Key, Tree<usize>)>);

impl Dict {
    fn put(&mut self, key: &str, tree: Tree<usize>) {
        self.0.push((Key::Text(key.to_owned()), tree));
    }

    /// The dictionary under a key, made if need be.
    fn below(&mut self, key: &str) -> &mut Vec<(Key, Tree<usize>)> {
        let place = self.0.iter().position(|(own, _)| text_of(own) == key);
        let place = place.unwrap_or_else(|| {
            self.put(key, Tree::Dict(Vec::new()));
            self.0.len() - 1
        });
        match &mut self.0[place].1 {
            Tree::Dict(entries) => entries,
            // Keys of what is no dictionary are not asked for.
            other => {
                *other = Tree::Dict(Vec::new());
                let Tree::Dict(entries) = other else { unreachable!("it was just made") };
                entries
            }
        }
    }
}

/// The state dict of tensors of a checkpoint, with its values and counters. `parameters` are names
/// in the order in which an optimizer of PyTorch numbers them; without, it goes by names.
/// `has_optimizer` says whether one that keeps no tensors is wanted as well.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] if `parameters` lacks one; [`ErrorKind::Unsupported`] for counters
/// beyond 63 bits.
pub(crate) fn tree_of(
    manifest: &Manifest,
    tensors: &[Named<'_>],
    parameters: Option<&[String]>,
    has_optimizer: bool,
) -> Result<Tree<usize>> {
    check_components(tensors)?;
    let values = manifest.values();
    let optimizers = if has_optimizer { optimizers(values) } else { Vec::new() };
    let mut dict = Dict::default();
    let mut noted = Dict::default();
    for tensor in tensors {
        let of = optimizers.iter().find(|(prefix, _)| below(tensor.name, prefix).is_some());
        let (key, name) = if *tensor.component == Component::model() {
            ("model", tensor.name)
        } else if of.is_some() && *tensor.component == Component::optimizer() {
            continue;
        } else if let Some(name) =
            below(tensor.name, "ema").filter(|_| *tensor.component == Component::ema())
        {
            ("ema", name)
        } else {
            let key = tensor.component.as_str();
            let components = noted.below("components");
            if !components.iter().any(|(own, _)| text_of(own) == key) {
                components.push((Key::Text(key.to_owned()), text(key)));
            }
            (key, tensor.name)
        };
        dict.below(key).push((Key::Text(name.to_owned()), Tree::Tensor(tensor.number)));
    }
    for (prefix, key) in &optimizers {
        let optimizer = optimizer(prefix, values, tensors, parameters)?;
        dict.put(key, optimizer);
        noted.below("optimizers").push((Key::Text(key.clone()), text(prefix)));
        for topic in NOTED {
            if let Some(Value::Json(json)) = values.find(&format!("{prefix}.{topic}")) {
                noted.below(topic).push((Key::Text(prefix.clone()), text(json)));
            }
        }
    }
    for (name, count) in [(STEPS[0], manifest.step()), (EPOCH, manifest.epoch())] {
        let count = i64::try_from(count)
            .map_err(|_| Error::new(ErrorKind::Unsupported, format!("{name} {count}")))?;
        dict.put(name, Tree::Plain(Plain::Int(count)));
    }
    put_values(values, &optimizers, &mut dict, &mut noted);
    noted.put("save_id", text(&manifest.save_id().to_string()));
    noted.put("version", text(env!("CARGO_PKG_VERSION")));
    dict.put(OURS, Tree::Dict(noted.0));
    Ok(Tree::Dict(dict.0))
}

/// Whether names of components mean something else at the top of a state dict.
fn check_components(tensors: &[Named<'_>]) -> Result<()> {
    let is_taken = |name: &str| STEPS.contains(&name) || [EPOCH, OURS, VALUES].contains(&name);
    match tensors.iter().find(|tensor| is_taken(tensor.component.as_str())) {
        None => Ok(()),
        Some(tensor) => {
            let what = tensor.component;
            let message = format!("component `{what}`, which means something else in PyTorch");
            Err(Error::new(ErrorKind::Unsupported, message).with_tensor(tensor.name.to_owned()))
        }
    }
}

fn text(text: &str) -> Tree<usize> {
    Tree::Plain(Plain::Text(text.to_owned()))
}

fn below<'n>(name: &'n str, prefix: &str) -> Option<&'n str> {
    name.strip_prefix(prefix)?.strip_prefix('.')
}

/// The prefixes of optimizers whose settings are known, with their keys in the state dict.
fn optimizers(values: &Values) -> Vec<(String, String)> {
    let prefix = |(name, value): (&str, &Value)| {
        let prefix = name.strip_suffix(".config")?;
        let key = if prefix == "optimizer" { prefix } else { below(prefix, "optimizers")? };
        let Value::Json(text) = value else { return None };
        let json: Json = serde_json::from_str(text).ok()?;
        json.get("algorithm")?;
        // Keys of the dictionary that mean something else.
        let key = match key {
            "optimizer" => key.to_owned(),
            name => format!("optimizer_{name}"),
        };
        Some((prefix.to_owned(), key))
    };
    values.iter().filter_map(prefix).collect()
}

fn put_values(values: &Values, optimizers: &[(String, String)], dict: &mut Dict, noted: &mut Dict) {
    let is_said = |name: &str| {
        let of = optimizers.iter().find_map(|(prefix, _)| below(name, prefix));
        of.is_some_and(|rest| SAID.contains(&rest))
    };
    for (name, value) in values.iter().filter(|(name, _)| !is_said(name)) {
        let tree = match value {
            Value::Bool(value) => Tree::Plain(Plain::Bool(*value)),
            Value::Int(value) => Tree::Plain(Plain::Int(*value)),
            Value::Float(value) => Tree::Plain(Plain::Float(*value)),
            Value::Text(value) => text(value),
            Value::Bytes(value) => Tree::Plain(Plain::Bytes(value.clone())),
            Value::Json(value) => {
                noted
                    .below("json")
                    .push((Key::Text(name.to_owned()), Tree::Plain(Plain::Bool(true))));
                text(value)
            }
            Value::Floats(all) => {
                if all.is_empty() {
                    let key = Key::Text(name.to_owned());
                    noted.below("floats").push((key, Tree::Plain(Plain::Bool(true))));
                }
                Tree::List(all.iter().map(|value| Tree::Plain(Plain::Float(*value))).collect())
            }
        };
        dict.below(VALUES).push((Key::Text(name.to_owned()), tree));
    }
}

/// As `get_optimizer_state_dict` gives it, or, with an order of parameters, `torch.optim`.
fn optimizer(
    prefix: &str,
    values: &Values,
    tensors: &[Named<'_>],
    parameters: Option<&[String]>,
) -> Result<Tree<usize>> {
    let config: Json = values.json(&format!("{prefix}.config"))?;
    let mut state: BTreeMap<&str, Vec<(Key, Tree<usize>)>> = BTreeMap::new();
    for tensor in tensors {
        let slot = below(tensor.name, prefix).and_then(|rest| rest.rsplit_once('.'));
        let Some((parameter, slot)) = slot else { continue };
        let entry = (Key::Text(slot.to_owned()), Tree::Tensor(tensor.number));
        state.entry(parameter).or_default().push(entry);
    }
    let mut groups = groups(prefix, values, &state, tensors)?;
    if let (Some(order), Some(first)) = (parameters, groups.first().cloned()) {
        // Whatever else `torch.optim` gets, frozen parameters say, is in the first group.
        let placed: BTreeSet<&String> = groups.iter().flatten().collect();
        let rest = order.iter().filter(|name| !placed.contains(name));
        check_parameters(order, tensors)?;
        let all = first.iter().chain(rest).cloned().collect();
        groups.splice(..1, [all]);
    }
    let ids = ids(&groups, parameters)?;
    let id = |name: &str| match ids.get(name) {
        Some(number) => Key::Int(*number),
        None => Key::Text(name.to_owned()),
    };
    let numbers = |name: &str| values.floats(&format!("{prefix}.{name}"));
    let (lr, weight_decay) = (numbers("lr")?, numbers("weight_decay")?);
    let group = |(index, names): (usize, &Vec<String>)| {
        let of = |all: &[f64], name: &str| {
            let own = all.get(index).copied();
            own.or_else(|| config.get(name)?.as_f64()).unwrap_or_default()
        };
        let mut dict = Dict::default();
        dict.put("lr", Tree::Plain(Plain::Float(of(&lr, "lr"))));
        dict.put("weight_decay", Tree::Plain(Plain::Float(of(&weight_decay, "weight_decay"))));
        settings(&config, &mut dict);
        let mut names: Vec<&String> = names.iter().collect();
        names.sort_by_key(|name| ids.get(name.as_str()));
        let params = names.into_iter().map(|name| match id(name) {
            Key::Int(number) => Tree::Plain(Plain::Int(number)),
            Key::Text(name) => text(&name),
        });
        dict.put("params", Tree::List(params.collect()));
        Tree::Dict(dict.0)
    };
    let groups = groups.iter().enumerate().map(group).collect();
    let state = state.into_iter().map(|(name, slots)| (id(name), Tree::Dict(slots))).collect();
    let mut dict = Dict::default();
    dict.put("state", Tree::Dict(state));
    dict.put("param_groups", Tree::List(groups));
    Ok(Tree::Dict(dict.0))
}

/// The settings of `torch.optim` for an algorithm: ours, and its own in their usual state.
fn settings(config: &Json, dict: &mut Dict) {
    let algorithm = config.get("algorithm").and_then(Json::as_str).unwrap_or_default();
    let own = config.as_object().into_iter().flatten();
    let is_of_group = |name: &str| ["algorithm", "lr", "weight_decay"].contains(&name);
    for (name, value) in own.filter(|(name, _)| !is_of_group(name)) {
        dict.put(name, plain(value));
    }
    let no = || Tree::Plain(Plain::Bool(false));
    dict.put("maximize", no());
    dict.put("foreach", Tree::Plain(Plain::None));
    dict.put("differentiable", no());
    match algorithm {
        "adam" | "adam_w" => {
            dict.put("capturable", no());
            dict.put("fused", Tree::Plain(Plain::None));
            dict.put("decoupled_weight_decay", Tree::Plain(Plain::Bool(algorithm == "adam_w")));
        }
        "rms_prop" => dict.put("capturable", no()),
        _ => dict.put("fused", Tree::Plain(Plain::None)),
    }
}

fn plain(value: &Json) -> Tree<usize> {
    match value {
        Json::Bool(value) => Tree::Plain(Plain::Bool(*value)),
        Json::Number(number) => Tree::Plain(Plain::Float(number.as_f64().unwrap_or_default())),
        Json::String(value) => text(value),
        Json::Array(items) => Tree::List(items.iter().map(plain).collect()),
        Json::Null | Json::Object(_) => Tree::Plain(Plain::None),
    }
}

/// The parameters of each group, by name.
fn groups(
    prefix: &str,
    values: &Values,
    state: &BTreeMap<&str, Vec<(Key, Tree<usize>)>>,
    tensors: &[Named<'_>],
) -> Result<Vec<Vec<String>>> {
    #[derive(serde::Deserialize)]
    struct Stored {
        parameters: Vec<String>,
    }
    let name = format!("{prefix}.groups");
    if values.find(&name).is_some() {
        let stored: Vec<Stored> = values.json(&name)?;
        return Ok(stored.into_iter().map(|group| group.parameters).collect());
    }
    let with_state: Vec<String> = state.keys().map(|name| (*name).to_owned()).collect();
    if !with_state.is_empty() {
        return Ok(vec![with_state]);
    }
    // Plain SGD keeps nothing: every tensor of the model but buffers may be a parameter.
    let is_buffer = |name: &str| BUFFERS.contains(&name.rsplit('.').next().unwrap_or(name));
    let of_model = tensors
        .iter()
        .filter(|tensor| *tensor.component == Component::model() && !is_buffer(tensor.name));
    Ok(vec![of_model.map(|tensor| tensor.name.to_owned()).collect()])
}

/// Whether each is one of the model, as far as that is exported, and none is there twice.
fn check_parameters<'o>(order: &'o [String], tensors: &[Named<'_>]) -> Result<()> {
    let of_model = tensors.iter().filter(|tensor| *tensor.component == Component::model());
    let known: BTreeSet<&str> = of_model.map(|tensor| tensor.name).collect();
    let mut seen = BTreeSet::new();
    let mut is_fine = |name: &'o String| {
        seen.insert(name.as_str()) && (known.is_empty() || known.contains(name.as_str()))
    };
    let Some(name) = order.iter().find(|name| !is_fine(name)) else { return Ok(()) };
    let message = format!("parameters: `{}` is named twice, or is none of the model", short(name));
    Err(Error::new(ErrorKind::InvalidInput, message)
        .with_help("give every name of `model.named_parameters()`, in its order"))
}

/// The number of each parameter, group by group; none if parameters go by names.
fn ids<'g>(
    groups: &'g [Vec<String>],
    parameters: Option<&[String]>,
) -> Result<BTreeMap<&'g str, i64>> {
    let Some(order) = parameters else { return Ok(BTreeMap::new()) };
    let places: BTreeMap<&str, usize> =
        order.iter().enumerate().map(|(place, name)| (name.as_str(), place)).collect();
    let (mut ids, mut next) = (BTreeMap::new(), 0);
    for group in groups {
        let place = |name: &'g String| match places.get(name.as_str()) {
            Some(place) => Ok((*place, name)),
            None => Err(Error::new(
                ErrorKind::InvalidInput,
                format!("parameters: the optimizer has `{}`, the list has not", short(name)),
            )
            .with_help("give every name of `model.named_parameters()`, in its order")),
        };
        let mut placed = group.iter().map(place).collect::<Result<Vec<_>>>()?;
        placed.sort_unstable();
        for (_, name) in placed {
            ids.insert(name.as_str(), next);
            next += 1;
        }
    }
    Ok(ids)
}
