//! What saves and loads say of themselves: the same on every rank, with the bytes that there are.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use tch_checkpoint::catalog::CheckpointPath;
use tch_checkpoint::group::ProcessGroup;
use tch_checkpoint::load::Atomicity;
use tch_checkpoint::save::save_async_overlapped;
use tch_checkpoint::single::{save_multi_files, save_multi_from_single, save_single_file};
use tch_checkpoint::storage::{MemoryStorage, Storage};
use tch_checkpoint::{LoadTimes, Rank, Result, SaveOptions, SaveReport};
use tracing::Level;

use crate::checkpointer::toy;
use crate::harness::*;
use crate::hooked::{Call, Hooked};

const AT: &str = "runs/a";

fn tensor_bytes() -> u64 {
    usual_tensors().iter().map(|tensor| tensor.spec.size_bytes()).sum()
}

/// Bytes of the data files of a directory, and of their block sums.
fn len_of(storage: &dyn Storage, directory: &str) -> u64 {
    let dir = storage.open_dir(Path::new(directory)).unwrap();
    let mut names = entries(storage, directory);
    names.retain(|name| name.ends_with(".safetensors") || name.starts_with("sums-"));
    names.iter().map(|name| dir.open_file(name).unwrap().len()).sum()
}

/// What holds for every save, of `ranks` ranks.
fn check_save(reports: &[SaveReport], what: &str) {
    let report = &reports[0];
    assert!(reports.iter().all(|other| other == report), "{what}: ranks differ");
    assert_eq!((report.world_size as usize, report.ranks.len()), (reports.len(), reports.len()));
    assert_eq!(report.tensor_bytes, tensor_bytes(), "{what}");
    let listed: Vec<u32> = report.ranks.iter().map(|rank| rank.rank.get()).collect();
    assert!(listed.iter().copied().eq(0..report.world_size), "{what}: {listed:?}");
    // Parts of what the coordinator's clock saw.
    let commit = &report.commit;
    let commit = commit.checks + commit.seal + commit.publish + commit.rename;
    assert!(report.plan > Duration::ZERO && commit > Duration::ZERO, "{what}: {report:?}");
    assert!(report.plan + commit <= report.total, "{what}: {report:?}");
    let longest = report.ranks.iter().map(|rank| rank.time).max().unwrap();
    assert_eq!(longest, report.write.total, "{what}");
    assert!(longest > Duration::ZERO, "{what}");
    assert!(report.bandwidth().is_some_and(|rate| rate > 0.0));
    match report.slowest {
        Some(slowest) => {
            assert!(reports.len() > 1);
            assert!(slowest.time == longest && slowest.median <= longest, "{what}: {slowest:?}");
        }
        None => assert_eq!(reports.len(), 1),
    }
    assert_eq!(serde_json::from_str::<SaveReport>(&report.to_json()).unwrap(), *report);
}

#[test]
fn a_save_says_the_same_on_every_rank_with_the_bytes_that_lie_there() {
    for ranks in 1..=3 {
        let memory = MemoryStorage::new();
        let storage = memory.clone();
        let reports = on_ranks(ranks, move |group| {
            save_state(&group, &storage, AT, &usual_tensors(), 1).unwrap().report
        });
        check_save(&reports, &format!("{ranks} ranks"));
        let report = &reports[0];
        let lie = len_of(&memory, AT);
        assert_eq!(report.file_bytes, lie, "{:?}", entries(&memory, AT));
        let written: u64 = report.ranks.iter().map(|rank| rank.bytes).sum();
        assert_eq!(written, lie);
        assert_eq!((report.stall, report.stage), (report.total, Duration::ZERO));
    }
}

/// A storage of a rank that is slower than all others, however busy the machine: it goes on when
/// they are done, and then takes longer than everything did so far.
fn slow(memory: &MemoryStorage, operation: &'static str, others: &Arc<AtomicUsize>) -> Hooked {
    let (others, begun, met) = (others.clone(), Instant::now(), AtomicBool::new(false));
    Hooked::new(memory, move |call: &Call| {
        if call.operation == operation && !met.swap(true, SeqCst) {
            while others.load(SeqCst) > 0 && begun.elapsed() < Duration::from_secs(20) {
                std::thread::sleep(Duration::from_millis(1));
            }
            std::thread::sleep(begun.elapsed() * 2 + Duration::from_millis(50));
        }
        Ok(())
    })
}

