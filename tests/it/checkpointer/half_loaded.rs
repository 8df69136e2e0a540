//! Loads into live parts: what fails before anything changes leaves them as they were, and what
//! fails half-way keeps them from being saved.

use std::path::Path;
use std::sync::Arc;

use tch_checkpoint::checkpointer::{Checkpointer, CheckpointerConfig, Parts, Resume};
use tch_checkpoint::group::Channel;
use tch_checkpoint::state::{
    LoadTargets, PerRank, Shared, StateDict, Stateful, TensorSink, Values,
};
use tch_checkpoint::storage::{Fault, FaultyStorage, MemoryStorage, Storage};
use tch_checkpoint::tensor::{Dtype, TensorSpec};
use tch_checkpoint::{Error, ErrorKind, ProcessGroup, Result};

use super::toy::{Toy, Weights, at, config, steps_of};
use crate::harness::{name, on_ranks};

const EIO: i32 = 5;

/// Where a load of a rank breaks.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Break {
    Nowhere,
    /// Copying into the destination.
    Copy,
    /// Taking values, when every tensor is in place.
    Values,
    /// As both, by a panic.
    Panic,
    /// Before anything changes.
    Check,
}

/// Weights that may fail to be filled.
struct Fragile<'a>(&'a mut Vec<u8>, Break);

struct Broken;

impl TensorSink for Broken {
    fn write_at(&mut self, _offset: u64, _bytes: &[u8]) -> Result<()> {
        Err(Error::new(ErrorKind::Device, "no copy"))
    }
}

impl Stateful for Fragile<'_> {
    fn save_state(&self, prefix: &str, state: &mut StateDict) -> Result<()> {
        Weights(&mut self.0.clone()).save_state(prefix, state)
    }

    fn load_targets<'a>(&'a mut self, _prefix: &str, targets: &mut LoadTargets<'a>) -> Result<()> {
        let spec = TensorSpec::new(Dtype::U8, [self.0.len() as u64])?;
        let sink: Box<dyn TensorSink + 'a> = match self.1 {
            Break::Copy => Box::new(Broken),
            _ => Box::new(&mut self.0[..]),
        };
        targets.add(name("weights"), spec, sink)
    }

    fn check_values(&self, _prefix: &str, _values: &Values, _own: &Values) -> Result<()> {
        match self.1 {
            Break::Check => Err(Error::new(ErrorKind::Mismatch, "no fit")),
            _ => Ok(()),
        }
    }

    fn load_values(&mut self, _prefix: &str, _values: &Values, _own: &Values) -> Result<()> {
        match self.1 {
            Break::Values => Err(Error::new(ErrorKind::Mismatch, "no value")),
            Break::Panic => panic!("an injected panic"),
            _ => Ok(()),
        }
    }
}

fn load(checkpointer: &mut Checkpointer, toy: &mut Toy, broken: Break) -> Result<()> {
    let (mut weights, mut place) = (Fragile(&mut toy.weights, broken), PerRank(&mut toy.place));
    let mut parts = Parts::new().model(&mut weights).dataloader("train", &mut place);
    checkpointer.load(&Resume::Latest, &mut parts).map(drop)
}

/// A run of two steps of which the first is saved.
fn trained(group: &ProcessGroup, storage: &Arc<dyn Storage>) -> (Checkpointer, Toy) {
    let config = config(Path::new("/runs"));
    let mut checkpointer = Checkpointer::with_storage(group, storage.clone(), config).unwrap();
    let (mut toy, rank) = (Toy::new(), group.rank().get());
    toy.step(1, rank);
    toy.with(|parts| checkpointer.save(&at(1), parts)).unwrap();
    toy.step(2, rank);
    (checkpointer, toy)
}

