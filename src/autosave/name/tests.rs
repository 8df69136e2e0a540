use super::*;
use crate::error::{Error, ErrorKind};

/// template, values, result of CPython; made by `format_vectors.py`.
const VECTORS: &str = include_str!("../../../tests/data/format_vectors.tsv");

fn parse_value(text: &str) -> (String, Number) {
    let (name, value) = text.split_once('=').unwrap();
    let number = match value.split_once(':').unwrap() {
        ("i", digits) => Number::Int(digits.parse().unwrap()),
        (_, digits) => Number::Float(digits.parse().unwrap()),
    };
    (name.to_owned(), number)
}

/// The text before sanitising, as in the table.
fn text_or_error(template: &str, values: &BTreeMap<String, Number>) -> String {
    let known = KnownFields::new(values.keys());
    NameTemplate::parse(template, &known)
        .ok()
        .and_then(|parsed| parsed.text(5, values).ok())
        .unwrap_or_else(|| "ERROR".to_owned())
}

#[test]
fn every_vector_prints_as_in_python() {
    let mut wrong = Vec::new();
    let mut counts = [0; 2];
    for line in VECTORS.lines() {
        let columns: Vec<&str> = line.split('\t').collect();
        let [template, values, expected] = columns.as_slice() else { panic!("{line:?}") };
        let values = values.split(';').map(parse_value).collect();
        let got = text_or_error(template, &values);
        counts[usize::from(got == "ERROR")] += 1;
        if got != *expected {
            wrong.push(format!("{line}\n  got {got}"));
        }
    }
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
    assert!(counts[0] > 2500 && counts[1] > 100, "{counts:?}");
}

fn parse(template: &str) -> Result<NameTemplate> {
    NameTemplate::parse(template, &KnownFields::new(["acc", "mAP@0.5", "top/5"]))
}

fn refusal(template: &str) -> Error {
    let error = parse(template).expect_err(template);
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{template}");
    let listed = "known fields: epoch, step, loss, val_loss, epoch_time, lr, lr_group_N, acc";
    assert!(error.message().contains(listed), "{error}");
    error
}

fn values(pairs: &[(&str, Number)]) -> BTreeMap<String, Number> {
    pairs.iter().map(|(name, number)| ((*name).to_owned(), *number)).collect()
}

#[test]
fn what_can_never_work_is_refused_with_a_reason() {
    for (template, reason) in [
        ("e{vall_loss:.3f}", "did you mean `val_loss`?"),
        ("e{perplexity}", "unknown field `perplexity`"),
        ("{epoch.real}", "attributes and indices"),
        ("{epoch[0]}", "attributes and indices"),
        ("{a.__class__}", "unknown field `a.__class__`"),
        ("{}", "a field needs a name"),
        ("{0}", "a field needs a name"),
        ("{:.2f}", "a field needs a name"),
        ("{epoch", "never closed"),
        ("epoch}", "stands alone"),
        ("{epoch:{step}}", "a field inside a field"),
        ("{epoch!a}", "after `!` comes `r` or `s`"),
        ("{epoch:x}", "none of the types"),
        ("{epoch:5q}", "none of the types"),
        ("{acc!r:f}", "only type s"),
        ("{acc!r:+}", "need a number"),
        ("{epoch:.2d}", "takes no precision"),
        ("{loss:.f}", "no precision"),
        ("{loss:65}", "width 65 is above 64"),
        ("{loss:.65f}", "precision 65 is above 64"),
        ("{loss:99999999999999999999999}", "above 64"),
        ("runs/e{epoch}", "a `/`"),
        ("..e{epoch}", "a `..`"),
        ("{loss:/>9}", "a `/`"),
        ("", "it is empty"),
        ("  ", "it is empty"),
        ("latest", "a link"),
        ("best", "a link"),
    ] {
        let error = refusal(template);
        assert!(error.message().contains(reason), "{template}: {error}");
    }
    refusal(&"x".repeat(100_000));
}

#[test]
fn metric_names_may_hold_slash_and_dot() {
    let template = parse("e{epoch}_{top/5:.2f}_{val_mAP@0.5:.3f}").unwrap();
    let values = values(&[("top/5", 0.5.into()), ("val_mAP@0.5", 0.25.into())]);
    let expected = Rendered { name: "e3_0.50_0.250".into(), warning: None };
    assert_eq!(template.render(3, &values), expected);
}

#[test]
fn the_epoch_given_wins_and_missing_values_print_nan() {
    let template = parse("e{epoch}_l{val_loss:.3f}_{acc}_{lr_group_7:.1e}").unwrap();
    let rendered = template.render(12, &values(&[("epoch", 99.into())]));
    assert_eq!(rendered, Rendered { name: "e12_lnan_nan_nan".into(), warning: None });
}

#[test]
fn a_format_that_does_not_fit_falls_back_with_a_warning() {
    let template = parse("model_{epoch}_loss{{{loss:02d}}}").unwrap();
    let rendered = template.render(7, &values(&[("loss", 0.5.into())]));
    assert_eq!(rendered.name, "model__loss{}_epoch7");
    let warning = rendered.warning.unwrap();
    for part in ["`loss`", "`02d`", "needs an integer", "`model__loss{}_epoch7`"] {
        assert!(warning.contains(part), "{warning}");
    }
    let whole = template.render(7, &values(&[("loss", 3.into())]));
    assert_eq!(whole, Rendered { name: "model_7_loss{03}".into(), warning: None });
}

#[test]
fn rendered_names_are_sanitised() {
    for (template, name) in [
        (" {epoch:>4}", "____5".to_owned()),
        ("a:b {epoch}", "a_b 5".to_owned()),
        (".{epoch}", "_5".to_owned()),
        ("{epoch:*^5}", "__5__".to_owned()),
        ("{epoch!s:.0}", "_".to_owned()),
    ] {
        assert_eq!(parse(template).unwrap().render(5, &BTreeMap::new()).name, name, "{template}");
    }
    let long = parse(&"{loss:.64f}".repeat(9)).unwrap();
    let [a, b] = [0.1, 0.2].map(|loss| long.render(1, &values(&[("loss", loss.into())])).name);
    assert_eq!((a.len(), b.len()), (200, 200));
    assert_ne!(a, b);
}

#[test]
fn a_taken_name_gets_the_first_free_version() {
    let free = |taken: &[&str]| unique_name("e5", |name| taken.contains(&name));
    assert_eq!(free(&[]), "e5");
    assert_eq!(free(&["e5"]), "e5-v1");
    assert_eq!(free(&["e5", "e5-v1", "e5-v3"]), "e5-v2");
    assert_eq!(free(&["e5-v1"]), "e5");
    assert_eq!(unique_name("e5", |_| true), "e5");
}
