//! Defects of `src/sabotage/defect.rs` that power cuts and failing devices find.

#[path = "../sabotages/mod.rs"]
mod sabotaged;

use crate::alone::can_be_alone;

/// As `sabotaged::found_by`, unless the user has opted out of what the tests need.
fn found_by(sabotage: &str, tests: &[&str]) {
    if can_be_alone() {
        sabotaged::found_by(sabotage, tests);
    }
}

#[test]
fn data_that_is_not_fsynced() {
    found_by("S1", &["crash_states::ext4_ordered"]);
}

#[test]
fn a_manifest_that_is_not_fsynced() {
    found_by("S2", &["cuts::ext4_ordered", "crash_states::ext4_ordered"]);
}

#[test]
fn directories_that_are_not_fsynced() {
    found_by("S3", &["crash_states::xfs", "crash_states::ext4_ordered"]);
}

#[test]
fn errors_of_fsync_and_close_that_nobody_heeds() {
    found_by("S9", &["failing_device::nothing_is_called_durable_that_is_not"]);
}
