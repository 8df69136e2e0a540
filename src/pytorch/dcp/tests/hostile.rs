//! Metadata that no save writes: each case is the good one with one thing changed.

use super::super::*;
use super::made::Thing::{Dict, Global, Int, List, None, Object, Tuple};
use super::made::{Thing, chunk, good, index, info, object, size, text};

type Change = fn(&mut Thing);

fn set(thing: &mut Thing, path: &str, value: Thing) {
    *thing.at(path) = value;
}

fn error_of(what: &str, change: Change) -> Error {
    let mut metadata = good();
    change(&mut metadata);
    parse(&metadata.pickle()).err().unwrap_or_else(|| panic!("{what}: nothing was found"))
}

const TENSOR: &str = "state_dict_metadata/w";
const STORED: &str = "storage_data";

fn tensor<'t>(thing: &'t mut Thing, path: &str) -> &'t mut Thing {
    thing.at(TENSOR).at(path)
}

fn stored(thing: &mut Thing) -> &mut Vec<(Thing, Thing)> {
    thing.at(STORED).dict()
}

#[test]
fn metadata_that_is_put_together_is_understood() {
    let entries = parse(&good().pickle()).unwrap();
    let names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(names, ["w", "v"]);
    assert_eq!(entries[1].path, [Key::Text("v".to_owned()), Key::Int(0)]);
    let Content::Tensor(spec, boxes) = &entries[0].content else { panic!("no tensor") };
    assert_eq!((spec.shape(), boxes.len()), (&[2, 3][..], 2));
    assert_eq!(boxes[1].1.file, "__1_0.distcp");
}

/// What versions of PyTorch leave out, or write otherwise.
#[test]
fn metadata_of_other_versions_is_understood() {
    let changes: [(&str, Change); 7] = [
        ("no way to nest", |m| set(m, "planner_data", None)),
        ("no note of the storage", |m| m.dict().retain(|(key, _)| !is(key, "storage_meta"))),
        ("no version", |m| m.dict().retain(|(key, _)| !is(key, "version"))),
        ("no transformations", |m| add(m, "transform_descriptors", None)),
        ("an empty list of them", |m| add(m, "transform_descriptors", List(Vec::new()))),
        ("properties of before 2.3", |m| {
            let state = tensor(m, "properties").at("state").clone();
            let module = "torch.distributed._shard.sharded_tensor.metadata";
            set(m.at(TENSOR), "properties", Object("TensorProperties", module, Box::new(state)));
        }),
        ("whole tensors without an offset", |m| {
            set(m.at(TENSOR), "chunks", List(vec![chunk(&[0, 0], &[2, 3])]));
            stored(m).remove(1);
            stored(m)[0].0 = index("w", None);
        }),
    ];
    for (what, change) in changes {
        let mut metadata = good();
        change(&mut metadata);
        let entries = parse(&metadata.pickle()).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(entries.len(), 2, "{what}");
    }
}

fn is(key: &Thing, name: &str) -> bool {
    matches!(key, Thing::Text(text) if text == name)
}

/// One more field for the first item's place.
fn add(metadata: &mut Thing, name: &str, value: Thing) {
    stored(metadata)[0].1.dict().push((text(name), value));
}

