//! Looks that may take long, or for ever, and what they are cut off at.

use std::io::{ErrorKind as IoKind, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use super::child::end_with_us;

/// How long a program or a name may take.
pub(super) const DEADLINE: Duration = Duration::from_secs(5);
/// How much longer starting and killing a program may take.
const KILLING: Duration = Duration::from_secs(2);
/// Between two looks whether a program has ended.
const PAUSE: Duration = Duration::from_millis(5);
/// Most bytes of what a program says.
const SAID_MAX: u64 = 64 << 10;

/// What `look` finds, if it comes in time; else it goes on until the process ends.
pub(super) fn within<T: Send + 'static>(
    deadline: Duration,
    look: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    told_within(deadline, move |tell| tell(look())).0.pop()
}

/// What `look` tells until the deadline, and whether that is all.
pub(super) fn told_within<T: Send + 'static>(
    deadline: Duration,
    look: impl FnOnce(&mut dyn FnMut(T)) + Send + 'static,
) -> (Vec<T>, bool) {
    let (sender, told) = mpsc::channel();
    let until = Instant::now() + deadline;
    let looking = thread::Builder::new().name("look".to_owned());
    let mut all = Vec::new();
    if looking.spawn(move || look(&mut |one| drop(sender.send(one)))).is_err() {
        return (all, false);
    }
    loop {
        match told.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(one) => all.push(one),
            Err(end) => return (all, end == RecvTimeoutError::Disconnected),
        }
    }
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

/// Runs a program to its end, or to its deadline. Nothing that it has started is left.
pub(super) fn said(program: &'static str, arguments: &'static [&'static str]) -> Ran {
    // Its start takes as long as the file systems on which it is looked for.
    within(DEADLINE + KILLING, move || run(program, arguments)).unwrap_or(Ran::Late)
}

fn run(program: &str, arguments: &[&str]) -> Ran {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    command.process_group(0);
    end_with_us(&mut command);
    let mut child = match command.spawn() {
        Ok(child) => child,
        // The latter also where a directory of PATH may not be read.
        Err(e) if matches!(e.kind(), IoKind::NotFound | IoKind::PermissionDenied) => {
            return Ran::Missing;
        }
        Err(_) => return Ran::Failed,
    };
    let until = Instant::now() + DEADLINE;
    let heard = listen(&mut child);
    let has_ended = has_ended(Pid::from_child(&child), until);
    let left = until.saturating_duration_since(Instant::now()).max(PAUSE);
    let text = heard.and_then(|heard| heard.recv_timeout(left).ok());
    // Before it is waited for, since its number may mean another group after that.
    let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
    match (text, child.wait()) {
        (Some(bytes), Ok(status)) if has_ended && status.success() => {
            Ran::Said(String::from_utf8_lossy(&bytes).into_owned())
        }
        (Some(_), Ok(_)) if has_ended => Ran::Failed,
        _ => Ran::Late,
    }
}

/// What it writes, once nobody can write any more: a child of its own may never come to an end.
fn listen(child: &mut Child) -> Option<Receiver<Vec<u8>>> {
    let stdout = child.stdout.take()?;
    let (sender, heard) = mpsc::channel();
    let listening = thread::Builder::new().name("listen".to_owned());
    let listen = move || {
        let mut bytes = Vec::new();
        drop(stdout.take(SAID_MAX).read_to_end(&mut bytes));
        sender.send(bytes)
    };
    listening.spawn(listen).ok()?;
    Some(heard)
}

/// Whether it ends in time. It is not waited for.
fn has_ended(pid: Pid, until: Instant) -> bool {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    loop {
        match waitid(WaitId::Pid(pid), options) {
            Ok(Some(_)) => return true,
            Ok(None) | Err(rustix::io::Errno::INTR) if Instant::now() < until => {
                thread::sleep(PAUSE);
            }
            _ => return false,
        }
    }
}
