//! What does not fit is refused with everything that does not, and nothing is half restored.

use std::fmt::Debug;
use std::path::{Path, PathBuf};

use tch_checkpoint::group::ProcessGroup;
use tch_checkpoint::progressive::{
    LoraConfig, Rack, RackBuilder, StackPrecision, get_rack_info, get_stack_info,
    get_training_info, load_progressive_checkpoint,
};
use tch_checkpoint::{Error, ErrorKind, Result};

use crate::letters::{Config, Letters, Rows, alone, bits, config, loss, on_ranks, rack, trainer};

fn two_stacks() -> Rack<Letters> {
    let mut rack = rack();
    rack.append_stack(1, None).unwrap();
    rack.append_stack(2, Some(StackPrecision::Bf16)).unwrap();
    rack
}

/// Refused, with these words, and the rack is as it was.
fn refused<T: Debug>(
    rack: &mut Rack<Letters>,
    words: &[&str],
    act: impl FnOnce(&mut Rack<Letters>) -> Result<T>,
) -> Error {
    let (before, info) = (bits(rack), rack.info());
    let error = act(rack).unwrap_err();
    for words in words {
        assert!(error.to_string().contains(words), "`{error}` does not say `{words}`");
    }
    assert!(bits(rack) == before && rack.info() == info, "half restored: {error}");
    error
}

#[test]
fn another_structure_is_told_in_full() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("a");
    on_ranks(2, move |group| {
        two_stacks().save_rack(&group, &at).unwrap();
        let load = |rack: &mut Rack<Letters>| rack.load_rack(&group, &at);
        let mut fewer = rack();
        fewer.append_stack(3, Some(StackPrecision::Half)).unwrap();
        fewer.attach_adapters(0, &LoraConfig::default()).unwrap();
        let error = refused(
            &mut fewer,
            &[
                "4 differences",
                "2 stacks in the checkpoint, 1 here",
                "stack at 0: 1 blocks in the checkpoint, 3 here",
                "stack at 0: precision full in the checkpoint, half here",
                "stack at 0: no adapters in the checkpoint, adapters LoraConfig",
            ],
            load,
        );
        assert_eq!(error.kind(), ErrorKind::Mismatch);
        let mut wider = RackBuilder::<Letters>::new(Config { width: 17 }).build().unwrap();
        let error = refused(&mut wider, &["width: 16", "width: 17"], load);
        assert_eq!(error.kind(), ErrorKind::Mismatch);
        let mut prepended = rack();
        prepended.append_stack(2, Some(StackPrecision::Bf16)).unwrap();
        prepended.prepend_stack(1, None).unwrap();
        refused(&mut prepended, &["at 0 stack 0 in the checkpoint, stack 1 here"], load);
    });
}

#[test]
fn indices_out_of_range_are_errors_on_every_rank() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_path_buf();
    on_ranks(2, move |group| {
        let (mut rack, path) = (two_stacks(), root.join("stack"));
        let save = |rack: &mut Rack<Letters>| rack.save_stack(&group, 2, &path);
        assert_eq!(refused(&mut rack, &["stack 2 of 2"], save).kind(), ErrorKind::InvalidInput);
        assert!(!path.exists());
        // On one rank alone: all of them are told.
        let own = if group.rank().get() == 1 { 7 } else { 0 };
        let error =
            refused(&mut rack, &["stack 7 of 2"], |rack| rack.save_stack(&group, own, &path));
        assert_eq!(error.rank().map(|rank| rank.get()), Some(1));
        rack.save_stack(&group, 0, &path).unwrap();
        refused(&mut rack, &["stack 2 of 2"], |rack| rack.load_stack(&group, 2, &path));
        assert_eq!(get_stack_info(&path, 1).unwrap_err().kind(), ErrorKind::InvalidInput);
    });
}

#[test]
fn a_stack_of_another_kind_is_refused() {
    alone(|group| {
        let dir = tempfile::tempdir().unwrap();
        let (mut rack, path) = (two_stacks(), dir.path().join("stack"));
        rack.save_stack(&group, 1, &path).unwrap();
        let words =
            ["2 blocks in the checkpoint, 1 here", "precision bf16 in the checkpoint, full"];
        refused(&mut rack, &words, |rack| rack.load_stack(&group, 0, &path));
        rack.load_stack(&group, 1, &path).unwrap();
    });
}

#[test]
fn one_granularity_is_not_taken_for_another() {
    alone(|group| {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let mut rack = two_stacks();
        rack.save_rack(&group, at("rack")).unwrap();
        rack.save_stack(&group, 0, at("stack")).unwrap();
        refused(&mut rack, &["checkpoint of: stack"], |r| r.load_rack(&group, at("stack")));
        refused(&mut rack, &["checkpoint of: rack"], |r| r.load_stack(&group, 0, at("rack")));
        let mut trainer = trainer(&group, config(dir.path(), 0));
        let restore = |r: &mut Rack<Letters>| trainer.restore_from_checkpoint(at("rack"), r);
        refused(&mut rack, &["checkpoint of: rack"], restore);
        assert_eq!(
            load_progressive_checkpoint(at("rack")).unwrap_err().kind(),
            ErrorKind::Mismatch
        );
        assert_eq!(get_training_info(at("stack")).unwrap_err().kind(), ErrorKind::Mismatch);
        let absent = load_progressive_checkpoint(at("absent")).unwrap_err();
        assert_eq!(absent.kind(), ErrorKind::NotFound);
    });
}

/// Flips a bit in the middle of the first data file of a component.
fn damage(checkpoint: &Path, component: &str) {
    let entries = std::fs::read_dir(checkpoint).unwrap().map(|entry| entry.unwrap().path());
    let is_it = |path: &PathBuf| {
        path.file_name().unwrap().to_str().unwrap().starts_with(&format!("{component}-"))
    };
    let file = entries.into_iter().find(is_it).unwrap();
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = (4096 + bytes.len()) / 2;
    bytes[middle] ^= 4;
    std::fs::write(&file, bytes).unwrap();
}

#[test]
fn a_damaged_checkpoint_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_path_buf();
    on_ranks(2, move |group| {
        let all = |group: &ProcessGroup, work: &dyn Fn()| {
            group.on_coordinator("damage", || {
                work();
                Ok(())
            })
        };
        let mut rack = two_stacks();
        let (whole, stack) = (root.join("rack"), root.join("stack"));
        rack.save_rack(&group, &whole).unwrap();
        rack.save_stack(&group, 1, &stack).unwrap();
        all(&group, &|| damage(&whole, "head")).unwrap();
        all(&group, &|| damage(&stack, "stack_1")).unwrap();
        let error = refused(&mut rack, &["checksum"], |rack| rack.load_rack(&group, &whole));
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        refused(&mut rack, &["checksum"], |rack| rack.load_stack(&group, 1, &stack));
        // What only says what it is stays readable.
        assert_eq!(get_rack_info(&whole).unwrap(), rack.info());
    });
}

#[test]
fn a_run_with_a_damaged_checkpoint_goes_on_unharmed() {
    alone(|group| {
        let dir = tempfile::tempdir().unwrap();
        let mut rack = rack();
        let mut trainer = trainer(&group, config(dir.path(), 0));
        trainer.train_rack(&mut rack, &Rows, &loss, 1).unwrap();
        let saved = trainer.last_saved().unwrap().path.clone();
        let info = trainer.get_training_info().clone();
        damage(&saved, "optimizer");
        refused(&mut rack, &["checksum"], |rack| trainer.restore_from_checkpoint(&saved, rack));
        assert_eq!(trainer.get_training_info(), &info);
    });
}
