//! What this process is told by signals, and a pause that any of them ends.

use std::io::{ErrorKind as IoKind, Read};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1};

use crate::error::{Error, Result};

/// What is passed on, and by which signals; the last are those that only end a pause.
const HEARD: [(Option<Signal>, &[i32]); 4] = [
    (Some(Signal::USR1), &[SIGUSR1]),
    (Some(Signal::TERM), &[SIGTERM, SIGHUP, SIGQUIT]),
    (Some(Signal::INT), &[SIGINT]),
    (None, &[SIGCHLD]),
];

/// The signals that whoever started this process has it ignore, as `nohup` does, and a shell
/// without job control in front of `&`: a bit for each, by the kernel.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// Ends of ranks are heard of in any case.
fn is_in(ignored: u64, signal: i32) -> bool {
    let bit = u32::try_from(signal - 1).ok().and_then(|number| 1_u64.checked_shl(number));
    signal != SIGCHLD && bit.is_some_and(|bit| ignored & bit != 0)
}

/// A byte for each signal, by kind.
pub(super) struct Signals(Vec<(Option<Signal>, UnixStream)>);

impl Signals {
    /// # Errors
    /// [`Storage`](crate::ErrorKind::Storage) where the system has no descriptors left.
    pub(super) fn install() -> Result<Self> {
        let failed = |e| Error::io(&e, "listening for signals", "".as_ref());
        let mut heard = Vec::new();
        let ignored = ignored();
        for (meaning, signals) in HEARD {
            let (near, far) = UnixStream::pair().map_err(failed)?;
            near.set_nonblocking(true).map_err(failed)?;
            for signal in signals.iter().filter(|signal| !is_in(ignored, **signal)) {
                let far = far.try_clone().map_err(failed)?;
                signal_hook::low_level::pipe::register(*signal, far).map_err(failed)?;
            }
            heard.push((meaning, near));
        }
        Ok(Self(heard))
    }

    /// What has come since the last call, those first that are no end.
    pub(super) fn take(&mut self) -> Vec<Signal> {
        let mut taken = Vec::new();
        for (meaning, stream) in &mut self.0 {
            let mut bytes = [0; 64];
            let count = loop {
                match stream.read(&mut bytes) {
                    Err(e) if e.kind() == IoKind::Interrupted => {}
                    read => break read.unwrap_or(0),
                }
            };
            taken.extend(meaning.iter().cycle().take(count).copied());
        }
        taken
    }

    /// Until a signal comes, and at most so long.
    pub(super) fn pause(&self, time: Duration) {
        let mut fds: Vec<PollFd<'_>> =
            self.0.iter().map(|(_, stream)| PollFd::new(stream, PollFlags::IN)).collect();
        let most = Timespec::try_from(time).ok();
        // Interrupted by a signal: which is what it waits for.
        let _ = poll(&mut fds, most.as_ref());
    }
}
