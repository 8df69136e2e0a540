//! Each defect of `src/sabotage/defect.rs`, and the tests that find it.

#[path = "../sabotages/mod.rs"]
mod sabotaged;

use std::path::Path;

use sabotaged::found_by;

const SAVED: &str = "power_cuts::what_was_saved_is_there_after_a_power_cut";
const CUT: &str = "power_cuts::a_power_cut_at_each_operation_leaves_the_old_or_the_new";

#[test]
fn data_that_is_not_fsynced() {
    found_by("S1", &[SAVED, "durable::every_file_is_finished"]);
}

#[test]
fn a_manifest_that_is_not_fsynced() {
    found_by("S2", &[SAVED, "durable::every_file_is_finished"]);
}

#[test]
fn directories_that_are_not_fsynced() {
    found_by("S3", &[SAVED, "commits::the_directory_cannot_be_fsynced_after_the_rename"]);
}

#[test]
fn a_rename_before_the_manifest() {
    found_by("S4", &[CUT, "faults::one_error_on_one_rank"]);
}

#[test]
fn a_commit_without_every_vote() {
    found_by("S5", &["faults::one_error_on_each_of_two_ranks", "faults::each_operation_of_a_load"]);
}

#[test]
fn waiting_without_a_deadline() {
    found_by("S6", &["verdicts::a_rank_that_stalls_is_named"]);
}

#[test]
fn deleting_too_early_and_in_place() {
    found_by("S7", &[CUT, "retention_faults::a_process_killed_at_each_operation_of_a_pass"]);
}

#[test]
fn sums_that_nobody_compares() {
    found_by(
        "S8",
        &[
            "hostile::flips_in_the_data",
            "hostile::every_byte_of_a_manifest_flipped",
            "corruption::structure::every_zeroed_or_overwritten_page_is_found",
            "corruption::single_file::random_bits_of_the_data_of_a_single_file_are_found_with_\
             tensor_and_block",
            "corruption::parts::a_load_of_a_part_finds_damage_in_what_it_reads_and_is_right_about_\
             the_rest",
        ],
    );
}

#[test]
fn errors_of_fsync_and_close_that_nobody_heeds() {
    found_by(
        "S9",
        &["power_cuts::what_is_acknowledged_after_one_error_is_there_after_a_power_cut"],
    );
}

#[test]
fn tensors_that_almost_fit() {
    found_by(
        "S10",
        &[
            "verdicts::what_almost_fits_is_refused_and_changes_nothing",
            "verdicts::every_mismatch_is_listed",
            "mismatches::no_dtype_is_taken_for_another",
            "mismatches::no_shape_is_broadcast_reshaped_or_cut",
        ],
    );
}

#[test]
fn a_save_beside_training_that_refers_and_swallows() {
    found_by(
        "S11",
        &[
            "background::what_changes_right_after_the_call_is_not_saved",
            "background::a_rank_that_cannot_copy_its_share_is_every_ranks_error",
        ],
    );
}

#[test]
fn trust_in_links_clocks_and_guessable_names() {
    found_by(
        "S12",
        &[
            "hostile::impostors_in_the_place_of_files",
            "finding::orders_go_by_what_manifests_hold",
            "background_process::processes_choose_save_ids_that_no_other_has",
        ],
    );
}

/// Every test file called `sabotages.rs` under `dir`, as one text.
fn all_pairs(dir: &Path) -> String {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let texts = entries.map(|path| match path.file_name().and_then(|name| name.to_str()) {
        _ if path.is_dir() => all_pairs(&path),
        Some("sabotages.rs") => std::fs::read_to_string(&path).unwrap(),
        _ => String::new(),
    });
    texts.collect()
}

#[test]
fn every_defect_has_tests_that_find_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let pairs = all_pairs(&root.join("tests"));
    let defects = std::fs::read_to_string(root.join("src/sabotage/defect.rs")).unwrap();
    let numbers = defects.lines().filter_map(|line| line.trim().strip_prefix("/// S"));
    let numbers: Vec<&str> = numbers.filter_map(|line| Some(line.split_once(':')?.0)).collect();
    assert_eq!(numbers.len(), 12, "{numbers:?}");
    for number in numbers {
        assert!(pairs.contains(&format!("\"S{number}\"")), "S{number} is found by no test");
    }
}

#[test]
#[should_panic(expected = "S10 is not found by durable::every_file_is_finished (Some(0))")]
fn a_test_that_passes_has_found_nothing() {
    found_by("S10", &["durable::every_file_is_finished"]);
}

#[test]
#[should_panic(expected = "S0 is not found by durable::every_file_is_finished (Some(101))")]
fn a_defect_that_does_not_exist_is_not_found() {
    found_by("S0", &["durable::every_file_is_finished"]);
}
