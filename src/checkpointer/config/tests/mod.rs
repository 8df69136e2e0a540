mod checks;
mod environment;
mod hostile;
mod text;

use super::*;
use crate::error::{Error, ErrorKind};

/// A configuration in which no field is as in the default.
fn unusual() -> CheckpointerConfig {
    CheckpointerConfig {
        enabled: false,
        experiment: "0x10".to_owned(),
        location: Location::Path(PathBuf::from("/data/run: \"a\"")),
        save_every_epochs: Some(2),
        save_every_steps: Some(1 << 40),
        save_every_minutes: Some(0.1),
        save_on_best: true,
        save_at_end: false,
        save_on_signal: false,
        save_before_time_limit: false,
        time_limit_margin_seconds: 1e-3,
        name: names::DREAM_TRAINER.to_owned(),
        metrics: vec!["acc".to_owned(), "top/5".to_owned(), "{a,b}".to_owned()],
        on_existing: OnExisting::Replace,
        monitor: Some("true".to_owned()),
        mode: Mode::Max,
        keep_last: Some(3),
        keep_best: Some(2),
        keep_every_steps: Some(1000),
        keep_every_epochs: Some(10),
        keep_pinned: vec!["release*".to_owned(), "é\t".to_owned()],
        save_mode: AsyncMode::AsyncOverlap,
        in_flight: InFlight::Skip,
        resume: Resume::Step(40),
        resume_if_any: false,
        resume_fall_back: true,
        resume_strict: false,
        resume_data: false,
        space_warning_mib: 0,
        ignore_space: true,
        audit: true,
        copy_unchanged: true,
        tensorboard: Some("logs".into()),
    }
}

fn refused(result: crate::Result<CheckpointerConfig>) -> Error {
    let error = result.expect_err("this is to be refused");
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    error
}

#[test]
fn nothing_of_the_unusual_configuration_is_a_default() {
    let value = |config| serde_json::to_value(config).unwrap();
    let differing = differences(&value(unusual()), &value(CheckpointerConfig::default()));
    let fields: Vec<_> = differing.into_iter().map(|difference| difference.field).collect();
    assert_eq!(fields, decode::fields().keys().cloned().collect::<Vec<_>>());
}
