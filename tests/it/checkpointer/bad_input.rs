//! What cannot work is an error, the same on every rank.

use std::path::Path;

use tch_checkpoint::checkpointer::{At, CheckpointerConfig, Outcome, Parts, Reason};
use tch_checkpoint::state::Shared;
use tch_checkpoint::{ErrorKind, ProcessGroup};

use super::toy::{Toy, at, checkpointer, config};
use crate::harness::on_ranks;

#[test]
fn ranks_that_are_configured_differently_get_one_error_naming_the_field() {
    let scratch = tempfile::tempdir().unwrap();
    let place = scratch.path().to_path_buf();
    let errors = on_ranks(3, move |group| {
        let keep_last = if group.rank().get() == 2 { "5" } else { "3" };
        let variables = [("TCH_CHECKPOINT_CONFIG_KEEP_LAST", keep_last)];
        let config = config(&place).every_steps(1).with_overrides(variables).unwrap();
        checkpointer(&group, config).err().unwrap()
    });
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::Disagreement);
        let text = error.to_string();
        for part in ["`keep_last`", "rank 2", "5", "3"] {
            assert!(text.contains(part), "{text}");
        }
    }
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
}

#[test]
fn a_configuration_that_contradicts_itself_is_refused_on_every_rank() {
    type Make = fn(&Path) -> CheckpointerConfig;
    let cases: [(&str, Make); 4] = [
        ("keep_last", |place| CheckpointerConfig { keep_last: Some(0), ..config(place) }),
        ("monitor", |place| CheckpointerConfig { keep_best: Some(2), ..config(place) }),
        ("save_every_steps", |place| CheckpointerConfig {
            save_every_steps: Some(0),
            ..config(place)
        }),
        ("name", |place| CheckpointerConfig { name: "{nothing}".to_owned(), ..config(place) }),
    ];
    for (field, make) in cases {
        let scratch = tempfile::tempdir().unwrap();
        let place = scratch.path().to_path_buf();
        let errors = on_ranks(2, move |group| checkpointer(&group, make(&place)).err().unwrap());
        for error in errors {
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            assert!(error.to_string().contains(field), "{field}: {error}");
        }
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
    }
}

#[test]
fn ranks_at_different_steps_hear_of_it_before_anything_is_written() {
    let scratch = tempfile::tempdir().unwrap();
    let place = scratch.path().to_path_buf();
    let errors = on_ranks(2, move |group| {
        let mut checkpointer = checkpointer(&group, config(&place)).unwrap();
        let at = At::step(10 + u64::from(group.rank().get()));
        Toy::new().with(|parts| checkpointer.save(&at, parts)).unwrap_err()
    });
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::Disagreement);
        assert!(error.to_string().contains("step 11"), "{error}");
    }
}

#[test]
fn parts_of_one_name_or_of_a_reserved_one_are_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let mut checkpointer = checkpointer(&ProcessGroup::solo(), config(scratch.path())).unwrap();
    let (mut one, mut two) = (1, 2);
    let (mut first, mut second) = (Shared(&mut one), Shared(&mut two));
    let mut twice = Parts::new().callback("stop", &mut first).callback("stop", &mut second);
    let error = checkpointer.save(&at(1), &mut twice).unwrap_err();
    assert!(error.to_string().contains("callbacks.stop"), "{error}");
    let mut three = 3;
    let mut third = Shared(&mut three);
    let error = checkpointer.save(&at(1), &mut Parts::new().with("trainer.step", &mut third));
    assert_eq!(error.unwrap_err().kind(), ErrorKind::InvalidInput);
}

#[test]
fn a_name_that_is_none_or_differs_on_one_rank_is_every_ranks_error() {
    for (name, kind) in [("../up", ErrorKind::InvalidInput), ("another", ErrorKind::Disagreement)] {
        let scratch = tempfile::tempdir().unwrap();
        let place = scratch.path().to_path_buf();
        let errors = on_ranks(2, move |group| {
            let mut checkpointer = checkpointer(&group, config(&place)).unwrap();
            let name = if group.rank().get() == 1 { name } else { "one" };
            let mut toy = Toy::new();
            let error = toy.with(|parts| checkpointer.save_as(name, &at(1), parts)).unwrap_err();
            toy.with(|parts| checkpointer.save_as("one", &at(1), parts)).unwrap();
            error
        });
        for error in errors {
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains("rank 1"), "{error}");
            assert!(error.help().unwrap().contains("nothing was committed"), "{error}");
        }
    }
}

#[test]
fn a_predicate_that_panics_on_one_rank_is_every_ranks_error_and_training_can_go_on() {
    let scratch = tempfile::tempdir().unwrap();
    let place = scratch.path().to_path_buf();
    let errors = on_ranks(3, move |group| {
        let mut checkpointer = checkpointer(&group, config(&place)).unwrap();
        let rank = group.rank().get();
        checkpointer.save_when(move |at| {
            assert!(rank != 1 || at.counters().step != 1, "no answer");
            at.counters().step == 2
        });
        let mut toy = Toy::new();
        let error = toy.with(|parts| checkpointer.step_callback(&at(1), parts)).unwrap_err();
        let stepped = toy.with(|parts| checkpointer.step_callback(&at(2), parts)).unwrap();
        assert!(matches!(stepped.save, Some((Reason::Predicate, Outcome::Saved(_)))));
        error
    });
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::Panic);
        assert!(error.to_string().contains("rank 1"), "{error}");
    }
}
