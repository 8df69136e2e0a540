//! Defects of `src/sabotage/defect.rs` that the calls of a save give away.

#[path = "../sabotages/mod.rs"]
mod sabotaged;

use sabotaged::found_by;

const DURABLE: &str = "order::what_a_save_makes_is_durable_before_it_has_its_name";

#[test]
fn data_that_is_not_fsynced() {
    found_by("S1", &[DURABLE]);
}

#[test]
fn a_manifest_that_is_not_fsynced() {
    found_by("S2", &[DURABLE]);
}

#[test]
fn directories_that_are_not_fsynced() {
    found_by("S3", &[DURABLE]);
}

#[test]
fn a_rename_before_the_manifest() {
    found_by("S4", &[DURABLE, "kills::each_call_of_a_first_save_is_its_last"]);
}

#[test]
fn deleting_too_early_and_in_place() {
    found_by("S7", &["order::what_goes_is_out_of_sight_durably_before_it_is_unlinked"]);
}

#[test]
fn errors_of_fsync_and_close_that_nobody_heeds() {
    found_by("S9", &["odd::errors_of_closing_count"]);
}
