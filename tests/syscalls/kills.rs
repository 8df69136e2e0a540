//! kill -9 at each call of a save.

use std::time::Duration;

use crate::scene::{Scene, Stage};
use crate::tracer::{Act, Call};
use crate::{scenes, tier};

/// Kills the program (of several processes, the one that calls) before each call that changes
/// something; in the long tier before each call that looks as well.
fn kill_everywhere(scene: &'static Scene) {
    let stage = Stage::set(scene);
    let calls = stage.undisturbed();
    let wanted = |call: &&Call| call.changes || tier::is_full();
    let (mut kills, mut committed, mut faults) = (0, 0, Vec::new());
    let mut longest = Duration::ZERO;
    for label in calls.iter().filter(wanted).map(Call::label) {
        let mut kill = |call: &Call| if call.label() == label { Act::Kill } else { Act::Pass };
        let tried = stage.play(&mut kill);
        if !tried.run.calls.iter().any(|call| call.injected) {
            faults.push(format!("{label}: was not called"));
        }
        longest = longest.max(tried.run.took);
        kills += 1;
        committed += u64::from(stage.has_committed(&tried));
        faults.extend(stage.fault_of(&tried).map(|fault| format!("{label}: {fault}")));
    }
    tier::figure(&format!("{}: kills", scene.title), kills);
    tier::figure(&format!("{}: of these, after the commit", scene.title), committed);
    assert!(committed > 0 && committed < kills, "{committed} of {kills} were committed");
    tier::figure(&format!("{}: longest run", scene.title), format!("{longest:?}"));
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn each_call_of_a_first_save_is_its_last() {
    kill_everywhere(&scenes::FIRST);
}

#[test]
fn each_call_of_a_save_by_four_ranks_is_its_last() {
    kill_everywhere(&scenes::FOUR_RANKS);
}

#[test]
fn each_call_of_a_replacement_is_its_last() {
    kill_everywhere(&scenes::REPLACING);
}

#[test]
fn each_call_of_retention_and_of_moving_links_is_the_last() {
    kill_everywhere(&scenes::RETENTION);
}

/// Each rank in turn: the others end, and the program that started them.
#[test]
fn each_call_of_a_rank_that_is_a_process_is_its_last() {
    kill_everywhere(&scenes::PROCESSES);
}
