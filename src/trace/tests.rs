use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::tempdir;

use super::file::TraceFiles;
use super::{Held, Marks};
use crate::rank::Rank;
use crate::report::chrome::{Event, Row};

fn event(rank: u32) -> Event<'static> {
    Event {
        name: "plan",
        of: "save",
        rank: Rank::new(rank),
        row: Row::Caller,
        begin: Duration::from_secs(1),
        time: Duration::from_secs(1),
        path: "runs/a",
        step: None,
        bytes: None,
        write: None,
        failed: false,
    }
}

fn events(path: &Path) -> Vec<Value> {
    serde_json::from_str(&(std::fs::read_to_string(path).unwrap() + "]")).unwrap()
}

#[test]
fn ranks_of_one_process_have_files_of_their_own_and_a_restarted_job_goes_on() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("trace.json");
    for round in 1..=2 {
        let files = TraceFiles::new(path.clone());
        files.write(&event(0));
        files.write(&event(1));
        files.write(&event(1));
        let names = 3;
        assert_eq!(events(&path).len(), names + round);
        assert_eq!(events(&path.with_file_name("trace.rank1.json")).len(), names + 2 * round);
    }
}

#[test]
fn what_is_no_trace_stays_as_it_is() {
    let dir = tempdir().unwrap();
    let path = dir.path().join("notes");
    std::fs::write(&path, "mine").unwrap();
    TraceFiles::new(path.clone()).write(&event(0));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
    // Neither is a directory, nor a place that is not there.
    TraceFiles::new(dir.path().to_path_buf()).write(&event(0));
    TraceFiles::new(dir.path().join("absent/trace.json")).write(&event(0));
    assert!(!dir.path().join("absent").exists());
}

#[test]
fn a_time_before_the_trace_began_is_earlier_than_one_after_it() {
    let before = Instant::now();
    let files = TraceFiles::new("trace.json".into());
    let later = before + Duration::from_secs(3600);
    assert!(files.since_1970(before) <= files.since_1970(Instant::now()));
    let between = files.since_1970(later) - files.since_1970(before);
    assert_eq!(between, Duration::from_secs(3600));
}

#[test]
fn everything_that_held_a_caller_up_counts() {
    let marks = Marks { trace: None, of: "save", rank: Rank::new(0), path: "".into(), step: None };
    let held = Held { marks, time: Default::default() };
    let begun = Instant::now();
    held.add("held", begun);
    let first = held.so_far();
    held.add("copying", begun);
    assert!(held.so_far() >= first * 2, "the second began as early, and ended later");
}
