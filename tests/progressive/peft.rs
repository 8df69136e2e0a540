//! Adapters as files of PEFT: what we wrote and what it wrote, read again; what the real PEFT makes
//! of ours; and files that are to be refused.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};
use tch_checkpoint::progressive::{PeftAdapter, PeftLinear, PeftOptions, read_peft, write_peft};
use tch_checkpoint::storage::{LocalStorage, MemoryStorage, Storage};
use tch_checkpoint::{ErrorKind, ProcessGroup, Result};

use crate::tier;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/progressive/peft_reads.py");
const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/peft");
const MODULES: [(&str, u64, u64); 4] =
    [("blocks.0.fc", 3, 4), ("blocks.0.out", 4, 3), ("blocks.1.fc", 3, 4), ("blocks.1.out", 4, 3)];

fn linears() -> Vec<PeftLinear> {
    let linear = |&(module, inputs, outputs): &(&str, u64, u64)| PeftLinear {
        module: module.to_owned(),
        inputs,
        outputs,
    };
    MODULES.iter().map(linear).collect()
}

fn adapter(module: &str, inputs: i64, outputs: i64, rank: i64, alpha: f64) -> PeftAdapter {
    let filled = |rows: i64, columns: i64| {
        let count = Tensor::arange(rows * columns, (Kind::Float, Device::Cpu));
        ((count * 0.37 + alpha).sin() * 0.8).reshape([rows, columns])
    };
    let (a, b) = (filled(rank, inputs), filled(outputs, rank));
    PeftAdapter { module: module.to_owned(), a, b, alpha, dropout: 0.25 }
}

/// Ranks and alphas that differ.
fn adapters() -> Vec<PeftAdapter> {
    vec![
        adapter("blocks.0.fc", 3, 4, 2, 4.0),
        adapter("blocks.0.out", 4, 3, 3, 4.0),
        adapter("blocks.1.fc", 3, 4, 1, 0.5),
        adapter("blocks.1.out", 4, 3, 2, 7.0),
    ]
}

fn same(ours: &[PeftAdapter], theirs: &[PeftAdapter]) {
    assert_eq!(ours.len(), theirs.len());
    for (one, other) in ours.iter().zip(theirs) {
        assert_eq!(one.module, other.module);
        assert!(one.a.equal(&other.a) && one.b.equal(&other.b), "{}", one.module);
        assert_eq!((one.a.kind(), one.alpha), (other.a.kind(), other.alpha));
        assert_eq!(one.dropout, other.dropout);
    }
}

fn read(from: &Path) -> Result<Vec<PeftAdapter>> {
    read_peft(&ProcessGroup::solo(), &LocalStorage::new(), from, &linears())
}

fn write(out: &Path, adapters: &[PeftAdapter], overwrite: bool) -> Result<PathBuf> {
    let options = PeftOptions { overwrite, ..PeftOptions::default() };
    write_peft(&ProcessGroup::solo(), &LocalStorage::new(), out, adapters, &options)
}

/// The output of the model of the fixture with these adapters, and the one that PEFT had with its own.
fn outputs(adapters: &[PeftAdapter]) -> (Tensor, Tensor) {
    let base = Tensor::read_safetensors(Path::new(FIXTURE).join("base.safetensors")).unwrap();
    let of = |name: &str| base.iter().find(|(n, _)| n == name).map(|(_, t)| t.shallow_clone());
    let linear = |name: &str, x: &Tensor| {
        let (weight, bias) = (of(&format!("{name}.weight")).unwrap(), of(&format!("{name}.bias")));
        let lora = adapters.iter().find(|adapter| adapter.module == name).unwrap();
        let scale = lora.alpha / lora.a.size()[0] as f64;
        let delta = x.linear(&lora.a, None::<&Tensor>).linear(&lora.b, None::<&Tensor>);
        x.linear(&weight, bias.as_ref()) + delta * scale
    };
    let mut x = of("x").unwrap();
    for block in ["blocks.0", "blocks.1"] {
        let inner = linear(&format!("{block}.fc"), &x).tanh();
        x = &x + linear(&format!("{block}.out"), &inner);
    }
    (x, of("y").unwrap())
}

