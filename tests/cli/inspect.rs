//! `inspect` as a tree, and of one tensor.

use std::path::Path;

use tch_checkpoint::tensor::{Dtype, TensorName};

use crate::snapshot::{Made, assert_snapshot, verb};
use crate::{Folder, assert_code, flip, shard};

/// A model with repeated layers, one of which is not like the others, and a tied weight.
fn model(folder: &Folder) -> String {
    let mut made = Made::new(1200, 3).metric("val_loss", 0.25);
    for layer in 0..12 {
        let (width, floats) =
            if layer == 11 { (8, [0.0; 32].as_slice()) } else { (4, [0.0; 16].as_slice()) };
        made = made.floats(&format!("h.{layer}.attn.qkv.weight"), &[4, 12], &[0.5; 48]);
        made = made.floats(&format!("h.{layer}.mlp.weight"), &[4, width], floats);
        made = made.floats(&format!("h.{layer}.mlp.bias"), &[width], &floats[..floats.len() / 4]);
    }
    made = made.floats("wte.weight", &[16, 4], &(0..64).map(|i| i as f32).collect::<Vec<_>>());
    made = made.tensor("ids", Dtype::I64, &[2], [-5i64, 9].map(i64::to_le_bytes).concat());
    made = made.tensor("mask", Dtype::Bool, &[], vec![1]);
    let alias = TensorName::new("head.weight").unwrap();
    made.state.add_alias(alias, TensorName::new("wte.weight").unwrap()).unwrap();
    made = made.tensor_of("optimizer", "opt.0.m", Dtype::BF16, &[3], vec![0; 6]);
    made.save(folder)
}

#[test]
fn inspect_shows_a_tree_of_modules() {
    let folder = Folder::new();
    let at = model(&folder);
    assert_snapshot("inspect", &verb("inspect", &at, &[]), &folder);
    assert_snapshot("inspect_list", &verb("inspect", &at, &["--list"]), &folder);
    assert_snapshot("inspect_json", &verb("inspect", &at, &["--json"]), &folder);
}

#[test]
fn inspect_shows_the_numbers_of_a_tensor() {
    let folder = Folder::new();
    let mut floats: Vec<f32> =
        (0..1000).map(|i| ((i * 37 % 1000) as f32 / 1000.0).powi(3)).collect();
    floats.extend([f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0]);
    let made = Made::new(1, 0).floats("a.w", &[4, 251], &floats);
    let made = made.tensor("ids", Dtype::I64, &[2], [i64::MIN, 9].map(i64::to_le_bytes).concat());
    let made = made.tensor("f8", Dtype::F8E4M3, &[2], vec![0x38, 0x7e]);
    let at = made.floats("empty", &[0], &[]).save(&folder);
    for name in ["a.w", "ids", "f8", "empty"] {
        let ran = verb("inspect", &at, &["--tensor", name]);
        assert_snapshot(&format!("inspect_tensor_{name}"), &ran, &folder);
    }
    let json = verb("inspect", &at, &["--tensor", "ids", "--json"]);
    assert_snapshot("inspect_tensor_json", &json, &folder);
}

#[test]
fn inspect_of_a_tensor_that_is_not_there_or_damaged() {
    let folder = Folder::new();
    let at = model(&folder);
    let near = verb("inspect", &at, &["--tensor", "wte.wieght"]);
    assert_code(&near, 7);
    assert!(near.stderr.contains("did you mean `wte.weight`"), "{}", near.stderr);
    let far = verb("inspect", &at, &["--tensor", "decoder"]);
    assert_code(&far, 7);
    assert_eq!(verb("inspect", &at, &["--tensor", "ids", "--list"]).code, Some(2));
    let file = shard(&at);
    let end = usize::try_from(std::fs::metadata(&file).unwrap().len()).unwrap();
    flip(&file, end - 4);
    let last = verb("inspect", &at, &["--tensor", "wte.weight"]);
    assert_code(&last, 3);
    assert!(last.stderr.contains("checksum mismatch"), "{}", last.stderr);
    assert_code(&verb("inspect", &at, &["--tensor", "ids"]), 0);
}

/// Names that are made to be deep neither end the command nor are lost.
#[test]
fn names_of_thousands_of_parts_are_shown() {
    let folder = Folder::new();
    let name = format!("{}w", "a.".repeat(100));
    let at =
        Made::new(1, 0).floats(&name, &[1], &[1.0]).floats("a.a.b", &[1], &[1.0]).save(&folder);
    let ran = verb("inspect", &at, &[]);
    assert_code(&ran, 0);
    assert!(ran.stdout.contains(&name[4..]), "{}", ran.stdout);
    assert!(Path::new(&at).exists());
}
