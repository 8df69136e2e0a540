//! Beginning with the weights of others: what is filled, what stays, and what a failure leaves.

use std::path::Path;
use std::sync::Arc;

use tch_checkpoint::checkpointer::{Checkpointer, Parts, Resume};
use tch_checkpoint::load::PartialOptions;
use tch_checkpoint::select::{Rename, Selection, SelectionRules};
use tch_checkpoint::state::{LoadTargets, StateDict, Stateful, TensorSink, Values};
use tch_checkpoint::storage::{MemoryStorage, Storage};
use tch_checkpoint::tensor::{Dtype, TensorSpec};
use tch_checkpoint::{Error, ErrorKind, ProcessGroup, Result};

use super::toy::{Toy, Weights, at, config, steps_of};
use crate::harness::{name, on_ranks};

/// A file of another program, whose names have a prefix.
fn plain_file(storage: &dyn Storage) -> Vec<u8> {
    let weights = Toy::after(9, 0).weights;
    let view =
        safetensors::tensor::TensorView::new(safetensors::Dtype::U8, vec![weights.len()], &weights);
    let bytes = safetensors::serialize([("module.weights", view.unwrap())], None).unwrap();
    let dir = storage.create_dir_all(Path::new("/others")).unwrap();
    let file = dir.create_file("model.safetensors").unwrap();
    file.write_at(0, &bytes).unwrap();
    file.finish().unwrap();
    weights
}

fn unwrapping() -> Selection {
    let rename = vec![Rename::new("module.*", "*")];
    Selection::new(SelectionRules { rename, ..SelectionRules::default() }).unwrap()
}

const STRICT: PartialOptions =
    PartialOptions { strict: true, atomicity: tch_checkpoint::load::Atomicity::Atomic };

fn trained(group: &ProcessGroup, storage: &Arc<dyn Storage>) -> (Checkpointer, Toy) {
    let config = config(Path::new("/runs"));
    let mut checkpointer = Checkpointer::with_storage(group, storage.clone(), config).unwrap();
    let mut toy = Toy::new();
    toy.step(1, group.rank().get());
    toy.with(|parts| checkpointer.save(&at(1), parts)).unwrap();
    (checkpointer, toy)
}

#[test]
fn weights_of_another_program_come_in_and_the_run_goes_on_as_it_was() {
    for ranks in [1, 2] {
        let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
        let others = plain_file(storage.as_ref());
        on_ranks(ranks, move |group| {
            let (mut checkpointer, mut toy) = trained(&group, &storage);
            let place = toy.place;
            let load = |parts: &mut Parts<'_>| {
                checkpointer.load_partial(
                    "/others/model.safetensors",
                    parts,
                    &unwrapping(),
                    &STRICT,
                )
            };
            let done = toy.with(load).unwrap();
            assert_eq!(done.report.filled[0].to_string(), "weights from module.weights");
            assert_eq!((&toy.weights, toy.place), (&others, place));
            // The next save is one of this run, and has these weights.
            toy.with(|parts| checkpointer.save(&at(2), parts)).unwrap();
            assert_eq!(steps_of(&checkpointer), [2, 1]);
            toy.weights.fill(0);
            toy.with(|parts| checkpointer.load(&Resume::Latest, parts)).unwrap();
            assert_eq!(toy.weights, others);
        });
    }
}

/// What cannot be filled.
struct Broken;

impl TensorSink for Broken {
    fn write_at(&mut self, _offset: u64, _bytes: &[u8]) -> Result<()> {
        Err(Error::new(ErrorKind::Device, "no copy"))
    }
}

impl Stateful for Broken {
    fn save_state(&self, _prefix: &str, _state: &mut StateDict) -> Result<()> {
        Ok(())
    }

    fn load_targets<'a>(&'a mut self, _prefix: &str, targets: &mut LoadTargets<'a>) -> Result<()> {
        targets.add(name("weights"), TensorSpec::new(Dtype::U8, [1000])?, Box::new(Broken))
    }

    fn load_values(&mut self, _prefix: &str, _values: &Values, _own: &Values) -> Result<()> {
        Ok(())
    }
}

#[test]
fn a_partial_load_that_fails_half_way_keeps_the_parts_from_being_saved() {
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    plain_file(storage.as_ref());
    on_ranks(2, move |group| {
        let (mut checkpointer, mut toy) = trained(&group, &storage);
        let (mut broken, mut weights) = (Broken, Weights(&mut toy.weights));
        let model: &mut dyn Stateful =
            if group.rank().get() == 1 { &mut broken } else { &mut weights };
        let mut parts = Parts::new().model(model);
        let at_file = "/others/model.safetensors";
        let failed = checkpointer.load_partial(at_file, &mut parts, &unwrapping(), &STRICT);
        assert_eq!(failed.unwrap_err().phase(), Some("place"));
        let refused = toy.with(|parts| checkpointer.save(&at(2), parts)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Poisoned, "{refused}");
    });
}

#[test]
fn ranks_that_begin_with_different_files_are_told_so_and_nothing_changes() {
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    plain_file(storage.as_ref());
    on_ranks(2, move |group| {
        let (mut checkpointer, mut toy) = trained(&group, &storage);
        let before = toy.clone();
        let at_file = format!("/others/model{}.safetensors", group.rank().get());
        let failed =
            toy.with(|parts| checkpointer.load_partial(&at_file, parts, &unwrapping(), &STRICT));
        assert_eq!(failed.unwrap_err().kind(), ErrorKind::Disagreement);
        assert_eq!(toy, before);
        toy.with(|parts| checkpointer.save(&at(2), parts)).unwrap();
    });
}
