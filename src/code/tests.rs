use super::*;

fn code(files: &[(&str, &str)], version: &str, revision: Option<&str>) -> ModelCode {
    let files = files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned()));
    let features = BTreeSet::from(["torch".to_owned()]);
    let revision = revision.map(str::to_owned);
    ModelCode::new(files.collect(), "example", version, revision, features).unwrap()
}

#[test]
fn code_is_attached_and_read_back() {
    let code = code(&[("model.rs", "fn a() {}\n")], "1.2.3", Some("abc"));
    let mut state = StateDict::new();
    code.attach_to(&mut state).unwrap();
    let names: Vec<_> = state.attached_files().keys().map(String::as_str).collect();
    assert_eq!(names, ["code/model.rs", "code/provenance.json"]);
    assert_eq!(ModelCode::from_attached(state.attached_files()).unwrap(), Some(code.clone()));
    assert!(code.attach_to(&mut state).is_err(), "attached twice");
    assert_eq!(ModelCode::from_attached::<Vec<u8>>(&BTreeMap::new()).unwrap(), None);
}

#[test]
fn attached_files_are_read_as_far_as_they_are_code() {
    let read = |name: &str, bytes: &[u8]| {
        ModelCode::from_attached(&BTreeMap::from([(name.to_owned(), bytes.to_vec())]))
    };
    let bare = read("code/model.rs", b"text").unwrap().unwrap();
    assert_eq!((bare.package(), bare.files()["model.rs"].as_str()), ("", "text"));
    let newer = br#"{"package": "p", "compiler": "1.99"}"#;
    assert_eq!(read("code/provenance.json", newer).unwrap().unwrap().package(), "p");
    for (name, bytes) in [("code/x", &b"\xff"[..]), ("code/provenance.json", b"{"), ("x", b"")] {
        assert!(read(name, bytes).is_err(), "{name}");
    }
}

#[test]
fn bad_names_are_refused() {
    for bad in [PROVENANCE, "../model.rs", "", "a b"] {
        let files = BTreeMap::from([(bad.to_owned(), String::new())]);
        let error = ModelCode::new(files, "p", "1", None, BTreeSet::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{bad}");
    }
}

#[test]
fn too_much_code_is_refused() {
    let files = (0..16).map(|n| (format!("{n}.rs"), "x".repeat(1 << 20)));
    let error = ModelCode::new(files.collect(), "p", "1", None, BTreeSet::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

#[test]
fn differences_are_listed_one_by_one() {
    let saved = code(&[("a", "1"), ("b", "2"), ("c", "3")], "1.0.0", Some("abc"));
    assert_eq!(saved.differences(&saved), []);
    let mut running = code(&[("a", "1"), ("b", "x"), ("d", "4")], "1.1.0", None);
    running.facts.features = BTreeSet::from(["mpi".to_owned()]);
    running.facts.package = "other\u{1b}".to_owned();
    let shown: Vec<String> = running.differences(&saved).iter().map(ToString::to_string).collect();
    assert_eq!(
        shown,
        [
            "`b` has changed",
            "`c` is only in the checkpoint",
            "`d` is not in the checkpoint",
            "package `example`, now `other\\u{1b}`",
            "version `1.0.0`, now `1.1.0`",
            "git revision `abc`, now unknown",
            "features added: [mpi], removed: [torch]",
        ]
    );
}

#[test]
fn a_checkpoint_cannot_fill_a_log_or_forge_a_line_of_it() {
    let running = code(&[], "1.0.0", None);
    let mut saved = running.clone();
    saved.facts.version = format!("1\nWARN {}", "x".repeat(1 << 20));
    saved.facts.features = (0..100_000).map(|n| n.to_string()).collect();
    let shown: Vec<String> = running.differences(&saved).iter().map(ToString::to_string).collect();
    assert!(shown[0].starts_with("version `1\\nWARN xxx"), "{:.99}", shown[0]);
    assert!(shown[0].ends_with("xxx…`, now `1.0.0`"));
    assert!(shown[1].ends_with("…]"));
    assert!(shown.iter().all(|line| line.len() < 1000 && !line.contains('\n')));
}

#[test]
fn the_macro_captures_this_package() {
    let code = crate::model_code!("mod.rs", "tests.rs", "layout/code.rs" = "../layout/code.rs");
    let paths: Vec<_> = code.files().keys().map(String::as_str).collect();
    assert_eq!(paths, ["layout/code.rs", "mod.rs", "tests.rs"]);
    assert!(code.files()["tests.rs"].contains("the_macro_captures_this_package"));
    assert_eq!((code.package(), code.version()), ("tch-checkpoint", env!("CARGO_PKG_VERSION")));
}
