//! Rank 0 under limits on open files, which belong to a process: [`child`] is one.

use std::process::Command;
use std::time::Instant;

use rustix::process::{Resource, getrlimit};

use super::*;

const LIMITS: &str = "TCH_CHECKPOINT_TEST_LIMITS";

/// Waits for 300 ranks that never come, as the other test tells it.
#[test]
fn child() {
    if std::env::var(LIMITS).is_err() {
        return;
    }
    let short = Deadlines { join: Duration::from_millis(200), ..patient() };
    let error = join_tcp(Rank::new(0), 300, &free_address(), short).unwrap_err();
    println!("limit {:?}: {error:?}", getrlimit(Resource::Nofile).current);
}

/// What rank 0 finds under a soft and a hard limit.
fn under(soft: u32, hard: u32) -> String {
    let ran = Command::new("sh")
        .args(["-c", &format!("ulimit -Sn {soft} && ulimit -Hn {hard} && exec \"$0\" \"$@\"")])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "group::tests::limits::child", "--nocapture", "--test-threads=1"])
        .env(LIMITS, "yes")
        .output()
        .unwrap();
    String::from_utf8(ran.stdout).unwrap()
}

#[test]
fn a_limit_that_can_be_raised_is_and_another_is_told_before_anybody_waits() {
    // 299 ranks, with two connections each.
    let raised = under(256, 1500);
    assert!(raised.contains("Deadline"), "{raised}");
    let after = raised.split("limit Some(").nth(1).and_then(|rest| rest.split(')').next());
    let after: u32 = after.unwrap().parse().unwrap();
    assert!((598..=1500).contains(&after), "{raised}");

    let began = Instant::now();
    let refused = under(256, 600);
    assert!(refused.contains("InvalidInput") && refused.contains("open files"), "{refused}");
    assert!(refused.contains("300 ranks") && refused.contains("600"), "{refused}");
    assert!(began.elapsed() < HUNG);
}
