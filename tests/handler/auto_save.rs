//! When automatic checkpoints are saved, and which of them stay.

use std::path::Path;
use std::sync::Arc;

use tch_checkpoint::catalog::find;
use tch_checkpoint::group::ProcessGroup;
use tch_checkpoint::handler::{LoadOptions, NNHandler};
use tch_checkpoint::storage::{Fault, MemoryStorage, Storage};
use tch_checkpoint::{Atomicity, CheckpointPath, Error, ErrorKind};

use crate::harness::*;
use crate::models::*;

const ENOSPC: i32 = 28;
const NAME: &str = "e{epoch:02d}";

/// What is saved by `train(epochs)` for each of `runs`, one after the other.
fn saved(interval: i64, on_last: bool, runs: &'static [u64]) -> Vec<String> {
    on_ranks(1, move |group| {
        let (memory, storage) = memory();
        let mut handler = usual(&group, &storage);
        handler.auto_save(interval, "runs", NAME).unwrap().save_on_last_epoch(on_last);
        for epochs in runs {
            handler.train(*epochs).unwrap();
        }
        entries(&memory, "runs")
    })
    .remove(0)
}

#[test]
fn intervals_count_over_calls_and_the_last_epoch_is_saved() {
    assert_eq!(saved(5, true, &[7]), ["e05", "e07"]);
    assert_eq!(saved(5, true, &[7, 4]), ["e05", "e07", "e10", "e11"]);
    assert_eq!(saved(5, false, &[7]), ["e05"]);
    assert_eq!(saved(-1, true, &[3]), ["e03"]);
    assert_eq!(saved(-1, false, &[3, 2]), ["e03", "e05"]);
    assert_eq!(saved(0, true, &[3]), [""; 0]);
    assert_eq!(saved(1, true, &[0]), [""; 0]);
}

#[test]
fn the_auto_saver_goes_on_where_it_was_after_a_load() {
    on_ranks(1, |group| {
        let (memory, storage) = memory();
        let mut handler = usual(&group, &storage);
        handler.auto_save(5, "runs", NAME).unwrap();
        handler.train(7).unwrap();
        let mut again = loaded(&group, &storage, "runs/latest").unwrap();
        assert_eq!(again.epoch(), 7);
        again.train(4).unwrap();
        assert_eq!(entries(&memory, "runs"), ["e05", "e07", "e10", "e11"]);
        assert_eq!(again.history().series("loss").len(), 11);
    });
}

#[test]
fn a_name_that_is_taken_is_numbered_unless_it_is_to_be_overwritten() {
    for (overwrite, names) in [(false, &["model", "model-v1", "model-v2"][..]), (true, &["model"])]
    {
        let found = on_ranks(1, move |group| {
            let (memory, storage) = memory();
            let mut handler = usual(&group, &storage);
            handler.auto_save(1, "runs", "model").unwrap().overwrite(overwrite);
            handler.train(3).unwrap();
            entries(&memory, "runs")
        });
        assert_eq!(found, [names]);
    }
}

/// A user's own files and checkpoints beside the automatic ones.
fn add_others(storage: &MemoryStorage, handler: &NNHandler<Net>) {
    storage.create_dir_all(Path::new("runs/e00_notes")).unwrap();
    storage.write(Path::new("runs/e00_notes/a.txt"), b"mine").unwrap();
    storage.write(Path::new("runs/notes.txt"), b"mine").unwrap();
    handler.save("runs/by_hand").unwrap();
}

const OTHERS: [&str; 3] = ["by_hand", "e00_notes", "notes.txt"];

fn with_others(name: &str) -> Vec<String> {
    let mut names: Vec<String> = OTHERS.iter().map(|n| (*n).to_owned()).collect();
    names.push(name.to_owned());
    names.sort();
    names
}

