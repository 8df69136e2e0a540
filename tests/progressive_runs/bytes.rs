//! What a step with a frozen base writes.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use tch_checkpoint::progressive::{LoraConfig, RackBuilder};

use crate::letters::{Config, Letters, Rows, config, loss, on_ranks, trainer};

/// Bytes of files that no other checkpoint has, and of those whose names begin with one of `names`.
fn own_bytes(checkpoint: &Path, names: &[&str]) -> (u64, u64) {
    let (mut own, mut named) = (0, 0);
    for entry in std::fs::read_dir(checkpoint).unwrap() {
        let entry = entry.unwrap();
        let (name, facts) = (entry.file_name(), entry.metadata().unwrap());
        if facts.nlink() == 1 {
            own += facts.len();
        }
        if names.iter().any(|start| name.to_str().unwrap().starts_with(start)) {
            named += facts.len();
        }
    }
    (own, named)
}

/// Adapters and their optimizer state are a small part of a wide model: a checkpoint of a step takes
/// at most 2 % more than they do, all small files included.
#[test]
fn a_step_of_adapters_writes_adapters_and_their_optimizer_state() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_path_buf();
    on_ranks(2, move |group| {
        let mut rack = RackBuilder::<Letters>::new(Config { width: 768 }).build().unwrap();
        rack.append_stack(2, None).unwrap();
        rack.append_stack(2, None).unwrap();
        let mut trainer = trainer(&group, config(&root, 1));
        let adapters = LoraConfig { rank: 48, ..LoraConfig::default() };
        trainer.train_adapters(&mut rack, &Rows, &loss, &adapters, 2).unwrap();
        let saved = trainer.last_saved().unwrap().clone();
        let (own, needed) = own_bytes(&saved.path, &["adapters_", "optimizer-"]);
        assert!(needed > 0 && own >= needed, "{own} of {needed}");
        #[expect(clippy::cast_precision_loss, reason = "a ratio")]
        let more = own as f64 / needed as f64;
        assert!(more <= 1.02, "{own} bytes of its own for {needed}: {more}");
        let report = saved.report;
        assert!(report.linked_bytes > 3 * report.file_bytes, "{report:?}");
    });
}
