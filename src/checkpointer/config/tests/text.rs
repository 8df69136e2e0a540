use super::*;

#[test]
fn everything_survives_toml_yaml_and_json() {
    let drive = unusual().at(Location::ColabDriveAt(ColabDrive::default()));
    let path = unusual().resume(Resume::Path("a/b".into()));
    for config in [unusual(), drive, path, CheckpointerConfig::default()] {
        let toml = config.to_toml().unwrap();
        assert_eq!(CheckpointerConfig::from_toml(&toml).unwrap(), config, "{toml}");
        let yaml = config.to_yaml().unwrap();
        assert_eq!(CheckpointerConfig::from_yaml(&yaml).unwrap(), config, "{yaml}");
        let json = serde_json::to_string_pretty(&config).unwrap();
        assert_eq!(CheckpointerConfig::from_yaml(&json).unwrap(), config, "{json}");
    }
}

#[test]
fn what_is_not_given_is_as_in_the_default() {
    for config in [
        CheckpointerConfig::from_toml(""),
        CheckpointerConfig::from_yaml(""),
        CheckpointerConfig::from_yaml("# nothing\n---\n"),
        CheckpointerConfig::from_toml_at("[checkpoint]", "checkpoint"),
        CheckpointerConfig::from_yaml_at("checkpoint:\nmodel: 1", "checkpoint"),
    ] {
        assert_eq!(config.unwrap(), CheckpointerConfig::default());
    }
    let config = CheckpointerConfig::from_toml("\u{feff}keep_last = 3").unwrap();
    assert_eq!(config, CheckpointerConfig::default().keep_last(3));
}

#[test]
fn both_languages_say_the_same() {
    let toml = r#"
        experiment = "digits"
        location = { path = "runs" }
        save_every_minutes = 10
        keep_last = 0x10
        metrics = ["acc", "f1"]
        resume.step = 40
    "#;
    let yaml = "
        experiment: digits
        location: {path: runs}
        save_every_minutes: 10
        keep_last: 0x10
        metrics:
          - acc
          - 'f1'
        resume: !whatever
          step: 40
        keep_best: ~
        keep_every_steps:
    ";
    let config = CheckpointerConfig::new("digits")
        .in_directory("runs")
        .every_minutes(10.0)
        .keep_last(16)
        .metrics(["acc", "f1"])
        .resume(Resume::Step(40));
    assert_eq!(CheckpointerConfig::from_toml(toml).unwrap(), config);
    assert_eq!(CheckpointerConfig::from_yaml(yaml).unwrap(), config);
}

#[test]
fn a_table_of_a_larger_file_is_found_by_its_path() {
    let toml = "title = 2024-01-01\n[train.save]\nkeep_last = 3\n[train]\nlr = nan\n";
    let yaml = "base: &base [1, 2]\ntrain:\n  <<: *base\n  save: {keep_last: 3}\n";
    let three = CheckpointerConfig::default().keep_last(3);
    assert_eq!(CheckpointerConfig::from_toml_at(toml, "train.save").unwrap(), three);
    assert_eq!(CheckpointerConfig::from_yaml_at(yaml, "train.save").unwrap(), three);
    for (section, says) in [
        ("train.sav", "no table `train.sav`: no `sav`, did you mean `save`?"),
        ("checkpoint", "no table `checkpoint`: no `checkpoint`, there are "),
    ] {
        for result in [
            CheckpointerConfig::from_toml_at(toml, section),
            CheckpointerConfig::from_yaml_at(yaml, section),
        ] {
            let error = refused(result);
            assert!(error.message().contains(says), "{error}");
        }
    }
    let error = refused(CheckpointerConfig::from_toml_at(toml, "title"));
    assert_eq!(error.message(), "line 1, column 9: a table of settings belongs here");
    let error = refused(CheckpointerConfig::from_yaml("- 1"));
    assert_eq!(error.message(), "line 1, column 1: a table of settings belongs here");
}

