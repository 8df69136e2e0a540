//! What all ranks must say alike before anything is written.

use std::collections::{BTreeMap, HashSet};
use std::fmt;

use crate::error::{Error, ErrorKind, Result};
use crate::manifest::OtherFile;
use crate::memory::room_for;
use crate::plan::names::{Grouped, Names};
use crate::plan::{LocalPlan, SaveTarget, WriteItem};
use crate::rank::Rank;
use crate::tensor::TensorName;

type Ranked<'a> = (Rank, &'a LocalPlan);
type Aliases = Vec<(TensorName, TensorName)>;

/// Checks that the ranks agree, and gives their aliases, by name, and what they declare.
///
/// # Errors
/// [`ErrorKind::Disagreement`], or [`ErrorKind::InvalidInput`] for a box outside its tensor or an
/// alias of nothing.
pub(super) fn check_agreement(plans: &[LocalPlan]) -> Result<(Aliases, Declared<'_>)> {
    check_job(plans.iter())?;
    let ranked: Vec<Ranked> = (0..).map(Rank::new).zip(plans).collect();
    let tensors = check_tensors(&ranked)?;
    Ok((check_aliases(&ranked, &tensors)?, tensors))
}

/// Checks that the ranks agree on everything but tensors.
///
/// # Errors
/// [`ErrorKind::Disagreement`].
pub(super) fn check_job<'a>(plans: impl Iterator<Item = &'a LocalPlan>) -> Result<()> {
    let mut ranked = (0..).map(Rank::new).zip(plans);
    let Some(first) = ranked.next() else { return Ok(()) };
    for other in ranked {
        check_target(first, other)?;
        check_values(first, other)?;
        check_attached(first, other)?;
    }
    Ok(())
}

/// "`what` differs: rank 0 has A, rank 3 has B".
fn differs(what: &str, a: (Rank, impl fmt::Display), b: (Rank, impl fmt::Display)) -> Error {
    let message = format!("{what} differs: rank {} has {}, rank {} has {}", a.0, a.1, b.0, b.1);
    Error::new(ErrorKind::Disagreement, message)
        .with_help("nothing was written; every rank must save the same state at the same step")
}

fn check_target(a: Ranked, b: Ranked) -> Result<()> {
    type Field = (&'static str, fn(&SaveTarget) -> String);
    const FIELDS: [Field; 9] = [
        ("the directory", |t| format!("`{}`", t.directory)),
        ("the name of the checkpoint", |t| format!("`{}`", t.name)),
        ("the step", |t| t.step.to_string()),
        ("the epoch", |t| t.epoch.to_string()),
        ("`on_existing`", |t| format!("{:?}", t.on_existing)),
        ("`space_reserve`", |t| t.space_reserve.to_string()),
        ("`ignore_space`", |t| t.ignore_space.to_string()),
        ("`copy_unchanged`", |t| t.copy_unchanged.to_string()),
        ("the version of libtorch", |t| format!("`{}`", t.libtorch_version)),
    ];
    if a.1.target == b.1.target {
        return Ok(());
    }
    let sides = FIELDS.map(|(what, get)| (what, get(&a.1.target), get(&b.1.target)));
    match sides.into_iter().find(|(_, x, y)| x != y) {
        Some((what, x, y)) => Err(differs(what, (a.0, x), (b.0, y))),
        None => Ok(()),
    }
}

fn check_values(a: Ranked, b: Ranked) -> Result<()> {
    let Some(name) = a.1.values.first_difference(&b.1.values) else { return Ok(()) };
    // What the value holds is left out: it may be long, or a secret.
    let side = |plan: &LocalPlan, held| plan.values.find(name).map_or("none", |_| held);
    let sides = ((a.0, side(a.1, "one")), (b.0, side(b.1, "another")));
    Err(differs(&format!("value `{name}`"), sides.0, sides.1))
}

fn check_attached(a: Ranked, b: Ranked) -> Result<()> {
    let (ours, theirs) = (&a.1.attached, &b.1.attached);
    if ours == theirs {
        return Ok(());
    }
    let unlike = |one: &[OtherFile], other: &[OtherFile]| {
        one.iter().find(|file| !other.contains(file)).map(|file| file.name.clone())
    };
    let Some(name) = unlike(ours, theirs).or_else(|| unlike(theirs, ours)) else { return Ok(()) };
    let side = |files: &[OtherFile], held| {
        if files.iter().any(|file| file.name == name) { held } else { "none" }
    };
    let sides = ((a.0, side(ours, "one")), (b.0, side(theirs, "another")));
    Err(differs(&format!("attached file `{name}`"), sides.0, sides.1))
}

/// Every box that any rank declares, by tensor.
pub(super) struct Declared<'a> {
    names: Names<'a>,
    /// By number of the name, who declared it first.
    first: Vec<Held<'a>>,
    items: Vec<(u32, Held<'a>)>,
}

/// A box, and who holds it.
pub(super) type Held<'a> = (Rank, &'a WriteItem);

