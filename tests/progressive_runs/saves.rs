//! Racks and stacks alone.

use tch::{Device, Tensor};
use tch_checkpoint::progressive::{
    LoraConfig, Rack, StackPrecision, get_rack_info, get_stack_info,
};

use crate::letters::{Letters, alone, bits, on_ranks, rack};

/// Two stacks of different kinds, one of them frozen and with adapters that do something.
fn varied() -> Rack<Letters> {
    let mut rack = rack();
    rack.append_stack(2, None).unwrap();
    rack.prepend_stack(1, Some(StackPrecision::Bf16)).unwrap();
    rack.set_frozen(1, true).unwrap();
    rack.attach_adapters(1, &LoraConfig { rank: 3, ..LoraConfig::default() }).unwrap();
    for (name, variable) in rack.store().variables() {
        if name.ends_with("lora_B") {
            tch::no_grad(|| drop(variable.shallow_clone().fill_(0.25)));
        }
    }
    rack
}

fn input() -> Tensor {
    Tensor::from_slice(&[1i64, 5, 9, 0])
}

#[test]
fn a_rack_comes_back_with_structure_precision_flags_and_adapters() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("deep/er/rack");
    let path = at.clone();
    on_ranks(2, move |group| {
        let saved = varied();
        saved.save_rack(&group, &path).unwrap();
        let opened = Rack::<Letters>::open_rack(&group, &path, Device::Cpu).unwrap();
        assert_eq!(opened.info(), saved.info());
        assert!(bits(&opened) == bits(&saved));
        assert_eq!(
            opened.forward(&input(), false).unwrap(),
            saved.forward(&input(), false).unwrap()
        );
        let grads = |rack: &Rack<Letters>| -> Vec<(String, bool)> {
            let mut all: Vec<_> = rack.store().variables().into_iter().collect();
            all.sort_by(|a, b| a.0.cmp(&b.0));
            all.into_iter().map(|(name, tensor)| (name, tensor.requires_grad())).collect()
        };
        assert_eq!(grads(&opened), grads(&saved));
        let mut live = rack();
        live.load_rack(&group, &path).unwrap();
        assert!(bits(&live) == bits(&saved), "an empty rack takes the structure");
        // What came keeps growing where the other stopped.
        assert_eq!(live.append_stack(1, None).unwrap().get(), 2);
    });
    assert_eq!(get_rack_info(&at).unwrap(), varied().info());
    assert_eq!(get_stack_info(&at, 1).unwrap(), varied().info().stack_info[1]);
}

#[test]
fn merged_adapters_are_saved_apart_and_merged_again() {
    alone(|group| {
        let dir = tempfile::tempdir().unwrap();
        let (mut saved, plain) = (varied(), varied());
        saved.merge_adapters(1).unwrap();
        saved.save_rack(&group, dir.path().join("a")).unwrap();
        let mut opened =
            Rack::<Letters>::open_rack(&group, dir.path().join("a"), Device::Cpu).unwrap();
        assert!(bits(&opened) == bits(&saved) && opened.info() == saved.info());
        opened.unmerge_adapters(1).unwrap();
        assert!(bits(&opened) == bits(&plain), "the base is what it was");
    });
}

#[test]
fn a_stack_goes_into_its_own_place_and_into_another() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_path_buf();
    on_ranks(2, move |group| {
        let saved = varied();
        let path = root.join("stack");
        saved.save_stack(&group, 1, &path).unwrap();
        assert_eq!(get_stack_info(&path, 0).unwrap(), saved.info().stack_info[1]);
        let mut other = rack();
        for _ in 0..3 {
            other.append_stack(2, None).unwrap();
        }
        let before = bits(&other);
        other.load_stack(&group, 2, &path).unwrap();
        let (theirs, ours) = (bits(&saved), bits(&other));
        for (name, bytes) in &theirs {
            if let Some(rest) = name.strip_prefix("stacks.0.") {
                assert!(ours[&format!("stacks.2.{rest}")] == *bytes, "{rest}");
            }
        }
        for (name, bytes) in &before {
            if !name.starts_with("stacks.2.") {
                assert!(ours[name] == *bytes, "{name} is another one's");
            }
        }
        let info = &other.info().stack_info[2];
        assert!(info.frozen && info.adapters.is_some(), "{info:?}");
        assert_eq!(info.id.get(), 2, "it keeps its identity");
    });
}

/// The adapters that a stack had go, if the one that comes has none.
#[test]
fn adapters_of_before_do_not_stay() {
    alone(|group| {
        let dir = tempfile::tempdir().unwrap();
        let mut rack = varied();
        let path = dir.path().join("bare");
        {
            let mut bare = crate::letters::rack();
            bare.append_stack(2, None).unwrap();
            bare.save_stack(&group, 0, &path).unwrap();
        }
        rack.merge_adapters(1).unwrap();
        rack.load_stack(&group, 1, &path).unwrap();
        assert!(rack.info().stack_info[1].adapters.is_none());
        assert!(rack.store().variables().keys().all(|name| !name.contains("lora")));
    });
}

#[test]
fn a_rack_becomes_again_what_it_was() {
    let (mut rack, whole) = (varied(), varied());
    let state = rack.get_model_state().unwrap();
    for (_, variable) in rack.store().variables() {
        tch::no_grad(|| drop(variable.shallow_clone().fill_(7.0)));
    }
    rack.append_stack(1, None).unwrap();
    rack.detach_adapters(1).unwrap();
    rack.load_model_state(&state).unwrap();
    assert!(bits(&rack) == bits(&whole) && rack.info() == whole.info());
    assert_eq!(state.info(), &whole.info());
    let config = crate::letters::Config { width: 17 };
    let mut wider =
        tch_checkpoint::progressive::RackBuilder::<Letters>::new(config).build().unwrap();
    let before = bits(&wider);
    let error = wider.load_model_state(&state).unwrap_err();
    assert_eq!(error.kind(), tch_checkpoint::ErrorKind::Mismatch);
    assert!(bits(&wider) == before);
}

/// Head and embeddings are part of a rack, also of one without stacks.
#[test]
fn the_ends_come_back_too() {
    alone(|group| {
        let dir = tempfile::tempdir().unwrap();
        let saved = rack();
        saved.save_rack(&group, dir.path().join("a")).unwrap();
        let opened = Rack::<Letters>::open_rack(&group, dir.path().join("a"), Device::Cpu).unwrap();
        assert_eq!(bits(&opened).len(), 3, "embeddings, weight and bias of the head");
        assert!(bits(&opened) == bits(&saved));
    });
}