#[test]
fn a_load_that_fails_half_way_keeps_the_parts_from_being_saved_until_one_succeeds() {
    for broken in [Break::Copy, Break::Values, Break::Panic] {
        for (ranks, failing) in [(1, 0), (2, 0), (2, 1), (4, 3)] {
            let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
            let errors = on_ranks(ranks, move |group| {
                let (mut checkpointer, mut toy) = trained(&group, &storage);
                let own = if group.rank().get() == failing { broken } else { Break::Nowhere };
                let error = load(&mut checkpointer, &mut toy, own).unwrap_err();
                assert_eq!(error.phase(), Some("place"), "{error}");
                let refused = [
                    toy.with(|parts| checkpointer.save(&at(2), parts)),
                    toy.with(|parts| checkpointer.save_async(&at(2), parts)),
                    toy.with(|parts| checkpointer.save_as("best", &at(2), parts)),
                    toy.with(|parts| checkpointer.finish(&at(2), parts)),
                ];
                for refused in refused {
                    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Poisoned, "{broken:?}");
                }
                assert_eq!(steps_of(&checkpointer), [1]);
                let missing = Resume::Path("/runs/run/none".into());
                toy.with(|parts| checkpointer.load(&missing, parts)).unwrap_err();
                let refused = toy.with(|parts| checkpointer.save(&at(2), parts)).unwrap_err();
                assert_eq!(refused.kind(), ErrorKind::Poisoned);

                load(&mut checkpointer, &mut toy, Break::Nowhere).unwrap();
                assert_eq!(toy, Toy::after(1, group.rank().get()));
                toy.step(2, group.rank().get());
                toy.with(|parts| checkpointer.save(&at(2), parts)).unwrap();
                assert_eq!(steps_of(&checkpointer), [2, 1]);
                error
            });
            assert!(errors.iter().all(|error| *error == errors[0]), "{errors:#?}");
        }
    }
}

#[test]
fn a_load_that_fails_before_anything_changes_keeps_nothing() {
    for (ranks, failing) in [(1, 0), (2, 1)] {
        let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
        on_ranks(ranks, move |group| {
            let (mut checkpointer, mut toy) = trained(&group, &storage);
            let own = if group.rank().get() == failing { Break::Check } else { Break::Nowhere };
            let error = load(&mut checkpointer, &mut toy, own).unwrap_err();
            assert_eq!((error.kind(), error.phase()), (ErrorKind::Mismatch, Some("plan")));
            assert_eq!(toy, Toy::after(2, group.rank().get()));
            toy.with(|parts| checkpointer.save(&at(2), parts)).unwrap();
        });
    }
}

/// What `Resume::Path` loads is looked up among the others when it is in place: if that fails, the
/// run has not taken up what its parts hold.
#[test]
fn a_load_by_path_that_fails_at_any_operation_changes_nothing_or_keeps_from_saving() {
    for ranks in [1, 2] {
        let (mut touched, mut read) = (0, 0);
        for operation in 1.. {
            let memory: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
            let faulty = FaultyStorage::new(memory);
            let ended = on_ranks(ranks, move |group| {
                let storage: Arc<dyn Storage> = Arc::new(faulty.clone());
                let (mut checkpointer, mut toy) = trained(&group, &storage);
                group.phase_all(Channel::Training, "trained", || Ok(()), |_| Ok(())).unwrap();
                if group.is_coordinator() {
                    faulty.reset();
                    faulty.fail_at(operation, Fault::Error(EIO), false);
                }
                group.phase_all(Channel::Training, "armed", || Ok(()), |_| Ok(())).unwrap();
                let which = Resume::Path("/runs/run/checkpoint_step_00000001".into());
                let loaded = toy.with(|parts| checkpointer.load(&which, parts));
                let is_changed = toy != Toy::after(2, group.rank().get());
                let Err(error) = loaded else { return None };
                let saved = toy.with(|parts| checkpointer.save(&at(2), parts));
                let is_refused = saved.is_err_and(|error| error.kind() == ErrorKind::Poisoned);
                assert!(is_refused || !is_changed, "operation {operation}: not its own state");
                let was_read = error.phase() == Some("read");
                assert!(!(is_refused && was_read), "operation {operation}: kept for nothing");
                Some((is_changed, was_read))
            });
            if ended.iter().all(Option::is_none) {
                break;
            }
            touched += ended.iter().flatten().filter(|(is_changed, _)| *is_changed).count();
            read += ended.iter().flatten().filter(|(_, was_read)| *was_read).count();
        }
        assert!(read > 0, "nothing failed while it was read");
        assert!(touched > 0, "nothing failed after the parts were in place");
    }
}

