//! `ModelCheckpoint`: when it saves, and what it remembers.

use std::sync::Arc;

use tch_checkpoint::catalog::find;
use tch_checkpoint::handler::{Callback, Mode, ModelCheckpoint, NNHandler};
use tch_checkpoint::state::Value;
use tch_checkpoint::storage::{Fault, MemoryStorage, Storage};
use tch_checkpoint::{Atomicity, CheckpointPath, ErrorKind, ProcessGroup};

use crate::harness::*;
use crate::models::*;

/// Watches the scripted metric of [`scripted`].
fn best(name: &str) -> ModelCheckpoint {
    ModelCheckpoint::new("best", name).monitor("m").id("best")
}

/// A new handler with this callback, whose metric `m` goes through `script`.
fn watching(
    group: &ProcessGroup,
    storage: &Arc<dyn Storage>,
    script: &[f64],
    callback: ModelCheckpoint,
) -> NNHandler<Net> {
    let mut handler = scripted(usual(group, storage), script);
    handler.add_callback(callback).unwrap();
    handler
}

fn resumed(
    group: &ProcessGroup,
    storage: &Arc<dyn Storage>,
    path: &str,
    script: &[f64],
    callback: ModelCheckpoint,
) -> NNHandler<Net> {
    let mut handler = scripted(loaded(group, storage, path).unwrap(), script);
    handler.add_callback(callback).unwrap();
    handler
}

fn of(handler: &NNHandler<Net>) -> &ModelCheckpoint {
    handler.callback("best").unwrap()
}

/// Names in `best` after one `train` over `script`.
fn saved(script: &'static [f64], callback: fn() -> ModelCheckpoint) -> Vec<String> {
    on_ranks(1, move |group| {
        let (memory, storage) = memory();
        let mut handler = watching(&group, &storage, script, callback());
        handler.train(script.len() as u64).unwrap();
        entries(&memory, "best")
    })
    .remove(0)
}

#[test]
fn only_strict_improvements_are_saved_in_either_direction() {
    const SCRIPT: &[f64] = &[1.0, 2.0, 1.0, 0.5, 0.75, -3.0];
    assert_eq!(saved(SCRIPT, || best("e{epoch}")), ["e1", "e4", "e6"]);
    assert_eq!(saved(SCRIPT, || best("e{epoch}").mode(Mode::Max)), ["e1", "e2"]);
    assert_eq!(saved(SCRIPT, || best("e{epoch}").overwrite(true)), ["e6"]);
    assert_eq!(saved(SCRIPT, || best("m{m:.2f}").overwrite(true)), ["m-3.00"]);
    assert_eq!(saved(SCRIPT, || best("m").overwrite(true)), ["m"]);
    assert_eq!(saved(SCRIPT, || best("m")), ["m", "m-v1", "m-v2"]);
}

#[test]
fn without_best_only_every_so_many_epochs_are_saved() {
    const SCRIPT: &[f64] = &[1.0, 2.0, 3.0, f64::NAN, 5.0];
    assert_eq!(saved(SCRIPT, || best("e{epoch}").save_best_only(false)).len(), 5);
    fn every_second() -> ModelCheckpoint {
        best("e{epoch}").save_best_only(false).save_freq(2)
    }
    assert_eq!(saved(SCRIPT, every_second), ["e2", "e4"]);
    assert_eq!(saved(SCRIPT, || every_second().overwrite(true)), ["e4"]);
    // Best-only does not ask it.
    assert_eq!(saved(SCRIPT, || best("e{epoch}").save_freq(2)), ["e1"]);
}

#[test]
fn what_is_no_number_never_improves_and_is_said_once() {
    const SCRIPT: &[f64] = &[f64::NAN, f64::NEG_INFINITY, f64::INFINITY, 4.0, f64::NAN, 3.0];
    assert_eq!(saved(SCRIPT, || best("e{epoch}")), ["e4", "e6"]);
    on_ranks(1, |group| {
        let (memory, storage) = memory();
        for (monitor, what) in [("m", "NaN"), ("epoch", "not in the logs"), ("val_loss", "never")] {
            let callback = best("e{epoch}").monitor(monitor);
            let mut handler = watching(&group, &storage, SCRIPT, callback);
            let (trained, told) = captured(|| handler.train(3));
            trained.unwrap();
            assert_eq!(told.matches(what).count(), 1, "{monitor}: {told}");
            assert_eq!(of(&handler).best(), None);
        }
        assert_eq!(entries(&memory, "best"), [""; 0]);
        let unknown = best("e{epoch}").monitor("val_mm").id("x");
        let mut handler = watching(&group, &storage, SCRIPT, best("e{epoch}"));
        let error = handler.add_callback(unknown).unwrap_err();
        assert!(error.to_string().contains("did you mean `val_m`"), "{error}");
    });
}

