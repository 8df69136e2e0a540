//! One rank is set up otherwise, or asks for something else: every rank hears what it is, and who,
//! before anything is trained, saved or loaded.

use std::sync::Arc;
use std::time::Duration;

use tch_checkpoint::autosave::{Every, Mode};
use tch_checkpoint::checkpointer::{AsyncMode, InFlight};
use tch_checkpoint::code::ModelCode;
use tch_checkpoint::handler::{AutoSaver, InitOptions, LoadOptions, Loader, NNHandler};
use tch_checkpoint::load::Atomicity;
use tch_checkpoint::storage::{MemoryStorage, Storage};
use tch_checkpoint::torch::{
    Adam, Clip, EmaConfig, ExponentialLr, GradScalerConfig, Precision, SchedulerUnit,
};
use tch_checkpoint::{Error, ErrorKind, Replicas, Result};

use crate::harness::*;
use crate::models::*;

const RANKS: u32 = 3;

type Handler = NNHandler<Net>;

/// A handler on which each setting may be changed alone.
fn full(group: &tch_checkpoint::ProcessGroup, storage: &Arc<dyn Storage>) -> Handler {
    let mut handler = usual(group, storage);
    handler.set_val_loader(data(5), LOADER);
    let saver = handler.auto_save(1, "runs", "e{epoch}").unwrap();
    saver.mode(AsyncMode::Async);
    handler
}

fn assert_names(results: &[Result<()>], words: &str, odd: u32) {
    let error = one_error(results);
    assert_eq!(error.kind(), ErrorKind::Disagreement, "{words}: {error}");
    assert!(error.to_string().contains(words), "`{error}` does not say {words}");
    // The coordinator is one side of the comparison.
    assert_eq!(error.rank().map(|rank| rank.get()), Some(odd.max(1)), "{words}: {error}");
}

fn train_differently(words: &str, odd: u32, change: impl Fn(&mut Handler) + Send + Sync + 'static) {
    let results = on_ranks(RANKS, move |group| {
        let mut handler = full(&group, &memory().1);
        if group.rank().get() == odd {
            change(&mut handler);
        }
        let result = handler.train(1);
        assert_eq!(handler.step(), 0, "trained");
        result
    });
    assert_names(&results, words, odd);
}

#[test]
fn every_setting_of_training_that_one_rank_has_otherwise() {
    type Change = fn(&mut Handler);
    let cases: [(&str, Change); 20] = [
        ("optimizer", |h| h.set_optimizer(Adam { lr: 2e-2, ..Adam::default() }).unwrap()),
        ("optimizer", |h| {
            h.set_optimizer(Adam { lr: 1e-2, betas: (0.8, 0.999), ..Adam::default() }).unwrap();
        }),
        ("schedule", |h| {
            h.set_scheduler(ExponentialLr { gamma: 0.5 }, SchedulerUnit::Epoch).unwrap();
        }),
        ("gradient scaler", |h| h.set_grad_scaler(GradScalerConfig::default()).unwrap()),
        ("averages", |h| h.set_ema(EmaConfig::default()).unwrap()),
        ("steps", |h| h.clip_gradients(Clip::Norm(1.0)).unwrap()),
        ("steps", |h| h.set_precision(Precision::MixedBfloat16)),
        ("training data", |h| h.set_train_loader(data(19), LOADER)),
        ("training data", |h| h.set_train_loader(data(20), Loader { drop_last: true, ..LOADER })),
        ("training data", |h| h.set_train_loader(data(20), Loader { shuffle: false, ..LOADER })),
        ("training data", |h| {
            h.set_train_loader(data(20), Loader { global_batch_size: Some(8), ..LOADER });
        }),
        ("training data", |h| {
            h.set_train_loader(data(20), Loader { global_batch_size: None, ..LOADER });
        }),
        ("validation data", |h| h.set_val_loader(data(6), LOADER)),
        ("validate_every", |h| h.validate_every(2)),
        ("metrics", |h| h.add_metric("m", |_, _| 0.0)),
        ("save_on_signal", |h| h.save_on_signal(true).unwrap()),
        ("save_before_time_limit", |h| {
            h.save_before_time_limit(Some(Duration::from_secs(9))).unwrap();
        }),
        ("auto_save", |h| h.disable_auto_save()),
        ("auto_save", |h| {
            h.auto_save(Every::LastEpoch, "runs", "e{epoch}").unwrap();
        }),
        ("auto_save", |h| {
            h.auto_save(1, "elsewhere", "e{epoch}").unwrap();
        }),
    ];
    for (number, (words, change)) in (0..).zip(cases) {
        train_differently(words, number % RANKS, change);
    }
}

