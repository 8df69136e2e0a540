//! `diff`.

use std::path::Path;

use tch_checkpoint::tensor::Dtype;

use crate::snapshot::{Made, assert_snapshot};
use crate::{Folder, Ran, assert_code, flip, run, shard};

fn diff(a: &str, b: &str, more: &[&str]) -> Ran {
    run(&[&["diff", a, b], more].concat())
}

/// Two checkpoints with a difference of every kind.
fn two(folder: &Folder) -> (String, String) {
    let a = Made::new(100, 1).metric("val_loss", 0.5).floats("same", &[2], &[1.0, 2.0]);
    let a = a.floats("gone", &[1], &[1.0]).floats("shape", &[2, 1], &[1.0, 2.0]);
    let a = a.floats("layer.weight", &[2], &[3.0, 4.0]).floats("nan", &[2], &[1.0, 2.0]);
    let a = a.floats("dtype", &[1], &[1.5]);
    let b = Made::new(200, 2).metric("val_loss", 0.25).floats("same", &[2], &[1.0, 2.0]);
    let b = b.floats("new", &[1], &[1.0]).floats("shape", &[1, 2], &[1.0, 2.0]);
    let b = b.floats("layer.weight", &[2], &[3.0, 9.0]).floats("nan", &[2], &[1.0, f32::NAN]);
    let b = b.tensor("dtype", Dtype::F16, &[1], vec![0x00, 0x3e]);
    (a.save(folder), b.save(folder))
}

#[test]
fn diff_shows_every_kind_of_difference() {
    let folder = Folder::new();
    let (a, b) = two(&folder);
    assert_snapshot("diff", &diff(&a, &b, &[]), &folder);
    assert_snapshot("diff_json", &diff(&a, &b, &["--json"]), &folder);
}

#[test]
fn diff_of_equal_ones_is_0() {
    let folder = Folder::new();
    let made = || Made::new(5, 1).floats("w", &[2], &[1.0, f32::NAN]);
    let (a, b) = (made().save_as(&folder, "a"), made().save_as(&folder, "b"));
    assert_snapshot("diff_equal", &diff(&a, &b, &[]), &folder);
    assert_snapshot("diff_equal_json", &diff(&a, &a, &["--json"]), &folder);
    let c = made().metric("x", 1.0).save_as(&folder, "c");
    assert_code(&diff(&a, &c, &[]), 4);
}

#[test]
fn diff_of_what_is_damaged_or_no_checkpoint() {
    let folder = Folder::new();
    let (a, b) = two(&folder);
    std::fs::create_dir(folder.at("foreign")).unwrap();
    assert_code(&diff(&a, &folder.at("foreign"), &[]), 7);
    assert_code(&diff(&folder.at("missing"), &b, &[]), 7);
    flip(&shard(&b), 4096);
    flip(&shard(&b), 4096 + 30);
    let ran = diff(&a, &b, &[]);
    assert_code(&ran, 3);
    assert!(ran.stderr.contains("checksum mismatch") && ran.stdout.is_empty(), "{}", ran.stderr);
    flip(&Path::new(&a).join("manifest.bin"), 30);
    assert_code(&diff(&a, &b, &[]), 3);
}

/// A single file of another tool can be compared: what it has no sums of is read.
#[test]
fn diff_reads_files_of_other_tools() {
    let folder = Folder::new();
    let a = Made::new(0, 0).floats("w", &[2], &[1.0, 2.0]).save(&folder);
    let bytes = [1.0f32, 3.0].map(f32::to_le_bytes).concat();
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![2], &bytes);
    let file = safetensors::serialize([("w", view.unwrap())], None).unwrap();
    std::fs::write(folder.at("x.safetensors"), file).unwrap();
    let ran = diff(&a, &folder.at("x.safetensors"), &[]);
    assert_code(&ran, 4);
    assert!(ran.stdout.contains("changed"), "{}", ran.stdout);
}
