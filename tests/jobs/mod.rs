//! Examples as jobs of several processes under a launcher, with a deadline: what test binaries
//! that start them have in common.

#![allow(dead_code, reason = "not every binary needs all of it")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tch_checkpoint::catalog::{Wanted, find};
use tch_checkpoint::storage::LocalStorage;
use tch_checkpoint::verify::verify;
use tempfile::TempDir;

/// Nothing here may take longer.
const HANG: Duration = Duration::from_secs(90);
const PAUSE: Duration = Duration::from_millis(20);

#[derive(Clone, Copy)]
pub struct Launcher {
    pub script: Option<&'static str>,
    /// What comes before the number of ranks.
    verb: &'static [&'static str],
    /// The variable that tells a process its rank.
    rank: &'static str,
}

pub const TORCHRUN: Launcher =
    Launcher { script: Some("launch/torchrun.sh"), verb: &[], rank: "RANK" };
/// The verb of the command, which starts all ranks again when one fails.
pub const LAUNCH: Launcher = Launcher {
    script: Some(env!("CARGO_BIN_EXE_tch-checkpoint")),
    verb: &["launch", "--max-restarts", "2"],
    rank: "RANK",
};
#[cfg(feature = "mpi")]
pub const MPIRUN: Launcher =
    Launcher { script: Some("launch/mpirun.sh"), verb: &[], rank: "OMPI_COMM_WORLD_RANK" };
/// The program itself.
pub const ALONE: Launcher = Launcher { script: None, verb: &[], rank: "RANK" };

/// An example, and how it is told where to save.
pub struct Program {
    pub example: &'static str,
    /// Flags of every start.
    pub flags: &'static [&'static str],
    /// The flag in front of the directory `runs`.
    pub directory: &'static str,
    /// Where in `runs` checkpoints lie.
    pub experiment: &'static str,
    /// What their names begin with; the step follows.
    pub prefix: &'static str,
}

impl Program {
    pub fn path(&self) -> PathBuf {
        let command = Path::new(env!("CARGO_BIN_EXE_tch-checkpoint"));
        let example = command.with_file_name("examples").join(self.example);
        assert!(example.exists(), "{} is not built: cargo build --examples", example.display());
        example
    }
}

/// Until `done` says so; whether it did.
fn within_deadline(mut done: impl FnMut() -> bool) -> bool {
    let started = Instant::now();
    while started.elapsed() < HANG {
        if done() {
            return true;
        }
        std::thread::sleep(PAUSE);
    }
    false
}

/// A directory in which jobs of a program run one after the other.
pub struct Place {
    dir: TempDir,
    program: &'static Program,
}

impl Place {
    pub fn of(program: &'static Program) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), program }
    }

    /// Another one, with the checkpoints of this one.
    pub fn copy(&self) -> Self {
        let copy = Self::of(self.program);
        let mut cp = Command::new("cp");
        let copied = cp.arg("-a").arg(self.dir.path().join("runs")).arg(copy.dir.path()).status();
        assert!(copied.unwrap().success());
        copy
    }

    /// Where checkpoints lie.
    pub fn runs(&self) -> PathBuf {
        self.dir.path().join("runs").join(self.program.experiment)
    }

