//! Optimizers: which parameter each state belongs to, and what the settings are here.
//!
//! `torch.optim` numbers parameters in the order in which the optimizer got them, which is as a rule
//! the order of the model's own dictionary without its buffers. That is taken where it fits in
//! number and in every shape; nothing is guessed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::Hash;

use serde_json::{Map, Value as Json, json};

use super::forms::{Group, Optimizer, flat, nested};
use super::values::json_of;
use super::{Algorithm, Entries, Found, Key, Naming, Noted, Plain, Tree, joined, text_of};
use crate::error::{Error, ErrorKind, Result};
use crate::shown::short;
use crate::state::Value;
use crate::tensor::{Component, Dtype, TensorSpec};

/// Settings that say how something is computed, and not what.
const WITHOUT_EFFECT: [&str; 6] =
    ["foreach", "fused", "capturable", "differentiable", "initial_lr", "decoupled_weight_decay"];
/// Names that buffers of PyTorch's own layers end in.
pub(super) const BUFFERS: [&str; 3] = ["running_mean", "running_var", "num_batches_tracked"];

fn mismatch(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Mismatch, message)
}

impl<T: Clone + Eq + Hash> Naming<'_, T> {
    pub(super) fn optimizer(&mut self, prefix: &str, tree: Tree<T>) -> Result<()> {
        let Tree::Dict(entries) = tree else { return Ok(()) };
        let Optimizer { mut state, groups } =
            if entries.iter().any(|(key, _)| is(key, "param_groups")) {
                nested(entries)?
            } else {
                flat(entries)?
            };
        let names = self.names(&state, &groups)?;
        self.settings(prefix, &groups, &names)?;
        for (group, names) in groups.iter().zip(&names) {
            for (id, name) in group.parameters.iter().zip(names) {
                if let Some(slots) = state.remove(&text_of(id)) {
                    self.slots(&joined(prefix, name), slots, &group.settings)?;
                }
            }
        }
        match state.keys().min() {
            None => Ok(()),
            Some(id) => Err(mismatch(format!("state of `{}`, which is in no group", short(id)))),
        }
    }

    /// The tensors that an optimizer keeps of one parameter.
    fn slots(
        &mut self,
        prefix: &str,
        slots: Entries<T>,
        settings: &[(Key, Tree<T>)],
    ) -> Result<()> {
        let component = Component::optimizer();
        let has_step = slots.iter().any(|(key, _)| is(key, "step"));
        let mut is_used = false;
        for (key, tree) in slots {
            let name = joined(prefix, &text_of(&key));
            let found = match tree {
                Tree::Tensor(tensor) => {
                    is_used = true;
                    Found::Stored(tensor)
                }
                Tree::Plain(Plain::Int(count)) if is(&key, "step") => scalar(count as f64)?,
                Tree::Plain(Plain::Float(count)) if is(&key, "step") => scalar(count)?,
                Tree::Plain(Plain::None) => continue,
                other => {
                    self.value(&name, other)?;
                    continue;
                }
            };
            if is(&key, "step")
                && let Found::Stored(tensor) = &found
                && (self.spec_of)(tensor)? != TensorSpec::new(Dtype::F32, [])?
            {
                return Err(mismatch("a count of steps that is no scalar of float32")
                    .with_tensor(short(&name)));
            }
            self.add(&component, &name, found)?;
        }
        // SGD counts nothing; here its first step is told from the others by a count.
        if !has_step && is_used && setting(settings, "dampening").is_some() {
            self.add(&component, &joined(prefix, "step"), scalar(1.0)?)?;
        }
        Ok(())
    }

    /// The names of the parameters of each group.
    fn names(
        &self,
        state: &HashMap<String, Entries<T>>,
        groups: &[Group<T>],
    ) -> Result<Vec<Vec<String>>> {
        let all = || groups.iter().flat_map(|group| &group.parameters);
        let mut seen = HashSet::new();
        if let Some(twice) = all().find(|id| !seen.insert(*id)) {
            return Err(mismatch(format!(
                "parameter `{}` is in two groups",
                short(&text_of(twice))
            )));
        }
        if all().all(|id| matches!(id, Key::Text(_))) {
            let texts = |group: &Group<T>| group.parameters.iter().map(text_of).collect();
            return Ok(groups.iter().map(texts).collect());
        }
        let noted = |group: &Group<T>| {
            group.names.clone().filter(|names| names.len() == group.parameters.len())
        };
        if let Some(names) = groups.iter().map(noted).collect::<Option<Vec<_>>>() {
            return Ok(names);
        }
        let order: Vec<i64> =
            all().filter_map(|id| if let Key::Int(id) = id { Some(*id) } else { None }).collect();
        if order.len() != all().count() || !order.iter().all(|id| *id >= 0) {
            return Err(mismatch("some parameters have numbers, others names"));
        }
        let named = self.in_order(state, order)?;
        let name = |id: &Key| named.get(&text_of(id)).cloned().unwrap_or_default();
        Ok(groups.iter().map(|group| group.parameters.iter().map(name).collect()).collect())
    }

    /// Names for numbers, by the order of the model.
    fn in_order(
        &self,
        state: &HashMap<String, Entries<T>>,
        mut order: Vec<i64>,
    ) -> Result<BTreeMap<String, String>> {
        let is_buffer = |name: &str| BUFFERS.contains(&name.rsplit('.').next().unwrap_or(name));
        let parameters: Vec<_> = self.model.iter().filter(|(name, _)| !is_buffer(name)).collect();
        order.sort_unstable();
        if parameters.len() != order.len() {
            let (here, there) = (parameters.len(), order.len());
            return Err(cannot_tell(&format!("{there} parameters, the model has {here}")));
        }
        let mut named = BTreeMap::new();
        for (id, (name, spec)) in order.iter().zip(parameters) {
            let id = id.to_string();
            for (key, tree) in state.get(&id).into_iter().flatten() {
                let Tree::Tensor(tensor) = tree else { continue };
                let own = (self.spec_of)(tensor)?;
                if !is(key, "step") && own.shape() != spec.shape() {
                    let what = format!(
                        "`{}` of parameter {id} is {own}, `{name}` is {spec}",
                        text_of(key)
                    );
                    return Err(cannot_tell(&what));
                }
            }
            named.insert(id, name.clone());
        }
        Ok(named)
    }

    /// Settings as our optimizers store them.
    fn settings(&mut self, prefix: &str, groups: &[Group<T>], names: &[Vec<String>]) -> Result<()> {
        let Some(first) = groups.first() else { return Err(mismatch("no parameter groups")) };
        let config = config(&first.settings, groups, self.algorithm)?;
        let number = |group: &Group<T>, name: &str| {
            number(&group.settings, name).ok_or_else(|| mismatch(format!("no `{name}` in a group")))
        };
        let of = |name: &str| groups.iter().map(|g| number(g, name)).collect::<Result<Vec<f64>>>();
        let (lr, weight_decay) = (of("lr")?, of("weight_decay")?);
        for (index, group) in groups.iter().enumerate() {
            self.others(prefix, index, group, &config, first)?;
        }
        let values = &mut self.named.values;
        let like = |noted: &Json| {
            let of_group = |name: &str| ["lr", "weight_decay"].contains(&name);
            let mut own = config.iter().filter(|(name, _)| !of_group(name));
            own.all(|(name, value)| noted.get(name) == Some(value))
        };
        let noted = noted_json(&self.noted, "config", prefix, &like);
        let config = noted.unwrap_or_else(|| Json::Object(config.clone()).to_string());
        values.set(joined(prefix, "config"), Value::Json(config));
        values.set(joined(prefix, "lr"), lr);
        values.set(joined(prefix, "weight_decay"), weight_decay);
        if groups.len() > 1 {
            let group = |(index, names): (usize, &Vec<String>)| {
                let asked: &[String] = if index == 0 { &[] } else { names };
                json!({ "names": asked, "parameters": names })
            };
            let groups: Vec<Json> = names.iter().enumerate().map(group).collect();
            let groups = Json::Array(groups);
            let of = |groups: &Json| -> Vec<Option<Json>> {
                let all = groups.as_array().into_iter().flatten();
                all.map(|group| group.get("parameters").cloned()).collect()
            };
            let noted =
                noted_json(&self.noted, "groups", prefix, &|noted| of(noted) == of(&groups));
            let groups = noted.unwrap_or_else(|| groups.to_string());
            values.set(joined(prefix, "groups"), Value::Json(groups));
        }
        Ok(())
    }

    /// Settings that the configuration does not have: refused if they change what is computed,
    /// kept as values if they are somebody's own.
    fn others(
        &mut self,
        prefix: &str,
        index: usize,
        group: &Group<T>,
        config: &Map<String, Json>,
        first: &Group<T>,
    ) -> Result<()> {
        for (key, tree) in &group.settings {
            let name = text_of(key);
            if WITHOUT_EFFECT.contains(&name.as_str()) {
                continue;
            }
            if name == "maximize" && !matches!(tree, Tree::Plain(Plain::Bool(false))) {
                return Err(Error::new(ErrorKind::Incompatible, "it maximizes, as none here does"));
            }
            let is_own_of_group = ["lr", "weight_decay"].contains(&name.as_str());
            if config.contains_key(&name) {
                let other = setting(&first.settings, &name).and_then(json_of);
                if !is_own_of_group && json_of(tree) != other {
                    return Err(mismatch(format!("`{name}` differs between parameter groups")));
                }
            } else if name != "maximize" {
                let name = format!("pytorch.{prefix}.param_groups.{index}.{name}");
                self.value(&name, tree.clone())?;
            }
        }
        Ok(())
    }
}

