//! The digits example as a job of two processes under a launcher, with a deadline.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Nothing here may take longer.
const HANG: Duration = Duration::from_secs(90);
const PAUSE: Duration = Duration::from_millis(20);

#[derive(Clone, Copy)]
pub struct Launcher {
    script: &'static str,
    /// The variable that tells a process its rank.
    rank: &'static str,
}

pub const TORCHRUN: Launcher = Launcher { script: "launch/torchrun.sh", rank: "RANK" };
#[cfg(feature = "mpi")]
pub const MPIRUN: Launcher = Launcher { script: "launch/mpirun.sh", rank: "OMPI_COMM_WORLD_RANK" };

fn example() -> PathBuf {
    let command = Path::new(env!("CARGO_BIN_EXE_tch-checkpoint"));
    let example = command.with_file_name("examples").join("digits");
    assert!(example.exists(), "{} is not built: cargo build --examples", example.display());
    example
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

/// A directory in which jobs run one after the other; checkpoints lie in `runs`.
pub struct Place(TempDir);

impl Place {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn runs(&self) -> PathBuf {
        self.0.path().join("runs")
    }

    /// Starts two ranks that save every seven steps.
    pub fn start(&self, launcher: Launcher, flags: &[&str], variables: &[(&str, &str)]) -> Job<'_> {
        let log = self.0.path().join("output.log");
        let output = File::create(&log).unwrap();
        let child = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join(launcher.script))
            .args(["-n", "2"])
            .arg(example())
            .args(["--auto-save-steps", "7", "--name", "s{step}", "--save-dir"])
            .arg(self.runs())
            .args(flags)
            .env("TCH_CHECKPOINT_GRACE", "30")
            .env("NO_COLOR", "1")
            .env_remove("TCH_CHECKPOINT_SABOTAGE")
            .env_remove("SLURM_JOB_END_TIME")
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
        let entries = std::fs::read_dir(self.runs()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let visible: Vec<String> = names.filter(|name| !name.starts_with('.')).collect();
        let mut steps = Vec::new();
        for name in &visible {
            let mut verify = Command::new(env!("CARGO_BIN_EXE_tch-checkpoint"));
            let verified = verify.arg("verify").arg(self.runs().join(name)).output().unwrap();
            assert!(verified.status.success(), "{name}: {verified:?}");
            steps.push(name.strip_prefix('s').and_then(|step| step.parse().ok()).unwrap());
        }
        steps.sort_unstable();
        steps
    }

    /// Whether there is a visible checkpoint of this step or a later one.
    fn has_saved(&self, step: u64) -> bool {
        let entries = std::fs::read_dir(self.runs()).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        names.filter_map(|name| name.strip_prefix('s')?.parse().ok()).any(|at: u64| at >= step)
    }

    /// Runs to this many epochs, from `resume`; the hash of the state at the end.
    pub fn state_after(&self, launcher: Launcher, epochs: u64, resume: &str) -> String {
        let epochs = epochs.to_string();
        let flags = ["--total-epochs", &epochs, "--resume", resume, "--print-state-hash"];
        let ended = self.start(launcher, &flags, &[]).end();
        assert!(ended.status.success(), "{}", ended.output);
        let state = ended.output.lines().find_map(|line| line.strip_prefix("state "));
        state.unwrap_or_else(|| panic!("no state in {}", ended.output)).to_owned()
    }

    /// Processes of jobs here, zombies aside, with the number that `launcher` gave them, if any.
    fn processes(&self, launcher: Launcher) -> Vec<(Pid, Option<u32>)> {
        let wanted = self.0.path().to_str().unwrap();
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
    /// The step after which the job said that it saved, for this reason.
    pub fn saved_at(&self, reason: &str) -> Option<u64> {
        let said = self.output.lines().find(|line| line.contains("saved; training ends"))?;
        let field = |name: &str| said.split(name).nth(1).map(str::trim);
        assert!(field(" reason=").is_some_and(|text| text.starts_with(reason)), "{said}");
        field(" step=")?.split_whitespace().next()?.parse().ok()
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
