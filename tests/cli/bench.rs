//! `tch-checkpoint bench`: what it prints, what it leaves, and what it refuses. Never how fast.

use std::path::Path;
use std::process::Stdio;

use serde_json::Value;

use super::{Folder, Ran, assert_code, command, entries, flip, output_of, run, shard, tier};

/// Rows that do not divide, a scalar, nothing, and a length that is no multiple of a word.
const ODD: &str = r#"{"name": "odd", "seed": 9, "tensors": [
    ["rows", [7, 300], "F32"], ["scalar", [], "F64"], ["empty", [0, 4], "F32"],
    ["optim.moment", [5, 3], "BF16"], ["bytes", [5], "U8"]]}"#;

struct Bench {
    folder: Folder,
    spec: String,
    dir: String,
}

impl Bench {
    fn new(spec: &str) -> Self {
        let folder = Folder::new();
        let (path, dir) = (folder.at("spec.json"), folder.at("x"));
        std::fs::write(&path, spec).unwrap();
        Self { folder, spec: path, dir }
    }

    fn of_workload(name: &str) -> Self {
        let ran = run(&["bench", "workload", name]);
        assert_code(&ran, 0);
        Self::new(&ran.stdout)
    }

    fn run(&self, verb: &str, more: &[&str]) -> Ran {
        run(&[&["bench", verb, "--spec", &self.spec, "--dir", &self.dir], more].concat())
    }

    #[track_caller]
    fn json(&self, verb: &str, more: &[&str]) -> Value {
        let ran = self.run(verb, &[more, &["--json"]].concat());
        assert_code(&ran, 0);
        one_line(&ran.stdout)
    }

    /// What is there, but for the spec and the lock of every directory of checkpoints.
    fn left(&self) -> Vec<String> {
        let mut left = self.folder.entries();
        left.retain(|name| name != "spec.json" && name != ".tch-checkpoint.lock");
        left
    }
}

#[track_caller]
fn one_line(stdout: &str) -> Value {
    assert_eq!(stdout.lines().count(), 1, "{stdout}");
    serde_json::from_str(stdout).unwrap()
}

