//! Formats and dtypes to come: refused by their names, and told from damage.

use std::path::Path;

use tch_checkpoint::load::{Atomicity, load};
use tch_checkpoint::plan::load::LoadRules;
use tch_checkpoint::storage::{MemoryStorage, Storage};
use tch_checkpoint::{Error, ErrorKind, ProcessGroup};

use crate::harness::*;
use crate::mismatches::{filled, is_untouched, names, stored, targets};

fn refused_as(memory: &MemoryStorage, at: &str) -> Error {
    let wants = names(&["a"]);
    let mut buffers = filled(&wants);
    let mut destination = targets(&mut buffers);
    let (solo, rules) = (ProcessGroup::solo(), LoadRules::default());
    let wanted = wanted(at).or_unverified();
    let done = load(&solo, memory, &wanted, &mut destination, &rules, Atomicity::InPlace);
    drop(destination);
    assert!(is_untouched(&buffers));
    done.unwrap_err()
}

/// A manifest of a format to come, intact, is told from a damaged one.
#[test]
fn a_newer_format_is_refused_with_its_version() {
    let memory = stored(&names(&["a"]));
    let at = Path::new("runs/a/manifest.bin");
    let mut bytes = memory.read(at).unwrap();
    bytes[8..12].copy_from_slice(&7u32.to_le_bytes());
    let covered = bytes.len() - 32;
    let sum = blake3::hash(&bytes[..covered]);
    bytes[covered..].copy_from_slice(sum.as_bytes());
    memory.write(at, &bytes).unwrap();
    let error = refused_as(&memory, "runs/a");
    assert_eq!(error.kind(), ErrorKind::Incompatible, "{error}");
    assert!(error.to_string().contains("version 7"), "{error}");
}

#[test]
fn an_unknown_dtype_is_refused_by_its_name() {
    for dtype in ["F4", "f32", "Float", "F32 ", ""] {
        let json = format!(r#"{{"a":{{"dtype":"{dtype}","shape":[3,4],"data_offsets":[0,48]}}}}"#);
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend(json.as_bytes());
        bytes.extend([1; 48]);
        let memory = MemoryStorage::new();
        memory.create_dir_all(Path::new("runs")).unwrap();
        memory.write(Path::new("runs/a.safetensors"), &bytes).unwrap();
        let error = refused_as(&memory, "runs/a.safetensors");
        assert_eq!(error.kind(), ErrorKind::Incompatible, "{error}");
        assert!(error.to_string().contains(&format!("unknown dtype `{dtype}`")), "{error}");
    }
}