#[test]
fn overwriting_keeps_one_automatic_checkpoint_and_everything_else() {
    let (memory, _) = memory();
    let inner = memory.clone();
    on_ranks(2, move |group| {
        let storage: Arc<dyn Storage> = Arc::new(inner.clone());
        let mut handler = usual(&group, &storage);
        if group.is_coordinator() {
            inner.create_dir_all(Path::new("runs/e00_notes")).unwrap();
            inner.write(Path::new("runs/e00_notes/a.txt"), b"mine").unwrap();
            inner.write(Path::new("runs/notes.txt"), b"mine").unwrap();
        }
        handler.save("runs/by_hand").unwrap();
        handler.auto_save(1, "runs", NAME).unwrap().overwrite(true);
        handler.train(3).unwrap();
    });
    assert_eq!(entries(&memory, "runs"), with_others("e03"));

    // A fresh handler, on another world size, takes over what the first one left.
    for n in [1u32, 3] {
        let inner = memory.clone();
        on_ranks(n, move |group| {
            let storage: Arc<dyn Storage> = Arc::new(inner.clone());
            loaded(&group, &storage, "runs/latest").unwrap().train(2).unwrap();
        });
        let last = format!("e{:02}", if n == 1 { 5 } else { 7 });
        assert_eq!(entries(&memory, "runs"), with_others(&last));
    }
    assert_eq!(memory.read(Path::new("runs/e00_notes/a.txt")).unwrap(), b"mine");
}

/// As a program does that sets everything up anew after each load.
#[test]
fn setting_auto_save_again_after_a_load_still_keeps_one() {
    on_ranks(1, |group| {
        let (memory, storage) = memory();
        let mut handler = usual(&group, &storage);
        add_others(&memory, &handler);
        handler.auto_save(1, "runs", NAME).unwrap().overwrite(true);
        handler.train(2).unwrap();
        let mut again = loaded(&group, &storage, "runs/latest").unwrap();
        again.auto_save(1, "runs", "epoch{epoch}").unwrap().overwrite(true);
        again.train(2).unwrap();
        assert_eq!(entries(&memory, "runs"), with_others("epoch4"));

        // In another directory nothing is its own yet.
        again.auto_save(1, "elsewhere", NAME).unwrap().overwrite(true);
        again.train(1).unwrap();
        assert_eq!(entries(&memory, "elsewhere"), ["e05"]);
        assert_eq!(entries(&memory, "runs"), with_others("epoch4"));
    });
}

/// A copy of an automatic checkpoint under a name of the user's has the same save id.
#[test]
fn a_copy_that_the_user_made_is_no_automatic_checkpoint() {
    on_ranks(1, |group| {
        let (memory, storage) = memory();
        let mut handler = usual(&group, &storage);
        handler.auto_save(1, "runs", NAME).unwrap().overwrite(true);
        handler.train(1).unwrap();
        let from = memory.open_dir(Path::new("runs/e01")).unwrap();
        memory.create_dir_all(Path::new("runs/keep")).unwrap();
        for entry in from.list().unwrap() {
            let bytes = memory.read(&Path::new("runs/e01").join(&entry.name)).unwrap();
            memory.write(&Path::new("runs/keep").join(&entry.name), &bytes).unwrap();
        }
        loaded(&group, &storage, "runs/keep").unwrap().train(1).unwrap();
        let names = entries(&memory, "runs");
        assert!(names.contains(&"keep".to_owned()), "{names:?}");
        assert!(names.contains(&"e02".to_owned()), "{names:?}");
    });
}

/// A checkpoint saved by hand is never removed, though it holds the state of the auto-saver.
#[test]
fn loading_one_saved_by_hand_does_not_make_it_automatic() {
    on_ranks(1, |group| {
        let (memory, storage) = memory();
        let mut handler = usual(&group, &storage);
        handler.auto_save(1, "runs", NAME).unwrap().overwrite(true);
        handler.train(1).unwrap();
        handler.save("runs/by_hand").unwrap();
        loaded(&group, &storage, "runs/by_hand").unwrap().train(1).unwrap();
        assert_eq!(entries(&memory, "runs"), ["by_hand", "e02"]);
    });
}

