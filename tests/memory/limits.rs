//! The command under a limit of address space: it works, or says why not. It never dies.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const MIB: u64 = 1 << 20;
const TERABYTE: u64 = 1 << 40;
/// Enough for two ranks in one process, with their buffers, and less than the states here.
const ENOUGH_MIB: u64 = 128;
const STATE_BYTES: u64 = 256 * MIB;

/// Runs the command with at most so much address space.
fn limited(mib: u64, arguments: &[&str], dir: &Path) -> Output {
    let script = format!("ulimit -v {} && exec \"$0\" \"$@\"", mib << 10);
    Command::new("sh")
        .args(["-c", &script, env!("CARGO_BIN_EXE_tch-checkpoint")])
        .args(arguments)
        .arg(dir)
        // Else each thread of the C library sets 64 MiB of addresses aside, and no memory.
        .env("MALLOC_ARENA_MAX", "1")
        .env_remove("TCH_CHECKPOINT_SABOTAGE")
        .output()
        .unwrap()
}

fn save(mib: u64, dir: &Path, step: u64, bytes: u64) -> Output {
    let (step, bytes) = (step.to_string(), bytes.to_string());
    let arguments = ["stress", "save", "--ranks", "2", "--step", &step, "--bytes", &bytes, "--dir"];
    limited(mib, &arguments, dir)
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap_or_else(|| panic!("died: {output:?}"))
}

#[track_caller]
fn assert_ok(output: &Output) {
    assert_eq!(code(output), 0, "{output:?}");
}

/// An error that says what is wrong, with the exit code of its kind.
#[track_caller]
fn assert_refused(output: &Output, codes: &[i32]) {
    assert!(codes.contains(&code(output)), "{output:?}");
    assert!(!output.stderr.is_empty() || !output.stdout.is_empty(), "{output:?}");
}

/// The first file of a checkpoint whose name begins so.
fn file_of(checkpoint: &Path, begin: &str) -> PathBuf {
    let entries = std::fs::read_dir(checkpoint).unwrap().map(|entry| entry.unwrap().path());
    let is_wanted = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with(begin);
    entries.into_iter().find(is_wanted).unwrap()
}

#[test]
fn a_state_larger_than_the_limit_is_saved_and_verified() {
    let dir = tempfile::tempdir().unwrap();
    assert_ok(&save(ENOUGH_MIB, dir.path(), 1, STATE_BYTES));
    assert_ok(&limited(ENOUGH_MIB, &["verify"], &dir.path().join("step-00000001")));
    assert_ok(&limited(ENOUGH_MIB, &["stress", "load", "--dir"], dir.path()));
    assert_ok(&limited(ENOUGH_MIB, &["latest", "--dir"], dir.path()));
}

#[test]
fn less_than_enough_is_an_error_and_harms_nothing() {
    let dir = tempfile::tempdir().unwrap();
    assert_ok(&save(ENOUGH_MIB, dir.path(), 1, 24 * MIB));
    let mut refused = 0;
    for mib in (36..=84).step_by(12) {
        let output = save(mib, dir.path(), 1 + mib, 24 * MIB);
        refused += u32::from(code(&output) != 0);
        if code(&output) != 0 {
            assert_refused(&output, &[1, 3]);
        }
        assert_ok(&limited(ENOUGH_MIB, &["verify"], &dir.path().join("step-00000001")));
    }
    assert!(refused > 0, "no limit was short");
}

#[test]
fn a_file_that_claims_a_terabyte_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    assert_ok(&save(ENOUGH_MIB, dir.path(), 1, MIB));
    let checkpoint = dir.path().join("step-00000001");
    for begin in ["model-", "sums-", "manifest.bin"] {
        let path = file_of(&checkpoint, begin);
        let before = std::fs::read(&path).unwrap();
        OpenOptions::new().write(true).open(&path).unwrap().set_len(TERABYTE).unwrap();
        assert_refused(&limited(ENOUGH_MIB, &["verify"], &checkpoint), &[3]);
        std::fs::write(&path, before).unwrap();
        assert_ok(&limited(ENOUGH_MIB, &["verify"], &checkpoint));
    }
}

/// As long as a manifest or header may be: there is no room for it here, so nobody can say whether
/// it is good.
#[test]
fn a_manifest_or_header_beyond_the_limit_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = dir.path().join("step-1");
    std::fs::create_dir(&checkpoint).unwrap();
    let manifest = File::create(checkpoint.join("manifest.bin")).unwrap();
    manifest.set_len(1 << 30).unwrap();
    assert_refused(&limited(ENOUGH_MIB, &["verify"], &checkpoint), &[1, 3]);
    for (claimed, codes) in
        [(u64::MAX, [3, 7]), (TERABYTE, [3, 7]), (100_000_001, [3, 7]), (100_000_000, [1, 3])]
    {
        let path = dir.path().join("hostile.safetensors");
        let file = File::create(&path).unwrap();
        file.set_len(TERABYTE).unwrap();
        file.write_all_at(&claimed.to_le_bytes(), 0).unwrap();
        file.write_all_at(b"{", 8).unwrap();
        assert_refused(&limited(ENOUGH_MIB, &["verify"], &path), &codes);
        assert_refused(&limited(ENOUGH_MIB, &["inspect"], &path), &codes);
    }
}
