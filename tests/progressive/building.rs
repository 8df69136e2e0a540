//! How racks grow, and what stays as it was when they do.

use tch::Tensor;
use tch_checkpoint::ErrorKind;
use tch_checkpoint::progressive::{BuildingMode, Rack, RackBuilder, StackPrecision};

use super::models::{
    Bare, CONFIG, Config, alone, bare, copy, names, rows, same_bits, sentence, variable, words,
};

/// Numbers of the stacks, from the input on.
fn order(rack: &Rack<Bare>) -> Vec<u32> {
    rack.stacks().iter().map(|stack| stack.id().get()).collect()
}

#[test]
fn a_stack_keeps_its_identity_its_names_and_its_bits_when_others_are_prepended() {
    let _alone = alone();
    let mut rack = bare(1);
    let first = rack.stacks()[0].id();
    let weight = variable(&rack, "stacks.0.blocks.0.fc.weight");
    let before = copy(&weight);

    let below = rack.prepend_stack(1, None).unwrap();
    let above = rack.append_stack(2, None).unwrap();

    assert_eq!(order(&rack), [1, 0, 2]);
    assert_eq!(rack.index_of(below), Some(0));
    assert_eq!(rack.index_of(first), Some(1));
    assert_eq!(rack.index_of(above), Some(2));
    assert_eq!(
        names(&rack),
        [
            "stacks.0.blocks.0.fc.bias",
            "stacks.0.blocks.0.fc.weight",
            "stacks.1.blocks.0.fc.bias",
            "stacks.1.blocks.0.fc.weight",
            "stacks.2.blocks.0.fc.bias",
            "stacks.2.blocks.0.fc.weight",
            "stacks.2.blocks.1.fc.bias",
            "stacks.2.blocks.1.fc.weight",
        ]
    );
    let now = variable(&rack, "stacks.0.blocks.0.fc.weight");
    assert_eq!(now.data_ptr(), weight.data_ptr());
    assert!(same_bits(&now, &before));
}

#[test]
fn stacks_are_computed_in_their_order_and_not_in_that_of_their_numbers() {
    let _alone = alone();
    let mut rack = bare(1);
    rack.prepend_stack(1, None).unwrap();
    let linear = |id: u32, input: &Tensor| {
        let of = |what: &str| variable(&rack, &format!("stacks.{id}.blocks.0.fc.{what}"));
        input.linear(&of("weight"), Some(of("bias")))
    };
    let expected = linear(0, &linear(1, &rows()));
    let output = rack.forward(&rows(), false).unwrap();
    assert!(same_bits(&output, &expected), "{output} {expected}");
    let other_way = linear(1, &linear(0, &rows()));
    assert!(!same_bits(&output, &other_way));
}

#[test]
fn the_building_mode_says_where_added_stacks_go() {
    let _alone = alone();
    for (mode, expected) in [(BuildingMode::Append, [0, 1, 2]), (BuildingMode::Prepend, [2, 1, 0])]
    {
        let mut rack = RackBuilder::<Bare>::new(CONFIG).mode(mode).build().unwrap();
        for _ in 0..3 {
            rack.add_stack(1, None).unwrap();
        }
        assert_eq!(order(&rack), expected, "{mode:?}");
        assert_eq!(rack.info().building_mode, mode);
    }
}

#[test]
fn one_stack_too_many_is_refused_with_the_maximum_and_changes_nothing() {
    let _alone = alone();
    let mut rack = RackBuilder::<Bare>::new(CONFIG).max_stacks(2).stack(1, None).build().unwrap();
    rack.append_stack(1, None).unwrap();
    let (info, before) = (rack.info(), names(&rack));
    for refused in
        [rack.append_stack(1, None), rack.prepend_stack(1, None), rack.add_stack(1, None)]
    {
        let error = refused.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().contains('2'), "{error}");
    }
    assert_eq!(rack.info(), info);
    assert_eq!(names(&rack), before);
}

#[test]
fn a_builder_with_more_stacks_than_it_allows_builds_nothing() {
    let _alone = alone();
    let builder = RackBuilder::<Bare>::new(CONFIG).max_stacks(1).stack(1, None).stack(1, None);
    let error = builder.build().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
}

#[test]
fn a_stack_without_blocks_or_of_blocks_that_cannot_be_is_refused_and_leaves_no_names() {
    let _alone = alone();
    let mut rack = bare(1);
    let (info, before) = (rack.info(), names(&rack));
    let error = rack.append_stack(0, None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    let error = rack.append_stack(usize::MAX, None).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    assert_eq!(rack.info(), info);
    assert_eq!(names(&rack), before);

    let config = Config { width: 0, words: 1 };
    let error = RackBuilder::<Bare>::new(config).stack(1, None).build().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
}

#[test]
fn an_index_out_of_range_is_an_error_that_names_it() {
    let _alone = alone();
    let mut rack = bare(2);
    let faults = [
        rack.stack(2).map(|_| ()).unwrap_err(),
        rack.set_frozen(2, true).unwrap_err(),
        rack.set_precision(2, StackPrecision::Half).unwrap_err(),
        rack.attach_adapters(2, &Default::default()).unwrap_err(),
        rack.merge_adapters(2).unwrap_err(),
        rack.unmerge_adapters(2).unwrap_err(),
        rack.detach_adapters(2).unwrap_err(),
    ];
    for error in faults {
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert!(error.to_string().contains('2'), "{error}");
    }
    assert_eq!(rack.stack(usize::MAX).map(|_| ()).unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn the_description_counts_what_is_there() {
    let _alone = alone();
    let builder = RackBuilder::<super::models::Words>::new(CONFIG).max_stacks(9);
    let mut rack = builder.stack(2, None).stack(1, Some(StackPrecision::Bf16)).build().unwrap();
    rack.set_frozen(0, true).unwrap();
    let info = rack.info();
    assert_eq!((info.current_stacks, info.max_stacks, info.next_id), (2, 9, 2));
    assert!(info.has_embeddings && info.has_head);
    // Norm 2·6, up 12·6 + 12, down 6·12.
    let block = 12 + 72 + 12 + 72;
    let stack = |index: usize| &info.stack_info[index];
    assert_eq!((stack(0).stack_idx, stack(0).id.get(), stack(0).num_blocks), (0, 0, 2));
    assert_eq!((stack(1).stack_idx, stack(1).id.get(), stack(1).num_blocks), (1, 1, 1));
    assert_eq!((stack(0).total_parameters, stack(0).trainable_parameters), (2 * block, 0));
    assert_eq!((stack(1).total_parameters, stack(1).trainable_parameters), (block, block));
    assert!(stack(0).frozen && !stack(1).frozen);
    assert_eq!(stack(1).precision, StackPrecision::Bf16);
    assert!(info.stack_info.iter().all(|stack| stack.adapters.is_none()));
}

#[test]
fn a_trunk_and_what_comes_after_it_give_what_the_whole_gives() {
    let _alone = alone();
    let rack = words(3);
    let whole = rack.forward(&sentence(), false).unwrap();
    for index in 0..=3 {
        let trunk = rack.forward_trunk(index, &sentence(), false).unwrap();
        let output = rack.forward_from(index, &trunk, false).unwrap();
        assert!(same_bits(&output, &whole), "{index}");
    }
    let beyond = rack.forward_trunk(4, &sentence(), false).unwrap_err();
    assert_eq!(beyond.kind(), ErrorKind::InvalidInput, "{beyond}");
    let beyond = rack.forward_from(4, &rows(), false).unwrap_err();
    assert_eq!(beyond.kind(), ErrorKind::InvalidInput, "{beyond}");
}
