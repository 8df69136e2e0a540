//! `completions` and `man`.

use std::fs;

use crate::snapshot::verb;
use crate::{Folder, assert_code, run};

const VERBS: [&str; 9] =
    ["ls", "inspect", "diff", "verify", "du", "prune", "latest", "code", "bench"];

#[test]
fn completions_know_the_verbs_in_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ran = run(&["completions", shell]);
        assert_code(&ran, 0);
        for verb in VERBS {
            assert!(ran.stdout.contains(verb), "{verb} is not completed in {shell}");
        }
        assert!(ran.stdout.contains("keep-best"), "{shell}");
    }
    assert_code(&run(&["completions", "tcsh"]), 2);
}

#[test]
fn there_is_a_man_page_for_each_verb() {
    let folder = Folder::new();
    let at = folder.at("man/man1");
    for _ in 0..2 {
        assert_code(&verb("man", &at, &[]), 0);
    }
    for verb in VERBS {
        let page = fs::read_to_string(format!("{at}/tch-checkpoint-{verb}.1")).unwrap();
        assert!(page.starts_with(".ie") && page.contains(".SH NAME"), "{verb}: {page}");
    }
    assert!(fs::read_to_string(format!("{at}/tch-checkpoint.1")).unwrap().contains("Exit codes"));
    fs::write(folder.at("file"), "").unwrap();
    assert_code(&verb("man", &folder.at("file/man"), &[]), 3);
}
