//! Every verb that looks: a reader that leaves early, no colour, nothing about progress in a pipe.

use std::process::Stdio;

use crate::snapshot::Made;
use crate::{Folder, command, output_of};

fn verbs(folder: &Folder) -> Vec<Vec<String>> {
    for step in [1, 2] {
        let made = Made::new(step, 0).metric("val_loss", 1.0).automatic();
        made.floats("w", &[512], &[step as f32; 512]).save(folder);
    }
    let (a, b, dir) = (folder.at("step-0001"), folder.at("step-0002"), folder.path().to_owned());
    let new = ["out.st", "out-2", "out.html", "again"].map(|name| folder.at(name));
    let [st, two, html, again] = new.each_ref().map(String::as_str);
    let all: [&[&str]; 26] = [
        &["ls", &dir],
        &["ls", "--json", &dir],
        &["inspect", &a],
        &["inspect", "--json", &a],
        &["inspect", "--tensor", "w", &a],
        &["diff", &a, &b],
        &["diff", "--json", &a, &b],
        &["verify", &a],
        &["du", &dir],
        &["du", "--json", &dir],
        &["prune", "--keep-last", "1", "--dry-run", &dir],
        &["prune", "--keep-last", "1", "--dry-run", "--json", &dir],
        &["completions", "bash"],
        &["verify", "--json", &a],
        &["verify", "--json", "--all", "--dir", &dir],
        &["latest", "--json", "--dir", &dir],
        &["repair", "--json", &a],
        &["repair", "--json", &dir],
        &["reshard", "--json", &a, "--world-size", "2", "-o", two],
        &["export", "--json", &a, "--format", "safetensors", "-o", st],
        &["import", "--json", st, "-o", again],
        &["report", "--json", &dir, "-o", html],
        &["watch", "--json", "--for", "1", &dir],
        &["stress", "save", "--json", "--step", "7", "--bytes", "9", "--dir", &dir],
        &["bench", "--json", "--bytes", "8192", "--rounds", "1", "--dir", &dir],
        &["stress", "load", "--json", "--step", "7", "--dir", &dir],
    ];
    all.iter().map(|verb| verb.iter().map(|word| (*word).to_owned()).collect()).collect()
}

#[test]
fn a_reader_that_leaves_is_no_error_of_any_verb() {
    let folder = Folder::new();
    for verb in verbs(&folder) {
        let words: Vec<&str> = verb.iter().map(String::as_str).collect();
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let child = command(&words).stdout(writer).stderr(Stdio::piped()).spawn().unwrap();
        let output = output_of(child, &format!("{words:?}"));
        let code = if words[0] == "diff" { 4 } else { 0 };
        assert_eq!(output.status.code(), Some(code), "{words:?}");
        assert!(output.stderr.is_empty(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn a_pipe_gets_neither_colours_nor_progress_and_json_by_lines() {
    let folder = Folder::new();
    for verb in verbs(&folder) {
        let words: Vec<&str> = verb.iter().map(String::as_str).collect();
        let mut command = command(&words);
        command.env("NO_COLOR", "1").stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = output_of(command.spawn().unwrap(), &format!("{words:?}"));
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.stderr.is_empty() && !text.contains('\u{1b}'), "{words:?}: {text}");
        if words.contains(&"--json") {
            assert!(!text.is_empty(), "{words:?}");
            for line in text.lines() {
                let object: serde_json::Value = serde_json::from_str(line).unwrap();
                assert!(object.is_object(), "{words:?}: {line}");
            }
        }
    }
}