/// A lenient load leaves alone what its checkpoint lacks: that stays as the one before left it.
#[test]
fn a_lenient_load_that_lacks_something_makes_nothing_whole() {
    for ranks in [1, 2] {
        let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
        on_ranks(ranks, move |group| {
            let lenient = CheckpointerConfig { resume_strict: false, ..config(Path::new("/runs")) };
            let mut run = Checkpointer::with_storage(&group, storage.clone(), lenient).unwrap();
            let (mut toy, mut place) = (Toy::new(), 0_u64);
            {
                let mut part = PerRank(&mut place);
                let mut parts = Parts::new().dataloader("train", &mut part);
                run.save_as("without", &at(0), &mut parts).unwrap();
            }
            toy.with(|parts| run.save(&at(1), parts)).unwrap();
            toy.step(2, group.rank().get());
            load(&mut run, &mut toy, Break::Values).unwrap_err();
            let without = Resume::Path("/runs/run/without".into());
            let loaded = toy.with(|parts| run.load(&without, parts)).unwrap();
            assert!(!loaded.report.missing.is_empty());
            let refused = toy.with(|parts| run.save(&at(2), parts)).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Poisoned);
            toy.with(|parts| run.load(&Resume::Latest, parts)).unwrap();
            toy.with(|parts| run.save(&at(2), parts)).unwrap();
        });
    }
}

const PARTS: [&str; 5] = ["scheduler", "rng", "scaler", "sampler", "epoch"];

/// A run of which parts `present` are registered; the values of all.
fn with_parts<R>(
    values: &mut [u64; PARTS.len()],
    weights: &mut Vec<u8>,
    present: impl Fn(&str) -> bool,
    with: impl FnOnce(&mut Parts<'_>) -> R,
) -> R {
    let mut model = Weights(weights);
    let [schedule, rng, scaler, sampler, epoch] = values;
    let (mut schedule, mut rng) = (Shared(schedule), PerRank(rng));
    let (mut scaler, mut sampler, mut epoch) = (Shared(scaler), PerRank(sampler), Shared(epoch));
    let all: [&mut dyn Stateful; PARTS.len()] =
        [&mut schedule, &mut rng, &mut scaler, &mut sampler, &mut epoch];
    let mut parts = Parts::new().model(&mut model);
    for (name, part) in PARTS.into_iter().zip(all).filter(|(name, _)| present(name)) {
        parts = parts.with(name, part);
    }
    with(&mut parts)
}

/// A part that the checkpoint lacks is named, and nothing of the others is loaded.
#[test]
fn each_part_that_is_absent_is_named_and_nothing_is_loaded() {
    for ranks in [1, 2] {
        for absent in PARTS {
            let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
            on_ranks(ranks, move |group| {
                let config = config(Path::new("/runs"));
                let mut run = Checkpointer::with_storage(&group, storage.clone(), config).unwrap();
                let (mut values, mut weights) = ([1; PARTS.len()], Toy::after(1, 0).weights);
                let is_there = |name: &str| name != absent;
                with_parts(&mut values, &mut weights, is_there, |p| run.save(&at(1), p)).unwrap();
                let (mut values, mut weights) = ([7; PARTS.len()], Toy::new().weights);
                let all = |_: &str| true;
                let loaded =
                    with_parts(&mut values, &mut weights, all, |p| run.load(&Resume::Latest, p));
                let error = loaded.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
                assert!(error.to_string().contains(&format!("`{absent}`")), "{error}");
                assert_eq!((values, weights), ([7; PARTS.len()], Toy::new().weights), "{absent}");
                // What permits it: to leave that part out, and no other.
                let (mut values, mut weights) = ([7; PARTS.len()], Toy::new().weights);
                with_parts(&mut values, &mut weights, is_there, |p| run.load(&Resume::Latest, p))
                    .unwrap();
                let wanted = PARTS.map(|name| if name == absent { 7 } else { 1 });
                assert_eq!((values, weights), (wanted, Toy::after(1, 0).weights));
            });
        }
    }
}

/// State of each rank is not made up for ranks that saved none.
#[test]
fn more_ranks_than_saved_are_refused_where_each_has_its_own() {
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    let inner = storage.clone();
    on_ranks(2, move |group| drop(trained(&group, &inner)));
    on_ranks(4, move |group| {
        let config = config(Path::new("/runs"));
        let mut run = Checkpointer::with_storage(&group, storage.clone(), config).unwrap();
        let mut toy = Toy::new();
        let error = toy.with(|parts| run.load(&Resume::Latest, parts)).unwrap_err();
        assert_eq!((error.kind(), error.phase()), (ErrorKind::Mismatch, Some("plan")), "{error}");
        assert!(error.to_string().contains("world size"), "{error}");
        assert_eq!(toy, Toy::new());
    });
}
