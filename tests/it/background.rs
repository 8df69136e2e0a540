//! Saves beside training: what they hold, how they end, and who hears of it.

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use tch_checkpoint::group::Channel;
use tch_checkpoint::load::Atomicity;
use tch_checkpoint::save::{AfterCommit, PendingSave, SaveOptions, save_async};
use tch_checkpoint::slice::Slice;
use tch_checkpoint::state::{StateDict, TensorSource};
use tch_checkpoint::storage::{MemoryStorage, Storage};
use tch_checkpoint::tensor::{Component, Dtype, TensorSpec};
use tch_checkpoint::{Checkpoint, Error, ErrorKind, OnExisting, ProcessGroup, Rank, Result};
use tracing::Level;

use crate::harness::*;
use crate::hooked::Hooked;
use crate::tier;

/// A signal that comes in time, or fails the test.
#[derive(Clone, Default)]
pub struct Signal(Arc<(Mutex<bool>, Condvar)>);

impl Signal {
    pub fn give(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }

    pub fn await_it(&self) -> Result<()> {
        let given = self.0.0.lock().unwrap();
        let limit = Duration::from_secs(20);
        let (given, _) = self.0.1.wait_timeout_while(given, limit, |given| !*given).unwrap();
        let missing = || Error::new(ErrorKind::Deadline, "the signal never came");
        given.then_some(()).ok_or_else(missing)
    }
}

/// Memory whose `operation` waits for the signal.
fn held_up(memory: &MemoryStorage, operation: &'static str, signal: &Signal) -> Arc<dyn Storage> {
    let signal = signal.clone();
    Arc::new(Hooked::new(memory, move |call| {
        if call.operation == operation { signal.await_it() } else { Ok(()) }
    }))
}

fn train(group: &ProcessGroup) {
    group.phase_all(Channel::Training, "step", || Ok(()), |_| Ok(())).unwrap();
}

#[test]
fn ranks_commit_while_training_goes_on() {
    for ranks in 1..=4 {
        let (memory, signal) = (MemoryStorage::new(), Signal::default());
        let storage = held_up(&memory, "rename", &signal);
        let seen = memory.clone();
        let saved = on_ranks(ranks, move |group| {
            let pending = save_beside(&group, &storage, "runs/a", &usual_tensors(), 1).unwrap();
            let (name, path) = (pending.name().clone(), pending.path().to_owned());
            let save_id = pending.save_id();
            for _ in 0..20 {
                train(&group);
            }
            // Nobody has given the signal yet, so nobody can have committed.
            assert!(!pending.is_done());
            assert!(!entries(&seen, "runs").contains(&"a".to_owned()));
            train(&group);
            signal.give();
            let saved = pending.wait().unwrap();
            assert_eq!((&saved.name, &saved.path, saved.save_id), (&name, &path, save_id));
            saved
        });
        assert!(saved.iter().all(|checkpoint| *checkpoint == saved[0]), "{saved:?}");
        assert_good(&memory, "runs/a");
        assert_eq!(entries(&memory, "runs"), ["a"]);
        loaded(memory, 3, "runs/a", &usual_tensors(), 1).into_iter().for_each(|l| drop(l.unwrap()));
    }
}

/// Bytes that their owner changes whenever it likes.
struct Changing(Arc<Mutex<Vec<u8>>>);

impl TensorSource for Changing {
    fn read_into(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        self.0.lock().unwrap().read_into(offset, out)
    }
}

/// A replicated tensor and a box of this rank's own, with their memory.
fn changing(group: &ProcessGroup, byte: u8) -> (StateDict, [Arc<Mutex<Vec<u8>>>; 2]) {
    let (rank, ranks) = (u64::from(group.rank().get()), u64::from(group.world_size().get()));
    let memory = [300, 8].map(|len| Arc::new(Mutex::new(vec![byte; len])));
    let source = |i: usize| Arc::new(Changing(memory[i].clone()));
    let mut state = StateDict::new();
    let spec = TensorSpec::new(Dtype::U8, vec![300]).unwrap();
    state.add(&Component::model(), name("shared"), spec, source(0)).unwrap();
    let spec = TensorSpec::new(Dtype::U8, vec![ranks, 8]).unwrap();
    let own = Slice::full(&[ranks, 8]).rows(rank..rank + 1).unwrap();
    state.add_slice(&Component::model(), name("own"), spec, own, source(1)).unwrap();
    state.values.set("byte", i64::from(byte));
    (state, memory)
}

