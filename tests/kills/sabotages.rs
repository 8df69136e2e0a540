//! Defects of `src/sabotage/defect.rs` that random kills find.

#[path = "../sabotages/mod.rs"]
mod sabotaged;

use sabotaged::found_within;

#[test]
fn deleting_too_early_and_in_place() {
    // On a fast machine one run in six misses it.
    found_within(8, "S7", &["random::killed_at_random_with_ranks_as_threads"]);
}
