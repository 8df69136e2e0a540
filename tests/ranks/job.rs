//! Starts the ranks of one cell, resumes or ends the one that is stopped or goes on alone, and
//! waits for the end of all.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::harness;
use crate::marked::left_over;
use crate::rank::is_expected;
use crate::report::{self, Report};
use crate::table::{Act, Cell, RANKS, Way};

/// Names the cell to a rank.
pub const CELL: &str = "RANKS_TEST_CELL";
/// Inherited by everything that a job starts; its value is the job's own directory.
pub const DIR: &str = "RANKS_TEST_DIR";
/// Says that the ranks are threads.
pub const THREADS: &str = "RANKS_TEST_THREADS";
/// Where checkpoints lie, in that directory.
pub const RUNS: &str = "runs";
/// How long ranks wait for one that is silent, in seconds.
pub const DEADLINE_S: u64 = 2;

/// A job that takes longer hangs.
const HANG: Duration = Duration::from_secs(90);
/// Time for the processes of a job that has ended to disappear.
const SETTLE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(10);
/// What would change how a rank joins, or what it does.
const FOREIGN: [&str; 6] = [
    "TCH_CHECKPOINT_LAUNCHER",
    "TCH_CHECKPOINT_IFADDR",
    "TCH_CHECKPOINT_TOKEN",
    "TCH_CHECKPOINT_SABOTAGE",
    "SLURM_JOB_END_TIME",
    "RUST_BACKTRACE",
];

pub struct Job {
    pub cell: Cell,
    dir: TempDir,
    children: Vec<Child>,
    /// The odd rank, which would have gone on for ever.
    is_ended: bool,
}

pub struct Ended {
    pub cell: Cell,
    /// By rank; none of one that did not live to write it.
    pub reports: Vec<Option<Report>>,
    /// By process that was started: all ranks, or their launcher.
    pub codes: Vec<Option<i32>>,
    /// When it happened to the odd rank.
    pub marked: SystemTime,
    /// When the last process was gone.
    pub gone: SystemTime,
    pub output: String,
    dir: TempDir,
}

impl Ended {
    pub fn runs(&self) -> PathBuf {
        self.dir.path().join(RUNS)
    }
}

/// Written when it happens to the odd rank.
fn mark_path(dir: &Path) -> PathBuf {
    dir.join("mark")
}

/// Where a rank notes that it has joined, and its process.
pub fn pid_path(dir: &Path, rank: u32) -> PathBuf {
    dir.join(format!("pid{rank}"))
}

impl Job {
    pub fn run(cell: &Cell) -> Ended {
        let dir = tempfile::tempdir().unwrap();
        copy_first(&dir.path().join(RUNS));
        let mut job = Self { cell: cell.clone(), dir, children: Vec::new(), is_ended: false };
        job.start();
        let ended = within(HANG, || job.look());
        let settled = within(if ended { SETTLE } else { PAUSE }, || job.left_over().is_empty());
        let left = job.left_over();
        for pid in &left {
            let _ = kill_process(*pid, Signal::KILL);
        }
        assert!(ended, "{cell}: the job hangs, {left:?} run: {}", job.output());
        assert!(settled, "{cell}: left behind: {left:?}: {}", job.output());
        job.end()
    }

    fn start(&mut self) {
        let started = match self.cell.way {
            Way::Threads => vec![self.command(None).env(THREADS, "1").spawn()],
            Way::Tcp => (0..RANKS).map(|rank| self.tcp_rank(rank).spawn()).collect(),
            Way::Mpi => vec![self.mpirun().spawn()],
            Way::MpiRecovery => {
                vec![self.mpirun().env("OMPI_MCA_orte_enable_recovery", "1").spawn()]
            }
        };
        self.children = started.into_iter().map(Result::unwrap).collect();
    }

