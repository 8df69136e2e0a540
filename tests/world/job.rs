//! Jobs of several processes, each of which writes down what becomes of its saves.

use std::ffi::OsString;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Nothing here may take longer.
pub const HANG: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(2);

/// Milliseconds since the machine started, by a clock that no process can be lied to about.
pub fn now() -> u64 {
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap();
    let seconds: f64 = uptime.split_whitespace().next().unwrap().parse().unwrap();
    (seconds * 1000.0) as u64
}

/// Until `done` says so; whether it did.
pub fn within(time: Duration, mut done: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + time;
    while !done() {
        if Instant::now() >= until {
            return false;
        }
        std::thread::sleep(PAUSE);
    }
    true
}

/// SplitMix64 (Steele, Lea and Flood 2014), from the variable `TCH_CHECKPOINT_TEST_SEED` or another
/// number each time, which is printed.
pub struct Random(u64);

impl Random {
    pub fn seeded() -> Self {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let fresh = || u64::from(std::process::id()) ^ (now() << 16) ^ (count << 56);
        let given = std::env::var("TCH_CHECKPOINT_TEST_SEED").ok();
        let seed = given.map_or_else(fresh, |text| text.parse().unwrap());
        crate::tier::figure("TCH_CHECKPOINT_TEST_SEED", seed);
        Self(seed)
    }

    /// Another one, for another thread.
    pub fn fork(&mut self) -> Self {
        Self(self.below(u64::MAX))
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let word = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (word ^ (word >> 31)) % bound.max(1)
    }
}

/// What a job is to do.
#[derive(Debug, Clone)]
pub struct Plan {
    pub dir: PathBuf,
    pub tag: u8,
    pub ranks: u32,
    pub first: u64,
    pub last: u64,
    pub bytes: u64,
    pub deadline_ms: u64,
    pub keep: Option<u64>,
    pub beside: bool,
    /// After a name that was taken, with the next one.
    pub go_on: bool,
    /// All writes go through the page cache.
    pub cached: bool,
    pub address: &'static str,
}

impl Plan {
    /// Two ranks that save a little, on this host.
    pub fn of(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            tag: 1,
            ranks: 2,
            first: 1,
            last: u64::from(u32::MAX),
            bytes: 100_000,
            deadline_ms: 10_000,
            keep: None,
            beside: false,
            go_on: false,
            cached: false,
            address: "127.0.0.1",
        }
    }

    /// The variables of all ranks.
    fn variables(&self, notes: &Path, port: u16) -> Vec<(&'static str, OsString)> {
        let mut all: Vec<(&str, OsString)> = vec![
            ("WORLD_DIR", self.dir.clone().into()),
            ("WORLD_NOTES", notes.into()),
            ("WORLD_TAG", self.tag.to_string().into()),
            ("WORLD_FIRST", self.first.to_string().into()),
            ("WORLD_LAST", self.last.to_string().into()),
            ("WORLD_BYTES", self.bytes.to_string().into()),
            ("WORLD_SIZE", self.ranks.to_string().into()),
            ("LOCAL_WORLD_SIZE", self.ranks.to_string().into()),
            ("MASTER_ADDR", self.address.into()),
            ("MASTER_PORT", port.to_string().into()),
            ("TCH_CHECKPOINT_TOKEN", notes.into()),
            ("TCH_CHECKPOINT_DEADLINE_MS", self.deadline_ms.to_string().into()),
        ];
        all.extend(self.keep.map(|keep| ("WORLD_KEEP", keep.to_string().into())));
        all.extend(self.beside.then(|| ("WORLD_BESIDE", "1".into())));
        all.extend(self.cached.then(|| ("WORLD_CACHED", "1".into())));
        all.extend(self.go_on.then(|| ("WORLD_GO_ON", "1".into())));
        all
    }
}

/// The program that plays a rank, and its arguments.
pub fn program() -> Vec<OsString> {
    let this = std::env::current_exe().unwrap().into_os_string();
    let arguments = ["--exact", "program::rank", "--ignored", "--nocapture", "--test-threads=1"];
    std::iter::once(this).chain(arguments.map(OsString::from)).collect()
}

