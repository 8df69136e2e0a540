//! Precisions: they cast the tensors, and nothing but those of their stack.

use tch::{Kind, Tensor};
use tch_checkpoint::ErrorKind;
use tch_checkpoint::progressive::{LoraConfig, Rack, RackBuilder, StackPrecision};

use super::models::{
    Bare, CONFIG, Words, alone, bare, copy, distance, names, rows, same_bits, sentence, variable,
    words,
};

const SHORT: [StackPrecision; 2] = [StackPrecision::Half, StackPrecision::Bf16];

/// Kinds of the variables whose names begin so.
fn kinds(rack: &Rack<Bare>, prefix: &str) -> Vec<Kind> {
    let of = names(rack).into_iter().filter(|name| name.starts_with(prefix));
    of.map(|name| variable(rack, &name).kind()).collect()
}

#[test]
fn a_precision_casts_the_tensors_of_its_stack_and_no_others() {
    let _alone = alone();
    let mut rack = bare(12);
    rack.set_precision(1, StackPrecision::Bf16).unwrap();
    assert_eq!(kinds(&rack, "stacks.1."), [Kind::BFloat16; 2]);
    for other in [0, 10, 11] {
        assert_eq!(kinds(&rack, &format!("stacks.{other}.")), [Kind::Float; 2], "{other}");
    }
    rack.set_precision(10, StackPrecision::Half).unwrap();
    assert_eq!(kinds(&rack, "stacks.10."), [Kind::Half; 2]);
    assert_eq!(kinds(&rack, "stacks.1."), [Kind::BFloat16; 2]);
    assert_eq!(rack.stack(10).unwrap().precision(), StackPrecision::Half);
    assert_eq!(rack.info().stack_info[1].precision, StackPrecision::Bf16);
}

#[test]
fn a_precision_goes_to_the_stack_at_the_index_wherever_its_number_is() {
    let _alone = alone();
    let mut rack = bare(1);
    rack.prepend_stack(1, None).unwrap();
    rack.set_precision(0, StackPrecision::Half).unwrap();
    assert_eq!(kinds(&rack, "stacks.1."), [Kind::Half; 2]);
    assert_eq!(kinds(&rack, "stacks.0."), [Kind::Float; 2]);
}

#[test]
fn a_cast_rounds_the_values_once_and_back_widens_them() {
    let _alone = alone();
    for precision in SHORT {
        let mut rack = bare(1);
        let name = "stacks.0.blocks.0.fc.weight";
        let before = copy(&variable(&rack, name));
        rack.set_precision(0, precision).unwrap();
        let cast = copy(&variable(&rack, name));
        assert!(same_bits(&cast, &before.to_kind(precision.kind())));
        rack.set_precision(0, StackPrecision::Full).unwrap();
        assert!(same_bits(&variable(&rack, name), &cast.to_kind(Kind::Float)));
        assert!(distance(&variable(&rack, name), &before) > 0.0, "nothing was rounded");
    }
}

#[test]
fn a_stack_computes_in_its_precision_and_hears_all_others() {
    let _alone = alone();
    let full = bare(2).forward(&rows(), false).unwrap();
    for precision in SHORT {
        let mut rack = bare(2);
        rack.set_precision(0, precision).unwrap();
        let hidden = rack.forward_trunk(1, &rows(), false).unwrap();
        assert_eq!(hidden.kind(), precision.kind());
        let output = rack.forward(&rows(), false).unwrap();
        assert_eq!(output.kind(), Kind::Float);
        assert!(distance(&output, &full) < 0.05, "{precision:?}");
        assert!(distance(&output, &full) > 0.0, "{precision:?}");
    }
}

#[test]
fn gradients_come_in_the_kind_of_each_stack_and_reach_the_embeddings() {
    let _alone = alone();
    for precision in SHORT {
        let builder = RackBuilder::<Words>::new(CONFIG).stack(1, Some(precision)).stack(1, None);
        let rack = builder.build().unwrap();
        rack.forward(&sentence(), true).unwrap().square().sum(Kind::Float).backward();
        for (name, kind) in [
            ("embeddings.weight", Kind::Float),
            ("stacks.0.blocks.0.up.weight", precision.kind()),
            ("stacks.0.blocks.0.norm.weight", precision.kind()),
            ("stacks.1.blocks.0.up.weight", Kind::Float),
        ] {
            let gradient = variable(&rack, name).grad();
            assert!(gradient.defined(), "{precision:?} {name}");
            assert_eq!(gradient.kind(), kind, "{precision:?} {name}");
            assert!(gradient.abs().max().double_value(&[]) > 0.0, "{precision:?} {name}");
            assert_eq!(gradient.isfinite().all().int64_value(&[]), 1, "{precision:?} {name}");
        }
    }
}

#[test]
fn the_head_gets_full_precision_after_any_stack() {
    let _alone = alone();
    let full = words(1).forward(&sentence(), false).unwrap();
    for precision in SHORT {
        let rack = RackBuilder::<Words>::new(CONFIG).stack(2, Some(precision)).build().unwrap();
        let output = rack.forward(&sentence(), false).unwrap();
        assert_eq!(output.kind(), Kind::Float);
        assert_eq!(variable(&rack, "embeddings.weight").kind(), Kind::Float);
        assert!(distance(&output, &full) < 0.2, "{precision:?}");
    }
}