#[test]
fn unknown_keys_and_wrong_types_are_told_all_at_once_with_their_places() {
    let toml = "[checkpoint]\nkeep_lats = 3\nsave_every_steps = \"ten\"\nmode = \"up\"\n";
    let yaml = "checkpoint:\n  keep_lats: 3\n  save_every_steps: ten\n  mode: up\n";
    let expected = |column: usize, at: [usize; 2]| {
        format!(
            "3 faults:\n  line 2, column {column}: unknown key `keep_lats`, did you mean \
             `keep_last`?\n  line 3, column {}: `save_every_steps`: invalid type: string \"ten\", \
             expected a whole number, 0 or more\n  line 4, column {}: `mode`: unknown variant `up`, expected `min` or \
             `max`",
            at[0], at[1]
        )
    };
    let error = refused(CheckpointerConfig::from_toml_at(toml, "checkpoint"));
    assert_eq!(error.message(), expected(1, [20, 8]));
    let error = refused(CheckpointerConfig::from_yaml_at(yaml, "checkpoint"));
    assert_eq!(error.message(), expected(3, [21, 9]));
}

#[test]
fn a_key_that_is_like_none_gets_the_list_of_all() {
    let error = refused(CheckpointerConfig::from_yaml("colour: red"));
    assert_eq!(error.message(), "line 1, column 1: unknown key `colour`");
    for part in ["known keys: audit, ", "space_warning_mib"] {
        assert!(error.help().unwrap().contains(part), "{error}");
    }
    let error = refused(CheckpointerConfig::from_toml("[checkpoint]\nkeep_last = 3"));
    assert!(error.help().unwrap().starts_with("if `checkpoint` is the table"), "{error}");
    // Spelt out, since the derived decoding is what rejects it inside an application's struct.
    let derived = serde_json::from_str::<CheckpointerConfig>(r#"{"colour": "red"}"#);
    assert!(derived.unwrap_err().to_string().contains("unknown field `colour`"));
}

#[test]
fn faults_of_syntax_and_values_that_fit_nothing_have_places() {
    for (toml, says) in [
        ("keep_last = 1\nkeep_last = 2", "line 2, column 1: duplicate key"),
        ("a = ", "line 1, column 5: "),
        ("\nsave_every_minutes = nan", "line 2, column 22: a number that is not finite fits"),
        ("keep_last = 99999999999999999999", "line 1, column 13: an integer of more than 64"),
        (
            "keep_last = -1",
            "integer `-1`, expected a whole number, 0 or more; leave it out for no such rule",
        ),
        (
            "keep_last = 3.0",
            "expected a whole number, 0 or more; write it without point and exponent",
        ),
        ("space_warning_mib = -1", "integer `-1`, expected a whole number, 0 or more"),
        ("resume = { step = 1e3 }", "line 1, column 19: `resume`: invalid type: floating"),
        ("metrics = [\"a\",\n  3]", "line 2, column 3: `metrics`: invalid type: integer `3`"),
        ("[location.colab_drive_at]\ndrivepath = 1", "line 2, column 1: `location`: unknown field"),
        (
            "[location]\n[location.colab_drive_at]\nmount_point = 1",
            "line 3, column 15: `location`: ",
        ),
        ("location = \"path\"", "line 1, column 12: `location`: this one needs a value"),
        ("location = \"/data\"", "`colab_drive_at`; a path is a table with `path`"),
        ("resume = { step = 1, path = \"a\" }", "line 1, column 10: `resume`: "),
        ("name = 2024-01-01", "line 1, column 8: a date or time fits nothing"),
        ("metrics = \"acc\"", "line 1, column 11: `metrics`: invalid type: string \"acc\""),
        ("resume = { stop = 3 }", "line 1, column 12: `resume`: unknown variant `stop`"),
    ] {
        let error = refused(CheckpointerConfig::from_toml(toml));
        assert!(error.message().contains(says), "{toml}: {error}");
    }
    for (yaml, says) in [
        ("keep_last: 1\nkeep_last: 2", "line 2, column 1: key `keep_last` is given twice"),
        ("a: \"b", "line 1, column 4: unclosed quote"),
        ("a: [1\n", "unclosed bracket"),
        ("a: *b", "line 1, column 4: "),
        ("a: &a [*a]", "line 1, column 8: this alias stands for"),
        ("a: 1\n--- \nb: 1", "a second document begins"),
        ("[a]: 1", "line 1, column 1: a key that is no plain text"),
        ("save_every_minutes: .nan", "line 1, column 21: a number that is not finite fits"),
        ("save_at_end: yes", "line 1, column 14: `save_at_end`: invalid type: string \"yes\""),
        ("save_at_end: off", "expected a boolean; write `true` or `false`"),
        ("keep_last: 1e3", "invalid type: floating point `1000.0`"),
        ("keep_last: 1_000", "invalid type: string \"1_000\""),
        ("location:\n  colab_drive_at:\n    drive_pat: a", "line 3, column 5: `location`: unknown"),
        ("location:\n  path: [a]", "line 2, column 9: `location`: invalid type"),
        ("name: {a: 1}", "line 1, column 7: `name`: invalid type: map"),
        ("metrics:\n  - a\n  - no\n  - ~", "line 4, column 5: `metrics`: invalid type: null"),
        (
            "experiment: 123",
            "line 1, column 13: `experiment`: invalid type: integer `123`, expected a string; put it in quotes",
        ),
        ("experiment:", "`experiment`: invalid type: null, expected a string"),
    ] {
        let error = refused(CheckpointerConfig::from_yaml(yaml));
        assert!(error.message().contains(says), "{yaml}: {error}");
    }
    let experiment = |yaml| CheckpointerConfig::from_yaml(yaml).unwrap().experiment;
    assert_eq!(experiment("experiment: !!str 123"), "123");
    assert_eq!(experiment("experiment: '123'"), "123");
    assert_eq!(experiment("experiment: inf"), "inf");
    // Words that YAML 1.1 took for booleans are texts, and a leading 0 is no octal number.
    assert_eq!(experiment("experiment: no"), "no");
    assert_eq!(CheckpointerConfig::from_yaml("keep_last: 010").unwrap().keep_last, Some(10));
    assert_eq!(CheckpointerConfig::from_yaml("keep_last: 0o10").unwrap().keep_last, Some(8));
    let minutes = CheckpointerConfig::from_toml("save_every_minutes = 1_000.5").unwrap();
    assert_eq!(minutes.save_every_minutes, Some(1000.5));
}

#[test]
fn a_file_is_read_by_its_ending_and_named_in_errors() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let three = CheckpointerConfig::default().keep_last(3);
    for (name, content) in [
        ("a.toml", "keep_last = 3"),
        ("a.yaml", "keep_last: 3"),
        ("a.yml", "keep_last: 3"),
        ("a.json", "{\"keep_last\": 3}"),
    ] {
        let path = write(name, content.as_bytes());
        assert_eq!(CheckpointerConfig::from_file(&path).unwrap(), three);
    }
    let nested = write("b.toml", b"[checkpoint]\nkeep_last = 3");
    assert_eq!(CheckpointerConfig::from_file_at(&nested, "checkpoint").unwrap(), three);
    for (name, content, says) in [
        ("c.toml", b"\nkeep = 1".as_slice(), "line 2, column 1: unknown key `keep`"),
        ("c.ini", b"", "TOML or YAML? the name does not say"),
        ("d.yaml", b"a: \xff", "byte 3 is not UTF-8"),
        ("e.yaml", &vec![b' '; CONFIG_BYTES_MAX + 1], "more than 1048576 bytes"),
    ] {
        let path = write(name, content);
        let error = refused(CheckpointerConfig::from_file(&path));
        assert!(error.message().contains(says), "{error}");
        assert_eq!(error.path(), path.to_str());
    }
    let missing = CheckpointerConfig::from_file(dir.path().join("none.toml")).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::NotFound);
    let directory = dir.path().join("d.toml");
    std::fs::create_dir(&directory).unwrap();
    assert_eq!(CheckpointerConfig::from_file(directory).unwrap_err().kind(), ErrorKind::Storage);
}
