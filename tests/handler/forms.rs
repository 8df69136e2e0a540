//! Ways of saving besides the directory, and models that begin with weights of a checkpoint.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use safetensors::tensor::TensorView;
use tch::nn;
use tch_checkpoint::handler::{EarlyStopping, InitOptions, LoadOptions, Model, NNHandler};
use tch_checkpoint::storage::{LocalStorage, MemoryStorage, Storage};
use tch_checkpoint::tensor::Component;
use tch_checkpoint::torch::{
    Adam, EmaConfig, ExponentialLr, GradScalerConfig, ParamGroupConfig, SchedulerUnit, Sharded,
};
use tch_checkpoint::{ErrorKind, ProcessGroup, Result};

use crate::harness::*;
use crate::models::*;

/// Everything that a handler can have, so that every component has tensors.
fn with_parts(group: &ProcessGroup, storage: &Arc<dyn Storage>) -> NNHandler<Net> {
    let mut handler = bare(group, storage, 0.0);
    let patterns = vec!["*.bias".to_owned()];
    let groups = [ParamGroupConfig { names: patterns, lr: Some(5e-3), ..Default::default() }];
    let adam = Adam { lr: 1e-2, ..Adam::default() };
    handler.set_optimizer_groups(Sharded(adam), &groups).unwrap();
    handler.set_scheduler(ExponentialLr { gamma: 0.5 }, SchedulerUnit::Epoch).unwrap();
    handler.set_grad_scaler(GradScalerConfig::default()).unwrap();
    handler.set_ema(EmaConfig::default()).unwrap();
    equip(handler)
}

/// The state and the parameters of a handler that trained one epoch, saved in every form.
fn saved_in_every_form(ranks: u32) -> (MemoryStorage, String, Vec<f32>) {
    let _alone = exclusive();
    let (memory, _) = memory();
    let inner = memory.clone();
    let states = on_ranks_alone(ranks, move |group| {
        let storage: Arc<dyn Storage> = Arc::new(inner.clone());
        let mut handler = with_parts(&group, &storage);
        let best = EarlyStopping::new().monitor("loss").restore_best_weights(true);
        handler.add_callback(best).unwrap();
        handler.train(1).unwrap();
        handler.save("runs/directory").unwrap();
        // The parent is made.
        handler.save_single_file("new/deep/one.safetensors").unwrap();
        handler.save_single_file("new/deep/one.safetensors").unwrap();
        handler.save_multi_files("runs/many").unwrap();
        (handler.state_hash().unwrap(), parameters(&handler))
    });
    let (hash, weights) = states.into_iter().next().unwrap();
    (memory, hash, weights)
}

const FORMS: [&str; 4] =
    ["runs/directory", "new/deep/one.safetensors", "runs/many", "runs/many_model.safetensors"];

pub fn init(group: &ProcessGroup, storage: &Arc<dyn Storage>) -> InitOptions {
    let (group, storage) = (Some(group.clone()), Some(storage.clone()));
    InitOptions { group, storage, ..InitOptions::default() }
}

/// The whole state comes back from each form, on any world size.
#[test]
fn every_form_brings_back_the_whole_state() {
    for ranks in [1, 2] {
        let (memory, hash, _) = saved_in_every_form(ranks);
        let mut names = vec!["directory".to_owned()];
        let components = ["callbacks", "ema", "model", "optimizer"];
        names.extend(components.map(|component| format!("many_{component}.safetensors")));
        assert_eq!(entries(&memory, "runs"), names);
        assert_eq!(entries(&memory, "new/deep"), ["one.safetensors"]);
        for form in FORMS {
            for loading in [1, 2, 3] {
                let (inner, expected) = (memory.clone(), hash.clone());
                on_ranks(loading, move |group| {
                    let storage: Arc<dyn Storage> = Arc::new(inner.clone());
                    let mut handler = loaded(&group, &storage, form).unwrap();
                    assert_eq!(handler.state_hash().unwrap(), expected, "{form}");
                    assert_eq!((handler.epoch(), handler.step()), (1, 3));
                    assert_eq!(handler.history().epochs(), 1);
                    assert_eq!(handler.scheduler().unwrap().steps_done(), 1);
                    handler.add_callback(EarlyStopping::new().monitor("loss")).unwrap();
                    assert_eq!(handler.callback_report().restored.len(), 1, "{form}");
                });
            }
        }
    }
}

