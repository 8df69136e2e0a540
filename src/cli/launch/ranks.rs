//! One rank: a process that leads a group of its own, so that its children can be ended too.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, waitid,
};

use crate::cli::child::end_with_us;
use crate::error::{Error, Result};

/// What is started, as often as there are ranks.
pub(super) struct Program {
    pub(super) path: PathBuf,
    pub(super) arguments: Vec<OsString>,
    pub(super) ranks: u32,
    pub(super) max_restarts: u32,
    pub(super) token: String,
}

/// A process of the job. It is waited for only once nobody of its group is left, so that the number
/// of the group means no other one meanwhile.
pub(super) struct RankProcess {
    pub(super) rank: u32,
    pid: Pid,
    child: Child,
    has_ended: bool,
}

impl Program {
    /// Starts one rank.
    ///
    /// # Errors
    /// [`Storage`](crate::ErrorKind::Storage) if it cannot be started.
    pub(super) fn start(&self, rank: u32, restart: u32, port: u16) -> Result<RankProcess> {
        let mut command = Command::new(&self.path);
        command.args(&self.arguments).stdin(Stdio::null()).process_group(0);
        for (name, value) in [
            ("RANK", rank),
            ("LOCAL_RANK", rank),
            ("ROLE_RANK", rank),
            ("GROUP_RANK", 0),
            ("WORLD_SIZE", self.ranks),
            ("LOCAL_WORLD_SIZE", self.ranks),
            ("ROLE_WORLD_SIZE", self.ranks),
            ("GROUP_WORLD_SIZE", 1),
            ("MASTER_PORT", u32::from(port)),
            ("TORCHELASTIC_RESTART_COUNT", restart),
            ("TORCHELASTIC_MAX_RESTARTS", self.max_restarts),
        ] {
            command.env(name, value.to_string());
        }
        command.env("MASTER_ADDR", "127.0.0.1").env("ROLE_NAME", "default");
        command.env("TCH_CHECKPOINT_TOKEN", &self.token);
        if std::env::var_os("OMP_NUM_THREADS").is_none_or(|threads| threads.is_empty()) {
            command.env("OMP_NUM_THREADS", "1");
        }
        // Of a torchrun further up, which does not know these ranks.
        command.env_remove("TORCHELASTIC_USE_AGENT_STORE").env_remove("TORCHELASTIC_RUN_ID");
        // Ranks that outlived a launcher which was killed would go on saving beside the next job. It
        // starts them from its only thread that lives as long as it does.
        end_with_us(&mut command);
        let child = command.spawn().map_err(|e| Error::io(&e, "starting", &self.path))?;
        let pid = Pid::from_child(&child);
        Ok(RankProcess { rank, pid, child, has_ended: false })
    }
}

impl RankProcess {
    /// The number of its group.
    pub(super) fn group(&self) -> Pid {
        self.pid
    }

    /// Whether it has not been found ended yet.
    pub(super) fn is_running(&self) -> bool {
        !self.has_ended
    }

    /// Its exit code, 128 + n for signal n, when it is found ended for the first time.
    pub(super) fn newly_ended(&mut self) -> Option<u8> {
        if self.has_ended {
            return None;
        }
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        let status = match waitid(WaitId::Pid(self.pid), options) {
            Ok(None) | Err(rustix::io::Errno::INTR) => return None,
            Ok(status) => status,
            Err(_) => None,
        };
        self.has_ended = true;
        let code = status.map_or(1, |status| match status.exit_status() {
            Some(code) => code,
            None => 128 + status.terminating_signal().unwrap_or(0),
        });
        Some(u8::try_from(code).unwrap_or(u8::MAX))
    }

    /// To it alone.
    pub(super) fn signal(&self, signal: Signal) {
        if !self.has_ended {
            let _ = kill_process(self.pid, signal);
        }
    }

    /// To it and its children.
    pub(super) fn signal_group(&self, signal: Signal) {
        let _ = kill_process_group(self.pid, signal);
    }

    /// Nobody of its group is known to be left: gives its number back.
    pub(super) fn reap(mut self) {
        if self.has_ended {
            // One that was just being made has not been seen, nor has any where `/proc` is missing.
            self.signal_group(Signal::KILL);
            drop(self.child.wait());
        }
    }
}
