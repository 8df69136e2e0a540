//! Suspicions.
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use tch_checkpoint::catalog;
use tch_checkpoint::group::{Channel, Deadlines, ProcessGroup};
use tch_checkpoint::load::{Atomicity, load};
use tch_checkpoint::plan::load::LoadRules;
use tch_checkpoint::save::{SaveOptions, save};
use tch_checkpoint::slice::Slice;
use tch_checkpoint::state::{LoadTargets, StateDict};
use tch_checkpoint::storage::{MemoryStorage, Rename, Storage};
use tch_checkpoint::tensor::{Component, Dtype, TensorSpec};
use tch_checkpoint::{Error, ErrorKind, Result, WorldSize};

use crate::harness::*;
use crate::hooked::*;

fn small() -> Vec<TestTensor> {
    vec![TestTensor::new("w", Dtype::F32, &[30, 7], None)]
}

fn ranks_with<T: Send + 'static>(
    n: u32,
    progress_ms: u64,
    body: impl Fn(ProcessGroup) -> T + Send + Sync + 'static,
) -> Vec<T> {
    let d = Deadlines { progress: Duration::from_millis(progress_ms), ..Deadlines::default() };
    let body = Arc::new(body);
    let handles: Vec<_> = ProcessGroup::threads(WorldSize::new(n).unwrap(), d)
        .into_iter()
        .map(|g| {
            let body = body.clone();
            std::thread::spawn(move || body(g))
        })
        .collect();
    handles.into_iter().map(|h| h.join().unwrap()).collect()
}

