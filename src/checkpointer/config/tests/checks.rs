use std::num::NonZeroU64;
use std::time::Duration;

use super::*;
use crate::autosave::{KeepBest, Retention, Triggers};

type Change = fn(CheckpointerConfig) -> CheckpointerConfig;

fn example() -> CheckpointerConfig {
    CheckpointerConfig::new("digits").every_steps(10).metrics(["acc"])
}

/// What cannot work, and how the message begins.
const CONTRADICTIONS: &[(Change, &str)] = &[
    (|c| c.keep_last(0), "`keep_last`: 0 would keep nothing"),
    (|c| c.keep_best(0, "acc", Mode::Max), "`keep_best`: 0 would keep nothing"),
    (|c| c.keep_every_steps(0), "`keep_every_steps`: 0 would keep nothing"),
    (|c| c.keep_every_epochs(0), "`keep_every_epochs`: 0 would keep nothing"),
    (|c| CheckpointerConfig { keep_best: Some(2), ..c }, "`keep_best`: the best by what?"),
    (|c| CheckpointerConfig { mode: Mode::Max, ..c }, "`mode`: `max` of what? set `monitor`"),
    (|c| c.keep_pinned([" "]), "`keep_pinned`: ` ` is empty"),
    (|c| c.keep_pinned(["a/b*"]), "`keep_pinned`: `a/b*` holds `/`"),
    (|c| c.keep_pinned(["a", "[a-"]), "`keep_pinned`: `[a-` cannot be read: "),
    (|c| c.keep_pinned(["{".repeat(400) + "a*" + &"}".repeat(400)]), "`keep_pinned`: `{{{{"),
    (|c| c.every_epochs(0), "`save_every_epochs`: 0 is no interval"),
    (|c| c.every_steps(0), "`save_every_steps`: 0 is no interval"),
    (|c| c.every_minutes(0.0), "`save_every_minutes`: 0 is no interval"),
    (|c| c.every_minutes(-1.0), "`save_every_minutes`: -1 is no interval"),
    (|c| c.every_minutes(f64::NAN), "`save_every_minutes`: NaN is no interval"),
    (|c| c.every_minutes(f64::INFINITY), "`save_every_minutes`: inf is no interval"),
    (|c| c.before_time_limit(-1.0), "`time_limit_margin_seconds`: -1 is no time"),
    (|c| c.before_time_limit(f64::NAN), "`time_limit_margin_seconds`: NaN is no time"),
    (|c| c.before_time_limit(1e300), "`time_limit_margin_seconds`: 1000"),
    (
        |c| {
            CheckpointerConfig { save_every_steps: None, ..c }
                .at_end(false)
                .on_signal(false)
                .ignore_time_limit()
        },
        "`save_every_epochs`, `save_every_steps`, `save_every_minutes`: none is set",
    ),
    (|c| CheckpointerConfig { experiment: String::new(), ..c }, "`experiment`: `` is empty"),
    (|c| CheckpointerConfig { experiment: "a/b".into(), ..c }, "`experiment`: `a/b` holds `/`"),
    (
        |c| CheckpointerConfig { experiment: "..".into(), ..c },
        "`experiment`: `..` begins with a dot",
    ),
    (|c| CheckpointerConfig { experiment: "a\n".into(), ..c }, "`experiment`: `a\n` holds"),
    (|c| CheckpointerConfig { experiment: "a".repeat(201), ..c }, "`experiment`: `aaa"),
    (|c| c.in_directory(""), "`location`: an empty path"),
    (
        |c| {
            let drive = ColabDrive { drive_path: "../a".into(), ..ColabDrive::default() };
            c.at(Location::ColabDriveAt(drive))
        },
        "`location.colab_drive_at.drive_path`: `../a`: the path in Drive has to be relative",
    ),
    (
        |c| c.named("e{epoc}"),
        "`name`: name template `e{epoc}`: unknown field `epoc`, did you mean `epoch`?",
    ),
    (|c| c.named(names::DREAM_TRAINER), "`name`: name template `step="),
    (|c| c.named("latest"), "`name`: name template `latest`: `latest` is the name of a link"),
    (|c| c.metrics([""]), "`metrics`: `` is empty"),
    (|c| c.metrics(["a:b"]), "`metrics`: `a:b` cannot stand in a name template"),
    (|c| c.metrics(["metric"]), "`metrics`: `metric` means the monitored one"),
    (|c| c.monitor(" ", Mode::Min), "`monitor`: ` ` is empty"),
    (|c| c.monitor("a\u{1b}", Mode::Min), "`monitor`: `a\u{1b}` holds control characters"),
    (
        |c| c.save_mode(AsyncMode::Disabled, InFlight::Skip),
        "`in_flight`: with `save_mode` `disabled`",
    ),
    (
        |c| c.save_mode(AsyncMode::Disabled, InFlight::Error),
        "`in_flight`: with `save_mode` `disabled`",
    ),
    (|c| c.tensorboard(""), "`tensorboard`: an empty path"),
    (|c| c.space_warning(u64::MAX), "`space_warning_mib`: 18446744073709551615 MiB is more"),
    (|c| c.resume(Resume::Best), "`resume`: the best by what? set `monitor`"),
    (|c| c.resume(Resume::Path("".into())), "`resume`: an empty path"),
    (|c| c.resume(Resume::Step(3)).fall_back(), "`resume_fall_back`: only `latest` and `best`"),
    (|c| c.resume(Resume::Fresh).fall_back(), "`resume_fall_back`: only `latest` and `best`"),
    (|c| c.resume(Resume::Path("a".into())).fall_back(), "`resume_fall_back`: only"),
];