#[test]
fn adapters_come_back_as_they_were_written() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("adapters");
    assert_eq!(write(&out, &adapters(), false).unwrap(), out);
    same(&adapters(), &read(&out).unwrap());
    let half = |adapter: PeftAdapter| PeftAdapter {
        a: adapter.a.to_kind(Kind::BFloat16),
        b: adapter.b.to_kind(Kind::BFloat16),
        ..adapter
    };
    let halved: Vec<_> = adapters().into_iter().map(half).collect();
    assert_eq!(write(&out, &halved, false).unwrap_err().kind(), ErrorKind::AlreadyExists);
    same(&adapters(), &read(&out).unwrap());
    write(&out, &halved, true).unwrap();
    same(&halved, &read(&out).unwrap());
}

#[test]
fn linear_layers_without_an_adapter_are_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("adapters");
    let one = [adapter("blocks.1.fc", 3, 4, 2, 4.0)];
    write(&out, &one, false).unwrap();
    same(&one, &read(&out).unwrap());
}

#[test]
fn what_peft_wrote_gives_the_output_that_it_had() {
    let read = read(Path::new(FIXTURE)).unwrap();
    let said: Vec<_> = read.iter().map(|a| (a.rank(), a.alpha, a.dropout)).collect();
    assert_eq!(said, [(2, 4.0, 0.25), (2, 4.0, 0.25), (1, 3.0, 0.25), (2, 4.0, 0.25)]);
    let (ours, theirs) = outputs(&read);
    assert!((ours - theirs).abs().max().double_value(&[]) < 1e-6);
}

#[test]
fn the_real_peft_computes_with_ours_what_we_do() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("adapters");
    write(&out, &adapters(), false).unwrap();
    let Some(mut python) = tier::python("peft, safetensors.torch") else { return };
    python.arg(SCRIPT).arg(&out).arg(Path::new(FIXTURE).join("base.safetensors"));
    let ran = python.output().unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let said = String::from_utf8(ran.stdout).unwrap();
    let (dropout, output) = said.trim().split_once('\n').unwrap();
    assert_eq!(dropout, "0.25");
    let theirs: Vec<f64> = output.split(' ').map(|number| number.parse().unwrap()).collect();
    let ours = Vec::<f64>::try_from(outputs(&adapters()).0.to_kind(Kind::Double).flatten(0, -1));
    let ours = ours.unwrap();
    assert_eq!(ours.len(), theirs.len());
    let furthest = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(furthest < 1e-6, "{furthest}");
}

/// Copies the fixture, with the configuration changed.
fn with_config(dir: &Path, change: impl FnOnce(&mut Value)) {
    let path = |name: &str| Path::new(FIXTURE).join(name);
    let mut config = serde_json::from_slice(&std::fs::read(path("adapter_config.json")).unwrap());
    change(config.as_mut().unwrap());
    std::fs::write(dir.join("adapter_config.json"), config.unwrap().to_string()).unwrap();
    let model = "adapter_model.safetensors";
    std::fs::copy(path(model), dir.join(model)).unwrap();
}

