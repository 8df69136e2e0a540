//! One test per fault that was once in the engine.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use tch_checkpoint::catalog::{self, Order};
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

/// a rank that reads steadily, one large piece, is taken for dead.
#[test]
fn reading_one_large_tensor_steadily_is_progress() {
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

/// after one slow sweep all later saves fail.
#[test]
fn one_slow_plan_does_not_spoil_all_later_saves() {
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
    assert!(out.iter().all(|rank| rank[4].is_ok()), "{out:?}");
}

/// an I/O error on the newest manifest silently yields an older checkpoint.
#[test]
fn latest_does_not_pass_over_storage_errors() {
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
    assert!(found.is_err());
}

/// the directory is the top of a file system: one entry is for the superuser alone.
#[test]
fn what_a_file_system_keeps_for_itself_hides_no_checkpoint() {
    let memory = MemoryStorage::new();
    memory.create_dir_all(Path::new("runs/lost+found")).unwrap();
    memory.create_dir_all(Path::new("runs/other")).unwrap();
    saved(memory.clone(), 1, "runs/e1", &small(), 1);
    let closing = |entry: &'static str| {
        Hooked::new(&memory, move |c| match c.operation {
            "open_dir" if c.path.ends_with(entry) => {
                Err(Error::io(&std::io::Error::from_raw_os_error(13), "opening", &c.path))
            }
            _ => Ok(()),
        })
    };
    let listed = |storage| {
        let listed = catalog::find_checkpoints(storage, Path::new("runs"), &Order::Latest);
        listed.map(|list| list.len())
    };
    let top = closing("lost+found");
    assert_eq!(catalog::find(&top, &wanted("runs/latest")).unwrap().manifest.step(), 1);
    assert_eq!(listed(&top).unwrap(), 1);
    // Anything else might be a checkpoint, and the newest.
    let other = closing("other");
    assert!(catalog::find(&other, &wanted("runs/latest")).is_err());
    assert!(listed(&other).is_err());
}

/// the only checkpoint is damaged: "not found, the directory holds no checkpoint".
#[test]
fn latest_of_only_damaged_is_corrupt() {
    let memory = MemoryStorage::new();
    saved(memory.clone(), 1, "runs/e1", &small(), 1);
    let bad = Hooked::new(&memory, |c| {
        if c.operation == "open_file" && c.path.ends_with("manifest.bin") {
            return Err(Error::new(ErrorKind::Corrupt, "bit flip"));
        }
        Ok(())
    });
    let e = catalog::find(&bad, &wanted("runs/latest")).unwrap_err();
    assert_ne!(e.kind(), ErrorKind::NotFound);
}

/// a user's directory with some manifest.bin of another program is deleted.
#[test]
fn a_foreign_directory_with_a_manifest_is_never_replaced() {
    let memory = MemoryStorage::new();
    let d = memory.create_dir_all(Path::new("runs/final")).unwrap();
    for (n, b) in [("manifest.bin", &b"another program's"[..]), ("thesis.txt", b"5 years")] {
        let f = d.create_file(n).unwrap();
        f.write_at(0, b).unwrap();
        f.finish().unwrap();
    }
    let m = memory.clone();
    let refused = on_ranks(1, move |g| save_state(&g, &m, "runs/final", &small(), 1)).remove(0);
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert!(entries(&memory, "runs/final").contains(&"thesis.txt".to_owned()));
}

/// a directory that rank 1 does not see.
#[test]
fn load_from_a_directory_that_is_not_shared_says_so() {
    let memory = MemoryStorage::new();
    saved(memory.clone(), 1, "runs/a", &small(), 1);
    let other = MemoryStorage::new();
    let out = on_ranks(2, move |g| {
        let st: &dyn Storage = if g.rank().get() == 1 { &other } else { &memory };
        load_state(&g, st, "runs/a", &small(), 1, Atomicity::Atomic).map(|_| ())
    });
    assert_eq!(out[0].as_ref().unwrap_err().kind(), ErrorKind::NotShared);
}

/// after an uncertain replacement the next save, which fails, removes the fallback.
#[test]
fn what_an_uncertain_replacement_replaced_stays_until_a_later_commit() {
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
    assert_eq!(entries(&memory, "runs").len(), 2);
    full.store(true, SeqCst);
    let failed = on_ranks(1, move |g| save_state(&g, &hooked, "runs/b", &small(), 3)).remove(0);
    assert_eq!(failed.unwrap_err().kind(), ErrorKind::Storage);
    assert_eq!(entries(&memory, "runs").len(), 2, "the only durable checkpoint is gone");
}