#[test]
fn every_contradiction_is_an_error_by_name() {
    for (change, says) in CONTRADICTIONS {
        let error = change(example()).check().expect_err(says);
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.message().starts_with(says), "{says}: {error}");
    }
}

#[test]
fn all_faults_are_told_at_once() {
    let config = example().keep_last(0).every_steps(0).resume(Resume::Best).named("");
    let error = config.check().unwrap_err();
    assert!(error.message().starts_with("4 faults:\n  `save_every_steps`"), "{error}");
    for field in ["\n  `name`", "\n  `keep_last`", "\n  `resume`"] {
        assert!(error.message().contains(field), "{error}");
    }
}

#[test]
fn what_can_work_is_accepted() {
    let cases: &[Change] = &[
        |_| CheckpointerConfig::default(),
        |c| c.keep_last(1).keep_best(2, "train/loss", Mode::Max).resume(Resume::Best).fall_back(),
        |c| c.monitor("metric", Mode::Min).named(names::DREAM_TRAINER).metrics(["metric"]),
        |c| c.monitor("train/loss", Mode::Min).named("e{epoch}_{train/loss:.3f}_{val_acc:.2f}"),
        |c| c.keep_pinned(["release-{1,2}*"]).save_mode(AsyncMode::Async, InFlight::Error),
        |c| CheckpointerConfig { save_every_steps: None, ..c }.on_signal(false).ignore_time_limit(),
        |c| CheckpointerConfig { save_every_steps: None, ..c }.at_end(false).ignore_time_limit(),
        |c| {
            let off = CheckpointerConfig { save_every_steps: None, ..c };
            off.at_end(false).on_signal(false).ignore_time_limit().enabled(false)
        },
        |c| c.before_time_limit(0.0).resume(Resume::Step(0)).must_resume(),
    ];
    for change in cases {
        change(example()).check().unwrap();
    }
}

#[test]
fn rules_become_a_retention_and_none_of_them_keeps_everything() {
    assert_eq!(example().retention().unwrap(), None);
    assert_eq!(example().keep_pinned(["a*"]).monitor("acc", Mode::Max).retention().unwrap(), None);
    let config = example().keep_last(3).keep_best(2, "acc", Mode::Max).keep_pinned(["a*"]);
    let expected = Retention {
        last: NonZeroU64::new(3),
        best: Some(KeepBest {
            count: NonZeroU64::new(2).unwrap(),
            monitor: "acc".to_owned(),
            mode: Mode::Max,
        }),
        every_steps: None,
        every_epochs: None,
        pinned: vec!["a*".to_owned()],
    };
    assert_eq!(config.retention().unwrap(), Some(expected));
    let every = example().keep_every_epochs(5).keep_every_steps(7).retention().unwrap().unwrap();
    assert_eq!((every.every_epochs, every.every_steps), (NonZeroU64::new(5), NonZeroU64::new(7)));
    for config in [example().keep_last(0), CheckpointerConfig { keep_best: Some(1), ..example() }] {
        assert_eq!(config.retention().unwrap_err().kind(), ErrorKind::InvalidInput);
    }
}

#[test]
fn every_interval_is_a_trigger_of_its_own() {
    let all = example().every_epochs(2).every_minutes(0.5).triggers().unwrap();
    assert_eq!(all.epochs.map(NonZeroU64::get), Some(2));
    assert_eq!(all.steps.map(NonZeroU64::get), Some(10));
    assert_eq!(all.minutes, Some(Duration::from_secs(30)));
    assert_eq!(CheckpointerConfig::default().triggers().unwrap(), Triggers::default());
    assert!(example().every_steps(0).triggers().is_err());
}
