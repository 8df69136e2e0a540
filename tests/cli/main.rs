//! The command, run as a user runs it: exit codes, what it prints, and that nothing panics.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod bench;
mod browser;
mod code;
mod diff;
mod doctor;
mod export;
mod inspect;
mod latest;
mod launch;
#[path = "../jobs/launched.rs"]
#[allow(unreachable_pub, reason = "helpers of tests")]
mod launched;
mod linked;
mod ls;
mod manual;
#[path = "../jobs/marked.rs"]
#[allow(unreachable_pub, reason = "helpers of tests")]
mod marked;
mod odd;
mod piped;
mod repair;
mod report;
mod reshard;
mod room;
mod shown;
mod snapshot;
mod stopped;
mod stress;
#[path = "../tier/mod.rs"]
#[allow(unreachable_pub, clippy::print_stderr, reason = "shared with other test binaries")]
mod tier;
mod watch;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// A command that takes longer hangs.
const HANG: Duration = Duration::from_secs(60);

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tch-checkpoint"));
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Waits for a child, or kills it and fails.
fn output_of(child: Child, what: &str) -> Output {
    let pid = rustix::process::Pid::from_child(&child);
    let (sender, ended) = mpsc::channel();
    std::thread::spawn(move || sender.send(child.wait_with_output()));
    ended.recv_timeout(HANG).map(Result::unwrap).unwrap_or_else(|_| {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        panic!("{what} hangs");
    })
}

#[derive(Clone)]
struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