/// What an export has noted, if it is still about the same thing: somebody may have trained on.
fn noted_json(
    noted: &Noted,
    topic: &str,
    prefix: &str,
    is_same: &dyn Fn(&Json) -> bool,
) -> Option<String> {
    let text = noted.of(topic, prefix)?;
    let json: Json = serde_json::from_str(&text).ok()?;
    is_same(&json).then_some(text)
}

fn cannot_tell(what: &str) -> Error {
    mismatch(format!("which parameters its numbers mean cannot be told: {what}")).with_help(
        "save the optimizer by names (torch.distributed.checkpoint.state_dict.get_state_dict, or \
         named_parameters() for the optimizer), or take the model alone",
    )
}

/// The algorithm with its settings, as our optimizers store them.
fn config<T>(
    settings: &[(Key, Tree<T>)],
    groups: &[Group<T>],
    algorithm: Option<Algorithm>,
) -> Result<Map<String, Json>> {
    let has = |name: &str| setting(settings, name).is_some();
    let (algorithm, fields): (&str, &[&str]) = if has("betas") {
        let fields = &["lr", "betas", "eps", "weight_decay", "amsgrad"];
        (if is_decoupled(settings, groups, algorithm)? { "adam_w" } else { "adam" }, fields)
    } else if has("alpha") && has("centered") {
        ("rms_prop", &["lr", "alpha", "eps", "weight_decay", "momentum", "centered"])
    } else if has("momentum") && has("dampening") {
        ("sgd", &["lr", "momentum", "dampening", "weight_decay", "nesterov"])
    } else {
        let message = "an optimizer that is none of SGD, Adam, AdamW and RMSprop";
        return Err(Error::new(ErrorKind::Incompatible, message));
    };
    let mut config = Map::from_iter([("algorithm".to_owned(), Json::from(algorithm))]);
    for name in fields {
        let value = setting(settings, name).and_then(json_of);
        let value = value.ok_or_else(|| mismatch(format!("no `{name}` in its settings")))?;
        // PyTorch's defaults of some numbers are integers.
        let float =
            |value: Json| value.as_f64().filter(|_| value.is_i64()).map_or(value, Json::from);
        config.insert((*name).to_owned(), float(value));
    }
    Ok(config)
}

