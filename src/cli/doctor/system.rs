//! The clock, and what the system lets a process have.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::process::{Resource, getrlimit};

use super::Finding;

/// Before this, 2025-01-01, no machine has a right clock.
const EARLIEST_S: u64 = 1_735_689_600;
/// Fewer descriptors are too few for a rank 0 with many others.
const FILES_MIN: u64 = 1024;
/// Made by what sets the clock, once it is right.
const SYNCHRONIZED: &str = "/run/systemd/timesync/synchronized";

pub(super) fn clock() -> Vec<Finding> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    if now < EARLIEST_S {
        let fix = "set the clock (timedatectl set-ntp true): ages and names go by it";
        return vec![Finding::problem("clock", "it is years behind", fix)];
    }
    let known = if Path::new(SYNCHRONIZED).exists() { ", set by the network" } else { "" };
    vec![Finding::ok("clock", format!("plausible{known}"))]
}

pub(super) fn limits() -> Vec<Finding> {
    let shown =
        |limit: Option<u64>| limit.map_or("unlimited".to_owned(), |limit| limit.to_string());
    let files = getrlimit(Resource::Nofile);
    let core = getrlimit(Resource::Core).current;
    let said = format!(
        "{} open files (may be raised to {}), core files of {} bytes",
        shown(files.current),
        shown(files.maximum),
        shown(core)
    );
    if files.current.is_some_and(|files| files < FILES_MIN) {
        let how = if files.maximum.is_some_and(|files| files < FILES_MIN) {
            "raise the hard limit (limits.conf, LimitNOFILE= or docker --ulimit nofile)".to_owned()
        } else {
            format!("ulimit -n {FILES_MIN}")
        };
        let fix = format!("{how}: rank 0 needs one for each other rank, and more");
        return vec![Finding::warning("limits", said, fix)];
    }
    vec![Finding::ok("limits", said)]
}
