//! [`model_code!`](crate::model_code): texts become part of the program, checked as it compiles.

use super::{Facts, ModelCode, PROVENANCE};
use crate::layout::{CODE_BYTES_MAX, CODE_FILE_BYTES_MAX, CODE_FILES_MAX, is_code_path};

/// Captures source texts as a [`ModelCode`](crate::code::ModelCode) while the program is
/// compiled, with the name and version of the package that is compiled, its git revision and its
/// features (see [`code`](mod@crate::code) for how to set these two).
///
/// Paths are relative to the file in which the macro is used. A path outside of that file's
/// folder needs a name: `model_code!("train.rs", "model.rs" = "../model.rs")`. Names that cannot
/// be stored, that clash, or too much text are compile errors.
///
/// ```
/// # use tch_checkpoint::model_code;
/// let code = model_code!("capture.rs", "lib.rs" = "../lib.rs");
/// assert!(code.files()["lib.rs"].contains("pub mod code;"));
/// ```
#[macro_export]
macro_rules! model_code {
    ($($name:literal $(= $path:literal)?),+ $(,)?) => {{
        const FILES: &[(&str, &str)] =
            &[$(($name, $crate::model_code!(@text $name $(, $path)?))),+];
        const { $crate::code::check_captured(FILES) };
        $crate::code::captured(
            FILES,
            env!("CARGO_PKG_NAME"),
            env!("CARGO_PKG_VERSION"),
            option_env!("TCH_CHECKPOINT_GIT_REVISION"),
            option_env!("TCH_CHECKPOINT_FEATURES"),
        )
    }};
    (@text $name:literal) => { include_str!($name) };
    (@text $name:literal, $path:literal) => { include_str!($path) };
}

/// What [`model_code!`](crate::model_code) expands to, after [`check_captured`].
#[must_use]
pub fn captured(
    files: &[(&str, &str)],
    package: &str,
    version: &str,
    git_revision: Option<&str>,
    features: Option<&str>,
) -> ModelCode {
    let owned = |(path, text): &(&str, &str)| ((*path).to_owned(), (*text).to_owned());
    let features = features.unwrap_or_default().split(',').map(str::trim);
    let facts = Facts {
        package: package.to_owned(),
        version: version.to_owned(),
        git_revision: git_revision.filter(|revision| !revision.is_empty()).map(str::to_owned),
        features: features.filter(|feature| !feature.is_empty()).map(str::to_owned).collect(),
    };
    ModelCode { files: files.iter().map(owned).collect(), facts }
}

/// Fails to compile for files that no checkpoint could hold.
///
/// # Panics
/// Only where it is evaluated at compile time.
pub const fn check_captured(mut files: &[(&str, &str)]) {
    // One more is written: the facts.
    assert!(files.len() < CODE_FILES_MAX, "too many files of model code");
    let mut total = 0;
    while let [(path, text), rest @ ..] = files {
        assert!(
            is_code_path(path),
            "a file of model code needs a name of letters, digits, `.`, `_`, `-` and `/`: \
             write \"name.rs\" = \"path\""
        );
        assert!(
            !clash(path.as_bytes(), PROVENANCE.as_bytes()),
            "`provenance.json` is written by the save itself: give the file another name"
        );
        assert!(text.len() as u64 <= CODE_FILE_BYTES_MAX, "a file of model code is over 1 MiB");
        total += text.len() as u64;
        let mut others = rest;
        while let [(other, _), more @ ..] = others {
            assert!(!clash(path.as_bytes(), other.as_bytes()), "two files of one name");
            others = more;
        }
        files = rest;
    }
    assert!(total < CODE_BYTES_MAX - CODE_FILE_BYTES_MAX, "model code of over 15 MiB");
}

/// Whether both are one file, or one is a folder of the other.
const fn clash(mut a: &[u8], mut b: &[u8]) -> bool {
    loop {
        match (a, b) {
            ([x, rest_a @ ..], [y, rest_b @ ..]) if *x == *y => (a, b) = (rest_a, rest_b),
            ([], [] | [b'/', ..]) | ([b'/', ..], []) => return true,
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_clash_as_files_and_as_folders() {
        for (a, b) in [("a", "a"), ("a", "a/b"), ("a/b", "a"), ("a/b", "a/b/c")] {
            assert!(clash(a.as_bytes(), b.as_bytes()), "{a} {b}");
        }
        for (a, b) in [("a", "b"), ("a", "ab"), ("a", "a.rs"), ("a/b", "a/c"), ("a-b", "a/b")] {
            assert!(!clash(a.as_bytes(), b.as_bytes()), "{a} {b}");
        }
    }

    #[test]
    fn what_no_checkpoint_could_hold_does_not_compile() {
        let refused = |files: &[(&str, &str)]| {
            let files: Vec<_> = files.to_vec();
            std::panic::catch_unwind(move || check_captured(&files)).is_err()
        };
        let long = "x".repeat((1 << 20) + 1);
        let full = &long[1..];
        assert!(!refused(&[("a.rs", full), ("b/a.rs", "")]));
        for files in [
            [("../a.rs", ""), ("b.rs", "")],
            [("a.rs", ""), ("a.rs", "")],
            [("a.rs", ""), ("a.rs/b", "")],
            [("a.rs", &long), ("b.rs", "")],
            [("a.rs", ""), (PROVENANCE, "")],
        ] {
            assert!(refused(&files), "{:?}", files.map(|(path, _)| path));
        }
        let names: Vec<String> = (0..15).map(|n| n.to_string()).collect();
        let files: Vec<_> = names.iter().map(|name| (name.as_str(), full)).collect();
        assert!(refused(&files));
        assert!(!refused(&files[1..]));
    }

    #[test]
    fn features_and_revision_are_read_leniently() {
        let code = captured(&[("a", "b")], "p", "1.0", Some(""), Some("mpi, torch,,"));
        assert_eq!(code.git_revision(), None);
        assert_eq!(
            code.features().iter().map(String::as_str).collect::<Vec<_>>(),
            ["mpi", "torch"]
        );
        assert!(captured(&[], "p", "1.0", None, None).features().is_empty());
    }
}