#[test]
fn what_changes_right_after_the_call_is_not_saved() {
    let memory = MemoryStorage::new();
    let storage: Arc<dyn Storage> = Arc::new(memory.clone());
    let rounds = tier::count(100, 1000);
    on_ranks(2, move |group| {
        for round in (0..0xEEu8).cycle().take(rounds as usize) {
            let (mut state, bytes) = changing(&group, round);
            let options =
                SaveOptions { on_existing: OnExisting::Replace, ..SaveOptions::default() };
            let at = path("runs/a");
            let pending =
                save_async(&group, &storage, &at, &state, &options, Box::new(|_| {})).unwrap();
            bytes.iter().for_each(|bytes| bytes.lock().unwrap().fill(0xEE));
            state.values.set("byte", 0xEEi64);
            pending.wait().unwrap();
            let tensors = [
                TestTensor::new("shared", Dtype::U8, &[300], None),
                TestTensor::new("own", Dtype::U8, &[2, 8], Some(0)),
            ];
            check_bytes(&group, storage.as_ref(), &tensors, round);
        }
    });
    tier::figure(
        "saves whose state was changed right after the call, and not what they wrote",
        rounds,
    );
}

/// The checkpoint holds nothing but `byte`.
fn check_bytes(group: &ProcessGroup, storage: &dyn Storage, tensors: &[TestTensor], byte: u8) {
    use tch_checkpoint::load::load;
    use tch_checkpoint::plan::load::LoadRules;
    let mut buffers =
        tensors.iter().map(|t| vec![0u8; t.spec.size_bytes() as usize]).collect::<Vec<_>>();
    let mut targets = tch_checkpoint::state::LoadTargets::new();
    for (tensor, buffer) in tensors.iter().zip(&mut buffers) {
        let sink = Box::new(buffer.as_mut_slice());
        targets.add(name(&tensor.name), tensor.spec.clone(), sink).unwrap();
    }
    let rules = LoadRules { strict: true, ..LoadRules::default() };
    let at = wanted("runs/a");
    let found = load(group, storage, &at, &mut targets, &rules, Atomicity::Atomic).unwrap();
    drop(targets);
    assert!(buffers.iter().flatten().all(|b| *b == byte), "round {byte}");
    assert_eq!(found.manifest.values().int("byte").unwrap(), i64::from(byte));
}

/// A source that misbehaves on rank 2 of 3, in the foreground.
fn with_bad_source(bad: fn() -> Result<()>) -> Error {
    struct Bad(fn() -> Result<()>);
    impl TensorSource for Bad {
        fn read_into(&self, _offset: u64, _out: &mut [u8]) -> Result<()> {
            (self.0)()
        }
    }
    let memory = MemoryStorage::new();
    let storage: Arc<dyn Storage> = Arc::new(memory.clone());
    let verdicts = on_ranks(3, move |group| {
        let (mut state, _) = changing(&group, 1);
        let spec = TensorSpec::new(Dtype::U8, vec![3, 8]).unwrap();
        let rank = u64::from(group.rank().get());
        let own = Slice::full(&[3, 8]).rows(rank..rank + 1).unwrap();
        let source: Arc<dyn TensorSource> =
            if rank == 2 { Arc::new(Bad(bad)) } else { Arc::new(vec![1u8; 8]) };
        state.add_slice(&Component::model(), name("w"), spec, own, source).unwrap();
        let options = SaveOptions::default();
        let pending =
            save_async(&group, &storage, &path("runs/a"), &state, &options, Box::new(|_| {}));
        let verdict = pending.expect("what fails while copying is told later").wait();
        train(&group);
        verdict
    });
    assert_eq!(entries(&memory, "runs"), [""; 0], "nothing is left");
    one_error(&verdicts, "copying")
}

