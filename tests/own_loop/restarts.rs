//! A job under a launcher that starts it again.

use std::collections::BTreeSet;

use rustix::process::Signal;

use crate::jobs::{LAUNCH, Place, TORCHRUN};
use crate::{HASH, OWN_LOOP, name, undisturbed};

const STEPS: u64 = 100;
const RUN: &[&str] = &["--steps", "100", "--every-steps", "5", HASH];

/// The steps from which ranks say that they go on.
fn resumed(output: &str) -> BTreeSet<u64> {
    let of = |line: &str| line.split_once(" step=")?.1.split(' ').next()?.parse().ok();
    output.lines().filter(|line| line.contains(" resumed ")).filter_map(of).collect()
}

/// The user does nothing: what a killed rank had not saved is trained again, and the end is that of
/// a run that nobody disturbed.
#[test]
fn a_rank_that_is_killed_costs_no_more_than_the_steps_since_the_last_save() {
    let place = Place::of(&OWN_LOOP);
    let mut job = place.start_on(3, LAUNCH, RUN, &[("RUST_LOG", "info")]);
    job.wait_for_step(10);
    assert!(job.signal_rank(1, Signal::KILL), "it is done already");
    let ended = job.end();
    let state = ended.state();
    let output = &ended.output;
    assert!(output.contains("launch: rank 1 ended with code 137 (SIGKILL)"), "{output}");
    assert!(output.contains("launch: restart 1 of 2"), "{output}");
    assert!(!output.contains("restart 2"), "{output}");
    let resumed: Vec<u64> = resumed(output).into_iter().collect();
    let [from] = resumed[..] else { panic!("{resumed:?}: {output}") };
    assert!((10..STEPS).contains(&from) && from % 5 == 0, "{from}: {output}");
    assert_eq!(place.saved(), (1..=STEPS / 5).map(|n| n * 5).collect::<Vec<_>>());
    assert_eq!(crate::link(&place, "latest"), name(STEPS));
    assert_eq!(place.debris(), [""; 0]);
    assert_eq!(state, undisturbed(TORCHRUN, 3, STEPS));
}
