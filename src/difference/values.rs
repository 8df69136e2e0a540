//! How the values of two checkpoints differ.

use std::collections::BTreeSet;

use crate::manifest::Manifest;
use crate::rank::Rank;
use crate::state::{Value, Values};

/// A value that is not the same in both.
#[derive(Debug, Clone, PartialEq)]
pub struct ValueDifference {
    /// The rank whose own it is; `None` for what all ranks share.
    pub rank: Option<Rank>,
    /// Its name.
    pub name: String,
    /// In the first checkpoint, if it is there.
    pub old: Option<Value>,
    /// In the second checkpoint, if it is there.
    pub new: Option<Value>,
}

/// By rank, shared ones first, and name.
pub(super) fn compare(a: &Manifest, b: &Manifest) -> Vec<ValueDifference> {
    let mut all = of(None, Some(a.values()), Some(b.values()));
    let ranks: BTreeSet<Rank> = a.world_size().ranks().chain(b.world_size().ranks()).collect();
    for rank in ranks {
        all.extend(of(Some(rank), a.rank_values(rank), b.rank_values(rank)));
    }
    all
}

fn of(rank: Option<Rank>, a: Option<&Values>, b: Option<&Values>) -> Vec<ValueDifference> {
    let names = |values: Option<&Values>| -> BTreeSet<String> {
        values.into_iter().flat_map(|v| v.iter().map(|(name, _)| name.to_owned())).collect()
    };
    let find = |values: Option<&Values>, name: &str| values.and_then(|v| v.find(name).cloned());
    let names: BTreeSet<String> = names(a).union(&names(b)).cloned().collect();
    let pair = |name: String| {
        let (old, new) = (find(a, &name), find(b, &name));
        (!is_same(old.as_ref(), new.as_ref())).then_some(ValueDifference { rank, name, old, new })
    };
    names.into_iter().filter_map(pair).collect()
}

/// A NaN is the same as itself.
fn is_same(a: Option<&Value>, b: Option<&Value>) -> bool {
    match (a, b) {
        (Some(Value::Float(x)), Some(Value::Float(y))) => x.to_bits() == y.to_bits(),
        (Some(Value::Floats(x)), Some(Value::Floats(y))) => {
            x.iter().map(|x| x.to_bits()).eq(y.iter().map(|y| y.to_bits()))
        }
        _ => a == b,
    }
}
