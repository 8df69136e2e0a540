//! `repair`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use tch_checkpoint::tensor::Dtype;

use crate::snapshot::{Made, assert_snapshot, verb, verb_lines};
use crate::{Folder, assert_code, entries, flip, shard};

/// One data file with three tensors, in this order.
fn saved(folder: &Folder, step: u64) -> String {
    let made = Made::new(step, step / 100).metric("val_loss", 1.0 / step as f64);
    let made =
        made.floats("a.w", &[64, 128], &[0.5; 8192]).floats("b.w", &[128, 128], &[1.5; 16384]);
    made.floats("c.w", &[64, 128], &[2.5; 8192]).save(folder)
}

/// All bytes of a directory tree.
fn content(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    for name in entries(dir) {
        let path = dir.join(&name);
        if path.is_dir() && !path.is_symlink() {
            all.extend(content(&path).into_iter().map(|(inner, b)| (format!("{name}/{inner}"), b)));
        } else {
            all.insert(name, fs::read(&path).unwrap_or_default());
        }
    }
    all
}

#[test]
fn a_good_checkpoint_has_lost_nothing() {
    let folder = Folder::new();
    let good = saved(&folder, 100);
    assert_snapshot("repair_good", &verb("repair", &good, &[]), &folder);
    let latest = verb("repair", &folder.at("latest"), &["--json"]);
    assert_code(&latest, 0);
    assert!(latest.stdout.contains("\"ok\":true"), "{}", latest.stdout);
}

#[test]
fn a_bad_block_costs_its_tensor_and_no_other() {
    let folder = Folder::new();
    saved(&folder, 100);
    let damaged = saved(&folder, 200);
    // In the middle one.
    flip(&shard(&damaged), 4096 + 8192 * 4 + 5 * 16384 / 2);
    let before = content(folder.0.path());
    assert_snapshot("repair", &verb("repair", &damaged, &[]), &folder);
    assert_snapshot("repair_json", &verb("repair", &damaged, &["--json"]), &folder);
    let elsewhere = Folder::new();
    let out = elsewhere.at("rest");
    let written = verb("repair", &damaged, &["--out", &out]);
    assert_code(&written, 3);
    assert!(written.stdout.contains("marked as partial"), "{}", written.stdout);
    assert_eq!(content(folder.0.path()), before, "what is damaged was touched");
    assert_code(&verb("verify", &out, &[]), 0);
    let diff = verb("diff", &folder.at("step-0100"), &[&out]);
    assert_code(&diff, 4);
    for told in ["removed  b.w     F32 [128, 128]", "2 equal, 1 removed", "[\"b.w\"]"] {
        assert!(diff.stdout.contains(told), "{told}: {}", diff.stdout);
    }
}

#[test]
fn what_is_written_of_a_damaged_checkpoint_is_never_the_latest() {
    let folder = Folder::new();
    saved(&folder, 100);
    let damaged = saved(&folder, 200);
    flip(&shard(&damaged), 4096 + 10);
    assert_code(&verb("repair", &damaged, &["--out", &folder.at("rest")]), 3);
    fs::remove_dir_all(&damaged).unwrap();
    let latest = verb("latest", "--dir", &[folder.path()]);
    assert!(latest.stdout.starts_with("LATEST 100 "), "{}", latest.stdout);
}

/// The file ends in the middle of the second tensor: the first one is still there.
#[test]
fn what_lies_before_the_end_of_a_truncated_file_is_whole() {
    let folder = Folder::new();
    let damaged = saved(&folder, 200);
    let file = fs::OpenOptions::new().write(true).open(shard(&damaged)).unwrap();
    file.set_len(4096 + 8192 * 4 + 20_000).unwrap();
    assert_snapshot("repair_truncated", &verb("repair", &damaged, &[]), &folder);
}

