//! Directories that nobody vouches for, as checkpoints.

use tch_checkpoint::Rank;
use tch_checkpoint::storage::{Fault, FaultyStorage, LocalStorage};

use super::*;

const DIR: &str = "w/hf";

/// A safetensors file with this header and so many bytes of data.
fn file(header: &str, data: usize) -> Vec<u8> {
    let data: Vec<u8> = (0..data).map(|at| at as u8).collect();
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat()
}

fn tensor(name: &str, dtype: &str, shape: &str, begin: u64, end: u64) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
}

/// Two shards and their index, as another tool writes them: headers of any length.
fn good(memory: &MemoryStorage) {
    memory.create_dir_all(Path::new(DIR)).unwrap();
    let one =
        format!("{{{},{}}}", tensor("a", "F32", "[2]", 0, 8), tensor("s", "I64", "[]", 8, 16));
    let two = format!(
        r#"{{"__metadata__":{{"format":"pt","tied":"b"}},{},{}}} "#,
        tensor("b", "BF16", "[3]", 0, 6),
        tensor("e", "F16", "[0,4]", 6, 6),
    );
    put(memory, "model-00001-of-00002.safetensors", &file(&one, 16));
    put(memory, "model-00002-of-00002.safetensors", &file(&two, 6));
    index(memory, &[("a", 1), ("s", 1), ("b", 2), ("e", 2)]);
}

fn put(memory: &MemoryStorage, name: &str, bytes: &[u8]) {
    memory.write(&Path::new(DIR).join(name), bytes).unwrap();
}