    /// Starts two ranks.
    pub fn start(&self, launcher: Launcher, flags: &[&str], variables: &[(&str, &str)]) -> Job<'_> {
        self.start_on(2, launcher, flags, variables)
    }

    pub fn start_on(
        &self,
        ranks: u32,
        launcher: Launcher,
        flags: &[&str],
        variables: &[(&str, &str)],
    ) -> Job<'_> {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let log = self.dir.path().join(format!("{number}.log"));
        let output = File::create(&log).unwrap();
        let mut command = match launcher.script {
            Some(script) => Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join(script)),
            None => Command::new(self.program.path()),
        };
        if launcher.script.is_some() {
            command.args(launcher.verb).args(["-n", &ranks.to_string()]).arg(self.program.path());
        }
        command.args(self.program.flags);
        if !self.program.directory.is_empty() {
            command.arg(self.program.directory).arg(self.dir.path().join("runs"));
        }
        let child = command
            .args(flags)
            .env("TCH_CHECKPOINT_GRACE", "30")
            .env("NO_COLOR", "1")
            .env_remove("TCH_CHECKPOINT_SABOTAGE")
            .env_remove("SLURM_JOB_END_TIME")
            .env_remove("RUST_BACKTRACE")
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output)
            .spawn()
            .unwrap();
        Job { child, place: self, launcher, log }
    }

    /// The steps of all visible checkpoints, each of which is whole.
    pub fn saved(&self) -> Vec<u64> {
        let visible = self.visible();
        for (name, _) in &visible {
            // What `tch-checkpoint verify` does, but the command has to start up first.
            let wanted = Wanted::parse(self.runs().join(name)).unwrap();
            let found = find(&LocalStorage::new(), &wanted).unwrap();
            let verified = verify(&found, &mut |_| ()).unwrap();
            assert_eq!(verified.damage, [], "{name}");
        }
        visible.into_iter().map(|(_, step)| step).collect()
    }

    /// Names and steps, by steps. What is no directory is a link or a file beside them.
    fn visible(&self) -> Vec<(String, u64)> {
        let entries = std::fs::read_dir(self.runs()).into_iter().flatten().flatten();
        let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        let names = directories.filter_map(|entry| entry.file_name().into_string().ok());
        let step = |name: &str| name.strip_prefix(self.program.prefix)?.parse().ok();
        let mut visible: Vec<(String, u64)> = names
            .filter(|name| !name.starts_with('.'))
            .map(|name| (name.clone(), step(&name).unwrap_or_else(|| panic!("what is {name}?"))))
            .collect();
        visible.sort_unstable_by_key(|(_, step)| *step);
        visible
    }

    /// Hidden entries that are neither a lock nor a pin.
    pub fn debris(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.runs()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let is_debris = |name: &String| name.starts_with('.') && name != ".tch-checkpoint.lock";
        names.filter(is_debris).collect()
    }

    /// Whether there is a visible checkpoint of this step or a later one.
    fn has_saved(&self, step: u64) -> bool {
        self.visible().iter().any(|(_, at)| *at >= step)
    }

    /// Processes of jobs here, zombies aside, with the number that `launcher` gave them, if any.
    fn processes(&self, launcher: Launcher) -> Vec<(Pid, Option<u32>)> {
        let wanted = self.dir.path().to_str().unwrap();
        let look = |entry: std::io::Result<std::fs::DirEntry>| {
            let entry = entry.ok()?;
            let read = |name| std::fs::read(entry.path().join(name)).ok();
            let text = |name| Some(String::from_utf8_lossy(&read(name)?).into_owned());
            let zombie = text("stat")?.rsplit(") ").next()?.starts_with('Z');
            if zombie || !text("cmdline")?.contains(wanted) {
                return None;
            }
            let environment = text("environ")?;
            let rank = environment.split('\0').find_map(|variable| {
                variable.strip_prefix(launcher.rank)?.strip_prefix('=')?.parse().ok()
            });
            Some((Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)?, rank))
        };
        std::fs::read_dir("/proc").unwrap().filter_map(look).collect()
    }
}

pub struct Ended {
    pub status: ExitStatus,
    pub output: String,
}

impl Ended {
    /// The hash of the state at the end.
    pub fn state(&self) -> String {
        assert!(self.status.success(), "{}", self.output);
        let state = self.output.lines().find_map(|line| line.strip_prefix("state "));
        state.unwrap_or_else(|| panic!("no state in {}", self.output)).to_owned()
    }
}

/// A job that runs; it is killed where a test fails before its end.
pub struct Job<'a> {
    child: Child,
    place: &'a Place,
    launcher: Launcher,
    log: PathBuf,
}

impl Job<'_> {
    fn output(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until it has saved after this step.
    pub fn wait_for_step(&mut self, step: u64) {
        let mut ended = None;
        let reached = within_deadline(|| {
            ended = self.child.try_wait().unwrap();
            self.place.has_saved(step) || ended.is_some()
        });
        assert!(reached && ended.is_none(), "{ended:?}: {}", self.output());
    }

    /// Waits until it has said this.
    pub fn wait_for_output(&mut self, words: &str) {
        let mut ended = None;
        let said = within_deadline(|| {
            ended = self.child.try_wait().unwrap();
            self.output().contains(words) || ended.is_some()
        });
        assert!(said && ended.is_none(), "{ended:?}: {}", self.output());
    }

    /// Signals the launcher.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Signals one rank alone; whether it is still there.
    pub fn signal_rank(&self, rank: u32, signal: Signal) -> bool {
        let processes = self.place.processes(self.launcher);
        let found = processes.iter().find(|(_, number)| *number == Some(rank));
        found.is_some_and(|(pid, _)| kill_process(*pid, signal).is_ok())
    }

    /// Sends it again and again until that rank is gone.
    pub fn signal_rank_to_death(&self, rank: u32, signal: Signal) {
        let gone = within_deadline(|| !self.signal_rank(rank, signal));
        assert!(gone, "rank {rank} survives: {}", self.output());
    }

    /// Waits for its end, and for that of all its processes.
    pub fn end(mut self) -> Ended {
        let mut status = None;
        let ended = within_deadline(|| {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        assert!(ended, "the job hangs: {}", self.output());
        let gone = within_deadline(|| self.place.processes(self.launcher).is_empty());
        assert!(gone, "left behind: {:?}", self.place.processes(self.launcher));
        Ended { status: status.unwrap(), output: self.output() }
    }
}

impl Drop for Job<'_> {
    fn drop(&mut self) {
        for (pid, _) in self.place.processes(self.launcher) {
            let _ = kill_process(pid, Signal::KILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
