//! The digits example started the way each launcher starts it: plainly, by `launch/torchrun.sh`,
//! with the variables of torchrun (agent-owned port included) and of Slurm, and by the real
//! torchrun where there is a Python with torch.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const HANG: Duration = Duration::from_secs(120);

fn example() -> PathBuf {
    example_named("digits")
}

fn example_named(name: &str) -> PathBuf {
    let command = Path::new(env!("CARGO_BIN_EXE_tch-checkpoint"));
    let example = command.with_file_name("examples").join(name);
    assert!(example.exists(), "{} is not built: cargo build --examples", example.display());
    example
}

/// The command without any launcher's variables.
fn clean(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars() {
        let launcher = ["RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "SLURM_", "TORCHELASTIC_"];
        if launcher.iter().any(|prefix| name.starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    command.env("OMP_NUM_THREADS", "1").env_remove("TCH_CHECKPOINT_SABOTAGE");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Waits for a process whose output fits a pipe; a hang is a failure.
fn finish(mut child: Child) -> Output {
    let started = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if started.elapsed() > HANG {
            let _ = child.kill();
            panic!("hangs: {:?}", child.wait_with_output());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    child.wait_with_output().unwrap()
}

/// The state hash that a successful run prints.
fn state(output: &Output) -> String {
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{:?}\n{out}\n{err}", output.status);
    let last = out.lines().last().unwrap_or_default();
    last.strip_prefix("state ").unwrap_or_else(|| panic!("no state: {out}\n{err}")).to_owned()
}

fn torchrun_sh(ranks: u32, flags: &[&str]) -> Output {
    torchrun_sh_of(&example(), ranks, flags)
}

fn torchrun_sh_of(example: &Path, ranks: u32, flags: &[&str]) -> Output {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("launch/torchrun.sh");
    let mut command = clean(script);
    command.args(["-n", &ranks.to_string()]).arg(example).args(flags);
    finish(command.spawn().unwrap())
}

/// The hash of one epoch on two ranks: what every launcher of two ranks must arrive at.
fn reference() -> String {
    state(&torchrun_sh(2, &["--epochs", "1", "--print-state-hash"]))
}

/// Two processes of the example, each with the variables that `variables(rank)` names; rank 0's
/// hash.
fn by_hand(variables: impl Fn(u32) -> Vec<(&'static str, String)>) -> String {
    let ranks: Vec<Child> = (0..2)
        .map(|rank| {
            let mut command = clean(example());
            command.args(["--epochs", "1", "--print-state-hash"]).envs(variables(rank));
            command.spawn().unwrap()
        })
        .collect();
    let outputs: Vec<Output> = ranks.into_iter().map(finish).collect();
    assert!(outputs[1].status.success(), "{:?}", outputs[1]);
    assert!(outputs[1].stdout.is_empty(), "only the coordinator prints: {:?}", outputs[1]);
    state(&outputs[0])
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn plainly_started_it_reaches_97_percent() {
    let mut command = clean(example());
    let output = finish(command.args(["--epochs", "12"]).spawn().unwrap());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{text}");
    let words: Vec<&str> = text.lines().last().unwrap_or_default().split_whitespace().collect();
    let at = words.iter().position(|word| *word == "val_accuracy").expect("a validation accuracy");
    let accuracy: f64 = words[at + 1].parse().unwrap();
    assert!(accuracy >= 0.97, "validation accuracy {accuracy}");
}

/// `script` gives the program a terminal.
#[test]
fn on_a_terminal_there_is_a_bar_with_the_loss() {
    let line = format!("stty cols 100; {} --epochs 1", example().display());
    let mut command = clean("script");
    command.args(["-qec", &line, "/dev/null"]).env("TERM", "xterm");
    let output = finish(command.spawn().unwrap());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}");
    assert!(text.contains("epoch 1/1 [="), "{text:?}");
    assert!(text.contains("/1438 samples, loss "), "{text:?}");
}

#[test]
fn resumed_on_two_ranks_it_equals_the_uninterrupted_run() {
    for optimizer in ["sgd", "adam", "adamw", "rmsprop"] {
        let dir = tempfile::tempdir().unwrap();
        let runs = dir.path().join("runs").to_str().unwrap().to_owned();
        let usual = ["--optimizer", optimizer, "--print-state-hash", "--save-dir", &runs];
        let run = |flags: &[&str]| state(&torchrun_sh(2, &[&usual[..], flags].concat()));
        let whole = run(&["--epochs", "4"]);
        let half = run(&["--epochs", "2", "--auto-save", "-1"]);
        let resumed = run(&["--epochs", "2", "--resume", "latest"]);
        assert_eq!(resumed, whole, "{optimizer}");
        assert_ne!(half, whole, "{optimizer}: the hash says nothing");
        let cold = run(&["--epochs", "2", "--seed", "2"]);
        assert_ne!(cold, half, "{optimizer}: the seed says nothing");
    }
}

/// With dropout, on ranks that have a generator each, cut inside an epoch.
#[test]
fn resume_check_says_whether_a_resume_is_exact() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("cut").to_str().unwrap().to_owned();
    let example = example_named("resume_check");
    let exact = ("resume is exact\n", 0);
    let other = ("the resumed run differs: `hidden.bias` on rank 0", 4);
    for (spoil, (said, code)) in [(&[][..], exact), (&["--spoil"][..], other)] {
        let flags = [&["--steps", "13", "--path", &path], spoil].concat();
        let output = torchrun_sh_of(&example, 2, &flags);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.starts_with(said) && output.status.code() == Some(code), "{output:?}");
    }
}

/// The script on each of two machines, which are this one.
#[test]
fn torchrun_sh_on_several_machines_makes_one_job_of_their_ranks() {
    let port = free_port().to_string();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("launch/torchrun.sh");
    let start = |node: u32| {
        let mut command = clean(&script);
        command.args(["-n", "1", "--nodes", "2", "--node-rank", &node.to_string()]);
        command.args(["--master-addr", "localhost", "--master-port", &port]).arg(example());
        command.args(["--epochs", "1", "--print-state-hash"]).env("TCH_CHECKPOINT_TOKEN", "shared");
        command.spawn().unwrap()
    };
    let outputs = [start(0), start(1)].map(finish);
    assert!(outputs[1].status.success(), "{:?}", outputs[1]);
    assert_eq!(state(&outputs[0]), reference());
}

/// What torchrun sets on two ranks of one host.
fn torchrun(rank: u32, port: &str) -> Vec<(&'static str, String)> {
    vec![
        ("RANK", rank.to_string()),
        ("LOCAL_RANK", rank.to_string()),
        ("WORLD_SIZE", "2".to_owned()),
        ("LOCAL_WORLD_SIZE", "2".to_owned()),
        ("MASTER_ADDR", "localhost".to_owned()),
        ("MASTER_PORT", port.to_owned()),
    ]
}

#[test]
fn variables_of_torchrun_with_a_port_of_its_own() {
    let port = free_port().to_string();
    assert_eq!(by_hand(|rank| torchrun(rank, &port)), reference());
}

/// torchrun's agent listens on MASTER_PORT itself: binding it would fail.
#[test]
fn variables_of_torchrun_whose_agent_owns_the_port() {
    let agent = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = agent.local_addr().unwrap().port().to_string();
    let hash = by_hand(|rank| {
        let mut variables = torchrun(rank, &port);
        variables.extend([
            ("TORCHELASTIC_USE_AGENT_STORE", "True".to_owned()),
            ("TORCHELASTIC_RUN_ID", format!("test-{}", std::process::id())),
            ("TORCHELASTIC_RESTART_COUNT", "0".to_owned()),
        ]);
        variables
    });
    assert_eq!(hash, reference());
}

#[test]
fn variables_of_slurm() {
    let port = free_port().to_string();
    let hash = by_hand(|rank| {
        vec![
            ("SLURM_PROCID", rank.to_string()),
            ("SLURM_LOCALID", rank.to_string()),
            ("SLURM_NTASKS", "2".to_owned()),
            ("SLURM_STEP_NUM_TASKS", "2".to_owned()),
            ("SLURM_STEP_NODELIST", "localhost".to_owned()),
            ("SLURM_JOB_ID", "4711".to_owned()),
            ("TCH_CHECKPOINT_MASTER_PORT", port.clone()),
        ]
    });
    assert_eq!(hash, reference());
}

/// Where a Python with torch is found: the real launcher, with its agent-owned port.
#[test]
fn the_real_torchrun_where_there_is_one() {
    let found = Command::new("python3").args(["-c", "import torch.distributed.run"]).output();
    if !found.is_ok_and(|output| output.status.success()) {
        println!("not run: no Python with torch here");
        return;
    }
    let mut command = clean("python3");
    command.args(["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]);
    command.arg("--no-python").arg(example()).args(["--epochs", "1", "--print-state-hash"]);
    assert_eq!(state(&finish(command.spawn().unwrap())), reference());
}