/// A storage that counts down at the first `last` after the first `first` of a data file.
fn counting(
    memory: &MemoryStorage,
    (first, last): (&'static str, &'static str),
    left: &Arc<AtomicUsize>,
) -> Hooked {
    let (left, begun, met) = (left.clone(), AtomicBool::new(false), AtomicBool::new(false));
    Hooked::new(memory, move |call: &Call| {
        if call.operation == first && call.path.to_string_lossy().ends_with(".safetensors") {
            begun.store(true, SeqCst);
        }
        if call.operation == last && begun.load(SeqCst) && !met.swap(true, SeqCst) {
            left.fetch_sub(1, SeqCst);
        }
        Ok(())
    })
}

#[test]
fn the_rank_that_writes_slowest_is_named() {
    let (memory, others) = (MemoryStorage::new(), Arc::new(AtomicUsize::new(2)));
    let reports = on_ranks(3, move |group| {
        let storage = match group.rank() == Rank::new(2) {
            true => slow(&memory, "create_file", &others),
            false => counting(&memory, ("create_file", "sync"), &others),
        };
        save_state(&group, &storage, AT, &usual_tensors(), 1).unwrap().report
    });
    check_save(&reports, "slow");
    let slowest = reports[0].slowest.unwrap();
    assert_eq!(slowest.rank, Rank::new(2), "{:?}", reports[0]);
    assert!(slowest.median < slowest.time);
    assert!(reports[0].to_string().ends_with("slowest rank 2"), "{}", reports[0]);
}

#[test]
fn the_rank_that_reads_slowest_is_named() {
    let (memory, others) = (MemoryStorage::new(), Arc::new(AtomicUsize::new(2)));
    saved(memory.clone(), 2, AT, &usual_tensors(), 1);
    let times = on_ranks(3, move |group| {
        let storage = match group.rank() == Rank::new(1) {
            true => slow(&memory, "read_at", &others),
            false => counting(&memory, ("open_file", "read_at"), &others),
        };
        let all = Atomicity::Atomic;
        load_state(&group, &storage, AT, &usual_tensors(), 1, all).unwrap().report.times
    });
    assert!(times.iter().all(|other| *other == times[0]));
    assert_eq!(times[0].slowest.unwrap().rank, Rank::new(1), "{:?}", times[0]);
}

#[test]
fn a_save_beside_training_holds_its_caller_up_for_a_part_of_it() {
    for overlapped in [false, true] {
        let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
        let reports = on_ranks(2, move |group| {
            if !overlapped {
                let pending = save_beside(&group, &storage, AT, &usual_tensors(), 1).unwrap();
                return pending.wait().unwrap().report;
            }
            let (state, after) = (state(&usual_tensors(), &group, 1), Box::new(|_: &_| {}));
            let options = SaveOptions::default();
            let pending =
                save_async_overlapped(&group, &storage, &path(AT), &state, &options, after);
            let pending = pending.unwrap();
            pending.wait_copied();
            pending.wait().unwrap().report
        });
        check_save(&reports, "beside training");
        let report = &reports[0];
        assert!(report.stage > Duration::ZERO && report.stall > Duration::ZERO, "{report:?}");
    }
    // A clock of its own: one rank, whose writing comes after the call.
    let storage: Arc<dyn Storage> = Arc::new(MemoryStorage::new());
    let pending = save_beside(&ProcessGroup::solo(), &storage, AT, &usual_tensors(), 1).unwrap();
    let report = pending.wait().unwrap().report;
    assert!(report.stall < report.total, "{report:?}");
}

type SaveFiles = fn(
    &ProcessGroup,
    &dyn Storage,
    &CheckpointPath,
    &tch_checkpoint::state::StateDict,
    &SaveOptions,
) -> Result<tch_checkpoint::Checkpoint>;

#[test]
fn checkpoints_that_are_files_have_the_same_report() {
    for (save, at) in [
        (save_single_file as SaveFiles, "runs/a.safetensors"),
        (save_multi_files as SaveFiles, "runs/a"),
    ] {
        let memory = MemoryStorage::new();
        let storage = memory.clone();
        let reports = on_ranks(2, move |group| {
            let (state, options) = (state(&usual_tensors(), &group, 1), SaveOptions::default());
            save(&group, &storage, &path(at), &state, &options).unwrap().report
        });
        check_save(&reports, at);
        let report = &reports[0];
        assert_eq!(report.file_bytes, len_of(&memory, "runs"));
        let written: u64 = report.ranks.iter().map(|rank| rank.bytes).sum();
        assert_eq!(written, tensor_bytes(), "headers are the coordinator's");
        assert_eq!(report.stall, report.total);
    }
    let memory = MemoryStorage::new();
    let at = path("runs/a.safetensors");
    let state = state(&usual_tensors(), &ProcessGroup::solo(), 1);
    save_single_file(&ProcessGroup::solo(), &memory, &at, &state, &SaveOptions::default()).unwrap();
    check_save(&[save_multi_from_single(&memory, &at, None).unwrap().report], "split");
}