/// Splits on disk, by a process without ranks.
#[test]
fn a_single_file_is_split_next_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("x.safetensors");
    let at = file.clone();
    on_ranks(1, move |group| {
        let storage: Arc<dyn Storage> = Arc::new(LocalStorage::new());
        let handler = usual(&group, &storage);
        handler.save_single_file(&at).unwrap();
        NNHandler::<Net>::save_multi_from_single(&at, None).unwrap();
        let split = loaded(&group, &storage, at.with_extension("").to_str().unwrap()).unwrap();
        assert_eq!(split.state_hash().unwrap(), handler.state_hash().unwrap());
        let model = [Component::model()];
        let again = NNHandler::<Net>::save_multi_from_single(&at, Some(&model)).map(drop);
        assert_eq!(again.unwrap_err().kind(), ErrorKind::AlreadyExists);
    });
    assert!(dir.path().join("x_optimizer.safetensors").exists());
}

#[test]
fn saving_multi_files_leaves_the_handler_as_it_was() {
    let (_, storage) = memory();
    on_ranks(1, move |group| {
        let handler = usual(&group, &storage);
        let before = handler.state_hash().unwrap();
        handler.save_multi_files("runs/a").unwrap();
        handler.save_single_file("runs/b").unwrap();
        let again = loaded(&group, &storage, "runs/b").unwrap();
        assert_eq!(again.config().hidden, handler.config().hidden);
        assert_eq!(again.state_hash().unwrap(), before);
    });
}

/// Weights from every form of a full checkpoint, on several ranks,
/// with fresh counters and no optimizer, and the model built from the stored configuration.
#[test]
fn weights_come_from_every_form_on_any_world_size() {
    let (memory, _, weights) = saved_in_every_form(2);
    for form in FORMS {
        for ranks in [1, 3] {
            let (inner, expected) = (memory.clone(), weights.clone());
            on_ranks(ranks, move |group| {
                let storage: Arc<dyn Storage> = Arc::new(inner.clone());
                let options = init(&group, &storage);
                let handler = NNHandler::<Net>::initialize_from_checkpoint(form, None, options);
                let handler = handler.unwrap();
                assert_eq!(parameters(&handler), expected, "{form}");
                assert!(handler.optimizer().is_none());
                assert_eq!(
                    (handler.epoch(), handler.step(), handler.history().epochs()),
                    (0, 0, 0)
                );
            });
        }
    }
}

#[test]
fn a_live_handler_takes_weights_and_begins_anew() {
    let (memory, _, weights) = saved_in_every_form(1);
    let _alone = exclusive();
    on_ranks_alone(2, move |group| {
        let storage: Arc<dyn Storage> = Arc::new(memory.clone());
        let mut handler = with_parts(&group, &storage);
        handler.auto_save(1, "auto", "e{epoch}_{loss:.9f}").unwrap().overwrite(true);
        handler.train(2).unwrap();
        handler.train_steps(1).unwrap();
        handler.initialize_weights("new/deep/one.safetensors", true).unwrap();
        assert_eq!(parameters(&handler), weights);
        assert_eq!((handler.epoch(), handler.step(), handler.history().epochs()), (0, 0, 0));
        assert_eq!(handler.samples_in_epoch(), 0);
        let mut fresh = with_parts(&group, &storage);
        tch::no_grad(|| {
            for (name, mut tensor) in fresh.vars().variables() {
                tensor.copy_(&handler.vars().variables()[&name]);
            }
        });
        // Averages begin at the weights.
        fresh.set_ema(EmaConfig::default()).unwrap();
        assert_eq!(handler.state_hash().unwrap(), fresh.state_hash().unwrap());
        let groups = handler.optimizer().unwrap().groups();
        assert_eq!(groups.iter().map(|group| group.lr).collect::<Vec<_>>(), [1e-2, 5e-3]);
        let former = visible(&*storage, "auto");
        assert_eq!(former.len(), 1);
        handler.train(1).unwrap();
        let names = visible(&*storage, "auto");
        assert!(names.len() == 2 && names.contains(&former[0]), "{names:?}: not its own removed");
    });
}

/// The weights of a [`Net`] as another tool would keep them, under names made by `rename`.
pub fn plain_file(memory: &MemoryStorage, at: &str, rename: impl Fn(&str) -> String) {
    let shapes: [(&str, Vec<usize>); 4] = [
        ("input.weight", vec![4, 6]),
        ("input.bias", vec![6]),
        ("output.weight", vec![6, 1]),
        ("running", vec![4]),
    ];
    let bytes: BTreeMap<String, (Vec<usize>, Vec<u8>)> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let values = (0..shape.iter().product()).map(|i: usize| i as f32 + 0.5);
            (rename(name), (shape, values.flat_map(f32::to_le_bytes).collect()))
        })
        .collect();
    let view = |(shape, data)| TensorView::new(safetensors::Dtype::F32, shape, data).unwrap();
    let views = bytes.iter().map(|(name, (shape, data))| (name, view((shape.clone(), data))));
    let file = safetensors::serialize(views, None).unwrap();
    memory.create_dir_all(Path::new(at).parent().unwrap()).unwrap();
    memory.write(Path::new(at), &file).unwrap();
}

