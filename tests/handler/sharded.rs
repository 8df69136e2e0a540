//! An optimizer whose state the ranks share: the same training, and the same checkpoints.

use std::collections::BTreeSet;
use std::sync::Arc;

use tch_checkpoint::catalog::{self, Wanted};
use tch_checkpoint::group::ProcessGroup;
use tch_checkpoint::handler::NNHandler;
use tch_checkpoint::storage::{MemoryStorage, Storage};
use tch_checkpoint::torch::{Adam, AdamW, OptimizerSpec, ParamGroupConfig, RmsProp, Sgd, Sharded};
use tch_checkpoint::{Atomicity, ErrorKind};

use crate::harness::*;
use crate::models::*;

const ADAMW: AdamW =
    AdamW { lr: 1e-2, betas: (0.9, 0.99), eps: 1e-8, weight_decay: 0.1, amsgrad: true };

/// Large enough for its weights to be cut: 4 x 9000 and 9000 x 1.
fn wide(group: &ProcessGroup, storage: &Arc<dyn Storage>) -> NNHandler<Net> {
    let builder = NNHandler::builder(NetConfig { hidden: 9000, dropout: 0.0 });
    equip(builder.process_group(group).storage(storage.clone()).seed(5).build().unwrap())
}

fn groups() -> [ParamGroupConfig; 1] {
    let names = vec!["*.bias".to_owned()];
    [ParamGroupConfig { names, lr: Some(5e-3), weight_decay: Some(0.0) }]
}

fn with(
    group: &ProcessGroup,
    storage: &Arc<dyn Storage>,
    optimizer: impl Into<OptimizerSpec>,
) -> NNHandler<Net> {
    let mut handler = wide(group, storage);
    handler.set_optimizer_groups(optimizer, &groups()).unwrap();
    handler
}

fn is_sharded(handler: &NNHandler<Net>) -> bool {
    handler.optimizer().unwrap().is_sharded()
}

fn agreed(hashes: Vec<String>) -> String {
    assert!(hashes.iter().all(|hash| *hash == hashes[0]), "ranks differ");
    hashes.into_iter().next().unwrap()
}

fn shared(memory: &MemoryStorage) -> Arc<dyn Storage> {
    Arc::new(memory.clone())
}

#[test]
fn training_is_the_same_bit_for_bit() {
    for n in [1, 2, 3] {
        on_ranks(n, |group| {
            let storage = memory().1;
            let same = |mut ours: NNHandler<Net>, mut theirs: NNHandler<Net>| {
                ours.train(2).unwrap();
                theirs.train(2).unwrap();
                assert_eq!(parameters(&ours), parameters(&theirs));
                assert_eq!(ours.state_hash().unwrap(), theirs.state_hash().unwrap());
                assert!(is_sharded(&ours) && !is_sharded(&theirs));
            };
            let sgd = Sgd { lr: 0.1, momentum: 0.9, ..Sgd::default() };
            same(with(&group, &storage, Sharded(ADAMW)), with(&group, &storage, ADAMW));
            same(with(&group, &storage, Sharded(sgd)), with(&group, &storage, sgd));
            let rms = RmsProp { weight_decay: 0.1, ..RmsProp::default() };
            same(with(&group, &storage, Sharded(rms)), with(&group, &storage, rms));
        });
    }
}

/// Three epochs on three ranks, saved as `runs/shared` and, without sharing, as `runs/whole`.
fn saved_by_three() -> MemoryStorage {
    let memory = memory().0;
    let inner = memory.clone();
    on_ranks(3, move |group| {
        let storage = shared(&inner);
        let mut handler = with(&group, &storage, Sharded(ADAMW));
        handler.train(1).unwrap();
        handler.save("runs/shared").unwrap();
        let mut handler = with(&group, &storage, ADAMW);
        handler.train(1).unwrap();
        handler.save("runs/whole").unwrap();
    });
    memory
}