/// What a rank of `n` wants of the usual tensors.
fn wanted_by(rank: u64, n: u64) -> u64 {
    let held = |tensor: &TestTensor| tensor.held(rank, n).map(|slice| slice.elements());
    let bytes = |t: &TestTensor| held(t).unwrap_or_default() * t.spec.dtype().size_bytes();
    usual_tensors().iter().map(bytes).sum()
}

#[test]
fn a_load_says_the_same_on_every_rank_with_the_bytes_that_it_read() {
    let memory = MemoryStorage::new();
    saved(memory.clone(), 2, AT, &usual_tensors(), 1);
    for (ranks, atomicity) in [
        (1, Atomicity::Atomic),
        (1, Atomicity::InPlace),
        (3, Atomicity::Atomic),
        (3, Atomicity::InPlace),
    ] {
        let storage = memory.clone();
        let all = on_ranks(ranks, move |group| {
            load_state(&group, &storage, AT, &usual_tensors(), 1, atomicity).unwrap()
        });
        let times: Vec<&LoadTimes> = all.iter().map(|loaded| &loaded.report.times).collect();
        assert!(times.iter().all(|other| *other == times[0]), "{ranks} ranks differ");
        let times = times[0];
        assert_eq!((times.world_size, times.restarts), (ranks, 0));
        let n = u64::from(ranks);
        assert_eq!(times.bytes_wanted, (0..n).map(|rank| wanted_by(rank, n)).sum::<u64>());
        assert_eq!(times.bytes_read, all.iter().map(|loaded| loaded.bytes_read).sum::<u64>());
        assert!(times.bytes_read >= times.bytes_wanted);
        let by_rank: Vec<u64> = times.ranks.iter().map(|rank| rank.bytes).collect();
        let own: Vec<u64> = all.iter().map(|loaded| loaded.bytes_read).collect();
        assert_eq!(by_rank, own);
        let phases = [times.manifest, times.plan, times.read];
        assert!(phases.iter().all(|time| (Duration::from_nanos(1)..).contains(time)), "{times:?}");
        assert_eq!(serde_json::from_str::<LoadTimes>(&times.to_json()).unwrap(), *times);
    }
}

/// The checkpoint is replaced between the manifest and the first look at its files.
#[test]
fn a_load_that_began_again_says_so() {
    let memory = MemoryStorage::new();
    saved(memory.clone(), 1, AT, &usual_tensors(), 1);
    let (inside, met) = (memory.clone(), AtomicBool::new(false));
    let storage = Hooked::new(&memory, move |call: &Call| {
        let is_data = call.path.extension().is_some_and(|extension| extension == "safetensors");
        if call.operation == "open_file" && is_data && !met.swap(true, SeqCst) {
            saved(inside.clone(), 1, AT, &usual_tensors(), 2);
        }
        Ok(())
    });
    let loaded = loaded(storage, 1, AT, &usual_tensors(), 2).remove(0).unwrap();
    let times = &loaded.report.times;
    assert_eq!(times.restarts, 1);
    assert_eq!(times.bytes_read, loaded.bytes_read, "of the last beginning");
    assert!(times.manifest + times.plan + times.read + times.place < times.total, "{times:?}");
}

#[test]
fn one_line_of_the_log_says_what_a_save_and_a_resume_took() {
    let dir = tempfile::tempdir().unwrap();
    let said = logged(Level::INFO, || {
        for steps in [3, 4] {
            let (config, solo) = (toy::config(dir.path()), ProcessGroup::solo());
            drop(toy::run(&solo, config, steps, toy::no_metrics).unwrap());
        }
    });
    for told in ["saved ", "resumed "] {
        let line =
            said.lines().find(|line| line.contains(told)).unwrap_or_else(|| panic!("{said}"));
        assert!(line.contains(" B in 0.") || line.contains(" kB in 0."), "{line}");
        assert!(!line.contains("slowest"), "a rank alone: {line}");
    }
}
