//! Permissions: what the umask leaves and no more, the group of the directory, and nothing that is
//! made wider afterwards.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use tch_checkpoint::catalog::{CheckpointPath, Wanted};
use tch_checkpoint::export::{ExportOptions, export};
use tch_checkpoint::layout::CheckpointName;
use tch_checkpoint::retain::pin;
use tch_checkpoint::save::{SaveOptions, save};
use tch_checkpoint::single::{save_multi_files, save_single_file};
use tch_checkpoint::state::StateDict;
use tch_checkpoint::storage::{LocalStorage, Storage};
use tch_checkpoint::sweep::Pace;
use tch_checkpoint::tensor::{Component, Dtype, TensorName, TensorSpec};
use tch_checkpoint::{OnExisting, ProcessGroup};

use crate::alone;
use crate::tier::{self, Need};

const CHILD: &str = "TCH_CHECKPOINT_TEST_MODES";
/// A group of nobody's.
const GROUP: u32 = 12_345;

/// Everything that writes, once.
fn write_all(dir: &Path) {
    let (solo, storage) = (ProcessGroup::solo(), LocalStorage::new());
    let mut state = StateDict::new();
    let spec = TensorSpec::new(Dtype::F32, vec![1000]).unwrap();
    let name = TensorName::new("w").unwrap();
    state.add(&Component::model(), name, spec, Arc::new(vec![1; 4000])).unwrap();
    let text: Arc<[u8]> = b"fn model() {}".as_slice().into();
    state.attach_file("code/model.rs", text).unwrap();
    let options = SaveOptions { on_existing: OnExisting::Replace, ..SaveOptions::default() };
    let at = |name: &str| CheckpointPath::parse(dir.join("deep/er").join(name)).unwrap();
    // The second replaces the first.
    for _ in 0..2 {
        save(&solo, &storage, &at("a"), &state, &options).unwrap();
    }
    let mut plain = StateDict::new();
    let spec = TensorSpec::new(Dtype::F32, vec![1000]).unwrap();
    let name = TensorName::new("w").unwrap();
    plain.add(&Component::model(), name, spec, Arc::new(vec![1; 4000])).unwrap();
    save_single_file(&solo, &storage, &at("one.safetensors"), &plain, &options).unwrap();
    save_multi_files(&solo, &storage, &at("several"), &plain, &options).unwrap();
    let wanted = Wanted::from(at("a"));
    let out = dir.join("deep/er/out.safetensors");
    export(&solo, &storage, &wanted, out, &ExportOptions::default()).unwrap();
    let pace = Pace { patience: Duration::from_secs(5), progress: Default::default() };
    let parent = storage.open_dir(&dir.join("deep/er")).unwrap();
    pin(parent.as_ref(), &CheckpointName::new("a").unwrap(), &pace).unwrap();
}

fn look(path: &Path, umask: u32, group: Option<u32>, seen: &mut usize) {
    for entry in fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        let meta = path.symlink_metadata().unwrap();
        *seen += 1;
        let group_is_kept = group.is_none_or(|group| meta.gid() == group);
        assert!(group_is_kept, "{} is of group {}", path.display(), meta.gid());
        if meta.is_symlink() {
            continue;
        }
        let inherited = if group.is_some() { 0o2000 } else { 0 };
        let wanted = if meta.is_dir() { 0o777 & !umask | inherited } else { 0o666 & !umask };
        let mode = meta.mode() & 0o7777;
        assert_eq!(mode, wanted, "{} has {mode:o}, not {wanted:o}", path.display());
        if meta.is_dir() {
            look(&path, umask, group, seen);
        }
    }
}

fn under(umask: u32, group: Option<u32>) {
    let top = tempfile::tempdir().unwrap();
    let dir = top.path().join("dir");
    fs::create_dir(&dir).unwrap();
    if let Some(group) = group {
        chown(&dir, None, Some(group)).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o2777)).unwrap();
    }
    let here = std::env::current_exe().unwrap();
    let with_umask = |command: &str| format!("umask {umask:03o} && exec {command}");
    let test = "modes::everything_has_the_mode_that_the_umask_leaves";
    let mut saves = Command::new("sh");
    saves.args(["-c", &with_umask("\"$0\" --exact \"$1\"")]).arg(here).arg(test).env(CHILD, &dir);
    saves.env("TCH_CHECKPOINT_TRACE", dir.join("trace.json"));
    let mut stress = Command::new("sh");
    let line = "\"$0\" stress save --dir \"$1\" --step $2 --bytes 9000 --keep 1 --ranks 2";
    for step in ["1", "2"] {
        stress = Command::new("sh");
        stress.args(["-c", &with_umask(line), env!("CARGO_BIN_EXE_tch-checkpoint")]);
        stress.arg(dir.join("kept")).arg(step);
        let output = stress.output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    drop(stress);
    let output = saves.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let mut seen = 0;
    look(&dir, umask, group, &mut seen);
    assert!(seen > 20, "{seen} entries");
}

#[test]
fn everything_has_the_mode_that_the_umask_leaves() {
    if let Some(dir) = std::env::var_os(CHILD) {
        return write_all(Path::new(&dir));
    }
    let _alone = alone();
    for umask in [0o000, 0o022, 0o077] {
        under(umask, None);
    }
    if tier::has(&[Need::Root]) {
        for umask in [0o002, 0o027] {
            under(umask, Some(GROUP));
        }
    }
}
