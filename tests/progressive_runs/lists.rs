//! What is told of checkpoints without reading a tensor, and what the rules keep.

use std::path::Path;

use tch_checkpoint::progressive::{Contents, get_training_info, list_checkpoints};

use crate::letters::{Rows, alone, config, loss, on_ranks, rack, trainer};

/// Overwrites every file of a checkpoint but its manifest.
fn spoil(checkpoint: &Path) {
    for entry in std::fs::read_dir(checkpoint).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "safetensors") {
            std::fs::write(path, b"gone").unwrap();
        }
    }
}

#[test]
fn every_kind_is_listed_by_its_manifest_alone() {
    alone(|group| {
        let dir = tempfile::tempdir().unwrap();
        let mut rack = rack();
        let mut trainer = trainer(&group, config(dir.path(), 3));
        trainer.train_rack(&mut rack, &Rows, &loss, 2).unwrap();
        let directory = trainer.directory().to_path_buf();
        rack.save_rack(&group, directory.join("whole")).unwrap();
        rack.save_stack(&group, 1, directory.join("one")).unwrap();
        for entry in std::fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.is_symlink() {
                spoil(&path);
            }
        }
        std::fs::create_dir(directory.join("empty")).unwrap();
        let all = list_checkpoints(&directory).unwrap();
        let names: Vec<&str> = all.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names.len(), 6, "{names:?}");
        assert!(names.contains(&"progressive_stack_0_step_00000003"), "{names:?}");
        assert!(names.contains(&"progressive_stack_1_step_00000012"), "{names:?}");
        assert!(all.windows(2).all(|pair| pair[0].created_unix_ms >= pair[1].created_unix_ms));
        let of = |name: &str| all.iter().find(|one| one.name == name).unwrap();
        assert_eq!(of("whole").contents, Contents::Rack(rack.info()));
        assert_eq!(of("one").contents, Contents::Stack(rack.info().stack_info[1].clone()));
        let last = of("progressive_stack_1_step_00000012");
        let Contents::Training { rack: stored, training } = &last.contents else { panic!() };
        assert_eq!((stored, training), (&rack.info(), trainer.get_training_info()));
        assert_eq!((training.epoch, training.stack_idx), (3, 1));
        assert_eq!(&get_training_info(&last.path).unwrap(), training);
    });
}

#[test]
fn saves_come_every_so_many_steps_and_the_rules_keep_some() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_path_buf();
    on_ranks(2, move |group| {
        let mut settings = config(&root, 4);
        settings.checkpoint.keep_last = Some(2);
        let mut trainer = trainer(&group, settings);
        let mut rack = rack();
        trainer.train_rack(&mut rack, &Rows, &loss, 2).unwrap();
        // What the rules do not keep is removed by the coordinator, after the others have returned.
        if !group.is_coordinator() {
            return;
        }
        let names = list_checkpoints(trainer.directory()).unwrap();
        let mut steps: Vec<u64> = names.into_iter().map(|one| one.step).collect();
        steps.sort_unstable();
        assert_eq!(steps, [8, 12], "saved at 4, 6 (the end of a stack), 8 and 12");
    });
}