/// T1: a rank that reads steadily, one large piece, is taken for dead.
#[test]
fn t01_reading_one_large_tensor_steadily_is_progress() {
    let memory = MemoryStorage::new();
    let n = 64usize << 20;
    let inner = memory.clone();
    let spec = TensorSpec::new(Dtype::U8, [n as u64]).unwrap();
    let s = spec.clone();
    ranks_with(1, 60_000, move |g| {
        let mut st = StateDict::new();
        let b = Arc::new(vec![1u8; n]);
        st.add_slice(&Component::model(), name("w"), s.clone(), Slice::full(s.shape()), b).unwrap();
        save(&g, &inner, &path("runs/a"), &st, &SaveOptions::default()).unwrap();
    });
    let slow = Hooked::new(&memory, |c| {
        if c.operation == "read_at" && c.path.to_string_lossy().ends_with(".safetensors") {
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    });
    let out = ranks_with(2, 500, move |g| {
        let mut buf = vec![0u8; n];
        let mut t = LoadTargets::new();
        t.add_slice(
            name("w"),
            spec.clone(),
            Slice::full(spec.shape()),
            Box::new(buf.as_mut_slice()),
        )
        .unwrap();
        let st: &dyn Storage = if g.rank().get() == 1 { &slow } else { &memory };
        load(&g, st, &wanted("runs/a"), &mut t, &LoadRules::default(), Atomicity::Atomic)
            .map(|_| ())
    });
    assert_eq!(out, vec![Ok(()); 2]);
}

/// T2: after one slow sweep all later saves fail.
#[test]
fn t02_one_slow_plan_does_not_spoil_all_later_saves() {
    let memory = MemoryStorage::new();
    let first = Arc::new(AtomicBool::new(true));
    let slow = Hooked::new(&memory, move |c| {
        if c.operation == "create_dir_all" && first.swap(false, SeqCst) {
            std::thread::sleep(Duration::from_millis(2500));
        }
        Ok(())
    });
    let barrier = Arc::new(Barrier::new(2));
    let out = ranks_with(2, 300, move |g| {
        (0..5)
            .map(|i| {
                barrier.wait();
                let r = save_state(&g, &slow, &format!("runs/e{i}"), &small(), i);
                r.map(|_| ()).map_err(|e| e.to_string())
            })
            .collect::<Vec<_>>()
    });
    for (rank, r) in out.iter().enumerate() {
        for (i, v) in r.iter().enumerate() {
            println!("rank {rank} save {i}: {v:?}");
        }
    }
    assert!(out.iter().all(|r| r[4].is_ok()));
}

/// T3: an I/O error on the newest manifest silently yields an older checkpoint.
#[test]
fn t03_latest_does_not_pass_over_storage_errors() {
    let memory = MemoryStorage::new();
    saved(memory.clone(), 1, "runs/e1", &small(), 1);
    saved(memory.clone(), 1, "runs/e2", &small(), 2);
    let bad = Hooked::new(&memory, |c| {
        if c.operation == "open_file" && c.path.ends_with("e2/manifest.bin") {
            return Err(Error::new(ErrorKind::Storage, "EMFILE"));
        }
        Ok(())
    });
    let found = catalog::find(&bad, &wanted("runs/latest")).map(|f| f.name.to_string());
    println!("{found:?}");
    assert!(found.is_err());
}

/// T3b: the only checkpoint is damaged: "not found, the directory holds no checkpoint".
#[test]
fn t03b_latest_of_only_damaged_is_corrupt() {
    let memory = MemoryStorage::new();
    saved(memory.clone(), 1, "runs/e1", &small(), 1);
    let bad = Hooked::new(&memory, |c| {
        if c.operation == "open_file" && c.path.ends_with("manifest.bin") {
            return Err(Error::new(ErrorKind::Corrupt, "bit flip"));
        }
        Ok(())
    });
    let e = catalog::find(&bad, &wanted("runs/latest")).unwrap_err();
    println!("{e}");
    assert_ne!(e.kind(), ErrorKind::NotFound);
}

/// T4: a user's directory with some manifest.bin of another program is deleted.
#[test]
fn t04_a_foreign_directory_with_a_manifest_is_never_replaced() {
    let memory = MemoryStorage::new();
    let d = memory.create_dir_all(Path::new("runs/final")).unwrap();
    for (n, b) in [("manifest.bin", &b"another program's"[..]), ("thesis.txt", b"5 years")] {
        let f = d.create_file(n).unwrap();
        f.write_at(0, b).unwrap();
        f.finish().unwrap();
    }
    let m = memory.clone();
    let r = on_ranks(1, move |g| save_state(&g, &m, "runs/final", &small(), 1)).remove(0);
    println!("{r:?} {:?}", entries(&memory, "runs/final"));
    assert!(entries(&memory, "runs/final").contains(&"thesis.txt".to_owned()));
}

/// T5: a directory that rank 1 does not see.
#[test]
fn t05_load_from_a_directory_that_is_not_shared_says_so() {
    let memory = MemoryStorage::new();
    saved(memory.clone(), 1, "runs/a", &small(), 1);
    let other = MemoryStorage::new();
    let out = on_ranks(2, move |g| {
        let st: &dyn Storage = if g.rank().get() == 1 { &other } else { &memory };
        load_state(&g, st, "runs/a", &small(), 1, Atomicity::Atomic).map(|_| ())
    });
    println!("{}", out[0].as_ref().unwrap_err());
    assert_eq!(out[0].as_ref().unwrap_err().kind(), ErrorKind::NotShared);
}

/// T7: after an uncertain replacement the next save, which fails, removes the fallback.
#[test]
fn t07_what_an_uncertain_replacement_replaced_stays_until_a_later_commit() {
    let memory = MemoryStorage::new();
    saved(memory.clone(), 1, "runs/a", &small(), 1);
    let armed = Arc::new(AtomicBool::new(false));
    let full = Arc::new(AtomicBool::new(false));
    let (a, f) = (armed.clone(), full.clone());
    let hooked = Hooked::new(&memory, move |c| {
        if c.operation == "rename" && c.mode == Some(Rename::Exchange) {
            a.store(true, SeqCst);
        }
        if c.operation == "sync" && c.path.ends_with("runs") && a.swap(false, SeqCst) {
            return Err(Error::new(ErrorKind::Storage, "EIO"));
        }
        if c.operation == "create_dir" && f.load(SeqCst) {
            return Err(Error::new(ErrorKind::Storage, "ENOSPC"));
        }
        Ok(())
    });
    let h = hooked.clone();
    let r = on_ranks(1, move |g| save_state(&g, &h, "runs/a", &small(), 2)).remove(0);
    assert_eq!(r.unwrap_err().kind(), ErrorKind::DurabilityUncertain);
    println!("{:?}", entries(&memory, "runs"));
    assert_eq!(entries(&memory, "runs").len(), 2);
    full.store(true, SeqCst);
    let r = on_ranks(1, move |g| save_state(&g, &hooked, "runs/b", &small(), 3)).remove(0);
    println!("{}\n{:?}", r.unwrap_err(), entries(&memory, "runs"));
    assert_eq!(entries(&memory, "runs").len(), 2, "the only durable checkpoint is gone");
}

/// T8: an attempt between create_dir and its lock is swept by another job.
#[test]
fn t08_a_fresh_attempt_is_not_swept_before_it_is_locked() {
    let memory = MemoryStorage::new();
    let once = Arc::new(AtomicBool::new(true));
    let inner = memory.clone();
    let hooked = Hooked::new(&memory, move |c| {
        if c.operation == "try_lock_self" && once.swap(false, SeqCst) {
            saved(inner.clone(), 1, "runs/b", &small(), 9); // another job
        }
        Ok(())
    });
    let r = on_ranks(2, move |g| save_state(&g, &hooked, "runs/a", &small(), 1)).remove(0);
    println!("{r:?}");
    assert!(r.is_ok());
}

/// T9: a job that unlinks debris makes the commit of another one fail.
#[test]
fn t09_slow_unlinking_of_debris_does_not_fail_another_jobs_commit() {
    let memory = MemoryStorage::new();
    saved(memory.clone(), 1, "runs/a", &small(), 1);
    let d =
        memory.create_dir_all(Path::new("runs/.trash-00000000000000000000000000000000")).unwrap();
    d.create_file("x").unwrap().finish().unwrap();
    let verdict = Arc::new(parking(None));
    let (inner, v) = (memory.clone(), verdict.clone());
    let hooked = Hooked::new(&memory, move |c| {
        if c.operation == "remove_file" && c.path.ends_with("x") {
            let m = inner.clone();
            let r = on_ranks(1, move |g| save_state(&g, &m, "runs/b", &small(), 5)).remove(0);
            *v.lock().unwrap() = Some(r);
        }
        Ok(())
    });
    on_ranks(1, move |g| save_state(&g, &hooked, "runs/a", &small(), 2)).remove(0).unwrap();
    let r = verdict.lock().unwrap().take().unwrap();
    println!("{:?}", r.as_ref().map(|_| ()).map_err(ToString::to_string));
    assert!(r.is_ok());
}

fn parking<T>(t: T) -> std::sync::Mutex<T> {
    std::sync::Mutex::new(t)
}

/// T10: a loss noticed on another channel turns a commit into "peer lost" on a rank that voted.
#[test]
fn t10_a_loss_seen_on_another_channel_does_not_forge_a_verdict() {
    let out = ranks_with(3, 10_000, |g| match g.rank().get() {
        0 => {
            let other = g.clone();
            let t = std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(600));
                other.phase_all(Channel::Training, "step", || Ok(0u8), |_| Ok(0u8))
            });
            let r = g.phase_all(
                Channel::Save,
                "commit",
                || Ok(0u8),
                |_| {
                    std::thread::sleep(Duration::from_millis(1500));
                    Ok(1u8)
                },
            );
            let _ = t.join();
            Some(r)
        }
        1 => {
            let r = g.phase_all(Channel::Save, "commit", || Ok(0u8), |_| Ok(1u8));
            std::thread::sleep(Duration::from_millis(1500));
            Some(r)
        }
        _ => {
            let clone = g.clone();
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(300));
                clone.finish().unwrap();
            });
            let _ = g.phase_all(Channel::Save, "commit", || Ok(0u8), |_| Ok(1u8));
            None
        }
    });
    println!("{out:?}");
    let one = out[1].clone().unwrap();
    assert!(one.is_ok() || one.unwrap_err().kind() == ErrorKind::CoordinatorLost);
}

