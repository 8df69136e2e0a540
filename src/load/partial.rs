//! Loading some tensors of a checkpoint, under other names if need be, and leaving the rest of the
//! destination as it is.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::agree::agree;
use crate::catalog::Wanted;
use crate::error::{Error, ErrorKind, Result};
use crate::group::{Channel, ProcessGroup};
use crate::load::{Atomicity, Destination, Loaded, load};
use crate::manifest::Manifest;
use crate::plan::load::{LoadRules, list};
use crate::select::{Selection, SelectionRules};
use crate::state::LoadTargets;
use crate::storage::Storage;
use crate::tensor::{TensorName, TensorSpec};

/// How [`load_partial`] loads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PartialOptions {
    /// Whether a selected tensor that the checkpoint lacks is an error. Default: no, it stays as
    /// it is and is reported. Shapes and dtypes must match in any case.
    pub strict: bool,
    /// When the destination may change. Default: only after every rank has verified its share.
    pub atomicity: Atomicity,
}

/// A tensor of the destination, and where it came from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Filled {
    /// Its name in the destination.
    pub name: TensorName,
    /// The name under which it was stored, or an alias of that.
    pub stored: TensorName,
}

impl fmt::Display for Filled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name == self.stored {
            true => write!(f, "{}", self.name),
            false => write!(f, "{} from {}", self.name, self.stored),
        }
    }
}

/// What became of the tensors of both sides, each list by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PartialReport {
    /// Filled on this rank.
    pub filled: Vec<Filled>,
    /// Selected, but not in the checkpoint (or in none of the components): as they were.
    pub missing: Vec<TensorName>,
    /// Not selected: as they were.
    pub unselected: Vec<TensorName>,
    /// Stored in the components that were asked for, and taken by no rank.
    pub unused: Vec<TensorName>,
}

/// What a partial load did.
#[derive(Debug, Clone)]
pub struct PartialLoaded {
    /// Which checkpoint, and how many bytes of it were read.
    pub loaded: Loaded,
    /// Tensor by tensor.
    pub report: PartialReport,
}

/// Fills those tensors of `destination` that `selection` names, and no others. Values are not
/// loaded: the destination's value hooks are never called, counters and optimizers stay as they
/// are. With the default selection it loads the weights of the model.
///
/// Takes a checkpoint in any form, and files of other tools if `wanted` is
/// [`or_unverified`](Wanted::or_unverified). Only the bytes wanted are read.
///
/// ```
/// use std::sync::Arc;
/// use tch_checkpoint::catalog::{CheckpointPath, Wanted};
/// use tch_checkpoint::load::{PartialOptions, load_partial};
/// use tch_checkpoint::select::{Rename, Selection, SelectionRules};
/// use tch_checkpoint::state::{LoadTargets, StateDict};
/// use tch_checkpoint::storage::MemoryStorage;
/// use tch_checkpoint::tensor::{Component, Dtype, TensorName, TensorSpec};
/// use tch_checkpoint::{ProcessGroup, SaveOptions, save};
///
/// let (group, storage) = (ProcessGroup::solo(), MemoryStorage::new());
/// let (spec, name) = (TensorSpec::new(Dtype::U8, [2])?, TensorName::new("module.w")?);
/// let mut state = StateDict::new();
/// state.add(&Component::model(), name, spec.clone(), Arc::new([1u8, 2]))?;
/// save(&group, &storage, &CheckpointPath::parse("runs/a")?, &state, &SaveOptions::default())?;
///
/// let (mut weight, mut head) = ([0u8; 2], [7u8; 2]);
/// let mut targets = LoadTargets::new();
/// targets.add(TensorName::new("w")?, spec.clone(), Box::new(&mut weight[..]))?;
/// targets.add(TensorName::new("head")?, spec, Box::new(&mut head[..]))?;
/// let rename = vec![Rename::new("module.*", "*")];
/// let selection = Selection::new(SelectionRules { rename, ..SelectionRules::default() })?;
/// let (wanted, options) = (Wanted::parse("runs/a")?, PartialOptions::default());
/// let done = load_partial(&group, &storage, &wanted, &mut targets, &selection, &options)?;
/// assert_eq!(done.report.filled[0].to_string(), "w from module.w");
/// assert_eq!(done.report.missing[0].as_str(), "head");
/// drop(targets);
/// assert_eq!((weight, head), ([1, 2], [7, 7]));
/// # Ok::<(), tch_checkpoint::Error>(())
/// ```
///
/// # Collective
/// Every rank of the group, with the same `wanted`, `selection` and `options`.
///
/// # Errors
/// As [`load`](fn@load): [`ErrorKind::Mismatch`] lists all tensors of another dtype or shape and,
/// with `strict`, all that are missing. [`ErrorKind::NotFound`], with the names that there are, if
/// nothing is filled on any rank. The destination is then unchanged, as [`load`](fn@load) says.
pub fn load_partial(
    group: &ProcessGroup,
    storage: &dyn Storage,
    wanted: &Wanted,
    destination: &mut dyn Destination,
    selection: &Selection,
    options: &PartialOptions,
) -> Result<PartialLoaded> {
    agree_on_selection(group, selection, options)?;
    let components = selection.rules().components.clone();
    let rules = LoadRules { strict: false, components, ..LoadRules::default() };
    let mut selected = Selected {
        inner: destination,
        selection,
        strict: options.strict,
        stored: BTreeMap::new(),
        report: PartialReport::default(),
    };
    let loaded = load(group, storage, wanted, &mut selected, &rules, options.atomicity)?;
    let mut report = selected.report;
    report.unused.clone_from(&loaded.report.unexpected);
    check_any(group, &loaded, &report)?;
    Ok(PartialLoaded { loaded, report })
}