#[test]
fn a_rank_that_cannot_copy_its_share_is_every_ranks_error() {
    let error = with_bad_source(|| Err(Error::new(ErrorKind::Device, "it fell off the bus")));
    assert_eq!((error.kind(), error.rank()), (ErrorKind::Device, Some(Rank::new(2))));
    assert_eq!((error.tensor(), error.phase()), (Some("w"), Some("commit")));
    assert!(error.help().unwrap().contains("nothing was committed"), "{error}");
    let error = with_bad_source(|| panic!("boom"));
    assert_eq!((error.kind(), error.rank()), (ErrorKind::Panic, Some(Rank::new(2))));
}

#[test]
fn what_fails_up_to_the_plan_fails_at_once_and_leaves_room_for_the_next() {
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    on_ranks(2, move |group| {
        let (state, _) = changing(&group, 1);
        let start = |at: &str, options: &SaveOptions| {
            save_async(&group, &storage, &path(at), &state, options, Box::new(|_| {}))
        };
        start("runs/a", &SaveOptions::default()).unwrap().wait().unwrap();
        let taken = start("runs/a", &SaveOptions::default()).unwrap_err();
        assert_eq!(taken.kind(), ErrorKind::AlreadyExists);
        let step = u64::from(group.rank().get());
        let apart = start("runs/b", &SaveOptions { step, ..SaveOptions::default() }).unwrap_err();
        assert_eq!(apart.kind(), ErrorKind::Disagreement);
        start("runs/b", &SaveOptions::default()).unwrap().wait().unwrap();
    });
}

#[test]
fn a_rank_that_leaves_with_a_save_pending_is_named_to_the_others() {
    let (memory, signal) = (MemoryStorage::new(), Signal::default());
    let held = held_up(&memory, "create_file", &signal);
    let free: Arc<dyn Storage> = Arc::new(memory.clone());
    let verdicts = on_ranks(3, move |group| {
        let storage = if group.rank() == Rank::new(1) { &held } else { &free };
        let pending = save_beside(&group, storage, "runs/a", &usual_tensors(), 1).unwrap();
        if group.rank() == Rank::new(1) {
            group.finish().unwrap();
            return pending.wait();
        }
        let verdict = pending.wait();
        signal.give();
        verdict
    });
    for rank in [0, 2] {
        let error = verdicts[rank].as_ref().unwrap_err();
        assert_eq!((error.kind(), error.rank()), (ErrorKind::PeerLost, Some(Rank::new(1))));
    }
    assert!(verdicts[1].is_err(), "it cannot know");
    assert_eq!(entries(&memory, "runs"), [""; 0], "nothing is left");
}

#[test]
fn dropping_a_pending_save_waits_for_it() {
    let (memory, signal) = (MemoryStorage::new(), Signal::default());
    let storage = held_up(&memory, "rename", &signal);
    let seen = memory.clone();
    on_ranks(2, move |group| {
        let pending = save_beside(&group, &storage, "runs/a", &usual_tensors(), 1).unwrap();
        train(&group);
        signal.give();
        drop(pending);
        assert_eq!(entries(&seen, "runs"), ["a"]);
    });
    assert_good(&memory, "runs/a");
}

#[test]
fn an_error_that_nobody_reads_is_logged_and_one_that_was_read_is_not() {
    let memory = MemoryStorage::new();
    let full: Arc<dyn Storage> = Arc::new(Hooked::new(&memory, |call| match call.operation {
        "create_file" => Err(Error::new(ErrorKind::Storage, "no space left")),
        _ => Ok(()),
    }));
    let logs = on_ranks(2, move |group| {
        let start = || save_beside(&group, &full, "runs/a", &usual_tensors(), 1).unwrap();
        let dropped = logged(Level::ERROR, || drop(start()));
        let read = logged(Level::ERROR, || drop(start().wait().unwrap_err()));
        (dropped, read)
    });
    for (dropped, read) in logs {
        assert!(dropped.contains("no space left") && dropped.contains("runs/a"), "{dropped}");
        assert_eq!(read, "");
    }
}

fn save_with(group: &ProcessGroup, storage: &Arc<dyn Storage>, after: AfterCommit) -> PendingSave {
    let (state, _) = changing(group, 1);
    let options = SaveOptions { on_existing: OnExisting::Replace, ..SaveOptions::default() };
    save_async(group, storage, &path("runs/a"), &state, &options, after).unwrap()
}

