//! Exports that one rank asks for otherwise.

use tch_checkpoint::export::{ExportOptions, HuggingFace, PyTorch, PyTorchForm, export};
use tch_checkpoint::storage::MemoryStorage;
use tch_checkpoint::tensor::Dtype;
use tch_checkpoint::{Error, ErrorKind};

use super::{RANKS, some_checkpoint};
use crate::harness::*;

#[derive(Clone)]
struct Asked {
    from: &'static str,
    to: &'static str,
    options: ExportOptions,
}

type Change = Box<dyn Fn(&mut Asked) + Send + Sync>;
type Case = (&'static str, Change);

fn case(words: &'static str, change: impl Fn(&mut Asked) + Send + Sync + 'static) -> Case {
    (words, Box::new(change))
}

/// Each option. One that is added does not compile until it is here.
fn options() -> Vec<Case> {
    let ExportOptions {
        include,
        exclude,
        components,
        strip_prefix,
        submodules,
        keep_submodule_prefix,
        repeat_tied,
        cast,
        hugging_face,
        pytorch,
        overwrite,
    } = ExportOptions::default();
    assert!(include.is_empty() && exclude.is_empty() && submodules.is_empty());
    assert!(components.is_some() && strip_prefix.is_none());
    assert!(cast.is_none() && hugging_face.is_none() && pytorch.is_none());
    let text = || "w".to_owned();
    vec![
        case("`include`", move |asked| asked.options.include = vec![text()]),
        case("`exclude`", move |asked| asked.options.exclude = vec![text()]),
        case("`components`", |asked| asked.options.components = None),
        case("`strip_prefix`", move |asked| asked.options.strip_prefix = Some(text())),
        case("`submodules`", move |asked| asked.options.submodules = vec![text()]),
        case("`keep_submodule_prefix`", move |asked| {
            asked.options.keep_submodule_prefix = !keep_submodule_prefix;
        }),
        case("`repeat_tied`", move |asked| asked.options.repeat_tied = !repeat_tied),
        case("`cast`", |asked| asked.options.cast = Some(Dtype::F16)),
        case("`hugging_face`", |asked| asked.options.hugging_face = Some(HuggingFace::default())),
        case("`pytorch`", |asked| {
            asked.options.pytorch = Some(PyTorch::new(PyTorchForm::Pt));
        }),
        case("`overwrite`", move |asked| asked.options.overwrite = !overwrite),
    ]
}

/// The one error of all ranks, of which `odd` asks for something else; nothing is exported.
fn refused(odd: u32, change: Change, words: &str) -> Error {
    let memory: MemoryStorage = some_checkpoint();
    let inner = memory.clone();
    let verdicts = on_ranks(RANKS, move |group| {
        let mut asked =
            Asked { from: "runs/a", to: "out/w.safetensors", options: ExportOptions::default() };
        if group.rank().get() == odd {
            change(&mut asked);
        }
        export(&group, &inner, &wanted(asked.from), asked.to, &asked.options).map(drop)
    });
    let what = format!("rank {odd}: {words}");
    for directory in ["out", "elsewhere/out"] {
        assert_eq!(entries(&memory, directory), [""; 0], "{what}");
    }
    one_error(&verdicts, &what)
}

#[test]
fn everything_that_one_rank_asks_otherwise_of_an_export() {
    let places = [
        case("the checkpoint to be exported", |asked| asked.from = "runs/b"),
        case("where it is exported to", |asked| asked.to = "elsewhere/out/w.safetensors"),
    ];
    for (number, (words, change)) in (0..).zip(options().into_iter().chain(places)) {
        let odd = number % RANKS;
        let error = refused(odd, change, words);
        assert_eq!(error.kind(), ErrorKind::Disagreement, "{error}");
        assert!(error.message().contains(&format!("{words} differs")), "{error}");
        assert_eq!(error.rank().map(|rank| rank.get()), Some(odd.max(1)), "{error}");
        assert_eq!(error.phase(), Some("export"));
    }
}

/// A place that can be none on one rank is every rank's error, whichever it is.
#[test]
fn a_place_that_is_none_on_one_rank_is_every_ranks_error() {
    for odd in 0..RANKS {
        let error = refused(odd, Box::new(|asked| asked.to = "out/.."), "no place");
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
        assert_eq!(error.rank().map(|rank| rank.get()), Some(odd), "{error}");
    }
}