#[test]
fn a_shared_run_goes_on_bit_for_bit_on_any_number_of_ranks() {
    let memory = saved_by_three();
    for n in [1, 2, 3, 5] {
        let inner = memory.clone();
        agreed(on_ranks(n, move |group| {
            let storage = shared(&inner);
            let mut ours = loaded(&group, &storage, "runs/shared").unwrap();
            let mut theirs = loaded(&group, &storage, "runs/whole").unwrap();
            assert!(is_sharded(&ours) && !is_sharded(&theirs));
            assert_eq!(ours.optimizer().unwrap().groups()[1].lr, 5e-3);
            assert_eq!(ours.state_hash().unwrap(), theirs.state_hash().unwrap());
            ours.train(1).unwrap();
            theirs.train(1).unwrap();
            let hash = ours.state_hash().unwrap();
            assert_eq!(hash, theirs.state_hash().unwrap());
            hash
        }));
    }
}

#[test]
fn shared_state_loads_as_whole_and_whole_as_shared() {
    let memory = saved_by_three();
    for n in [1, 2] {
        let inner = memory.clone();
        agreed(on_ranks(n, move |group| {
            let storage = shared(&inner);
            let expected = loaded(&group, &storage, "runs/whole").unwrap().state_hash().unwrap();
            for atomicity in [Atomicity::Atomic, Atomicity::InPlace] {
                let mut whole = with(&group, &storage, ADAMW);
                whole.restore("runs/shared", atomicity).unwrap();
                assert!(!is_sharded(&whole));
                assert_eq!(whole.state_hash().unwrap(), expected);
                let mut ours = with(&group, &storage, Sharded(ADAMW));
                let report = ours.restore("runs/whole", atomicity).unwrap().report;
                assert!(report.unexpected.is_empty() && report.missing.is_empty(), "{report:?}");
                assert!(is_sharded(&ours));
                assert_eq!(ours.state_hash().unwrap(), expected);
            }
            // What is loaded is no coincidence.
            assert_ne!(with(&group, &storage, ADAMW).state_hash().unwrap(), expected);
            expected
        }));
    }
}

#[test]
fn every_rank_writes_its_own_share_and_every_byte_is_written_once() {
    let memory = saved_by_three();
    let find = |name: &str| catalog::find(&memory, &Wanted::parse(name).unwrap()).unwrap().manifest;
    let (ours, whole) = (find("runs/shared"), find("runs/whole"));
    assert_eq!(ours.tensor_bytes(), whole.tensor_bytes());
    let mut by_rank = [0u64; 3];
    for (index, file) in ours.data_files().iter().enumerate() {
        let Some(number) = file.name.strip_prefix("optimizer-0000") else { continue };
        let rank = number[..1].parse::<usize>().unwrap() - 1;
        by_rank[rank] +=
            ours.pieces_of_file(index).map(|(t, piece)| t.piece_bytes(piece)).sum::<u64>();
    }
    let moments = 3 * 4 * (4 + 1 + 1) * 9000;
    let all: u64 = by_rank.iter().sum();
    assert!(all >= moments && all < moments + 100, "{by_rank:?}");
    // The largest unit is a row of `input.weight`, or the bias, of 36 000 bytes each; per slot.
    assert!(by_rank.iter().all(|own| own.abs_diff(all / 3) <= 3 * 36_000), "{by_rank:?}");

    // The pieces of a weight are the boxes that ranks hold: rows 0..n, none of them copied.
    let weight = ours.tensor("optimizer.input.weight.exp_avg").unwrap();
    let files: BTreeSet<_> = weight.pieces.iter().map(|piece| piece.file).collect();
    assert!(weight.pieces.len() > 1 && files.len() == weight.pieces.len(), "{weight:?}");
    let squares = ours.tensor("optimizer.input.weight.exp_avg_sq").unwrap();
    let boxes = |t: &tch_checkpoint::manifest::TensorRecord| -> Vec<_> {
        t.pieces.iter().map(|piece| (piece.file, piece.slice.clone())).collect()
    };
    assert_eq!(boxes(weight), boxes(squares));
    assert!(ours.values().bool("optimizer.sharded").unwrap());
    assert!(whole.values().find("optimizer.sharded").is_none());
}

