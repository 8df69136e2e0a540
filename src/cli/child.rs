//! Children that the kernel ends with this process.

use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::process::{Signal, getppid, set_parent_process_death_signal};

/// Has the kernel kill it when the thread that starts it ends, also if this process is killed.
#[allow(unsafe_code)]
pub(super) fn end_with_us(command: &mut Command) {
    let parent = rustix::process::getpid();
    let ask = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // It may have been killed before the kernel was asked.
        if getppid() == Some(parent) { Ok(()) } else { Err(rustix::io::Errno::SRCH.into()) }
    };
    // SAFETY: between fork and exec only two system calls are made; no memory is allocated, no lock
    // is taken.
    unsafe { command.pre_exec(ask) };
}