fn is_decoupled<T>(
    settings: &[(Key, Tree<T>)],
    groups: &[Group<T>],
    algorithm: Option<Algorithm>,
) -> Result<bool> {
    if let Some(Tree::Plain(Plain::Bool(is_decoupled))) =
        setting(settings, "decoupled_weight_decay")
    {
        return Ok(*is_decoupled);
    }
    let decays = groups.iter().any(|group| number(&group.settings, "weight_decay") != Some(0.0));
    match algorithm {
        Some(algorithm) => Ok(algorithm == Algorithm::AdamW),
        // Without weight decay both are the same.
        None if !decays => Ok(false),
        None => Err(mismatch("Adam or AdamW, which older versions of PyTorch do not tell apart")
            .with_help("say which: --optimizer adam or --optimizer adamw")),
    }
}

fn is(key: &Key, name: &str) -> bool {
    matches!(key, Key::Text(text) if text == name)
}

fn setting<'t, T>(settings: &'t [(Key, Tree<T>)], name: &str) -> Option<&'t Tree<T>> {
    settings.iter().find(|(key, _)| is(key, name)).map(|(_, tree)| tree)
}

fn number<T>(settings: &[(Key, Tree<T>)], name: &str) -> Option<f64> {
    setting(settings, name).and_then(json_of).and_then(|json| json.as_f64())
}

/// As `step` is kept here and by PyTorch: in single precision, beyond 2²⁴ as near as that goes.
#[allow(clippy::cast_possible_truncation, reason = "rounded to the nearest")]
fn scalar<T>(count: f64) -> Result<Found<T>> {
    let bytes = (count as f32).to_le_bytes().to_vec();
    Ok(Found::Made(TensorSpec::new(Dtype::F32, [])?, bytes))
}
