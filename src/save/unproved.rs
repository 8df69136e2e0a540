//! Receipts for what nobody has said to have written: the defect of a coordinator that does not wait
//! for every vote.

use crate::manifest::{SUM_BYTES, SUMS_HEADER_BYTES, sums_of};
use crate::plan::save::MergedPlan;
use crate::plan::{FileReceipt, PlannedFile, PlannedPiece, Receipt, SavePlan, SumsReceipt};
use crate::sabotage::{Defect, is_on};

/// One receipt per plan, in order, made up where there is none.
pub(super) fn complete(merged: &MergedPlan, receipts: Vec<Receipt>) -> Vec<Receipt> {
    if !is_on(Defect::VotesNotAwaited) || receipts.len() == merged.plans.len() {
        return receipts;
    }
    let of = |plan: &SavePlan| {
        let names =
            |r: &&Receipt| r.files.iter().map(|f| &f.name).eq(plan.files.iter().map(|f| &f.name));
        receipts.iter().find(names).cloned().unwrap_or_else(|| made_up(plan))
    };
    merged.plans.iter().map(of).collect()
}

fn made_up(plan: &SavePlan) -> Receipt {
    let mut end = SUMS_HEADER_BYTES;
    let files = plan.files.iter().map(|file| made_up_file(file, &mut end)).collect();
    let sums = |name: &String| SumsReceipt { name: name.clone(), len: end, hash: [0; 16] };
    Receipt { files, sums_file: plan.sums_file.as_ref().map(sums), ..Receipt::default() }
}

fn made_up_file(file: &PlannedFile, sums_end: &mut u64) -> FileReceipt {
    let (data_start, sums_begin) = (4096, *sums_end);
    let piece_bytes: Vec<u64> = file.pieces.iter().map(PlannedPiece::size_bytes).collect();
    *sums_end += piece_bytes.iter().map(|bytes| sums_of(*bytes) * SUM_BYTES).sum::<u64>();
    FileReceipt {
        name: file.name.clone(),
        len: data_start + piece_bytes.iter().sum::<u64>(),
        data_start,
        header_hash: [0; 16],
        piece_bytes,
        sums_begin,
        sums_hash: [0; 16],
    }
}