#[test]
fn a_damaged_header_or_a_longer_file_loses_nothing() {
    let folder = Folder::new();
    let damaged = saved(&folder, 200);
    flip(&shard(&damaged), 20);
    let ran = verb("repair", &damaged, &[]);
    assert_code(&ran, 0);
    assert!(ran.stdout.contains("damaged, nothing lost"), "{}", ran.stdout);
    let out = folder.at("whole");
    assert_code(&verb("repair", &damaged, &["--out", &out]), 0);
    assert_code(&verb("verify", &out, &[]), 0);
    assert!(!verb("inspect", &out, &["--json"]).stdout.contains("repair.lost"));
    let longer = saved(&folder, 300);
    let file = fs::OpenOptions::new().append(true).open(shard(&longer)).unwrap();
    std::io::Write::write_all(&mut &file, b"more").unwrap();
    assert_code(&verb("repair", &longer, &[]), 0);
}

#[test]
fn without_sums_or_manifest_nothing_can_be_verified() {
    let folder = Folder::new();
    let damaged = saved(&folder, 100);
    let sums = entries(damaged.as_ref()).into_iter().find(|name| name.starts_with("sums")).unwrap();
    fs::remove_file(Path::new(&damaged).join(sums)).unwrap();
    let ran = verb("repair", &damaged, &[]);
    assert_code(&ran, 3);
    assert!(ran.stdout.contains("0 of 3 tensors are whole"), "{}", ran.stdout);
    let nothing = verb("repair", &damaged, &["--out", &folder.at("rest")]);
    assert_code(&nothing, 7);
    let other = saved(&folder, 200);
    flip(&Path::new(&other).join("manifest.bin"), 40);
    assert_code(&verb("repair", &other, &["--out", &folder.at("rest")]), 3);
    assert_snapshot("repair_no_manifest", &verb("repair", &other, &[]), &folder);
    fs::remove_file(Path::new(&other).join("manifest.bin")).unwrap();
    assert_code(&verb("repair", &other, &["--json"]), 3);
    assert!(!Path::new(&folder.at("rest")).exists());
}

#[test]
fn a_directory_is_told_and_its_pointers_are_mended() {
    let folder = Folder::new();
    saved(&folder, 100);
    saved(&folder, 200);
    flip(&shard(&saved(&folder, 300)), 4096 + 8192 * 4 + 10);
    fs::remove_file(Path::new(&saved(&folder, 400)).join("manifest.bin")).unwrap();
    symlink("step-0300", folder.at("latest")).unwrap();
    symlink("../elsewhere", folder.at("best")).unwrap();
    let before = content(folder.0.path());
    assert_snapshot("repair_dir", &verb("repair", folder.path(), &[]), &folder);
    assert_snapshot("repair_dir_json", &verb("repair", folder.path(), &["--json"]), &folder);
    assert_eq!(content(folder.0.path()), before);
    let by = ["--pointers", "--monitor", "val_loss", "--mode", "max"];
    assert_snapshot("repair_pointers", &verb("repair", folder.path(), &by), &folder);
    let link = |name: &str| fs::read_link(folder.at(name)).unwrap().display().to_string();
    assert_eq!((link("latest"), link("best")), ("step-0200".to_owned(), "step-0100".to_owned()));
    let again = verb("repair", folder.path(), &[]);
    assert!(!again.stdout.contains("broken"), "{}", again.stdout);
}

#[test]
fn bad_input_is_told() {
    let folder = Folder::new();
    let good = saved(&folder, 100);
    assert_code(&verb("repair", &folder.at("missing"), &[]), 7);
    assert_code(&verb("repair", folder.path(), &["--out", &folder.at("x")]), 7);
    assert_code(&verb("repair", &good, &["--pointers"]), 7);
    assert_code(&verb("repair", &good, &["--out", &good]), 7);
    assert_code(&verb("repair", folder.path(), &["--monitor", "loss"]), 2);
    let empty = Folder::new();
    assert_snapshot("repair_empty", &verb("repair", empty.path(), &[]), &empty);
}

