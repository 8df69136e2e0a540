//! Ranks as processes of their own, which can be killed and stopped. Each runs [`child`].

use std::process::{Child, Command, Stdio};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};

use super::*;

const FATE: &str = "TCH_CHECKPOINT_TEST_FATE";

/// One rank of the other tests of this file, which start it with a fate; ends with the exit code
/// of its error.
#[test]
fn child() {
    let Ok(fate) = std::env::var(FATE) else { return };
    let group = ProcessGroup::from_env().unwrap();
    assert_eq!(ProcessGroup::from_env().unwrap().rank(), group.rank());
    roll_call(&group, Channel::Save, "before").unwrap();
    let me = rustix::process::getpid();
    match fate.as_str() {
        "killed" => kill_process(me, Signal::KILL).unwrap(),
        "stopped" => kill_process(me, Signal::STOP).unwrap(),
        "exits" => std::process::exit(0),
        _ => {}
    }
    if fate != "lives" {
        // A signal may reach another thread first, and this one must not vote meanwhile.
        std::thread::sleep(Duration::from_secs(1));
    }
    let code = match roll_call(&group, Channel::Save, "commit") {
        Ok(_) => 0,
        Err(error) => {
            // Which rank is blamed, and whether for its loss or its silence.
            let silent = error.kind() == ErrorKind::Deadline;
            10 * (1 + error.rank().unwrap().get()) + u32::from(silent)
        }
    };
    group.finish().unwrap();
    std::process::exit(code.try_into().unwrap());
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

/// Starts three ranks, of which `doomed` meets its `fate`; exit codes of the others.
fn survivors(doomed: usize, fate: &str) -> Vec<Option<i32>> {
    let address = free_address();
    let (host, port) = address.split_once(':').unwrap();
    let start = |rank: usize| {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "group::tests::process::child", "--test-threads=1"])
            .envs([("MASTER_ADDR", host), ("MASTER_PORT", port), ("WORLD_SIZE", "3")])
            .env("RANK", rank.to_string())
            .env("TCH_CHECKPOINT_DEADLINE_MS", "2000")
            .env(FATE, if rank == doomed { fate } else { "lives" })
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    };
    let mut ranks = Ranks((0..3).map(start).collect());
    let until = Instant::now() + HUNG;
    let mut codes = Vec::new();
    for (rank, child) in ranks.0.iter_mut().enumerate() {
        if rank == doomed && fate != "lives" {
            continue;
        }
        let code = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status.code();
            }
            assert!(Instant::now() < until, "rank {rank} hangs");
            std::thread::sleep(Duration::from_millis(20));
        };
        codes.push(code);
    }
    if fate == "stopped" {
        // It is still there: what ended the others' wait was the deadline alone.
        let pid = Pid::from_child(&ranks.0[doomed]);
        kill_process(pid, Signal::CONT).unwrap();
    }
    codes
}

#[test]
fn processes_started_by_variables_come_together_and_leave() {
    assert_eq!(survivors(0, "lives"), vec![Some(0); 3]);
}

#[test]
fn a_process_that_dies_is_blamed_by_the_others() {
    for fate in ["killed", "exits"] {
        assert_eq!(survivors(2, fate), vec![Some(30); 2], "{fate}");
        assert_eq!(survivors(0, fate), vec![Some(10); 2], "{fate}");
    }
}

#[test]
fn a_process_that_is_stopped_is_blamed_by_the_others() {
    assert_eq!(survivors(1, "stopped"), vec![Some(21); 2]);
    // Waiting for the verdict, the coordinator's silence is its loss.
    assert_eq!(survivors(0, "stopped"), vec![Some(10); 2]);
}
