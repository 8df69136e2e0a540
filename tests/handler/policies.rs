//! Which automatic checkpoints stay, where the links lead, and what searches find.

use std::path::Path;
use std::sync::Arc;

use tch_checkpoint::autosave::Every;
use tch_checkpoint::catalog::{Order, Wanted, find, find_checkpoints_on};
use tch_checkpoint::group::ProcessGroup;
use tch_checkpoint::handler::{
    AsyncMode, AutoSaver, InFlight, LoadOptions, Mode, ModelCheckpoint, NNHandler, Retention,
};
use tch_checkpoint::manifest::CheckpointInfo;
use tch_checkpoint::storage::{MemoryStorage, Storage};
use tch_checkpoint::{Atomicity, CheckpointPath, ErrorKind, Result};

use crate::harness::*;
use crate::models::*;

const NAME: &str = "e{epoch:02d}";

fn infos(storage: &MemoryStorage, directory: &str) -> Vec<CheckpointInfo> {
    let solo = ProcessGroup::solo();
    find_checkpoints_on(&solo, storage, Path::new(directory), &Order::Latest).unwrap()
}

fn info(storage: &MemoryStorage, name: &str) -> CheckpointInfo {
    infos(storage, "runs").into_iter().find(|info| info.name == name).unwrap()
}

/// Where link and file of a pointer lead.
fn pointer(storage: &MemoryStorage, pointer: &str) -> Option<String> {
    let parent = storage.open_dir(Path::new("runs")).unwrap();
    let link = parent.read_link(pointer).ok();
    let json = storage.read(&Path::new("runs").join(format!("{pointer}.json"))).ok();
    let json = json.map(|bytes| serde_json::from_slice::<serde_json::Value>(&bytes).unwrap());
    let named = json.map(|json| json["name"].as_str().unwrap().to_owned());
    assert_eq!(link, named, "{pointer}");
    link
}

/// A run of `script.len()` epochs from scratch, or from `path`, with these rules.
fn run(
    group: &ProcessGroup,
    storage: &Arc<dyn Storage>,
    from: Option<&str>,
    script: &[f64],
    rules: impl Fn(&mut AutoSaver) -> Result<()>,
) -> NNHandler<Net> {
    let handler = match from {
        Some(path) => loaded(group, storage, path).unwrap(),
        None => usual(group, storage),
    };
    let mut handler = scripted(handler, script);
    rules(handler.auto_save(1, "runs", NAME).unwrap()).unwrap();
    handler.train(script.len() as u64).unwrap();
    handler
}

#[test]
fn the_newest_stay_through_resumes_on_other_world_sizes() {
    for mode in [AsyncMode::Disabled, AsyncMode::Async] {
        let (memory, _) = memory();
        let inner = memory.clone();
        on_ranks(2, move |group| {
            let storage: Arc<dyn Storage> = Arc::new(inner.clone());
            let mut handler = usual(&group, &storage);
            handler.save("runs/by_hand").unwrap();
            handler.auto_save(1, "runs", NAME).unwrap().keep_last(2).unwrap().mode(mode);
            handler.train(3).unwrap();
        });
        assert_eq!(entries(&memory, "runs"), ["by_hand", "e02", "e03"]);
        // Rules are part of what a loaded handler goes on with; what it was loaded from stays.
        for (n, left) in [(1, ["e03", "e05", "e06"]), (2, ["e06", "e08", "e09"])] {
            let inner = memory.clone();
            on_ranks(n, move |group| {
                let storage: Arc<dyn Storage> = Arc::new(inner.clone());
                loaded(&group, &storage, "runs/latest").unwrap().train(3).unwrap();
            });
            let mut expected = left.to_vec();
            expected.insert(0, "by_hand");
            assert_eq!(entries(&memory, "runs"), expected, "{mode:?}");
        }
        assert_eq!(pointer(&memory, "latest").as_deref(), Some("e09"));
        assert_eq!(pointer(&memory, "best"), None);
    }
}

#[test]
fn rules_add_up_and_neither_nan_nor_infinity_is_best() {
    let (memory, _) = memory();
    let inner = memory.clone();
    on_ranks(2, move |group| {
        let storage: Arc<dyn Storage> = Arc::new(inner.clone());
        let rules = |saver: &mut AutoSaver| {
            saver.keep_last(1)?.keep_best(2, "m", Mode::Min)?;
            saver.keep_every_epochs(4)?.keep_pinned(["e0[1]"]).map(drop)
        };
        let script = [9.0, 2.0, f64::NAN, 7.0, f64::NEG_INFINITY, 1.0, 3.0];
        drop(run(&group, &storage, None, &script, rules));
        drop(run(&group, &storage, Some("runs/e07"), &[1.5, 8.0], rules));
    });
    // 1 is pinned, 4 and 8 are multiples, 6 and 8 the best, 7 was resumed, 9 is the last.
    assert_eq!(entries(&memory, "runs"), ["e01", "e04", "e06", "e07", "e08", "e09"]);
    assert_eq!(pointer(&memory, "latest").as_deref(), Some("e09"));
    assert_eq!(pointer(&memory, "best").as_deref(), Some("e06"));
    let solo = ProcessGroup::solo();
    let storage: Arc<dyn Storage> = Arc::new(memory.clone());
    assert_eq!(loaded(&solo, &storage, "runs/best").unwrap().epoch(), 6);
}

