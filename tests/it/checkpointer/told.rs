//! A run that is told to end, in a process of its own: one that was told stays told.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Signal, getpid, kill_process};
use tch_checkpoint::checkpointer::{AsyncMode, CheckpointerConfig, Outcome, Reason};
use tch_checkpoint::preempt::{Preempted, REQUEUE_EXIT_CODE};

use super::toy::{Toy, at, checkpointer, config, steps_of};
use crate::harness::on_ranks;

const DIR: &str = "TCH_CHECKPOINT_TEST_TOLD_DIR";
const HUNG: Duration = Duration::from_secs(60);
const TOLD_AT: u64 = 5;
const STEPS_MAX: u64 = 100_000;

/// The run of the test below, which starts it: ends with the code of the launcher's contract.
#[test]
#[ignore = "runs as a process of its own"]
fn told_child() {
    let Ok(place) = std::env::var(DIR) else { return };
    let ends = on_ranks(2, move |group| {
        let config = CheckpointerConfig {
            save_on_signal: true,
            save_mode: AsyncMode::Async,
            save_at_end: false,
            ..config(place.as_ref())
        };
        let mut checkpointer = checkpointer(&group, config).unwrap();
        let mut toy = Toy::new();
        for step in 1..=STEPS_MAX {
            toy.step(step, group.rank().get());
            if step == TOLD_AT && group.is_coordinator() {
                kill_process(getpid(), Signal::USR1).unwrap();
            }
            let stepped = toy.with(|parts| checkpointer.step_callback(&at(step), parts)).unwrap();
            let Some(why) = stepped.stop else { continue };
            // Told to end, it saves before it returns, also where saves go on beside training.
            let Some((reason, Outcome::Saved(_))) = stepped.save else { panic!("{stepped:?}") };
            assert_eq!(reason, Reason::Preempted(why));
            assert_eq!(checkpointer.preempted(), Some(why));
            return (step, why, steps_of(&checkpointer));
        }
        panic!("nobody was told")
    });
    assert_eq!(ends[0], ends[1]);
    let (step, why, steps) = &ends[0];
    assert!(*step >= TOLD_AT && *steps == [*step], "{ends:?}");
    assert!(matches!(why, Preempted::Signal(_)));
    std::process::exit(why.exit_code().into());
}

#[test]
fn a_run_that_is_told_to_end_saves_one_step_on_all_ranks_and_ends_with_75() {
    let scratch = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["checkpointer::told::told_child", "--exact", "--ignored", "--nocapture"])
        .env(DIR, scratch.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if begun.elapsed() > HUNG {
            child.kill().unwrap();
            panic!("the child hangs");
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    assert_eq!(status.code(), Some(REQUEUE_EXIT_CODE.into()));
}
