//! Ranks as processes of their own that end while a save is pending. Each runs [`child`].

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Signal, getpid, kill_process};
use tch_checkpoint::save::{SaveOptions, save_async_overlapped};
use tch_checkpoint::slice::Slice;
use tch_checkpoint::state::{StateDict, TensorSource};
use tch_checkpoint::storage::{LocalStorage, Storage};
use tch_checkpoint::tensor::{Component, Dtype, TensorSpec};
use tch_checkpoint::{Checkpoint, ErrorKind, OnExisting, ProcessGroup, Result};

use crate::harness::*;

const FATE: &str = "TCH_CHECKPOINT_TEST_FATE";
const SABOTAGE: &str = "TCH_CHECKPOINT_SABOTAGE";
const DIR: &str = "TCH_CHECKPOINT_TEST_DIR";
const SAVES_IN: &str = "TCH_CHECKPOINT_TEST_SAVES_IN";
const HUNG: Duration = Duration::from_secs(40);

/// How a process ends with a save pending.
fn meet_fate(fate: &str) -> Result<()> {
    match fate {
        "killed" | "killed after" => kill_process(getpid(), Signal::KILL).unwrap(),
        "exits" => std::process::exit(0),
        _ => return Ok(()),
    }
    loop {
        std::thread::park();
    }
}

/// A box that its rank's fate meets, in the saving thread, when it is copied.
struct Fateful(String);

impl TensorSource for Fateful {
    fn read_into(&self, _offset: u64, out: &mut [u8]) -> Result<()> {
        if self.0 != "killed after" {
            meet_fate(&self.0)?;
        }
        out.fill(2);
        Ok(())
    }
    fn is_steady(&self) -> bool {
        true
    }
}

fn save_with_fate(group: &ProcessGroup, at: &str, fate: &str) -> Result<Checkpoint> {
    let mut state = StateDict::new();
    let (rank, spec) = (u64::from(group.rank().get()), TensorSpec::new(Dtype::U8, vec![3, 8])?);
    let own = Slice::full(&[3, 8]).rows(rank..rank + 1)?;
    let source = Arc::new(Fateful(fate.to_owned()));
    state.add_slice(&Component::model(), name("w"), spec, own, source)?;
    let options =
        SaveOptions { step: 2, on_existing: OnExisting::Replace, ..SaveOptions::default() };
    let storage: Arc<dyn Storage> = Arc::new(LocalStorage::new());
    let after = fate.to_owned();
    let after = Box::new(move |_: &Checkpoint| drop(meet_fate(&after)));
    save_async_overlapped(group, &storage, &path(at), &state, &options, after)?.wait()
}

/// One rank of the tests below, which start it; ends with a code that says what it was told.
#[test]
#[ignore = "runs as a process of its own"]
fn child() {
    let (Ok(fate), Ok(dir)) = (std::env::var(FATE), std::env::var(DIR)) else { return };
    let group = ProcessGroup::from_env().unwrap();
    let code = match save_with_fate(&group, &format!("{dir}/a"), &fate) {
        Ok(_) => 10,
        Err(error) if error.kind() == ErrorKind::OutcomeUnknown => 11,
        Err(error) if error.kind() == ErrorKind::PeerLost => 20 + error.rank().unwrap().get(),
        Err(_) => 12,
    };
    std::process::exit(code.try_into().unwrap());
}

/// Says which save id a process chooses, to the test below, which starts it.
#[test]
#[ignore = "runs as a process of its own"]
fn child_that_saves() {
    let Ok(dir) = std::env::var(SAVES_IN) else { return };
    let saved = saved(LocalStorage::new(), 1, &format!("{dir}/a"), &usual_tensors(), 1);
    std::fs::write(format!("{dir}/id"), saved.save_id.to_string()).unwrap();
}

/// Names of attempts are made of save ids: what can be guessed can be taken before.
#[test]
fn processes_choose_save_ids_that_no_other_has() {
    let ids = [(); 2].map(|()| {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "--ignored", "background_process::child_that_saves"]);
        command.env(SAVES_IN, dir.path()).stdout(Stdio::null());
        let mut child = Ranks(vec![command.spawn().unwrap()]);
        let until = Instant::now() + HUNG;
        while child.0[0].try_wait().unwrap().is_none() {
            assert!(Instant::now() < until, "the process hangs");
            std::thread::sleep(Duration::from_millis(10));
        }
        std::fs::read_to_string(dir.path().join("id")).unwrap()
    });
    assert_ne!(ids[0], ids[1]);
}