/// T11: the rename happened, its answer and the look afterwards failed: the old one is deleted.
#[test]
fn t11_an_unclear_rename_does_not_delete_the_old_checkpoint() {
    let memory = MemoryStorage::new();
    let old = saved(memory.clone(), 1, "runs/a", &small(), 1);
    let state = Arc::new(AtomicU32::new(0));
    let (inner, s) = (memory.clone(), state.clone());
    let hooked = Hooked::new(&memory, move |c| {
        if c.operation == "rename" && c.mode == Some(Rename::Exchange) {
            let dir = inner.open_dir(Path::new("runs")).unwrap();
            let partial =
                entries(&inner, "runs").into_iter().find(|n| n.ends_with(".partial")).unwrap();
            dir.rename(&partial, "a", Rename::Exchange).unwrap();
            s.store(1, SeqCst);
            return Err(Error::new(ErrorKind::Storage, "EIO: answer lost"));
        }
        if c.operation == "list" && s.compare_exchange(1, 2, SeqCst, SeqCst).is_ok() {
            return Err(Error::new(ErrorKind::Storage, "EIO"));
        }
        Ok(())
    });
    let r = on_ranks(1, move |g| save_state(&g, &hooked, "runs/a", &small(), 2)).remove(0);
    println!("{}", r.unwrap_err());
    let now = catalog::find(&memory, &wanted("runs/a")).unwrap().manifest.save_id();
    println!("old {} now {now} {:?}", old.save_id, entries(&memory, "runs"));
    assert!(now == old.save_id || entries(&memory, "runs").len() == 2, "the old one is gone");
}

/// T12: the old checkpoint was removed meanwhile: nothing stands in the way.
#[test]
fn t12_a_save_whose_predecessor_was_removed_meanwhile_commits() -> Result<()> {
    let memory = MemoryStorage::new();
    let old = saved(memory.clone(), 1, "runs/a", &small(), 1);
    let inner = memory.clone();
    let once = AtomicBool::new(true);
    let hooked = Hooked::new(&memory, move |c| {
        if c.operation == "create_file" && once.swap(false, SeqCst) {
            let d = inner.open_dir(Path::new("runs")).unwrap();
            tch_checkpoint::commit::remove(
                d.as_ref(),
                path("runs/a").name(),
                &old.save_id,
                Duration::from_secs(1),
            )
            .unwrap();
        }
        Ok(())
    });
    let r = on_ranks(1, move |g| save_state(&g, &hooked, "runs/a", &small(), 2)).remove(0);
    println!("{:?}", r.as_ref().map(|_| ()).map_err(ToString::to_string));
    r.map(|_| ())
}