/// Of a replacement that a crash interrupted what was replaced is still there, and may be better
/// than what replaced it.
#[test]
fn what_a_damaged_checkpoint_replaced_stays() {
    let (folder, elsewhere) = (Folder::new(), Folder::new());
    let damaged = saved(&folder, 100);
    let old = folder.at(&format!(".step-0100.{}.old", "ab".repeat(16)));
    fs::rename(saved(&elsewhere, 100), &old).unwrap();
    flip(&shard(&damaged), 4096 + 10);
    assert_code(&verb("repair", &damaged, &["--out", &folder.at("rest")]), 3);
    assert!(Path::new(&old).exists(), "{:?}", folder.entries());
}

fn link(folder: &Folder, name: &str) -> String {
    fs::read_link(folder.at(name)).unwrap().display().to_string()
}

/// No load takes a file that is too long, although all that was saved is still in it.
#[test]
fn pointers_lead_to_what_loads_take() {
    let folder = Folder::new();
    let good = saved(&folder, 100);
    let longer = saved(&folder, 200);
    let file = fs::OpenOptions::new().append(true).open(shard(&longer)).unwrap();
    std::io::Write::write_all(&mut &file, b"more").unwrap();
    flip(&shard(&saved(&folder, 300)), 20);
    let by = ["--pointers", "--monitor", "val_loss", "--mode", "min"];
    let ran = verb("repair", folder.path(), &by);
    assert_code(&ran, 0);
    assert!(ran.stdout.contains("good: step-0100 is the newest"), "{}", ran.stdout);
    assert_eq!(
        (link(&folder, "latest"), link(&folder, "best")),
        ("step-0100".into(), "step-0100".into())
    );
    assert_code(&verb("verify", &good, &[]), 0);
}

#[test]
fn what_was_saved_of_another_one_is_no_good_one() {
    let folder = Folder::new();
    let damaged = Made::new(200, 2).metric("val_loss", 0.5).automatic();
    let damaged = damaged.floats("a.w", &[8], &[0.5; 8]).floats("b.w", &[8192], &[1.5; 8192]);
    let damaged = damaged.save(&folder);
    flip(&shard(&damaged), 4096 + 10);
    assert_code(&verb("repair", &damaged, &["--out", &folder.at("rest")]), 3);
    let by = ["--pointers", "--monitor", "val_loss", "--mode", "min"];
    let ran = verb("repair", folder.path(), &by);
    assert!(ran.stdout.contains("good: none"), "{}", ran.stdout);
    assert!(ran.stdout.contains("partial: rest: "), "{}", ran.stdout);
    assert!(!Path::new(&folder.at("latest")).is_symlink(), "{}", ran.stdout);
    assert!(!Path::new(&folder.at("best")).is_symlink(), "{}", ran.stdout);
    let beside = verb("repair", &damaged, &[]);
    assert!(!beside.stdout.contains("good:"), "{}", beside.stdout);
    let partial = verb("repair", &folder.at("rest"), &["--json"]);
    assert!(partial.stdout.contains("\"partial\":true"), "{}", partial.stdout);
    // No rule has saved it, so none removes it.
    for step in [300, 400] {
        Made::new(step, 3).automatic().floats("a.w", &[8], &[0.5; 8]).save(&folder);
    }
    assert_code(&verb("prune", folder.path(), &["--keep-last", "1"]), 0);
    assert!(folder.entries().contains(&"rest".to_owned()), "{:?}", folder.entries());
}

#[test]
fn a_damaged_index_is_told() {
    let folder = Folder::new();
    let damaged = saved(&folder, 100);
    let index = Path::new(&damaged).join("model.safetensors.index.json");
    flip(&index, 30);
    let ran = verb("repair", &damaged, &["--json"]);
    assert_code(&ran, 0);
    let told = ran.stdout.contains("\"ok\":false") && ran.stdout.contains("index.json");
    assert!(told, "{}", ran.stdout);
    assert_code(&verb("repair", &damaged, &["--out", &folder.at("whole")]), 0);
    assert_code(&verb("verify", &folder.at("whole"), &[]), 0);
}