/// Ends a rank that is left over, whatever becomes of the test.
struct Ranks(Vec<Child>);

impl Drop for Ranks {
    fn drop(&mut self) {
        for child in &mut self.0 {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// Three ranks replace a checkpoint of step 1, and one of them ends meanwhile; the codes of the
/// others.
fn survivors(dir: &Path, doomed: usize, fate: &str) -> Vec<Option<i32>> {
    saved(LocalStorage::new(), 1, &format!("{}/a", dir.display()), &usual_tensors(), 1);
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let start = |rank: usize| {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "--ignored", "background_process::child", "--test-threads=1"]);
        command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
        command.env("WORLD_SIZE", "3").env("RANK", rank.to_string());
        command.env("TCH_CHECKPOINT_DEADLINE_MS", "5000").env(DIR, dir);
        let (name, fate) = match fate.contains('@') {
            true => (SABOTAGE, fate),
            false => (FATE, if rank == doomed { fate } else { "lives" }),
        };
        command.env(FATE, "lives").env_remove(SABOTAGE).env(name, fate);
        command.stdout(Stdio::null()).spawn().unwrap()
    };
    let mut ranks = Ranks((0..3).map(start).collect());
    let until = Instant::now() + HUNG;
    let mut codes = Vec::new();
    for (rank, child) in ranks.0.iter_mut().enumerate() {
        let code = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status.code();
            }
            assert!(Instant::now() < until, "rank {rank} hangs");
            std::thread::sleep(Duration::from_millis(10));
        };
        if rank != doomed || fate == "lives" {
            codes.push(code);
        }
    }
    codes
}

/// What `doomed` leaves: codes of the others, and the step that is under the name.
fn left_by(doomed: usize, fate: &str) -> (Vec<Option<i32>>, u64) {
    let dir = tempfile::tempdir().unwrap();
    let codes = survivors(dir.path(), doomed, fate);
    let (storage, at) = (LocalStorage::new(), format!("{}/a", dir.path().display()));
    assert_good(&storage, &at);
    let found = tch_checkpoint::catalog::find(&storage, &wanted(&at)).unwrap();
    // The next save takes away what was left.
    saved(storage, 1, &format!("{}/next", dir.path().display()), &usual_tensors(), 3);
    assert_eq!(entries(&storage, dir.path().to_str().unwrap()), ["a", "next"], "{fate}");
    (codes, found.manifest.step())
}

#[test]
fn processes_save_beside_training() {
    assert_eq!(left_by(0, "lives"), (vec![Some(10); 3], 2));
}

#[test]
fn a_process_that_ends_with_a_save_pending_is_named_and_leaves_the_old_state() {
    for fate in ["killed", "exits"] {
        assert_eq!(left_by(1, fate), (vec![Some(21); 2], 1), "{fate}");
        // Who has lost the coordinator cannot know.
        assert_eq!(left_by(0, fate), (vec![Some(11); 2], 1), "{fate}");
    }
}

#[test]
fn a_coordinator_that_is_killed_after_the_commit_has_committed() {
    assert_eq!(left_by(0, "killed after"), (vec![Some(10); 2], 2));
}

/// Killed by `sabotage` (where that is built in) at each turn of the phase that runs beside
/// training.
#[cfg(feature = "sabotage")]
#[test]
fn a_process_that_is_killed_in_the_vote_leaves_the_old_state_or_the_new() {
    for (doomed, turn, codes, step) in [
        (1, "enter", [21, 21], 1),
        // Its vote is cast, so it counts.
        (1, "voted", [10, 10], 2),
        (0, "enter", [11, 11], 1),
        (0, "voted", [11, 11], 1),
        (0, "decided", [11, 11], 2),
    ] {
        let sabotage = format!("kill@commit.{turn}@{doomed}");
        assert_eq!(left_by(doomed, &sabotage), (codes.map(Some).to_vec(), step), "{sabotage}");
    }
}