#[test]
fn what_follows_a_commit_runs_once_on_the_coordinator_before_the_save_is_done() {
    let memory = MemoryStorage::new();
    let storage: Arc<dyn Storage> = Arc::new(memory.clone());
    let calls = Arc::new(AtomicU32::new(0));
    let seen = calls.clone();
    on_ranks(3, move |group| {
        let (calls, memory) = (seen.clone(), memory.clone());
        let after = move |saved: &Checkpoint| {
            assert_eq!(saved.name.as_str(), "a");
            assert_eq!(entries(&memory, "runs"), ["a"], "committed before");
            calls.fetch_add(1, SeqCst);
        };
        save_with(&group, &storage, Box::new(after)).wait().unwrap();
        if group.is_coordinator() {
            assert_eq!(seen.load(SeqCst), 1);
        }
    });
    assert_eq!(calls.load(SeqCst), 1);
}

#[test]
fn what_follows_a_commit_never_undoes_it_and_never_follows_a_failure() {
    let memory = MemoryStorage::new();
    let storage: Arc<dyn Storage> = Arc::new(memory.clone());
    let verdicts = on_ranks(2, move |group| {
        save_with(&group, &storage, Box::new(|_| panic!("retention failed"))).wait()
    });
    assert!(verdicts.iter().all(Result::is_ok), "{verdicts:?}");
    assert_good(&memory, "runs/a");

    let fails: Arc<dyn Storage> = Arc::new(Hooked::new(&memory, |call| match call.operation {
        "rename" => Err(Error::new(ErrorKind::Storage, "EIO")),
        _ => Ok(()),
    }));
    let called = Arc::new(AtomicU32::new(0));
    let count = called.clone();
    let verdicts = on_ranks(2, move |group| {
        let count = count.clone();
        let after = move |_: &Checkpoint| count.store(1, SeqCst);
        save_with(&group, &fails, Box::new(after)).wait()
    });
    one_error(&verdicts, "renaming");
    assert_eq!(called.load(SeqCst), 0);
}

#[test]
fn a_second_save_is_refused_everywhere_until_the_first_was_waited_for() {
    let (memory, signal) = (MemoryStorage::new(), Signal::default());
    let storage = held_up(&memory, "rename", &signal);
    on_ranks(2, move |group| {
        let start = |at| save_beside(&group, &storage, at, &usual_tensors(), 1);
        let pending = start("runs/a").unwrap();
        let error = start("runs/b").unwrap_err();
        assert_eq!((error.kind(), error.phase()), (ErrorKind::InvalidInput, Some("unchanged")));
        assert!(error.help().unwrap().contains("wait for the pending save"), "{error}");
        train(&group);
        signal.give();
        pending.wait().unwrap();
        drop(start("runs/b").unwrap());
        start("runs/c").unwrap().wait().unwrap();
    });
    assert_eq!(entries(&memory, "runs"), ["a", "b", "c"]);
    ["runs/a", "runs/b", "runs/c"].iter().for_each(|at| assert_good(&memory, at));
}

#[test]
fn a_save_in_front_of_a_pending_one_leaves_both_whole_or_one_superseded() {
    let (memory, signal) = (MemoryStorage::new(), Signal::default());
    let held = held_up(&memory, "create_file", &signal);
    let free = memory.clone();
    let verdicts = on_ranks(2, move |group| {
        let pending = save_beside(&group, &held, "runs/a", &usual_tensors(), 1).unwrap();
        train(&group);
        save_state(&group, &free, "runs/b", &usual_tensors(), 2).unwrap();
        save_state(&group, &free, "runs/a", &usual_tensors(), 3).unwrap();
        signal.give();
        pending.wait()
    });
    assert_eq!(one_error(&verdicts, "both under one name").kind(), ErrorKind::Superseded);
    assert_eq!(entries(&memory, "runs"), ["a", "b"]);
    ["runs/a", "runs/b"].iter().for_each(|at| assert_good(&memory, at));
    loaded(memory, 2, "runs/a", &usual_tensors(), 3).into_iter().for_each(|l| drop(l.unwrap()));
}
