//! A launcher under test, with shell one-liners as ranks.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::marked;

const DEADLINE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(10);
/// Inherited by everything that a launcher starts; its value is the launcher's own directory.
const MARKER: &str = "LAUNCH_TEST_DIR";

/// A running launcher with a directory of its own.
pub struct Launch {
    child: Child,
    pub dir: TempDir,
}

/// What is left of one. Nothing that it started runs any more.
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    pub dir: TempDir,
}

#[allow(dead_code, reason = "not every test program asks for all of it")]
impl Launch {
    /// Runs a command in a new directory, without what the shell of the test says of launches;
    /// `prepare` also gets the directory.
    pub fn prepared(command: &mut Command, prepare: impl FnOnce(&mut Command, &Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["OMP_NUM_THREADS", "TCH_CHECKPOINT_TOKEN", "TCH_CHECKPOINT_GRACE"] {
            command.env_remove(name);
        }
        command.current_dir(dir.path()).env(MARKER, dir.path());
        let output = |name| Stdio::from(fs::File::create(dir.path().join(name)).unwrap());
        command.stdout(output("stdout")).stderr(output("stderr"));
        prepare(command, dir.path());
        Self { child: command.spawn().unwrap(), dir }
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub fn wait_for_files(&self, names: &[&str]) {
        let all = || names.iter().all(|name| self.dir.path().join(name).exists());
        assert!(within_deadline(all), "no {names:?}: {}", read(self.dir.path(), "stderr"));
    }

    /// Every live process of it.
    pub fn left_over(&self) -> Vec<Pid> {
        marked::left_over(MARKER, self.dir.path())
    }

    pub fn end(mut self) -> Ended {
        let mut status: Option<ExitStatus> = None;
        let ended = within_deadline(|| {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        let (stdout, stderr) = (read(self.dir.path(), "stdout"), read(self.dir.path(), "stderr"));
        let left = self.left_over();
        for pid in &left {
            let _ = kill_process(*pid, Signal::KILL);
        }
        assert!(ended, "the launcher did not end; stderr: {stderr}");
        assert!(left.is_empty(), "left behind: {left:?}; stderr: {stderr}");
        Ended { code: status.and_then(|s| s.code()), stdout, stderr, dir: self.dir }
    }
}

#[allow(dead_code, reason = "not every test program asks for all of it")]
impl Ended {
    /// Of an exit code that must be this one.
    #[track_caller]
    pub fn with_code(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    pub fn read(&self, name: &str) -> String {
        read(self.dir.path(), name)
    }
}

pub fn within_deadline(mut done: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while start.elapsed() < DEADLINE {
        if done() {
            return true;
        }
        sleep(PAUSE);
    }
    false
}

pub fn read(dir: &Path, name: &str) -> String {
    fs::read_to_string(dir.join(name)).unwrap_or_default()
}
