//! One checkpoint of several: the newest, that of a step, the best.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use super::order::Order;
use super::{Found, Wanted, Which, missing, visit};
use crate::error::{Error, ErrorKind, Result};
use crate::layout::SaveId;
use crate::manifest::CheckpointInfo;
use crate::storage::Directory;

/// What was seen while looking for one.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// How many can be read and were not left out, and what they have.
    pub(super) readable: usize,
    pub(super) steps: BTreeSet<u64>,
    pub(super) metrics: BTreeSet<String>,
    /// How many cannot be read, and why the first of them cannot: any may have been meant.
    pub(super) damaged: usize,
    pub(super) damage: Option<Error>,
    /// Why the first of those that were meant cannot be taken.
    pub(super) refused: Option<Error>,
}

/// The first of a directory in the order that `wanted` asks for.
///
/// One whose manifest is damaged is passed over, but if there is no other one its damage is the
/// error: "nothing here" would invite a fresh start over it.
pub(super) fn choose(
    parent: &dyn Directory,
    wanted: &Wanted,
    looked: &mut dyn FnMut(),
) -> Result<Found> {
    let mut choice = Choice { wanted, order: order_of(wanted.which()), best: None, failed: None };
    let mut seen = Seen::default();
    visit(parent, &mut |_, opened| {
        looked();
        match opened {
            Ok(found) => choice.consider(found, &mut seen),
            Err(error) => {
                tracing::warn!(%error, "a damaged checkpoint is passed over");
                seen.damaged += 1;
                seen.damage.get_or_insert(error);
            }
        }
    })?;
    if let Some(error) = choice.failed {
        return Err(error);
    }
    choice.best.map(|(_, found)| found).ok_or_else(|| missing::none_of(seen, wanted))
}

struct Choice<'a> {
    wanted: &'a Wanted,
    order: Order,
    best: Option<(CheckpointInfo, Found)>,
    /// The storage failed: what it hides might be the one.
    failed: Option<Error>,
}

impl Choice<'_> {
    fn consider(&mut self, found: Found, seen: &mut Seen) {
        let info = CheckpointInfo::of(found.name.as_str(), &found.manifest);
        if self.is_left_out(&info.save_id) {
            if self.is_meant(&info) {
                seen.refused.get_or_insert_with(|| missing::left_out(self.wanted));
            }
            return;
        }
        seen.note(&info);
        let is_first =
            |(best, _): &(CheckpointInfo, _)| self.order.compare(&info, best) == Ordering::Less;
        if !self.is_meant(&info) || !self.best.as_ref().is_none_or(is_first) {
            return;
        }
        match self.fault_when_falling_back(&found) {
            Ok(None) => self.best = Some((info, found)),
            Ok(Some(error)) => {
                tracing::warn!(%error, "a damaged checkpoint is passed over");
                seen.refused.get_or_insert(error.with_kind(ErrorKind::Corrupt));
            }
            Err(error) => {
                self.failed.get_or_insert(error);
            }
        }
    }

    fn is_left_out(&self, id: &Option<SaveId>) -> bool {
        id.is_some_and(|id| self.wanted.left_out().contains(&id))
    }

    fn is_meant(&self, info: &CheckpointInfo) -> bool {
        match self.wanted.which() {
            Which::Step(step) => info.step == *step,
            Which::BestBy { monitor, .. } => info.finite_metric(monitor).is_some(),
            Which::Named(_) | Which::Latest | Which::Best => true,
        }
    }

    /// Without falling back, what is damaged is to fail the load and not to be replaced silently.
    fn fault_when_falling_back(&self, found: &Found) -> Result<Option<Error>> {
        if self.wanted.left_out().is_empty() {
            return Ok(None);
        }
        found.fault_of_files()
    }
}

impl Seen {
    fn note(&mut self, info: &CheckpointInfo) {
        self.readable += 1;
        self.steps.insert(info.step);
        self.metrics.extend(info.metrics.keys().cloned());
    }
}

fn order_of(which: &Which) -> Order {
    match which {
        Which::BestBy { monitor, mode } => Order::Best { monitor: monitor.clone(), mode: *mode },
        _ => Order::Latest,
    }
}
