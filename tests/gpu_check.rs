//! The checks of GPUs on the CPU, where they show that they work: each passes, and each fails when
//! what it checks is spoiled.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const HANG: Duration = Duration::from_secs(120);

/// Waits for a process whose output fits a pipe; a hang is a failure.
fn finish(mut child: Child) -> Output {
    let until = Instant::now() + HANG;
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > until {
            child.kill().unwrap();
            panic!("it hangs");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.wait_with_output().unwrap()
}

/// What a check says, and its exit code.
fn check(device: &str, arguments: &[&str]) -> (Value, Option<i32>) {
    let command = Path::new(env!("CARGO_BIN_EXE_tch-checkpoint"));
    let example = command.with_file_name("examples").join("gpu_check");
    assert!(example.exists(), "{} is not built: cargo build --examples", example.display());
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(example);
    command.arg("--device").arg(device).arg("--dir").arg(dir.path()).args(arguments);
    command.env("OMP_NUM_THREADS", "1").stdin(Stdio::null());
    let ran = finish(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let said = String::from_utf8(ran.stdout).unwrap();
    let line = serde_json::from_str(said.trim())
        .unwrap_or_else(|e| panic!("{e}: {said}\n{}", String::from_utf8_lossy(&ran.stderr)));
    (line, ran.status.code())
}

const CHECKS: [&[&str]; 6] = [
    &["isolation", "--runs", "3"],
    &["resume", "--steps", "4"],
    &["places"],
    &["audit"],
    &["ranks"],
    &["ranks", "--processes"],
];

#[test]
fn every_check_passes_where_nothing_is_wrong() {
    for arguments in CHECKS {
        let (line, code) = check("cpu", arguments);
        assert_eq!((line["verdict"].as_str(), code), (Some("passed"), Some(0)), "{line}");
        assert_eq!(line["check"], arguments[0]);
    }
}

#[test]
fn every_check_fails_when_what_it_checks_is_spoiled() {
    for arguments in CHECKS {
        let (line, code) = check("cpu", &[&["--spoil"], arguments].concat());
        assert_eq!((line["verdict"].as_str(), code), (Some("failed"), Some(4)), "{line}");
    }
}

#[test]
fn figures_are_numbers_of_what_was_checked() {
    let (line, _) = check("cpu", &["figures", "--mib", "8", "--times", "2"]);
    let detail = &line["detail"];
    assert_eq!(detail["bytes"].as_u64(), Some(8_388_600));
    let seconds = detail["seconds"].as_object().unwrap();
    let names = [
        "load_atomic",
        "load_in_place",
        "pass_alone",
        "pass_beside_overlapped_save",
        "save",
        "stall_async",
    ];
    assert!(seconds.keys().eq(names), "{line}");
    let numbers = [&detail["pinned_d2h_bytes_per_s"], &detail["stall_over_copy"]];
    let all = seconds.values().chain(numbers);
    assert!(all.into_iter().all(|number| number.as_f64().is_some_and(|n| n > 0.0)), "{line}");
}

#[test]
fn what_needs_a_gpu_says_so_and_a_device_that_is_not_there_is_a_failure() {
    for name in ["memory", "nccl"] {
        let (line, code) = check("cpu", &[name]);
        assert_eq!((line["verdict"].as_str(), code), (Some("skipped"), Some(0)), "{line}");
    }
    let (line, code) = check("cuda:99", &["places"]);
    assert_eq!((line["verdict"].as_str(), code), (Some("failed"), Some(4)), "{line}");
    assert!(line["detail"].as_str().unwrap().contains("no cuda:99: "), "{line}");
}

#[test]
fn the_scripts_say_what_they_do_and_refuse_what_they_do_not_know() {
    let launch = Path::new(env!("CARGO_MANIFEST_DIR")).join("launch");
    for script in ["gpu-check.sh", "gpu-pack.sh"] {
        let run = |argument| Command::new(launch.join(script)).arg(argument).output().unwrap();
        let help = run("--help");
        assert!(help.status.success());
        assert!(
            String::from_utf8_lossy(&help.stdout).contains("docs/gpu.md")
                || script == "gpu-pack.sh"
        );
        let refused = run("--nothing");
        assert_eq!(refused.status.code(), Some(2), "{script}");
    }
}

/// The whole script on the CPU: every check answers, and both files are written.
#[test]
fn the_whole_script_runs_without_a_gpu_and_counts_what_it_did() {
    let out = tempfile::tempdir().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("launch/gpu-check.sh");
    let examples = Path::new(env!("CARGO_BIN_EXE_tch-checkpoint")).parent().unwrap();
    let mut command = Command::new(script);
    command.args(["--device", "cpu", "--mib", "8", "--runs", "2", "--out"]).arg(out.path());
    // Where this build lies: the profile's folder is in the target's.
    command.env("CARGO_TARGET_DIR", examples.parent().unwrap()).env("OMP_NUM_THREADS", "1");
    let ran = finish(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap());
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{said}\n{}", String::from_utf8_lossy(&ran.stderr));
    let results = std::fs::read(out.path().join("results.json")).unwrap();
    let results: Value = serde_json::from_slice(&results).unwrap();
    assert_eq!(results["schema"], 1);
    let checks = results["checks"].as_array().unwrap();
    assert!(checks.len() >= 11, "{results}");
    let skipped = checks.iter().filter(|check| check["verdict"] == "skipped").count();
    assert!(said.contains(&format!("0 failed, {skipped} skipped")), "{said}");
    let table = std::fs::read_to_string(out.path().join("results.md")).unwrap();
    assert!(table.contains("| isolation | passed |") && table.contains("stall"), "{table}");
}