#[test]
fn adapters_are_of_the_precision_of_their_stack() {
    let _alone = alone();
    for precision in SHORT {
        let mut rack = bare(1);
        let config = LoraConfig { rank: 2, ..LoraConfig::default() };
        rack.attach_adapters(0, &config).unwrap();
        rack.set_precision(0, precision).unwrap();
        assert_eq!(kinds(&rack, "stacks.0."), [precision.kind(); 4]);
        let first = rack.forward(&rows(), false).unwrap();
        assert_eq!(first.kind(), precision.kind());

        let mut other = RackBuilder::<Bare>::new(CONFIG).stack(1, Some(precision)).build().unwrap();
        other.attach_adapters(0, &config).unwrap();
        assert_eq!(kinds(&other, "stacks.0."), [precision.kind(); 4]);
        for name in names(&rack) {
            assert!(same_bits(&variable(&rack, &name), &variable(&other, &name)), "{name}");
        }
    }
}

#[test]
fn what_is_added_without_a_precision_has_the_default_one() {
    let _alone = alone();
    let builder = RackBuilder::<Bare>::new(CONFIG).default_precision(StackPrecision::Bf16);
    let mut rack = builder.stack(1, None).stack(1, Some(StackPrecision::Full)).build().unwrap();
    rack.append_stack(1, None).unwrap();
    let precisions: Vec<_> = rack.stacks().iter().map(|stack| stack.precision()).collect();
    assert_eq!(precisions, [StackPrecision::Bf16, StackPrecision::Full, StackPrecision::Bf16]);
    assert_eq!(kinds(&rack, "stacks.2."), [Kind::BFloat16; 2]);
    assert_eq!(rack.info().default_precision, StackPrecision::Bf16);
}

#[test]
fn a_cast_is_refused_where_a_gradient_would_be_lost_and_casts_nothing() {
    let _alone = alone();
    let mut rack = bare(1);
    // Of two variables the second in order of names: the first must not be cast either.
    variable(&rack, "stacks.0.blocks.0.fc.weight").square().sum(Kind::Float).backward();
    let error = rack.set_precision(0, StackPrecision::Half).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    assert_eq!(kinds(&rack, "stacks.0."), [Kind::Float; 2]);
    assert_eq!(rack.stack(0).unwrap().precision(), StackPrecision::Full);
}

#[test]
fn buffers_of_whole_numbers_stay_whole() {
    let _alone = alone();
    let mut rack =
        RackBuilder::<super::ties::Counting>::new(CONFIG).stack(1, None).build().unwrap();
    rack.set_precision(0, StackPrecision::Half).unwrap();
    assert_eq!(variable(&rack, "stacks.0.blocks.0.count").kind(), Kind::Int64);
    assert_eq!(variable(&rack, "stacks.0.blocks.0.fc.weight").kind(), Kind::Half);
}

#[test]
fn precisions_are_read_by_their_usual_names() {
    for (text, precision) in [
        ("full", StackPrecision::Full),
        ("half", StackPrecision::Half),
        ("bf16", StackPrecision::Bf16),
        ("bfloat16", StackPrecision::Bf16),
    ] {
        assert_eq!(text.parse::<StackPrecision>().unwrap(), precision);
    }
    assert_eq!(serde_json::to_string(&StackPrecision::Bf16).unwrap(), "\"bf16\"");
    assert_eq!(serde_json::from_str::<StackPrecision>("\"half\"").unwrap(), StackPrecision::Half);
}

#[test]
fn precisions_that_are_no_casts_are_refused_with_those_that_are() {
    for text in ["nvfp4", "qlora", "int8"] {
        let error = text.parse::<StackPrecision>().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{text}");
        let help = error.help().unwrap();
        assert!(["full", "half", "bf16"].iter().all(|name| help.contains(name)), "{help}");
        assert!(error.to_string().contains(text), "{error}");
    }
    for text in ["", "Full", "quarter", "\u{1b}[31m", &"x".repeat(1 << 20)] {
        let error = text.parse::<StackPrecision>().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().len() < 400 && !error.to_string().contains('\u{1b}'));
        assert!(serde_json::from_value::<StackPrecision>(text.into()).is_err());
    }
}

/// What libtorch cannot compute in `Half` on this device would be an error or a panic here.
#[test]
fn blocks_of_norm_and_linear_layers_train_in_every_precision() {
    let _alone = alone();
    for precision in [StackPrecision::Full, StackPrecision::Half, StackPrecision::Bf16] {
        let rack = RackBuilder::<Words>::new(CONFIG).stack(2, Some(precision)).build().unwrap();
        let sgd = tch_checkpoint::torch::Sgd { lr: 0.05, ..Default::default() };
        let mut optimizer = tch_checkpoint::torch::Optimizer::new(sgd, rack.store()).unwrap();
        let targets = Tensor::from_slice(&[3i64, 1, 4, 2, 2, 0]);
        let mut losses = Vec::new();
        for _ in 0..30 {
            optimizer.zero_grad().unwrap();
            let logits = rack.forward(&sentence(), true).unwrap().reshape([6, CONFIG.words]);
            let loss = logits.cross_entropy_for_logits(&targets);
            losses.push(loss.double_value(&[]));
            loss.backward();
            optimizer.step().unwrap();
        }
        let (first, last) = (losses[0], losses[29]);
        assert!(last.is_finite() && last < 0.8 * first, "{precision:?}: {first} to {last}");
    }
}