#[test]
fn whatever_is_more_than_plain_lora_is_refused_by_its_name() {
    let refused = [
        ("peft_type", json!("LOHA")),
        ("use_dora", json!(true)),
        ("use_rslora", json!(true)),
        ("bias", json!("all")),
        ("lora_bias", json!(true)),
        ("modules_to_save", json!(["head"])),
        ("fan_in_fan_out", json!(true)),
        ("init_lora_weights", json!("pissa")),
        ("loftq_config", json!({"loftq_bits": 4})),
        ("layer_replication", json!([[0, 2]])),
        ("target_parameters", json!(["w"])),
        ("a_field_of_tomorrow", json!(1)),
        ("rank_pattern", json!({"blocks\\.\\d+": 2})),
        ("alpha_pattern", json!({".*fc": 2})),
    ];
    for (field, value) in refused {
        let dir = tempfile::tempdir().unwrap();
        with_config(dir.path(), |config| config[field] = value);
        let error = read(dir.path()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{field}: {error}");
        assert!(error.message().contains(field), "{field}: {error}");
    }
}

#[test]
fn a_malformed_configuration_is_corrupt() {
    let dir = tempfile::tempdir().unwrap();
    with_config(dir.path(), |_| {});
    let whole = read(dir.path()).map(|read| read.len());
    assert_eq!(whole.unwrap(), 4);
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(5000), "]".repeat(5000));
    let long = format!("{{\"a\":\"{}\"}}", "x".repeat(1 << 20));
    let plain = |fields: &str| format!("{{\"peft_type\":\"LORA\",{fields}}}");
    let bad = [
        String::new(),
        "[]".to_owned(),
        "{".to_owned(),
        deep,
        long,
        plain("\"r\":2"),
        plain("\"r\":-2,\"lora_alpha\":4"),
        plain("\"r\":0,\"lora_alpha\":4"),
        plain("\"r\":2,\"lora_alpha\":0"),
        plain("\"r\":2,\"lora_alpha\":4,\"lora_dropout\":1"),
        plain("\"r\":2,\"lora_alpha\":4,\"rank_pattern\":[1]"),
        plain("\"r\":2,\"lora_alpha\":4,\"alpha_pattern\":{\"a\":-1}"),
        plain("\"r\":2,\"r\":3,\"lora_alpha\":4"),
    ];
    for text in bad {
        std::fs::write(dir.path().join("adapter_config.json"), &text).unwrap();
        let error = read(dir.path()).unwrap_err();
        let shown: String = text.chars().take(80).collect();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{shown}: {error}");
        assert!(error.path().is_some(), "{shown}");
    }
    std::fs::remove_file(dir.path().join("adapter_config.json")).unwrap();
    assert_eq!(read(dir.path()).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn tensors_that_do_not_fit_are_told_all_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let f32s = |shape: [i64; 2]| Tensor::zeros(shape, (Kind::Float, Device::Cpu));
    let key = |module: &str, end: &str| format!("base_model.model.{module}.lora_{end}.weight");
    let tensors = [
        (key("blocks.0.fc", "A"), f32s([2, 3])),
        (key("blocks.0.out", "B"), f32s([3, 2])),
        (key("blocks.1.fc", "A"), f32s([1, 5])),
        (key("blocks.1.fc", "B"), f32s([4, 1])),
        (key("blocks.1.out", "A"), f32s([2, 4]).to_kind(Kind::Int64)),
        (key("blocks.1.out", "B"), f32s([3, 2])),
        (key("blocks.7.fc", "A"), f32s([2, 3])),
        ("head.weight".to_owned(), f32s([1, 1])),
    ];
    with_config(dir.path(), |_| {});
    let file = dir.path().join("adapter_model.safetensors");
    Tensor::write_safetensors(&tensors, file).unwrap();
    let error = read(dir.path()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Mismatch, "{error}");
    for told in [
        "`blocks.0.fc` has no B",
        "`blocks.0.out` has no A",
        "`blocks.1.fc` has A F32",
        "`blocks.1.out` has A I64",
        "blocks.7.fc.lora_A.weight` belongs to no linear layer",
        "`head.weight` belongs to no linear layer",
    ] {
        assert!(error.message().contains(told), "{told}: {error}");
    }
}

#[test]
fn a_rank_that_the_configuration_does_not_say_does_not_fit() {
    let dir = tempfile::tempdir().unwrap();
    with_config(dir.path(), |config| config["r"] = json!(3));
    let error = read(dir.path()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Mismatch, "{error}");
}

#[test]
fn a_cut_file_of_tensors_is_corrupt() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("adapter_model.safetensors");
    for keep in [0, 7, 100, 1000] {
        with_config(dir.path(), |_| {});
        let bytes = std::fs::read(&file).unwrap();
        std::fs::write(&file, bytes.get(..keep).unwrap()).unwrap();
        let error = read(dir.path()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{keep}: {error}");
    }
}

#[test]
fn adapters_that_cannot_be_are_not_written() {
    let storage = MemoryStorage::new();
    let refused = |adapters: &[PeftAdapter]| {
        let options = PeftOptions::default();
        let error = write_peft(&ProcessGroup::solo(), &storage, "out/a", adapters, &options);
        error.unwrap_err().kind()
    };
    let good = || adapter("fc", 3, 4, 2, 4.0);
    assert_eq!(refused(&[]), ErrorKind::InvalidInput);
    assert_eq!(refused(&[good(), good()]), ErrorKind::InvalidInput);
    let b = Tensor::zeros([4, 3], (Kind::Float, Device::Cpu));
    assert_eq!(refused(&[PeftAdapter { b, ..good() }]), ErrorKind::InvalidInput);
    assert_eq!(refused(&[PeftAdapter { alpha: f64::NAN, ..good() }]), ErrorKind::InvalidInput);
    assert_eq!(refused(&[PeftAdapter { dropout: 1.0, ..good() }]), ErrorKind::InvalidInput);
    let other = PeftAdapter { module: "out".into(), dropout: 0.0, ..good() };
    assert_eq!(refused(&[good(), other]), ErrorKind::Unsupported);
    assert!(storage.open_dir(Path::new("out/a")).is_err());
}
