//! The verbs `export` and `import`.

use std::path::Path;

use crate::{Folder, Ran, assert_code, entries, flip, run, shard};

const CONFIG: &str = "{\"model_type\": \"gpt2\"}";

fn json(ran: &Ran) -> serde_json::Value {
    assert_code(ran, 0);
    assert_eq!(ran.stdout.lines().count(), 1, "{}", ran.stdout);
    assert_eq!(ran.stderr, "", "quiet where there is no terminal");
    serde_json::from_str(&ran.stdout).unwrap()
}

#[test]
fn a_checkpoint_goes_out_and_comes_back() {
    let folder = Folder::new();
    folder.saved("3");
    let (out, back, config) = (folder.at("hf"), folder.at("back"), folder.at("my.json"));
    std::fs::write(&config, CONFIG).unwrap();
    let latest = folder.at("latest");
    let ran = run(&[
        "export",
        &latest,
        "--format",
        "hf",
        "-o",
        &out,
        "--max-shard-size",
        "60KB",
        "--config",
        &config,
    ]);
    assert_code(&ran, 0);
    assert!(ran.stdout.contains("model.safetensors.index.json"), "{}", ran.stdout);
    assert!(ran.stdout.ends_with("step 3, 6 files, 211.3 KiB\n"), "{}", ran.stdout);
    let names = entries(Path::new(&out));
    assert_eq!(names[0], "config.json");
    assert_eq!(names[4], "model-00004-of-00004.safetensors");
    assert_eq!(std::fs::read_to_string(format!("{out}/config.json")).unwrap(), CONFIG);

    let told = json(&run(&["import", &out, "-o", &back, "--json"]));
    assert_eq!((&told["step"], &told["tensors"]), (&3.into(), &4.into()));
    assert_eq!(told["path"], back.as_str());
    assert_code(&run(&["verify", &back]), 0);
    let [a, b] = [&latest, &back].map(|at| json(&run(&["inspect", at, "--json"])));
    assert_eq!((&a["step"], a["tensor_bytes"].as_u64()), (&b["step"], b["tensor_bytes"].as_u64()));
    assert_eq!(b["values"]["model.config"]["model_type"], "gpt2");

    let told = json(&run(&["export", &back, "-o", &out, "--force", "--json", "--dtype", "bf16"]));
    assert_eq!((&told["format"], &told["step"]), (&"hf".into(), &3.into()));
    assert_eq!(told["files"][0]["tensors"].as_array().unwrap().len(), 4);
    assert_eq!(told["documents"][0], format!("{out}/config.json"));
    assert_eq!(entries(Path::new(&out)), ["config.json", "model.safetensors"]);

    let file = folder.at("one.safetensors");
    let arguments = ["export", &back, "--format", "safetensors", "-o", &file, "--json"];
    assert_eq!(json(&run(&arguments))["path"], file.as_str());
    let again = folder.at("again");
    assert_code(&run(&["import", &file, "-o", &again, "--step", "8"]), 0);
    assert_eq!(json(&run(&["inspect", &again, "--json"]))["step"], 8);
}

#[test]
fn what_cannot_be_is_told_by_the_exit_code() {
    let folder = Folder::new();
    folder.saved("3");
    let (latest, out) = (folder.at("latest"), folder.at("hf"));
    let before = folder.entries();
    for (arguments, code, word) in [
        (&["export", &latest][..], 2, "--out"),
        (&["export", &latest, "-o", &out, "--format", "onnx"], 2, "onnx"),
        (&["export", &latest, "-o", &out, "--dtype", "i8"], 2, "bf16"),
        (&["export", &latest, "-o", &out, "--max-shard-size", "5XB"], 2, "5GB"),
        (&["export", &latest, "-o", &out, "--max-shard-size", "0"], 2, "5GB"),
        (&["export", &latest, "-o", &out, "--component", "Model"], 2, "a-z"),
        (&["export", &latest, "-o", &out, "--component", "ema"], 7, "stored: model"),
        (&["export", &latest, "-o", &out, "--config", &folder.at("none")], 7, "no such file"),
        (&["export", &folder.at("none"), "-o", &out], 7, "no checkpoint"),
        (&["export", &latest, "-o", &latest, "--force"], 7, ""),
        (&["import", &folder.at("step-00000003"), "-o", &out], 7, "a checkpoint already"),
        (&["import", &folder.at("none"), "-o", &out], 7, "nothing that can be imported"),
        (&["import", &latest], 2, "--out"),
    ] {
        let ran = run(arguments);
        assert_code(&ran, code);
        assert!(ran.stderr.contains(word), "{arguments:?}: {}", ran.stderr);
        assert_eq!(ran.stdout, "");
        assert_eq!(folder.entries(), before, "{arguments:?}");
    }
    assert_code(&run(&["export", &latest, "-o", &out]), 0);
    let ran = run(&["export", &latest, "-o", &out]);
    assert_code(&ran, 7);
    assert!(ran.stderr.contains("--force"), "{}", ran.stderr);
    std::fs::write(format!("{out}/tokenizer.json"), "{}").unwrap();
    let ran = run(&["export", &latest, "-o", &out, "--force"]);
    assert_code(&ran, 7);
    assert!(ran.stderr.contains("tokenizer.json"), "{}", ran.stderr);
    assert!(Path::new(&out).join("tokenizer.json").exists());
    flip(&shard(&folder.at("step-00000003")), 5000);
    assert_code(&run(&["export", &latest, "-o", &folder.at("other")]), 3);
    assert!(!Path::new(&folder.at("other")).exists());
    let bad = format!("{out}/model.safetensors");
    std::fs::write(&bad, b"\x08\0\0\0\0\0\0\0{}").unwrap();
    assert_code(&run(&["import", &out, "-o", &folder.at("other")]), 3);
}