#[test]
fn shared_state_that_one_rank_keeps_whole_is_refused_before_training() {
    let results = on_ranks(2, |group| {
        let mut handler = equip(bare(&group, &memory().1, 0.0));
        let set = match group.rank().get() {
            0 => handler.set_optimizer(Sharded(Adam::default())),
            _ => handler.set_optimizer(Adam::default()),
        };
        set.unwrap();
        handler.train(1)
    });
    let error = one_error(&results);
    assert_eq!(error.kind(), ErrorKind::Disagreement, "{error}");
}

#[test]
fn ranks_with_other_groups_are_told_so_before_training() {
    let results = on_ranks(2, |group| {
        let mut handler = equip(bare(&group, &memory().1, 0.0));
        let name = if group.rank().get() == 0 { "input.weight" } else { "output.weight" };
        let groups = [ParamGroupConfig { names: vec![name.to_owned()], ..Default::default() }];
        handler.set_optimizer_groups(Adam::default(), &groups).unwrap();
        handler.train(1)
    });
    assert_eq!(one_error(&results).kind(), ErrorKind::Disagreement);
}

#[test]
fn groups_by_name_survive_a_load_and_other_groups_refuse_it() {
    let memory = memory().0;
    on_ranks(2, move |group| {
        let storage = shared(&memory);
        let mut handler = with(&group, &storage, ADAMW);
        handler.train(1).unwrap();
        handler.save("runs/a").unwrap();
        let mut again = loaded(&group, &storage, "runs/a").unwrap();
        let describe = |handler: &NNHandler<Net>| -> Vec<_> {
            let names = |g: &tch_checkpoint::torch::optim::ParamGroup| {
                g.parameters().map(|(name, _)| name.to_owned()).collect::<Vec<_>>()
            };
            let groups = handler.optimizer().unwrap().groups().iter();
            groups.map(|g| (names(g), g.lr, g.weight_decay)).collect()
        };
        let weights = vec!["input.weight".to_owned(), "output.weight".to_owned()];
        let expected = [(weights, 1e-2, 0.1), (vec!["input.bias".to_owned()], 5e-3, 0.0)];
        assert_eq!(describe(&again), expected);
        handler.train(1).unwrap();
        again.train(1).unwrap();
        assert_eq!(again.state_hash().unwrap(), handler.state_hash().unwrap());

        let mut other = wide(&group, &storage);
        let names = vec!["output.*".to_owned()];
        let groups = [ParamGroupConfig { names, ..ParamGroupConfig::default() }];
        other.set_optimizer_groups(ADAMW, &groups).unwrap();
        let before = other.state_hash().unwrap();
        let error = other.restore("runs/a", Atomicity::InPlace).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Mismatch, "{error}");
        assert_eq!(error.tensor(), Some("input.bias"), "{error}");
        assert_eq!(other.state_hash().unwrap(), before);
    });
}

/// Parameters are replicas, moments are not: ranks declare different boxes.
#[test]
fn an_audit_passes_shared_state_and_finds_a_parameter_that_drifted_apart() {
    let memory = memory().0;
    let inner = memory.clone();
    let verdicts = on_ranks(3, move |group| {
        let storage = shared(&inner);
        let mut handler = with(&group, &storage, Sharded(ADAMW));
        handler.audit_replicas(true);
        handler.auto_save(1, "runs", "auto{epoch}").unwrap();
        handler.train(1).unwrap();
        if group.rank().get() == 2 {
            let bias = handler.vars().variables().remove("input.bias").unwrap();
            let _same = tch::no_grad(|| bias.get(17).fill_(0.25));
        }
        handler.save("runs/a").map(drop)
    });
    let error = one_error(&verdicts);
    assert_eq!((error.kind(), error.tensor()), (ErrorKind::Disagreement, Some("input.bias")));
    assert_eq!(error.rank().map(tch_checkpoint::Rank::get), Some(2), "{error}");
    assert_eq!(entries(&memory, "runs"), ["auto1"]);
}
