//! Models that begin with the weights of a Hugging Face directory.

use std::path::Path;
use std::sync::Arc;

use tch_checkpoint::catalog::Wanted;
use tch_checkpoint::export::{ExportOptions, HuggingFace, export};
use tch_checkpoint::handler::{InitOptions, NNHandler};
use tch_checkpoint::import::{ImportOptions, import};
use tch_checkpoint::storage::Storage;
use tch_checkpoint::{CheckpointPath, ErrorKind};

use crate::harness::*;
use crate::models::*;

/// Straight from the directory, and from a checkpoint made of it: the weights are those that were
/// saved, and the model is built from its `config.json`.
#[test]
fn weights_and_configuration_come_from_a_hugging_face_directory() {
    let (memory, _) = memory();
    let inner = memory.clone();
    let ends = on_ranks(2, move |group| {
        let storage: Arc<dyn Storage> = Arc::new(inner.clone());
        let handler = bare(&group, &storage, 0.0);
        handler.save("runs/a").unwrap();
        let form = HuggingFace { max_shard_bytes: 60, ..HuggingFace::default() };
        let options = ExportOptions { hugging_face: Some(form), ..ExportOptions::default() };
        let wanted = Wanted::parse("runs/a").unwrap();
        let exported = export(&group, &*storage, &wanted, "hf", &options).unwrap();
        assert!(exported.files.len() > 1, "{exported:?}");
        let to = CheckpointPath::parse("runs/b").unwrap();
        import(&group, &*storage, "hf", &to, &ImportOptions::default()).unwrap();
        let begun = ["hf", "runs/b"].map(|from| {
            let (group, storage) = (Some(group.clone()), Some(storage.clone()));
            let options = InitOptions { group, storage, ..InitOptions::default() };
            NNHandler::<Net>::initialize_from_checkpoint(from, None, options)
        });
        (parameters(&handler), begun.map(|begun| parameters(&begun.unwrap())))
    });
    for (saved, begun) in &ends {
        assert_eq!([saved, saved], [&begun[0], &begun[1]]);
    }
    // Without it there is nothing to build the model from.
    memory.open_dir(Path::new("hf")).unwrap().remove_file("config.json").unwrap();
    let storage: Arc<dyn Storage> = Arc::new(memory);
    let options = InitOptions {
        group: Some(tch_checkpoint::ProcessGroup::solo()),
        storage: Some(storage),
        ..InitOptions::default()
    };
    let begun = NNHandler::<Net>::initialize_from_checkpoint("hf", None, options);
    assert_eq!(begun.map(drop).unwrap_err().kind(), ErrorKind::InvalidInput);
}
