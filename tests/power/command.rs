//! The command `tch-checkpoint`, and processes that say what they have committed.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::tier;

/// Longest wait for an acknowledgement or an end.
const HUNG: Duration = Duration::from_secs(30);
/// How a process ends that panicked, aborted or ran into invalid memory.
const NEVER: &[i32] = &[101, 134, 139];

/// A save that its process called durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack {
    pub step: u64,
    pub save_id: String,
}

impl Ack {
    /// `COMMITTED <step> <save id>`
    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split("COMMITTED ").nth(1)?.split_whitespace();
        Some(Self { step: words.next()?.parse().ok()?, save_id: words.next()?.to_owned() })
    }
}

pub fn tch_checkpoint() -> Command {
    Command::new(env!("CARGO_BIN_EXE_tch-checkpoint"))
}

/// What a saving process does.
#[derive(Debug, Clone, Copy)]
pub struct Work {
    pub ranks: u64,
    pub bytes: u64,
    pub keep: u64,
}

impl Work {
    /// Saves on and on from the newest checkpoint's step + 1.
    pub fn forever(self, dir: &Path) -> Command {
        let mut command = tch_checkpoint();
        command.args(["stress", "loop", "--dir"]).arg(dir);
        self.arguments(&mut command);
        command
    }

    /// Saves one checkpoint.
    pub fn once(self, dir: &Path, step: u64) -> Command {
        let mut command = tch_checkpoint();
        command.args(["stress", "save", "--step", &step.to_string(), "--dir"]).arg(dir);
        self.arguments(&mut command);
        command
    }

    fn arguments(self, command: &mut Command) {
        command.args(["--ranks", &self.ranks.to_string(), "--bytes", &self.bytes.to_string()]);
        command.args(["--keep", &self.keep.to_string(), "--deadline-ms", "10000"]);
    }
}

/// The same command with these system calls made to do something else, in the words of `strace`.
pub fn injected(command: Command, calls: &str, what: &str) -> Command {
    let mut strace = tier::program("strace");
    strace.args(["-f", "-qq", "--seccomp-bpf", "-o", "/dev/null"]);
    strace.args(["-e", &format!("trace={calls}"), "-e", &format!("inject={calls}:{what}")]);
    around(strace, &command)
}

/// `command` as an argument of the program `outer`.
pub fn around(mut outer: Command, command: &Command) -> Command {
    outer.arg(command.get_program()).args(command.get_args());
    outer.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    outer
}

/// No fsync is carried out.
pub fn without_fsync(command: Command) -> Command {
    injected(command, "fsync,fdatasync,sync_file_range,syncfs", "retval=0")
}

/// Long pauses before everything that makes something durable or visible: what is not safe in
/// between is seen to be so.
pub fn slowed(command: Command) -> Command {
    injected(command, "fsync,renameat,renameat2", "delay_enter=5000")
}

/// A process that saves; killed, with all that it started, when dropped.
pub struct Saver {
    child: Child,
    acks: Arc<Acks>,
    reader: Option<JoinHandle<()>>,
    errors: PathBuf,
}

#[derive(Default)]
struct Acks {
    heard: Mutex<Heard>,
    changed: Condvar,
}

#[derive(Default)]
struct Heard {
    acks: Vec<Ack>,
    ended: bool,
}

impl Saver {
    /// Starts `command`; what it says of errors goes to a file in `scratch`. `at_ack` is called as
    /// soon as an acknowledgement is heard.
    pub fn start(
        mut command: Command,
        scratch: &Path,
        mut at_ack: impl FnMut(&Ack) + Send + 'static,
    ) -> Self {
        let errors = scratch.join("errors");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).process_group(0);
        let mut child = command.stderr(File::create(&errors).unwrap()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let acks = Arc::new(Acks::default());
        let heard = acks.clone();
        let reader = std::thread::spawn(move || {
            for ack in lines.map_while(Result::ok).filter_map(|line| Ack::parse(&line)) {
                at_ack(&ack);
                heard.heard.lock().unwrap().acks.push(ack);
                heard.changed.notify_all();
            }
            heard.heard.lock().unwrap().ended = true;
            heard.changed.notify_all();
        });
        Self { child, acks, reader: Some(reader), errors }
    }

    /// Waits until `count` saves are acknowledged.
    ///
    /// # Panics
    /// If the process ends before, or hangs.
    pub fn wait_for_acks(&self, count: usize) {
        let heard = self.acks.heard.lock().unwrap();
        let waiting = |h: &mut Heard| h.acks.len() < count && !h.ended;
        let (heard, late) = self.acks.changed.wait_timeout_while(heard, HUNG, waiting).unwrap();
        let said = || std::fs::read_to_string(&self.errors).unwrap_or_default();
        assert!(!late.timed_out(), "no save is acknowledged: {}", said());
        assert!(heard.acks.len() >= count, "the saving process ended: {}", said());
    }

    /// What is acknowledged so far.
    pub fn acks(&self) -> Vec<Ack> {
        self.acks.heard.lock().unwrap().acks.clone()
    }

    /// Waits for the process to end; its code (`None`: a signal), all acknowledgements, and what it
    /// said of errors.
    ///
    /// # Panics
    /// If it hangs, or ends in a way that is never right.
    pub fn end(mut self) -> (Option<i32>, Vec<Ack>, String) {
        let until = Instant::now() + HUNG;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            let said = || std::fs::read_to_string(&self.errors).unwrap_or_default();
            assert!(Instant::now() < until, "the saving process hangs: {}", said());
            std::thread::sleep(Duration::from_millis(1));
        };
        self.reader.take().unwrap().join().unwrap();
        let errors = std::fs::read_to_string(&self.errors).unwrap_or_default();
        let code = status.code();
        assert!(!NEVER.contains(&code.unwrap_or(101)), "ended with {status}: {errors}");
        (code, self.acks(), errors)
    }
}

impl Drop for Saver {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let group = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
            let _ = kill_process_group(group.unwrap(), Signal::KILL);
            drop(self.child.wait());
        }
    }
}