#[test]
fn the_best_value_survives_a_resume_and_a_worse_epoch_saves_nothing() {
    for overwrite in [false, true] {
        let (memory, storage) = memory();
        on_ranks(2, move |group| {
            let make = || best("e{epoch}").overwrite(overwrite);
            let mut handler = watching(&group, &storage, &[2.0, 1.0, 3.0], make());
            handler.train(3).unwrap();
            handler.save("runs/last").unwrap();
            let mut again = resumed(&group, &storage, "runs/last", &[1.5, 1.0, 0.5], make());
            assert_eq!((of(&again).best(), of(&again).best_epoch()), (Some(1.0), 2));
            again.train(2).unwrap();
            assert_eq!(of(&again).best_epoch(), 2);
            again.train(1).unwrap();
            assert_eq!((of(&again).best(), of(&again).best_epoch()), (Some(0.5), 6));
            assert!(of(&again).last_saved().unwrap().ends_with("e6"));
        });
        let left: &[&str] = if overwrite { &["e6"] } else { &["e1", "e2", "e6"] };
        assert_eq!(entries(&memory, "best"), left);
    }
}

/// The checkpoint that it saves itself says what is best, and counts as its own after a load.
#[test]
fn a_resume_from_the_best_checkpoint_itself_knows_that_it_is_the_best() {
    on_ranks(1, |group| {
        let (memory, storage) = memory();
        let make = || best("top").overwrite(true);
        let mut handler = watching(&group, &storage, &[2.0, 1.0], make());
        handler.train(2).unwrap();
        let mut again = resumed(&group, &storage, "best/top", &[1.5, 0.5], make());
        assert_eq!((again.epoch(), of(&again).best()), (2, Some(1.0)));
        again.train(1).unwrap();
        assert_eq!(entries(&memory, "best"), ["top"]);
        assert_eq!(loaded(&group, &storage, "best/top").unwrap().epoch(), 2);
        again.train(1).unwrap();
        assert_eq!(entries(&memory, "best"), ["top"]);
        assert_eq!(loaded(&group, &storage, "best/top").unwrap().epoch(), 4);

        let mut live = watching(&group, &storage, &[0.75, 0.25], make());
        live.restore("best/top", Atomicity::Atomic).unwrap();
        live.train(2).unwrap();
        assert_eq!(entries(&memory, "best"), ["top"]);
        assert_eq!(loaded(&group, &storage, "best/top").unwrap().epoch(), 6);
    });
}

#[test]
fn a_best_value_of_another_number_or_direction_is_not_taken_over() {
    on_ranks(1, |group| {
        let (_, storage) = memory();
        let mut handler = watching(&group, &storage, &[1.0], best("e{epoch}"));
        handler.train(1).unwrap();
        handler.save("runs/last").unwrap();
        for other in [best("e{epoch}").mode(Mode::Max), best("e{epoch}").monitor("loss")] {
            let (again, told) = captured(|| resumed(&group, &storage, "runs/last", &[1.0], other));
            assert_eq!(of(&again).best(), None);
            assert!(told.contains("another number"), "{told}");
        }
        // Any other setting may change.
        let other = best("other{epoch}").save_weights_only(true).overwrite(true);
        let (again, told) = captured(|| resumed(&group, &storage, "runs/last", &[1.0], other));
        assert_eq!(of(&again).best(), Some(1.0));
        assert!(told.is_empty(), "{told}");
    });
}

#[test]
fn two_with_different_settings_coexist_by_default() {
    on_ranks(1, |group| {
        let (memory, storage) = memory();
        let add = |handler: &mut NNHandler<Net>| {
            let down = ModelCheckpoint::new("down", "e{epoch}").monitor("m");
            let up = ModelCheckpoint::new("up", "e{epoch}").monitor("m").mode(Mode::Max);
            handler.add_callback(down).unwrap();
            handler.add_callback(up).unwrap();
            let same = ModelCheckpoint::new("up", "e{epoch}").monitor("m").mode(Mode::Max);
            assert_eq!(handler.add_callback(same).unwrap_err().kind(), ErrorKind::InvalidInput);
        };
        let mut handler = scripted(usual(&group, &storage), &[1.0, 2.0, 0.5]);
        add(&mut handler);
        handler.train(3).unwrap();
        handler.save("runs/last").unwrap();
        let again = loaded(&group, &storage, "runs/last").unwrap();
        let mut again = scripted(again, &[1.5, 3.0, 0.25]);
        add(&mut again);
        assert_eq!(again.callback_report().restored.len(), 2);
        again.train(3).unwrap();
        assert_eq!(entries(&memory, "down"), ["e1", "e3", "e6"]);
        assert_eq!(entries(&memory, "up"), ["e1", "e2", "e5"]);
    });
}