#[test]
fn links_follow_also_where_everything_stays_or_one_does() {
    for overwrite in [false, true] {
        on_ranks(1, move |group| {
            let (memory, storage) = memory();
            let rules = |saver: &mut AutoSaver| {
                saver.overwrite(overwrite);
                Ok(())
            };
            run(&group, &storage, None, &[1.0, 2.0], rules);
            let left: &[&str] = if overwrite { &["e02"] } else { &["e01", "e02"] };
            assert_eq!(entries(&memory, "runs"), left);
            assert_eq!(pointer(&memory, "latest").as_deref(), Some("e02"));
            assert_eq!(pointer(&memory, "best"), None);
        });
    }
}

#[test]
fn the_numbers_of_the_epoch_can_be_searched() {
    let (memory, _) = memory();
    let inner = memory.clone();
    on_ranks(2, move |group| {
        let storage: Arc<dyn Storage> = Arc::new(inner.clone());
        let mut handler = scripted(usual(&group, &storage), &[3.0, f64::NAN, 2.0]);
        handler.auto_save(Every::steps(2).unwrap(), "runs", "s{step}").unwrap();
        handler.add_callback(ModelCheckpoint::new("runs", "best{epoch}").monitor("m")).unwrap();
        handler.train(3).unwrap();
        handler.save("runs/by_hand").unwrap();
        assert!(
            !handler.state_dict().unwrap().values.iter().any(|(name, _)| {
                name.starts_with("metrics.") || name.starts_with("checkpoint.")
            })
        );
    });
    let marks = |name: &str| {
        let info = info(&memory, name);
        (info.automatic, info.metrics.get("m").map(|m| m.to_bits()))
    };
    // Inside an epoch there are none: 2, 4 and 8; 6 and 9 are ends of an epoch.
    for name in ["s2", "s4", "s8"] {
        assert_eq!(marks(name), (true, None), "{name}");
    }
    assert!(info(&memory, "s6").metrics["m"].is_nan());
    assert_eq!(marks("s9"), (true, Some(2.0f64.to_bits())));
    assert_eq!(marks("best1"), (false, Some(3.0f64.to_bits())));
    assert_eq!(marks("by_hand"), (false, None));
    let last = info(&memory, "s9");
    let names: Vec<&str> = last.metrics.keys().map(String::as_str).collect();
    assert_eq!(names, ["epoch_time", "loss", "lr", "m", "val_loss"]);
    let best = find(&memory, &Wanted::best_by("runs", "m", Mode::Min)).unwrap();
    // Of equals the older: both are of the same step, the callback's was saved first.
    assert_eq!(best.name.as_str(), "best3");
    // A save by hand is as new as its step, like any other.
    assert_eq!(infos(&memory, "runs")[0].name, "by_hand");
}

#[test]
fn weights_of_another_epoch_do_not_go_by_the_numbers_of_this_one() {
    on_ranks(1, |group| {
        let (memory, storage) = memory();
        let mut handler = scripted(usual(&group, &storage), &[1.0, 2.0, 3.0]);
        let stopping = tch_checkpoint::handler::EarlyStopping::new()
            .monitor("m")
            .patience(1)
            .restore_best_weights(true);
        handler.add_callback(stopping).unwrap();
        handler.auto_save(1, "runs", NAME).unwrap();
        handler.train(3).unwrap();
        assert_eq!(entries(&memory, "runs"), ["e01", "e02"], "stopped");
        assert_eq!(info(&memory, "e01").metrics["m"], 1.0);
        assert!(info(&memory, "e02").metrics.is_empty(), "it holds the weights of epoch 1");
    });
}

