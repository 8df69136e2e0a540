//! `watch`: what is told of a job while it saves.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};

use crate::snapshot::{Made, assert_snapshot, verb};
use crate::{Folder, Ran, assert_code, command, flip, output_of};

/// A watch whose lines are read as they come.
struct Watching {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Watching {
    fn begin(folder: &Folder, more: &[&str]) -> Self {
        let arguments = ["watch", folder.path(), "--interval", "0.1", "--for", "50"];
        let mut command = command(&[&arguments, more].concat());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    /// The next line; the watch ends by itself if none comes.
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "the watch has ended");
        line
    }

    fn end(mut self) -> (Option<i32>, String) {
        let mut rest = String::new();
        self.lines.read_to_string(&mut rest).unwrap();
        (output_of(self.child, "watch").status.code(), rest)
    }
}

fn made(step: u64) -> Made {
    Made::new(step, 1).metric("loss", 0.5).floats("w", &[512], &[0.0; 512])
}

#[test]
fn watch_tells_of_saves_and_ends_after_so_many() {
    let folder = Folder::new();
    made(1).save(&folder);
    let mut watching = Watching::begin(&folder, &["--count", "2"]);
    let mut said = watching.line();
    let attempt = folder.at(".step-0009.00112233445566778899aabbccddeeff.partial");
    fs::create_dir(&attempt).unwrap();
    said += &watching.line();
    fs::remove_dir(&attempt).unwrap();
    said += &watching.line();
    made(2).save(&folder);
    said += &watching.line();
    fs::remove_dir_all(folder.at("step-0001")).unwrap();
    said += &watching.line();
    made(3).save(&folder);
    let (code, rest) = watching.end();
    // A save may have been seen on its way.
    let rest = rest.lines().filter(|line| !line.starts_with("saving") && !line.starts_with("late"));
    let said = said + &rest.collect::<Vec<_>>().join("\n") + "\n";
    let ran = Ran { code, stdout: said, stderr: String::new() };
    assert_snapshot("watch", &ran, &folder);
}

#[test]
fn watch_waits_for_a_directory_and_tells_in_json() {
    let folder = Folder::new();
    let dir = folder.at("later");
    let mut watching = {
        let mut command =
            command(&["watch", &dir, "--interval", "0.1", "--count", "1", "--json", "--for", "50"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Watching { child, lines }
    };
    let first: serde_json::Value = serde_json::from_str(&watching.line()).unwrap();
    assert_eq!((&first["event"], &first["exists"]), (&"watching".into(), &false.into()));
    let ran = crate::run(&["stress", "save", "--dir", &dir, "--step", "1", "--bytes", "100"]);
    assert_code(&ran, 0);
    let (code, rest) = watching.end();
    assert_eq!(code, Some(0));
    let events: Vec<serde_json::Value> =
        rest.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let committed = events.iter().find(|event| event["event"] == "committed").unwrap();
    assert_eq!((&committed["name"], &committed["step"]), (&"step-00000001".into(), &1.into()));
}

#[test]
fn watch_ends_with_nothing_wrong_when_it_is_told_to() {
    let folder = Folder::new();
    let mut watching = Watching::begin(&folder, &[]);
    assert!(watching.line().starts_with("watching"));
    let pid = rustix::process::Pid::from_child(&watching.child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(watching.end(), (Some(0), String::new()));
    assert_code(&verb("watch", folder.path(), &["--for", "0.1"]), 0);
}

#[test]
fn watch_of_damage_and_of_what_is_no_directory() {
    let folder = Folder::new();
    let at = made(1).save(&folder);
    let mut watching = Watching::begin(&folder, &["--count", "1"]);
    watching.line();
    let manifest = std::path::Path::new(&at).join("manifest.bin");
    let end = usize::try_from(fs::metadata(&manifest).unwrap().len()).unwrap() - 1;
    flip(&manifest, end);
    let line = watching.line();
    assert!(line.starts_with("damaged    step-0001: "), "{line}");
    made(2).save(&folder);
    assert_eq!(watching.end().0, Some(0));
    fs::write(folder.at("file"), "text").unwrap();
    assert_code(&verb("watch", &folder.at("file"), &["--for", "1"]), 7);
    for bad in [["--interval", "0"], ["--interval", "nan"], ["--for", "-1"], ["--late", "0"]] {
        assert_code(&verb("watch", folder.path(), &bad), 2);
    }
}

/// Nothing happens that it could write of, and it ends nevertheless.
#[test]
fn watch_ends_when_nobody_reads() {
    let folder = Folder::new();
    let mut command = command(&["watch", folder.path(), "--interval", "600"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert!(line.starts_with("watching"), "{line}");
    drop(lines);
    let output = output_of(child, "watch");
    assert_eq!((output.status.code(), output.stderr), (Some(0), Vec::new()));
}
