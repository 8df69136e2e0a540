//! Directories with an index, as Hugging Face tools write them, and files that are something else.

use std::fs;
use std::os::unix::fs::symlink;

use tch_checkpoint::ErrorKind::{self, Corrupt, Incompatible, NotFound};

use super::{Case, Make, each_is_refused};
use crate::scene::{Scene, plain};

const INDEX: &str = "hf/model.safetensors.index.json";

const fn hf(rule: &'static str, word: &'static str, make: fn(&Scene)) -> Case {
    Case { rule, kind: Corrupt, word, at: "hf", unverified: true, make: Make::Placed(make) }
}

const fn ours(rule: &'static str, kind: ErrorKind, word: &'static str, make: fn(&Scene)) -> Case {
    Case { rule, kind, word, at: "x", unverified: false, make: Make::Placed(make) }
}

fn index(scene: &Scene, map: &str) {
    scene.put("hf/one.safetensors", plain());
    scene.put(INDEX, format!("{{\"weight_map\":{{{map}}}}}"));
}

fn names(scene: &Scene, file: &str) {
    index(scene, &format!("\"w\":{}", serde_json::to_string(file).unwrap()));
}

pub const CASES: [Case; 32] = [
    hf("an index that leaves the directory", "outside its directory", |s| {
        names(s, "../../outside/x.safetensors");
    }),
    hf("an index with an absolute path", "outside its directory", |s| names(s, "/etc/passwd")),
    hf("an index with a hidden file", "outside its directory", |s| names(s, ".x.safetensors")),
    hf("an index with no name", "outside its directory", |s| names(s, "")),
    hf("an index with the directory itself", "outside its directory", |s| names(s, ".")),
    hf("an index with a NUL", "outside its directory", |s| names(s, "one\0.safetensors")),
    hf("an index with a backslash", "outside its directory", |s| names(s, "..\\x.safetensors")),
    hf("an index with a name of 300 bytes", "outside its directory", |s| {
        names(s, &"x".repeat(300));
    }),
    hf("an index with a name of a megabyte", "outside its directory", |s| {
        names(s, &"x".repeat(1 << 20));
    }),
    hf("an index whose name drives a terminal", "outside its directory", |s| {
        names(s, "\u{1b}[2J\nFORGED ok");
    }),
    hf("an index with a file that is not there", "opening", |s| names(s, "two.safetensors")),
    hf("an index with a link", "not a regular file", |s| {
        names(s, "two.safetensors");
        let link = s.dir().join("hf/two.safetensors");
        symlink(s.outside().join("x.safetensors"), link).unwrap();
    }),
    hf("an index with a directory", "not a regular file", |s| {
        names(s, "two.safetensors");
        fs::create_dir(s.dir().join("hf/two.safetensors")).unwrap();
    }),
    hf("an index that is a link", "not a regular file", |s| {
        s.put("hf/one.safetensors", plain());
        symlink(s.outside().join("secret"), s.dir().join(INDEX)).unwrap();
    }),
    hf("an index of a terabyte", "an index of", |s| {
        index(s, "");
        let file = fs::OpenOptions::new().write(true).open(s.dir().join(INDEX)).unwrap();
        file.set_len(1 << 40).unwrap();
    }),
    hf("an index with a tensor that is elsewhere", "where it is not", |s| {
        s.put("hf/two.safetensors", plain());
        index(s, r#""w":"one.safetensors","nowhere":"one.safetensors""#);
    }),
    hf("an index without files", "names no file", |s| index(s, "")),
    hf("a description of a model that is no JSON", "malformed", |s| {
        names(s, "one.safetensors");
        s.put("hf/config.json", b"{\"a\":");
    }),
    hf("a description of a terabyte", "a description of a model of", |s| {
        names(s, "one.safetensors");
        s.put("hf/config.json", "{}");
        let file = fs::OpenOptions::new().write(true).open(s.dir().join("hf/config.json")).unwrap();
        file.set_len(1 << 40).unwrap();
    }),
    hf("a description 50,000 deep", "malformed", |s| {
        names(s, "one.safetensors");
        s.put("hf/config.json", format!("{{\"a\":{}{}}}", "[".repeat(50_000), "]".repeat(50_000)));
    }),
    hf("an index that is no JSON", "malformed", |s| s.put(INDEX, b"\x80\x02}q\x00.")),
    hf("an index without a map", "malformed", |s| s.put(INDEX, "{}")),
    hf("an index with two maps", "malformed", |s| {
        s.put(INDEX, r#"{"weight_map":{},"weight_map":{}}"#);
    }),
    hf("an index with a tensor twice", "malformed", |s| {
        index(s, r#""w":"one.safetensors","w":"one.safetensors""#);
    }),
    hf("an index with a text of a megabyte for its map", "malformed", |s| {
        s.put(INDEX, format!("{{\"weight_map\":\"{}\"}}", "x".repeat(1 << 20)));
    }),
    hf("an index 50,000 deep", "malformed", |s| {
        s.put(INDEX, format!("{{\"a\":{}{}}}", "[".repeat(50_000), "]".repeat(50_000)));
    }),
    hf("an index with 20,000 files", "files", |s| {
        let files: Vec<_> = (0..20_000).map(|n| format!("\"{n}\":\"{n}.safetensors\"")).collect();
        index(s, &files.join(","));
    }),
    hf("a tensor in two files of an index", "in another file", |s| {
        s.put("hf/two.safetensors", plain());
        index(s, r#""w":"one.safetensors","v":"two.safetensors""#);
    }),
    ours("a file of another tool", Incompatible, "of another tool", |s| s.put("x", plain())),
    ours("pickle", NotFound, "no checkpoint", |s| s.put("x", b"\x80\x02cos\nsystem\n.")),
    ours("an archive", NotFound, "no checkpoint", |s| {
        s.put("x", [b"PK\x03\x04".as_slice(), &[0; 1000]].concat());
    }),
    ours("a file with half of our mark", Corrupt, "", |s| {
        s.put("x", b"\x50\0\0\0\0\0\0\0{\"tch_checkpoint.manifest\":\"");
    }),
];

#[test]
fn indices_that_break_a_rule_are_refused() {
    each_is_refused("directories of other tools", &CASES);
}
