//! The code that a checkpoint holds, as the command shows it.

use std::path::Path;

use crate::{Folder, assert_code, flip, run};

/// A checkpoint with code, saved by the library itself.
fn with_code(at: &str) {
    let mut state = tch_checkpoint::state::StateDict::new();
    state.attach_file("code/sub/model.rs", &b"fn a() {}\n\t// \x1b[2J\n"[..]).unwrap();
    let facts = br#"{"package": "my\u001b[2Jnet", "version": "1.2.3", "features": ["cuda"]}"#;
    state.attach_file("code/provenance.json", &facts[..]).unwrap();
    let options = tch_checkpoint::SaveOptions::default();
    let path = tch_checkpoint::CheckpointPath::parse(at).unwrap();
    let storage = tch_checkpoint::storage::LocalStorage::new();
    let group = tch_checkpoint::ProcessGroup::solo();
    tch_checkpoint::save(&group, &storage, &path, &state, &options).unwrap();
}

#[test]
fn code_shows_where_a_model_comes_from() {
    let folder = Folder::new();
    let at = folder.at("a");
    with_code(&at);
    assert_code(&run(&["verify", &at]), 0);
    let ran = run(&["code", &at]);
    assert_code(&ran, 0);
    for words in ["my\\u{1b}[2Jnet", "1.2.3", "cuda", "unknown", "sub/model.rs", "19 B"] {
        assert!(ran.stdout.contains(words), "{words} is not in {}", ran.stdout);
    }
    assert!(!ran.stdout.contains('\u{1b}'));
    let json: serde_json::Value =
        serde_json::from_str(&run(&["code", &at, "--json"]).stdout).unwrap();
    assert_eq!((&json["version"], &json["files"][0]["bytes"]), (&"1.2.3".into(), &19.into()));
    assert_code(&run(&["code", &at, "sub/model.rs", "--json"]), 2);
    // Into a pipe or a file: as it was.
    for name in ["sub/model.rs", "code/sub/model.rs"] {
        let ran = run(&["code", &at, name]);
        assert_code(&ran, 0);
        assert_eq!(ran.stdout, "fn a() {}\n\t// \u{1b}[2J\n");
    }
    for arguments in [&["code", &at, "nothing.rs"], &["code", &at, "../manifest.bin"]] {
        let ran = run(arguments);
        assert_code(&ran, 7);
        assert!(ran.stderr.contains("lists those"), "{}", ran.stderr);
    }
    flip(&Path::new(&at).join("code/sub/model.rs"), 3);
    for arguments in [&["code", &at][..], &["code", &at, "sub/model.rs"]] {
        let ran = run(arguments);
        assert_code(&ran, 3);
        assert_eq!(ran.stdout, "");
    }
    folder.saved("1");
    let ran = run(&["code", &folder.at("step-00000001")]);
    assert_code(&ran, 7);
    assert!(ran.stderr.contains("no code"), "{}", ran.stderr);
    assert_code(&run(&["code", &folder.at("missing")]), 7);
    assert_code(&run(&["code"]), 2);
}