fn index(memory: &MemoryStorage, map: &[(&str, u32)]) {
    let entry =
        |(name, file): &(&str, u32)| format!(r#""{name}":"model-{file:05}-of-00002.safetensors""#);
    let map: Vec<String> = map.iter().map(entry).collect();
    let text = format!(r#"{{"metadata":{{"total_size":22}},"weight_map":{{{}}}}}"#, map.join(","));
    put(memory, INDEX, text.as_bytes());
}

#[test]
fn shards_of_another_tool_become_a_checkpoint() {
    let memory = MemoryStorage::new();
    good(&memory);
    put(&memory, "config.json", CONFIG.as_bytes());
    // What other tools keep beside it is no part of it.
    put(&memory, "consolidated.safetensors", &file("{}", 0));
    put(&memory, "training_args.bin", b"\x80\x02}q\x00.");
    let storage = memory.clone();
    let options = ImportOptions { step: Some(9), epoch: Some(1), ..ImportOptions::default() };
    on_ranks(2, move |group| {
        import(&group, &storage, DIR, &path("runs/b"), &options).unwrap();
    });
    assert_good(&memory, "runs/b");
    let manifest = catalog::find(&memory, &wanted("runs/b")).unwrap().manifest;
    assert_eq!((manifest.step(), manifest.epoch(), manifest.tensors().len()), (9, 1, 4));
    assert_eq!(manifest.aliases(), [(name("tied"), name("b"))]);
    let read = |name| read_tensor(&memory, &wanted("runs/b"), name).unwrap().1;
    assert_eq!(read("s"), (8..16).collect::<Vec<u8>>());
    assert_eq!(read("tied"), (0..6).collect::<Vec<u8>>());
    let error = imported(&memory, DIR).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);

    // One file, without a directory around it.
    let one = format!("{DIR}/model-00001-of-00002.safetensors");
    import(&ProcessGroup::solo(), &memory, one, &path("runs/c"), &ImportOptions::default())
        .unwrap();
    let manifest = catalog::find(&memory, &wanted("runs/c")).unwrap().manifest;
    assert_eq!((manifest.tensors().len(), manifest.step()), (2, 0));
}

/// Both would do, and each rank would write its part of another one.
#[test]
fn ranks_that_import_from_different_places_are_told_so() {
    let memory = MemoryStorage::new();
    good(&memory);
    let other = file(&format!("{{{}}}", tensor("a", "F32", "[2]", 0, 8)), 8);
    for place in ["one.safetensors", "two.safetensors"] {
        put(&memory, place, &other);
    }
    let storage = memory.clone();
    let verdicts = on_ranks(2, move |group| {
        let from = if group.rank().get() == 0 { "one" } else { "two" };
        let from = format!("{DIR}/{from}.safetensors");
        import(&group, &storage, from, &path("runs/b"), &ImportOptions::default()).map(drop)
    });
    let error = one_error(&verdicts, "import");
    assert_eq!((error.kind(), error.rank()), (ErrorKind::Disagreement, Some(Rank::new(1))));
    assert!(error.message().contains("two.safetensors"), "{error}");
    assert_eq!(imported(&memory, "runs/b").unwrap_err().kind(), ErrorKind::NotFound);
}

/// What is wrong, and how it is told: kind, tensor, part of the text.
type Bad = (fn(&MemoryStorage), ErrorKind, Option<&'static str>, &'static str);

const FIRST: &str = "model-00001-of-00002.safetensors";

fn first(memory: &MemoryStorage, a: &str, b: &str, data: usize) {
    put(memory, FIRST, &file(&format!("{{{a},{b}}}"), data));
}

const BAD: [Bad; 15] = [
    (
        |m| first(m, &tensor("a", "F6_E2M3", "[2]", 0, 8), &tensor("s", "I64", "[]", 8, 16), 16),
        ErrorKind::Incompatible,
        Some("a"),
        "unknown dtype `F6_E2M3`",
    ),
    (
        |m| first(m, &tensor("a", "F32", "[2]", 0, 8), &tensor("s", "I64", "[]", 4, 12), 16),
        ErrorKind::Corrupt,
        Some("s"),
        "expected 8",
    ),
    (
        |m| first(m, &tensor("a", "F32", "[3]", 0, 8), &tensor("s", "I64", "[]", 8, 16), 16),
        ErrorKind::Corrupt,
        Some("a"),
        "do not hold",
    ),
    (
        |m| first(m, &tensor("a", "F32", "[2]", 0, 8), &tensor("s", "I64", "[]", 8, 16), 15),
        ErrorKind::Corrupt,
        None,
        "the file has 15",
    ),
    (
        |m| first(m, &tensor("a", "F32", "[2]", 0, 8), &tensor("a", "I64", "[]", 8, 16), 16),
        ErrorKind::Corrupt,
        None,
        "malformed",
    ),
    (|m| put(m, FIRST, &u64::MAX.to_le_bytes()), ErrorKind::Corrupt, None, "at most 100000000"),
    (|m| put(m, FIRST, &[16, 39, 0, 0, 0, 0, 0, 0, b'{']), ErrorKind::Corrupt, None, "in 9 bytes"),
    (|m| put(m, FIRST, b""), ErrorKind::Corrupt, None, ""),
    (
        |m| drop(m.open_dir(Path::new(DIR)).unwrap().remove_file(FIRST)),
        ErrorKind::Corrupt,
        None,
        "",
    ),
    (
        |m| index(m, &[("a", 1), ("s", 1), ("b", 2), ("e", 2), ("gone", 2)]),
        ErrorKind::Corrupt,
        Some("gone"),
        "where it is not",
    ),
    (
        |m| index(m, &[("a", 2), ("s", 1), ("b", 2), ("e", 2)]),
        ErrorKind::Corrupt,
        Some("a"),
        "where it is not",
    ),
    (
        |m| put(m, INDEX, br#"{"weight_map":{"a":"../outside.safetensors"}}"#),
        ErrorKind::Corrupt,
        None,
        "outside its directory",
    ),
    (|m| put(m, INDEX, br#"{"weight_map":{}}"#), ErrorKind::Corrupt, None, "names no file"),
    (|m| put(m, "config.json", b"{"), ErrorKind::Corrupt, None, "malformed"),
    (
        |m| {
            put(m, "optimizer.safetensors.index.json", b"{");
        },
        ErrorKind::Corrupt,
        None,
        "malformed",
    ),
];

#[test]
fn what_does_not_fit_is_named_and_nothing_is_made() {
    for (place, (make, kind, tensor, text)) in BAD.iter().enumerate() {
        let memory = MemoryStorage::new();
        good(&memory);
        make(&memory);
        let error = imported(&memory, DIR).unwrap_err();
        assert_eq!((error.kind(), error.tensor()), (*kind, *tensor), "case {place}: {error}");
        assert!(error.message().contains(text), "case {place}: {error}");
        assert!(error.path().is_some_and(|path| path.contains("w/hf")), "case {place}: {error}");
        assert_eq!(entries(&memory, "runs"), [""; 0], "case {place}");
    }
}

#[test]
fn what_is_none_is_said() {
    let memory = MemoryStorage::new();
    saved(memory.clone(), 1, "runs/a", &usual_tensors(), 1);
    memory.create_dir_all(Path::new("w/empty")).unwrap();
    memory.write(Path::new("w/pickle.bin"), b"\x80\x02}q\x00.").unwrap();
    for (from, kind) in [
        ("w/empty", ErrorKind::NotFound),
        ("w/absent", ErrorKind::NotFound),
        ("absent/absent", ErrorKind::NotFound),
        ("w/pickle.bin", ErrorKind::Incompatible),
        ("runs/a", ErrorKind::InvalidInput),
    ] {
        let error = imported(&memory, from).unwrap_err();
        assert_eq!(error.kind(), kind, "{from}: {error}");
        assert_eq!(entries(&memory, "runs"), ["a"], "{from}");
    }
}

/// Downloads are often directories of links.
#[test]
fn links_are_not_followed_and_that_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::create_dir(at("hf")).unwrap();
    std::fs::write(at("blob"), file(&format!("{{{}}}", tensor("a", "U8", "[4]", 0, 4)), 4))
        .unwrap();
    std::os::unix::fs::symlink(at("blob"), at("hf/model.safetensors")).unwrap();
    let (solo, to) = (ProcessGroup::solo(), at("b"));
    let to = path(to.to_str().unwrap());
    let options = ImportOptions::default();
    let error = import(&solo, &LocalStorage::new(), at("hf"), &to, &options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert!(error.help().unwrap().contains("cp -rL"), "{error}");
    assert!(!at("b").exists());
}

/// An optimizer that an export wrote, and whose files are not all there, is not left out silently.
#[test]
fn a_component_with_a_missing_file_is_damage() {
    let memory = MemoryStorage::new();
    saved_in_full(&memory, 1, usual_tensors());
    alone(&memory, &everything(120)).unwrap();
    let dir = memory.open_dir(Path::new(OUT)).unwrap();
    dir.remove_file("optimizer-00002-of-00002.safetensors").unwrap();
    assert_eq!(imported(&memory, OUT).unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn an_import_that_fails_anywhere_leaves_no_checkpoint() {
    for operation in 1.. {
        let memory = MemoryStorage::new();
        good(&memory);
        let faulty = FaultyStorage::new(Arc::new(memory.clone()));
        faulty.fail_at(operation, Fault::Error(5), false);
        let done = imported(&faulty, DIR);
        if faulty.operations() < operation {
            assert!(operation > 20 && done.is_ok(), "{operation} operations: {done:?}");
            return;
        }
        let there = entries(&memory, "runs").contains(&"b".to_owned());
        let is_uncertain = done.as_ref().is_err_and(|e| e.kind() == ErrorKind::DurabilityUncertain);
        assert_eq!(there, done.is_ok() || is_uncertain, "{operation}: {done:?}");
        if there {
            assert_good(&memory, "runs/b");
        }
    }
}
