use super::*;
use crate::ErrorKind;

fn texts(list: &[&str]) -> Vec<String> {
    list.iter().map(|text| (*text).to_owned()).collect()
}

fn selection(include: &[&str], exclude: &[&str], rename: &[(&str, &str)]) -> Result<Selection> {
    Selection::new(SelectionRules {
        include: texts(include),
        exclude: texts(exclude),
        rename: rename.iter().map(|(from, to)| Rename::new(*from, *to)).collect(),
        ..SelectionRules::default()
    })
}

#[test]
fn patterns_reach_over_dots() {
    let cases: &[(&str, &str, bool)] = &[
        ("encoder.*", "encoder.layers.0.weight", true),
        ("encoder.*", "encoders.weight", false),
        ("encoder.*", "my.encoder.weight", false),
        ("encoder**", "encoder.layers.0.weight", true),
        ("*.bias", "a.b.bias", true),
        ("*.bias", "bias", false),
        ("layers.[0-3].*", "layers.2.weight", true),
        ("layers.[0-3].*", "layers.4.weight", false),
        ("{embed,head}.*", "head.weight", true),
        ("a?b", "a.b", true),
        ("head.weight", "head.weight", true),
        ("head.weight", "head/weight", false),
        ("a/*", "a/b/c", true),
        (r"a\*", "a*", true),
        (r"a\*", "ab", false),
    ];
    for (pattern, name, expected) in cases {
        let selection = selection(&[pattern], &[], &[]).unwrap();
        assert_eq!(selection.selects(name), *expected, "{pattern} on {name}");
    }
    let both = selection(&["encoder.*"], &["*.bias"], &[]).unwrap();
    assert!(both.selects("encoder.weight") && !both.selects("encoder.bias"));
    assert!(Selection::default().selects("anything"));
}

#[test]
fn a_bad_pattern_is_named() {
    let deep = "{".repeat(400) + "a" + &"}".repeat(400);
    let (long, classes) = ("a".repeat(1025), "[\u{0}-\u{10ffff}]".repeat(100));
    let _ = selection(&[&classes], &[], &[]);
    for pattern in ["layers.[0", "{a,b", ""] {
        let error = selection(&["fine"], &[pattern], &[]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.message().contains(&format!("exclude: pattern `{pattern}`")), "{error}");
    }
    for pattern in [deep, long] {
        let error = selection(&[&pattern], &[], &[]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.message().len() < 400, "{error}");
    }
}

#[test]
fn names_go_back_through_the_first_rule_that_fits() {
    let stored =
        |rules: &[(&str, &str)], name: &str| selection(&[], &[], rules).unwrap().stored_name(name);
    let found = |name: &str| Some(name.to_owned());
    let moved = [("old.*", "new.*"), ("w", "head.weight")];
    assert_eq!(stored(&moved, "new.a.b"), found("old.a.b"));
    assert_eq!(stored(&moved, "head.weight"), found("w"));
    assert_eq!(stored(&moved, "other"), found("other"));
    assert_eq!(stored(&moved, "old.a"), None, "it has become new.a");
    assert_eq!(stored(&[("module.*", "*")], "a.b"), found("module.a.b"));
    assert_eq!(stored(&[("*", "ema.*")], "ema.a"), found("a"));
    let swap = [("a.*", "b.*"), ("b.*", "a.*")];
    assert_eq!([stored(&swap, "a.x"), stored(&swap, "b.x")], [found("b.x"), found("a.x")]);
    let twice = [("l.0.*", "l.0.*"), ("l.0.*", "l.1.*")];
    assert_eq!(
        [stored(&twice, "l.0.w"), stored(&twice, "l.1.w")],
        [found("l.0.w"), found("l.0.w")]
    );
    let special_first = [("x", "new.w"), ("old.*", "new.*")];
    assert_eq!(stored(&special_first, "new.w"), found("x"));
    assert_eq!(stored(&special_first, "new.v"), found("old.v"));
}

#[test]
fn rules_that_cannot_be_or_never_apply_are_named() {
    let refused: &[&[(&str, &str)]] = &[
        &[("a.*", "b")],
        &[("a", "b.*")],
        &[("a*b.*", "c.*")],
        &[("", "b")],
        &[("a", "")],
        &[("a", "x"), ("b", "x")],
        &[("a.*", "x.*"), ("b.*", "x.*")],
        &[("old.*", "new.*"), ("x", "new.w")],
        &[("module.*", "*"), ("old.*", "new.*")],
    ];
    for rules in refused {
        let error = selection(&[], &[], rules).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{rules:?}");
        let (from, to) = rules[rules.len() - 1];
        assert!(error.message().contains(&format!("`{from}` -> `{to}`")), "{error}");
    }
}

#[test]
fn rules_are_plain_data() {
    let text = r#"{"include":["a.*"],"rename":[{"from":"x.*","to":"*"}]}"#;
    let rules: SelectionRules = serde_json::from_str(text).unwrap();
    assert_eq!(rules.components, Some(vec![Component::model()]));
    assert_eq!(Selection::new(rules.clone()).unwrap().rules(), &rules);
    assert!(serde_json::from_str::<SelectionRules>(r#"{"includes":[]}"#).is_err());
}