/// Below the ports that the system gives to outgoing connections.
fn free_port(random: &mut Random) -> u16 {
    loop {
        let port = 20_000 + random.below(12_000) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// A job that was started; what is left of it is killed when it is dropped.
pub struct Job {
    notes: TempDir,
    processes: Vec<Child>,
    ranks: u32,
}

impl Job {
    /// Starts every rank, by the command that `wrap` makes of the program and its arguments.
    pub fn start(
        plan: &Plan,
        random: &mut Random,
        wrap: impl Fn(u32, Vec<OsString>) -> Command,
    ) -> Self {
        let (notes, port) = (tempfile::tempdir().unwrap(), free_port(random));
        let variables = plan.variables(notes.path(), port);
        let start = |rank: u32| {
            let mut command = wrap(rank, program());
            command.envs(variables.iter().cloned());
            command.env("RANK", rank.to_string()).env("LOCAL_RANK", rank.to_string());
            Self::quiet(&mut command, notes.path()).spawn().unwrap()
        };
        let processes = (0..plan.ranks).map(start).collect();
        Self { notes, processes, ranks: plan.ranks }
    }

    /// Starts one process that is to start the ranks.
    pub fn launch(plan: &Plan, random: &mut Random, mut launcher: Command) -> Self {
        let (notes, port) = (tempfile::tempdir().unwrap(), free_port(random));
        launcher.envs(plan.variables(notes.path(), port));
        launcher.process_group(0);
        let processes = vec![Self::quiet(&mut launcher, notes.path()).spawn().unwrap()];
        Self { notes, processes, ranks: plan.ranks }
    }

    fn quiet<'c>(command: &'c mut Command, notes: &Path) -> &'c mut Command {
        let log = std::fs::OpenOptions::new().create(true).append(true).open(notes.join("log"));
        let log = log.unwrap();
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        command.env_remove("RUST_BACKTRACE").env_remove("TCH_CHECKPOINT_SABOTAGE")
    }

    pub fn notes(&self) -> Notes {
        let read = |rank| self.read(&format!("rank-{rank}"));
        Notes((0..self.ranks).map(|rank| Note::all(&read(rank))).collect())
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.notes.path().join(name)).unwrap_or_default()
    }

    /// Everything that the processes have said.
    pub fn said(&self) -> String {
        format!("{:?}\n{}", self.notes(), self.read("log"))
    }

    /// Waits until rank 0 has committed so many saves.
    pub fn wait_for_commits(&self, count: usize) {
        let there = || self.notes().committed(0).len() >= count;
        assert!(within(HANG, there), "no {count} commits: {}", self.said());
    }

    /// Every process that writes to the notes of this job, zombies aside, launchers too.
    pub fn pids(&self) -> Vec<Pid> {
        let wanted = format!("WORLD_NOTES={}", self.notes.path().display());
        let is_ours = |pid: &str| {
            let read = |name| std::fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
            let stat = String::from_utf8_lossy(&read("stat")).into_owned();
            let state = stat.rsplit(") ").next().unwrap_or_default().to_owned();
            !state.starts_with(['Z', 'X'])
                && read("environ").split(|b| *b == 0).any(|v| v == wanted.as_bytes())
        };
        let names = std::fs::read_dir("/proc").unwrap().flatten();
        let names = names.filter_map(|entry| entry.file_name().into_string().ok());
        let pids = names.filter(|name| name.parse::<i32>().is_ok() && is_ours(name));
        pids.filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect()
    }

    pub fn signal_all(&self, signal: Signal) {
        for pid in self.pids() {
            let _ = kill_process(pid, signal);
        }
    }

    /// Kills the launcher alone.
    pub fn kill_launcher(&mut self) {
        let launcher = self.processes.first_mut().unwrap();
        launcher.kill().unwrap();
        launcher.wait().unwrap();
    }

    pub fn signal_rank(&self, rank: usize, signal: Signal) {
        kill_process(Pid::from_child(&self.processes[rank]), signal).unwrap();
    }

    /// Waits for the end of all processes, also those that somebody else has started.
    pub fn end(mut self) -> Notes {
        let mut over = || {
            let children = self.processes.iter_mut();
            children.map(|child| child.try_wait().unwrap()).all(|ended| ended.is_some())
        };
        let ended = within(HANG, &mut over) && within(HANG, || self.pids().is_empty());
        assert!(ended, "{:?} go on: {}", self.pids(), self.said());
        let said = self.said();
        assert!(!said.contains("panicked") && !said.contains("PANICKED"), "{said}");
        self.notes()
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.signal_all(Signal::KILL);
        for child in &mut self.processes {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A line that a rank has written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    pub at: u64,
    pub word: String,
    pub rest: String,
}

impl Note {
    fn all(text: &str) -> Vec<Self> {
        let note = |line: &str| {
            let (at, rest) = line.split_once(' ')?;
            let (word, rest) = rest.split_once(' ').unwrap_or((rest, ""));
            Some(Self { at: at.parse().ok()?, word: word.to_owned(), rest: rest.to_owned() })
        };
        text.lines().filter_map(note).collect()
    }
}

/// What all ranks of a job have written, by rank.
#[derive(Debug)]
pub struct Notes(pub Vec<Vec<Note>>);

impl Notes {
    pub fn find(&self, rank: usize, word: &str) -> Option<&Note> {
        self.0[rank].iter().find(|note| note.word == word)
    }

    /// Kind and text of the error with which a rank ended.
    pub fn failed(&self, rank: usize) -> Option<(String, String)> {
        let (kind, text) = self.find(rank, "FAILED")?.rest.split_once(' ')?;
        Some((kind.to_owned(), text.to_owned()))
    }

    /// What became of a step: `COMMITTED <step> <id>`, or `REFUSED <step> <error>`.
    pub fn outcome(&self, rank: usize, step: u64) -> String {
        let is_outcome = |note: &&Note| {
            ["COMMITTED", "REFUSED"].contains(&note.word.as_str())
                && note.rest.split(' ').next() == Some(step.to_string().as_str())
        };
        let note = self.0[rank].iter().find(is_outcome);
        note.map(|note| format!("{} {}", note.word, note.rest)).unwrap_or_default()
    }

    /// Steps and ids of what this rank calls committed.
    pub fn committed(&self, rank: usize) -> Vec<(u64, String)> {
        let parse = |note: &Note| {
            let (step, id) = note.rest.split_once(' ')?;
            Some((step.parse().ok()?, id.to_owned()))
        };
        self.0[rank].iter().filter(|note| note.word == "COMMITTED").filter_map(parse).collect()
    }
}

/// The program as it is.
pub fn plainly(arguments: Vec<OsString>) -> Command {
    let mut arguments = arguments.into_iter();
    let mut command = Command::new(arguments.next().unwrap());
    command.args(arguments);
    command
}

/// The program behind others.
pub fn behind(front: &[&str], arguments: Vec<OsString>) -> Command {
    let mut command = crate::tier::program(front[0]);
    command.args(&front[1..]).args(arguments);
    command
}