#[test]
fn second_names_of_lost_tensors_are_lost_too() {
    let folder = Folder::new();
    let mut made =
        Made::new(1, 1).floats("a.w", &[8192], &[0.5; 8192]).floats("b.w", &[8], &[0.5; 8]);
    for (alias, of) in [("tied.a", "a.w"), ("tied.b", "b.w")] {
        let name = |text| tch_checkpoint::tensor::TensorName::new(text).unwrap();
        made.state.add_alias(name(alias), name(of)).unwrap();
    }
    let damaged = made.save(&folder);
    flip(&shard(&damaged), 4096 + 10);
    let ran = verb("repair", &damaged, &["--out", &folder.at("rest")]);
    assert_code(&ran, 3);
    assert!(ran.stdout.contains("lost: tied.a, a second name of a.w\n"), "{}", ran.stdout);
    assert!(!ran.stdout.contains("tied.b"), "{}", ran.stdout);
    let rest = verb("inspect", &folder.at("rest"), &["--json"]).stdout;
    let rest: serde_json::Value = serde_json::from_str(&rest).unwrap();
    assert_eq!(rest["values"]["repair.lost"], serde_json::json!(["a.w", "tied.a"]));
}

#[test]
fn a_checkpoint_that_is_one_file_is_looked_at() {
    let folder = Folder::new();
    let made =
        Made::new(3, 1).floats("a.w", &[64, 128], &[0.5; 8192]).floats("b.w", &[4], &[1.0; 4]);
    let at = folder.at("one.safetensors");
    let path = tch_checkpoint::catalog::CheckpointPath::parse(&at).unwrap();
    let options = tch_checkpoint::SaveOptions { step: 3, ..Default::default() };
    let storage = tch_checkpoint::storage::LocalStorage::new();
    let solo = tch_checkpoint::ProcessGroup::solo();
    tch_checkpoint::single::save_single_file(&solo, &storage, &path, &made.state, &options)
        .unwrap();
    assert_code(&verb("repair", &at, &[]), 0);
    let bytes = fs::read(&at).unwrap();
    let place = bytes.windows(16).position(|part| part == 0.5f32.to_le_bytes().repeat(4)).unwrap();
    flip(Path::new(&at), place + 16000);
    let out = folder.at("rest");
    let ran = verb("repair", &at, &["--out", &out]);
    assert_code(&ran, 3);
    assert!(ran.stdout.contains("1 of 2 tensors are whole"), "{}", ran.stdout);
    assert_code(&verb("verify", &out, &[]), 0);
}

#[test]
fn json_says_which_pointers_are_mended() {
    let folder = Folder::new();
    saved(&folder, 100);
    symlink("step-0300", folder.at("latest")).unwrap();
    symlink("../elsewhere", folder.at("best")).unwrap();
    let ran = verb("repair", folder.path(), &["--pointers", "--json"]);
    let summary = verb_lines(&ran).pop().unwrap();
    let mended: Vec<&str> =
        summary["mended"].as_array().unwrap().iter().map(|one| one.as_str().unwrap()).collect();
    assert_eq!(mended, ["`latest` names `step-0300`, which is not whole, or not there"]);
    assert_eq!(summary["broken_pointers"].as_array().unwrap().len(), 2);
}

/// What of the sums is there says what of the data is right.
#[test]
fn sums_that_are_cut_short_or_too_long_are_taken_as_far_as_they_go() {
    let folder = Folder::new();
    let made = Made::new(1, 1).floats("a.w", &[8192], &[0.5; 8192]);
    let damaged = made.tensor_of("optimizer", "o.w", Dtype::U8, &[40_000], vec![3; 40_000]);
    let damaged = damaged.save(&folder);
    let sums = entries(damaged.as_ref()).into_iter().find(|name| name.starts_with("sums")).unwrap();
    let path = Path::new(&damaged).join(sums);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, [&whole[..], &[0; 16]].concat()).unwrap();
    let longer = verb("repair", &damaged, &[]);
    assert_code(&longer, 0);
    assert!(longer.stdout.contains("damaged, nothing lost"), "{}", longer.stdout);
    fs::write(&path, &whole[..whole.len() - 16]).unwrap();
    let shorter = verb("repair", &damaged, &[]);
    assert_code(&shorter, 3);
    assert!(shorter.stdout.contains("1 of 2 tensors are whole"), "{}", shorter.stdout);
}
