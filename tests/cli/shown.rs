//! What is printed by verbs whose other tests look at what they do.

use crate::snapshot::{Made, assert_snapshot, assert_text, verb, verb_lines};
use crate::{Folder, assert_code, flip, run, shard};

fn one(folder: &Folder) -> String {
    let made = Made::new(100, 2).metric("val_loss", 0.5).automatic();
    let made = made.floats("a.w", &[8192], &[0.5; 8192]).floats("b.w", &[2, 3], &[1.5; 6]);
    made.save(folder)
}

#[test]
fn what_verify_and_latest_print() {
    let folder = Folder::new();
    let good = one(&folder);
    for (name, words) in [
        ("verify", &["verify", &good][..]),
        ("verify_json", &["verify", &good, "--json"]),
        ("latest", &["latest", "--dir", folder.path()]),
        ("latest_json", &["latest", "--dir", folder.path(), "--json"]),
        ("verify_dir", &["verify", "--dir", folder.path(), "--all"]),
        ("verify_dir_json", &["verify", "--dir", folder.path(), "--all", "--json"]),
    ] {
        assert_snapshot(name, &run(words), &folder);
    }
    flip(&shard(&good), 4096 + 10);
    assert_snapshot("verify_damaged", &verb("verify", &good, &[]), &folder);
    assert_snapshot("verify_damaged_json", &verb("verify", &good, &["--json"]), &folder);
}

#[test]
fn what_export_and_import_print() {
    let folder = Folder::new();
    let good = one(&folder);
    let [out, file, back, again] = ["hf", "all.safetensors", "back", "again"].map(|n| folder.at(n));
    let shards = ["--format", "hf", "--max-shard-size", "30KB", "-o", &out];
    assert_snapshot("export", &verb("export", &good, &shards), &folder);
    assert_snapshot("export_taken", &verb("export", &good, &["-o", &good]), &folder);
    let whole = ["--format", "safetensors", "-o", &file, "--json"];
    assert_snapshot("export_json", &verb("export", &good, &whole), &folder);
    assert_snapshot("import", &verb("import", &out, &["-o", &back]), &folder);
    let as_json = ["-o", &again, "--step", "7", "--json"];
    assert_snapshot("import_json", &verb("import", &file, &as_json), &folder);
    assert_snapshot("import_ours", &verb("import", &good, &["-o", &folder.at("x")]), &folder);
}

#[test]
fn what_stress_prints() {
    let folder = Folder::new();
    let dir = ["--dir", folder.path()];
    let save = |more: &[&str]| run(&[&["stress", "save", "--bytes", "9"], &dir[..], more].concat());
    let load = |more: &[&str]| run(&[&["stress", "load"], &dir[..], more].concat());
    assert_snapshot("stress_save", &save(&["--step", "1"]), &folder);
    assert_snapshot("stress_save_json", &save(&["--step", "2", "--json"]), &folder);
    assert_snapshot("stress_save_taken", &save(&["--step", "2"]), &folder);
    assert_snapshot("stress_load", &load(&[]), &folder);
    assert_snapshot("stress_load_json", &load(&["--step", "1", "--json"]), &folder);
}

/// What lies on the disk depends on its file system.
#[test]
fn what_du_says_in_json() {
    let folder = Folder::new();
    one(&folder);
    std::fs::write(folder.at("notes.txt"), "text").unwrap();
    let ran = verb("du", folder.path(), &["--json"]);
    assert_code(&ran, 0);
    let keys = |object: &serde_json::Value| {
        let keys: Vec<&str> = object.as_object().unwrap().keys().map(String::as_str).collect();
        keys.join(" ") + "\n"
    };
    assert_text("du_keys", &verb_lines(&ran).iter().map(keys).collect::<String>());
}