fn run(arguments: &[&str]) -> Ran {
    let mut command = command(arguments);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let output = output_of(child, &format!("{arguments:?}"));
    Ran {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

#[track_caller]
fn assert_code(ran: &Ran, code: i32) {
    assert_eq!(ran.code, Some(code), "stdout: {}\nstderr: {}", ran.stdout, ran.stderr);
    assert!(!ran.stderr.contains("panicked"), "{}", ran.stderr);
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &str {
        self.0.path().to_str().unwrap()
    }

    fn at(&self, name: &str) -> String {
        self.0.path().join(name).to_str().unwrap().to_owned()
    }

    fn save(&self, step: &str, more: &[&str]) -> Ran {
        let arguments = ["stress", "save", "--dir", self.path(), "--step", step];
        run(&[&arguments, more].concat())
    }

    fn saved(&self, step: &str) -> String {
        let ran = self.save(step, &["--ranks", "3", "--bytes", "200000"]);
        assert_code(&ran, 0);
        ran.stdout
    }

    fn entries(&self) -> Vec<String> {
        entries(self.0.path())
    }
}

fn entries(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// The first data file of a checkpoint.
fn shard(checkpoint: &str) -> PathBuf {
    let dir = Path::new(checkpoint);
    let names = entries(dir);
    dir.join(names.iter().find(|name| name.ends_with(".safetensors")).unwrap())
}

fn flip(file: &Path, at: usize) {
    let mut bytes = std::fs::read(file).unwrap();
    bytes[at] ^= 0x10;
    std::fs::write(file, bytes).unwrap();
}

#[test]
fn stress_save_commits_and_says_so() {
    let folder = Folder::new();
    let line = folder.saved("7");
    let id = line.strip_prefix("COMMITTED 7 ").unwrap().strip_suffix('\n').unwrap();
    assert_eq!((id.len(), id.bytes().all(|b| b.is_ascii_hexdigit())), (32, true), "{line}");
    assert_eq!(folder.entries(), [".tch-checkpoint.lock", "step-00000007"]);
    let ran = run(&["verify", &folder.at("step-00000007")]);
    assert_code(&ran, 0);
    assert!(ran.stdout.starts_with("ok: "), "{}", ran.stdout);
    assert!(shard(&folder.at("step-00000007")).to_str().unwrap().contains(id));
    let again = folder.save("7", &["--bytes", "10"]);
    assert_code(&again, 7);
    assert_eq!(again.stdout, "");
    assert!(again.stderr.contains("already exists"), "{}", again.stderr);
    assert_code(&run(&["verify", &folder.at("step-00000007")]), 0);
}

#[test]
fn inspect_shows_what_is_there() {
    let folder = Folder::new();
    folder.saved("3");
    let line = folder.saved("12");
    let id = line.split_whitespace().last().unwrap();
    for at in ["step-00000012", "latest"] {
        let ran = run(&["inspect", "--list", &folder.at(at)]);
        assert_code(&ran, 0);
        for words in ["stress.0", "stress.3", "[50000]", "model", "U8", "stress.step", "12", id] {
            assert!(ran.stdout.contains(words), "{words} is not in {}", ran.stdout);
        }
        let ran = run(&["inspect", "--json", &folder.at(at)]);
        assert_code(&ran, 0);
        let json: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
        assert_eq!((&json["step"], &json["world_size"]), (&12.into(), &3.into()));
        assert_eq!((&json["save_id"], &json["tensor_bytes"].is_u64()), (&id.into(), &true));
        assert_eq!(json["tensors"].as_array().unwrap().len(), 4);
        assert_eq!(json["tensors"][0]["shape"], serde_json::json!([50000]));
        assert_eq!(json["values"]["stress.step"], 12);
    }
}

#[test]
fn the_best_is_what_the_link_names() {
    let folder = Folder::new();
    folder.saved("3");
    folder.saved("12");
    let missing = run(&["inspect", &folder.at("best")]);
    assert_code(&missing, 7);
    assert!(missing.stderr.contains("step-00000003, step-00000012"), "{}", missing.stderr);
    std::os::unix::fs::symlink("step-00000003", folder.at("best")).unwrap();
    let ran = run(&["inspect", "--json", &folder.at("best")]);
    assert_code(&ran, 0);
    let json: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(json["step"], 3);
    assert_code(&run(&["verify", &folder.at("best")]), 0);
    std::fs::remove_file(folder.at("best")).unwrap();
    std::os::unix::fs::symlink(folder.at("step-00000003"), folder.at("best")).unwrap();
    let outside = run(&["inspect", &folder.at("best")]);
    assert_code(&outside, 7);
    assert!(outside.stderr.contains("no name of a checkpoint"), "{}", outside.stderr);
}

#[test]
fn verify_names_the_damaged_place() {
    let folder = Folder::new();
    folder.saved("1");
    let at = folder.at("step-00000001");
    let file = shard(&at);
    flip(&file, 4096 + 20_000);
    let ran = run(&["verify", &at]);
    assert_code(&ran, 3);
    let name = file.file_name().unwrap().to_str().unwrap();
    for words in [name, "tensor `stress.1`", "offset ", "damaged: "] {
        assert!(ran.stdout.contains(words), "{words} is not in {}", ran.stdout);
    }
    let ran = run(&["verify", "--json", &at]);
    assert_code(&ran, 3);
    let json: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(json["ok"], false);
    let place = &json["damage"][0];
    assert!(place["file"].as_str().unwrap().ends_with(name), "{json}");
    assert_eq!((&place["tensor"], place["offset"].is_u64()), (&"stress.1".into(), true), "{json}");
    flip(&file, 4096 + 20_000);
    assert_code(&run(&["verify", &at]), 0);
    flip(&Path::new(&at).join("manifest.bin"), 30);
    for verb in ["verify", "inspect"] {
        let ran = run(&[verb, &at]);
        assert_code(&ran, 3);
        assert!(ran.stderr.contains("manifest.bin"), "{}", ran.stderr);
    }
}

/// A checkpoint that is one file is looked at and verified like a directory.
#[test]
fn inspect_and_verify_take_a_single_file() {
    use tch_checkpoint::state::StateDict;
    use tch_checkpoint::storage::LocalStorage;
    use tch_checkpoint::tensor::{Component, Dtype, TensorName, TensorSpec};
    let folder = Folder::new();
    let at = folder.at("x.safetensors");
    let mut state = StateDict::new();
    let spec = TensorSpec::new(Dtype::U8, [300]).unwrap();
    let bytes = std::sync::Arc::new(vec![7u8; 300]);
    state.add(&Component::model(), TensorName::new("weights").unwrap(), spec, bytes).unwrap();
    tch_checkpoint::single::save_single_file(
        &tch_checkpoint::ProcessGroup::solo(),
        &LocalStorage::new(),
        &tch_checkpoint::CheckpointPath::parse(&at).unwrap(),
        &state,
        &tch_checkpoint::SaveOptions::default(),
    )
    .unwrap();
    let shown = run(&["inspect", &at]);
    assert_code(&shown, 0);
    assert!(shown.stdout.contains("weights") && shown.stdout.contains(&at), "{}", shown.stdout);
    let good = run(&["verify", &at]);
    assert_code(&good, 0);
    assert!(good.stdout.contains(&format!("ok: {at}: 1 files")), "{}", good.stdout);
    flip(Path::new(&at), 4096 + 10);
    let bad = run(&["verify", &at]);
    assert_code(&bad, 3);
    assert!(bad.stdout.contains("checksum mismatch"), "{}", bad.stdout);
}

#[test]
fn verify_notes_what_does_not_belong() {
    let folder = Folder::new();
    folder.saved("1");
    let at = folder.at("step-00000001");
    std::fs::write(Path::new(&at).join("notes\u{1b}[31m.txt"), "text").unwrap();
    let ran = run(&["verify", &at]);
    assert_code(&ran, 0);
    assert!(ran.stdout.contains("note: `notes\\u{1b}[31m.txt`"), "{}", ran.stdout);
}

#[test]
fn paths_and_arguments_that_cannot_work() {
    let folder = Folder::new();
    folder.saved("1");
    for verb in ["verify", "inspect"] {
        for (at, words) in [("missing", "step-00000001"), ("missing/deeper", ""), ("..", "")] {
            let ran = run(&[verb, &folder.at(at)]);
            assert_code(&ran, 7);
            assert_eq!(ran.stdout, "");
            assert!(ran.stderr.contains(words), "{}", ran.stderr);
        }
    }
    let usage: [&[&str]; 6] = [
        &[],
        &["nonsense"],
        &["verify"],
        &["stress"],
        &["stress", "save", "--dir", "x"],
        &["stress", "save", "--dir", "x", "--step", "-1", "--bytes", "1"],
    ];
    for arguments in usage {
        assert_code(&run(arguments), 2);
    }
    for arguments in [&["--help"][..], &["--version"], &["stress", "save", "--help"]] {
        assert_code(&run(arguments), 0);
    }
    assert!(!Path::new("x").exists());
}

#[test]
fn a_reader_that_has_seen_enough() {
    let folder = Folder::new();
    folder.saved("1");
    let at = folder.at("step-00000001");
    for arguments in [&["inspect", &at][..], &["inspect", "--json", &at], &["verify", &at]] {
        let mut child =
            command(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let mut stderr = String::new();
        child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
        let output = output_of(child, "a closed pipe");
        assert_eq!((output.status.code(), stderr.as_str()), (Some(0), ""), "{arguments:?}");
    }
    // The verdict stands, whoever listens.
    flip(&shard(&at), 5000);
    let mut child = command(&["verify", &at]).stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(output_of(child, "a closed pipe").status.code(), Some(3));
}

#[test]
fn an_output_that_is_full() {
    let folder = Folder::new();
    folder.saved("1");
    let at = folder.at("step-00000001");
    let dir = folder.path();
    let save = ["stress", "save", "--dir", dir, "--step", "2", "--bytes", "9"];
    for arguments in [&["inspect", &at][..], &["inspect", "--json", &at], &["verify", &at], &save] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let child = command(arguments).stdout(full).stderr(Stdio::piped()).spawn().unwrap();
        let output = output_of(child, "a full output");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {stderr}");
        assert!(stderr.contains("standard output"), "{arguments:?}: {stderr}");
    }
}

/// In a mount namespace of its own, so that nothing stays mounted whatever happens.
const ON_A_SMALL_DISK: &str = r#"
set -eu
command=$1 disk=$2
mount -t tmpfs -o size=256k none "$disk"
"$command" stress save --dir "$disk" --step 1 --bytes 60000 --ranks 2
code=0
"$command" stress save --dir "$disk" --step 2 --bytes 1000000 --ranks 2 || code=$?
echo "code $code"
"$command" verify "$disk/step-00000001"
ls -A "$disk"
"$command" stress save --dir "$disk" --step 3 --bytes 60000 --ranks 2
"$command" verify "$disk/latest"
"#;

#[test]
fn a_disk_that_fills_up() {
    if !tier::has(&[tier::Need::Program("unshare")]) {
        return;
    }
    let disk = tempfile::tempdir().unwrap();
    let mut command = tier::program("unshare");
    command.arg("--mount");
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.args(["sh", "-c", ON_A_SMALL_DISK, "sh", env!("CARGO_BIN_EXE_tch-checkpoint")]);
    command.arg(disk.path()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = output_of(command.spawn().unwrap(), "a full disk");
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{stdout}{stderr}\nwhere mounting is forbidden, opt out with TCH_CHECKPOINT_TEST_WITHOUT=unshare"
    );
    let lines: Vec<&str> = stdout.lines().collect();
    let [first, code, verified, lock, kept, third, newest] = &lines[..] else {
        panic!("{lines:?}")
    };
    assert!(first.starts_with("COMMITTED 1 ") && third.starts_with("COMMITTED 3 "), "{lines:?}");
    assert_eq!((*code, *lock, *kept), ("code 3", ".tch-checkpoint.lock", "step-00000001"));
    assert!(verified.starts_with("ok: ") && newest.contains("step-00000003"), "{lines:?}");
    assert!(stderr.contains("no space left") && stderr.contains("MiB there"), "{stderr}");
}
