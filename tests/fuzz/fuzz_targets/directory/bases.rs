//! Good checkpoints: one of each version of the format, and one that is a file.

use std::sync::Arc;

use super::*;
use tch_checkpoint::ProcessGroup;
use tch_checkpoint::catalog::CheckpointPath;
use tch_checkpoint::save::SaveOptions;
use tch_checkpoint::single::save_single_file;
use tch_checkpoint::state::StateDict;
use tch_checkpoint::tensor::{Component, Dtype, TensorName, TensorSpec};

/// Paths below `runs`, with what is there.
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

/// Where the checkpoints are that are directories.
pub(crate) const AT: &str = "golden";
const FILE: &str = "golden.safetensors";

pub(crate) struct Base {
    pub(crate) files: Files,
    /// The checkpoint.
    pub(crate) at: &'static str,
}

macro_rules! fixture {
    ($version:literal, $id:literal) => {
        [
            ("manifest.bin", &include_bytes!(concat!("../../../fixtures/", $version, "/golden/manifest.bin"))[..]),
            fixture!(@ $version, "model-00001-of-00002.", $id, ".safetensors"),
            fixture!(@ $version, "model-00002-of-00002.", $id, ".safetensors"),
            fixture!(@ $version, "optimizer-00001-of-00002.", $id, ".safetensors"),
            fixture!(@ $version, "optimizer-00002-of-00002.", $id, ".safetensors"),
            fixture!(@ $version, "sums-00001-of-00002.", $id, ".bin"),
            fixture!(@ $version, "sums-00002-of-00002.", $id, ".bin"),
        ]
    };
    (@ $version:literal, $head:literal, $id:literal, $tail:literal) => {
        (
            concat!($head, $id, $tail),
            &include_bytes!(concat!("../../../fixtures/", $version, "/golden/", $head, $id, $tail))[..],
        )
    };
}

pub(crate) fn all() -> Vec<Base> {
    let v1 = fixture!("v1", "5a2ededf4424439c87f19f628cfcb3d1");
    let v2 = fixture!("v2", "eb7c67d7f0479fafa4ab5813cc78aaaf");
    let directory = |files: [(&str, &[u8]); 7]| {
        let files = files.map(|(name, bytes)| (format!("{AT}/{name}"), bytes.to_vec()));
        Base { files: files.into(), at: AT }
    };
    vec![directory(v1), directory(v2), file()]
}

/// A checkpoint that is a file.
fn file() -> Base {
    let storage = MemoryStorage::new();
    let path = CheckpointPath::parse(Path::new("runs").join(FILE)).expect("a path");
    let options = SaveOptions { step: 1234, ..SaveOptions::default() };
    let saved = save_single_file(&ProcessGroup::solo(), &storage, &path, &state(), &options);
    saved.expect("a save into memory");
    let bytes = storage.read(&Path::new("runs").join(FILE)).expect("it was saved");
    Base { files: BTreeMap::from([(FILE.to_owned(), bytes)]), at: FILE }
}

fn state() -> StateDict {
    let mut state = StateDict::new();
    for (name, dtype, shape) in
        [("w", Dtype::F32, &[9, 7][..]), ("b", Dtype::BF16, &[5]), ("none", Dtype::I64, &[0, 4])]
    {
        let spec = TensorSpec::new(dtype, shape).expect("a shape");
        let bytes: Vec<u8> = (0..spec.size_bytes()).map(|at| at as u8).collect();
        let name = TensorName::new(name).expect("a name");
        state.add(&Component::model(), name, spec, Arc::new(bytes)).expect("a tensor");
    }
    let name = |text| TensorName::new(text).expect("a name");
    state.add_alias(name("tied"), name("w")).expect("an alias");
    state.values.set("metrics.loss", 0.5);
    state
}
