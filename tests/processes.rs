//! Real jobs of several processes, one of which is killed, stopped, or fails at each place of the
//! protocol, under each launcher: the job ends, nothing is left running, and every visible
//! checkpoint is whole.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Where a phase can be left: before a rank's own part, after its vote, before the answers.
const PLACES: [(u32, &str); 5] =
    [(0, "enter"), (0, "voted"), (0, "decided"), (1, "enter"), (1, "voted")];
/// No job of two epochs may take longer, whatever happens to its ranks.
const HANG: Duration = Duration::from_secs(90);
/// Lack of progress after which ranks give up, in milliseconds.
const DEADLINE_MS: &str = "3000";

#[derive(Clone, Copy)]
struct Launcher(&'static str);

const TORCHRUN: Launcher = Launcher("launch/torchrun.sh");
#[cfg(feature = "mpi")]
const MPIRUN: Launcher = Launcher("launch/mpirun.sh");

struct Ended {
    status: ExitStatus,
    output: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn example() -> PathBuf {
    let command = Path::new(env!("CARGO_BIN_EXE_tch-checkpoint"));
    let example = command.with_file_name("examples").join("digits");
    assert!(example.exists(), "{} is not built: cargo build --examples", example.display());
    example
}

/// Without the feature the example would ignore every sabotage, and these tests would blame it.
fn check_example_is_sabotaged() {
    static CHECKED: OnceLock<bool> = OnceLock::new();
    let sabotaged = *CHECKED.get_or_init(|| {
        let mut run = Command::new(example());
        run.args(["--epochs", "1"]).env("TCH_CHECKPOINT_SABOTAGE", "nonsense");
        !run.output().unwrap().status.success()
    });
    assert!(sabotaged, "build the example anew: cargo build --examples --features sabotage");
}

/// Runs the digits example on two ranks that save to `dir`; panics if the job hangs, or if a
/// process of it is left.
fn digits(launcher: Launcher, dir: &Path, sabotage: &str, flags: &[&str]) -> Ended {
    check_example_is_sabotaged();
    let log = dir.join("output.log");
    let output = File::create(&log).unwrap();
    let mut job = Command::new(root().join(launcher.0))
        .args(["-n", "2"])
        .arg(example())
        .args(["--auto-save", "1", "--save-dir"])
        .arg(dir.join("runs"))
        .args(flags)
        .env("TCH_CHECKPOINT_SABOTAGE", sabotage)
        .env("TCH_CHECKPOINT_DEADLINE_MS", DEADLINE_MS)
        .env("TCH_CHECKPOINT_GRACE", "5")
        .env_remove("RUST_BACKTRACE")
        .stdin(std::process::Stdio::null())
        .stdout(output.try_clone().unwrap())
        .stderr(output)
        .spawn()
        .unwrap();
    let started = Instant::now();
    let status = loop {
        match job.try_wait().unwrap() {
            Some(status) => break status,
            None if started.elapsed() > HANG => {
                let left = survivors(dir);
                let _ = Command::new("kill").arg("-KILL").args(&left).status();
                let _ = job.kill();
                let text = std::fs::read_to_string(&log).unwrap_or_default();
                panic!("{sabotage}: the job hangs, {left:?} run:\n{text}");
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    wait_until_gone(dir, sabotage);
    let output = std::fs::read_to_string(&log).unwrap();
    assert!(!output.contains("stack backtrace"), "{sabotage}: {output}");
    Ended { status, output }
}

/// Processes that have this directory among their arguments, zombies aside.
fn survivors(dir: &Path) -> Vec<String> {
    let wanted = dir.to_str().unwrap();
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let entry = entry.ok()?;
        let arguments = std::fs::read(entry.path().join("cmdline")).ok()?;
        let state = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        let zombie = state.rsplit(") ").next()?.starts_with('Z');
        let ours = String::from_utf8_lossy(&arguments).contains(wanted);
        (ours && !zombie).then(|| entry.file_name().to_string_lossy().into_owned())
    });
    processes.collect()
}

fn wait_until_gone(dir: &Path, sabotage: &str) {
    let started = Instant::now();
    while !survivors(dir).is_empty() {
        assert!(started.elapsed() < Duration::from_secs(15), "{sabotage}: {:?}", survivors(dir));
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Every visible checkpoint is whole; their names, sorted.
fn good_checkpoints(dir: &Path, sabotage: &str) -> Vec<String> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir.join("runs")).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        // Links, and the files beside them, are none.
        if name.starts_with('.') || !entry.file_type().unwrap().is_dir() {
            continue;
        }
        let verified = Command::new(env!("CARGO_BIN_EXE_tch-checkpoint"))
            .arg("verify")
            .arg(dir.join("runs").join(&name))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&verified.stdout).into_owned();
        assert!(verified.status.success(), "{sabotage}: {name}: {text}");
        names.push(name);
    }
    names.sort();
    names
}

/// The second of three saves is disturbed. The job fails, the first checkpoint is whole, and the
/// next run resumes from the newest and sweeps what was left.
fn disturb_save(launcher: Launcher, sabotage: &str, may_commit: bool) {
    let dir = tempfile::tempdir().unwrap();
    let flags = ["--epochs", "3", "--name", "e{epoch}"];
    let ended = digits(launcher, dir.path(), sabotage, &flags);
    assert_failed(&ended, sabotage);
    let left = good_checkpoints(dir.path(), sabotage);
    let committed = may_commit && left == ["e1", "e2"];
    assert!(left == ["e1"] || committed, "{sabotage}: {left:?} without all votes");
    let resume = ["--epochs", "1", "--name", "resumed", "--resume", "latest"];
    let ended = digits(launcher, dir.path(), "", &resume);
    assert!(ended.status.success(), "{sabotage}: resume failed:\n{}", ended.output);
    let mut left = left;
    left.push("resumed".to_owned());
    assert_eq!(good_checkpoints(dir.path(), sabotage), left);
    let debris: Vec<_> = std::fs::read_dir(dir.path().join("runs"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with('.') && name != ".tch-checkpoint.lock")
        .collect();
    assert_eq!(debris, [""; 0], "{sabotage}: debris after the next save");
}

fn kill_in_each_place_of_a_save(launcher: Launcher, phase: &str) {
    for (rank, point) in PLACES {
        let may_commit =
            phase == "commit" && matches!((rank, point), (0, "decided") | (1, "voted"));
        disturb_save(launcher, &format!("kill@{phase}.{point}@{rank}@2"), may_commit);
    }
}

/// The job failed, and with none of the codes of a crash.
fn assert_failed(ended: &Ended, sabotage: &str) {
    let code = ended.status.code();
    let crashed = matches!(code, Some(0 | 101 | 134 | 139));
    assert!(!crashed, "{sabotage}: ended with {code:?}:\n{}", ended.output);
}

/// A job is disturbed before it has saved anything: it fails, and nothing is left running.
fn disturb_start(launcher: Launcher, sabotage: &str) {
    let dir = tempfile::tempdir().unwrap();
    let ended = digits(launcher, dir.path(), sabotage, &["--epochs", "1"]);
    assert_failed(&ended, sabotage);
}

/// A load is disturbed: the job fails and the checkpoint is unharmed.
fn kill_in_each_place_of_a_load(launcher: Launcher) {
    let dir = tempfile::tempdir().unwrap();
    let ended = digits(launcher, dir.path(), "", &["--epochs", "1", "--name", "e1"]);
    assert!(ended.status.success(), "{}", ended.output);
    for phase in ["manifest", "plan", "place"] {
        for (rank, point) in PLACES {
            let sabotage = format!("kill@{phase}.{point}@{rank}");
            let flags = ["--epochs", "1", "--name", "e2", "--resume", "latest"];
            let ended = digits(launcher, dir.path(), &sabotage, &flags);
            assert!(!ended.status.success(), "{sabotage}: {}", ended.output);
            assert_eq!(good_checkpoints(dir.path(), &sabotage), ["e1"], "{sabotage}");
        }
    }
}

/// A rank that ends, fails or panics without a kill. Inside a phase the others hear of it through
/// the vote, and every rank reports the same.
fn other_acts(launcher: Launcher) {
    for (act, rank, words) in
        [("panic", 1, "panic: sabotage"), ("fail", 1, "storage error: sabotage")]
    {
        let dir = tempfile::tempdir().unwrap();
        let sabotage = format!("{act}@commit.enter@{rank}@1");
        let ended = digits(launcher, dir.path(), &sabotage, &["--epochs", "1"]);
        assert!(ended.output.contains(words), "{sabotage}: {}", ended.output);
        assert!(ended.output.contains("rank 1, phase \"commit\""), "{sabotage}: {}", ended.output);
        assert_eq!(ended.status.code(), Some(3), "{sabotage}: {}", ended.output);
        assert_eq!(good_checkpoints(dir.path(), &sabotage), [""; 0]);
    }
    // A save of rank 0 writes three files, one of rank 1 two: these fall into the second save.
    for sabotage in ["kill@write.part@0@5", "kill@write.part@1@3"] {
        disturb_save(launcher, sabotage, false);
    }
    for sabotage in ["kill@build.enter@1", "kill@build.decided@0", "kill@train.voted@1"] {
        disturb_start(launcher, sabotage);
    }
    // An epoch has 24 steps: these two fall into the second.
    for sabotage in ["panic@train.step@1@30", "kill@train.step@0@30"] {
        disturb_save(launcher, sabotage, false);
    }
    for sabotage in ["exit@commit.enter@1@2", "exit0@commit.enter@1@2"] {
        disturb_save(launcher, sabotage, false);
    }
}

/// What a run ends in: hash of its state, and the epochs that it trained.
fn end_of(ended: &Ended, what: &str) -> (String, usize) {
    assert!(ended.status.success(), "{what}: {}", ended.output);
    let state = ended.output.lines().find_map(|line| line.strip_prefix("state "));
    let state = state.unwrap_or_else(|| panic!("{what}: no state in {}", ended.output));
    let epochs = ended.output.lines().filter(|line| line.starts_with("epoch ")).count();
    (state.to_owned(), epochs)
}

/// A run with a schedule, averages, dropout and early stopping that is killed inside its second
/// epoch goes on from there, and stops where the one stops that was left alone, in its state.
fn kill_in_mid_epoch(launcher: Launcher) {
    const RUN: &[&str] = &[
        "--total-epochs",
        "8",
        "--scheduler",
        "warmup-cosine",
        "--ema",
        "0.98",
        "--patience",
        "1",
        "--min-delta",
        "0.5",
        "--auto-save-steps",
        "7",
        "--name",
        "s{step}",
        "--print-state-hash",
    ];
    let alone = tempfile::tempdir().unwrap();
    let (whole, epochs) = end_of(&digits(launcher, alone.path(), "", RUN), "uninterrupted");
    assert!((2..8).contains(&epochs), "stopped after {epochs} epochs, which shows nothing");

    let dir = tempfile::tempdir().unwrap();
    let killed = digits(launcher, dir.path(), "kill@train.step@1@41", RUN);
    assert!(!killed.status.success(), "{}", killed.output);
    // An epoch has 24 steps: the newest checkpoint lies inside the second.
    let saved = good_checkpoints(dir.path(), "killed");
    assert_eq!(saved, ["s14", "s21", "s28", "s35", "s7"]);
    let resume = [RUN, &["--resume", "latest"]].concat();
    let (resumed, rest) = end_of(&digits(launcher, dir.path(), "", &resume), "resumed");
    assert_eq!(resumed, whole);
    assert_eq!(rest, epochs - 1, "the second epoch is gone on with");
}

#[test]
fn torchrun_kill_in_mid_epoch_and_resume_bit_for_bit() {
    kill_in_mid_epoch(TORCHRUN);
}

#[test]
fn torchrun_kill_while_planning_a_save() {
    kill_in_each_place_of_a_save(TORCHRUN, "plan");
}

#[test]
fn torchrun_kill_while_committing() {
    kill_in_each_place_of_a_save(TORCHRUN, "commit");
}

#[test]
fn torchrun_kill_while_looking_for_what_has_not_changed() {
    kill_in_each_place_of_a_save(TORCHRUN, "unchanged");
}

#[test]
fn torchrun_kill_while_loading() {
    kill_in_each_place_of_a_load(TORCHRUN);
}

#[test]
fn torchrun_ranks_that_fail_panic_or_leave() {
    other_acts(TORCHRUN);
}

#[test]
fn torchrun_a_stopped_rank_is_given_up() {
    for sabotage in ["stop@commit.enter@1@2", "stop@plan.enter@1@2"] {
        disturb_save(TORCHRUN, sabotage, false);
    }
    // bash continues what it tells to end, and the example does not die of SIGTERM: the
    // coordinator goes on, finds the vote of the rank that has given it up, and commits.
    disturb_save(TORCHRUN, "stop@commit.enter@0@2", true);
}

#[test]
fn torchrun_kill_while_stating_what_is_held() {
    kill_in_each_place_of_a_save(TORCHRUN, "state");
}

#[cfg(feature = "mpi")]
mod mpirun {
    use super::*;

    #[test]
    fn kill_in_mid_epoch_and_resume_bit_for_bit() {
        kill_in_mid_epoch(MPIRUN);
    }

    #[test]
    fn kill_while_planning_a_save() {
        kill_in_each_place_of_a_save(MPIRUN, "plan");
    }

    #[test]
    fn kill_while_committing() {
        kill_in_each_place_of_a_save(MPIRUN, "commit");
    }

    #[test]
    fn kill_while_loading() {
        kill_in_each_place_of_a_load(MPIRUN);
    }

    #[test]
    fn kill_while_stating_what_is_held() {
        kill_in_each_place_of_a_save(MPIRUN, "state");
    }

    #[test]
    fn a_stopped_rank_is_given_up() {
        disturb_save(MPIRUN, "stop@commit.enter@1@2", false);
    }

    #[test]
    fn ranks_that_fail_panic_or_leave() {
        other_acts(MPIRUN);
    }
}