#[test]
fn every_setting_of_automatic_saves_that_one_rank_has_otherwise() {
    type Change = fn(&mut AutoSaver);
    let cases: [Change; 9] = [
        |saver| {
            saver.overwrite(true);
        },
        |saver| {
            saver.save_on_last_epoch(false);
        },
        |saver| {
            saver.keep_last(3).unwrap();
        },
        |saver| {
            saver.keep_best(2, "val_loss", Mode::Min).unwrap();
        },
        |saver| {
            saver.keep_every_steps(10).unwrap();
        },
        |saver| {
            saver.keep_every_epochs(10).unwrap();
        },
        |saver| {
            saver.keep_pinned(["best*"]).unwrap();
        },
        |saver| {
            saver.mode(AsyncMode::AsyncOverlap);
        },
        |saver| {
            saver.in_flight(InFlight::Skip);
        },
    ];
    for (number, change) in (0..).zip(cases) {
        train_differently("auto_save", number % RANKS, move |h| change(h.auto_saver().unwrap()));
    }
    train_differently("auto_save", 2, |h| {
        h.auto_save(1, "runs", "epoch{epoch}").unwrap();
    });
}

#[test]
fn ranks_that_train_for_other_times_or_with_other_seeds_are_told_so() {
    let results = on_ranks(RANKS, |group| {
        full(&group, &memory().1).train(1 + u64::from(group.rank().get() == 2))
    });
    assert_names(&results, "goal", 2);
    let results = on_ranks(RANKS, |group| {
        let (_, storage) = memory();
        let seed = if group.rank().get() == 1 { 6 } else { 5 };
        let builder = NNHandler::<Net>::builder(NetConfig { hidden: 6, dropout: 0.0 });
        let built = builder.process_group(&group).storage(storage).seed(seed).build()?;
        let mut handler = equip(built);
        handler.set_optimizer(Adam::default())?;
        handler.train(1)
    });
    assert_names(&results, "seed", 1);
}

/// A checkpoint of a full handler, `runs/a`.
fn some_checkpoint() -> MemoryStorage {
    let (memory, storage) = memory();
    on_ranks(1, move |group| {
        full(&group, &storage).save("runs/a").unwrap();
    });
    memory
}

fn code() -> ModelCode {
    let files = [("net.rs".to_owned(), "struct Net;".to_owned())].into();
    ModelCode::new(files, "nets", "1.0", None, Default::default()).unwrap()
}

type Change = Box<dyn Fn(&mut LoadOptions) + Send + Sync>;

/// Each option of a load. One that is added does not compile until it is here.
fn load_options() -> Vec<(&'static str, Change)> {
    let LoadOptions {
        group,
        device,
        device_map,
        replicas,
        storage,
        lenient,
        skip_optimizer,
        skip_scheduler,
        skip_scaler,
        skip_ema,
        skip_history,
        keep_auto_saver,
        model_code,
        skip_callbacks,
    } = LoadOptions::default();
    assert!(group.is_none() && device.is_none() && storage.is_none(), "of one rank alone");
    assert!(device_map.is_empty(), "of one rank alone as well");
    assert!(model_code.is_none());
    assert_eq!(replicas, Replicas::ReadEach);
    vec![
        ("lenient", Box::new(move |o| o.lenient = !lenient)),
        ("skip_optimizer", Box::new(move |o| o.skip_optimizer = !skip_optimizer)),
        ("skip_scheduler", Box::new(move |o| o.skip_scheduler = !skip_scheduler)),
        ("skip_scaler", Box::new(move |o| o.skip_scaler = !skip_scaler)),
        ("skip_ema", Box::new(move |o| o.skip_ema = !skip_ema)),
        ("skip_history", Box::new(move |o| o.skip_history = !skip_history)),
        ("keep_auto_saver", Box::new(move |o| o.keep_auto_saver = !keep_auto_saver)),
        ("model_code", Box::new(|o| o.model_code = Some(code()))),
        ("skip_callbacks", Box::new(move |o| o.skip_callbacks = !skip_callbacks)),
        ("replicas", Box::new(|o| o.replicas = Replicas::ReadOnce)),
    ]
}

#[test]
fn every_option_of_a_load_that_one_rank_gives_otherwise() {
    let memory = some_checkpoint();
    for (number, (field, change)) in (0..).zip(load_options()) {
        let (odd, memory) = (number % RANKS, memory.clone());
        let results = on_ranks(RANKS, move |group| {
            let storage: Arc<dyn Storage> = Arc::new(memory.clone());
            let mut options = options(&group, &storage);
            if group.rank().get() == odd {
                change(&mut options);
            }
            Handler::load("runs/a", options).map(drop)
        });
        assert_names(&results, &format!("`{field}`"), odd);
    }
}

