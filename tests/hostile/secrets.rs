//! What a program knows and must not tell: secrets in variables and in addresses. They are looked
//! for in all that is written, logged, said, traced, and shown of the API.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tch_checkpoint::catalog::{CheckpointPath, Order, Wanted, find_checkpoints};
use tch_checkpoint::checkpointer::{Checkpointer, CheckpointerConfig, Location};
use tch_checkpoint::group::{Deadlines, JobId};
use tch_checkpoint::layout::CheckpointName;
use tch_checkpoint::load::read_tensor;
use tch_checkpoint::save::{SaveOptions, save};
use tch_checkpoint::state::{StateDict, TensorSource};
use tch_checkpoint::storage::{LocalStorage, Storage};
use tch_checkpoint::tensor::{Component, Dtype, TensorName, TensorSpec};
use tch_checkpoint::{
    Error, ErrorKind, LocalRank, OnExisting, ProcessGroup, Rank, Result, WorldSize,
};

use crate::alone;

const CHILD: &str = "TCH_CHECKPOINT_TEST_SECRETS";
/// Where rank 0 listens, in a child that is a rank.
const PORT: &str = "TCH_CHECKPOINT_TEST_SECRETS_PORT";

/// Variables of a job, and what must not be seen anywhere.
const VARIABLES: [(&str, &str); 6] = [
    ("TCH_CHECKPOINT_TOKEN", "CANARY-token-of-the-job"),
    ("AWS_SECRET_ACCESS_KEY", "CANARY-aws-secret"),
    ("AWS_SESSION_TOKEN", "CANARY-aws-session"),
    ("HF_TOKEN", "CANARY-hugging-face"),
    ("GOOGLE_APPLICATION_CREDENTIALS_JSON", "CANARY-google"),
    ("WANDB_API_KEY", "CANARY-wandb"),
];
const MARK: &str = "CANARY-";

/// Addresses that somebody takes for paths.
const ADDRESSES: [&str; 6] = [
    "s3://user:CANARY-password@bucket/run",
    "s3://CANARY-key@bucket/run/a",
    "https://user:CANARY-password@example.org:8080/run?X-Amz-Signature=CANARY-signature",
    "gs://bucket/run?token=CANARY-query",
    "hdfs://CANARY-user:CANARY:x@host/run",
    "file://user:CANARY-password@localhost/tmp/run",
];

struct Panics;

impl TensorSource for Panics {
    fn read_into(&self, _: u64, _: &mut [u8]) -> Result<()> {
        panic!("a source that panics")
    }
}

fn state(source: Arc<dyn TensorSource>) -> StateDict {
    let mut state = StateDict::new();
    let spec = TensorSpec::new(Dtype::F32, vec![1000]).unwrap();
    state.add(&Component::model(), TensorName::new("w").unwrap(), spec, source).unwrap();
    state
}

#[expect(clippy::print_stderr, reason = "what is shown of the API is looked at as well")]
fn show(what: &dyn std::fmt::Debug) {
    eprintln!("{what:?}\n{what:#?}");
}

/// Saves, loads, fails, panics and shows itself, with all that it logs on standard error.
fn tell_all(dir: &Path) {
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    if let Ok(port) = std::env::var(PORT) {
        return be_a_rank(dir, &port);
    }
    let (solo, storage) = (ProcessGroup::from_env().unwrap(), LocalStorage::new());
    let options = SaveOptions { on_existing: OnExisting::Replace, ..SaveOptions::default() };
    let path = CheckpointPath::parse(dir.join("a")).unwrap();
    let report = save(&solo, &storage, &path, &state(Arc::new(vec![1; 4000])), &options).unwrap();
    show(&report);
    let panicked = save(&solo, &storage, &path, &state(Arc::new(Panics)), &options).unwrap_err();
    show(&panicked);
    let wanted = Wanted::from(path.clone());
    show(&read_tensor(&storage, &wanted, "w").map(|(spec, _)| spec));
    show(&(&solo, &path, &wanted, &options));
    show(&JobId::new("job", "CANARY-token-of-the-job"));
    for address in ADDRESSES {
        for error in of_address(&solo, address) {
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
            show(&error);
            show(&error.to_string());
        }
    }
}

/// What everything says that takes a path.
fn of_address(solo: &ProcessGroup, address: &str) -> Vec<Error> {
    let storage = LocalStorage::new();
    let options = SaveOptions::default();
    let name = CheckpointName::new("a").unwrap();
    let path = CheckpointPath::new(address, name);
    let config = CheckpointerConfig {
        location: Location::Path(address.into()),
        experiment: "run".to_owned(),
        save_on_signal: false,
        save_before_time_limit: false,
        ..CheckpointerConfig::default()
    };
    let wanted = Wanted::from(path.clone());
    vec![
        CheckpointPath::parse(address).unwrap_err(),
        Wanted::parse(address).unwrap_err(),
        storage.open_dir(Path::new(address)).map(drop).unwrap_err(),
        storage.create_dir_all(Path::new(address)).map(drop).unwrap_err(),
        save(solo, &storage, &path, &state(Arc::new(vec![1; 4000])), &options).unwrap_err(),
        read_tensor(&storage, &wanted, "w").unwrap_err(),
        read_tensor(&storage, &Wanted::latest(address), "w").unwrap_err(),
        find_checkpoints(&storage, Path::new(address), &Order::Latest).unwrap_err(),
        Checkpointer::new(solo, config).map(drop).unwrap_err(),
    ]
}

