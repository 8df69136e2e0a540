//! Receipts for what nobody has said to have written: the defect of a coordinator that does not wait
//! for every vote.

use crate::plan::save::MergedPlan;
use crate::plan::{Receipt, SavePlan};
use crate::sabotage::{Defect, is_on};

/// One receipt per plan, in order, made up where there is none.
pub(super) fn complete(merged: &MergedPlan, receipts: Vec<Receipt>) -> Vec<Receipt> {
    if !is_on(Defect::VotesNotAwaited) || receipts.len() == merged.plans.len() {
        return receipts;
    }
    let of = |plan: &SavePlan| {
        let names =
            |r: &&Receipt| r.files.iter().map(|f| &f.name).eq(plan.files.iter().map(|f| &f.name));
        receipts.iter().find(names).cloned().unwrap_or_else(|| Receipt::as_planned(plan))
    };
    merged.plans.iter().map(of).collect()
}