/// What is saved after going back is newer than what was left behind; what a run finds is not its
/// own to remove.
#[test]
fn a_run_that_goes_back_or_begins_anew_keeps_by_its_own_age() {
    for atomic in [false, true] {
        let (memory, _) = memory();
        let inner = memory.clone();
        on_ranks(2, move |group| {
            let storage: Arc<dyn Storage> = Arc::new(inner.clone());
            let rules = |saver: &mut AutoSaver| saver.keep_last(2)?.keep_every_epochs(3).map(drop);
            let mut handler = run(&group, &storage, None, &[0.0; 5], rules);
            let mut back = match atomic {
                true => {
                    handler.restore("runs/e03", Atomicity::Atomic).unwrap();
                    handler
                }
                false => loaded(&group, &storage, "runs/e03").unwrap(),
            };
            back.auto_save(1, "runs", "b{epoch}").unwrap().keep_last(2).unwrap();
            back.train(2).unwrap();
        });
        // By steps alone, 5 of before would be newer than 4 that came after it.
        assert_eq!(entries(&memory, "runs"), ["b4", "b5", "e03"], "{atomic}");
        assert_eq!(pointer(&memory, "latest").as_deref(), Some("b5"));
        let inner = memory.clone();
        on_ranks(1, move |group| {
            let storage: Arc<dyn Storage> = Arc::new(inner.clone());
            let mut anew = usual(&group, &storage);
            anew.auto_save(1, "runs", "a{epoch}").unwrap().keep_last(1).unwrap();
            anew.train(2).unwrap();
            anew.save("runs/by_hand").unwrap();
            assert_eq!(loaded(&group, &storage, "runs/latest").unwrap().epoch(), 2);
        });
        assert_eq!(entries(&memory, "runs"), ["a2", "b4", "b5", "by_hand", "e03"]);
        assert_eq!(pointer(&memory, "latest").as_deref(), Some("a2"));
    }
}

fn refused(set: impl Fn(&mut NNHandler<Net>) -> Result<()> + Send + Sync + 'static) -> String {
    let results = on_ranks(2, move |group| {
        let (_, storage) = memory();
        let mut handler = scripted(usual(&group, &storage), &[1.0]);
        set(&mut handler)?;
        let trained = handler.train(1);
        assert_eq!(handler.step(), 0, "nothing was trained");
        trained
    });
    let error = one_error(&results);
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    error.message().to_owned()
}

#[test]
fn contradictions_are_refused_by_name() {
    let saver = |h: &mut NNHandler<Net>| h.auto_save(1, "runs", NAME).unwrap().clone();
    on_ranks(1, move |group| {
        let mut handler = usual(&group, &memory().1);
        let mut saver = saver(&mut handler);
        let all: [(Result<()>, &str); 6] = [
            (saver.keep_last(0).map(drop), "`keep_last`"),
            (saver.keep_best(0, "m", Mode::Min).map(drop), "`keep_best`"),
            (saver.keep_every_steps(0).map(drop), "`keep_every_steps`"),
            (saver.keep_every_epochs(0).map(drop), "`keep_every_epochs`"),
            (saver.keep_pinned(["a["]).map(drop), "`a[`"),
            (saver.overwrite(true).keep_last(1).map(drop), "`overwrite(true)` and `keep"),
        ];
        for (result, named) in all {
            let error = result.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.message().contains(named), "{error}");
        }
        saver.overwrite(false).keep(Retention::default()).unwrap();
    });
    let best = |name: &'static str| {
        move |h: &mut NNHandler<Net>| {
            h.auto_save(1, "runs", NAME)?.keep_best(1, name, Mode::Max).map(drop)
        }
    };
    assert!(refused(best("mm")).contains("`keep_best`: no number is called `mm`"));
    assert!(refused(best("step")).contains("`step` is no number"));
    assert!(refused(best("val_m")).contains("`val_m`, but nothing is validated"));
    let both = |h: &mut NNHandler<Net>| {
        h.auto_save(1, "runs", NAME)?.keep_last(1)?.overwrite(true);
        Ok(())
    };
    assert!(refused(both).contains("`overwrite(true)` and `keep"));
    let alone = |h: &mut NNHandler<Net>| {
        h.auto_save(1, "runs", NAME)?.in_flight(InFlight::Skip);
        Ok(())
    };
    assert!(refused(alone).contains("`in_flight`"));
}

/// Defaults are not stored, so that such a checkpoint is what it always was.
#[test]
fn a_state_without_rules_has_none_and_loads() {
    on_ranks(1, |group| {
        let (memory, storage) = memory();
        let stored = |name: &str| -> serde_json::Value {
            let path = CheckpointPath::parse(name).unwrap();
            find(&memory, &path.into()).unwrap().manifest.values().json("auto_saver").unwrap()
        };
        run(&group, &storage, None, &[1.0], |_| Ok(()));
        let plain = stored("runs/e01");
        let mut keys: Vec<_> = plain.as_object().unwrap().keys().cloned().collect();
        keys.sort();
        let expected = [
            "automatic",
            "directory",
            "interval",
            "metrics",
            "overwrite",
            "previous",
            "save_on_last_epoch",
            "template",
        ];
        assert_eq!(keys, expected);
        let options = LoadOptions { keep_auto_saver: true, ..options(&group, &storage) };
        let mut again = equip(NNHandler::<Net>::load("runs/e01", options).unwrap());
        again.auto_saver().unwrap().keep_last(1).unwrap().mode(AsyncMode::Async);
        again.train(1).unwrap();
        assert_eq!(entries(&memory, "runs"), ["e01", "e02"], "the one that was loaded stays");
        let rules = stored("runs/e02");
        assert_eq!(rules["policies"]["retention"]["last"], 1);
        assert_eq!(rules["policies"]["mode"], "async");
    });
}