#[test]
fn a_workload_is_a_spec() {
    let ran = run(&["bench", "workload", "small-18"]);
    assert_code(&ran, 0);
    let spec = one_line(&ran.stdout);
    assert_eq!((&spec["name"], &spec["seed"]), (&"small-18".into(), &20_240_607.into()));
    let tensors = spec["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), 18);
    assert_eq!(tensors[17], serde_json::json!(["block.00001.param.01", [32, 32], "F32"]));
    // Some of what another program makes of the same names.
    let tensor = |name: &str, index: usize| {
        let ran = run(&["bench", "workload", name]);
        assert_code(&ran, 0);
        let spec = one_line(&ran.stdout);
        spec["tensors"][index].clone()
    };
    use serde_json::json;
    assert_eq!(tensor("W1", 0), json!(["model.wte.weight", [50257, 768], "F32"]));
    assert_eq!(tensor("W1", 4), json!(["model.h.0.attn.c_attn.weight", [768, 2304], "F32"]));
    assert_eq!(tensor("W1", 443), json!(["optim.exp_avg_sq.ln_f.bias", [768], "F32"]));
    assert_eq!(tensor("W2", 19_999), json!(["block.01249.param.15", [32, 32], "F32"]));
    assert_eq!(tensor("W3", 3), json!(["big.3.weight", [16384, 16384], "BF16"]));
    assert_eq!(
        tensor("W4", 2),
        json!(["model.model.layers.0.self_attn.k_proj.weight", [512, 2048], "BF16"])
    );
    assert_eq!(
        tensor("W4", 20),
        json!(["optim.master.model.embed_tokens.weight", [8192, 2048], "F32"])
    );
}

#[test]
fn what_is_saved_by_some_ranks_is_loaded_by_others() {
    let bench = Bench::new(ODD);
    let bytes = 7 * 300 * 4 + 8 + 30 + 5;
    let cases = [("1", "3"), ("2", "1"), ("3", "2")];
    for ((saving, loading), layout) in
        cases.into_iter().flat_map(|case| ["sharded", "replicated"].map(|layout| (case, layout)))
    {
        let saved = bench.json("save", &["--ranks", saving, "--layout", layout]);
        assert_eq!((&saved["op"], &saved["bytes"]), (&"save".into(), &bytes.into()), "{saved}");
        assert_eq!(saved["ranks"].to_string(), saving);
        assert_eq!(bench.left(), ["x"]);
        assert_code(&run(&["verify", &bench.dir]), 0);
        for cache in ["warm", "cold"] {
            let more = ["--ranks", loading, "--layout", layout, "--cache", cache];
            let loaded = bench.json("load", &more);
            assert_eq!((&loaded["op"], &loaded["cache"]), (&"load".into(), &cache.into()));
            assert!(loaded["bytes_read"].as_u64().unwrap() >= bytes, "{loaded}");
        }
        assert_eq!(bench.left(), ["x"]);
    }
}

#[test]
fn the_line_has_every_field() {
    let bench = Bench::of_workload("small-40");
    let saved = bench.json("save", &["--rounds", "2", "--durable", "no"]);
    let loaded = bench.json("load", &["--atomic", "--rounds", "2"]);
    for (line, op) in [(&saved, "save"), (&loaded, "load")] {
        assert_eq!((&line["op"], &line["workload"]), (&op.into(), &"small-40".into()));
        assert_eq!((&line["rounds"], &line["tensors"]), (&2.into(), &40.into()));
        assert_eq!((&line["durable"], &line["layout"]), (&true.into(), &"sharded".into()));
        for figure in ["seconds", "raw_seconds", "ratio", "gb_s", "peak_rss_mb"] {
            assert!(line[figure].as_f64().is_some_and(|value| value >= 0.0), "{figure}: {line}");
        }
        for part in ["plan", "stage", "hash", "write", "fsync", "commit"] {
            assert!(line.get(part).is_some(), "{part}: {line}");
            assert!(op == "load" || line[part].is_number(), "{part}: {line}");
        }
        assert!(line.get("stall").is_none(), "{line}");
    }
    let beside = bench.json("save", &["--async", "--trainer", "--ranks", "2"]);
    assert_eq!(beside["op"], "save_async");
    for figure in ["stall", "memcpy_seconds", "trainer"] {
        assert!(beside[figure].as_f64().is_some(), "{figure}: {beside}");
    }
    assert!(beside["stall"].as_f64() <= beside["seconds"].as_f64(), "{beside}");
    let ran = bench.run("load", &[]);
    assert_code(&ran, 0);
    assert!(ran.stdout.contains("load of `small-40`, 160.0 KiB, 1 rank"), "{}", ran.stdout);
}

#[test]
fn ranks_can_be_processes() {
    let bench = Bench::new(ODD);
    let tcp = ["--ranks", "2", "--transport", "tcp"];
    assert_eq!(bench.json("save", &tcp)["ranks"], 2);
    assert_eq!(bench.json("load", &tcp)["ranks"], 2);
    assert_eq!(bench.left(), ["x"]);
}

#[test]
fn bytes_of_another_spec_and_damage_are_found() {
    let bench = Bench::of_workload("small-40");
    bench.json("save", &[]);
    let text = std::fs::read_to_string(&bench.spec).unwrap();
    std::fs::write(&bench.spec, text.replace("20240607", "20240608")).unwrap();
    let ran = bench.run("load", &["--ranks", "2"]);
    assert_code(&ran, 3);
    assert!(ran.stderr.contains("byte 0 is not the one"), "{}", ran.stderr);
    std::fs::write(&bench.spec, text).unwrap();
    let file = shard(&bench.dir);
    let len = std::fs::metadata(&file).unwrap().len();
    flip(&file, usize::try_from(len).unwrap() - 1);
    let ran = bench.run("load", &[]);
    assert_code(&ran, 3);
    assert!(ran.stderr.contains("block.00002.param.07"), "{}", ran.stderr);
}

#[test]
fn planning_touches_no_storage() {
    for layout in ["sharded", "replicated"] {
        let ran =
            run(&["bench", "plan", "--ranks", "6", "--tensors", "9", "--layout", layout, "--json"]);
        assert_code(&ran, 0);
        let line = one_line(&ran.stdout);
        assert_eq!((&line["op"], &line["ranks"]), (&"plan".into(), &6.into()), "{line}");
        assert!(line["manifest_bytes"].as_u64().unwrap() > 500, "{line}");
        let sum =
            line["plan_seconds"].as_f64().unwrap() + line["load_plan_seconds"].as_f64().unwrap();
        assert!((line["seconds"].as_f64().unwrap() - sum).abs() < 1e-5, "{line}");
    }
    for more in [["--ranks", "0"], ["--ranks", "4000000000"]] {
        assert_code(&run(&[&["bench", "plan"], &more[..]].concat()), 7);
    }
}

#[test]
fn a_table_for_a_user_leaves_nothing() {
    let folder = Folder::new();
    let ran = run(&["bench", "--dir", folder.path(), "--bytes", "400000", "--rounds", "1"]);
    assert_code(&ran, 0);
    for words in ["save", "async, stall", "load, warm", "load, cold", "÷ raw"] {
        assert!(ran.stdout.contains(words), "{words} is not in {}", ran.stdout);
    }
    let table = ran.stdout.lines().skip(1);
    assert!(table.into_iter().all(|line| line.chars().count() <= 80), "{}", ran.stdout);
    assert_eq!((folder.entries(), ran.stderr.as_str()), (vec![], ""));
}

#[test]
fn what_cannot_be_measured_is_refused_and_leaves_nothing() {
    let huge = r#"{"name": "huge", "seed": 1, "tensors": [["a", [1099511627776, 64], "F32"]]}"#;
    let twice = r#"{"name": "x", "seed": 1, "tensors": [["a", [2], "F32"], ["a", [2], "F32"]]}"#;
    let strange = r#"{"name": "x", "seed": 1, "tensors": [["a", [2], "F33"]]}"#;
    let shape = r#"{"name": "x", "seed": 1, "tensors": [["a", [4294967296, 4294967296], "F32"]]}"#;
    let cases = [
        (huge, "of memory, this host has"),
        (twice, "occurs twice"),
        (strange, "`F33` is none of"),
        (shape, "overflows"),
        ("[1, 2", "not a spec"),
    ];
    for (spec, words) in cases {
        let bench = Bench::new(spec);
        let ran = bench.run("save", &["--json"]);
        assert_code(&ran, 7);
        assert!(ran.stderr.contains(words) && ran.stdout.is_empty(), "{}", ran.stderr);
        assert_eq!(bench.left(), [""; 0]);
    }
    let bench = Bench::of_workload("small-3");
    let nowhere = bench.folder.at("nowhere/x");
    let file = bench.folder.at("spec.json");
    for (arguments, words) in [
        (&["bench", "workload", "W9"][..], "W1, W2, W3, W4, and small-N"),
        (&["bench", "save", "--spec", &file, "--dir", &nowhere], "nowhere"),
        (&["bench", "save", "--spec", &nowhere, "--dir", &bench.dir], "reading the spec"),
        (&["bench", "load", "--spec", &file, "--dir", &bench.dir], "no checkpoint here"),
        (&["bench", "--dir", &nowhere], "nowhere"),
        (&["bench", "--dir", &file], "not a directory"),
        (&["bench", "--dir", bench.folder.path(), "--bytes", "5"], "less than one tensor"),
    ] {
        let ran = run(arguments);
        assert_code(&ran, 7);
        assert!(ran.stderr.contains(words), "{words} is not in {}", ran.stderr);
    }
    for usage in [&["bench"][..], &["bench", "save", "--dir", "x"], &["bench", "nonsense"]] {
        assert_code(&run(usage), 2);
    }
    assert_eq!(bench.left(), [""; 0]);
}

#[test]
fn what_is_not_its_own_is_not_replaced() {
    let bench = Bench::of_workload("small-3");
    assert_code(&bench.folder.save("1", &["--bytes", "100"]), 0);
    std::fs::rename(bench.folder.at("step-00000001"), &bench.dir).unwrap();
    let ran = bench.run("save", &[]);
    assert_code(&ran, 7);
    assert!(ran.stderr.contains("has not made"), "{}", ran.stderr);
    assert_code(&run(&["verify", &bench.dir]), 0);
    flip(&Path::new(&bench.dir).join("manifest.bin"), 30);
    assert_code(&bench.run("save", &[]), 7);
    std::fs::remove_dir_all(&bench.dir).unwrap();
    std::fs::create_dir(&bench.dir).unwrap();
    std::fs::write(Path::new(&bench.dir).join("notes.txt"), "mine").unwrap();
    assert_code(&bench.run("save", &[]), 7);
    assert_eq!(entries(Path::new(&bench.dir)), ["notes.txt"]);
    // An empty directory is nobody's loss, and what a run left is replaced.
    std::fs::remove_file(Path::new(&bench.dir).join("notes.txt")).unwrap();
    for _ in 0..2 {
        bench.json("save", &[]);
    }
    assert_eq!(bench.left(), ["x"]);
}

/// In a mount namespace of its own, so that nothing stays mounted whatever happens.
const ON_A_SMALL_DISK: &str = r#"
set -eu
command=$1 disk=$2 small=$3 large=$4
mount -t tmpfs -o size=512k none "$disk"
"$command" bench save --spec "$small" --dir "$disk/x" --json
"$command" bench load --spec "$small" --dir "$disk/x" --cache cold --json
code=0
"$command" bench save --spec "$large" --dir "$disk/y" --json || code=$?
echo "code $code"
ls -A "$disk"
"#;

#[test]
fn a_disk_that_is_too_small() {
    if !tier::has(&[tier::Need::Program("unshare")]) {
        return;
    }
    let (small, large) = (Bench::of_workload("small-10"), Bench::of_workload("small-200"));
    let disk = Folder::new();
    let mut unshare = tier::program("unshare");
    unshare.arg("--mount");
    if !rustix::process::geteuid().is_root() {
        unshare.args(["--user", "--map-root-user"]);
    }
    unshare.args(["sh", "-c", ON_A_SMALL_DISK, "sh", env!("CARGO_BIN_EXE_tch-checkpoint")]);
    unshare.args([disk.path(), &small.spec, &large.spec]);
    unshare.stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = output_of(unshare.spawn().unwrap(), "a small disk");
    let stdout = String::from_utf8_lossy(&output.stdout);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stdout}{stderr}");
    let lines: Vec<&str> = stdout.lines().collect();
    let [_saved, _loaded, code, lock, kept] = &lines[..] else { panic!("{lines:?}") };
    assert_eq!((*code, *lock, *kept), ("code 3", ".tch-checkpoint.lock", "x"));
    assert!(stderr.contains("no space left"), "{stderr}");
}

/// Ctrl-C between two parts of a round ends it in good order.
#[test]
fn an_interrupted_one_leaves_no_file_of_its_own() {
    let folder = Folder::new();
    let mut child =
        command(&["bench", "--dir", folder.path(), "--bytes", "3000000", "--rounds", "1000"]);
    let child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    while folder.entries().is_empty() {
        std::thread::yield_now();
    }
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = output_of(child, "an interrupted table");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert!(stderr.contains("interrupted"), "{stderr}");
    assert_eq!(folder.entries(), [""; 0]);
}
