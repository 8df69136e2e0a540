//! Weights under names that are not those of the model.

use std::sync::Arc;

use tch_checkpoint::ErrorKind;
use tch_checkpoint::handler::{InitOptions, NNHandler};
use tch_checkpoint::select::Rename;
use tch_checkpoint::storage::Storage;

use crate::forms::{config, init, plain_file};
use crate::harness::*;
use crate::models::*;

#[test]
fn weights_come_from_where_the_rules_say() {
    let (memory, _) = memory();
    plain_file(&memory, "w/own.safetensors", str::to_owned);
    plain_file(&memory, "w/others.safetensors", |name| match name.split_once('.') {
        Some(("input", slot)) => format!("net.backbone.{slot}"),
        _ => format!("net.{name}"),
    });
    let ends = on_ranks(2, move |group| {
        let storage: Arc<dyn Storage> = Arc::new(memory.clone());
        let begin = |from: &str, rules: &[(&str, &str)]| {
            let rename = rules.iter().map(|(from, to)| Rename::new(*from, *to)).collect();
            let options = InitOptions { rename, ..init(&group, &storage) };
            NNHandler::<Net>::initialize_from_checkpoint(from, config(), options)
        };
        let own = parameters(&begin("w/own.safetensors", &[]).unwrap());
        let rules = [("net.backbone.*", "input.*"), ("net.*", "*")];
        let mapped = parameters(&begin("w/others.safetensors", &rules).unwrap());
        // Without its rule the layer is not found, and what there is is named.
        let error = begin("w/others.safetensors", &rules[1..]).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Mismatch);
        assert!(error.to_string().contains("net.backbone.weight"), "{error}");
        // A rule that could never apply is told on every rank.
        let twice = [("a.*", "input.*"), ("b.*", "input.*")];
        let error = begin("w/own.safetensors", &twice).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        // Ranks with other rules would have other weights.
        let odd = [("x", "y"), ("net.backbone.*", "input.*"), ("net.*", "*")];
        let rules = &odd[usize::from(group.rank().get() != 1)..];
        let error = begin("w/others.safetensors", rules).map(drop).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Disagreement, "{error}");
        assert!(error.to_string().contains("`rename`"), "{error}");
        (own, mapped)
    });
    for (own, mapped) in &ends {
        assert_eq!(own, mapped);
    }
}
