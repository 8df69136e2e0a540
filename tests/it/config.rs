//! What `docs/configuration.md` says of fields, examples, variables and errors is so.

use std::process::Command;

use serde_json::{Map, Value};
use tch_checkpoint::autosave::names;
use tch_checkpoint::checkpointer::{
    CONFIG_PREFIX, CheckpointerConfig, Location, create_checkpointer_from_config,
};
use tch_checkpoint::{ErrorKind, ProcessGroup, Result};

const GUIDE: &str = include_str!("../../docs/configuration.md");

fn default_fields() -> Map<String, Value> {
    match serde_json::to_value(CheckpointerConfig::default()).unwrap() {
        Value::Object(fields) => fields,
        other => panic!("{other}"),
    }
}

/// Cells of the table under a heading, without its head.
fn rows(heading: &str) -> Vec<Vec<&'static str>> {
    let part = GUIDE.split("\n## ").find(|part| part.starts_with(heading)).unwrap();
    let lines = part.lines().filter(|line| line.starts_with('|')).skip(2);
    lines.map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect()).collect()
}

fn spans(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// Language and content of fenced code, in order.
fn blocks() -> Vec<(&'static str, &'static str)> {
    let fenced = GUIDE.split("```").skip(1).step_by(2);
    fenced.map(|block| block.split_once('\n').unwrap()).collect()
}

fn read(language: &str, text: &str) -> Result<CheckpointerConfig> {
    match (language, text.contains("checkpoint]") || text.contains("checkpoint:")) {
        ("toml", true) => CheckpointerConfig::from_toml_at(text, "checkpoint"),
        ("toml", false) => CheckpointerConfig::from_toml(text),
        (_, true) => CheckpointerConfig::from_yaml_at(text, "checkpoint"),
        (_, false) => CheckpointerConfig::from_yaml(text),
    }
}

#[test]
fn every_field_is_in_the_guide_with_its_default_and_variable() {
    let fields = default_fields();
    let rows = rows("Fields");
    for row in &rows {
        let [field, _, default, variable, meaning] = row.as_slice() else { panic!("{row:?}") };
        let field = spans(field)[0];
        let value = match spans(default).first() {
            Some(json) => serde_json::from_str(json).unwrap(),
            None => Value::Null,
        };
        assert_eq!(fields.get(field), Some(&value), "{field}");
        assert_eq!(spans(variable), [format!("{CONFIG_PREFIX}{}", field.to_uppercase())]);
        assert!(!meaning.is_empty());
    }
    let mut named: Vec<_> = rows.iter().map(|row| spans(row[0])[0].to_owned()).collect();
    named.sort();
    assert_eq!(named, fields.keys().cloned().collect::<Vec<_>>());
}

#[test]
fn every_field_takes_what_the_guide_says_and_nothing_else() {
    let samples = [("boolean", "true"), ("integer", "7"), ("number", "0.5"), ("text", "\"a\"")];
    let samples = [samples.as_slice(), &[("list of texts", "[\"a\"]")]].concat();
    for row in rows("Fields") {
        let (field, kind) = (spans(row[0])[0], row[1]);
        let takes = |value: &str| CheckpointerConfig::from_toml(&format!("{field} = {value}"));
        for span in spans(kind) {
            let quoted = if span.starts_with('{') { span.to_owned() } else { format!("{span:?}") };
            takes(&quoted).unwrap();
        }
        assert!(kind.contains('`') || samples.iter().any(|(name, _)| *name == kind), "{kind}");
        for (name, value) in &samples {
            let fits = *name == kind || (kind, *name) == ("number", "integer");
            assert_eq!(takes(value).is_ok(), fits, "{field} = {value}");
        }
    }
}

#[test]
fn examples_are_read_and_errors_are_printed_as_shown() {
    let blocks = blocks();
    let mut read_well = Vec::new();
    let mut refused = 0;
    for (at, (language, text)) in blocks.iter().enumerate() {
        if !["toml", "yaml"].contains(language) {
            continue;
        }
        let config = read(language, text).and_then(|config| config.check().map(|()| config));
        match (config, blocks.get(at + 1)) {
            (Ok(config), _) => read_well.push(config),
            (Err(error), Some(("text", shown))) => {
                assert_eq!(error.to_string(), shown.trim_end(), "{text}");
                refused += 1;
            }
            (Err(error), _) => panic!("{text}: {error}"),
        }
    }
    assert_eq!((read_well.len(), refused), (2, 4));
    assert_eq!(read_well[0], read_well[1], "the same in TOML and YAML");
    assert_eq!(read_well[0].keep_best, Some(2));
}

#[test]
fn variables_and_names_are_as_shown() {
    let shown = blocks().into_iter().find(|(language, _)| *language == "sh").unwrap().1;
    let variable = |line: &'static str| {
        let line = line.strip_prefix("export ")?.split("  ").next()?;
        line.trim().split_once('=')
    };
    let variables: Vec<_> = shown.lines().filter_map(variable).collect();
    let config = CheckpointerConfig { monitor: Some("acc".to_owned()), ..Default::default() };
    let config = config.with_overrides(variables).unwrap();
    assert_eq!((config.keep_last, config.save_at_end, config.monitor), (Some(3), false, None));
    assert_eq!(config.metrics, ["acc", "f1"]);
    let presets = rows("Names");
    for (row, preset) in presets.iter().zip([names::TORCHLINGO, names::DREAM_TRAINER]) {
        assert_eq!(spans(row[1]), [preset]);
    }
    assert_eq!(presets.len(), 2);
}

#[test]
fn what_is_off_needs_no_place() {
    let group = ProcessGroup::solo();
    let config = CheckpointerConfig::new("run").at(Location::ColabDrive);
    let error = create_checkpointer_from_config(&group, &config).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
    let off = create_checkpointer_from_config(&group, &config.enabled(false)).unwrap();
    assert!(off.is_none());
}

/// Runs itself as another process, since variables belong to a whole process.
#[test]
fn variables_override_a_file_and_what_the_program_then_says_overrides_both() {
    const CHILD: &str = "TCH_CHECKPOINT_TEST_CONFIG";
    if let Some(file) = std::env::var_os(CHILD) {
        let config = CheckpointerConfig::from_file(&file).unwrap();
        assert_eq!((config.keep_last, config.save_every_steps), (Some(7), Some(10)));
        assert_eq!(config.clone().with_environment().unwrap(), config);
        assert_eq!(config.keep_last(1).keep_last, Some(1));
        assert_eq!(CheckpointerConfig::from_toml("keep_last = 3").unwrap().keep_last, Some(3));
        let code = CheckpointerConfig::default();
        assert_eq!(code.with_environment().unwrap().keep_last, Some(7));
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.toml");
    std::fs::write(&file, "keep_last = 3\nsave_every_steps = 10").unwrap();
    let run = |variable: &str| {
        let name =
            "config::variables_override_a_file_and_what_the_program_then_says_overrides_both";
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args([name, "--exact", "--nocapture"]).env(CHILD, &file);
        let output = command.env(variable, "7").output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    };
    let (is_well, text) = run("TCH_CHECKPOINT_CONFIG_KEEP_LAST");
    assert!(is_well && text.contains("1 passed"), "{text}");
    let (is_well, text) = run("TCH_CHECKPOINT_CONFIG_KEEP_LATS");
    assert!(!is_well && text.contains("did you mean `TCH_CHECKPOINT_CONFIG_KEEP_LAST`?"), "{text}");
}
