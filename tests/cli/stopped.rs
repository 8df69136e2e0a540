//! `stress` with ranks that are processes, all of which somebody has stopped: nobody is left who
//! could give the others up but the command itself.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::{Folder, HANG, command, output_of};

/// The processes that one has started, which are its ranks.
fn children(pid: u32) -> Vec<Pid> {
    let listed = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let listed = listed.unwrap_or_default();
    listed.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect()
}

#[test]
fn a_job_whose_ranks_are_all_stopped_is_given_up() {
    let folder = Folder::new();
    let mut job = command(&["stress", "loop", "--dir", folder.path(), "--bytes", "200003"]);
    job.args(["--ranks", "3", "--transport", "tcp", "--deadline-ms", "1000"]);
    let job = job.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let started = Instant::now();
    while !Path::new(&folder.at("step-00000001")).exists() {
        assert!(started.elapsed() < HANG, "nothing is saved");
        std::thread::sleep(Duration::from_millis(5));
    }
    let ranks = children(job.id());
    assert_eq!(ranks.len(), 3);
    ranks.iter().for_each(|rank| kill_process(*rank, Signal::STOP).unwrap());
    let output = output_of(job, "a job whose ranks are stopped");
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(5), "{said}");
    for rank in 0..3 {
        let words = format!(
            "it was stopped for longer than the deadline, as all others, and was killed (rank {rank})"
        );
        assert!(said.contains(&words), "`{words}` is not in {said}");
    }
    for rank in ranks {
        let rank = rank.as_raw_nonzero();
        assert!(!Path::new(&format!("/proc/{rank}/exe")).exists(), "rank {rank} is left");
    }
}

/// One that is stopped is the others' to give up, and a job that goes on is not.
#[test]
fn a_job_whose_ranks_are_stopped_and_resumed_goes_on() {
    let folder = Folder::new();
    let mut job = command(&["stress", "loop", "--dir", folder.path(), "--bytes", "200003"]);
    job.args(["--ranks", "2", "--transport", "tcp", "--deadline-ms", "20000"]);
    let mut job = job.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let wait_for = |step: &str| {
        let started = Instant::now();
        while !Path::new(&folder.at(step)).exists() {
            assert!(started.elapsed() < HANG, "{step} is not saved");
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    wait_for("step-00000001");
    let ranks = children(job.id());
    for signal in [Signal::STOP, Signal::CONT] {
        ranks.iter().for_each(|rank| kill_process(*rank, signal).unwrap());
        std::thread::sleep(Duration::from_millis(100));
    }
    let saved = std::fs::read_dir(folder.at(".")).unwrap().flatten();
    let newest = saved
        .filter_map(|e| e.file_name().into_string().ok())
        .filter(|n| n.starts_with("step-"))
        .max();
    let next: u64 = newest.unwrap().trim_start_matches("step-").parse::<u64>().unwrap() + 2;
    wait_for(&format!("step-{next:08}"));
    assert!(job.try_wait().unwrap().is_none(), "it was given up");
    kill_process(Pid::from_child(&job), Signal::KILL).unwrap();
    let _ = output_of(job, "a job that was killed");
}
