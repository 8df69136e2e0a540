//! What to say when the checkpoint that is wanted is not there: what is.

use std::collections::BTreeSet;
use std::fmt::Display;

use super::choose::Seen;
use super::{Wanted, Which, visit};
use crate::error::{Error, ErrorKind};
use crate::layout::CheckpointName;
use crate::shown::short;
use crate::storage::Directory;

/// Most names, steps or metrics that are listed.
const SHOWN_MAX: usize = 10;
/// Steps are short.
const STEPS_SHOWN_MAX: usize = 40;

/// Of a name.
pub(super) fn named(parent: &dyn Directory, name: &CheckpointName, wanted: &Wanted) -> Error {
    if let Some(inside) = parent.open_dir(name.as_str()).ok().and_then(|dir| an_entry(dir.as_ref()))
    {
        let help = format!("name one of them: `{wanted}/{inside}`, or `{wanted}/latest`");
        return not_found("this is a directory of checkpoints, not one", wanted, help);
    }
    let is_file = parent.open_file(name.as_str()).is_ok();
    let message = if is_file { "this file is no checkpoint" } else { "no checkpoint here" };
    not_found(message, wanted, names_of(parent))
}

/// Of a pointer; `why` it leads nowhere.
pub(super) fn pointed(parent: &dyn Directory, why: &str, wanted: &Wanted) -> Error {
    not_found(why, wanted, names_of(parent))
}

/// One that [`Wanted::except`] leaves out.
pub(super) fn left_out(wanted: &Wanted) -> Error {
    Error::new(ErrorKind::Corrupt, "found damaged before, and no other one can be taken")
        .with_path(wanted.to_string())
        .with_help("nothing was changed; load another checkpoint by its name")
}

/// None of a directory is the one. Damage of what may have been meant is the error: "nothing here"
/// would invite a fresh start over it.
pub(super) fn none_of(seen: Seen, wanted: &Wanted) -> Error {
    if let Some(refused) = seen.refused {
        return refused;
    }
    if seen.readable == 0 {
        return seen.damage.unwrap_or_else(|| {
            not_found("no checkpoint here", wanted, "the directory holds no checkpoint".to_owned())
        });
    }
    let (message, mut have) = match wanted.which() {
        Which::Step(step) => {
            let steps = shown(seen.steps.iter().rev(), STEPS_SHOWN_MAX);
            (format!("no checkpoint of step {step} here"), format!("there are the steps {steps}"))
        }
        Which::BestBy { monitor, .. } if seen.metrics.is_empty() => (
            format!("no checkpoint here has a metric `{}`", short(monitor)),
            "none of them has any metric".to_owned(),
        ),
        Which::BestBy { monitor, .. } => {
            let metrics =
                shown(seen.metrics.iter().map(|name| format!("`{}`", short(name))), SHOWN_MAX);
            let message = format!("no checkpoint here has a finite metric `{}`", short(monitor));
            (message, format!("there are the metrics {metrics}"))
        }
        _ => ("no checkpoint here".to_owned(), format!("{} can be read", seen.readable)),
    };
    if seen.damaged > 0 {
        have.push_str(&format!(", and {} damaged", seen.damaged));
    }
    not_found(&message, wanted, have)
}

/// The first name of a directory of checkpoints; `None` if it is none.
fn an_entry(parent: &dyn Directory) -> Option<CheckpointName> {
    let mut first: Option<CheckpointName> = None;
    let mut take = |name: &CheckpointName| {
        if first.as_ref().is_none_or(|first| name < first) {
            first = Some(name.clone());
        }
    };
    visit(parent, &mut |name, opened| opened.iter().for_each(|_| take(name))).ok()?;
    first
}

fn names_of(parent: &dyn Directory) -> String {
    let (mut names, mut damaged) = (BTreeSet::new(), 0usize);
    let listed = visit(parent, &mut |name, opened| match opened {
        Ok(_) => drop(names.insert(name.to_string())),
        Err(_) => damaged += 1,
    });
    let mut have = match (listed, names.is_empty()) {
        (Err(_), _) => "the directory cannot be listed".to_owned(),
        (_, true) => "the directory holds no checkpoint".to_owned(),
        _ => format!("the directory holds: {}", shown(names, SHOWN_MAX)),
    };
    if damaged > 0 {
        have.push_str(&format!(" and {damaged} damaged"));
    }
    have
}

/// The first of these, and how many more there are.
fn shown(all: impl IntoIterator<Item = impl Display>, max: usize) -> String {
    let mut all = all.into_iter();
    let first: Vec<String> = all.by_ref().take(max).map(|one| one.to_string()).collect();
    let more = match all.count() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    first.join(", ") + &more
}

fn not_found(message: &str, wanted: &Wanted, help: String) -> Error {
    Error::new(ErrorKind::NotFound, message).with_path(wanted.to_string()).with_help(help)
}
