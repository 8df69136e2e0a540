//! What the tables of `docs/features.md` and the guides for people from elsewhere name exists: tests
//! and API.
//!
//! A code span `key::name` outside fenced code is a reference to the test `name`; the section
//! "Test files" of `docs/features.md` says which file `key` is. Code spans in column "in the API"
//! end with an identifier of `src/`.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const DOCS: [&str; 4] =
    ["docs/features.md", "docs/nnhandler.md", "docs/coming-from.md", "docs/reliability.md"];

fn read(path: impl AsRef<Path>) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Nothing if there is no such file.
fn source(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap_or_default()
}

/// Lines outside fenced code.
fn prose(doc: &str) -> impl Iterator<Item = &str> {
    let mut fenced = false;
    doc.lines().filter(move |line| {
        let fence = line.starts_with("```");
        fenced ^= fence;
        !fence && !fenced
    })
}

/// The code spans of a line.
fn spans(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

fn is_word(text: &str) -> bool {
    let is_part = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
    !text.is_empty() && text.bytes().all(is_part)
}

/// Key and name of every reference.
fn references(doc: &str) -> Vec<(&str, &str)> {
    let all = prose(doc).flat_map(spans).filter_map(|span| span.split_once("::"));
    all.filter(|(key, name)| is_word(key) && is_word(name)).collect()
}

/// The files of tests, by key.
fn files(features: &str) -> BTreeMap<&str, &str> {
    let table = features.split("\n## ").find(|part| part.starts_with("Test files")).unwrap();
    let row = |line| {
        let mut spans = spans(line);
        Some((spans.next()?, spans.next()?))
    };
    prose(table).filter(|line| line.starts_with('|')).filter_map(row).collect()
}

/// Whether this source has such a test: a function with `#[test]`, or a case with a name of a
/// harness of its own.
fn has_test(source: &str, name: &str) -> bool {
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    let head = format!("fn {name}(");
    let is_test = |at: usize| {
        let above = lines[..at].iter().rev();
        above
            .take_while(|line| line.starts_with('#') || line.starts_with('/'))
            .any(|l| *l == "#[test]")
    };
    (0..lines.len()).any(|at| lines[at].starts_with(&head) && is_test(at))
        || source.contains(&format!("(\"{name}\","))
}

/// References that lead nowhere.
fn broken(doc: &str, files: &BTreeMap<&str, &str>) -> Vec<String> {
    let is_broken = |(key, name): &(&str, &str)| match files.get(key) {
        Some(file) => !has_test(&source(file), name),
        None => true,
    };
    references(doc).into_iter().filter(is_broken).map(|(k, n)| format!("{k}::{n}")).collect()
}

/// Second cells of tables whose second column is "in the API".
fn api_cells(doc: &str) -> Vec<&str> {
    let mut in_table = false;
    let mut cells = Vec::new();
    for line in prose(doc) {
        let second = line.split(" | ").nth(1);
        match second {
            Some("in the API") => in_table = true,
            Some(cell) if in_table => cells.push(cell),
            _ => in_table &= line.starts_with('|'),
        }
    }
    cells
}

fn sources(dir: &Path, all: &mut String) {
    for entry in fs::read_dir(dir).unwrap() {
        let path: PathBuf = entry.unwrap().path();
        match path.is_dir() {
            true => sources(&path, all),
            false => all.push_str(&fs::read_to_string(&path).unwrap_or_default()),
        }
    }
}

#[test]
fn every_test_that_is_named_exists() {
    let features = read("docs/features.md");
    let files = files(&features);
    let mut used = BTreeSet::new();
    for path in DOCS {
        let doc = read(path);
        assert!(references(&doc).len() > 30, "{path}: where are the references?");
        assert_eq!(broken(&doc, &files), Vec::<String>::new(), "in {path}");
        used.extend(references(&doc).into_iter().map(|(key, _)| key.to_owned()));
    }
    let unused: Vec<_> = files.keys().filter(|key| !used.contains(**key)).collect();
    assert!(unused.is_empty(), "no test of these files is named: {unused:?}");
}

#[test]
fn every_part_of_the_api_that_is_named_exists() {
    let mut all = String::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut all);
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words: BTreeSet<&str> = all.split(|c| !is_part(c)).collect();
    let features = read("docs/features.md");
    let cells = api_cells(&features);
    assert!(cells.len() > 30, "where are the tables?");
    for span in cells.into_iter().flat_map(spans) {
        let word = span.split(|c| !is_part(c)).rfind(|word| !word.is_empty());
        assert!(word.is_some_and(|word| words.contains(word)), "no `{span}` in src/");
    }
}

#[test]
fn what_does_not_exist_is_noticed() {
    let files = BTreeMap::from([("docs", "tests/docs.rs")]);
    let doc = "| a | `docs::what_does_not_exist_is_noticed` |\n```\n`docs::in_code`\n```\n\
        `docs::has_test` `docs::gone` `other::gone` `Every::steps` `train`";
    assert_eq!(broken(doc, &files), ["docs::has_test", "docs::gone", "other::gone"]);
    let tables =
        "| feature | in the API | tests |\n|---|---|---|\n| a | `b` | c |\n\n| d | e | f |";
    assert_eq!(api_cells(tables), ["`b`"]);
}

/// Every module of the crate has its layer in the map of the code.
#[test]
fn every_module_is_in_the_map() {
    let (map, root) = (read("docs/architecture.md"), source("src/lib.rs"));
    let rows: BTreeSet<&str> = prose(&map).filter(|l| l.starts_with('|')).flat_map(spans).collect();
    let declared = |line: &'_ str| -> Option<String> {
        let line = line.strip_prefix("pub ").unwrap_or(line);
        Some(line.strip_prefix("mod ")?.strip_suffix(';')?.to_owned())
    };
    let absent: Vec<String> =
        root.lines().filter_map(declared).filter(|module| !rows.contains(&**module)).collect();
    assert!(absent.is_empty(), "docs/architecture.md has no layer for {absent:?}");
}
