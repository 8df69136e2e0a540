//! Whether tests find what they are there to find: a test is run again in a process of its own,
//! with a defect switched on (see `src/sabotage/defect.rs`), and has to fail.

use std::fs::File;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const VARIABLE: &str = "TCH_CHECKPOINT_SABOTAGE";
const TIER: &str = "TCH_CHECKPOINT_TEST_TIER";
/// A test that takes longer has no deadline of its own, and has found nothing.
const HANG: Duration = Duration::from_secs(120);

/// Each of `tests`, which are names in this test binary, fails with the defect `sabotage`.
///
/// # Panics
/// If one of them passes, does not exist, or ends by anything but a failed assertion.
#[allow(dead_code, reason = "each test binary uses a part")]
pub fn found_by(sabotage: &str, tests: &[&str]) {
    found_within(1, sabotage, tests);
}

/// The same of tests that go by chance, each of which is run at most so many times.
///
/// # Panics
/// As [`found_by`].
pub fn found_within(runs: u32, sabotage: &str, tests: &[&str]) {
    assert!(!tests.is_empty(), "{sabotage} is found by no test");
    for test in tests {
        let mut last = (None, String::new());
        let is_found = (0..runs).any(|_| {
            last = run(sabotage, test);
            is_failure(&last)
        });
        let (code, output) = last;
        assert!(is_found, "{sabotage} is not found by {test} ({code:?}):\n{output}");
    }
}

/// Whether a test failed, and by nothing but an assertion.
fn is_failure((code, output): &(Option<i32>, String)) -> bool {
    let is_refusal = output.contains(&format!("{VARIABLE} is neither"));
    *code == Some(101) && output.contains("test result: FAILED. 0 passed; 1 failed") && !is_refusal
}

/// The code and the output of one test of this binary with the defect.
fn run(sabotage: &str, test: &str) -> (Option<i32>, String) {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let output = File::create(&log).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(VARIABLE, sabotage)
        // What only the long tier finds is found too late.
        .env(TIER, "short")
        .env_remove("RUST_BACKTRACE")
        .stdin(Stdio::null())
        .stdout(output.try_clone().unwrap())
        .stderr(output)
        .spawn()
        .unwrap();
    let until = Instant::now() + HANG;
    let code = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status.code(),
            None if Instant::now() < until => std::thread::sleep(Duration::from_millis(10)),
            None => {
                drop(child.kill());
                drop(child.wait());
                panic!("{sabotage}: {test} hangs instead of failing");
            }
        }
    };
    (code, String::from_utf8_lossy(&std::fs::read(&log).unwrap()).into_owned())
}
