use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use super::*;

fn with(variables: &[(&str, &str)]) -> crate::Result<CheckpointerConfig> {
    let named =
        |(field, value): &(&str, &str)| (format!("{CONFIG_PREFIX}{field}"), (*value).to_owned());
    CheckpointerConfig::default().with_overrides(variables.iter().map(named))
}

#[test]
fn values_are_read_as_the_types_of_their_fields() {
    let config = with(&[
        ("ENABLED", "no"),
        ("EXPERIMENT", "0x10"),
        ("LOCATION", "path:/data/run: \"a\""),
        ("SAVE_EVERY_EPOCHS", " 2 "),
        ("SAVE_EVERY_STEPS", "1099511627776"),
        ("SAVE_EVERY_MINUTES", "0.1"),
        ("SAVE_ON_BEST", "yes"),
        ("SAVE_AT_END", "false"),
        ("SAVE_ON_SIGNAL", "0"),
        ("SAVE_BEFORE_TIME_LIMIT", "Off"),
        ("TIME_LIMIT_MARGIN_SECONDS", "1e-3"),
        ("NAME", names::DREAM_TRAINER),
        ("METRICS", "acc, top/5,{a,b}"),
        ("ON_EXISTING", "replace"),
        ("MONITOR", "true"),
        ("MODE", "max"),
        ("KEEP_LAST", "3"),
        ("KEEP_BEST", "2"),
        ("KEEP_EVERY_STEPS", "1000"),
        ("KEEP_EVERY_EPOCHS", "10"),
        ("KEEP_PINNED", "release*,é\t"),
        ("SAVE_MODE", "async_overlap"),
        ("IN_FLIGHT", "skip"),
        ("RESUME", "step:40"),
        ("RESUME_IF_ANY", "FALSE"),
        ("RESUME_FALL_BACK", "1"),
        ("RESUME_STRICT", "no"),
        ("RESUME_DATA", "off"),
        ("SPACE_WARNING_MIB", "0"),
        ("IGNORE_SPACE", "yes"),
        ("AUDIT", "on"),
        ("COPY_UNCHANGED", "on"),
        ("TENSORBOARD", "logs"),
    ]);
    let mut expected = unusual();
    // Around the items of a list white space does not count.
    expected.keep_pinned[1] = "é".to_owned();
    assert_eq!(config.unwrap(), expected);
}

#[test]
fn an_empty_value_unsets_what_can_be_unset() {
    let variables = ["KEEP_LAST", "MONITOR", "METRICS", "SAVE_EVERY_MINUTES"]
        .map(|field| (format!("{CONFIG_PREFIX}{field}"), " "));
    let config = unusual().with_overrides(variables).unwrap();
    let expected = CheckpointerConfig {
        keep_last: None,
        monitor: None,
        metrics: Vec::new(),
        save_every_minutes: None,
        ..unusual()
    };
    assert_eq!(config, expected);
    for field in ["EXPERIMENT", "AUDIT", "MODE", "LOCATION", "SPACE_WARNING_MIB"] {
        let error = refused(with(&[(field, "")]));
        let says = format!("`{CONFIG_PREFIX}{field}` is empty, but this field cannot be unset");
        assert!(error.message().contains(&says), "{error}");
    }
}

#[test]
fn unknown_variables_and_unfit_values_are_named_all_at_once() {
    let error = refused(with(&[
        ("KEEP_LATS", "3"),
        ("COLOUR", "red"),
        ("keep_last", "3"),
        ("KEEP_BEST", "two"),
        ("RESUME", "stop:40"),
        ("SAVE_EVERY_MINUTES", "nan"),
    ]));
    for line in [
        "6 faults:",
        "_CONFIG_KEEP_LATS` sets nothing, did you mean `TCH_CHECKPOINT_CONFIG_KEEP_LAST`?",
        "_CONFIG_COLOUR` sets nothing: there is no such field",
        "_CONFIG_keep_last` sets nothing, did you mean `TCH_CHECKPOINT_CONFIG_KEEP_LAST`?",
        "_CONFIG_KEEP_BEST` does not fit: invalid type: string \"two\", expected a whole number, 0 or more",
        "_CONFIG_RESUME` does not fit: unknown variant `stop:40`, expected one of `latest`",
        "_CONFIG_SAVE_EVERY_MINUTES` does not fit: invalid type: string \"nan\", expected a number",
    ] {
        assert!(error.message().contains(line), "{line}: {error}");
    }
}

#[test]
fn variables_with_other_meanings_are_left_alone() {
    let others = ["LAUNCHER", "MASTER_PORT", "IFADDR", "TOKEN", "DEADLINE_MS", "SABOTAGE", "GRACE"];
    let variables = others.map(|name| (format!("TCH_CHECKPOINT_{name}"), "x"));
    let config = unusual().with_overrides(variables).unwrap();
    assert_eq!(config, unusual());
    assert!(others.iter().all(|name| !format!("TCH_CHECKPOINT_{name}").starts_with(CONFIG_PREFIX)));
}

#[test]
fn what_is_not_utf8_is_refused_where_it_is_ours_alone() {
    let bytes = OsStr::from_bytes(b"\xff");
    let ours = [(OsStr::new("TCH_CHECKPOINT_CONFIG_NAME"), bytes)];
    let error = refused(CheckpointerConfig::default().with_overrides(ours));
    assert!(error.message().contains("_NAME` holds what is not UTF-8"), "{error}");
    let others = [(bytes, bytes), (OsStr::new("PATH"), bytes)];
    assert!(CheckpointerConfig::default().with_overrides(others).is_ok());
}