/// an attempt between create_dir and its lock is swept by another job.
#[test]
fn a_fresh_attempt_is_not_swept_before_it_is_locked() {
    let memory = MemoryStorage::new();
    let once = Arc::new(AtomicBool::new(true));
    let inner = memory.clone();
    let other = Arc::new(std::sync::Mutex::new(None));
    let o = other.clone();
    let hooked = Hooked::new(&memory, move |c| {
        if c.operation == "try_lock_self" && once.swap(false, SeqCst) {
            let inner = inner.clone();
            let job = std::thread::spawn(move || saved(inner, 1, "runs/b", &small(), 9));
            std::thread::sleep(Duration::from_millis(200));
            *o.lock().unwrap() = Some(job);
        }
        Ok(())
    });
    let r = on_ranks(2, move |g| save_state(&g, &hooked, "runs/a", &small(), 1)).remove(0);
    assert!(r.is_ok(), "{r:?}");
    let other = other.lock().unwrap().take();
    other.expect("the other job ran").join().unwrap();
}

/// a job that unlinks debris makes the commit of another one fail.
#[test]
fn slow_unlinking_of_debris_does_not_fail_another_jobs_commit() {
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
    assert!(r.is_ok());
}

fn parking<T>(t: T) -> std::sync::Mutex<T> {
    std::sync::Mutex::new(t)
}

/// a loss noticed on another channel turns a commit into "peer lost" on a rank that voted.
#[test]
fn a_loss_seen_on_another_channel_does_not_forge_a_verdict() {
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
    let one = out[1].clone().unwrap();
    assert!(one.is_ok() || one.unwrap_err().kind() == ErrorKind::CoordinatorLost);
}

/// the rename happened, its answer and the look afterwards failed: the old one is deleted.
#[test]
fn an_unclear_rename_does_not_delete_the_old_checkpoint() {
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
    let unclear = on_ranks(1, move |g| save_state(&g, &hooked, "runs/a", &small(), 2)).remove(0);
    assert_eq!(unclear.unwrap_err().kind(), ErrorKind::OutcomeUnknown);
    let now = catalog::find(&memory, &wanted("runs/a")).unwrap().manifest.save_id();
    assert!(now == old.save_id || entries(&memory, "runs").len() == 2, "the old one is gone");
}

/// the old checkpoint was removed meanwhile: nothing stands in the way.
#[test]
fn a_save_whose_predecessor_was_removed_meanwhile_commits() -> Result<()> {
    let memory = MemoryStorage::new();
    let old = saved(memory.clone(), 1, "runs/a", &small(), 1);
    let inner = memory.clone();
    let once = AtomicBool::new(true);
    let hooked = Hooked::new(&memory, move |c| {
        if c.operation == "create_file" && once.swap(false, SeqCst) {
            let d = inner.open_dir(Path::new("runs")).unwrap();
            tch_checkpoint::sweep::remove(d.as_ref(), path("runs/a").name(), &old.save_id, &pace())
                .unwrap();
        }
        Ok(())
    });
    let r = on_ranks(1, move |g| save_state(&g, &hooked, "runs/a", &small(), 2)).remove(0);
    r.map(|_| ())
}

/// A file of the right name and length is not the file that the rank wrote if its header differs,
/// as in two directories of one path on two hosts.
#[test]
fn a_file_of_the_right_length_with_another_header_is_not_believed() {
    let memory = MemoryStorage::new();
    let inner = memory.clone();
    let hooked = Hooked::new(&memory, move |c| {
        let file = c.path.file_name().unwrap_or_default().to_string_lossy();
        if c.operation == "create_file" && file.starts_with("sums-") {
            let dir = c.path.parent().unwrap();
            let data = entries(&inner, dir.to_str().unwrap());
            inner.corrupt(&dir.join(&data[0]), 20, 1)?;
        }
        Ok(())
    });
    let verdict = on_ranks(1, move |g| save_state(&g, &hooked, "runs/a", &small(), 1)).remove(0);
    assert_eq!(verdict.unwrap_err().kind(), ErrorKind::NotShared);
    assert_eq!(entries(&memory, "runs"), [""; 0]);
}

/// The name that an interrupted replacement gets back is durable before anything else happens.
#[test]
fn an_interrupted_replacement_is_restored_durably() {
    let memory = MemoryStorage::new();
    saved(memory.clone(), 1, "runs/a", &small(), 1);
    let dir = memory.open_dir(Path::new("runs")).unwrap();
    dir.rename("a", ".a.00000000000000000000000000000001.old", Rename::NoReplace).unwrap();
    let log = Arc::new(std::sync::Mutex::new(Vec::new()));
    let calls = log.clone();
    let hooked = Hooked::new(&memory, move |c| {
        calls.lock().unwrap().push(format!("{} {}", c.operation, c.path.display()));
        Ok(())
    });
    on_ranks(1, move |g| save_state(&g, &hooked, "runs/b", &small(), 2)).remove(0).unwrap();
    let log = log.lock().unwrap();
    let renamed = log.iter().position(|call| call.starts_with("rename")).unwrap();
    assert_eq!(log[renamed + 1], "sync runs", "{log:?}");
    assert_eq!(entries(&memory, "runs"), ["a", "b"]);
}
