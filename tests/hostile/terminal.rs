//! Names of somebody else on a terminal: of directories, tensors, metrics and values.

use std::fs;
use std::path::Path;
use std::process::Command;

use tch_checkpoint::autosave::Mode;
use tch_checkpoint::catalog::{Wanted, find};
use tch_checkpoint::state::Value;
use tch_checkpoint::storage::LocalStorage;
use tch_checkpoint::{Error, ErrorKind};

use crate::alone;
use crate::forge::Forge;
use crate::judge::unfit;
use crate::scene::Scene;

/// Clears the screen, sets a title, reports back, and forges a line.
const EVIL: &str = "x\u{1b}[2J\u{1b}]0;owned\u{7}\u{9b}6n\u{7f}\r\nFORGED line";
/// Shows what follows from right to left, and breaks lines that are no line breaks.
const BIDI: &str = "a\u{202e}txt.exe\u{2066}\u{2028}b";

fn evil_values(forge: &mut Forge) {
    let text = || Value::Text(EVIL.to_owned());
    forge.body.library_version = EVIL.to_owned();
    forge.body.libtorch_version = format!("{EVIL}{BIDI}");
    forge.body.values = vec![
        (EVIL.to_owned(), Value::Int(1)),
        (format!("metrics.{EVIL}"), Value::Float(0.5)),
        ("text".to_owned(), text()),
        ("zjson".to_owned(), Value::Json(format!("{{\"{BIDI}\":\"\u{7f}\u{9b}\"}}"))),
    ];
    forge.body.values.sort_by(|a, b| a.0.cmp(&b.0));
    forge.body.rank_values = vec![vec![(EVIL.to_owned(), text())]];
}

/// What a verb says, on both of its streams.
fn said(arguments: &[&str], path: &Path) -> (String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tch-checkpoint"));
    let output = command.args(arguments).arg(path).output().unwrap();
    [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap()).into()
}

/// Nothing that drives a terminal, no line that is not ours, nothing that runs backwards.
#[track_caller]
fn assert_tame(text: &str, what: &str) {
    assert_eq!(unfit(text), None, "{what}");
    assert!(!text.contains(['\u{202e}', '\u{2066}', '\u{2028}']), "{what}: {text:?}");
    assert!(!text.lines().any(|line| line.trim_start().starts_with("FORGED")), "{what}: {text}");
}

const VERBS: [&[&str]; 12] = [
    &["inspect"],
    &["inspect", "--json"],
    &["verify"],
    &["verify", "--json"],
    &["code"],
    &["verify", "--dir"],
    &["verify", "--json", "--dir"],
    &["verify", "--all", "--dir"],
    &["latest", "--dir"],
    &["latest", "--json", "--dir"],
    &["stress", "load", "--dir"],
    &["stress", "save", "--step", "1", "--bytes", "100", "--dir"],
];

#[test]
fn no_verb_lets_a_name_drive_a_terminal() {
    let _alone = alone();
    let scene = Scene::new();
    let dir = scene.dir().join(EVIL).join(BIDI);
    Forge::honest(2, 0).write(&dir.join(BIDI));
    let mut forge = Forge::honest(2, 0);
    evil_values(&mut forge);
    forge.write(&dir.join("values"));
    fs::write(dir.join("values").join(EVIL), b"").unwrap();
    fs::write(dir.join(EVIL), b"").unwrap();
    fs::write(dir.join("damaged"), EVIL).unwrap();
    fs::create_dir(dir.join("broken")).unwrap();
    fs::write(dir.join("broken/manifest.bin"), EVIL).unwrap();
    for verb in VERBS {
        let is_of_directory = verb.last() == Some(&"--dir");
        let of: &[&str] =
            if is_of_directory { &["."] } else { &["values", BIDI, "broken", "gone"] };
        for name in of {
            let (out, err) = said(verb, &dir.join(name));
            let what = format!("{verb:?} {name}");
            assert_tame(&err, &what);
            if !verb.contains(&"--json") {
                assert_tame(&out, &what);
                continue;
            }
            assert!(!out.contains(['\u{1b}', '\u{9b}', '\u{7f}', '\u{7}']), "{what}: {out:?}");
            if !out.is_empty() {
                let parsed = serde_json::from_str::<serde_json::Value>(&out);
                assert!(parsed.is_ok(), "{what}: {parsed:?}: {out}");
            }
        }
    }
}

/// JSON is what it was before it was made harmless.
#[test]
fn json_keeps_what_names_say() {
    let scene = Scene::new();
    scene.forge(2, evil_values);
    let (out, _) = said(&["inspect", "--json"], &scene.a());
    let told: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(told["library_version"], EVIL);
    assert_eq!(told["values"]["text"], EVIL);
    assert_eq!(told["values"]["zjson"][BIDI], "\u{7f}\u{9b}");
}

#[test]
fn errors_show_names_of_others_on_one_line() {
    let scene = Scene::new();
    scene.forge(2, evil_values);
    let wanted = Wanted::best_by(scene.dir(), EVIL, Mode::Min);
    let storage = LocalStorage::new();
    let found = find(&storage, &wanted);
    assert_eq!(found.unwrap().name.as_str(), "a");
    let wanted = Wanted::best_by(scene.dir(), format!("none{EVIL}"), Mode::Min);
    let error = find(&storage, &wanted).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_tame(&error.to_string(), "metrics that there are");
    let error = Error::new(ErrorKind::Corrupt, "damaged")
        .with_path(EVIL)
        .with_tensor(format!("{EVIL}{BIDI}"))
        .in_phase(EVIL);
    assert_tame(&error.to_string(), "path, tensor and phase");
}