#[test]
fn metadata_that_nobody_writes_is_refused() {
    let cases: [(&str, Change); 38] = [
        ("another object", |m| *m = object("StorageMeta", vec![])),
        ("a list", |m| *m = List(Vec::new())),
        ("an object without a state", |m| {
            *m = Thing::Call("torch.distributed.checkpoint.metadata", "Metadata", vec![]);
        }),
        ("no state dict", |m| set(m, "state_dict_metadata", None)),
        ("no places", |m| set(m, STORED, None)),
        ("a place of nothing", |m| stored(m)[0].0 = text("w")),
        ("a place that is a text", |m| stored(m)[0].1 = text("__0_0.distcp")),
        ("a name that is a number", |m| set(m, "state_dict_metadata/key0", Int(1))),
        ("a tensor that is twice there", |m| set(m, "state_dict_metadata/key1", text("w"))),
        ("a tensor that is nowhere", |m| drop(stored(m).remove(0))),
        ("a value that is nowhere", |m| drop(stored(m).remove(2))),
        ("a box in two places", |m| stored(m)[1].0 = index("w", size(&[0, 0]))),
        ("a negative offset in the file", |m| stored(m)[0].1 = info("a", -1, 100)),
        ("a negative length", |m| stored(m)[0].1 = info("a", 0, -1)),
        ("a place beyond any file", |m| stored(m)[0].1 = info("a", i64::MAX, i64::MAX)),
        ("a file above", |m| stored(m)[0].1 = info("../a.distcp", 0, 100)),
        ("a file anywhere", |m| stored(m)[0].1 = info("/etc/passwd", 0, 100)),
        ("a file of Windows", |m| stored(m)[0].1 = info("..\\a", 0, 100)),
        ("a file below", |m| stored(m)[0].1 = info("a/b", 0, 100)),
        ("the directory itself", |m| stored(m)[0].1 = info(".", 0, 100)),
        ("the metadata itself", |m| stored(m)[0].1 = info(".metadata", 0, 100)),
        ("a file without a name", |m| stored(m)[0].1 = info("", 0, 100)),
        ("a name with a zero byte", |m| stored(m)[0].1 = info("a\0b", 0, 100)),
        ("a name of a million letters", |m| stored(m)[0].1 = info(&"a".repeat(1 << 20), 0, 1)),
        ("a tensor without parts", |m| set(m.at(TENSOR), "chunks", List(Vec::new()))),
        ("a part too few", |m| drop(tensor(m, "chunks").list().pop())),
        ("parts that overlap", |m| set(m.at(TENSOR), "chunks/0", chunk(&[0, 0], &[2, 3]))),
        ("a part beyond the tensor", |m| set(m.at(TENSOR), "chunks/1", chunk(&[1, 0], &[2, 3]))),
        ("a negative part", |m| set(m.at(TENSOR), "chunks/1", chunk(&[1, 0], &[-1, 3]))),
        ("a part of another rank", |m| set(m.at(TENSOR), "chunks/1", chunk(&[1], &[1]))),
        ("a part at no offset", |m| set(m.at(TENSOR), "chunks/1/offsets", None)),
        ("a part whose end overflows", |m| {
            set(m.at(TENSOR), "chunks/1", chunk(&[i64::MAX, 0], &[i64::MAX, 3]));
        }),
        ("a negative size", |m| set(m.at(TENSOR), "size", size(&[-2, 3]))),
        ("a size that overflows", |m| set(m.at(TENSOR), "size", size(&[i64::MAX, i64::MAX]))),
        ("a thousand dimensions", |m| set(m.at(TENSOR), "size", size(&[1; 1000]))),
        ("a dtype that is a text", |m| set(m.at(TENSOR), "properties/state/0", text("float32"))),
        ("a path of nothing", |m| set(m, "planner_data/w", Tuple(Vec::new()))),
        ("a path without an end", |m| set(m, "planner_data/w", Tuple(vec![Int(0); 65]))),
    ];
    for (what, change) in cases {
        let error = error_of(what, change);
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
    }
}

