//! Loops of one's own as real jobs: killed in the middle of saves and of removals, told to end,
//! resumed at other world sizes, and told nonsense. After each, what is visible is whole, nothing
//! is left running, and the run that goes on ends as one that was left alone.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, unreachable_pub, reason = "helpers of tests")]

mod examples;
#[path = "../jobs/mod.rs"]
mod jobs;
mod kills;
mod restarts;
mod told;
mod wrong;

use std::collections::BTreeMap;

use parking_lot::Mutex;

use self::jobs::{Launcher, Place, Program};

const OWN_LOOP: Program = Program {
    example: "own_loop",
    flags: &["--experiment", "digits"],
    directory: "--dir",
    experiment: "digits",
    prefix: "checkpoint_step_",
};
const HASH: &str = "--print-state-hash";

/// What this many steps on this many ranks end in, if nobody disturbs them.
fn undisturbed(launcher: Launcher, ranks: u32, steps: u64) -> String {
    /// By launcher, ranks and steps.
    type Run = (Option<&'static str>, u32, u64);
    static KNOWN: Mutex<BTreeMap<Run, String>> = Mutex::new(BTreeMap::new());
    let key = (launcher.script, ranks, steps);
    if let Some(state) = KNOWN.lock().get(&key) {
        return state.clone();
    }
    let place = Place::of(&OWN_LOOP);
    let flags = ["--steps", &steps.to_string(), HASH];
    let state = place.start_on(ranks, launcher, &flags, &[]).end().state();
    KNOWN.lock().insert(key, state.clone());
    state
}

/// The checkpoint to which a link points.
fn link(place: &Place, name: &str) -> String {
    let target = std::fs::read_link(place.runs().join(name)).unwrap();
    target.into_os_string().into_string().unwrap()
}

fn name(step: u64) -> String {
    format!("checkpoint_step_{step:08}")
}
