//! Formats that carry code: nothing here calls what would read them, and files in them are refused
//! under any name.

use std::fs;
use std::path::{Path, PathBuf};

use tch_checkpoint::ErrorKind;
use tch_checkpoint::catalog::Wanted;

use crate::alone;
use crate::judge::{command_fault, read_all, unfit, without_a_trace};
use crate::scene::Scene;

/// What runs code out of a file, by the names of libtorch, tch and Python, and what would widen
/// the permissions of a file.
const NEVER: [&str; 16] = [
    "jit::load",
    "load_multi",
    "loadz",
    "VarStore::load",
    ".load_from_stream(",
    "vs.load(",
    "load_partial(path",
    "torch::load",
    "InputArchive",
    "CModule",
    "serde_pickle",
    "import pickle",
    "pickle.load",
    "Unpickler",
    "set_permissions",
    "chmod",
];

/// Lines that may name them: none.
const ALLOWED: [(&str, &str); 0] = [];

fn sources(dir: &Path, all: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, all);
        } else if !is_test(&path)
            && path.extension().is_some_and(|e| ["rs", "cpp", "h", "py"].iter().any(|k| e == *k))
        {
            all.push(path);
        }
    }
}

fn is_test(path: &Path) -> bool {
    path.components()
        .any(|part| part.as_os_str().to_string_lossy().trim_end_matches(".rs") == "tests")
}

/// What of a line is code.
fn code(line: &str) -> &str {
    let line = line.trim();
    if line.starts_with("//") { "" } else { line.split(" // ").next().unwrap_or_default() }
}

/// Lines of code that name something that is never called.
fn calls_in(path: &Path, text: &str) -> Vec<String> {
    let named = |line: &&str| NEVER.iter().any(|never| code(line).contains(never));
    let is_allowed = |line: &&str| {
        ALLOWED.iter().any(|(file, part)| path.ends_with(file) && line.contains(part))
    };
    let lines = text.lines().filter(named).filter(|line| !is_allowed(line));
    lines.map(|line| format!("{}: {}", path.display(), line.trim())).collect()
}

#[test]
fn nothing_calls_what_runs_code_out_of_a_file() {
    let mut all = Vec::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    ["src", "examples", "benches"].iter().for_each(|dir| sources(&root.join(dir), &mut all));
    all.push(root.join("build.rs"));
    assert!(all.len() > 200, "where are the sources?");
    let calls: Vec<String> =
        all.iter().flat_map(|path| calls_in(path, &fs::read_to_string(path).unwrap())).collect();
    assert_eq!(calls, Vec::<String>::new());
}

#[test]
fn a_call_of_it_would_be_seen() {
    let text =
        "let module = tch::CModule::load(path)?;\n// never jit::load\nvs.load(path)?; // x\n";
    assert_eq!(calls_in(Path::new("src/x.rs"), text).len(), 2);
}

/// What `torch.save` and `torch.jit.save` write, cut down to what would run: `touch <marker>`.
fn evil(marker: &Path) -> [(&'static str, Vec<u8>); 4] {
    let command = format!("touch {}", marker.display());
    let pickle = [
        b"\x80\x02cposix\nsystem\nX".as_slice(),
        &(command.len() as u32).to_le_bytes(),
        command.as_bytes(),
        b"\x85R.",
    ]
    .concat();
    let legacy = format!("cposix\nsystem\n(S'{command}'\ntR.").into_bytes();
    let archive = stored("archive/data.pkl", &pickle);
    let script = format!("def __setstate__(self, x):\n  system('{command}')\n");
    let module = stored("code/__torch__.py", script.as_bytes());
    [("pickle", pickle), ("old pickle", legacy), ("archive", archive), ("module", module)]
}

/// An archive of one file that is not compressed.
fn stored(name: &str, bytes: &[u8]) -> Vec<u8> {
    let (len, name_len) = ((bytes.len() as u32).to_le_bytes(), (name.len() as u16).to_le_bytes());
    let common =
        [[20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0].as_slice(), &len, &len, &name_len, &[0, 0]]
            .concat();
    let local = [b"PK\x03\x04".as_slice(), &common, name.as_bytes(), bytes].concat();
    let central = [b"PK\x01\x02\x14\0".as_slice(), &common, &[0; 14], name.as_bytes()].concat();
    let end = [
        b"PK\x05\x06\0\0\0\0\x01\0\x01\0".as_slice(),
        &(central.len() as u32).to_le_bytes(),
        &(local.len() as u32).to_le_bytes(),
        &[0, 0],
    ]
    .concat();
    [local, central, end].concat()
}

const NAMES: [&str; 12] = [
    "a.pt",
    "a.pth",
    "a.bin",
    "a.ckpt",
    "a.pkl",
    "a.safetensors",
    "a.npz",
    "a.zip",
    "a",
    "pytorch_model.bin",
    "model.safetensors",
    "a/manifest.bin",
];

#[test]
fn files_that_carry_code_are_refused_under_any_name() {
    let _alone = alone();
    for name in NAMES {
        let scene = Scene::new();
        let marker = scene.top().join("PWNED");
        for (what, bytes) in evil(&marker) {
            scene.put(name, &bytes);
            let path = scene.dir().join(name.trim_end_matches("/manifest.bin"));
            let ((), trace) = without_a_trace(&scene, || {
                for wanted in
                    [Wanted::parse(&path).unwrap(), Wanted::parse(&path).unwrap().or_unverified()]
                {
                    for read in read_all(&scene, &wanted) {
                        let error = read.result.expect_err(what);
                        use ErrorKind::{Corrupt, Incompatible, NotFound};
                        let kinds = [Corrupt, Incompatible, NotFound];
                        assert!(kinds.contains(&error.kind()), "{what} as {name}: {error}");
                        assert_eq!(unfit(&error.to_string()), None);
                    }
                }
                let verb = ["verify", "inspect", "code"][bytes.len() % 3];
                let fault = command_fault(&[verb, path.to_str().unwrap()], true);
                assert_eq!(fault, None, "{what} as {name}");
            });
            assert_eq!(trace, None, "{what} as {name}");
            assert!(!marker.exists(), "{what} as {name} was run");
        }
    }
}
