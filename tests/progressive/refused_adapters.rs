//! Adapters that cannot be, and what is left after a refusal: everything as it was.

use tch_checkpoint::ErrorKind;
use tch_checkpoint::progressive::{LoraConfig, StackPrecision};

use super::models::{CONFIG, alone, bare, names, words};

fn config() -> LoraConfig {
    LoraConfig { rank: 2, ..LoraConfig::default() }
}

fn targets(globs: &[&str]) -> LoraConfig {
    LoraConfig { targets: globs.iter().map(|&glob| glob.to_owned()).collect(), ..config() }
}

#[test]
fn everything_that_is_wrong_with_a_configuration_is_said_at_once() {
    let _alone = alone();
    let wrong = LoraConfig { rank: 0, alpha: f64::NAN, dropout: 1.0, targets: Vec::new() };
    let error = bare(1).attach_adapters(0, &wrong).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    for what in ["rank", "alpha", "dropout", "targets"] {
        assert!(error.to_string().contains(what), "{what}: {error}");
    }
}

#[test]
fn each_wrong_value_is_refused_and_changes_nothing() {
    let _alone = alone();
    let width = usize::try_from(CONFIG.width).unwrap();
    let wrong = [
        LoraConfig { rank: 0, ..config() },
        LoraConfig { rank: width + 1, ..config() },
        LoraConfig { rank: usize::MAX, ..config() },
        LoraConfig { alpha: 0.0, ..config() },
        LoraConfig { alpha: -1.0, ..config() },
        LoraConfig { alpha: f64::INFINITY, ..config() },
        LoraConfig { alpha: f64::NAN, ..config() },
        LoraConfig { dropout: -0.1, ..config() },
        LoraConfig { dropout: 1.0, ..config() },
        LoraConfig { dropout: f64::NAN, ..config() },
        targets(&[]),
        targets(&["nothing"]),
        targets(&["fc", "nothing"]),
        targets(&["stacks.0.blocks.0.fc"]),
        targets(&["[a"]),
    ];
    let mut rack = bare(1);
    let (info, before) = (rack.info(), names(&rack));
    for config in wrong {
        let error = rack.attach_adapters(0, &config).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{config:?}: {error}");
        assert_eq!(rack.info(), info, "{config:?}");
        assert_eq!(names(&rack), before, "{config:?}");
    }
    rack.attach_adapters(0, &LoraConfig { rank: width, ..config() }).unwrap();
}

#[test]
fn a_rank_that_fits_some_layers_only_is_refused_for_all() {
    let _alone = alone();
    let mut rack = words(1);
    let before = names(&rack);
    // 7 is above the width, which every layer has on one side.
    let error = rack.attach_adapters(0, &LoraConfig { rank: 7, ..config() }).unwrap_err();
    assert!(error.tensor().is_some(), "{error}");
    assert_eq!(names(&rack), before);
}

#[test]
fn a_second_set_of_adapters_is_refused_and_the_first_stays() {
    let _alone = alone();
    let mut rack = bare(1);
    rack.attach_adapters(0, &config()).unwrap();
    let info = rack.info();
    let error = rack.attach_adapters(0, &LoraConfig { rank: 1, ..config() }).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert_eq!(rack.info(), info);
}

#[test]
fn a_stack_without_adapters_can_have_none_merged_or_detached() {
    let _alone = alone();
    let mut rack = bare(2);
    rack.attach_adapters(1, &config()).unwrap();
    let refused = [rack.merge_adapters(0), rack.unmerge_adapters(0), rack.detach_adapters(0)];
    for error in refused.map(Result::unwrap_err) {
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert!(error.to_string().contains('0'), "{error}");
    }
}

#[test]
fn a_stack_with_merged_adapters_is_not_cast_since_its_weights_could_not_come_back() {
    let _alone = alone();
    let mut rack = bare(1);
    rack.attach_adapters(0, &config()).unwrap();
    rack.merge_adapters(0).unwrap();
    let error = rack.set_precision(0, StackPrecision::Half).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    rack.unmerge_adapters(0).unwrap();
    rack.set_precision(0, StackPrecision::Half).unwrap();
}

#[test]
fn a_stored_configuration_with_a_field_that_nobody_knows_is_refused() {
    let known = serde_json::json!({"rank": 4, "alpha": 8.0, "dropout": 0.1, "targets": ["fc"]});
    let config: LoraConfig = serde_json::from_value(known.clone()).unwrap();
    assert_eq!((config.rank, config.dropout), (4, 0.1));
    assert_eq!(serde_json::to_value(&config).unwrap(), known);
    assert!(serde_json::from_str::<LoraConfig>(r#"{"rank": 4, "bias": "all"}"#).is_err());
    assert!(serde_json::from_str::<LoraConfig>(r#"{"rank": -4}"#).is_err());
}