pub fn config() -> Option<NetConfig> {
    Some(NetConfig { hidden: 6, dropout: 0.0 })
}

/// What `initialize_from_checkpoint` gives on two ranks: the first and the last of the parameters.
fn ends(memory: &MemoryStorage, at: &'static str) -> Vec<Result<(f32, f32)>> {
    let inner = memory.clone();
    on_ranks(2, move |group| {
        let storage: Arc<dyn Storage> = Arc::new(inner.clone());
        let options = init(&group, &storage);
        let handler = NNHandler::<Net>::initialize_from_checkpoint(at, config(), options)?;
        let all = parameters(&handler);
        Ok((all[0], all[all.len() - 1]))
    })
}

/// Files of other tools, also of wrapped and compiled models.
#[test]
fn prefixes_that_all_names_have_are_looked_through() {
    let prefixes = ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.module."];
    for prefix in prefixes {
        let (memory, _) = memory();
        plain_file(&memory, "w/x.safetensors", |name| format!("{prefix}{name}"));
        for verdict in ends(&memory, "w/x.safetensors") {
            assert_eq!(verdict.unwrap(), (0.5, 5.5), "{prefix}");
        }
    }
    // Not all names have it: nothing is removed.
    let (memory, _) = memory();
    plain_file(&memory, "w/x.safetensors", |name| {
        if name == "running" { name.to_owned() } else { format!("module.{name}") }
    });
    let error = one_error(&ends(&memory, "w/x.safetensors"));
    assert_eq!(error.kind(), ErrorKind::Mismatch, "{error}");
    assert!(error.message().contains("module.input.bias"), "{error}");
}

/// A model all of whose variables belong to a child called `module`.
struct Inner;

impl Model for Inner {
    type Config = i64;

    fn new(path: &nn::Path<'_>, _: &i64) -> Self {
        let child = path / "module";
        let _ = (&child / "input").var_copy("weight", &ramp(&[4, 6], 1.0));
        let _ = (&child / "input").zeros("bias", &[6]);
        let _ = (&child / "output").zeros("weight", &[6, 1]);
        let _ = child.zeros_no_train("running", &[4]);
        Self
    }

    fn forward(&self, input: &tch::Tensor, _: bool) -> tch::Tensor {
        input.shallow_clone()
    }
}

/// Saved as it is, and saved wrapped once more.
#[test]
fn a_model_with_a_child_called_module_loads() {
    for prefix in ["module.", "module.module.", "_orig_mod.module."] {
        let (memory, _) = memory();
        plain_file(&memory, "w/x.safetensors", |name| format!("{prefix}{name}"));
        on_ranks(1, move |group| {
            let storage: Arc<dyn Storage> = Arc::new(memory.clone());
            let options = init(&group, &storage);
            let at = "w/x.safetensors";
            let loaded = NNHandler::<Inner>::initialize_from_checkpoint(at, Some(0), options);
            assert_eq!(parameters(&loaded.unwrap())[0], 0.5, "{prefix}");
        });
    }
    // And its own checkpoints.
    let (_, storage) = memory();
    on_ranks(1, move |group| {
        let builder = NNHandler::<Inner>::builder(0).process_group(&group);
        let handler = builder.storage(storage.clone()).build().unwrap();
        handler.save_single_file("runs/inner").unwrap();
        let options = init(&group, &storage);
        let again = NNHandler::<Inner>::initialize_from_checkpoint("runs/inner", None, options);
        assert_eq!(parameters(&again.unwrap()), parameters(&handler));
    });
}

/// Strict unless asked otherwise; every difference at once; the live model is untouched.
#[test]
fn names_that_do_not_fit_are_all_listed_and_nothing_changes() {
    let (memory, _) = memory();
    plain_file(&memory, "w/x.safetensors", |name| match name {
        "input.bias" => "output.weight".to_owned(),
        "output.weight" => "other.bias".to_owned(),
        name => name.to_owned(),
    });
    let inner = memory.clone();
    let verdicts = on_ranks(2, move |group| {
        let storage: Arc<dyn Storage> = Arc::new(inner.clone());
        let mut handler = usual(&group, &storage);
        let before = handler.state_hash().unwrap();
        let refused = handler.initialize_weights("w/x.safetensors", true).map(drop);
        assert_eq!(handler.state_hash().unwrap(), before);
        refused
    });
    let error = one_error(&verdicts);
    assert_eq!(error.kind(), ErrorKind::Mismatch, "{error}");
    let text = error.message();
    // Missing, of another shape (which broadcasting would accept), unexpected.
    for name in ["input.bias", "output.weight (wanted F32 [6, 1], found F32 [6])", "other.bias"] {
        assert!(text.contains(name), "{name} is not in: {text}");
    }
    // All of it wrong: never random weights in silence.
    plain_file(&memory, "w/y.safetensors", |name| format!("backbone.{name}"));
    assert_eq!(one_error(&ends(&memory, "w/y.safetensors")).kind(), ErrorKind::Mismatch);
}