    /// This program, or the launcher that starts it.
    fn command(&self, launcher: Option<&str>) -> Command {
        let exe = std::env::current_exe().unwrap();
        let mut command = match launcher {
            None => Command::new(exe),
            Some(script) => {
                let root = Path::new(env!("CARGO_MANIFEST_DIR"));
                let mut command = Command::new(root.join("launch").join(script));
                command.args(["-n", &RANKS.to_string()]).arg(exe);
                command
            }
        };
        for name in FOREIGN {
            command.env_remove(name);
        }
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log()).unwrap();
        command
            .env(CELL, self.cell.to_string())
            .env(DIR, self.dir.path())
            .env("TCH_CHECKPOINT_SABOTAGE", self.cell.sabotage())
            .env("TCH_CHECKPOINT_SABOTAGE_MARK", mark_path(self.dir.path()))
            .env("TCH_CHECKPOINT_DEADLINE_MS", (DEADLINE_S * 1000).to_string())
            .env("OMP_NUM_THREADS", "1")
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        command
    }

    /// As torchrun starts it on one host: the ranks meet in a file, whose name is theirs alone.
    fn tcp_rank(&self, rank: u32) -> Command {
        let mut command = self.command(None);
        let (rank, world) = (rank.to_string(), RANKS.to_string());
        command
            .envs([("RANK", &rank), ("LOCAL_RANK", &rank)])
            .envs([("WORLD_SIZE", &world), ("LOCAL_WORLD_SIZE", &world)])
            .envs([("MASTER_ADDR", "127.0.0.1"), ("TORCHELASTIC_USE_AGENT_STORE", "True")])
            .env("TORCHELASTIC_RUN_ID", self.dir.path());
        command
    }

    fn mpirun(&self) -> Command {
        let mut command = self.command(Some("mpirun.sh"));
        // What a rank that was killed leaves of the memory that it shared goes with the directory.
        command.env("OMPI_MCA_btl_vader_backing_directory", self.dir.path());
        command
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("output")
    }

    fn output(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }

    /// Does what is due; whether all processes have ended.
    fn look(&mut self) -> bool {
        let done = self.children.iter_mut().all(|child| child.try_wait().unwrap().is_some());
        if done || self.is_ended {
            return done;
        }
        let heard = |rank: u32| report::path(self.dir.path(), rank).exists();
        let odd = self.cell.rank;
        if (0..RANKS).any(|rank| rank != odd && !heard(rank)) {
            return done;
        }
        match (self.cell.act, self.cell.way) {
            // Again and again: the others may be done before it stops.
            (Act::Stop, _) => self.signal_odd(Signal::CONT),
            // It was to go on for ever.
            (Act::Drop, Way::Tcp) if heard(odd) => {
                self.signal_odd(Signal::KILL);
                self.is_ended = true;
            }
            _ => {}
        }
        done
    }

    fn signal_odd(&self, signal: Signal) {
        let pid = fs::read_to_string(pid_path(self.dir.path(), self.cell.rank)).unwrap();
        match kill_process(Pid::from_raw(pid.parse().unwrap()).unwrap(), signal) {
            Ok(()) | Err(Errno::SRCH) => (),
            Err(error) => panic!("{}: {error}", self.cell),
        }
    }

    /// Every live process of this job.
    fn left_over(&self) -> Vec<Pid> {
        left_over(DIR, self.dir.path())
    }

    fn end(mut self) -> Ended {
        let status = |child: &mut Child| child.wait().unwrap().code();
        let codes = self.children.iter_mut().map(status).collect();
        let gone = SystemTime::now();
        let mark = fs::metadata(mark_path(self.dir.path())).and_then(|file| file.modified());
        let marked = mark.unwrap_or_else(|e| panic!("{}: it never happened: {e}", self.cell));
        Ended {
            marked,
            gone,
            reports: (0..RANKS).map(|rank| report::read(self.dir.path(), rank)).collect(),
            codes,
            output: self.output(),
            cell: self.cell,
            dir: self.dir,
        }
    }
}

impl Ended {
    /// How long after it had happened that was.
    pub fn since_mark(&self, at: SystemTime) -> Duration {
        at.duration_since(self.marked).unwrap_or_default()
    }

    /// The ranks that lived to say how it ended.
    pub fn survivors(&self) -> impl Iterator<Item = (u32, Option<&Report>)> {
        let all = (0..RANKS).zip(&self.reports);
        let others = all.filter(|(rank, _)| *rank != self.cell.rank || self.cell.act.is_voted());
        others.filter(|(rank, _)| is_expected(&self.cell, *rank)).map(|(r, it)| (r, it.as_ref()))
    }
}

/// A directory in which the checkpoint `first` lies, saved by as many ranks.
fn copy_first(runs: &Path) {
    static FIRST: OnceLock<TempDir> = OnceLock::new();
    let first = FIRST.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("runs/first").to_str().unwrap().to_owned();
        let storage = tch_checkpoint::storage::LocalStorage::new();
        harness::saved(storage, RANKS, &at, &harness::usual_tensors(), 1);
        dir
    });
    let copied = Command::new("cp").arg("-a").arg(first.path().join("runs")).arg(runs).status();
    assert!(copied.unwrap().success());
}

fn within(time: Duration, mut done: impl FnMut() -> bool) -> bool {
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
