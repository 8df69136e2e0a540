//! Processes that carry a mark in their environment, as everything does that a job starts.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use rustix::process::Pid;

/// Every live process whose variable `name` is `value`, a directory of the job's own. (A process
/// that waits to be asked for its exit code has no environment any more.)
pub fn left_over(name: &str, value: &Path) -> Vec<Pid> {
    let mark = format!("{name}={}", value.display());
    let is_marked = |pid: &str| {
        let mut environment = Vec::new();
        File::open(format!("/proc/{pid}/environ"))
            .and_then(|mut file| file.read_to_end(&mut environment))
            .is_ok_and(|_| environment.split(|b| *b == 0).any(|v| v == mark.as_bytes()))
    };
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let names = processes.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|pid| is_marked(pid)).filter_map(|pid| Pid::from_raw(pid.parse().ok()?)).collect()
}
