//! Looks that may take long, or for ever, and what they are cut off at.

use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// How long a program or a name may take.
pub(super) const DEADLINE: Duration = Duration::from_secs(5);
/// Between two looks whether a program has ended.
const PAUSE: Duration = Duration::from_millis(5);
/// Most bytes of what a program says.
const SAID_MAX: u64 = 64 << 10;

/// What `look` finds, if it comes in time; else it goes on until the process ends.
pub(super) fn within<T: Send + 'static>(
    deadline: Duration,
    look: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (sender, found) = mpsc::channel();
    let looking = thread::Builder::new().name("look".to_owned());
    looking.spawn(move || sender.send(look())).ok()?;
    found.recv_timeout(deadline).ok()
}

/// What became of a program.
pub(super) enum Ran {
    /// What it said, if it succeeded.
    Said(String),
    Failed,
    /// It was killed.
    Late,
    Missing,
}

/// Runs a program to its end, or to its deadline.
pub(super) fn said(program: &str, arguments: &[&str]) -> Ran {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let Ok(mut child) = command.spawn() else { return Ran::Missing };
    let Some(stdout) = child.stdout.take() else { return Ran::Failed };
    let (sender, heard) = mpsc::channel();
    // A child of its own may hold its output open for ever.
    let listen = move || {
        let mut bytes = Vec::new();
        let read = stdout.take(SAID_MAX).read_to_end(&mut bytes);
        sender.send(read.map(|_| bytes))
    };
    if thread::Builder::new().name("listen".to_owned()).spawn(listen).is_err() {
        drop(child.kill());
        drop(child.wait());
        return Ran::Failed;
    }
    let until = Instant::now() + DEADLINE;
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if Instant::now() < until => thread::sleep(PAUSE),
            _ => {
                drop(child.kill());
                drop(child.wait());
                return Ran::Late;
            }
        }
    };
    let left = until.saturating_duration_since(Instant::now()).max(PAUSE);
    match heard.recv_timeout(left) {
        Ok(Ok(bytes)) if status.success() => {
            Ran::Said(String::from_utf8_lossy(&bytes).into_owned())
        }
        Ok(_) => Ran::Failed,
        Err(_) => Ran::Late,
    }
}
