//! A model as what a load fills with weights alone, under the names that the checkpoint has.

use std::collections::BTreeMap;

use tch::nn::VarStore;

use crate::error::{Error, ErrorKind, Result};
use crate::group::ProcessGroup;
use crate::handler::device::Placed;
use crate::handler::{HandlerBuilder, InitOptions, Model, NNHandler};
use crate::load::Destination;
use crate::manifest::Manifest;
use crate::select::Selection;
use crate::state::{LoadTargets, Values};
use crate::tensor::Component;
use crate::torch;

/// What wrappers around a model put before all its names.
const WRAPPERS: [&str; 2] = ["module.", "_orig_mod."];

/// Under which name of the checkpoint each variable is to be found, by its first own name.
#[derive(Debug, Default)]
struct Names(BTreeMap<String, String>);

impl Names {
    fn find(manifest: &Manifest, store: &VarStore, names: &Selection) -> Result<Self> {
        let own = torch::variable_names(store)?;
        let has_rules = !names.rules().rename.is_empty();
        let prefix = if has_rules { String::new() } else { wrapper(manifest, &own) };
        let stored = |name: &str| names.stored_name(name).map(|name| format!("{prefix}{name}"));
        // Other tools may have kept another one of several tied names.
        let is_there =
            |name: &str| stored(name).is_some_and(|name| manifest.tensor(&name).is_some());
        let chosen = torch::names_there(&own, is_there).into_iter();
        // What has moved away by a rule is looked for under a name that no tensor has.
        let found = |name: String| stored(&name).unwrap_or_else(|| format!("{name} (renamed)"));
        Ok(Self(chosen.map(|(first, name)| (first, found(name))).collect()))
    }

    fn targets(&self, store: &VarStore) -> Result<LoadTargets<'static>> {
        let mut targets = LoadTargets::new();
        torch::var_store_targets_as(&mut targets, store, &|names| {
            let first = names.first().copied().unwrap_or_default();
            self.0.get(first).map_or(first, String::as_str).to_owned()
        })?;
        Ok(targets)
    }
}

/// The prefix of wrappers that is to be looked through: of those that every name has, the
/// shortest with which most of the model's own names are found. So a model whose own child is
/// called `module` is loaded as it is.
fn wrapper(manifest: &Manifest, own: &[Vec<String>]) -> String {
    let model = Component::model();
    let of_model = manifest.tensors().iter().filter(|tensor| tensor.component == model);
    let names: Vec<&str> = of_model.map(|tensor| tensor.name.as_str()).collect();
    let found = |prefix: &str| {
        let has = |name: &String| manifest.tensor(&format!("{prefix}{name}")).is_some();
        own.iter().filter(|names| names.iter().any(has)).count()
    };
    let mut prefix = String::new();
    let mut best = (found(&prefix), prefix.clone());
    while let Some(longer) = unwrapped_once(&names, &prefix) {
        prefix = longer;
        let count = found(&prefix);
        if count > best.0 {
            best = (count, prefix.clone());
        }
    }
    best.1
}

/// `prefix` and one wrapper more, if every name has both.
fn unwrapped_once(names: &[&str], prefix: &str) -> Option<String> {
    let longer = WRAPPERS.iter().map(|wrapper| format!("{prefix}{wrapper}"));
    let mut fitting = longer.filter(|longer| names.iter().all(|name| name.starts_with(longer)));
    fitting.next().filter(|_| !names.is_empty())
}

/// A handler that is built once the checkpoint's configuration is known.
pub(super) struct NewWeights<'o, M: Model> {
    group: ProcessGroup,
    placed: Placed,
    options: &'o InitOptions,
    names: Selection,
    config: Option<M::Config>,
    built: Option<(NNHandler<M>, Names)>,
}

impl<'o, M: Model> NewWeights<'o, M> {
    pub(super) fn new(
        group: &ProcessGroup,
        placed: Placed,
        options: &'o InitOptions,
        names: Selection,
        config: Option<M::Config>,
    ) -> Self {
        Self { group: group.clone(), placed, options, names, config, built: None }
    }

    pub(super) fn into_handler(self) -> Option<NNHandler<M>> {
        self.built.map(|(handler, _)| handler)
    }

    fn config(&self, values: &Values) -> Result<M::Config> {
        if let Some(config) = &self.config {
            return Ok(config.clone());
        }
        values.json("model.config").map_err(|error| match error.kind() {
            ErrorKind::NotFound => Error::new(
                ErrorKind::InvalidInput,
                "the checkpoint has no configuration of a model",
            )
            .with_help("give the configuration"),
            _ => error,
        })
    }
}

impl<M: Model> Destination for NewWeights<'_, M> {
    fn prepare(&mut self, manifest: &Manifest) -> Result<()> {
        let config = self.config(manifest.values())?;
        let mut builder = HandlerBuilder::<M>::new(config).process_group(&self.group);
        if let Some(storage) = &self.options.storage {
            builder = builder.storage(storage.clone());
        }
        let handler = builder.build_local(self.placed)?;
        let names = Names::find(manifest, handler.vars(), &self.names)?;
        self.built = Some((handler, names));
        Ok(())
    }

    fn targets(&mut self) -> Result<LoadTargets<'_>> {
        let not_built = || Error::new(ErrorKind::Mismatch, "no handler was built");
        let (handler, names) = self.built.as_ref().ok_or_else(not_built)?;
        names.targets(handler.vars())
    }
}

/// The variables of a handler that lives.
pub(super) struct LiveWeights<'h> {
    store: &'h VarStore,
    names: Names,
    is_touched: bool,
}

impl<'h> LiveWeights<'h> {
    pub(super) fn new(store: &'h VarStore) -> Self {
        Self { store, names: Names::default(), is_touched: false }
    }

    /// Whether any attempt began to change the variables.
    pub(super) fn is_touched(&self) -> bool {
        self.is_touched
    }
}

impl Destination for LiveWeights<'_> {
    fn prepare(&mut self, manifest: &Manifest) -> Result<()> {
        self.names = Names::find(manifest, self.store, &Selection::default())?;
        Ok(())
    }

    fn targets(&mut self) -> Result<LoadTargets<'_>> {
        self.names.targets(self.store)
    }

    fn begin_change(&mut self) {
        self.is_touched = true;
    }
}
