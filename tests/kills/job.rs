//! A `stress loop` that runs, and what it has acknowledged.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// Nothing here may take longer.
const HANG: Duration = Duration::from_secs(60);

fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tch-checkpoint"));
    command.env("NO_COLOR", "1").stdin(Stdio::null());
    command
}

/// Runs the command to its end, as it is: a defect that the tests are to find is one of jobs, not
/// of those who look. The deadline is that of the command itself.
pub fn run(dir: &Path, arguments: &[&str]) -> Output {
    let mut command = command();
    command.env_remove("TCH_CHECKPOINT_SABOTAGE").args(arguments).arg("--dir").arg(dir);
    command.output().unwrap()
}

/// One save that was called durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ack {
    pub step: u64,
    pub save_id: String,
}

impl Ack {
    /// What a line beginning with `word` says; a line that was cut is none.
    pub fn parse(line: &str, word: &str) -> Option<Self> {
        let (step, id) = line.strip_suffix('\n')?.strip_prefix(word)?.trim().split_once(' ')?;
        Some(Self { step: step.parse().ok()?, save_id: id.to_owned() })
    }
}

/// A process and those that it has started.
pub struct Job {
    child: Child,
    /// Who keeps what was acknowledged; ends with the last process that could acknowledge.
    acks: Option<JoinHandle<Vec<Ack>>>,
    said: Option<JoinHandle<String>>,
}

impl Job {
    pub fn start(dir: &Path, arguments: &[&str], told: impl Fn(&Ack) + Send + 'static) -> Self {
        let mut child = command()
            .args(["stress", "loop"])
            .arg("--dir")
            .arg(dir)
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut err = child.stderr.take().unwrap();
        let acks = std::thread::spawn(move || {
            let (mut acks, mut line) = (Vec::new(), String::new());
            while out.read_line(&mut line).is_ok_and(|read| read > 0) {
                if let Some(ack) = Ack::parse(&line, "COMMITTED") {
                    told(&ack);
                    acks.push(ack);
                }
                line.clear();
            }
            acks
        });
        let said = std::thread::spawn(move || {
            let mut said = Vec::new();
            let _ = err.read_to_end(&mut said);
            String::from_utf8_lossy(&said).into_owned()
        });
        Self { child, acks: Some(acks), said: Some(said) }
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Kills all of it at once; what it had acknowledged, and what it had to say.
    pub fn kill(mut self) -> (Vec<Ack>, String) {
        kill_process_group(self.pid(), Signal::KILL).unwrap();
        let _ = self.wait();
        self.last_words()
    }

    /// Waits for an end that it finds by itself.
    pub fn end(mut self) -> (ExitStatus, Vec<Ack>, String) {
        let status = self.wait();
        let (acks, said) = self.last_words();
        (status, acks, said)
    }

    fn wait(&mut self) -> ExitStatus {
        let until = Instant::now() + HANG;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < until, "the job hangs");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn last_words(&mut self) -> (Vec<Ack>, String) {
        (self.acks.take().unwrap().join().unwrap(), self.said.take().unwrap().join().unwrap())
    }

    /// Kills one of the ranks that it has started; whether it was there.
    pub fn kill_rank(&self, rank: u32) -> bool {
        let pid = self.child.id();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let seat = format!("TCH_CHECKPOINT_STRESS_RANK={rank}:");
        for child in children.unwrap_or_default().split_whitespace() {
            let environment = std::fs::read(format!("/proc/{child}/environ")).unwrap_or_default();
            let mut variables = environment.split(|byte| *byte == 0);
            if variables.any(|variable| variable.starts_with(seat.as_bytes())) {
                let pid = Pid::from_raw(child.parse().unwrap()).unwrap();
                return kill_process(pid, Signal::KILL).is_ok();
            }
        }
        false
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = kill_process_group(self.pid(), Signal::KILL);
            let _ = self.child.wait();
        }
    }
}
