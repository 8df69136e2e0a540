//! What the fuzz targets reach of the inside; compiled with `--cfg fuzzing` alone.
//!
//! Each function takes bytes that nobody vouches for and panics where a promise is broken.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec;
use crate::error::{Error, ErrorKind, Result};
pub use crate::group::fuzzing::{connection, frames, guest, hello, reply};
use crate::layout::SaveId;
use crate::load::fuzz_load_answers;
use crate::manifest::{
    DATA_ALIGNMENT, Manifest, OtherFile, SUM_BYTES, SUMS_HEADER_BYTES, SealInfo, sums_of,
};
use crate::pickle::Pickle;
use crate::plan::reuse::{PlanVote, job_of, structure_of};
use crate::plan::save::{MergedPlan, merge_plans};
use crate::plan::{
    FileReceipt, LocalPlan, OnExisting, PlannedFile, PlannedPiece, Receipt, SavePlan, SaveTarget,
    SumsReceipt, WriteItem,
};
use crate::preempt::Preempted;
use crate::pytorch::{Tree, dcp, described, is_known};
use crate::rank::Rank;
use crate::report::{RankSave, SaveReport};
use crate::save::{fuzz_commit_vote, fuzz_plan_answer};
use crate::shard::{ParsedHeader, plain_header};
use crate::slice::Slice;
use crate::state::Values;
use crate::tensor::{Component, Dtype, NAME_BYTES_MAX, TensorName, TensorSpec};

/// How many bodies [`body`] knows.
pub const BODIES: u8 = 9;

/// A body of a vote or a verdict, of kind `kind` modulo [`BODIES`].
pub fn body(kind: u8, bytes: &[u8]) {
    match kind % BODIES {
        0 => drop(message::<Result<PlanVote>>(bytes).and_then(Result::ok).map(planned)),
        1 => drop(message::<Result<Option<PlanVote>>>(bytes)),
        2 => fuzz_plan_answer(bytes),
        3 => fuzz_commit_vote(bytes),
        4 => drop(message::<Result<(Receipt, Receipt)>>(bytes).and_then(Result::ok).map(written)),
        5 => drop(message::<(Error, Error)>(bytes)),
        6 => drop(message::<Result<SaveReport>>(bytes)),
        7 => drop(message::<Result<Option<Preempted>>>(bytes)),
        _ => fuzz_load_answers(bytes),
    }
}

/// Decodes a body; what is there comes back from its own bytes.
pub(crate) fn message<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    let value: T = codec::decode(bytes).ok()?;
    let printed = codec::encode(&value).expect("what was decoded is encoded");
    // Keys of maps may come in another order, numbers need not equal themselves: by bytes.
    let again: T = codec::decode(&printed).expect("what was encoded is decoded");
    assert_eq!(codec::encode(&again).ok().as_ref(), Some(&printed));
    Some(value)
}

/// A coordinator with two ranks, of which one has a plan of its own, and makes a plan of theirs.
fn planned(vote: PlanVote) {
    let _ = structure_of(&vote.plan);
    let own = PlanVote::whole(LocalPlan { items: Vec::new(), ..vote.plan.clone() });
    let _ = job_of(&[own.clone(), vote.clone()]);
    for plans in [vec![vote.plan.clone()], vec![own.plan, vote.plan.clone()]] {
        let Ok(merged) = merge_plans(SaveId::from_bytes([7; 16]), &plans) else { continue };
        merged.renewed(SaveId::from_bytes([8; 16]), plans.iter()).expect("the same ranks");
        sealed(&merged, Vec::new());
    }
}

/// Receipts for a plan that is known.
fn written((first, second): (Receipt, Receipt)) {
    sealed(&known(), vec![first, second]);
}

/// What two ranks save, of which each holds a part of one tensor.
fn known() -> MergedPlan {
    let plans: Vec<LocalPlan> = [0..3, 3..5].map(|rows| plan(&[5, 2], rows)).into();
    merge_plans(SaveId::from_bytes([7; 16]), &plans).expect("a good plan")
}

fn plan(shape: &[u64], rows: std::ops::Range<u64>) -> LocalPlan {
    let name = TensorName::new("w").expect("a name");
    let spec = TensorSpec::new(Dtype::F32, shape).expect("a shape");
    let slice = Slice::full(shape).rows(rows).expect("rows");
    let target = SaveTarget {
        directory: "runs".into(),
        name: "a".into(),
        step: 3,
        epoch: 1,
        on_existing: OnExisting::Refuse,
        space_reserve: 1 << 20,
        ignore_space: false,
        copy_unchanged: false,
        libtorch_version: "2.9.0".into(),
    };
    let mut values = Values::new();
    values.set("loss", 0.5);
    values.set("flag", true);
    LocalPlan {
        target,
        items: vec![WriteItem { name, component: Component::model(), spec, slice }],
        aliases: Vec::new(),
        values,
        rank_values: Values::new(),
        attached: vec![OtherFile { name: "code/a.rs".into(), len: 1, hash: [1; 16] }],
    }
}

