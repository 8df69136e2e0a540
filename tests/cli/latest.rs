//! `latest` and `verify --dir`: directories as saves, kills and users leave them.

use std::path::Path;
use std::process::Stdio;

use crate::tier::{Need, has};
use crate::{Folder, assert_code, flip, output_of, run, shard};

/// The last line.
fn last(text: &str) -> &str {
    text.lines().last().unwrap_or_default()
}

/// `LATEST` as it must be for the output of a save.
fn latest_of(committed: &str) -> String {
    committed.trim_end().replace("COMMITTED", "LATEST")
}

fn cut(file: &Path, len: u64) {
    std::fs::OpenOptions::new().write(true).open(file).unwrap().set_len(len).unwrap();
}

#[test]
fn nothing_there_is_no_error() {
    let folder = Folder::new();
    for dir in [folder.path(), &folder.at("missing"), &folder.at("missing/deeper")] {
        for verb in [&["latest"][..], &["verify"], &["stress", "latest"], &["stress", "verify"]] {
            let ran = run(&[verb, &["--dir", dir]].concat());
            assert_code(&ran, 0);
            let there = std::path::Path::new(dir).exists();
            let note =
                if there { "" } else { &format!("note: `{dir}`: there is no such directory\n") };
            assert_eq!(ran.stdout, format!("{note}LATEST none\n"));
            assert_eq!(ran.stderr, "");
        }
    }
    assert_eq!(folder.entries(), [""; 0]);
    std::fs::write(folder.at("file"), "text").unwrap();
    for dir in [folder.at("file"), folder.at("file/below")] {
        let ran = run(&["latest", "--dir", &dir]);
        assert_code(&ran, 7);
        assert!(ran.stderr.contains(&dir), "{}", ran.stderr);
    }
    for usage in [
        &["latest"][..],
        &["verify", "--all"],
        &["verify", "--all", "x"],
        &["verify", "x", "--dir", "y"],
    ] {
        assert_code(&run(usage), 2);
    }
}

#[test]
fn the_newest_is_that_of_the_highest_step() {
    let folder = Folder::new();
    let newest = latest_of(&folder.saved("100000000"));
    folder.saved("9");
    for arguments in [&["latest"][..], &["verify"], &["verify", "--all"]] {
        let ran = run(&[arguments, &["--dir", folder.path()]].concat());
        assert_code(&ran, 0);
        assert_eq!(last(&ran.stdout), newest, "{arguments:?}");
    }
    let all = run(&["verify", "--all", "--dir", folder.path()]).stdout;
    assert_eq!(all.lines().filter(|line| line.starts_with("ok: ")).count(), 2, "{all}");
    let json = run(&["latest", "--json", "--dir", folder.path()]).stdout;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["latest"]["step"], 100_000_000);
    assert!(newest.ends_with(json["latest"]["save_id"].as_str().unwrap()), "{json}");
    assert_eq!((&json["notes"], &json["damaged"]), (&serde_json::json!([]), &json["notes"]));
}

#[test]
fn debris_and_what_is_foreign_are_notes() {
    let folder = Folder::new();
    let newest = latest_of(&folder.saved("1"));
    let id = newest.rsplit(' ').next().unwrap();
    let noted = [
        format!(".step-00000002.{id}.partial"),
        format!(".step-00000001.{id}.old"),
        format!(".trash-{id}"),
        format!(".pointer-{id}"),
        ".hidden".to_owned(),
        "a\u{1b}[31mfolder".to_owned(),
    ];
    for name in &noted {
        std::fs::create_dir(folder.at(name)).unwrap();
        std::fs::write(folder.at(name) + "/manifest.bi", "no").unwrap();
    }
    std::fs::write(folder.at(&noted[0]) + "/manifest.bin", "torn").unwrap();
    std::fs::write(folder.at("notes.txt"), "text").unwrap();
    std::fs::write(folder.at(".step-00000001.pin"), "").unwrap();
    std::os::unix::fs::symlink("step-00000001", folder.at("latest")).unwrap();
    for verb in ["latest", "verify"] {
        let ran = run(&[verb, "--dir", folder.path()]);
        assert_code(&ran, 0);
        assert_eq!(last(&ran.stdout), newest);
        let notes = ran.stdout.lines().filter(|line| line.starts_with("note: ")).count();
        assert_eq!(notes, noted.len() + 1, "{}", ran.stdout);
        assert!(ran.stdout.contains("`a\\u{1b}[31mfolder`: no directory"), "{}", ran.stdout);
    }
    let json = run(&["verify", "--json", "--dir", folder.path()]).stdout;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["notes"].as_array().unwrap().len(), noted.len() + 1);
    assert_eq!(json["verified"][0]["ok"], true);
}

#[test]
fn an_interrupted_replacement_stands_for_its_name() {
    let folder = Folder::new();
    let newest = latest_of(&folder.saved("1"));
    let id = newest.rsplit(' ').next().unwrap();
    let old = folder.at(&format!(".step-00000001.{id}.old"));
    std::fs::rename(folder.at("step-00000001"), old).unwrap();
    for verb in ["latest", "verify"] {
        let ran = run(&[verb, "--dir", folder.path()]);
        assert_code(&ran, 0);
        assert_eq!(last(&ran.stdout), newest);
        assert!(ran.stdout.contains("stands for its name"), "{}", ran.stdout);
    }
}