/// One of two ranks over TCP, or a stranger with another token who wants to be one.
fn be_a_rank(dir: &Path, port: &str) {
    let rank: u32 = std::env::var("RANK").unwrap().parse().unwrap();
    let token = std::env::var("TCH_CHECKPOINT_TOKEN").unwrap();
    // A stranger asks again and again.
    let join = Duration::from_secs(if token == VARIABLES[0].1 { 30 } else { 2 });
    let progress = Duration::from_secs(10);
    let deadlines = Deadlines { join, progress, ..Deadlines::default() };
    let joined = ProcessGroup::tcp(
        Rank::new(rank),
        LocalRank(rank),
        WorldSize::new(2).unwrap(),
        &format!("127.0.0.1:{port}"),
        JobId::new("job", token),
        deadlines,
    );
    show(&joined);
    let Ok(group) = joined else { return };
    let path = CheckpointPath::parse(dir.join("ranks")).unwrap();
    let (storage, options) = (LocalStorage::new(), SaveOptions::default());
    show(&save(&group, &storage, &path, &state(Arc::new(vec![1; 4000])), &options));
}

fn child(dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "secrets::secrets_are_not_told", "--nocapture"]).env(CHILD, dir);
    command.envs(VARIABLES).current_dir(dir).stdin(Stdio::null());
    command.env("TCH_CHECKPOINT_TRACE", dir.join("trace.json")).env("RUST_BACKTRACE", "full");
    command
}

/// Two ranks, and one who has read the address but not the token.
fn ranks(dir: &Path) -> String {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let start = |rank: &str, token: &str| {
        let mut command = child(dir);
        command.env(PORT, port.to_string()).env("RANK", rank).env("TCH_CHECKPOINT_TOKEN", token);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let token = VARIABLES[0].1;
    let mut all = vec![start("0", token), start("1", "CANARY-of-a-stranger")];
    // He is sent away before the other comes, or later: rank 0 says something in both cases.
    std::thread::sleep(Duration::from_millis(200));
    all.push(start("1", token));
    all.into_iter().map(|child| said(child.wait_with_output().unwrap())).collect()
}

fn said(output: std::process::Output) -> String {
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{text}");
    text
}

/// Every name and every byte below a directory that has a secret in it.
fn leaks(dir: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let holds = |bytes: &[u8]| bytes.windows(MARK.len()).any(|w| w == MARK.as_bytes());
        let is_leak = holds(path.file_name().unwrap().as_encoded_bytes())
            || (path.is_file() && holds(&fs::read(&path).unwrap()));
        if is_leak {
            found.push(path.display().to_string());
        }
        if path.is_dir() {
            leaks(&path, found);
        }
    }
}

#[test]
fn secrets_are_not_told() {
    if let Some(dir) = std::env::var_os(CHILD) {
        return tell_all(Path::new(&dir));
    }
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let told = said(child(dir.path()).output().unwrap()) + &ranks(dir.path());
    for word in ["DEBUG", "a source that panics", "JobId", "s3://"] {
        assert!(told.contains(word), "nothing of `{word}` was told:\n{told}");
    }
    let shown: Vec<_> = told.lines().filter(|line| line.contains(MARK)).collect();
    assert!(shown.is_empty(), "{shown:#?}");
    let mut found = Vec::new();
    leaks(dir.path(), &mut found);
    assert_eq!(found, [""; 0]);
    let mut names: Vec<_> =
        fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    let expected =
        [".tch-checkpoint.lock", "a", "ranks", "trace.json", "trace.rank1.json"].map(OsStr::new);
    assert_eq!(names, expected, "an address became a directory");
}

fn read_of(pid: u32, what: &str) -> String {
    let bytes = fs::read(format!("/proc/{pid}/{what}")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', "\n")
}

fn children_of(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|child| child.parse().ok()).collect()
}

/// What others may read of a process: its arguments. The token of ranks that are processes is not
/// among them, and neither is any variable.
#[test]
fn the_token_of_ranks_is_no_argument() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_tch-checkpoint"));
    command.args(["stress", "loop", "--bytes", "4096", "--ranks", "2", "--transport", "tcp"]);
    command.arg("--dir").arg(dir.path()).args(["--keep", "1"]).envs(VARIABLES);
    let mut running: Child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut first = String::new();
    let mut lines = BufReader::new(running.stdout.take().unwrap());
    lines.read_line(&mut first).unwrap();
    let children = children_of(running.id());
    let told: Vec<(String, String)> = children
        .iter()
        .map(|child| (read_of(*child, "cmdline"), read_of(*child, "environ")))
        .collect();
    running.kill().unwrap();
    running.wait().unwrap();
    assert!(first.starts_with("COMMITTED"), "{first}");
    assert_eq!(told.len(), 2, "two ranks");
    for (arguments, variables) in told {
        assert!(!arguments.contains(MARK), "{arguments}");
        let seat =
            variables.lines().find_map(|line| line.strip_prefix("TCH_CHECKPOINT_STRESS_RANK="));
        let token = seat.and_then(|seat| seat.split(':').nth(2)).expect("a seat with a token");
        assert!(token.len() == 32 && !arguments.contains(token), "{arguments}");
    }
}