#[test]
fn what_is_not_known_is_told_apart_from_what_is_broken() {
    let cases: [(&str, Change, ErrorKind, &str); 6] = [
        (
            "a dtype that checkpoints do not have",
            |m| set(m.at(TENSOR), "properties/state/0", Global("torch", "complex128")),
            ErrorKind::Incompatible,
            "complex128",
        ),
        (
            "a function",
            |m| set(m, "storage_meta", Thing::Call("os", "system", vec![text("true")])),
            ErrorKind::Incompatible,
            "os.system",
        ),
        (
            "a function as a class",
            |m| set(m, "storage_meta", Object("eval", "builtins", Box::new(Dict(Vec::new())))),
            ErrorKind::Incompatible,
            "builtins.eval",
        ),
        (
            "items that are compressed",
            |m| add(m, "transform_descriptors", List(vec![text("stream.zstd/1")])),
            ErrorKind::Unsupported,
            "compressed",
        ),
        (
            "an endless name",
            |m| set(m, "state_dict_metadata/key0", text(&"n".repeat(1 << 20))),
            ErrorKind::Unsupported,
            "a name of 1048576 bytes",
        ),
        ("two paths", |m| set(m, "planner_data/key1", text("w")), ErrorKind::Corrupt, "two paths"),
    ];
    for (what, change, kind, said) in cases {
        let error = error_of(what, change);
        assert_eq!(error.kind(), kind, "{what}: {error}");
        assert!(error.to_string().contains(said), "{what}: {error}");
    }
}

/// A text, and a list of parts, that many share: each time they would be there once more.
#[test]
fn what_is_shared_does_not_multiply() {
    for pickle in [shared_path(1000), shared_parts(500)] {
        assert!(pickle.len() < 600_000, "{}", pickle.len());
        let error = parse(&pickle).unwrap_err();
        let expected = (ErrorKind::Unsupported, "the same things over and over again");
        assert_eq!((error.kind(), error.message()), expected);
    }
}

/// Tensors, as many, that share one long list of parts.
fn shared_parts(count: u16) -> Vec<u8> {
    let empty = chunk(&[2, 0], &[0, 3]);
    let mut metadata = good();
    tensor(&mut metadata, "chunks").list().extend(vec![empty; 1000]);
    let list = tensor(&mut metadata, "chunks").pickle();
    // All but the number of the protocol and the end.
    let mut tensors = list[2..list.len() - 1].to_vec();
    tensors.extend(b"q\x000}(");
    for number in 0..count {
        let name = text(&format!("w{number}"));
        let index = [(0, "__0_0.distcp"), (1, "__1_0.distcp")];
        for (row, file) in index {
            let key = super::made::index(&format!("w{number}"), size(&[row, 0]));
            stored(&mut metadata).push((key, info(file, i64::from(number) * 100, 100)));
        }
        let mut tensor = metadata.at(TENSOR).clone();
        *tensor.at("chunks") = text("PARTS");
        for part in [name, tensor] {
            let pickle = part.pickle();
            tensors.extend(replaced(&pickle[2..pickle.len() - 1], "PARTS", b"h\x00"));
        }
    }
    tensors.push(b'u');
    *metadata.at("state_dict_metadata") = text("TENSORS");
    replaced(&metadata.pickle(), "TENSORS", &tensors)
}

/// A pickle with a text replaced by other instructions.
fn replaced(pickle: &[u8], mark: &str, by: &[u8]) -> Vec<u8> {
    let pushed = text(mark).pickle();
    let pushed = &pushed[2..pushed.len() - 1];
    let Some(at) = pickle.windows(pushed.len()).position(|window| window == pushed) else {
        return pickle.to_vec();
    };
    [&pickle[..at], by, &pickle[at + pushed.len()..]].concat()
}

/// Paths that share a long text, `count` times.
fn shared_path(count: u16) -> Vec<u8> {
    let mut metadata = good();
    *metadata.at("planner_data") = text("PATHS");
    let mut paths = b"X\xe8\x03\0\0".to_vec();
    paths.extend([b'k'; 1000]);
    paths.extend(b"q\x000}(");
    for number in 0..count {
        paths.extend(b"X\x04\0\0\0");
        paths.extend(format!("{number:04}").bytes());
        // As long a path as there may be.
        paths.push(b'(');
        paths.extend(b"h\x00".repeat(PATH_MAX));
        paths.push(b't');
    }
    paths.push(b'u');
    replaced(&metadata.pickle(), "PATHS", &paths)
}

#[test]
fn metadata_cut_short_anywhere_is_refused() {
    let whole = good().pickle();
    for len in 0..whole.len() {
        let error = parse(&whole[..len]).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{len}: {error}");
    }
}