/// Lengths are right, a byte is not: `verify` alone sees it, and falls back.
#[test]
fn a_damaged_newest_is_passed_over_but_said() {
    let folder = Folder::new();
    let older = latest_of(&folder.saved("1"));
    let newest = latest_of(&folder.saved("2"));
    flip(&shard(&folder.at("step-00000002")), 4096 + 7);
    let quick = run(&["latest", "--dir", folder.path()]);
    assert_code(&quick, 0);
    assert_eq!(last(&quick.stdout), newest);
    for more in [&[][..], &["--all"], &["--json"]] {
        let ran = run(&[&["verify", "--dir", folder.path()], more].concat());
        assert_code(&ran, 3);
        if more == ["--json"] {
            let json: serde_json::Value = serde_json::from_str(&ran.stdout).unwrap();
            assert_eq!(
                (&json["latest"]["step"], &json["verified"][0]["ok"]),
                (&1.into(), &false.into())
            );
        } else {
            assert_eq!(last(&ran.stdout), older);
            assert!(ran.stdout.contains("checksum mismatch"), "{}", ran.stdout);
        }
    }
}

/// The newest is right; `--all` alone looks further.
#[test]
fn a_load_of_the_newest_says_what_it_passes_over() {
    let folder = Folder::new();
    let older = latest_of(&folder.saved("1"));
    folder.saved("2");
    let manifest = folder.at("step-00000002/manifest.bin");
    std::fs::OpenOptions::new().write(true).open(&manifest).unwrap().set_len(100).unwrap();
    let ran = run(&["stress", "load", "--dir", folder.path()]);
    assert_code(&ran, 0);
    assert_eq!(last(&ran.stdout), older.replace("LATEST", "LOADED"));
    assert!(ran.stderr.contains("damaged") && ran.stderr.contains(&manifest), "{}", ran.stderr);
}

#[test]
fn a_damaged_older_one_is_found_by_all() {
    let folder = Folder::new();
    folder.saved("1");
    let newest = latest_of(&folder.saved("2"));
    flip(&shard(&folder.at("step-00000001")), 4096 + 7);
    for (more, code) in [(&[][..], 0), (&["--all"], 3)] {
        let ran = run(&[&["verify", "--dir", folder.path()], more].concat());
        assert_code(&ran, code);
        assert_eq!(last(&ran.stdout), newest);
    }
}

/// What a manifest or a length tells, `latest` sees as well.
#[test]
fn a_visible_checkpoint_that_is_not_whole_is_damage() {
    let torn: [fn(&Path); 4] = [
        |dir| cut(&dir.join("manifest.bin"), 100),
        |dir| cut(&shard(dir.to_str().unwrap()), 5000),
        |dir| std::fs::remove_file(dir.join("manifest.bin")).unwrap(),
        |dir| {
            std::fs::remove_dir_all(dir).unwrap();
            std::fs::create_dir(dir).unwrap();
            std::fs::write(dir.join("manifest.bin"), "").unwrap();
        },
    ];
    for (nth, tear) in torn.into_iter().enumerate() {
        let folder = Folder::new();
        let older = latest_of(&folder.saved("1"));
        folder.saved("2");
        tear(folder.at("step-00000002").as_ref());
        for verb in ["latest", "verify"] {
            let ran = run(&[verb, "--dir", folder.path()]);
            assert_code(&ran, 3);
            assert_eq!(last(&ran.stdout), older, "tear {nth}");
            let said = ran.stdout.lines().filter(|line| line.starts_with("damaged: ")).count();
            assert_eq!(said, 1, "tear {nth}: {}", ran.stdout);
            assert!(ran.stdout.contains("step-00000002"), "tear {nth}: {}", ran.stdout);
        }
    }
}

/// No call by which something could change, and no lock that a save could wait for.
#[test]
fn looking_writes_nothing() {
    if !has(&[Need::Program("strace")]) {
        return;
    }
    let folder = Folder::new();
    folder.saved("1");
    folder.saved("2");
    flip(&shard(&folder.at("step-00000002")), 5000);
    let before = folder.entries();
    let logs = Folder::new();
    for (arguments, code) in [(&["latest"][..], 0), (&["verify", "--all"], 3)] {
        let log = logs.at("log");
        let mut strace = crate::tier::program("strace");
        strace.args(["-f", "-qq", "-o", &log, env!("CARGO_BIN_EXE_tch-checkpoint")]);
        strace.args(arguments).args(["--dir", folder.path()]).stdout(Stdio::null());
        let output = output_of(strace.spawn().unwrap(), "strace");
        assert_eq!(output.status.code(), Some(code));
        let log = std::fs::read_to_string(log).unwrap();
        assert!(log.contains("\"step-00000001\""), "the log shows what was opened");
        let flags = ["O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC", "tch-checkpoint.lock\""];
        let calls =
            ["flock", "fsync", "mkdir", "unlink", "rename", "symlink", "truncate", "pwrite"];
        // The loader and the runtime may open their own files as they like.
        let own =
            |line: &&str| ["step-", ".safetensors", ".lock"].iter().any(|part| line.contains(part));
        let wrote =
            log.lines().filter(own).find(|line| flags.iter().any(|flag| line.contains(flag)));
        let changed = log.lines().find(|line| calls.iter().any(|call| line.contains(call)));
        assert_eq!((wrote, changed), (None, None), "{arguments:?}");
    }
    assert_eq!(folder.entries(), before);
}

/// Without `--dir`: what is no checkpoint but holds some.
#[test]
fn verify_of_a_directory_of_checkpoints_is_that_of_its_newest() {
    let folder = Folder::new();
    let newest = latest_of(&folder.saved("2"));
    let ran = run(&["verify", folder.path()]);
    assert_code(&ran, 0);
    assert_eq!(last(&ran.stdout), newest);
    std::fs::create_dir(folder.at("empty")).unwrap();
    assert_code(&run(&["verify", &folder.at("empty")]), 7);
}