/// A file does not choose where a program writes and removes: copied elsewhere, it goes on without
/// its auto-saver.
#[test]
fn a_checkpoint_from_elsewhere_does_not_say_where_to_save() {
    on_ranks(1, |group| {
        let (memory, storage) = memory();
        let mut handler = usual(&group, &storage);
        handler.auto_save(1, "runs", NAME).unwrap().overwrite(true);
        handler.train(1).unwrap();
        handler.save("downloads/theirs").unwrap();
        let mut again = loaded(&group, &storage, "downloads/theirs").unwrap();
        assert!(again.auto_saver().is_none());
        again.train(1).unwrap();
        assert_eq!(entries(&memory, "runs"), ["e01"], "nothing is saved or removed there");
        assert_eq!(entries(&memory, "downloads"), ["theirs"]);
        let trusting = LoadOptions { keep_auto_saver: true, ..options(&group, &storage) };
        let mut trusting = equip(NNHandler::<Net>::load("downloads/theirs", trusting).unwrap());
        trusting.train(1).unwrap();
        assert_eq!(visible(&memory, "runs"), ["e02"], "trusted");
    });
}

/// What the program has set itself stays when an older state is restored.
#[test]
fn a_restored_checkpoint_leaves_the_live_auto_saver() {
    on_ranks(1, |group| {
        let (memory, storage) = memory();
        let mut handler = usual(&group, &storage);
        handler.auto_save(1, "runs", NAME).unwrap();
        handler.train(1).unwrap();
        handler.auto_save(1, "new", NAME).unwrap();
        handler.restore("runs/e01", Atomicity::Atomic).unwrap();
        handler.train(1).unwrap();
        assert_eq!(entries(&memory, "runs"), ["e01"]);
        assert_eq!(entries(&memory, "new"), ["e02"]);
    });
}

/// A handler that does not save by itself is not made to by a file, which would say where.
#[test]
fn a_restored_checkpoint_from_elsewhere_turns_no_auto_saver_on() {
    on_ranks(1, |group| {
        let (memory, storage) = memory();
        let mut theirs = usual(&group, &storage);
        theirs.auto_save(1, "runs", NAME).unwrap().overwrite(true);
        theirs.train(1).unwrap();
        theirs.save("downloads/theirs").unwrap();
        let mut ours = usual(&group, &storage);
        ours.restore("downloads/theirs", Atomicity::Atomic).unwrap();
        assert!(ours.auto_saver().is_none());
        ours.train(1).unwrap();
        assert_eq!(entries(&memory, "runs"), ["e01"], "nothing is saved or removed there");
        // Beside those of its own run it goes on, as after a load.
        ours.restore("runs/e01", Atomicity::Atomic).unwrap();
        assert!(ours.auto_saver().is_some());
    });
}

/// Going back does not make it forget what it has saved since.
#[test]
fn overwriting_keeps_one_also_after_going_back() {
    on_ranks(1, |group| {
        let (memory, storage) = memory();
        let mut handler = usual(&group, &storage);
        handler.auto_save(1, "runs", "s{step}").unwrap().overwrite(true);
        handler.train(1).unwrap();
        handler.save("runs/by_hand").unwrap();
        handler.train(2).unwrap();
        assert_eq!(entries(&memory, "runs"), ["by_hand", "s9"]);
        handler.restore("runs/by_hand", Atomicity::Atomic).unwrap();
        handler.train(1).unwrap();
        assert_eq!(entries(&memory, "runs"), ["by_hand", "s6"]);
    });
}

/// Rank `failing` has a full disk in epoch 2, from its `nth` operation on.
fn train_with_a_full_disk(group: &ProcessGroup, stage: &Stage, nth: u64) -> Result<(), Error> {
    let mut handler = usual(group, &stage.storage(group));
    handler.auto_save(1, "runs", NAME).unwrap().overwrite(true);
    handler.train(1).unwrap();
    if stage.is_failing(group) {
        // The coordinator looks at the directory once before it trains.
        let looks = u64::from(group.is_coordinator());
        let operation = stage.faulty.operations() + looks + nth;
        stage.faulty.fail_at(operation, Fault::Error(ENOSPC), true);
    }
    let failed = handler.train(1);
    if failed.is_err() {
        assert_eq!(handler.epoch(), 2, "the epoch itself was trained");
        assert_eq!(visible(&stage.memory, "runs"), ["e01"], "operation {nth}");
        loaded(group, &(Arc::new(stage.memory.clone()) as Arc<dyn Storage>), "runs/e01").unwrap();
    }
    if stage.is_failing(group) {
        stage.faulty.reset();
    }
    handler.train(1).unwrap();
    assert_eq!(handler.epoch(), 3);
    failed
}