#[test]
fn what_is_not_strict_keeps_what_the_file_lacks_and_leaves_ranks_equal() {
    let (memory, _) = memory();
    plain_file(&memory, "w/x.safetensors", |name| name.replace("input.bias", "unknown"));
    let first = on_ranks(2, move |group| {
        let storage: Arc<dyn Storage> = Arc::new(memory.clone());
        let options = InitOptions { strict: false, ..init(&group, &storage) };
        let at = "w/x.safetensors";
        let handler = NNHandler::<Net>::initialize_from_checkpoint(at, config(), options).unwrap();
        let mut live = usual(&group, &storage);
        live.initialize_weights(at, false).unwrap();
        assert_eq!(parameters(&live), parameters(&handler));
        parameters(&handler)
    });
    assert_eq!(first[0], first[1]);
    assert_eq!((first[0][0], first[0][6]), (0.0, 0.5), "the bias as built, then what was loaded");
}

/// A full load wants a manifest; weights alone need a configuration from somewhere.
#[test]
fn a_file_of_another_tool_has_no_state_and_no_configuration() {
    let (memory, storage) = memory();
    plain_file(&memory, "w/x.safetensors", str::to_owned);
    on_ranks(1, move |group| {
        let load_options = LoadOptions { ..options(&group, &storage) };
        let error = NNHandler::<Net>::load("w/x.safetensors", load_options).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Incompatible, "{error}");
        let none = init(&group, &storage);
        let at = "w/x.safetensors";
        let error = NNHandler::<Net>::initialize_from_checkpoint(at, None, none).map(drop);
        assert_eq!(error.unwrap_err().kind(), ErrorKind::InvalidInput);
    });
}

/// A directory as Hugging Face tools write it: with one file, or several and an index.
#[test]
fn directories_of_hugging_face_tools_give_weights() {
    let (memory, _) = memory();
    plain_file(&memory, "w/hf/model.safetensors", str::to_owned);
    for verdict in ends(&memory, "w/hf") {
        assert_eq!(verdict.unwrap(), (0.5, 5.5));
    }
    let index = r#"{"weight_map":{"running":"model-00001-of-00001.safetensors"}}"#;
    plain_file(&memory, "w/two/model-00001-of-00001.safetensors", str::to_owned);
    // A file beside it is no part of it, whatever its name ends in.
    plain_file(&memory, "w/two_model.safetensors", |name| format!("other.{name}"));
    memory.write(Path::new("w/two/model.safetensors.index.json"), index.as_bytes()).unwrap();
    for verdict in ends(&memory, "w/two") {
        assert_eq!(verdict.unwrap(), (0.5, 5.5));
    }
    let outside = index.replace("model-00001", "../model-00001");
    memory.write(Path::new("w/two/model.safetensors.index.json"), outside.as_bytes()).unwrap();
    assert_eq!(one_error(&ends(&memory, "w/two")).kind(), ErrorKind::Corrupt);
}

/// Headers of files that nobody vouches for.
#[test]
fn a_malformed_file_of_another_tool_is_refused() {
    let (memory, _) = memory();
    plain_file(&memory, "w/x.safetensors", str::to_owned);
    let good = memory.read(Path::new("w/x.safetensors")).unwrap();
    let claims = |len: u64| [&len.to_le_bytes()[..], &good[8..]].concat();
    let swapped = String::from_utf8_lossy(&good[..400]).replace("F32", "F16").into_bytes();
    let swapped = [&swapped[..], &good[400..]].concat();
    for bad in [claims(u64::MAX), claims(99_999_999), good[..good.len() - 1].to_vec(), swapped] {
        memory.write(Path::new("w/x.safetensors"), &bad).unwrap();
        let error = one_error(&ends(&memory, "w/x.safetensors"));
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    }
}

#[test]
fn ranks_that_give_different_configurations_disagree() {
    let (memory, _) = memory();
    plain_file(&memory, "w/x.safetensors", str::to_owned);
    let verdicts = on_ranks(2, move |group| {
        let storage: Arc<dyn Storage> = Arc::new(memory.clone());
        let dropout = if group.is_coordinator() { 0.0 } else { 0.5 };
        let (config, options) = (NetConfig { hidden: 6, dropout }, init(&group, &storage));
        let at = "w/x.safetensors";
        NNHandler::<Net>::initialize_from_checkpoint(at, Some(config), options).map(drop)
    });
    assert_eq!(one_error(&verdicts).kind(), ErrorKind::Disagreement);
}