/// What another one will only have saved after this one is not in this one's checkpoint.
#[test]
fn a_checkpoint_does_not_count_on_a_save_that_comes_after_it() {
    on_ranks(1, |group| {
        let (_, storage) = memory();
        let first = || ModelCheckpoint::new("first", "top").monitor("m").id("first");
        let mut handler = watching(&group, &storage, &[2.0], first());
        handler.add_callback(best("top")).unwrap();
        handler.train(1).unwrap();
        assert_eq!(of(&handler).best(), Some(2.0));
        let mut again = scripted(loaded(&group, &storage, "first/top").unwrap(), &[3.0]);
        again.add_callback(first()).unwrap();
        again.add_callback(best("top")).unwrap();
        assert_eq!(again.callback::<ModelCheckpoint>("first").unwrap().best(), Some(2.0));
        assert_eq!(of(&again).best(), None);
    });
}

#[test]
fn a_bare_name_is_saved_and_a_template_that_cannot_work_is_refused_at_once() {
    on_ranks(1, |group| {
        for directory in ["", "."] {
            let (memory, storage) = memory();
            let callback = ModelCheckpoint::new(directory, "model").monitor("m").id("best");
            let mut handler = watching(&group, &storage, &[1.0], callback);
            handler.train(1).unwrap();
            assert_eq!(entries(&memory, "."), ["model"]);
        }
        let (_, storage) = memory();
        let mut handler = scripted(usual(&group, &storage), &[1.0]);
        for bad in ["e{epok}", "{", "a/b", "..", "", "{m:.99f}", "{epoch.real}", "latest"] {
            let error = handler.add_callback(best(bad)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{bad}: {error}");
            assert!(error.message().contains("`best`"), "{error}");
        }
        let error = handler.add_callback(best("e").save_freq(0)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        // A field is known by the metrics that were added before.
        handler.add_callback(best("e{val_m:.2f}")).unwrap();
        handler.train(1).unwrap();
        handler.save("runs/a").unwrap();
        let mut again = loaded(&group, &storage, "runs/a").unwrap();
        assert!(again.add_callback(best("e{val_m:.2f}")).is_err());
        again.train(1).unwrap();
    });
}

fn manifest_of(storage: &MemoryStorage, path: &str) -> tch_checkpoint::manifest::Manifest {
    let path = CheckpointPath::parse(path).unwrap();
    find(storage, &path.into()).unwrap().manifest
}

#[test]
fn weights_alone_have_the_names_of_a_full_save_and_cannot_be_resumed() {
    let (memory, storage) = memory();
    let inner = memory.clone();
    let failed = on_ranks(2, move |group| {
        let callback = best("w").save_weights_only(true);
        let mut handler = watching(&group, &storage, &[1.0], callback);
        handler.train(1).unwrap();
        handler.save("runs/full").unwrap();
        let weights = manifest_of(&inner, "best/w");
        let mut names: Vec<String> = handler.vars().variables().into_keys().collect();
        names.sort();
        let stored: Vec<&str> = weights.tensors().iter().map(|t| t.name.as_str()).collect();
        assert_eq!(stored, names);
        let full = manifest_of(&inner, "runs/full");
        assert!(stored.iter().all(|name| full.tensor(name).is_some()));
        let values = weights.values().iter().map(|(name, _)| name);
        let values: Vec<&str> = values.filter(|name| !name.starts_with("metrics.")).collect();
        assert_eq!(values, ["model.config", "model.type"]);
        assert_eq!(weights.values().float("metrics.m").unwrap(), 1.0);
        assert_eq!((weights.step(), weights.epoch()), (3, 1));

        let before = handler.state_hash().unwrap();
        let live = handler.restore("best/w", Atomicity::Atomic).unwrap_err();
        assert!(live.message().contains("weights of a model only"), "{live}");
        assert_eq!(handler.state_hash().unwrap(), before);
        handler.train(1).unwrap();
        loaded(&group, &storage, "best/w").map(|_| ())
    });
    let error = one_error(&failed);
    assert_eq!(error.kind(), ErrorKind::Mismatch);
    assert!(error.message().contains("weights of a model only"), "{error}");
}

#[test]
fn a_save_that_fails_takes_the_best_value_back() {
    for rank in [0, 1] {
        let stage = Stage::new(rank);
        let inner = stage.clone();
        let failed = on_ranks(2, move |group| {
            let storage = inner.storage(&group);
            let script = [2.0, 1.0, 1.5, 1.75];
            let mut handler = watching(&group, &storage, &script, best("e{epoch}"));
            handler.train(1).unwrap();
            if inner.is_failing(&group) {
                inner.faulty.fail_at(inner.faulty.operations() + 2, Fault::Error(28), true);
            }
            let failed = handler.train(1);
            if inner.is_failing(&group) {
                inner.faulty.reset();
            }
            assert_eq!((of(&handler).best(), of(&handler).best_epoch()), (Some(2.0), 1));
            // Still better than what is on disk, though not better than what failed.
            handler.train(1).unwrap();
            assert_eq!((of(&handler).best(), of(&handler).best_epoch()), (Some(1.5), 3));
            handler.train(1).unwrap();
            failed
        });
        assert_eq!(one_error(&failed).os_code(), Some(28));
        assert_eq!(visible(&stage.memory, "best"), ["e1", "e3"]);
    }
}

#[test]
fn overwriting_leaves_what_others_have_put_there() {
    on_ranks(1, |group| {
        let (memory, storage) = memory();
        let make = || best("top").overwrite(true);
        let mut handler = watching(&group, &storage, &[3.0, 2.0, 1.0], make());
        handler.save("best/top").unwrap();
        handler.save("best/by_hand").unwrap();
        handler.train(2).unwrap();
        assert_eq!(entries(&memory, "best"), ["by_hand", "top", "top-v2"]);
        assert_eq!(loaded(&group, &storage, "best/top").unwrap().epoch(), 0);
        // In another directory nothing is its own.
        handler.save("runs/last").unwrap();
        let moved = ModelCheckpoint::new("new", "top").monitor("m").id("best").overwrite(true);
        let mut again = resumed(&group, &storage, "runs/last", &[1.0], moved);
        again.train(1).unwrap();
        assert_eq!(entries(&memory, "new"), ["top"]);
        assert_eq!(entries(&memory, "best"), ["by_hand", "top", "top-v2"]);
    });
}

/// A resume from before a save knows nothing of it: nobody can tell it from a save of another run.
#[test]
fn what_was_saved_after_the_resumed_checkpoint_stays_and_is_not_overwritten() {
    on_ranks(1, |group| {
        let (memory, storage) = memory();
        let make = || best("top").overwrite(true);
        let mut handler = watching(&group, &storage, &[3.0, 2.0], make());
        handler.train(1).unwrap();
        handler.save("runs/e1").unwrap();
        handler.train(1).unwrap();
        let mut again = resumed(&group, &storage, "runs/e1", &[2.5, 1.0, 0.5], make());
        again.train(1).unwrap();
        assert_eq!(entries(&memory, "best"), ["top", "top-v1"]);
        again.train(2).unwrap();
        assert_eq!(entries(&memory, "best").len(), 2);
        assert_eq!(loaded(&group, &storage, "best/top").unwrap().epoch(), 2);
        let last = of(&again).last_saved().unwrap();
        assert_eq!(loaded(&group, &storage, last.to_str().unwrap()).unwrap().epoch(), 4);
    });
}

/// Each would cost a look at the directory.
#[test]
fn a_state_cannot_name_any_number_of_checkpoints_to_remove() {
    on_ranks(1, |group| {
        let (_, storage) = memory();
        let mut handler = watching(&group, &storage, &[1.0], best("top"));
        handler.train(1).unwrap();
        let saved = of(&handler).save_state().unwrap();
        let previous: Vec<serde_json::Value> = saved.values().json("previous").unwrap();
        let mut many = vec![previous[0].clone(); 100_000];
        many[99_999][0] = "last".into();
        let state = saved.with("previous", Value::json(&many).unwrap());
        let mut again = best("top");
        again.load_state(&state).unwrap();
        assert!(again.last_saved().unwrap().ends_with("last"), "the newest count");
        let kept = again.save_state().unwrap().values().json::<Vec<serde_json::Value>>("previous");
        assert!(kept.unwrap().len() <= 16);
    });
}

#[test]
fn overwriting_begins_with_the_last_one_of_those_that_were_to_stay() {
    on_ranks(1, |group| {
        let (memory, storage) = memory();
        let mut handler = watching(&group, &storage, &[3.0, 2.0, 1.0], best("e{epoch}"));
        handler.train(3).unwrap();
        let overwriting = best("e{epoch}").overwrite(true);
        let mut again = resumed(&group, &storage, "best/e3", &[0.5], overwriting);
        again.train(1).unwrap();
        assert_eq!(entries(&memory, "best"), ["e1", "e2", "e4"]);
    });
}
