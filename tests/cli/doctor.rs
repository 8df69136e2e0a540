//! `doctor`: what it finds differs from machine to machine, what it says of it does not.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use crate::snapshot::verb_lines;
use crate::{Folder, Ran, assert_code, command, output_of};

const CHECKS: [&str; 8] = ["libtorch", "cuda", "nccl", "mpi", "ports", "disk", "clock", "limits"];

/// With these variables, and none of those that it looks at otherwise.
fn doctor(folder: &Folder, dir: &str, more: &[&str], variables: &[(&str, &str)]) -> Ran {
    let mut command = command(&[&["doctor", dir], more].concat());
    for name in ["LIBTORCH", "LIBTORCH_USE_PYTORCH", "MASTER_ADDR", "TCH_CHECKPOINT_IFADDR"] {
        command.env_remove(name);
    }
    command.envs(variables.iter().copied()).current_dir(folder.path());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = output_of(command.spawn().unwrap(), "doctor");
    Ran {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

#[test]
fn everything_is_looked_at_and_nothing_is_left_behind() {
    let folder = Folder::new();
    let ran = doctor(&folder, folder.path(), &["--json"], &[]);
    assert_code(&ran, 0);
    assert_eq!(ran.stderr, "");
    let mut seen = Vec::new();
    for found in verb_lines(&ran) {
        let of = |name: &str| found[name].as_str().unwrap_or_default().to_owned();
        assert!(["ok", "warning", "problem"].contains(&of("level").as_str()), "{found}");
        assert_eq!(of("level") == "ok", found["fix"].is_null(), "{found}");
        assert!(!of("said").is_empty());
        assert_eq!(found.as_object().unwrap().len(), 4, "{found}");
        seen.push(of("check"));
    }
    let disk = seen.iter().filter(|check| *check == "disk").count();
    assert_eq!(disk, 4, "kind, space, locks and rates: {}", ran.stdout);
    seen.dedup();
    assert_eq!(seen, CHECKS);
    assert!(folder.entries().is_empty(), "{:?}", folder.entries());
}

#[test]
fn the_text_says_the_same_and_counts() {
    let folder = Folder::new();
    let ran = doctor(&folder, ".", &[], &[]);
    assert_code(&ran, 0);
    let lines: Vec<&str> = ran.stdout.lines().collect();
    let of = |word: &str| lines.iter().filter(|line| line.starts_with(word)).count();
    let counts =
        format!("{} ok, {} warnings, {} problems", of("ok "), of("warning "), of("problem "));
    assert_eq!(lines.last(), Some(&counts.as_str()));
    let fixes = lines.iter().filter(|line| line.starts_with("                   -> ")).count();
    assert_eq!(fixes, of("warning ") + of("problem "), "{}", ran.stdout);
}

#[test]
fn a_missing_directory_is_looked_at_above_and_not_made() {
    let folder = Folder::new();
    let ran = doctor(&folder, &folder.at("runs/mnist"), &[], &[]);
    assert_code(&ran, 0);
    let told = format!("is not there yet; looked at {}", folder.path());
    assert!(ran.stdout.contains(&told), "{}", ran.stdout);
    assert!(folder.entries().is_empty());
    fs::write(folder.at("file"), "").unwrap();
    let file = doctor(&folder, &folder.at("file"), &[], &[]);
    assert_code(&file, 0);
    assert!(file.stdout.contains("problem  disk      "), "{}", file.stdout);
    assert!(file.stdout.contains("is no directory"), "{}", file.stdout);
}

#[test]
fn what_variables_name_is_checked() {
    let folder = Folder::new();
    let wrong = [
        ("LIBTORCH", "/nowhere"),
        ("MASTER_ADDR", "no.such.host.invalid"),
        ("TCH_CHECKPOINT_IFADDR", "192.0.2.1"),
    ];
    let ran = doctor(&folder, ".", &["--json"], &wrong);
    assert_code(&ran, 0);
    for (name, value) in wrong {
        let is_it = |found: &serde_json::Value| {
            found["level"] == "problem" && found["said"].as_str().unwrap().contains(value)
        };
        assert!(verb_lines(&ran).iter().any(is_it), "{name}: {}", ran.stdout);
    }
    fs::create_dir_all(folder.at("torch/lib")).unwrap();
    fs::write(folder.at("torch/lib/libtorch_cpu.so"), "").unwrap();
    fs::write(folder.at("torch/build-version"), "2.13.0+cpu\n").unwrap();
    let right = [
        ("LIBTORCH", folder.at("torch")),
        ("MASTER_ADDR", "127.0.0.1".to_owned()),
        ("TCH_CHECKPOINT_IFADDR", "127.0.0.1".to_owned()),
    ];
    let right = right.each_ref().map(|(name, value)| (*name, value.as_str()));
    let ran = doctor(&folder, ".", &[], &right);
    for text in [
        "ok       libtorch  2.13.0+cpu, for CPUs, LIBTORCH: ",
        "ok       ports     MASTER_ADDR 127.0.0.1 is 127.0.0.1",
        "ok       ports     TCH_CHECKPOINT_IFADDR 127.0.0.1 is of this host",
    ] {
        assert!(ran.stdout.contains(text), "{text}: {}", ran.stdout);
    }
}

/// A program that hangs is told of and ended, one that fails too.
#[test]
fn a_program_that_hangs_holds_nothing_up() {
    let folder = Folder::new();
    let stub = |name: &str, body: &str| {
        let path = folder.at(name);
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    // As wrappers of clusters are: with a child.
    stub("mpirun", "sleep 300 & echo $! > mpirun.pid; wait");
    stub("python3", "echo $$ > python3.pid; exec sleep 300");
    let path = format!("{}:{}", folder.path(), std::env::var("PATH").unwrap());
    let variables = [("PATH", path.as_str()), ("LIBTORCH_USE_PYTORCH", "1")];
    let ran = doctor(&folder, ".", &[], &variables);
    assert_code(&ran, 0);
    assert!(ran.stdout.contains("mpirun --version does not come to an end"), "{}", ran.stdout);
    assert!(ran.stdout.contains("but python3 does not say where its torch is"), "{}", ran.stdout);
    for name in ["mpirun", "python3"] {
        let pid = fs::read_to_string(folder.at(&format!("{name}.pid"))).unwrap();
        assert!(!is_live(pid.trim()), "{name} goes on");
    }
}

/// A zombie is not.
fn is_live(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with('Z'))
}

/// What a build of `tch` takes is what is looked at.
#[test]
fn the_libtorch_of_python_goes_first() {
    let folder = Folder::new();
    let python = folder.at("python3");
    fs::write(&python, "#!/bin/sh\nexit 3\n").unwrap();
    fs::set_permissions(&python, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", folder.path(), std::env::var("PATH").unwrap());
    for value in ["1", "0"] {
        let variables =
            [("PATH", path.as_str()), ("LIBTORCH", "/"), ("LIBTORCH_USE_PYTORCH", value)];
        let ran = doctor(&folder, ".", &[], &variables);
        let told = "LIBTORCH_USE_PYTORCH is set, but python3 does not run";
        assert!(ran.stdout.contains(told), "{}", ran.stdout);
    }
}

#[test]
fn names_and_brackets_are_taken_as_ranks_take_them() {
    let folder = Folder::new();
    let variables = [("MASTER_ADDR", "[::1]"), ("TCH_CHECKPOINT_IFADDR", "localhost")];
    let ran = doctor(&folder, ".", &[], &variables);
    for text in ["MASTER_ADDR [::1] is ::1", "TCH_CHECKPOINT_IFADDR localhost is of this host"] {
        assert!(ran.stdout.contains(text), "{text}: {}", ran.stdout);
    }
}

/// What cannot be seen, or leads nowhere, is not taken for missing: a save would not make it.
#[test]
fn what_is_in_the_way_of_a_directory_is_told() {
    let folder = Folder::new();
    std::os::unix::fs::symlink("/nowhere/at/all", folder.at("link")).unwrap();
    std::os::unix::fs::symlink("round", folder.at("round")).unwrap();
    for name in ["link", "link/runs", "round"] {
        let ran = doctor(&folder, &folder.at(name), &[], &[]);
        assert_code(&ran, 0);
        assert!(ran.stdout.contains("is a link to nothing"), "{name}: {}", ran.stdout);
        assert!(!ran.stdout.contains("not there yet"), "{name}: {}", ran.stdout);
    }
    // Longer than the system takes: as what may not be searched, for anybody.
    let long = doctor(&folder, &folder.at(&"a".repeat(300)), &[], &[]);
    assert!(long.stdout.contains("cannot be looked at: "), "{}", long.stdout);
}

/// What is not allowed is not advised.
#[test]
fn a_limit_that_cannot_be_raised_is_told_as_such() {
    let folder = Folder::new();
    for (limit, told) in [("-n", "raise the hard limit"), ("-Sn", "-> ulimit -n 1024")] {
        let start = format!("ulimit {limit} 200 && exec \"$0\" doctor \"$1\"");
        let program = env!("CARGO_BIN_EXE_tch-checkpoint");
        let mut command = Command::new("bash");
        command.args(["-c", &start, program, folder.path()]).stdout(Stdio::piped());
        let output = output_of(command.spawn().unwrap(), "doctor");
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(said.contains(told), "{said}");
    }
}

#[test]
fn wrong_usage_has_code_2() {
    let folder = Folder::new();
    assert_code(&doctor(&folder, "a", &["b"], &[]), 2);
    assert_code(&doctor(&folder, ".", &["--fast"], &[]), 2);
}
