//! Checkpoints with files of earlier ones (hard links), in every verb.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use tch_checkpoint::tensor::Dtype;

use crate::snapshot::{Made, verb, verb_lines};
use crate::{Folder, assert_code, entries, flip, run};

/// A trunk that stays and a head that is trained: the later one has the trunk of the first.
fn saved(folder: &Folder, step: u64) -> String {
    let made = Made::new(step, step / 100).metric("val_loss", 1.0 / step as f64).automatic();
    let trunk = (0..40_000u32).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let head = [step as f32; 64].into_iter().flat_map(f32::to_le_bytes).collect();
    let made = made.tensor_of("trunk", "trunk.w", Dtype::F32, &[200, 200], trunk);
    made.tensor_of("head", "head.w", Dtype::F32, &[8, 8], head).save_linked(folder)
}

fn two(folder: &Folder) -> [String; 2] {
    [saved(folder, 100), saved(folder, 200)]
}

fn file_of(checkpoint: &str, prefix: &str) -> PathBuf {
    let dir = Path::new(checkpoint);
    dir.join(entries(dir).iter().find(|name| name.starts_with(prefix)).unwrap())
}

fn on_disk(file: &Path) -> u64 {
    fs::metadata(file).unwrap().blocks() * 512
}

fn id_of(checkpoint: &str) -> String {
    let shown = verb_lines(&verb("inspect", checkpoint, &["--json"]));
    shown[0]["save_id"].as_str().unwrap().to_owned()
}

#[test]
fn inspect_says_from_which_save_a_file_is_linked() {
    let folder = Folder::new();
    let [first, second] = two(&folder);
    let id = id_of(&first);
    let text = verb("inspect", &second, &[]).stdout;
    let linked: Vec<&str> = text.lines().filter(|line| line.contains("linked from")).collect();
    assert_eq!(linked.len(), 2, "data and sums of the trunk: {text}");
    for line in linked {
        assert!(line.ends_with(&format!("linked from {}", &id[..8])), "{line}");
        assert!(line.starts_with("trunk-") || line.starts_with("sums-"), "{line}");
    }
    assert!(!verb("inspect", &first, &[]).stdout.contains("linked"));
    let json = verb_lines(&verb("inspect", &second, &["--json"]));
    let linked = json[0]["files"].as_array().unwrap().iter().filter(|file| file["linked"] == true);
    let linked: Vec<_> = linked.collect();
    assert_eq!(linked.len(), 2, "{linked:?}");
    assert!(linked.iter().all(|file| file["save_id"] == id.as_str()), "{linked:?}");
}

#[test]
fn du_and_prune_know_what_two_saves_share() {
    let folder = Folder::new();
    let [first, second] = two(&folder);
    let shared: u64 = ["trunk-", "sums-"].map(|file| on_disk(&file_of(&first, file))).iter().sum();
    let lines = verb_lines(&verb("du", folder.path(), &["--json"]));
    let of = |name: &str| lines.iter().find(|line| line["name"] == name).unwrap();
    for at in [&first, &second] {
        let entry = of(Path::new(at).file_name().unwrap().to_str().unwrap());
        assert_eq!(entry["shared"], shared, "{entry}");
        assert!(entry["unique"].as_u64().unwrap() < shared, "{entry}");
    }
    let pruned = verb_lines(&verb("prune", folder.path(), &["--keep-last", "1", "--json"]));
    let gone = pruned.iter().find(|line| line["name"] == "step-0100").unwrap();
    assert_eq!(gone["freed"], of("step-0100")["unique"]);
    let left = verb_lines(&verb("du", folder.path(), &["--json"]));
    let entry = left.iter().find(|line| line["name"] == "step-0200").unwrap();
    assert_eq!((&entry["shared"], &entry["unique"]), (&0.into(), &entry["on_disk"]));
    assert_code(&verb("verify", &second, &[]), 0);
}

/// The older one is gone: nothing misses it.
#[test]
fn every_verb_reads_a_checkpoint_whose_files_are_linked() {
    let folder = Folder::new();
    let [first, second] = two(&folder);
    let copies = Folder::new();
    let copy = copies.at("copy");
    let reshard = run(&["reshard", &second, "-o", &copy, "--world-size", "3"]);
    assert_code(&reshard, 0);
    assert_code(&verb("diff", &first, &[&second]), 4);
    fs::remove_dir_all(&first).unwrap();
    for at in [&second, &copy] {
        assert_code(&verb("verify", at, &[]), 0);
    }
    assert_code(&run(&["verify", "--dir", folder.path(), "--all"]), 0);
    // Who asked for the copy wants it kept: one value differs.
    let diff = verb("diff", &second, &[&copy]);
    assert!(diff.stdout.contains("tensors 2 equal"), "{}", diff.stdout);
    let out = copies.at("one.safetensors");
    assert_code(&run(&["export", &second, "--format", "safetensors", "-o", &out]), 0);
    let exported = verb("diff", &second, &[&out]);
    assert!(exported.stdout.contains("tensors 2 equal"), "{}", exported.stdout);
    let repair = verb("repair", &second, &["--json"]);
    assert_code(&repair, 0);
    assert_eq!(verb_lines(&repair)[0]["whole"], 2);
    let shown = verb_lines(&verb("ls", folder.path(), &["--json"]));
    let listed = shown.iter().find(|line| line["name"] == "step-0200").unwrap();
    assert_eq!(listed["bytes"], 160_256, "{listed}");
}

/// One file, two names: whoever damages it has damaged both.
#[test]
fn damage_of_a_linked_file_is_found_under_each_of_its_names() {
    let folder = Folder::new();
    let [first, second] = two(&folder);
    flip(&file_of(&first, "trunk-"), 4096 + 70_000);
    for at in [&first, &second] {
        let verified = verb("verify", at, &[]);
        assert_code(&verified, 3);
        assert!(verified.stdout.contains("trunk.w"), "{}", verified.stdout);
        let repair = verb("repair", at, &["--json"]);
        assert_code(&repair, 3);
        assert_eq!(verb_lines(&repair)[0]["lost"], serde_json::json!(["trunk.w"]));
    }
    let out = Folder::new();
    let rest = out.at("rest");
    assert_code(&verb("repair", &second, &["--out", &rest]), 3);
    let head = ["--tensor", "head.w", "--json"];
    assert_eq!(verb("inspect", &rest, &head).stdout, verb("inspect", &second, &head).stdout);
}

/// Without the sums of the older save nothing of its tensors can be verified.
#[test]
fn a_linked_sums_file_that_is_gone_or_of_another_save_is_damage() {
    let folder = Folder::new();
    let [first, second] = two(&folder);
    let id = id_of(&first);
    let old = entries(Path::new(&second));
    let old = old.iter().find(|name| name.starts_with("sums-") && name.contains(&id)).unwrap();
    let (linked, own) =
        (Path::new(&second).join(old), Path::new(&second).join(old.replace(&id, &id_of(&second))));
    let bytes = fs::read(&linked).unwrap();
    fs::remove_file(&linked).unwrap();
    let verified = verb("verify", &second, &[]);
    assert_code(&verified, 3);
    fs::copy(own, &linked).unwrap();
    assert_code(&verb("verify", &second, &[]), 3);
    fs::write(&linked, bytes).unwrap();
    assert_code(&verb("verify", &second, &[]), 0);
}