#[test]
fn a_save_that_fails_leaves_the_previous_one_and_training_goes_on() {
    for rank in [0, 1] {
        for nth in 1..=6 {
            let stage = Stage::new(rank);
            let inner = stage.clone();
            let failed = on_ranks(2, move |group| train_with_a_full_disk(&group, &inner, nth));
            let error = one_error(&failed);
            assert_eq!(error.kind(), ErrorKind::Storage, "{error}");
            assert_eq!(error.os_code(), Some(ENOSPC), "{error}");
            assert_eq!(error.rank().map(tch_checkpoint::Rank::get), Some(rank), "{error}");
            assert_eq!(entries(&stage.memory, "runs"), ["e03"], "rank {rank}, operation {nth}");
        }
    }
}

#[test]
fn a_save_that_another_name_blocks_is_refused_and_the_other_thing_stays() {
    on_ranks(1, |group| {
        let (memory, storage) = memory();
        memory.create_dir_all(Path::new("runs/model")).unwrap();
        let mut handler = usual(&group, &storage);
        handler.auto_save(1, "runs", "model").unwrap().overwrite(true);
        let error = handler.train(1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
        handler.auto_save(1, "runs", "model").unwrap().overwrite(false);
        handler.train(1).unwrap();
        assert_eq!(entries(&memory, "runs"), ["model", "model-v1"]);
    });
}

/// A directory that cannot be made shows before anything is trained, on every rank.
#[test]
fn an_impossible_directory_is_refused_before_training() {
    let (memory, storage) = memory();
    storage.create_dir_all(Path::new("runs")).unwrap();
    memory.write(Path::new("runs/taken"), b"a file").unwrap();
    let results = on_ranks(2, move |group| {
        let mut handler = usual(&group, &storage);
        handler.auto_save(5, "runs/taken", NAME).unwrap();
        let trained = handler.train(1);
        assert_eq!(handler.step(), 0);
        trained
    });
    assert!(one_error(&results).to_string().contains("nothing was trained"));
}

#[test]
fn none_is_off_as_zero_is() {
    on_ranks(1, |group| {
        let (memory, storage) = memory();
        let mut handler = usual(&group, &storage);
        handler.auto_save(None, "runs", NAME).unwrap();
        handler.train(1).unwrap();
        assert_eq!(entries(&memory, "runs"), [""; 0]);
    });
}

/// A run that is started again for every epoch would else try to remove all that it ever saved.
#[test]
fn what_overwriting_removes_does_not_grow_with_every_resume() {
    on_ranks(1, |group| {
        let (memory, storage) = memory();
        let mut handler = usual(&group, &storage);
        handler.auto_save(-1, "runs", "e{epoch}").unwrap().overwrite(true);
        handler.train(1).unwrap();
        for epoch in 1..20 {
            let mut again = loaded(&group, &storage, &format!("runs/e{epoch}")).unwrap();
            again.train(1).unwrap();
        }
        assert_eq!(entries(&memory, "runs"), ["e20"]);
        let last = CheckpointPath::parse("runs/e20").unwrap();
        let manifest = find(&memory, &last.into()).unwrap().manifest;
        let saver: serde_json::Value = manifest.values().json("auto_saver").unwrap();
        let previous = saver["previous"].as_array().unwrap();
        assert!(previous.len() <= 9, "{previous:?}");
        assert_eq!(previous.last().unwrap()[0], "e19");
    });
}

#[test]
fn overwriting_begins_with_the_last_one_of_those_that_were_to_stay() {
    for live in [false, true] {
        on_ranks(1, move |group| {
            let (memory, storage) = memory();
            let mut handler = usual(&group, &storage);
            handler.auto_save(1, "runs", "e{epoch}").unwrap();
            handler.train(3).unwrap();
            let mut again = match live {
                false => loaded(&group, &storage, "runs/e3").unwrap(),
                true => usual(&group, &storage),
            };
            again.auto_save(1, "runs", "e{epoch}").unwrap().overwrite(true);
            if live {
                again.restore("runs/e3", Atomicity::Atomic).unwrap();
            }
            again.train(1).unwrap();
            assert_eq!(entries(&memory, "runs"), ["e1", "e2", "e4"], "live: {live}");
        });
    }
}
