//! Defects of `src/sabotage/defect.rs` that schedules find; each within the first hundred of them.

#[path = "../sabotages/mod.rs"]
mod sabotaged;

use sabotaged::found_by;

const SCHEDULES: &[&str] = &["no_schedule_loses_what_was_committed"];

#[test]
fn data_that_is_not_fsynced() {
    found_by("S1", SCHEDULES);
}

#[test]
fn a_manifest_that_is_not_fsynced() {
    found_by("S2", SCHEDULES);
}

#[test]
fn directories_that_are_not_fsynced() {
    found_by("S3", SCHEDULES);
}

#[test]
fn a_rename_before_the_manifest() {
    found_by("S4", SCHEDULES);
}

#[test]
fn a_commit_without_every_vote() {
    found_by("S5", SCHEDULES);
}

#[test]
fn waiting_without_a_deadline() {
    found_by("S6", SCHEDULES);
}

#[test]
fn deleting_too_early_and_in_place() {
    found_by("S7", SCHEDULES);
}
