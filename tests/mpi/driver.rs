//! Starts a job, waits for its end, and looks at what it left behind.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tempfile::TempDir;

use crate::marked::left_over;

/// Names the case to a rank.
pub const CASE: &str = "MPI_TEST_CASE";
/// Inherited by everything that a job starts; its value is the job's own directory.
pub const DIR: &str = "MPI_TEST_DIR";
/// A job that takes longer hangs.
const DEADLINE: Duration = Duration::from_secs(90);
/// Time for the processes of a job that has ended to disappear.
const SETTLE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);
/// What would change how a rank joins.
const FOREIGN: [&str; 6] = [
    "RANK",
    "WORLD_SIZE",
    "TCH_CHECKPOINT_LAUNCHER",
    "TCH_CHECKPOINT_IFADDR",
    "TCH_CHECKPOINT_DEADLINE_MS",
    "TCH_CHECKPOINT_TOKEN",
];

pub struct Job {
    command: Command,
    dir: TempDir,
}

pub struct Ended {
    /// As a shell gives it: 128 and the signal for what a signal has ended.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    dir: TempDir,
}

impl Job {
    pub fn mpi(ranks: u32, case: &str) -> Self {
        Self::launched("mpirun.sh", ranks, case)
    }

    pub fn torchrun(ranks: u32, case: &str) -> Self {
        Self::launched("torchrun.sh", ranks, case)
    }

    /// This program alone.
    pub fn plain(case: &str) -> Self {
        Self::new(Command::new(std::env::current_exe().unwrap()), case)
    }

    fn launched(script: &str, ranks: u32, case: &str) -> Self {
        let launch = Path::new(env!("CARGO_MANIFEST_DIR")).join("launch");
        let mut command = Command::new(launch.join(script));
        command.args(["-n", &ranks.to_string()]).arg(std::env::current_exe().unwrap());
        Self::new(command, case)
    }

    fn new(mut command: Command, case: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in FOREIGN {
            command.env_remove(name);
        }
        command.env(CASE, case).env(DIR, dir.path()).current_dir(dir.path());
        let output = |name| Stdio::from(fs::File::create(dir.path().join(name)).unwrap());
        command.stdin(Stdio::null()).stdout(output("stdout")).stderr(output("stderr"));
        command.process_group(0);
        Self { command, dir }
    }

    pub fn env(mut self, name: &str, value: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    pub fn run(mut self) -> Ended {
        let mut child = self.command.spawn().unwrap();
        let mut status = None;
        let ended = within(DEADLINE, || {
            status = child.try_wait().unwrap();
            status.is_some()
        });
        let settled = within(if ended { SETTLE } else { PAUSE }, || self.left_over().is_empty());
        let left = self.left_over();
        if !ended {
            let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
        }
        for pid in &left {
            let _ = kill_process(*pid, Signal::KILL);
        }
        let read = |name| fs::read_to_string(self.dir.path().join(name)).unwrap_or_default();
        let (stdout, stderr) = (read("stdout"), read("stderr"));
        if !ended {
            drop(child.wait());
            panic!("the job hangs: {stdout}\n{stderr}");
        }
        assert!(settled, "the job has left processes behind: {left:?}\n{stderr}");
        Ended { code: status.and_then(shell_code), stdout, stderr, dir: self.dir }
    }

    /// Every live process of this job.
    fn left_over(&self) -> Vec<Pid> {
        left_over(DIR, self.dir.path())
    }
}

fn shell_code(status: std::process::ExitStatus) -> Option<i32> {
    use std::os::unix::process::ExitStatusExt;
    status.code().or_else(|| status.signal().map(|signal| 128 + signal))
}

impl Ended {
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// What a rank has written down.
    #[track_caller]
    pub fn report(&self, rank: u32) -> String {
        let path = report_path(self.dir(), rank);
        fs::read_to_string(path).unwrap_or_else(|e| panic!("rank {rank}: {e}: {}", self.stderr))
    }
}

/// Where a rank writes its report.
pub fn report_path(dir: &Path, rank: u32) -> PathBuf {
    dir.join(format!("report{rank}"))
}

pub fn within(time: Duration, mut done: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    loop {
        if done() {
            return true;
        }
        if start.elapsed() >= time {
            return false;
        }
        sleep(PAUSE);
    }
}
