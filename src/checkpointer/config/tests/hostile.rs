use proptest::prelude::*;

use super::*;

/// Both readers, as a whole and at a section.
fn read_all(text: &str) {
    let whole = [CheckpointerConfig::from_toml(text), CheckpointerConfig::from_yaml(text)];
    let inner = [
        CheckpointerConfig::from_toml_at(text, "k.k"),
        CheckpointerConfig::from_yaml_at(text, "k.k"),
    ];
    whole.into_iter().chain(inner).for_each(|result| drop(settled(result)));
}

/// A refusal says where, and not more than a screen.
fn settled(result: crate::Result<CheckpointerConfig>) -> Option<CheckpointerConfig> {
    let error = match result {
        Ok(config) => return Some(config),
        Err(error) => error,
    };
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.message().len() < 40_000, "{} bytes of message", error.message().len());
    None
}

#[test]
fn deep_and_huge_texts_are_refused() {
    let size = CONFIG_BYTES_MAX;
    let indented: String = (0..1400).map(|depth| " ".repeat(depth) + "k:\n").collect();
    for text in [
        "[".repeat(size),
        "{".repeat(size),
        "{k: ".repeat(size / 4),
        "- ".repeat(size / 2),
        "? ".repeat(size / 2),
        format!("k = {}", "[".repeat(size - 4)),
        format!("k = {}", "{k=".repeat(size / 3 - 4)),
        format!("[{}k]", "k.".repeat(size / 2 - 4)),
        format!("{}k = 1", "k.".repeat(size / 2 - 4)),
        "[[k]]\n".repeat(size / 6),
        format!("k: {}", "[k,".repeat(size / 3 - 4)),
        format!("- {}", "k,".repeat(size / 2 - 4)),
        indented,
        "k".repeat(size),
        " ".repeat(size + 1),
    ] {
        let read = [CheckpointerConfig::from_toml(&text), CheckpointerConfig::from_yaml(&text)];
        assert_eq!(read.map(settled), [None, None], "{}", &text[..20]);
    }
}

#[test]
fn many_unknown_keys_give_a_short_error() {
    let toml: String = (0..40_000).map(|n| format!("keep_las{n} = 1\n")).collect();
    let error = refused(CheckpointerConfig::from_toml(&toml));
    assert!(error.message().starts_with("20 faults:\n"), "{error}");
    let long = format!("{} = 1\n", "k".repeat(500_000));
    assert!(refused(CheckpointerConfig::from_toml(&long)).message().len() < 1500);
}

#[test]
fn aliases_that_stand_for_too_much_are_refused() {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for n in 1..20 {
        let before = format!("*a{}, ", n - 1).repeat(10);
        bomb.push_str(&format!("a{n}: &a{n} [{before}]\n"));
    }
    for section in ["", "a19"] {
        let error = refused(CheckpointerConfig::from_yaml_at(&bomb, section));
        assert!(error.message().contains("aliases that stand for too many"), "{error}");
    }
    let long = format!("a: &a {}\nb: [{}]", "x".repeat(500_000), "*a, ".repeat(100_000));
    let error = refused(CheckpointerConfig::from_yaml(&long));
    assert!(error.message().contains("aliases that stand for too many"), "{error}");
}

#[test]
fn aliases_in_moderation_are_read() {
    let yaml = "common: &common [acc, f1]\ncheckpoint: {metrics: *common, keep_pinned: *common}";
    let config = CheckpointerConfig::from_yaml_at(yaml, "checkpoint").unwrap();
    assert_eq!(config.metrics, ["acc", "f1"]);
    assert_eq!(config.keep_pinned, ["acc", "f1"]);
}

/// Pieces that make texts which get far.
fn pieces() -> impl Strategy<Value = String> {
    let piece = proptest::sample::select(vec![
        "keep_last",
        "resume",
        "metrics",
        "name",
        "k",
        " ",
        "\n",
        "\n  ",
        "= ",
        ": ",
        "- ",
        "[",
        "]",
        "{",
        "}",
        ", ",
        "\"",
        "'",
        "&a ",
        "*a",
        "!!str ",
        "<<",
        "|\n",
        ">-\n",
        "---\n",
        "...",
        "#",
        "3",
        "-1",
        "1e999",
        ".nan",
        "0x",
        "true",
        "~",
        "é",
        "\u{0}",
        "\u{feff}",
        "?",
        "%TAG",
        "latest",
    ]);
    proptest::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn no_text_panics(text in pieces()) {
        read_all(&text);
    }

    #[test]
    fn no_characters_panic(text in "\\PC{0,60}|(?s).{0,60}") {
        read_all(&text);
        let variables = [("TCH_CHECKPOINT_CONFIG_RESUME", &text)];
        let _ = CheckpointerConfig::default().with_overrides(variables);
        let config = CheckpointerConfig { name: text.clone(), experiment: text, ..unusual() };
        let _ = config.check();
    }

    #[test]
    fn every_text_survives_both_languages(text in "(?s).{0,40}") {
        let config = CheckpointerConfig {
            experiment: text.clone(),
            keep_pinned: vec![text.clone()],
            resume: Resume::Path(text.clone().into()),
            monitor: Some(text),
            ..CheckpointerConfig::default()
        };
        prop_assert_eq!(&CheckpointerConfig::from_toml(&config.to_toml().unwrap()).unwrap(), &config);
        prop_assert_eq!(&CheckpointerConfig::from_yaml(&config.to_yaml().unwrap()).unwrap(), &config);
    }
}
