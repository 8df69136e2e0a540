//! What `torch.save` writes.

use tch_checkpoint::ErrorKind;
use tch_checkpoint::import::ImportOptions;
use tch_checkpoint::state::Value;

use super::*;

const OPTIMIZERS: [&str; 6] = ["adamw", "adam", "sgd", "rmsprop", "named", "groups"];

#[test]
fn a_training_of_torch_comes_in_with_its_optimizer_bit_for_bit() {
    for name in OPTIMIZERS {
        let memory = memory_with("pt", &format!("{name}.pt"));
        imported(&memory, &format!("{name}.pt")).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_same(&tensors_of(&memory, "/runs/a"), &expected("pt", name), name);
    }
}

#[test]
fn tensors_of_every_kind_and_layout_come_in_bit_for_bit() {
    let memory = memory_with("pt", "tensors.pt");
    imported(&memory, "tensors.pt").unwrap();
    let mut tensors = expected("pt", "tensors");
    tensors.insert("tied.b".to_owned(), tensors["tied.a"].clone());
    assert_same(&tensors_of(&memory, "/runs/a"), &tensors, "tensors");
    let aliases = manifest(&memory).aliases().len();
    assert_eq!(aliases, 1, "tied tensors are one");
}

/// Straight from the file, by every rank of a job, without a checkpoint in between.
#[test]
fn tensors_are_read_from_where_they_are_and_imported_by_several_ranks() {
    for ranks in [2, 4] {
        let memory = memory_with("pt", "tensors.pt");
        let inner = memory.clone();
        on_ranks(ranks, move |group| {
            let from = Path::new("/from/tensors.pt");
            import(&group, &inner, from, &path("/runs/a"), &ImportOptions::default()).map(drop)
        })
        .into_iter()
        .for_each(|imported| imported.unwrap());
        let (there, here) =
            (tensors_of(&memory, "/from/tensors.pt"), tensors_of(&memory, "/runs/a"));
        assert_same(&here, &there, "tensors");
    }
}

#[test]
fn counters_values_and_settings_come_in() {
    let memory = memory_with("pt", "adamw.pt");
    imported(&memory, "adamw.pt").unwrap();
    let manifest = manifest(&memory);
    assert_eq!((manifest.epoch(), manifest.step()), (3, 70));
    let values = manifest.values();
    assert_eq!(values.float("loss").unwrap(), 0.25);
    assert_eq!(values.floats("losses").unwrap(), [1.5, 0.25]);
    assert_eq!(values.text("note").unwrap(), "é");
    assert_eq!(values.int("config.depth").unwrap(), 2);
    assert_eq!(values.find("config.name"), Some(&Value::Json("null".to_owned())));
    let config: serde_json::Value = values.json("optimizer.config").unwrap();
    let settings = serde_json::json!({
        "algorithm": "adam_w", "lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-8,
        "weight_decay": 0.01, "amsgrad": false,
    });
    assert_eq!(config, settings);
    assert_eq!(values.floats("optimizer.lr").unwrap(), [1e-3]);
}

#[test]
fn groups_of_parameters_keep_their_settings() {
    let memory = memory_with("pt", "groups.pt");
    imported(&memory, "groups.pt").unwrap();
    let manifest = manifest(&memory);
    let values = manifest.values();
    assert_eq!(values.floats("optimizer.lr").unwrap(), [1e-2, 1e-3]);
    assert_eq!(values.floats("optimizer.weight_decay").unwrap(), [0.01, 0.0]);
    let groups: serde_json::Value = values.json("optimizer.groups").unwrap();
    assert_eq!(groups[0]["parameters"], serde_json::json!(["out.weight", "conv.weight"]));
    assert_eq!(groups[1]["names"].as_array().unwrap().len(), 4);
}

#[test]
fn what_is_no_state_dict_of_tensors_is_refused_and_named() {
    for (name, kind, said) in [
        ("legacy.pt", ErrorKind::Incompatible, "before 1.6"),
        ("module.pt", ErrorKind::Incompatible, "torch.nn.modules.linear.Linear"),
        ("expanded.pt", ErrorKind::Unsupported, "expanded"),
    ] {
        let memory = memory_with("pt", name);
        let error = imported(&memory, name).unwrap_err();
        assert_eq!(error.kind(), kind, "{name}: {error}");
        assert!(error.to_string().contains(said), "{name}: {error}");
        assert!(error.path().is_some_and(|path| path.ends_with(name)), "{name}: {error}");
        assert!(memory.open_dir(Path::new("/runs")).is_err(), "{name}: something was written");
    }
}

#[test]
fn a_flipped_bit_is_found_wherever_it_is() {
    let bytes = std::fs::read(fixture("pt").join("adamw.pt")).unwrap();
    let original = memory_with("pt", "adamw.pt");
    imported(&original, "adamw.pt").unwrap();
    let whole = tensors_of(&original, "/runs/a");
    let (mut found, mut harmless) = (0, 0);
    for at in (0..bytes.len()).step_by(7) {
        let mut flipped = bytes.clone();
        flipped[at] ^= 1 << (at % 8);
        let memory = MemoryStorage::new();
        put(&memory, "adamw.pt", &flipped);
        match imported(&memory, "adamw.pt") {
            Err(_) => found += 1,
            // Padding, dates and the like; never another tensor.
            Ok(_) => {
                harmless += 1;
                assert_same(&tensors_of(&memory, "/runs/a"), &whole, &format!("byte {at}"));
            }
        }
    }
    assert!(found > harmless, "{found} were found, {harmless} did no harm");
}

#[test]
fn a_truncated_file_is_refused_wherever_it_ends() {
    let bytes = std::fs::read(fixture("pt").join("sgd.pt")).unwrap();
    for len in (1..bytes.len()).step_by(61) {
        let memory = MemoryStorage::new();
        put(&memory, "sgd.pt", &bytes[..len]);
        let error = imported(&memory, "sgd.pt").unwrap_err();
        let kinds = [ErrorKind::Corrupt, ErrorKind::NotFound];
        assert!(kinds.contains(&error.kind()), "{len} bytes: {error}");
    }
}

#[test]
fn another_format_than_the_one_that_is_asked_for_is_refused() {
    use tch_checkpoint::import::ImportFormat::{Dcp, HuggingFace, Pt};
    for (asked, fits) in [(Pt, true), (Dcp, false), (HuggingFace, false)] {
        let memory = memory_with("pt", "adamw.pt");
        let options = ImportOptions { format: Some(asked), ..ImportOptions::default() };
        let kind = imported_as(&memory, "adamw.pt", &options).map(drop).map_err(|e| e.kind());
        let expected = if fits { Ok(()) } else { Err(ErrorKind::Incompatible) };
        assert_eq!(kind, expected, "{asked:?}");
    }
}