impl<'a> Declared<'a> {
    fn find(&self, name: &TensorName) -> Option<Held<'a>> {
        self.first.get(self.names.find(name)? as usize).copied()
    }

    /// Hands each tensor to `take`, by component and name: its boxes, by rank and in the order of
    /// its plan.
    pub(super) fn each_tensor(
        &self,
        mut take: impl FnMut(&[Held<'a>]) -> Result<()>,
    ) -> Result<()> {
        let grouped = Grouped::new(self.names.len(), &self.items);
        let mut order: Vec<_> = self.first.iter().enumerate().collect();
        order.sort_by(|(_, (_, a)), (_, (_, b))| {
            (&a.component, &a.name).cmp(&(&b.component, &b.name))
        });
        order.into_iter().try_for_each(|(number, _)| take(grouped.of(number)))
    }
}

fn check_tensors<'a>(ranked: &[Ranked<'a>]) -> Result<Declared<'a>> {
    let count = ranked.iter().map(|(_, plan)| plan.items.len()).sum();
    let (mut names, mut first) = (Names::default(), Vec::<Held>::new());
    let mut items = room_for(count)?;
    for &(rank, plan) in ranked {
        names.begin_list();
        for item in &plan.items {
            let number = names.number(&item.name);
            let known = match first.get(number as usize) {
                Some(known) => *known,
                None => {
                    first.push((rank, item));
                    (rank, item)
                }
            };
            check_item(known, (rank, item)).map_err(|e| e.with_tensor(item.name.as_str()))?;
            items.push((number, (rank, item)));
        }
    }
    Ok(Declared { names, first, items })
}

/// Checks a box, and that its rank says of the tensor what was said first.
fn check_item((first_rank, first): Held, (rank, item): Held) -> Result<()> {
    if !item.slice.fits(item.spec.shape()) {
        let message = format!("slice {} is not inside {}", item.slice, item.spec);
        return Err(Error::new(ErrorKind::InvalidInput, message).at_rank(rank));
    }
    if first.spec != item.spec {
        let sides = ((first_rank, &first.spec), (rank, &item.spec));
        return Err(differs("the tensor's dtype or shape", sides.0, sides.1));
    }
    if first.component != item.component {
        let sides = ((first_rank, &first.component), (rank, &item.component));
        return Err(differs("the tensor's component", sides.0, sides.1));
    }
    Ok(())
}

/// A rank that holds a tensor must know its second names; other ranks need not.
fn check_aliases(ranked: &[Ranked], tensors: &Declared) -> Result<Aliases> {
    let mut all: BTreeMap<&TensorName, (Rank, &TensorName)> = BTreeMap::new();
    for &(rank, plan) in ranked {
        for (alias, target) in &plan.aliases {
            let (first, known) = *all.entry(alias).or_insert((rank, target));
            if known != target {
                let what = format!("the tensor that alias `{alias}` means");
                return Err(differs(&what, (first, known), (rank, target)));
            }
            check_alias(rank, alias, target, tensors)?;
        }
    }
    for &(rank, plan) in ranked {
        let known: HashSet<&TensorName> = plan.aliases.iter().map(|(alias, _)| alias).collect();
        if known.len() == all.len() {
            continue;
        }
        let held: HashSet<&TensorName> = plan.items.iter().map(|item| &item.name).collect();
        let lacks = |alias: &TensorName, target: &TensorName| {
            held.contains(target) && !known.contains(alias)
        };
        if let Some((alias, (first, target))) = all.iter().find(|(a, (_, t))| lacks(a, t)) {
            let what = format!("alias `{alias}` of `{target}`");
            return Err(differs(&what, (*first, "it"), (rank, "the tensor without it")));
        }
    }
    Ok(all.into_iter().map(|(alias, (_, target))| (alias.clone(), target.clone())).collect())
}

fn check_alias(
    rank: Rank,
    alias: &TensorName,
    target: &TensorName,
    tensors: &Declared,
) -> Result<()> {
    if let Some((other, _)) = tensors.find(alias) {
        let sides = ((other, "a tensor"), (rank, "an alias"));
        return Err(differs("what the name means", sides.0, sides.1).with_tensor(alias.as_str()));
    }
    if tensors.find(target).is_none() {
        let message = format!("alias of `{target}`, which no rank saves");
        let error = Error::new(ErrorKind::InvalidInput, message);
        return Err(error.with_tensor(alias.as_str()).at_rank(rank));
    }
    Ok(())
}
