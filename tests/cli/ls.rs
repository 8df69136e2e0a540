//! `ls`.

use std::fs;

use crate::snapshot::{Made, assert_snapshot, verb};
use crate::{Folder, assert_code, command, flip, output_of, shard};

/// A run with a curve, and beside it what is no checkpoint of it.
fn run_of(steps: u64) -> Folder {
    let folder = Folder::new();
    for step in 1..=steps {
        let loss = 2.0 / step as f64;
        let made = Made::new(step * 100, step).metric("val_loss", loss).metric("lr", 1e-4);
        made.automatic().floats("w", &[64, 8], &vec![0.5; 512]).save(&folder);
    }
    folder
}

#[test]
fn ls_shows_a_run() {
    let folder = run_of(4);
    std::os::unix::fs::symlink("step-0300", folder.at("best")).unwrap();
    fs::write(folder.at(".step-0100.pin"), "").unwrap();
    assert_snapshot("ls", &verb("ls", folder.path(), &[]), &folder);
    assert_snapshot("ls_json", &verb("ls", folder.path(), &["--json"]), &folder);
    let by_metric = verb("ls", folder.path(), &["--monitor", "val_loss", "--mode", "min"]);
    assert!(by_metric.stdout.contains(">*  step-0400"), "{}", by_metric.stdout);
}

#[test]
fn who_lists_a_checkpoint_is_told_how_to_look_into_it() {
    let folder = run_of(1);
    let ran = verb("ls", &folder.at("step-0100"), &[]);
    assert_code(&ran, 0);
    assert!(ran.stderr.contains("inspect"), "{}", ran.stderr);
    assert_eq!(verb("ls", folder.path(), &[]).stderr, "");
}

#[test]
fn ls_shows_what_is_damaged_partial_or_foreign() {
    let folder = run_of(3);
    fs::write(shard(&folder.at("step-0200")), "short").unwrap();
    fs::remove_file(folder.at("step-0300/manifest.bin")).unwrap();
    let attempt = ".step-0400.00112233445566778899aabbccddeeff.partial";
    fs::create_dir(folder.at(attempt)).unwrap();
    fs::create_dir(folder.at("wandb")).unwrap();
    fs::write(folder.at("notes.txt"), "text").unwrap();
    assert_snapshot("ls_damaged", &verb("ls", folder.path(), &[]), &folder);
    assert_snapshot("ls_damaged_json", &verb("ls", folder.path(), &["--json"]), &folder);
}

#[test]
fn ls_of_what_is_no_directory_of_checkpoints() {
    let folder = Folder::new();
    assert_snapshot("ls_empty", &verb("ls", folder.path(), &[]), &folder);
    assert_snapshot("ls_missing", &verb("ls", &folder.at("missing"), &[]), &folder);
    fs::write(folder.at("file"), "text").unwrap();
    assert_code(&verb("ls", &folder.at("file"), &[]), 7);
    assert_code(&verb("ls", folder.path(), &["--mode", "min"]), 2);
}

/// A listing fits where there is a width, whatever names and metrics are.
#[test]
fn ls_fits_its_width() {
    let folder = Folder::new();
    let name = format!("epoch=003-val_loss=0.1235-{}", "x".repeat(150));
    let made = Made::new(12_345_678, 120).metric("val_loss", 0.123_456).metric("accuracy", 0.987);
    made.floats("w", &[512], &[0.0; 512]).save_as(&folder, &name);
    for columns in [80, 100] {
        let mut command = command(&["ls", folder.path()]);
        command.env("COLUMNS", columns.to_string()).stdout(std::process::Stdio::piped());
        let output = output_of(command.spawn().unwrap(), "ls");
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(text.lines().all(|line| line.chars().count() <= columns), "{columns}: {text}");
        assert!(text.contains("val_loss=0.1235") && text.contains("committed"), "{text}");
    }
    let piped = verb("ls", folder.path(), &[]);
    assert!(piped.stdout.contains(&name), "{}", piped.stdout);
}

/// Thousands of entries that are nobody's are counted and not read.
#[test]
fn ls_passes_over_thousands_of_foreign_entries() {
    let folder = run_of(2);
    for index in 0..3000 {
        fs::write(folder.at(&format!("events.{index}")), "").unwrap();
        if index % 3 == 0 {
            fs::create_dir(folder.at(&format!("cache-{index}"))).unwrap();
        }
    }
    let ran = verb("ls", folder.path(), &[]);
    assert_code(&ran, 0);
    assert!(ran.stdout.contains("2 committed, 4000 foreign"), "{}", ran.stdout);
    assert_eq!(verb("ls", folder.path(), &["--json"]).stdout.lines().count(), 2);
}

#[test]
fn a_damaged_manifest_is_a_row_and_no_end() {
    let folder = run_of(2);
    flip(&std::path::Path::new(&folder.at("step-0200")).join("manifest.bin"), 30);
    let ran = verb("ls", folder.path(), &[]);
    assert_code(&ran, 3);
    assert!(ran.stdout.contains("1 committed, 1 damaged"), "{}", ran.stdout);
}
