//! Where an export goes: what is there already, and what is there if it fails.

use tch_checkpoint::storage::{Fault, FaultyStorage};

use super::*;

fn small() -> Vec<TestTensor> {
    let tensor = |name: &str| TestTensor::new(name, Dtype::F32, &[600], None);
    vec![tensor("a"), tensor("b"), tensor("c")]
}

fn with_config(max_shard_bytes: u64) -> ExportOptions {
    let form = HuggingFace { max_shard_bytes, config: Some(CONFIG.to_owned()) };
    ExportOptions { hugging_face: Some(form), overwrite: true, ..ExportOptions::default() }
}

/// One of fewer files leaves none of the earlier ones behind.
#[test]
fn an_earlier_export_is_refused_or_replaced_as_a_whole() {
    let memory = MemoryStorage::new();
    saved(memory.clone(), 1, "runs/a", &small(), 1);
    alone(&memory, &with_config(2400)).unwrap();
    assert_eq!(entries(&memory, OUT).len(), 5);
    saved(memory.clone(), 1, "runs/a", &small(), 2);
    let error = alone(&memory, &shards_of(2400)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert!(seen_in(&memory, OUT, "model") == expected(&small(), 1));
    alone(&memory, &with_config(1 << 20)).unwrap();
    assert_eq!(entries(&memory, OUT), ["config.json", "model.safetensors"]);
    assert!(seen_in(&memory, OUT, "model") == expected(&small(), 2));
    assert_eq!(entries(&memory, "out"), ["hf"]);
}

/// Whatever a user has put there, or changed, stays, and is named.
#[test]
fn files_of_others_are_never_replaced() {
    let memory = MemoryStorage::new();
    saved(memory.clone(), 1, "runs/a", &small(), 1);
    for (file, content) in [
        ("tokenizer.json", "{}"),
        ("config.json", "{\"changed\": true}"),
        (INDEX, "{\"weight_map\": {\"a\": \"model-00001-of-00003.safetensors\"}}"),
        ("model-00002-of-00003.safetensors", "no tensors"),
    ] {
        alone(&memory, &with_config(2400)).unwrap();
        memory.write(&Path::new(OUT).join(file), content.as_bytes()).unwrap();
        let before = entries(&memory, OUT);
        let error = alone(&memory, &with_config(2400)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{file}");
        assert!(error.message().contains(file), "{error}");
        assert_eq!(entries(&memory, OUT), before);
        assert_eq!(memory.read(&Path::new(OUT).join(file)).unwrap(), content.as_bytes());
        let dir = memory.open_dir(Path::new(OUT)).unwrap();
        before.iter().for_each(|name| dir.remove_file(name).unwrap());
    }
    // A directory with a description alone, or an index alone, holds no export.
    memory.write(&Path::new(OUT).join("config.json"), CONFIG.as_bytes()).unwrap();
    let error = alone(&memory, &with_config(2400)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    for checkpoint in ["runs/a", "runs/a/hf"] {
        let done = export(
            &ProcessGroup::solo(),
            &memory,
            &wanted("runs/a"),
            checkpoint,
            &with_config(2400),
        );
        let kind = done.unwrap_err().kind();
        assert!(matches!(kind, ErrorKind::AlreadyExists | ErrorKind::InvalidInput), "{kind}");
    }
    assert_good(&memory, "runs/a");
}

#[test]
fn damage_anywhere_leaves_nothing() {
    let memory = MemoryStorage::new();
    saved(memory.clone(), 2, "runs/a", &usual_tensors(), 1);
    for file in entries(&memory, "runs/a") {
        let file = Path::new("runs/a").join(file);
        let good = memory.read(&file).unwrap();
        for offset in [good.len() as u64 / 2, good.len() as u64 - 1] {
            memory.corrupt(&file, offset, 0x10).unwrap();
            let error = alone(&memory, &shards_of(10_000)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{offset} of {file:?}: {error}");
            assert_eq!(entries(&memory, "out"), [""; 0]);
            memory.write(&file, &good).unwrap();
        }
    }
    alone(&memory, &shards_of(10_000)).unwrap();
}

/// Every operation failed in turn: the directory is the old one or the new one, whole.
#[test]
fn an_export_that_fails_anywhere_leaves_the_old_one_or_the_new_one() {
    for old in [false, true] {
        for (fault, persistent) in
            [(Fault::Error(28), false), (Fault::Torn, true), (Fault::Panic, true)]
        {
            fail_each_operation(old, fault, persistent);
        }
    }
}

fn fail_each_operation(old: bool, fault: Fault, persistent: bool) {
    for operation in 1.. {
        let memory = MemoryStorage::new();
        if old {
            saved(memory.clone(), 1, "runs/a", &small(), 1);
            alone(&memory, &with_config(4800)).unwrap();
        }
        saved(memory.clone(), 1, "runs/a", &small(), 2);
        let faulty = FaultyStorage::new(Arc::new(memory.clone()));
        faulty.fail_at(operation, fault, persistent);
        let done = alone(&faulty, &with_config(2400));
        if faulty.operations() < operation {
            assert!(operation > 30 && done.is_ok(), "{operation} operations: {done:?}");
            return;
        }
        assert!(operation < 300, "an export has fewer operations");
        let what = format!("{fault:?} at {}", faulty.log()[operation as usize - 1]);
        let there = match entries(&memory, OUT).len() {
            0 => None,
            4 if seen_in(&memory, OUT, "model") == expected(&small(), 1) => Some(1),
            5 if seen_in(&memory, OUT, "model") == expected(&small(), 2) => Some(2),
            count => panic!("{what}: half an export of {count} files"),
        };
        match done.as_ref().map_err(tch_checkpoint::Error::kind) {
            Ok(_) | Err(ErrorKind::DurabilityUncertain) => assert_eq!(there, Some(2), "{what}"),
            Err(_) => assert_eq!(there, old.then_some(1), "{what}: {done:?}"),
        }
        alone(&memory, &with_config(2400)).unwrap();
        assert_eq!(entries(&memory, "out"), ["hf"], "{what}");
    }
}
