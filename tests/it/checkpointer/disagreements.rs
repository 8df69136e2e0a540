//! One rank is configured otherwise, or asks for something else: every rank hears which field it
//! is, and who; nothing is saved and nothing changed.

use tch_checkpoint::autosave::Mode;
use tch_checkpoint::checkpointer::{
    AsyncMode, At, Checkpointer, CheckpointerConfig, InFlight, Location, Resume,
};
use tch_checkpoint::{Error, ErrorKind, OnExisting, Result};

use super::toy::{Toy, at, checkpointer, config};
use crate::harness::{on_ranks, one_error};

const RANKS: u32 = 3;

type Change = Box<dyn Fn(&mut CheckpointerConfig) + Send + Sync>;

/// Rules with which each field may be changed alone.
fn usual(place: &std::path::Path) -> CheckpointerConfig {
    CheckpointerConfig {
        save_every_steps: Some(5),
        monitor: Some("loss".to_owned()),
        metrics: vec!["other".to_owned()],
        save_mode: AsyncMode::Async,
        ..config(place)
    }
}

/// A change of each field. One that is added does not compile until it is here.
fn fields() -> Vec<(&'static str, Change)> {
    macro_rules! changes {
        ($($field:ident => $value:expr),* $(,)?) => {{
            // All fields, none left out.
            let CheckpointerConfig { $($field: _),* } = CheckpointerConfig::default();
            let all: Vec<(&'static str, Change)> = vec![
                $((stringify!($field), Box::new(|config| {
                    assert_ne!(config.$field, $value);
                    config.$field = $value;
                }))),*
            ];
            all
        }};
    }
    changes! {
        enabled => false,
        experiment => "another".to_owned(),
        location => Location::Local,
        save_every_epochs => Some(2),
        save_every_steps => Some(3),
        save_every_minutes => Some(5.5),
        save_on_best => true,
        save_at_end => false,
        save_on_signal => true,
        save_before_time_limit => true,
        time_limit_margin_seconds => 60.0,
        name => "other_{step:08d}".to_owned(),
        metrics => vec!["another".to_owned()],
        on_existing => OnExisting::Replace,
        monitor => Some("val_loss".to_owned()),
        mode => Mode::Max,
        keep_last => Some(4),
        keep_best => Some(2),
        keep_every_steps => Some(100),
        keep_every_epochs => Some(10),
        keep_pinned => vec!["best*".to_owned()],
        save_mode => AsyncMode::AsyncOverlap,
        in_flight => InFlight::Skip,
        resume => Resume::Fresh,
        resume_if_any => false,
        resume_fall_back => true,
        space_warning_mib => 7,
        ignore_space => true,
        resume_strict => false,
        resume_data => false,
        audit => true,
        copy_unchanged => true,
        tensorboard => Some("logs".into()),
    }
}

fn assert_names(error: &Error, words: &str, odd: u32) {
    assert_eq!(error.kind(), ErrorKind::Disagreement, "{error}");
    assert!(error.to_string().contains(words), "`{error}` does not say {words}");
    // The coordinator is one side of the comparison; if it is the odd one, any other may be named.
    let named = error.rank().map(|rank| rank.get()).unwrap();
    assert!(if odd == 0 { named > 0 } else { named == odd }, "{error}");
}

#[test]
fn every_field_of_the_configuration_that_one_rank_has_otherwise() {
    let scratch = tempfile::tempdir().unwrap();
    let mut count = 0;
    for (number, (field, change)) in (0..).zip(fields()) {
        let (odd, place) = (number % RANKS, scratch.path().to_path_buf());
        let verdicts = on_ranks(RANKS, move |group| {
            let mut config = usual(&place);
            if group.rank().get() == odd {
                change(&mut config);
            }
            checkpointer(&group, config).map(drop)
        });
        assert_names(&one_error(&verdicts, field), &format!("`{field}`"), odd);
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0, "{field}");
        count += 1;
    }
    crate::tier::figure("fields of a configuration that one rank has otherwise", count);
}

/// What one rank asks of a checkpointer, with the first checkpoint at step 4.
type Ask = fn(&mut Checkpointer, &mut Toy, bool) -> Result<()>;

#[test]
fn everything_that_one_rank_asks_otherwise_of_a_checkpointer() {
    let cases: [(&str, Ask); 7] = [
        ("step 9", |c, toy, odd| {
            toy.with(|parts| c.save(&at(if odd { 9 } else { 8 }), parts)).map(drop)
        }),
        ("epoch 7", |c, toy, odd| {
            let at = At::step(8).epoch(if odd { 7 } else { 6 });
            toy.with(|parts| c.save(&at, parts)).map(drop)
        }),
        ("`one`", |c, toy, odd| {
            let name = if odd { "one" } else { "two" };
            toy.with(|parts| c.save_as(name, &at(8), parts)).map(drop)
        }),
        ("a name of the template", |c, toy, odd| match odd {
            true => toy.with(|parts| c.save(&at(8), parts)).map(drop),
            false => toy.with(|parts| c.save_as("two", &at(8), parts)).map(drop),
        }),
        ("ranks resume differently", |c, toy, odd| {
            let which = if odd { Resume::Step(4) } else { Resume::Latest };
            toy.with(|parts| c.load(&which, parts)).map(drop)
        }),
        ("\"look there\"", |c, toy, odd| {
            let path = c.directory().join("checkpoint_step_00000004");
            let which = if odd { Resume::Path(path) } else { Resume::Latest };
            toy.with(|parts| c.load(&which, parts)).map(drop)
        }),
        ("\"look whether\"", |c, toy, odd| match odd {
            true => c.has_checkpoint(&Resume::Latest).map(drop),
            false => toy.with(|parts| c.load(&Resume::Latest, parts)).map(drop),
        }),
    ];
    for (number, (words, ask)) in (0..).zip(cases) {
        for odd in [number % RANKS, (number + 1) % RANKS] {
            let scratch = tempfile::tempdir().unwrap();
            let place = scratch.path().to_path_buf();
            let verdicts = on_ranks(RANKS, move |group| {
                let mut checkpointer = checkpointer(&group, config(&place)).unwrap();
                let mut toy = Toy::after(4, group.rank().get());
                toy.with(|parts| checkpointer.save(&at(4), parts)).unwrap();
                toy.step(5, group.rank().get());
                let before = toy.clone();
                let verdict = ask(&mut checkpointer, &mut toy, group.rank().get() == odd);
                assert_eq!(toy, before, "changed");
                verdict
            });
            assert_names(&one_error(&verdicts, words), words, odd);
            let entries = std::fs::read_dir(scratch.path().join("run")).unwrap();
            let directories = entries.filter(|e| e.as_ref().unwrap().file_type().unwrap().is_dir());
            assert_eq!(directories.count(), 1, "{words}");
        }
    }
}