/// Good bodies with their kinds.
#[must_use]
pub fn bodies() -> Vec<(u8, Vec<u8>)> {
    let (merged, error) = (known(), Error::new(ErrorKind::Storage, "full").at_rank(Rank::new(1)));
    let receipts: Vec<Receipt> = merged.plans.iter().map(receipt).collect();
    let own = RankSave::default();
    let failed = Error::from_failures(vec![error.clone(), error.clone()]);
    let votes = [vec![], vec![[7; 32]]].map(|known| {
        let plan = plan(&[5, 2], 0..5);
        Ok::<_, Error>(PlanVote { known, ..PlanVote::whole(plan) })
    });
    let encoded = [
        (0, codec::encode(&votes[0])),
        (0, codec::encode(&votes[1])),
        (0, codec::encode(&Err::<(), _>(&error))),
        (1, codec::encode(&Ok::<_, Error>(votes[0].as_ref().ok()))),
        (2, codec::encode(&Ok::<_, Error>((0u32, "a", [7u8; 32], &merged.plans[0])))),
        (2, codec::encode(&Ok::<_, Error>(2u32))),
        (3, codec::encode(&Ok::<_, Error>((&receipts[0], own)))),
        (4, codec::encode(&Ok::<_, Error>(&receipts))),
        (4, codec::encode(&Ok::<_, Error>((&receipts[0], &receipts[1])))),
        (5, codec::encode(&(&failed, &error))),
        (6, codec::encode(&Ok::<_, Error>(SaveReport::default()))),
        (7, codec::encode(&Ok::<_, Error>(Some(Preempted::TimeLimit)))),
    ];
    encoded.into_iter().filter_map(|(kind, body)| Some((kind, body.ok()?))).collect()
}

/// What a rank reports that has done as planned.
fn receipt(plan: &SavePlan) -> Receipt {
    let mut sums_begin = SUMS_HEADER_BYTES;
    let file = |file: &PlannedFile| {
        let piece_bytes: Vec<u64> = file.pieces.iter().map(PlannedPiece::size_bytes).collect();
        let begin = sums_begin;
        sums_begin += piece_bytes.iter().map(|bytes| sums_of(*bytes) * SUM_BYTES).sum::<u64>();
        FileReceipt {
            name: file.name.clone(),
            len: DATA_ALIGNMENT + piece_bytes.iter().sum::<u64>(),
            data_start: DATA_ALIGNMENT,
            header_hash: [1; 16],
            sums_begin: begin,
            sums_hash: [2; 16],
            piece_bytes,
        }
    };
    let files = plan.files.iter().map(file).collect();
    let sums = |name: String| SumsReceipt { name, len: sums_begin, hash: [3; 16] };
    Receipt { files, sums_file: plan.sums_file.clone().map(sums), ..Receipt::default() }
}

fn sealed(merged: &MergedPlan, receipts: Vec<Receipt>) {
    let others = Vec::<OtherFile>::new();
    if let Ok(manifest) = Manifest::seal(merged, receipts, others, SealInfo::default()) {
        let bytes = manifest.encode().expect("what is sealed is encoded");
        drop(Manifest::parse(&bytes).expect("what is sealed is parsed"));
    }
}

/// A pickle, as a state dict and as the metadata of a distributed checkpoint.
pub fn pickle(bytes: &[u8]) {
    if let Ok(entries) = dcp::parse(bytes) {
        for entry in &entries {
            assert!(!entry.path.is_empty() && entry.name.len() <= NAME_BYTES_MAX);
        }
        let values = entries.into_iter().map(|entry| (entry.path, Tree::Tensor(entry.name)));
        drop(dcp::nested(values));
    }
    if let Ok((pickle, len)) = Pickle::read(bytes, &is_known) {
        assert!(len <= bytes.len() && format!("{:?}", pickle.root().what()).len() < 1000);
        drop(described(&pickle));
    }
}

/// The header of a data file as it is written for what was read.
///
/// # Errors
/// As for a header to be written.
pub fn header(parsed: &ParsedHeader) -> Result<Vec<u8>> {
    plain_header(parsed.metadata.clone(), parsed.tensors.clone())
}
