//! What is there after a crash, held against what was acknowledged before it.

use std::path::{Path, PathBuf};

use crate::command::{Ack, tch_checkpoint};

/// What must never be seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// A visible checkpoint is damaged.
    Torn(String),
    /// An acknowledged checkpoint that no rule has removed is not there.
    Lost(String),
}

/// Looks at a directory of checkpoints of which the newest `keep` stay. `acked` is everything that
/// was acknowledged before the crash, oldest first; more may be there.
pub fn judge(dir: &Path, acked: &[Ack], keep: u64) -> Vec<Fault> {
    let output = tch_checkpoint().args(["verify", "--all", "--dir"]).arg(dir).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let visible = visible(dir);
    let mut faults = Vec::new();
    if output.status.code() != Some(0) {
        let errors = String::from_utf8_lossy(&output.stderr);
        faults.push(Fault::Torn(format!("{}: {said}{errors}", output.status)));
    }
    let newest = newest(&said);
    let lost = |what: &str| Fault::Lost(format!("{what}; visible {visible:?}, acked {acked:?}"));
    match (&newest, acked.last()) {
        (Some(found), Some(last)) if found.step == last.step && found != last => {
            faults.push(lost(&format!("the newest is another save, {found:?}")));
        }
        (Some(found), Some(last)) if found.step >= last.step => {}
        (_, None) => {}
        (found, Some(_)) => faults.push(lost(&format!("the newest good one is {found:?}"))),
    }
    let oldest_kept = newest.map_or(0, |newest| (newest.step + 1).saturating_sub(keep));
    for ack in acked.iter().filter(|ack| ack.step >= oldest_kept) {
        if !visible.contains(&ack.step) {
            faults.push(lost(&format!("step {} is gone", ack.step)));
        }
    }
    faults
}

/// `LATEST <step> <save id>`, the last line; nothing for `LATEST none`.
fn newest(said: &str) -> Option<Ack> {
    let line = said.lines().rev().find_map(|line| line.strip_prefix("LATEST "));
    let (step, save_id) = line?.split_once(' ')?;
    Some(Ack { step: step.parse().unwrap(), save_id: save_id.to_owned() })
}

/// Steps of which there is a name.
pub fn visible(dir: &Path) -> Vec<u64> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut steps: Vec<u64> =
        names.filter_map(|name| name.strip_prefix("step-")?.parse().ok()).collect();
    steps.sort_unstable();
    steps
}

/// The directory of a save that is going on.
pub fn attempt(dir: &Path) -> Option<PathBuf> {
    let mut entries = std::fs::read_dir(dir).ok()?.filter_map(Result::ok);
    let is_attempt = |name: &str| name.starts_with('.') && name.ends_with(".partial");
    let found = entries.find(|entry| entry.file_name().to_str().is_some_and(is_attempt))?;
    Some(found.path())
}
