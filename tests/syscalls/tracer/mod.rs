//! Runs a program and stops it before and after each of its system calls, to count, fail, shorten
//! or deny the one that is wanted, or to kill the process there.
//!
//! strace counts the calls of each thread by themselves, so that what fails in one thread hides
//! what would have failed in another. Here a call is chosen by what it does and to which file.

mod call;
mod ptrace;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

pub use call::{Call, STDOUT};
use ptrace::{Register, Side, Stop};

/// No program here may take longer; far more than any deadline inside it.
const HANG: Duration = Duration::from_secs(90);

/// What becomes of a call that is about to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    Pass,
    /// It is not carried out and gives this error.
    Fail(i32),
    /// It is carried out and gives this error nevertheless.
    LoseAnswer(i32),
    /// It is carried out for so many bytes only.
    Shorten(u64),
    /// It is not carried out and claims to have taken so many bytes.
    Pretend(i64),
    /// The process is killed before the kernel does anything.
    Kill,
}

/// What a program did, and how it ended.
#[derive(Debug)]
pub struct Run {
    pub calls: Vec<Call>,
    /// `None`: killed by a signal.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    pub hung: bool,
    pub took: Duration,
}

/// Runs `command`; `decide` is asked about each call on something below `dir`.
pub fn run(mut command: Command, dir: &Path, decide: &mut dyn FnMut(&Call) -> Act) -> Run {
    let (out, err) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    command.stdin(Stdio::null()).stdout(out.try_clone().unwrap()).stderr(err.try_clone().unwrap());
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    ptrace::follow(&mut command);
    let begun = Instant::now();
    let child = command.spawn().unwrap();
    let root = Pid::from_child(&child);
    // `ptrace::wait` collects it with all the others.
    std::mem::forget(child);
    let (done, hung) = watch(root);
    let mut tracer = Tracer::new(dir, root.as_raw_nonzero().get(), decide);
    let code = tracer.follow();
    let took = begun.elapsed();
    drop(done);
    Run {
        calls: tracer.calls,
        code,
        stdout: content(out),
        stderr: content(err),
        hung: hung.recv().unwrap(),
        took,
    }
}

/// Kills the group of `root` after a while; whether it had to is told once `done` is dropped.
fn watch(root: Pid) -> (mpsc::Sender<()>, mpsc::Receiver<bool>) {
    let (done, is_done) = mpsc::channel::<()>();
    let (sender, hung) = mpsc::channel();
    std::thread::spawn(move || {
        let has_hung = is_done.recv_timeout(HANG) == Err(RecvTimeoutError::Timeout);
        if has_hung {
            let _ = kill_process_group(root, Signal::KILL);
        }
        let _ = sender.send(has_hung);
    });
    (done, hung)
}

fn content(mut file: File) -> String {
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    text
}

struct Tracer<'a> {
    dir: PathBuf,
    root: i32,
    decide: &'a mut dyn FnMut(&Call) -> Act,
    calls: Vec<Call>,
    counts: BTreeMap<String, usize>,
    sides: usize,
    /// Threads that have been seen, and in which process.
    threads: BTreeMap<i32, i32>,
    processes: Vec<i32>,
    /// Calls between their sides, by thread.
    open: BTreeMap<i32, (usize, Act)>,
}

impl<'a> Tracer<'a> {
    fn new(dir: &Path, root: i32, decide: &'a mut dyn FnMut(&Call) -> Act) -> Self {
        Self {
            dir: dir.canonicalize().unwrap(),
            root,
            decide,
            calls: Vec::new(),
            counts: BTreeMap::new(),
            sides: 0,
            threads: BTreeMap::new(),
            processes: Vec::new(),
            open: BTreeMap::new(),
        }
    }

    /// Until nothing is left to be followed; the exit code of the first process.
    fn follow(&mut self) -> Option<i32> {
        let mut code = None;
        while let Some((tid, stop)) = ptrace::wait() {
            let is_new = !self.threads.contains_key(&tid);
            match stop {
                Stop::Ended(how) => {
                    if tid == self.root {
                        code = how;
                    }
                    self.threads.remove(&tid);
                    continue;
                }
                _ if is_new => self.welcome(tid),
                _ => {}
            }
            let signal = match stop {
                Stop::Call => {
                    self.sides += 1;
                    self.side(tid);
                    0
                }
                // A thread begins with a stop that is ours, a program with a trap.
                Stop::Signal(libc::SIGTRAP) => 0,
                Stop::Signal(libc::SIGSTOP) if is_new => 0,
                Stop::Signal(signal) => signal,
                Stop::Event | Stop::Ended(_) => 0,
            };
            ptrace::resume(tid, signal);
        }
        code
    }

    fn welcome(&mut self, tid: i32) {
        if tid == self.root {
            ptrace::follow_children(tid);
        }
        let process = process_of(tid).unwrap_or(tid);
        self.threads.insert(tid, process);
        if !self.processes.contains(&process) {
            self.processes.push(process);
        }
    }

    fn side(&mut self, tid: i32) {
        match ptrace::side(tid) {
            Some(Side::Entry { number, arguments }) => {
                if let Some(call) = call::read(tid, number, arguments, &self.dir) {
                    self.begin(tid, call);
                }
            }
            Some(Side::Exit { result }) => {
                if let Some((index, act)) = self.open.remove(&tid) {
                    self.end(tid, index, act, result);
                }
            }
            None => {}
        }
    }

    fn begin(&mut self, tid: i32, mut call: Call) {
        let process = self.threads.get(&tid).copied().unwrap_or(tid);
        call.process = self.processes.iter().position(|p| *p == process).unwrap_or_default();
        call.begun = self.sides;
        let count = self.counts.entry(call.label()).or_default();
        call.nth = *count;
        *count += 1;
        let act = (self.decide)(&call);
        call.injected = act != Act::Pass;
        match act {
            Act::Pass | Act::LoseAnswer(_) => {}
            Act::Shorten(len) => {
                ptrace::set(tid, Register::Third, i64::try_from(len).unwrap());
            }
            Act::Fail(_) | Act::Pretend(_) => ptrace::set(tid, Register::Number, -1),
            Act::Kill => {
                ptrace::set(tid, Register::Number, -1);
                let _ = kill_process(Pid::from_raw(process).unwrap(), Signal::KILL);
            }
        }
        self.open.insert(tid, (self.calls.len(), act));
        self.calls.push(call);
    }

    fn end(&mut self, tid: i32, index: usize, act: Act, result: i64) {
        let result = match act {
            Act::Fail(errno) | Act::LoseAnswer(errno) => -i64::from(errno),
            Act::Pretend(count) => count,
            Act::Pass | Act::Shorten(_) | Act::Kill => result,
        };
        if matches!(act, Act::Fail(_) | Act::LoseAnswer(_) | Act::Pretend(_)) {
            ptrace::set(tid, Register::Result, result);
        }
        self.calls[index].ended = Some(self.sides);
        self.calls[index].result = Some(result);
    }
}

fn process_of(tid: i32) -> Option<i32> {
    let status = std::fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Tgid:")?.trim().parse().ok())
}