/// Ranks that select differently would each fill another part of one model.
fn agree_on_selection(
    group: &ProcessGroup,
    selection: &Selection,
    options: &PartialOptions,
) -> Result<()> {
    let own = || Ok((selection.rules().clone(), *options));
    group.phase_all(
        Channel::Save,
        "selection",
        own,
        |all: Vec<(SelectionRules, PartialOptions)>| {
            let difference = |ours: &_, theirs: &_| {
                let text = || format!("`{}` differs from the coordinator's", field(ours, theirs));
                (theirs != ours).then(text)
            };
            agree(&all, difference, "give every rank the same selection and options").map(drop)
        },
    )
}

/// The first field in which two ranks differ. Its values may be long.
fn field(
    ours: &(SelectionRules, PartialOptions),
    theirs: &(SelectionRules, PartialOptions),
) -> &'static str {
    let ((a, of_a), (b, of_b)) = (ours, theirs);
    let fields = [
        ("include", a.include != b.include),
        ("exclude", a.exclude != b.exclude),
        ("components", a.components != b.components),
        ("rename", a.rename != b.rename),
        ("strict", of_a.strict != of_b.strict),
    ];
    fields.into_iter().find_map(|(name, differs)| differs.then_some(name)).unwrap_or("atomicity")
}

/// A load that fills nothing anywhere is a mistake in a pattern or a path. A rank alone cannot
/// tell: of sharded tensors it may hold none.
fn check_any(group: &ProcessGroup, loaded: &Loaded, report: &PartialReport) -> Result<()> {
    let filled = || Ok(report.filled.len() as u64);
    group.phase_all(Channel::Save, "selected", filled, |counts: Vec<u64>| {
        if counts.iter().any(|count| *count > 0) {
            return Ok(());
        }
        let mut text = String::from("nothing of the checkpoint fits the selection");
        list(&mut text, "selected, but not in the checkpoint", &report.missing);
        list(&mut text, "not selected", &report.unselected);
        list(&mut text, "stored", &report.unused);
        if report.unused.is_empty() {
            let all = loaded.manifest.tensors().iter();
            let mut components: Vec<_> = all.map(|tensor| &tensor.component).collect();
            components.sort();
            components.dedup();
            list(&mut text, "stored components", &components);
        }
        Err(Error::new(ErrorKind::NotFound, text)
            .with_path(&loaded.path)
            .with_help("nothing was changed; check patterns, rename rules and components"))
    })
}

/// A destination of which only the selected part is seen, under stored names, and no values.
struct Selected<'d> {
    inner: &'d mut dyn Destination,
    selection: &'d Selection,
    strict: bool,
    /// What the components hold, aliases included.
    stored: BTreeMap<TensorName, TensorSpec>,
    report: PartialReport,
}

impl Destination for Selected<'_> {
    fn prepare(&mut self, manifest: &Manifest) -> Result<()> {
        let taken = |name: &TensorName| {
            let record = manifest.tensor(name.as_str())?;
            let is_taken = self.selection.takes(&record.component);
            is_taken.then(|| (name.clone(), record.spec.clone()))
        };
        let names = manifest.tensors().iter().map(|tensor| &tensor.name);
        let names = names.chain(manifest.aliases().iter().map(|(alias, _)| alias));
        self.stored = names.filter_map(taken).collect();
        self.inner.prepare(manifest)
    }

    fn targets(&mut self) -> Result<LoadTargets<'_>> {
        let Self { inner, selection, strict, stored, report } = self;
        let (mut chosen, mut unfit) = (LoadTargets::new(), Vec::new());
        *report = PartialReport::default();
        for (name, targets) in std::mem::take(inner.targets()?.targets_mut()) {
            if !selection.selects(name.as_str()) {
                report.unselected.push(name);
                continue;
            }
            let source = selection.stored_name(name.as_str());
            let found = source.and_then(|source| stored.get_key_value(source.as_str()));
            let Some((source, spec)) = found else {
                report.missing.push(name);
                continue;
            };
            let filled = Filled { name, stored: source.clone() };
            if let Some(other) = targets.iter().find(|target| target.spec != *spec) {
                unfit.push(format!("{filled} (wanted {}, found {spec})", other.spec));
            }
            report.filled.push(filled);
            for target in targets {
                chosen.add_slice(source.clone(), target.spec, target.slice, target.sink)?;
            }
        }
        refuse_unfit(&unfit, if *strict { &report.missing } else { &[] })?;
        Ok(chosen)
    }

    fn begin_change(&mut self) {
        self.inner.begin_change();
    }
}

fn refuse_unfit(unfit: &[String], missing: &[TensorName]) -> Result<()> {
    if unfit.is_empty() && missing.is_empty() {
        return Ok(());
    }
    let mut text = String::from("the checkpoint does not fit");
    list(&mut text, "of another dtype or shape", unfit);
    list(&mut text, "missing in the checkpoint", missing);
    Err(Error::new(ErrorKind::Mismatch, text)
        .with_help("nothing was loaded; exclude what is not to be filled, or rename it"))
}