#[test]
fn options_of_a_beginning_with_weights_alone() {
    let InitOptions { group, device, storage, strict, rename } = InitOptions::default();
    assert!(group.is_none() && device.is_none() && storage.is_none(), "of one rank alone");
    assert!(rename.is_empty(), "ranks with other rules: `renamed`");
    let memory = some_checkpoint();
    for odd in 0..RANKS {
        let inner = memory.clone();
        let results = on_ranks(RANKS, move |group| {
            let storage: Arc<dyn Storage> = Arc::new(inner.clone());
            let strict = if group.rank().get() == odd { !strict } else { strict };
            let (group, storage) = (Some(group), Some(storage));
            let options = InitOptions { group, storage, strict, ..InitOptions::default() };
            Handler::initialize_from_checkpoint("runs/a", None, options).map(drop)
        });
        assert_names(&results, "`strict`", odd);
    }
}

/// What a path is for.
type Verb = fn(&mut Handler, &str) -> Result<()>;

const VERBS: [(&str, Verb); 7] = [
    ("save", |h, at| h.save(at).map(drop)),
    ("save_single_file", |h, at| h.save_single_file(at).map(drop)),
    ("save_multi_files", |h, at| h.save_multi_files(at).map(drop)),
    ("restore", |h, at| h.restore(at, Atomicity::Atomic).map(drop)),
    ("initialize_weights", |h, at| h.initialize_weights(at, true).map(drop)),
    ("load", |h, at| {
        let group = Some(h.process_group().clone());
        Handler::load(at, LoadOptions { group, ..LoadOptions::default() }).map(drop)
    }),
    ("initialize_from_checkpoint", |h, at| {
        let group = Some(h.process_group().clone());
        let options = InitOptions { group, ..InitOptions::default() };
        Handler::initialize_from_checkpoint(at, None, options).map(drop)
    }),
];

/// The one error of all ranks, of which `odd` gives another path; nothing is there that was not
/// before.
fn with_paths(verb: Verb, odd: u32, usual: &'static str, other: &'static str) -> Error {
    let memory = some_checkpoint();
    let inner = memory.clone();
    let results = on_ranks(RANKS, move |group| {
        let storage: Arc<dyn Storage> = Arc::new(inner.clone());
        let mut handler = full(&group, &storage);
        let before = handler.state_hash().unwrap();
        let at = if group.rank().get() == odd { other } else { usual };
        let result = verb(&mut handler, at);
        assert_eq!(handler.state_hash().unwrap(), before, "changed");
        result
    });
    assert_eq!(entries(&memory, "runs"), ["a"]);
    one_error(&results)
}

#[test]
fn ranks_that_give_different_paths_are_told_so() {
    for (number, (name, verb)) in (0..).zip(VERBS) {
        let error = with_paths(verb, number % RANKS, "runs/one", "runs/two");
        assert_eq!(error.kind(), ErrorKind::Disagreement, "{name}: {error}");
        let text = error.to_string();
        assert!(text.contains("one") && text.contains("two"), "{name}: {error}");
    }
}

/// One rank saves into a directory, another into a file, or several files.
#[test]
fn ranks_that_save_in_different_ways_are_told_so() {
    let phases = ["unchanged", "plan file", "plan files"];
    let ways = VERBS.into_iter().zip(phases);
    let pairs = ways.clone().flat_map(|usual| ways.clone().map(move |other| (usual, other)));
    let mut count = 0;
    for (((name, usual), ours), ((other_name, other), theirs)) in pairs {
        if ours == theirs {
            continue;
        }
        let (odd, memory) = (count % RANKS, some_checkpoint());
        let inner = memory.clone();
        let results = on_ranks(RANKS, move |group| {
            let storage: Arc<dyn Storage> = Arc::new(inner.clone());
            let mut handler = full(&group, &storage);
            if group.rank().get() == odd {
                other(&mut handler, "runs/new")
            } else {
                usual(&mut handler, "runs/new")
            }
        });
        let what = format!("rank {odd} {other_name}, the others {name}");
        assert_eq!(entries(&memory, "runs"), ["a"], "{what}");
        let error = one_error(&results);
        assert_eq!(error.kind(), ErrorKind::Disagreement, "{what}: {error}");
        let text = error.to_string();
        let says = |phase: &str| text.contains(&format!("phase \"{phase}\""));
        assert!(says(ours) && says(theirs), "{what}: {text}");
        // Where the coordinator is the odd one, it is any of the others.
        let named = error.rank().map(|rank| rank.get());
        assert!(if odd == 0 { named > Some(0) } else { named == Some(odd) }, "{what}: {text}");
        count += 1;
    }
    assert_eq!(count, 6);
}

/// A path that can be no checkpoint's is an error of that rank alone, of which all must hear.
#[test]
fn a_path_that_is_none_on_one_rank_is_every_ranks_error() {
    for (number, (name, verb)) in (0..).zip(VERBS) {
        let odd = number % RANKS;
        let error = with_paths(verb, odd, "runs/one", "runs/..");
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{name}: {error}");
        assert_eq!(error.rank().map(|rank| rank.get()), Some(odd), "{name}: {error}");
    }
}
