//! Two ranks as processes: started, watched, killed.

use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use tch_checkpoint::ProcessGroup;

const DIRECTORY: &str = "PROGRESSIVE_DIRECTORY";
const STOP_AT: &str = "PROGRESSIVE_STOP_AT";
/// A hang is a failure.
const LIMIT: Duration = Duration::from_secs(280);

/// Whether this process was started as a rank.
pub(crate) fn is_rank() -> bool {
    std::env::var_os(DIRECTORY).is_some()
}

pub(crate) fn directory() -> PathBuf {
    std::env::var_os(DIRECTORY).map(PathBuf::from).unwrap_or_default()
}

pub(crate) fn stop_at() -> Option<u64> {
    std::env::var(STOP_AT).ok()?.parse().ok()
}

/// Runs both ranks to their end, or to a step in which they are killed; whether they ended well.
pub(crate) fn run(directory: &Path, kill_at: Option<u64>) -> std::io::Result<bool> {
    std::fs::create_dir_all(directory)?;
    let marks = [0, 1].map(|rank| directory.join(format!("waits-{rank}")));
    for mark in &marks {
        let _ = std::fs::remove_file(mark);
    }
    // A port that is free now.
    let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let start = |rank: u32| -> std::io::Result<Child> {
        let mut command = Command::new(std::env::current_exe()?);
        let number = rank.to_string();
        let variables = [("RANK", &*number), ("LOCAL_RANK", &number), ("WORLD_SIZE", "2")];
        command
            .envs(variables)
            .env("MASTER_ADDR", "127.0.0.1")
            .env("MASTER_PORT", port.to_string());
        command.env(DIRECTORY, directory).env("OMP_NUM_THREADS", "1");
        if let Some(step) = kill_at {
            command.env(STOP_AT, step.to_string());
        }
        command.spawn()
    };
    let mut ranks = [start(0)?, start(1)?];
    let begun = Instant::now();
    loop {
        let mut ended = Vec::new();
        for rank in &mut ranks {
            ended.push(rank.try_wait()?);
        }
        if ended.iter().all(Option::is_some) {
            return Ok(ended.iter().flatten().all(std::process::ExitStatus::success));
        }
        let are_waiting = marks.iter().all(|mark| mark.exists());
        if are_waiting || begun.elapsed() > LIMIT {
            for rank in &mut ranks {
                rank.kill()?;
                rank.wait()?;
            }
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Tells that this rank has come so far, and does nothing more.
pub(crate) fn wait_to_be_killed() -> ! {
    let rank = std::env::var("RANK").unwrap_or_default();
    let _ = std::fs::write(directory().join(format!("waits-{rank}")), "");
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Losses that were measured before this process was started.
pub(crate) fn validation_so_far() -> Vec<f64> {
    let text = std::fs::read_to_string(directory().join("validation.json"));
    text.ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
}

pub(crate) fn keep_validation(group: &ProcessGroup, losses: &[f64]) {
    if group.is_coordinator()
        && let Ok(text) = serde_json::to_string(losses)
    {
        let _ = std::fs::write(directory().join("validation.json"), text);
    }
}
